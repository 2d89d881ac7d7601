"""Error analysis: groups of questions, and EM and F1 of each."""

import math

import pytest

from bertqa.answering.metrics import evaluate_v1, evaluate_v2
from bertqa.data.readers import read_examples
from bertqa.data.squad import Example
from bertqa.report.analysis import (
    answer_length,
    answer_position,
    bootstrap_interval,
    breakdown,
    question_kind,
)  # fmt: skip
from tests.helpers import STORIES, STORIES_V2


@pytest.mark.parametrize(
    ("question", "kind"),
    [
        ("Who swept it?", "who"), ("To whom, and whose?", "who"), ("In WHICH year?", "which"),
        ("What's that?", "what"), ("How many gulls, and why?", "how many"),
        ("How long is the pier?", "how many"), ("How was it built?", "how"), ("and how", "how"),
        ("Name the mill.", "other"), ("Whatever.", "other"), ("", "other"),
    ],
)  # fmt: skip
def test_a_question_is_grouped_by_its_first_question_word(question: str, kind: str) -> None:
    assert question_kind(question) == kind


def asked(*answers: str, start: int = 0) -> Example:
    return Example("1", "Who?", "context", answers, (start,) * len(answers))


def test_answers_are_grouped_by_length_and_position() -> None:
    lengths = [answer_length(asked("a " * count, "another one")) for count in (1, 2, 3, 4, 5, 8, 9)]
    assert lengths == [
        "1 word", "2 words", "3-4 words", "3-4 words", "5-8 words", "5-8 words", "9 words or more",
    ]  # fmt: skip
    positions = [answer_position(asked("x", start=start)) for start in (0, 249, 250, 999, 1000)]
    assert positions == ["before 250", "before 250", "before 500", "before 1000", "from 1000 on"]
    nothing = Example("1", "Who?", "c", ())
    assert answer_length(nothing) == answer_position(nothing) == "no answer"


@pytest.mark.parametrize("v2", [False, True])
def test_groups_average_to_the_official_metrics(v2: bool) -> None:
    examples = read_examples(STORIES_V2 if v2 else STORIES)
    predictions = {
        e.id: (e.answers[0].upper() + " more" * (i % 3) if e.answers else "the")
        for i, e in enumerate(examples)
        if i % 7
    }
    references = {e.id: e.answers or () for e in examples}
    official = (evaluate_v2 if v2 else evaluate_v1)(predictions, references)
    groups = breakdown(examples, predictions, v2=v2)
    exact = official["exact" if v2 else "exact_match"]
    for by in {group.by for group in groups}:
        members = [group for group in groups if group.by == by]
        assert len(members) > 2
        assert sum(group.count for group in members) == len(examples)
        for mean, figure in (("exact_match", exact), ("f1", official["f1"])):
            total = sum(group.count * getattr(group, mean) for group in members)
            assert total / len(examples) == pytest.approx(figure)


def test_a_gold_answer_that_normalizes_to_nothing_counts_as_in_the_official_script() -> None:
    examples = [Example("1", "Who?", "the oak", ("the", "oak"), (0, 4))]
    (group, *_) = breakdown(examples, {"1": ""}, v2=True)
    assert (group.exact_match, group.f1) == (0.0, 0.0)


def test_the_interval_of_many_answers_is_that_of_a_binomial() -> None:
    values = [100.0] * 750 + [0.0] * 250
    low, high = bootstrap_interval(values)
    deviation = 100 * math.sqrt(0.75 * 0.25 / 1000)
    assert low == pytest.approx(75 - 1.96 * deviation, abs=0.4)
    assert high == pytest.approx(75 + 1.96 * deviation, abs=0.4)
    assert bootstrap_interval(values) == (low, high)
    assert bootstrap_interval([40.0]) == bootstrap_interval([40.0] * 9) == (40.0, 40.0)
