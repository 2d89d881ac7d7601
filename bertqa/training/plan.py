"""Plan of a run: its steps, learning rates, and when to log, evaluate and save."""

import math
from dataclasses import dataclass

from torch import Tensor

from bertqa.data.batching import step_windows, steps_per_epoch
from bertqa.settings import TrainingSettings
from bertqa.training.optim import learning_rate


@dataclass(frozen=True)
class Plan:
    """The steps of a run.

    Attributes:
        settings: training settings.
        num_windows: windows of the training set.
        world_size: processes that share the windows of a step.
    """

    settings: TrainingSettings
    num_windows: int
    world_size: int = 1

    @property
    def windows_per_step(self) -> int:
        """Batch size of a step over all processes; the last step of an epoch may have fewer."""
        return self.settings.windows_per_step(self.world_size)

    @property
    def steps_per_epoch(self) -> int:
        """Steps to use every window once."""
        return steps_per_epoch(self.num_windows, self.windows_per_step)

    @property
    def total_steps(self) -> int:
        """Steps of the whole run."""
        if self.settings.max_steps is not None:
            return self.settings.max_steps
        return math.ceil(self.settings.num_train_epochs * self.steps_per_epoch)

    @property
    def warmup_steps(self) -> int:
        """Steps of linear warmup: ``warmup_steps`` if set, else ``warmup_ratio`` of all steps."""
        by_ratio = math.ceil(self.total_steps * self.settings.warmup_ratio)
        return self.settings.warmup_steps or by_ratio

    def learning_rate(self, step: int) -> float:
        """Return the learning rate of ``step``, counted from 0."""
        peak, schedule = self.settings.learning_rate, self.settings.lr_scheduler_type
        return learning_rate(step, peak, self.total_steps, self.warmup_steps, schedule)

    def windows_of(self, step: int) -> Tensor:
        """Return the indices of the windows of ``step``, counted from 0, over all processes."""
        return step_windows(self.num_windows, self.windows_per_step, self.settings.seed, step)

    def epoch(self, done: int) -> float:
        """Return the epochs completed after ``done`` steps."""
        return done / self.steps_per_epoch

    def logs_after(self, done: int) -> bool:
        """Return whether to log after ``done`` steps."""
        return self._is_due(done, self.settings.logging_steps)

    def evaluates_after(self, done: int) -> bool:
        """Return whether to evaluate after ``done`` steps; by default after each epoch."""
        return self._is_due(done, self.settings.eval_steps or self.steps_per_epoch)

    def saves_after(self, done: int) -> bool:
        """Return whether to save after ``done``: every ``save_steps`` and at every evaluation."""
        return self._is_due(done, self.settings.save_steps) or self.evaluates_after(done)

    def _is_due(self, done: int, every: int) -> bool:
        return done % every == 0 or done == self.total_steps
