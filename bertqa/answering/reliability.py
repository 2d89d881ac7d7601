"""How far probabilities can be trusted: expected calibration error (ECE), and risk by coverage."""

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
        count: how many.
        probability: their mean probability.
        accuracy: the share of them that is right.
    """

    count: int
    probability: float
    accuracy: float


@dataclass(frozen=True)
class CoveragePoint:
    """What becomes of a data set when answers below a threshold become "no answer".

    Attributes:
        threshold: of the probability.
        answered: share of the questions that are still given an answer.
        right: share of these answers that is right; None where there is none.
    """

    threshold: float
    answered: float
    right: float | None


@dataclass(frozen=True)
class Reliability:
    """How far the probabilities of some answers can be trusted.

    An answer, which may be "no answer", is right if it equals a gold answer once normalised.

    Attributes:
        temperature: that scores were divided by.
        questions: how many were asked.
        loss: mean negative log-likelihood of the gold answers; None where none of them is a span.
        ece: expected calibration error over ``BINS`` bins of equal mass, by any gold answer.
        ece_first_gold: the same where only the first gold answer of a question counts.
        bins: with ``ece``; ascending.
        coverage: for some thresholds, ascending.
    """

    temperature: float
    questions: int
    loss: float | None
    ece: float
    ece_first_gold: float
    bins: list[Bin]
    coverage: list[CoveragePoint]

    @classmethod
    def from_json(cls, entries: dict[str, Any]) -> "Reliability":
        """What ``asdict`` made of one, read from JSON.

        Raises:
            LookupError, TypeError, ValueError, AttributeError: it is something else.
        """
        bins = [Bin(**finite_numbers(each)) for each in entries["bins"]]
        coverage = [CoveragePoint(**finite_numbers(each)) for each in entries["coverage"]]
        if not bins:
            raise ValueError("no bins")
        own = {key: value for key, value in entries.items() if key not in ("bins", "coverage")}
        return cls(**finite_numbers(own), bins=bins, coverage=coverage)


def finite_numbers(entries: dict[str, Any]) -> dict[str, Any]:
    """The entries, of which each is a finite number, or None where there may be none."""
    for key, value in entries.items():
        is_number = type(value) in (int, float) and math.isfinite(value)
        if not is_number and not (value is None and key in ("loss", "right")):
            raise ValueError(f"{key} is no finite number")
    return entries


def measure(
    scored: ScoredQuestions, predictions: Sequence[Prediction], ids: set[str], temperature: float
) -> Reliability:
    """Measure the probabilities of the answers to some questions.

    Args:
        predictions: what ``scored`` gives at that temperature.
        ids: of the questions to measure on.
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
    """Whether each answer equals one of the first ``golds`` gold answers; None for all of them."""
    references = {example.id: (example.answers or ())[:golds] for example in examples}
    texts = {prediction.id: prediction.text for prediction in predictions}
    return [exact == 1 for exact, _ in question_scores(texts, references, v2=v2).values()]


def equal_mass_bins(
    probabilities: Sequence[float], right: Sequence[bool], number: int = BINS
) -> list[Bin]:
    """Sort answers by probability into bins of as many each, give or take one, ascending."""
    answers = sorted(zip(probabilities, right, strict=True), key=itemgetter(0))
    count = len(answers)
    number = min(number, count)
    parts = [answers[count * b // number : count * (b + 1) // number] for b in range(number)]
    return [_bin(*zip(*part, strict=True)) for part in parts]


def _bin(probabilities: Sequence[float], right: Sequence[bool]) -> Bin:
    count = len(right)
    return Bin(count, math.fsum(probabilities) / count, sum(right) / count)


def calibration_error(bins: Sequence[Bin]) -> float:
    """ECE: the mean distance of probability and accuracy, bins weighted by their answers."""
    total = sum(each.count for each in bins)
    return math.fsum(each.count * abs(each.accuracy - each.probability) for each in bins) / total


def _coverage(
    predictions: Sequence[Prediction], probabilities: Sequence[float], right: Sequence[bool]
) -> list[CoveragePoint]:
    """Share answered and share right of these, at each of some thresholds."""
    rows = zip(predictions, probabilities, right, strict=True)
    answered = [(probability, is_right) for given, probability, is_right in rows if given.text]
    points = []
    for threshold in _THRESHOLDS:
        kept = [is_right for probability, is_right in answered if probability >= threshold]
        share = sum(kept) / len(kept) if kept else None
        points.append(CoveragePoint(threshold, len(kept) / len(predictions), share))
    return points
