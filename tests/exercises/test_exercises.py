"""Each exercise's check passes a right solution, or the reader's, and fails a wrong one."""

from pathlib import Path

import pytest

from tests.exercises import checks, wrong

PAGE = (Path(__file__).parents[2] / "docs" / "exercises.md").read_text(encoding="utf-8")
EXERCISES = [
    "attention",
    "layer_norm",
    "dropout",
    "span_loss",
    "label_positions",
    "sliding_windows",
    "best_span",
    "f1",
    "learning_rate",
    "adamw_step",
    "checkpoint_name",
    "integrated_gradients",
]


@pytest.mark.parametrize("exercise", EXERCISES)
def test_solution(solutions, exercise):
    if not hasattr(solutions, exercise):
        pytest.skip(f"{solutions.__name__} has no function {exercise}")
    getattr(checks, exercise)(getattr(solutions, exercise))


@pytest.mark.parametrize("exercise", EXERCISES)
def test_a_typical_mistake_fails(exercise):
    with pytest.raises(AssertionError, match=r"^.+: expected .+, returned .+"):
        getattr(checks, exercise)(getattr(wrong, exercise))


def test_the_page_describes_each_exercise():
    headings = [line for line in PAGE.splitlines() if line.startswith("## ")]
    assert [heading.split("`")[1].split("(")[0] for heading in headings] == EXERCISES
