"""The steps of a run, its learning rates, and when it logs, evaluates and saves."""

from dataclasses import replace
from pathlib import Path

import pytest
from transformers import TrainingArguments

from bertqa.training.plan import Plan
from tests.training.runs import SETTINGS


@pytest.mark.parametrize(
    ("epochs", "max_steps", "world_size", "expected"),
    [
        (3.0, None, 1, 33),  # 11 steps of at most 6 windows in an epoch of 61
        (1.0, None, 1, 11),
        (0.5, None, 1, 6),
        (1.5, None, 1, 17),
        (0.001, None, 1, 1),
        (1.0, None, 2, 6),
        (1.0, 100, 1, 100),
        (3.0, 1, 1, 1),
    ],
)
def test_steps_of_a_run(
    epochs: float, max_steps: int | None, world_size: int, expected: int
) -> None:
    settings = replace(SETTINGS, num_train_epochs=epochs, max_steps=max_steps)
    assert Plan(settings, 61, world_size).total_steps == expected


def test_steps_to_log_evaluate_and_save() -> None:
    plan = Plan(SETTINGS, 61)
    steps = range(1, 13)
    assert [step for step in steps if plan.logs_after(step)] == [3, 6, 9, 12]
    assert [step for step in steps if plan.evaluates_after(step)] == [7, 12]
    assert [step for step in steps if plan.saves_after(step)] == [4, 7, 8, 12]


def test_a_fraction_of_an_epoch_is_evaluated_at_its_end() -> None:
    plan = Plan(replace(SETTINGS, max_steps=None, num_train_epochs=1.5, eval_steps=None), 61)
    assert [step for step in range(1, 18) if plan.evaluates_after(step)] == [11, 17]
    assert (plan.epoch(11), plan.epoch(22)) == (1.0, 2.0)


def test_the_learning_rate_of_each_step() -> None:
    """Three steps of warmup from 0, 1/5 of twelve rounded up, then linear decay to 0 at step 12."""
    plan = Plan(SETTINGS, 61)
    rates = [plan.learning_rate(step) for step in range(13)]
    assert rates[:4] == pytest.approx([5e-3 * step / 3 for step in range(4)])
    assert rates[3:] == pytest.approx([5e-3 * (12 - step) / 9 for step in range(3, 13)])
    constant = replace(SETTINGS, lr_scheduler_type="constant_with_warmup")
    assert {Plan(constant, 61).learning_rate(step) for step in range(3, 12)} == {5e-3}


@pytest.mark.parametrize(("steps", "ratio"), [(0, 0.0), (0, 0.2), (0, 0.21), (5, 0.0), (5, 0.2)])
def test_warmup_steps_equal_the_trainers(steps: int, ratio: float, tmp_path: Path) -> None:
    """Since transformers 5, their warmup_steps is a fraction of all steps if it is below 1."""
    plan = Plan(replace(SETTINGS, warmup_steps=steps, warmup_ratio=ratio), 61)
    theirs = TrainingArguments(str(tmp_path), warmup_steps=steps or ratio, use_cpu=True)
    assert plan.warmup_steps == theirs.get_warmup_steps(plan.total_steps)


def test_the_windows_of_an_epoch_are_all_windows_once() -> None:
    plan = Plan(SETTINGS, 61)
    epoch = [plan.windows_of(step).tolist() for step in range(plan.steps_per_epoch)]
    assert [len(windows) for windows in epoch] == [6] * 10 + [1]
    assert sorted(window for windows in epoch for window in windows) == list(range(61))
    two, one = (Plan(SETTINGS, 61, world_size).windows_of(2) for world_size in (2, 1))
    assert len(two) == 12 and set(two.tolist()) != set(one.tolist())
