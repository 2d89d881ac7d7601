"""Steps -> lines of log.jsonl: mean loss, learning rate, gradient norm, speed.

Of a step that failed: one sentence, and failure.json.
"""

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from bertqa.data.labels import LabelledWindows
from bertqa.errors import UserError, counted
from bertqa.model.checkpoint import BadWeights
from bertqa.training.checkpoints import Checkpoints, Progress
from bertqa.training.loop import Step
from bertqa.training.plan import Plan
from bertqa.training.run_folder import RunFolder


@dataclass(frozen=True)
class Failures:
    """Turns what came of a step into one sentence that says how to go on.

    Attributes:
        folder: gets failure.json, if this process ``is_main``.
        checkpoints: of the run.
        plan, windows: which examples a step saw.
        example_ids: of the examples that the windows are of; their numbers if none.
    """

    folder: RunFolder
    checkpoints: Checkpoints
    plan: Plan
    windows: LabelledWindows
    example_ids: Sequence[str] = ()
    is_main: bool = True

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
            last = self.checkpoints.last()
            if last is None:
                raise
            raise UserError(
                f"{error}; {last} is whole, and the same command with --resume goes on from there"
            ) from error

    def _of_step(self, step: int, message: str, found: Mapping[str, str]) -> UserError:
        """The error for a step; the questions that all processes saw in it go into a file."""
        chosen = self.plan.windows_of(step - 1)
        examples = sorted(set(self.windows.example[chosen].tolist()))
        ids = [self.example_ids[i] if self.example_ids else str(i) for i in examples]
        last = self.checkpoints.last()
        if self.is_main:
            last_name = str(last) if last else None
            failure = {"step": step, **found, "example_ids": ids, "last_checkpoint": last_name}
            listed_in = self.folder.keep_failure(failure)
            message += f" (of {counted(len(ids), 'question')}, listed in {listed_in})"
        advice = (
            f"or begin a new run with --model {last}, the checkpoint from before, another "
            "--output_dir and a lower --learning_rate"
            if last
            else "or begin anew with a lower --learning_rate; there is no checkpoint yet"
        )
        return UserError(f"{message}: look at the questions, {advice}")


class TrainingLog:
    """What is known of the steps since the last line.

    Losses and gradient norms stay on the device until a line, an evaluation or a checkpoint needs
    them as numbers.

    Args:
        plan: of the run.
        failures: say what to do about a step that failed.
        skips_overflow: an infinite gradient is no failure: fp16's scaler skips the step.
    """

    def __init__(self, plan: Plan, failures: Failures, skips_overflow: bool) -> None:
        self._plan, self._failures, self._skips_overflow = plan, failures, skips_overflow
        self._pending: list[Step] = []
        self._started = time.perf_counter()

    def start_clock(self) -> None:
        """Count the time from here on."""
        self._started = time.perf_counter()

    def stop_clock(self, progress: Progress) -> None:
        """Put the time since the clock was started down to the training."""
        progress.seconds_since_log += time.perf_counter() - self._started
        self.start_clock()

    def add(self, step: Step, progress: Progress) -> None:
        """Note a step that is done."""
        self._pending.append(step)
        progress.tokens_since_log += step.tokens

    def settle(self, progress: Progress) -> None:
        """Turn the pending losses into numbers.

        Raises:
            UserError: a loss or a gradient is not finite; nothing that came of it has been saved.
        """
        for step in self._pending:
            loss, progress.grad_norm = float(step.loss), float(step.grad_norm)
            finite = self._skips_overflow or math.isfinite(progress.grad_norm)
            if not (finite and math.isfinite(loss)):
                raise self._failures.of_loss(step.number, loss, progress.grad_norm)
            progress.losses_since_log.append(loss)
            progress.losses_since_evaluation.append(loss)
        self._pending = []

    def line(self, progress: Progress) -> dict[str, float | None]:
        """The log line of the steps since the last one; the next one begins after it.

        Raises:
            UserError: as ``settle``.
        """
        self.settle(progress)
        self.stop_clock(progress)
        seconds, norm = progress.seconds_since_log, progress.grad_norm
        line = {
            "step": progress.step,
            "epoch": round(self._plan.epoch(progress.step), 4),
            "loss": mean(progress.losses_since_log),
            "learning_rate": self._plan.learning_rate(progress.step - 1),
            "grad_norm": norm if math.isfinite(norm) else None,
            "tokens_per_second": round(progress.tokens_since_log * self._plan.world_size / seconds),
            "seconds": round(seconds, 4),  # evaluations and checkpoints apart
        }
        progress.losses_since_log = []
        progress.seconds_since_log, progress.tokens_since_log = 0.0, 0
        return line


def bar_text(line: Mapping[str, Any]) -> str:
    """A log line as it stands beside the progress bar."""
    return "loss {loss:.3f}, lr {learning_rate:.1e}, {tokens_per_second:,.0f} tokens/s".format(
        **line
    )


def mean(values: Sequence[float]) -> float:
    """The mean of at least one value."""
    return sum(values) / len(values)
