"""Log of the training: lines of log.jsonl, and failure.json with a message for a failed step."""

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
    """Error messages for failed steps, with advice how to continue.

    Attributes:
        folder: the run's folder, for failure.json.
        checkpoints: checkpoints of the run.
        plan, windows: to find the examples of a step.
        example_ids: ids of the examples; if empty, their indices are used.
        is_main: whether this process writes failure.json.
    """

    folder: RunFolder
    checkpoints: Checkpoints
    plan: Plan
    windows: LabelledWindows
    example_ids: Sequence[str] = ()
    is_main: bool = True

    def of_loss(self, step: int, loss: float, grad_norm: float) -> UserError:
        """Return the error for a step, counted from 1, with a non-finite loss or gradient."""
        message = f"step {step}: loss and gradient norm must be finite, got {loss} and {grad_norm}"
        return self._of_step(step, message, {"loss": str(loss), "gradient_norm": str(grad_norm)})

    @contextmanager
    def while_saving(self, step: int) -> Iterator[None]:
        """Context for saving a model after ``step``; adds advice to errors.

        Raises:
            UserError: the weights are invalid, or cannot be written.
        """
        try:
            yield
        except BadWeights as error:
            message = f"step {step}, or one since the last checkpoint: {error.fault}"
            raise self._of_step(step, message, {"weights": error.fault}) from error
        except UserError as error:
            last = self.checkpoints.last()
            if last is None:
                raise
            raise UserError(
                f"{error}, and continue from {last} by the same command with --resume"
            ) from error

    def _of_step(self, step: int, message: str, found: Mapping[str, str]) -> UserError:
        """Return the error for a step; write the questions of all processes to failure.json."""
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
            f"or start a new run from the last checkpoint with --model {last}, another "
            "--output_dir and a lower --learning_rate"
            if last
            else "or start again with a lower --learning_rate (there is no checkpoint yet)"
        )
        return UserError(f"{message}: check the questions, {advice}")


class TrainingLog:
    """Losses, gradient norms and throughput of the steps since the last log line.

    Losses and gradient norms stay on the device until a line, an evaluation or a checkpoint needs
    them.

    Args:
        plan: plan of the run.
        failures: makes the errors for failed steps.
        skips_overflow: accept infinite gradients, since fp16's scaler skips such a step.
    """

    def __init__(self, plan: Plan, failures: Failures, skips_overflow: bool) -> None:
        self._plan, self._failures, self._skips_overflow = plan, failures, skips_overflow
        self._pending: list[Step] = []
        self._started = time.perf_counter()

    def start_clock(self) -> None:
        """Start measuring time."""
        self._started = time.perf_counter()

    def stop_clock(self, progress: Progress) -> None:
        """Add the time since the clock was started to the training time."""
        progress.seconds_since_log += time.perf_counter() - self._started
        self.start_clock()

    def add(self, step: Step, progress: Progress) -> None:
        """Add a completed step."""
        self._pending.append(step)
        progress.tokens_since_log += step.tokens

    def settle(self, progress: Progress) -> None:
        """Read the pending losses from the device.

        Raises:
            UserError: a loss or gradient is not finite; nothing computed from it has been saved.
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
        """Return the log line of the steps since the last line, and start the next.

        Raises:
            UserError: see ``settle``.
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
            "seconds": round(seconds, 4),  # without evaluations and checkpoints
        }
        progress.losses_since_log = []
        progress.seconds_since_log, progress.tokens_since_log = 0.0, 0
        return line


def bar_text(line: Mapping[str, Any]) -> str:
    """Format a log line for the progress bar."""
    return "loss {loss:.3f}, lr {learning_rate:.1e}, {tokens_per_second:,.0f} tokens/s".format(
        **line
    )


def mean(values: Sequence[float]) -> float:
    """Return the mean of at least one value."""
    return sum(values) / len(values)
