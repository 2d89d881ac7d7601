"""Steps -> lines of log.jsonl: mean loss, learning rate, gradient norm, speed."""

import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

from bertqa.training.checkpoints import Progress
from bertqa.training.failures import Failures
from bertqa.training.loop import Step
from bertqa.training.plan import Plan


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
