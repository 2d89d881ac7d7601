"""Answers with the scores of transformers' question-answering pipeline, as 4.57 computed them.

Each window is normalized separately: P_start and P_end are softmaxes over its [CLS] and its part of
the context, and a span's score is P_start(i) P_end(j). The scores of equal texts, ignoring case,
are summed over all windows, so a score may exceed 1. "No answer" scores P_start([CLS])
P_end([CLS]), the minimum over the windows. ``exact_spans`` finds the best spans, with each window
as a separate question.

N  windows      R  spans
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from bertqa.answering.answers import AnswerEntry
from bertqa.answering.decoding import BestSpans, WindowScores, context_scores, exact_spans
from bertqa.answering.evaluation import ExampleBlock, scored_blocks
from bertqa.data.squad import Example
from bertqa.data.windows import WindowSet
from bertqa.model.bert import BertForQuestionAnswering
from bertqa.runtime import Runtime


@dataclass(frozen=True)
class PerWindowSettings:
    """How spans become answers.

    Attributes:
        top_k: number of answers.
        max_answer_length: maximum tokens of a span.
        with_null: allow "" as an answer.
        words: first and last token of each token's word, as rows of the contexts' tokens; if given,
            answers are extended to whole words within their window.
    """

    top_k: int
    max_answer_length: int
    with_null: bool
    words: tuple[Tensor, Tensor] | None = None

    @property
    def spans_per_window(self) -> int:
        """Number of spans per window: more with ``words``, where several may become one text."""
        return self.top_k * 2 + 10 if self.words else self.top_k


def per_window_answers(
    model: BertForQuestionAnswering,
    examples: Sequence[Example],
    windows: WindowSet,
    settings: PerWindowSettings,
    runtime: Runtime,
) -> Iterator[list[AnswerEntry]]:
    """Yield the best answers to each example, in order; ``windows`` are those of ``examples``."""
    for block, scores in scored_blocks(model, windows, len(examples), runtime):
        spans, nulls = _window_spans(windows, block, scores, settings)
        owner = scores.question.tolist()
        of_example: list[list[_Span]] = [[] for _ in block.examples]
        for window, span in spans:
            of_example[owner[window]].append(span)
        lowest = [math.inf] * len(block.examples)
        for example, null in zip(owner, nulls, strict=True):
            lowest[example] = min(lowest[example], null)
        for i, number in enumerate(block.examples):
            yield _merged(examples[number].context, of_example[i], lowest[i], settings)


class _Span(NamedTuple):
    """A span's score and its characters in the context."""

    score: float
    start: int
    end: int


@torch.inference_mode()
def _window_spans(
    windows: WindowSet, block: ExampleBlock, scores: WindowScores, settings: PerWindowSettings
) -> tuple[list[tuple[int, _Span]], list[float]]:
    """Return the best spans of all windows with their window, in order, and N null scores."""
    window = torch.arange(len(scores.cls), device=scores.cls.device)
    scores = replace(scores, first=torch.zeros_like(window), question=window)
    found = exact_spans(scores, settings.spans_per_window, settings.max_answer_length)
    context = context_scores(scores, window)  # S.T_i and E.T_i, (N, C) each
    cls = scores.start_logits[scores.cls].float(), scores.end_logits[scores.cls].float()
    totals = [torch.cat([x[:, None], c], 1).logsumexp(1) for x, c in zip(cls, context, strict=True)]
    nulls = (cls[0] - totals[0]).exp() * (cls[1] - totals[1]).exp()
    start = (found.start_logit - totals[0][found.question]).exp()
    score = start * (found.end_logit - totals[1][found.question]).exp()
    characters = _characters(windows, block, found, settings.words)
    spans = map(_Span, score.tolist(), *(column.tolist() for column in characters))
    return list(zip(found.question.tolist(), spans, strict=True)), nulls.tolist()


def _characters(
    windows: WindowSet, block: ExampleBlock, spans: BestSpans, words: tuple[Tensor, Tensor] | None
) -> tuple[Tensor, Tensor]:
    """Return start and end in the context of spans of single windows, ``(R,)`` each."""
    window = spans.question.cpu() + block.windows.start
    text = windows.context_of[windows.example[window]]
    begin = windows.contexts.bounds[text] + windows.first[window]
    first, last = begin + spans.start.cpu(), begin + spans.end.cpu()
    if words:
        first = words[0][first].maximum(begin)
        last = words[1][last].minimum(begin + windows.count[window] - 1)
    return windows.contexts.starts[first], windows.contexts.ends[last]


def _merged(
    context: str, spans: Sequence[_Span], null: float, settings: PerWindowSettings
) -> list[AnswerEntry]:
    """Add up the scores of equal texts; the offsets are those of the first."""
    answers: dict[str, AnswerEntry] = {}
    for score, start, end in spans:
        text = context[start:end]
        if (known := answers.get(text.lower())) is not None:
            known["score"] += score
        else:
            answers[text.lower()] = {"score": score, "start": start, "end": end, "answer": text}
    entries = list(answers.values())
    if settings.with_null or not entries:
        score = null if settings.with_null else 0.0  # of a context without tokens
        entries.append({"score": score, "start": 0, "end": 0, "answer": ""})
    return sorted(entries, key=lambda entry: -entry["score"])[: settings.top_k]
