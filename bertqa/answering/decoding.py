"""Find the best answer spans of a question, given the start and end scores of its tokens.

The score of the span from token i to token j >= i is S.T_i + E.T_j (Devlin et al. 2019, section
4.2). A span lies within one window's part of the context and has at most ``max_answer_length``
tokens. ``exact_spans`` builds one table of all spans of a question over its whole context:

    i \\ length   1          2          3        ...        M
    token 0    S.T_0+E.T_0  S.T_0+E.T_1  S.T_0+E.T_2
    token 1    S.T_1+E.T_1  S.T_1+E.T_2  S.T_1+E.T_3

Where sliding windows overlap, several of them score the same span: it is in the table once, with
the best of these scores. The n best spans and the sum that their probabilities are normalised by
are both taken from this table. ``top20.py`` has run_qa's approximate search.

T  tokens in the batch      Q  questions      C  context tokens      n  n_best
N  windows                  R  spans          M  max_answer_length
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

_TABLE_SIZE = 2**20  # scores in one table: a long context is searched block by block


@dataclass(frozen=True)
class WindowScores:
    """Start and end scores of all tokens of N windows, and which of them are context.

    Attributes:
        start_logits, end_logits: ``(T,)``, S.T_i and E.T_i of a packed batch.
        cls: ``(N,)``, position in the batch of each window's [CLS].
        context: ``(N,)``, position in the batch of its first context token.
        count: ``(N,)``, its number of context tokens; one [SEP] follows them.
        first: ``(N,)``, index of its first context token in the whole context.
        question: ``(N,)``, ascending from 0 without gaps; a question's windows are in order.
    """

    start_logits: Tensor
    end_logits: Tensor
    cls: Tensor
    context: Tensor
    count: Tensor
    first: Tensor
    question: Tensor

    @classmethod
    def of_batch(
        cls,
        start_logits: Tensor,
        end_logits: Tensor,
        lengths: Sequence[int],
        context_starts: Sequence[int],
    ) -> "WindowScores":
        """Take each window of a packed batch as a question of its own.

        Args:
            lengths: tokens of each window.
            context_starts: index in each window of its first context token.
        """
        device = start_logits.device
        length = torch.tensor(lengths, device=device)
        context_start = torch.tensor(context_starts, device=device)
        begin = length.cumsum(0) - length
        return cls(
            start_logits,
            end_logits,
            cls=begin,
            context=begin + context_start,
            count=length - context_start - 1,
            first=torch.zeros_like(length),
            question=torch.arange(len(length), device=device),
        )


@dataclass(frozen=True)
class BestSpans:
    """The best spans of Q questions, R spans in all.

    Attributes:
        question: ``(R,)``, ascending; the spans of a question are ordered, best first.
        start, end: ``(R,)``, first and last token, indices in the whole context.
        start_logit, end_logit: ``(R,)`` float32, S.T_start and E.T_end.
        log_total: ``(Q,)`` float64, log of the sum of exp(score) that probabilities are normalised
            by: over all spans of a question (exact), or over those found (top20).
        null_start_logit, null_end_logit: ``(Q,)`` float32, the scores of [CLS], "no answer", in
            the window where their sum is lowest.
    """

    question: Tensor
    start: Tensor
    end: Tensor
    start_logit: Tensor
    end_logit: Tensor
    log_total: Tensor
    null_start_logit: Tensor
    null_end_logit: Tensor

    @property
    def score(self) -> Tensor:
        """``(R,)`` float32, S.T_start + E.T_end."""
        return self.start_logit + self.end_logit


def exact_spans(scores: WindowScores, n_best: int, max_answer_length: int) -> BestSpans:
    """Find the ``n_best`` spans of each question among all spans, and the sum over all.

    Of equal scores the earliest start comes first, then the shortest span.
    """
    longest = min(max_answer_length, max(1, int(scores.count.max())))
    windows_of = scores.question.bincount()
    found = []
    for windows in _single_windows(scores, windows_of, longest):
        start, end = context_scores(scores, windows)
        table = span_table(start, end, longest)
        row, i, length, _ = _best_of_table(table, n_best)
        question, j = scores.question[windows], i + length
        found.append((question[row], i, j, start[row, i], end[row, j], question, _log_sum(table)))
    for number in (windows_of > 1).nonzero().flatten():
        windows = (scores.question == number).nonzero().flatten()
        spans, total = _several_windows(scores, windows, n_best, longest)
        found.append((number.expand(len(spans[0])), *spans, number[None], total))
    question, i, j, start_logit, end_logit, owner, total = map(torch.cat, zip(*found, strict=True))
    order = question.argsort(stable=True)
    log_total = torch.empty_like(total).scatter_(0, owner, total)
    start_logit, end_logit = start_logit[order], end_logit[order]
    nulls = null_logits(scores)
    return BestSpans(question[order], i[order], j[order], start_logit, end_logit, log_total, *nulls)


def span_table(start: Tensor, end: Tensor, longest: int) -> Tensor:
    """Compute S.T_i + E.T_j for i <= j < i + M: ``(N, C)`` each -> ``(N, C, M)``.

    ``[n, i, m]`` is the span of m + 1 tokens that starts at token i. Spans that leave the context
    score -inf.
    """
    beyond = F.pad(end, (0, longest - 1), value=-math.inf)  # (N, C + M - 1)
    return start[:, :, None] + beyond.unfold(1, longest, 1)  # a view: (N, C, M)


def _single_windows(scores: WindowScores, windows_of: Tensor, longest: int) -> Iterator[Tensor]:
    """Group the questions that have one window, windows of similar length together."""
    single = (windows_of[scores.question] == 1).nonzero().flatten()
    by_length = single[scores.count[single].argsort(stable=True)]
    together = max(1, _TABLE_SIZE // (longest * (int(scores.count.max()) + 1)))
    return iter(by_length.split(together) if len(single) else ())


def _best_of_table(table: Tensor, n_best: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return row, start, length - 1 and score of the n best of each row of ``(N, C, M)``."""
    flat = table.flatten(1)
    lowest = flat.topk(min(n_best, flat.shape[1])).values[:, -1:]
    # topk leaves the order of equal scores open; nonzero returns them by start, then by length.
    row, index = ((flat >= lowest) & (flat > -math.inf)).nonzero().unbind(1)
    score = flat[row, index]
    best = best_rows(row, score, n_best)
    row, index = row[best], index[best]
    return row, index // table.shape[2], index % table.shape[2], score[best]


def _log_sum(table: Tensor) -> Tensor:
    """Compute log(sum(exp(score))) of each row in float64, -inf without a span: to ``(N,)``."""
    return table.flatten(1).double().logsumexp(1)


def _several_windows(
    scores: WindowScores, windows: Tensor, n_best: int, longest: int
) -> tuple[tuple[Tensor, ...], Tensor]:
    """Search one question with several windows: i, j, start and end logits; the log total."""
    start, end = context_scores(scores, windows)  # (N, C)
    first, count = scores.first[windows], scores.count[windows]
    found, totals = [], []
    for offset, table in _merged_tables(start, end, first.tolist(), count.tolist(), longest):
        _, i, length, score = _best_of_table(table, n_best)
        found.append((i + offset, i + offset + length, score))
        totals.append(_log_sum(table))
    i, j, score = map(torch.cat, zip(*found, strict=True))
    best = best_rows(torch.zeros_like(i), score, n_best)
    i, j = i[best], j[best]
    # The window that gave the score: of those that hold the whole span, the first with the best.
    inside = (i >= first[:, None]) & (j < (first + count)[:, None])  # (N, R)
    start_logit = start.gather(1, (i - first[:, None]).clamp(0, start.shape[1] - 1))
    end_logit = end.gather(1, (j - first[:, None]).clamp(0, end.shape[1] - 1))
    window = (start_logit + end_logit).masked_fill(~inside, -math.inf).argmax(0, keepdim=True)
    logits = start_logit.gather(0, window)[0], end_logit.gather(0, window)[0]
    return (i, j, *logits), torch.stack(totals).logsumexp(0)


def _merged_tables(
    start: Tensor, end: Tensor, firsts: list[int], counts: list[int], longest: int
) -> Iterator[tuple[int, Tensor]]:
    """Yield the table of one question's whole context, in blocks of rows: offset, ``(1, C, M)``.

    Args:
        start, end: ``(N, C)``, the scores in each of its windows.
        firsts, counts: the range of context tokens of each window.
    """
    rows = max(1, _TABLE_SIZE // longest)
    ends = [first + count for first, count in zip(firsts, counts, strict=True)]
    for low in range(0, max(ends), rows):
        high = min(low + rows, max(ends))
        table = start.new_full((high - low, longest), -math.inf)
        for n, (first, last) in enumerate(zip(firsts, ends, strict=True)):
            i, j = max(first, low), min(last, high)
            if i < j:
                own = span_table(start[n : n + 1], end[n : n + 1], longest)[0]
                block = table[i - low : j - low]
                torch.maximum(block, own[i - first : j - first], out=block)
        yield low, table[None]


# --- also for top20.py ---------------------------------------------------------------------------


def context_scores(scores: WindowScores, windows: Tensor) -> tuple[Tensor, Tensor]:
    """Gather S.T_i and E.T_i of some windows' context tokens: ``(N, C)`` each."""
    first, count = scores.context[windows], scores.count[windows]
    return rectangle(scores.start_logits, first, count), rectangle(scores.end_logits, first, count)


def rectangle(packed: Tensor, first: Tensor, count: Tensor) -> Tensor:
    """Gather ``count`` values of a batch from ``first`` on, a row for each window, padded by -inf.

    The last column is padding in all rows, so that a window without context has one, too.
    """
    column = torch.arange(int(count.max()) + 1, device=packed.device)
    indices = (first[:, None] + column).clamp_(max=len(packed) - 1)
    return packed[indices].float().masked_fill_(column >= count[:, None], -math.inf)


def best_rows(group: Tensor, score: Tensor, n_best: int) -> Tensor:
    """Return the rows of the ``n_best`` scores of each group, best first; ties keep their order."""
    order = score.argsort(descending=True, stable=True)
    order = order[group[order].argsort(stable=True)]
    sorted_group = group[order]
    begin = torch.searchsorted(sorted_group, sorted_group)  # where the rows of the group begin
    rank = torch.arange(len(order), device=order.device) - begin
    return order[rank < n_best]


def null_logits(scores: WindowScores) -> tuple[Tensor, Tensor]:
    """Return start and end score of [CLS] where their sum is lowest, ``(Q,)`` each."""
    start, end = scores.start_logits[scores.cls].float(), scores.end_logits[scores.cls].float()
    lowest = best_rows(scores.question, -(start.double() + end.double()), 1)
    return start[lowest], end[lowest]
