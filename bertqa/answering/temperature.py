"""Temperature scaling: fitting the divisor of the scores before the softmax.

One temperature for the softmax over all spans and "no answer", if it is allowed (Guo et al. 2017,
"On Calibration of Modern Neural Networks"). It changes no answer. The fitted temperature minimizes
the mean negative log-likelihood of the gold answers.

Q  questions      G  gold answers as spans of tokens
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property

import torch
from torch import Tensor

from bertqa.answering.answerer import QuestionAnswerer
from bertqa.answering.answers import Prediction
from bertqa.answering.decoding import WindowScores, log_sums, log_totals, logits_of, null_logits
from bertqa.answering.evaluation import ExampleBlock, predictions_of, scored_blocks
from bertqa.data.labels import answer_tokens, only_gold
from bertqa.data.squad import Example, check_answers, check_examples
from bertqa.data.windows import WindowSet, make_windows
from bertqa.errors import UserError

_LOWEST, _HIGHEST = 0.1, 10.0  # range of the search
_GRID, _CUTS = 9, 16  # grid points, then golden-section steps: precision 0.1 % of the temperature
_GOLDEN = (math.sqrt(5) - 1) / 2

LIMIT = (
    "this temperature is at the limit of the search: the scores say little about which answers are "
    "correct, or there are too few questions"
)


class ScoredQuestions:
    """Questions scored once by the model, to be answered at any temperature.

    Args:
        qa: its windows and decoding make the answers; the losses are over all spans.
        examples: with gold answers.
        source: name of the examples in messages.

    Raises:
        UserError: the examples are invalid.
    """

    def __init__(self, qa: QuestionAnswerer, examples: Sequence[Example], source: str) -> None:
        check_examples(examples, source)
        check_answers(examples, source)
        impossible = sum(example.is_impossible for example in examples)
        if impossible and not qa.decoding.version_2_with_negative:
            raise UserError(
                f"{source} must have an answer to every question, as the model has no "
                f'"no answer" threshold, got {impossible} without: remove them, or run bertqa '
                "threshold first"
            )
        self.examples = examples
        self.settings = replace(qa.decoding, score_threshold=0.0)
        self.windows: WindowSet = make_windows(examples, qa.tokenizer, qa.windows)
        self.blocks = [*scored_blocks(qa.model, self.windows, len(examples), qa.runtime)]

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

        It is infinite if every gold answer is outside the windows or too long.
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
        """Question and score of each block's gold spans, and of [CLS] if unanswerable."""
        spans = _gold_spans(self.examples, self.windows)
        spans = spans[spans[:, 2] - spans[:, 1] < self.settings.max_answer_length]
        return [self._golds_of(block, scores, spans) for block, scores in self.blocks]

    def _golds_of(
        self, block: ExampleBlock, scores: WindowScores, spans: Tensor
    ) -> tuple[Tensor, Tensor]:
        asked = block.examples
        here = (spans[:, 0] >= asked.start) & (spans[:, 0] < asked.stop)
        question, first, last = spans[here].to(scores.cls.device).unbind(1)
        start, end = logits_of(scores, question - asked.start, first, last)
        score = start.double() + end.double()
        seen = score.isfinite()  # the span is within a window
        impossible = [i for i, n in enumerate(asked) if self.examples[n].is_impossible]
        nulls = torch.tensor(impossible, dtype=torch.int64, device=question.device)
        questions = torch.cat([(question - asked.start)[seen], nulls])
        return questions, torch.cat([score[seen], _null_score(scores)[nulls]])


def _gold_spans(examples: Sequence[Example], windows: WindowSet) -> Tensor:
    """Return question, first and last context token of distinct gold answers, ``(G, 3)`` int64."""
    context_of, question = windows.context_of.long(), torch.arange(len(examples))
    rows = [torch.zeros(0, 3, dtype=torch.int64)]
    for n in range(max(len(example.answer_starts) for example in examples)):
        only = [only_gold(example, n) for example in examples]
        first, last = answer_tokens(only, windows.contexts, context_of)
        rows.append(torch.stack([question, first, last], dim=1)[last >= first])
    return torch.cat(rows).unique(dim=0)


def _null_score(scores: WindowScores) -> Tensor:
    start, end = null_logits(scores)
    return start.double() + end.double()


def fit_temperature(scored: ScoredQuestions, ids: set[str], source: str) -> float:
    """Find the temperature with the lowest mean loss on some questions.

    Raises:
        UserError: no gold answer is a span of a window.
    """
    chosen = torch.tensor([example.id in ids for example in scored.examples])
    usable = chosen & scored.losses(1.0).isfinite()
    if not usable.any():
        raise UserError(
            f"{source} must have gold answers within the windows to fit a temperature, got none: "
            "pass other questions, or longer windows"
        )

    def loss(log_temperature: float) -> float:
        return float(scored.losses(math.exp(log_temperature))[usable].mean())

    return math.exp(_lowest(loss, math.log(_LOWEST), math.log(_HIGHEST)))


def at_limit(temperature: float) -> bool:
    """Return whether a fitted temperature is at an end of the search range.

    Then the scores say little about which answers are correct, or there are too few questions.
    """
    return not 1.01 * _LOWEST < temperature < _HIGHEST / 1.01


def _lowest(function: Callable[[float], float], low: float, high: float) -> float:
    """Find the minimum of a function by a grid, then a golden-section search around the best."""
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
