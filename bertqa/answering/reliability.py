"""Reliability of probabilities: expected calibration error (ECE), and risk over coverage."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Any

from bertqa.answering.answers import Prediction, answer_entries
from bertqa.answering.metrics import question_scores
from bertqa.answering.temperature import ScoredQuestions
from bertqa.data.squad import Example

BINS = 15
_THRESHOLDS = (*(tenth / 10 for tenth in range(10)), 0.95, 0.99)


@dataclass(frozen=True)
class Bin:
    """Answers of similar probability.

    Attributes:
        count: number of answers.
        probability: mean probability.
        accuracy: fraction of correct answers.
    """

    count: int
    probability: float
    accuracy: float


@dataclass(frozen=True)
class CoveragePoint:
    """Coverage and accuracy of a dataset if answers below a threshold become "no answer".

    Attributes:
        threshold: of the probability.
        answered: fraction of questions that still have an answer.
        right: fraction of these answers that are correct; None if there are none.
    """

    threshold: float
    answered: float
    right: float | None


@dataclass(frozen=True)
class Reliability:
    """Reliability of the probabilities of answers.

    An answer, which may be "no answer", is correct if it equals a gold answer after normalization.

    Attributes:
        temperature: divisor of the scores.
        questions: number of questions.
        loss: mean negative log-likelihood of the gold answers; None if none of them is a span.
        ece: expected calibration error over ``BINS`` bins of equal mass, with any gold answer.
        ece_first_gold: the same with only the first gold answer of each question.
        bins: bins of ``ece``, ascending.
        coverage: coverage at several thresholds, ascending.
    """

    temperature: float
    questions: int
    loss: float | None
    ece: float
    ece_first_gold: float
    bins: list[Bin]
    coverage: list[CoveragePoint]

    @property
    def ece_by_chance(self) -> float:
        """ECE to expect of perfectly calibrated probabilities with so few questions."""
        return chance_error(self.bins)

    @classmethod
    def from_json(cls, entries: dict[str, Any]) -> "Reliability":
        """Restore an object from the output of ``asdict``.

        Raises:
            LookupError, TypeError, ValueError, AttributeError: the format is wrong.
        """
        bins = [Bin(**finite_numbers(each)) for each in entries["bins"]]
        coverage = [CoveragePoint(**finite_numbers(each)) for each in entries["coverage"]]
        if not bins:
            raise ValueError("no bins")
        own = {key: value for key, value in entries.items() if key not in ("bins", "coverage")}
        return cls(**finite_numbers(own), bins=bins, coverage=coverage)


def finite_numbers(entries: dict[str, Any]) -> dict[str, Any]:
    """Return the entries if each is a finite number, or None where that is allowed."""
    for key, value in entries.items():
        is_number = type(value) in (int, float) and math.isfinite(value)
        if not is_number and not (value is None and key in ("loss", "right")):
            raise ValueError(f"{key} is not a finite number")
    return entries


def measure(
    scored: ScoredQuestions, predictions: Sequence[Prediction], ids: set[str], temperature: float
) -> Reliability:
    """Measure the reliability of the answers to some questions.

    Args:
        predictions: of ``scored`` at that temperature.
        ids: ids of the questions to measure.
    """
    chosen = [n for n, example in enumerate(scored.examples) if example.id in ids]
    examples = [scored.examples[n] for n in chosen]
    predictions = [predictions[n] for n in chosen]
    probabilities = [answer_entries(p, top_k=1)[0]["score"] for p in predictions]
    v2 = scored.settings.version_2_with_negative
    right, first = (_right(examples, predictions, v2, golds) for golds in (None, 1))
    losses = scored.losses(temperature)[chosen]
    losses = losses[losses.isfinite()]
    bins = equal_mass_bins(probabilities, right)
    return Reliability(
        temperature=temperature,
        questions=len(examples),
        loss=float(losses.mean()) if len(losses) else None,
        ece=calibration_error(bins),
        ece_first_gold=calibration_error(equal_mass_bins(probabilities, first)),
        bins=bins,
        coverage=_coverage(predictions, probabilities, right),
    )


def _right(
    examples: Sequence[Example], predictions: Sequence[Prediction], v2: bool, golds: int | None
) -> list[bool]:
    """Return whether each answer equals one of its first ``golds`` gold answers (None: all)."""
    references = {example.id: (example.answers or ())[:golds] for example in examples}
    texts = {prediction.id: prediction.text for prediction in predictions}
    return [exact == 1 for exact, _ in question_scores(texts, references, v2=v2).values()]


def equal_mass_bins(
    probabilities: Sequence[float], right: Sequence[bool], number: int = BINS
) -> list[Bin]:
    """Sort answers by probability into bins of equal counts, give or take one, ascending."""
    answers = sorted(zip(probabilities, right, strict=True), key=itemgetter(0))
    count = len(answers)
    number = min(number, count)
    parts = [answers[count * b // number : count * (b + 1) // number] for b in range(number)]
    return [_bin(*zip(*part, strict=True)) for part in parts]


def _bin(probabilities: Sequence[float], right: Sequence[bool]) -> Bin:
    count = len(right)
    return Bin(count, math.fsum(probabilities) / count, sum(right) / count)


def calibration_error(bins: Sequence[Bin]) -> float:
    """Compute the ECE: mean |accuracy - probability| over the bins, weighted by their counts."""
    total = sum(each.count for each in bins)
    return math.fsum(each.count * abs(each.accuracy - each.probability) for each in bins) / total


def chance_error(bins: Sequence[Bin]) -> float:
    """Compute the ECE to expect of perfectly calibrated probabilities in these bins.

    The accuracy of n answers of probability p is about normally distributed around p with a
    standard deviation of sqrt(p (1 - p) / n), and the mean absolute deviation of a normal
    distribution is sqrt(2 / pi) of the standard deviation. So it decreases with 1 / sqrt(n).
    """
    total = sum(each.count for each in bins)
    variances = ((each.count, each.probability * (1 - each.probability)) for each in bins)
    return math.fsum(math.sqrt(2 / math.pi * n * v) for n, v in variances) / total


def _coverage(
    predictions: Sequence[Prediction], probabilities: Sequence[float], right: Sequence[bool]
) -> list[CoveragePoint]:
    """Return the fraction answered and the accuracy of these answers, at each threshold."""
    rows = zip(predictions, probabilities, right, strict=True)
    answered = [(probability, is_right) for given, probability, is_right in rows if given.text]
    points = []
    for threshold in _THRESHOLDS:
        kept = [is_right for probability, is_right in answered if probability >= threshold]
        share = sum(kept) / len(kept) if kept else None
        points.append(CoveragePoint(threshold, len(kept) / len(predictions), share))
    return points
