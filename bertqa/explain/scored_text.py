"""Tokens of answers: their positions in the windows of a context, and the windows' best spans.

L  tokens of a window
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import torch
from torch import Tensor

from bertqa.answering.answers import Answer
from bertqa.answering.decoding import BestSpans, WindowScores
from bertqa.answering.evaluation import DECODERS, window_scores
from bertqa.data.graphemes import snap_to_graphemes
from bertqa.data.windows import Window, WindowSet
from bertqa.explain.explanation import Candidate, LayerReading
from bertqa.settings import DecodingSettings


@dataclass(frozen=True)
class ScoredText:
    """The windows of a context with the logits of their tokens.

    Attributes:
        starts, ends: S.T_i and E.T_i of each window, ``(L,)``.
    """

    context: str
    cut: WindowSet
    decoding: DecodingSettings
    starts: list[Tensor]
    ends: list[Tensor]

    @cached_property
    def windows(self) -> list[Window]:
        """The windows with their tokens and offsets."""
        return [self.cut[number] for number in range(len(self.cut))]

    @cached_property
    def null_scores(self) -> list[float]:
        """S.T_CLS + E.T_CLS of each window."""
        pairs = zip(self.starts, self.ends, strict=True)
        return [float(start[0] + end[0]) for start, end in pairs]

    def find(self, answer: Answer) -> Candidate:
        """Return the tokens of an answer; if several windows contain it, those with its logits.

        An answer of a model in another precision has slightly different logits: if two windows
        score the span almost equally, the other window may be returned.
        """
        if not answer.text:
            return Candidate(answer, self.null_scores.index(min(self.null_scores)), 0, 0)

        def distance(span: tuple[int, int, int]) -> float:
            number, first, last = span
            start_gap = float(self.starts[number][first]) - answer.start_logit
            return abs(start_gap) + abs(float(self.ends[number][last]) - answer.end_logit)

        return Candidate(answer, *min(self._token_spans(answer), key=distance))

    def _token_spans(self, answer: Answer) -> Iterator[tuple[int, int, int]]:
        """Yield window, first and last token of every token span that covers an answer."""
        for number, window in enumerate(self.windows):
            spans = [(i, offset) for i, offset in enumerate(window.offsets) if offset]
            if not spans or answer.end <= spans[0][1][0] or spans[-1][1][1] <= answer.start:
                continue  # skip quickly: most windows of a long text
            firsts = [i for i, offset in spans if self._slice(*offset)[0] == answer.start]
            lasts = [j for j, offset in spans if self._slice(*offset)[1] == answer.end]
            yield from ((number, i, j) for i in firsts for j in lasts if i <= j)

    def _slice(self, start: int, end: int) -> tuple[int, int]:
        """Extend a slice of the context to whole grapheme clusters."""
        return snap_to_graphemes(self.context, start, end)

    def best_of_windows(self) -> Iterator[Candidate | None]:
        """Yield the best span of each window, with its probability among all windows' spans."""
        starts, ends, numbers = torch.cat(self.starts), torch.cat(self.ends), range(len(self.cut))
        whole = self._search(window_scores(self.cut, torch.tensor(numbers), starts, ends))
        total = whole.log_total
        if self.decoding.version_2_with_negative:
            null_score = whole.null_start_logit.double() + whole.null_end_logit.double()
            total = total.logaddexp(null_score / self.decoding.temperature)
        spans = self._search_each(starts, ends, numbers)
        return self._candidates(spans, numbers, total.tolist() * len(numbers))

    def readings(self, answer: Candidate, layer_logits: Tensor) -> Iterator[LayerReading]:
        """Yield the predictions from the logits after each layer, ``(layers + 1, 2, L)``."""
        numbers = [answer.window] * len(layer_logits)
        starts, ends = layer_logits.unbind(dim=1)
        spans = self._search_each(starts.flatten(), ends.flatten(), numbers)
        bests = self._candidates(spans, numbers, spans.log_total.tolist())
        for best, start, end in zip(bests, starts, ends, strict=True):
            yield LayerReading(
                best,
                float(start.softmax(dim=0)[answer.first]),
                float(end.softmax(dim=0)[answer.last]),
                int((start >= start[answer.first]).sum()),
                int((end >= end[answer.last]).sum()),
            )

    def _search_each(self, starts: Tensor, ends: Tensor, numbers: Sequence[int]) -> BestSpans:
        """Decode each window separately; the logits are concatenated."""
        chosen = torch.tensor(numbers)
        sizes = (self.cut.lengths[chosen].tolist(), self.cut.context_starts[chosen].tolist())
        return self._search(WindowScores.of_batch(starts, ends, *sizes))

    def _search(self, scores: WindowScores) -> BestSpans:
        s = self.decoding
        return DECODERS[s.decoder](scores, s.n_best_size, s.max_answer_length, s.temperature)

    def _candidates(
        self, spans: BestSpans, numbers: Sequence[int], log_totals: Sequence[float]
    ) -> Iterator[Candidate | None]:
        """Yield the best span that ``_search_each`` found in each window, or None.

        Args:
            log_totals: logarithm of the normalizer of each probability.
        """
        rows = torch.searchsorted(spans.question, torch.arange(len(numbers) + 1)).tolist()
        for (row, beyond), number, log_total in zip(
            pairwise(rows), numbers, log_totals, strict=True
        ):
            if row == beyond:
                yield None
                continue
            begin, offsets = int(self.cut.context_starts[number]), self.windows[number].offsets
            first, last = begin + int(spans.start[row]), begin + int(spans.end[row])
            start, end = self._slice(offsets[first][0], offsets[last][1])  # type: ignore[index]
            logits = float(spans.start_logit[row]), float(spans.end_logit[row])
            probability = math.exp(sum(logits) / self.decoding.temperature - log_total)
            answer = Answer(self.context[start:end], start, end, *logits, probability)
            yield Candidate(answer, number, first, last)
