"""What a run says, and keeps in failure.json, of a step that failed."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from bertqa.data.labels import LabelledWindows
from bertqa.errors import UserError
from bertqa.model.checkpoint import BadWeights
from bertqa.training.checkpoints import Checkpoints
from bertqa.training.plan import Plan
from bertqa.training.run_folder import RunFolder


class Failures:
    """Turns what came of a step into one sentence that says how to go on.

    Args:
        folder: gets failure.json, if this process ``is_main``.
        checkpoints: of the run.
        plan, windows: which examples a step saw.
        example_ids: of the examples that the windows are of; their numbers if none.
    """

    def __init__(
        self,
        folder: RunFolder,
        checkpoints: Checkpoints,
        plan: Plan,
        windows: LabelledWindows,
        example_ids: Sequence[str] = (),
        *,
        is_main: bool = True,
    ) -> None:
        self._folder, self._checkpoints, self._plan = folder, checkpoints, plan
        self._windows, self._example_ids, self._is_main = windows, example_ids, is_main

    def of_loss(self, step: int, loss: float, grad_norm: float) -> UserError:
        """The error for a step, from 1, whose loss or gradient is not finite."""
        message = f"step {step} has loss {loss} and gradient norm {grad_norm}"
        return self._of_step(step, message, {"loss": str(loss), "gradient_norm": str(grad_norm)})

    @contextmanager
    def while_saving(self, step: int) -> Iterator[None]:
        """Say of a model that is not written after ``step`` how the run can go on.

        Raises:
            UserError: the weights are no numbers that can be loaded, or the disk refuses them.
        """
        try:
            yield
        except BadWeights as error:
            message = f"at step {step}, or at one since the last checkpoint, {error.fault}"
            raise self._of_step(step, message, {"weights": error.fault}) from error
        except UserError as error:
            last = self._checkpoints.last()
            if last is None:
                raise
            raise UserError(
                f"{error}; {last} is whole, and the same command with --resume goes on from there"
            ) from error

    def _of_step(self, step: int, message: str, found: Mapping[str, str]) -> UserError:
        """The error for a step; the questions that it saw go into a file."""
        ids, last = self._questions(step), self._checkpoints.last()
        if self._is_main:
            last_name = str(last) if last else None
            failure = {"step": step, **found, "example_ids": ids, "last_checkpoint": last_name}
            message += f" (its {len(ids)} questions are in {self._folder.keep_failure(failure)})"
        advice = (
            f"or begin a new run with --model {last}, the checkpoint from before, another "
            "--output_dir and a lower --learning_rate"
            if last
            else "or begin anew with a lower --learning_rate; there is no checkpoint yet"
        )
        return UserError(f"{message}: look at the questions, {advice}")

    def _questions(self, step: int) -> list[str]:
        """The ids of the examples that a step, from 1, saw over all processes."""
        chosen = self._plan.windows_of(step - 1)
        examples = sorted(set(self._windows.example[chosen].tolist()))
        return [self._example_ids[i] if self._example_ids else str(i) for i in examples]
