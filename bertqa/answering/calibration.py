"""Calibrate probabilities: fit a temperature, and measure how far they can be trusted.

Scores are divided by one temperature before the softmax over all spans and, where it may be given,
"no answer" (Guo et al. 2017, "On Calibration of Modern Neural Networks"). That changes no answer.
The temperature is the one with the lowest mean negative log-likelihood of the gold answers; the
expected calibration error (ECE) is measured on other articles than it was fitted on.

Q  questions      G  gold answers as spans of tokens      B  bins
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bertqa.answering.answerer import QuestionAnswerer
from bertqa.answering.answers import Prediction, answer_entries
from bertqa.answering.decoding import WindowScores, log_sums, log_totals, logits_of, null_logits
from bertqa.answering.evaluation import Block, predictions_of, scored_blocks
from bertqa.answering.metrics import question_scores
from bertqa.data.labels import answer_tokens
from bertqa.data.squad import Example, check_answers, check_examples, split_by_article
from bertqa.data.windows import WindowSet, make_windows
from bertqa.errors import UserError
from bertqa.files import read_json_object, write_json

CALIBRATION_FILE = "calibration.json"
BINS = 15
_LOWEST, _HIGHEST = 0.1, 10.0  # temperatures among which the best is looked for
_GRID, _CUTS = 9, 16  # coarse steps, then cuts by the golden ratio: to 0.1 % of the temperature
_GOLDEN = (math.sqrt(5) - 1) / 2
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
        bins = [Bin(**_numbers(each)) for each in entries["bins"]]
        coverage = [CoveragePoint(**_numbers(each)) for each in entries["coverage"]]
        if not bins:
            raise ValueError("no bins")
        own = {key: value for key, value in entries.items() if key not in ("bins", "coverage")}
        return cls(**_numbers(own), bins=bins, coverage=coverage)


@dataclass(frozen=True)
class Calibration:
    """A temperature, and what it changes on questions that it was not fitted on.

    Attributes:
        fitted_on: questions that it was fitted on.
        before, after: at temperature 1, and at the one that was found, on the others.
    """

    fitted_on: int
    before: Reliability
    after: Reliability

    @property
    def temperature(self) -> float:
        """The one that was found."""
        return self.after.temperature


class ScoredQuestions:
    """Questions that the model has read once, to be answered at any temperature.

    Args:
        qa: the answers are by its windows and decoding; the losses are of the search of all spans.
        examples: with gold answers.
        source: what messages call them.

    Raises:
        UserError: the examples cannot be used.
    """

    def __init__(self, qa: QuestionAnswerer, examples: Sequence[Example], source: str) -> None:
        check_examples(examples, source)
        check_answers(examples, source)
        impossible = sum(example.is_impossible for example in examples)
        if impossible and not qa.decoding.version_2_with_negative:
            raise UserError(
                f"{source} must have an answer to each question, as the model gives one to each, "
                f"got {impossible} without: leave them out, or let bertqa threshold choose first "
                'when the model says "no answer"'
            )
        self.examples = examples
        self.settings = replace(qa.decoding, score_threshold=0.0)
        self.windows: WindowSet = make_windows(examples, qa.tokenizer, qa.windows)
        self.blocks: list[tuple[Block, WindowScores]] = list(
            scored_blocks(qa.model, self.windows, len(examples), qa.runtime)
        )

    def predictions(self, temperature: float) -> list[Prediction]:
        """Answer all questions, in order."""
        settings = replace(self.settings, temperature=temperature)
        return [
            prediction
            for block, scores in self.blocks
            for prediction in predictions_of(self.examples, self.windows, block, scores, settings)
        ]

    def losses(self, temperature: float) -> Tensor:
        """Compute -log P(any gold answer) of each question, ``(Q,)`` float64.

        Infinite where no gold answer is a span of a window, or is too long.
        """
        of_blocks = []
        for (_, scores), (question, score) in zip(self.blocks, self._golds, strict=True):
            total = log_totals(scores, self.settings.max_answer_length, temperature)
            if self.settings.version_2_with_negative:
                total = total.logaddexp(_null_score(scores) / temperature)
            of_blocks.append(total - log_sums(question, score / temperature, len(total)))
        return torch.cat(of_blocks).cpu()

    @cached_property
    def _golds(self) -> list[tuple[Tensor, Tensor]]:
        """For each block: question and score of its gold spans, and of null where that is gold."""
        spans = _gold_spans(self.examples, self.windows)
        spans = spans[spans[:, 2] - spans[:, 1] < self.settings.max_answer_length]
        return [self._golds_of(block, scores, spans) for block, scores in self.blocks]

    def _golds_of(self, block: Block, scores: WindowScores, spans: Tensor) -> tuple[Tensor, Tensor]:
        asked = block.examples
        here = (spans[:, 0] >= asked.start) & (spans[:, 0] < asked.stop)
        question, first, last = spans[here].to(scores.cls.device).unbind(1)
        start, end = logits_of(scores, question - asked.start, first, last)
        score = start.double() + end.double()
        seen = score.isfinite()  # in a window as a whole
        impossible = [i for i, n in enumerate(asked) if self.examples[n].is_impossible]
        nulls = torch.tensor(impossible, dtype=torch.int64, device=question.device)
        return (
            torch.cat([(question - asked.start)[seen], nulls]),
            torch.cat([score[seen], _null_score(scores)[nulls]]),
        )


def _gold_spans(examples: Sequence[Example], windows: WindowSet) -> Tensor:
    """``(G, 3)`` int64: question, first and last context token of its distinct gold answers."""
    context_of = windows.context_of.long()
    rows = [torch.zeros(0, 3, dtype=torch.int64)]
    for n in range(max(len(example.answer_starts) for example in examples)):
        only = [
            replace(
                e, answers=(e.answers or ())[n : n + 1], answer_starts=e.answer_starts[n : n + 1]
            )
            for e in examples
        ]
        first, last = answer_tokens(only, windows.contexts, context_of)
        spans = torch.stack([torch.arange(len(examples)), first, last], dim=1)
        rows.append(spans[last >= first])
    return torch.cat(rows).unique(dim=0)


def _null_score(scores: WindowScores) -> Tensor:
    start, end = null_logits(scores)
    return start.double() + end.double()


# --- fit and measure -----------------------------------------------------------------------------


def calibrate(
    qa: QuestionAnswerer, examples: Sequence[Example], source: str
) -> tuple[Calibration, list[Prediction]]:
    """Fit a temperature on every other article, and measure on the others what it changes.

    Args:
        examples: questions with gold answers that the model was not trained on; those about one
            article, or where there are no titles one context, stay together.
        source: what messages call them.

    Returns:
        The calibration, and the answers to all questions at its temperature.

    Raises:
        UserError: the examples cannot be used, or are all about one article.
    """
    if len({example.title or example.context for example in examples}) < 2:
        raise UserError(
            f"{source} must have questions about two articles or more to be fitted and measured on "
            "different ones, got one article: give more"
        )
    scored = ScoredQuestions(qa, examples, source)
    fitting, measuring = split_by_article(examples, 50)
    temperature = fit_temperature(scored, {example.id for example in fitting}, source)
    ids = {example.id for example in measuring}
    predictions = scored.predictions(temperature)
    before = measure(scored, scored.predictions(1.0), ids, 1.0)
    after = measure(scored, predictions, ids, temperature)
    return Calibration(len(fitting), before, after), predictions


def fit_temperature(scored: ScoredQuestions, ids: set[str], source: str) -> float:
    """Find the temperature with the lowest mean loss of some questions.

    Raises:
        UserError: none of their gold answers is a span that the model can give.
    """
    chosen = torch.tensor([example.id in ids for example in scored.examples])
    usable = chosen & scored.losses(1.0).isfinite()
    if not usable.any():
        raise UserError(
            f"{source} must have gold answers that the model can give, which a temperature could "
            "be fitted to, got none: give others, or longer windows"
        )

    def loss(log_temperature: float) -> float:
        return float(scored.losses(math.exp(log_temperature))[usable].mean())

    return math.exp(_lowest(loss, math.log(_LOWEST), math.log(_HIGHEST)))


def _lowest(function: Callable[[float], float], low: float, high: float) -> float:
    """Where a function is lowest: coarse steps, then a golden-section search about the best."""
    step = (high - low) / (_GRID - 1)
    best = min((low + i * step for i in range(_GRID)), key=function)
    low, high = max(low, best - step), min(high, best + step)
    left, right = high - _GOLDEN * (high - low), low + _GOLDEN * (high - low)
    at_left, at_right = function(left), function(right)
    for _ in range(_CUTS):
        if at_left <= at_right:
            high, right, at_right = right, left, at_left
            left = high - _GOLDEN * (high - low)
            at_left = function(left)
        else:
            low, left, at_left = left, right, at_right
            right = low + _GOLDEN * (high - low)
            at_right = function(right)
    return (low + high) / 2


def measure(
    scored: ScoredQuestions, predictions: Sequence[Prediction], ids: set[str], temperature: float
) -> Reliability:
    """Measure the probabilities of the answers to some questions.

    Args:
        predictions: what ``scored`` gives at that temperature.
        ids: of the questions to measure on.
    """
    examples = [example for example in scored.examples if example.id in ids]
    predictions = [prediction for prediction in predictions if prediction.id in ids]
    probabilities = [answer_entries(p, top_k=1)[0]["score"] for p in predictions]
    v2 = scored.settings.version_2_with_negative
    right = _right(examples, predictions, v2, golds=None)
    first = _right(examples, predictions, v2, golds=1)
    chosen = torch.tensor([example.id in ids for example in scored.examples])
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
    scores = question_scores(texts, references, v2=v2)
    return [scores[example.id][0] == 1 for example in examples]


def equal_mass_bins(
    probabilities: Sequence[float], right: Sequence[bool], number: int = BINS
) -> list[Bin]:
    """Sort answers by probability into bins of as many each, give or take one, ascending."""
    order = sorted(range(len(probabilities)), key=probabilities.__getitem__)
    number = min(number, len(order))
    parts = [
        order[len(order) * b // number : len(order) * (b + 1) // number] for b in range(number)
    ]
    return [
        Bin(
            len(part),
            math.fsum(probabilities[i] for i in part) / len(part),
            sum(right[i] for i in part) / len(part),
        )
        for part in parts
    ]


def calibration_error(bins: Sequence[Bin]) -> float:
    """ECE: the mean distance of probability and accuracy, bins weighted by their answers."""
    total = sum(each.count for each in bins)
    return math.fsum(each.count * abs(each.accuracy - each.probability) for each in bins) / total


def _coverage(
    predictions: Sequence[Prediction], probabilities: Sequence[float], right: Sequence[bool]
) -> list[CoveragePoint]:
    """Share answered and share right of these, at each of some thresholds."""
    answered = [
        (probability, is_right)
        for prediction, probability, is_right in zip(predictions, probabilities, right, strict=True)
        if prediction.text
    ]
    points = []
    for threshold in _THRESHOLDS:
        kept = [is_right for probability, is_right in answered if probability >= threshold]
        share = sum(kept) / len(kept) if kept else None
        points.append(CoveragePoint(threshold, len(kept) / len(predictions), share))
    return points


# --- calibration.json ----------------------------------------------------------------------------


def write_calibration(folder: Path, calibration: Calibration) -> None:
    """Write calibration.json.

    Raises:
        UserError: the folder cannot be written.
    """
    write_json(folder / CALIBRATION_FILE, asdict(calibration))


def read_calibration(folder: Path) -> Calibration | None:
    """What calibration.json in a folder says; None where there is none.

    Raises:
        UserError: it is not as ``write_calibration`` writes it.
    """
    path = folder / CALIBRATION_FILE
    if not path.exists():
        return None
    entries = read_json_object(path)
    try:
        before, after = (Reliability.from_json(entries[key]) for key in ("before", "after"))
        fitted_on = _numbers({"fitted_on": entries["fitted_on"]})["fitted_on"]
        return Calibration(fitted_on, before, after)
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise UserError(
            f"{path} must be as bertqa calibrate writes it, got another form ({error}): remove it, "
            "or calibrate again"
        ) from error


def _numbers(entries: dict[str, Any]) -> dict[str, Any]:
    """The entries, of which each is a finite number, or None where there may be none."""
    for key, value in entries.items():
        is_number = type(value) in (int, float) and math.isfinite(value)
        if not is_number and not (value is None and key in ("loss", "right")):
            raise ValueError(f"{key} is no finite number")
    return entries
