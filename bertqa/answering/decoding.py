"""Find the best answer spans of a question, given the start and end scores of its tokens.

The score of the span from token i to token j >= i is S.T_i + E.T_j (Devlin et al. 2019, section
4.2). A span lies within one window's part of the context and has at most ``max_answer_length``
tokens. ``exact_spans`` builds one table of all spans of a question over its whole context:

    i \\ length   1          2          3        ...        M
    token 0    S.T_0+E.T_0  S.T_0+E.T_1  S.T_0+E.T_2
    token 1    S.T_1+E.T_1  S.T_1+E.T_2  S.T_1+E.T_3

Where sliding windows overlap, several of them score the same span: the table has it once, with the
best of these scores. Both the n-best list and the softmax's denominator are computed from this
table. The probability of a span is the softmax of score / temperature over the table;
temperature.py fits the temperature. ``top20.py`` has run_qa's approximate search.

T  tokens in the batch      Q  questions      C  context tokens      n  n_best
N  windows                  R  spans          M  max_answer_length
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

TABLE_SIZE = 2**20  # scores in one table; longer contexts are searched block by block


@dataclass(frozen=True)
class WindowScores:
    """Start and end scores of all tokens of N windows, and the positions of their contexts.

    Attributes:
        start_logits, end_logits: ``(T,)``, S.T_i and E.T_i of a packed batch.
        cls: ``(N,)``, position in the batch of each window's [CLS].
        context: ``(N,)``, position in the batch of each window's first context token.
        count: ``(N,)``, number of context tokens of each window; one [SEP] follows them.
        first: ``(N,)``, index of the window's first context token in the whole context.
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
        """Treat each window of a packed batch as a separate question.

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
        log_total: ``(Q,)`` float64, log of the softmax's denominator: the sum of exp(score /
            temperature) over all spans of a question (exact), or over the spans found (top20).
        null_start_logit, null_end_logit: ``(Q,)`` float32, scores of [CLS] ("no answer") in the
            window where their sum is lowest.
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


def exact_spans(
    scores: WindowScores, n_best: int, max_answer_length: int, temperature: float = 1.0
) -> BestSpans:
    """Find the ``n_best`` spans of each question among all spans, and the sum over all.

    Ties are broken by the earliest start, then by the shortest span.
    """
    max_length = _max_length(scores, max_answer_length)
    nulls = null_logits(scores)
    log_total = torch.full_like(nulls[0], -math.inf, dtype=torch.double)
    found = []
    for questions, offset, table in _tables(scores, max_length):
        group_row, i, m, score = _best_of_table(table, n_best)
        found.append((questions[group_row], i + offset, i + offset + m, score))
        log_total[questions] = log_total[questions].logaddexp(_log_sum(table, temperature))
    question, i, j, score = map(torch.cat, zip(*found, strict=True))
    best = best_rows(question, score, n_best)
    question, i, j = question[best], i[best], j[best]
    return BestSpans(question, i, j, *logits_of(scores, question, i, j), log_total, *nulls)


def log_totals(scores: WindowScores, max_answer_length: int, temperature: float) -> Tensor:
    """Return the ``log_total`` of ``exact_spans``, ``(Q,)`` float64, without searching spans."""
    total = scores.cls.new_full((int(scores.question[-1]) + 1,), -math.inf, dtype=torch.double)
    for questions, _, table in _tables(scores, _max_length(scores, max_answer_length)):
        total[questions] = total[questions].logaddexp(_log_sum(table, temperature))
    return total


def _max_length(scores: WindowScores, max_answer_length: int) -> int:
    """Return M, the maximum number of tokens of a span in these contexts."""
    return min(max_answer_length, max(1, int(scores.count.max())))


def span_table(start: Tensor, end: Tensor, max_length: int) -> Tensor:
    """Compute S.T_i + E.T_j for i <= j < i + M: ``(N, C)`` each -> ``(N, C, M)``.

    ``[n, i, m]`` is the span of m + 1 tokens that starts at token i. Spans that exceed the context
    score -inf.
    """
    beyond = F.pad(end, (0, max_length - 1), value=-math.inf)  # (N, C + M - 1)
    return start[:, :, None] + beyond.unfold(1, max_length, 1)  # a view: (N, C, M)


def _tables(scores: WindowScores, max_length: int) -> Iterator[tuple[Tensor, int, Tensor]]:
    """Yield the tables of all questions, contexts of similar length together.

    A long context is split into several blocks, in order.

    Yields:
        the questions, ``(Q,)``; the first context token of the block; the table ``(Q, C, M)``.
    """
    last = scores.question.bincount().cumsum(0) - 1  # the last window of each question
    tokens = (scores.first + scores.count)[last]
    rows = max(1, TABLE_SIZE // max_length)
    for questions in _groups(tokens, rows):
        size = max(1, int(tokens[questions].max()))
        for low in range(0, size, rows):
            high = min(low + rows, size)
            yield questions, low, _table(scores, questions, low, high, max_length)


def _groups(tokens: Tensor, rows: int) -> Iterator[Tensor]:
    """Split questions into groups whose tables have at most ``rows`` rows, or of one question."""
    order = tokens.argsort(stable=True)
    begin = 0
    for end, size in enumerate(tokens[order].tolist()):  # ascending: the group's largest so far
        if end > begin and (end + 1 - begin) * (size + 1) > rows:
            yield order[begin:end]
            begin = end
    yield order[begin:]


def _table(scores: WindowScores, questions: Tensor, low: int, high: int, max_length: int) -> Tensor:
    """Build the rows of context tokens ``low`` to ``high - 1``: ``(Q, C, M)``, padded with -inf.

    Where windows overlap, the highest score counts.
    """
    windows_of = scores.question.bincount()
    begin = (windows_of.cumsum(0) - windows_of)[questions]  # (Q,), each question's first window
    count, size = windows_of[questions], high - low + 1
    table = scores.start_logits.new_full(
        (len(questions) * size, max_length), -math.inf, dtype=torch.float
    )
    for k in range(int(count.max())):  # each question's k-th window
        group_row = (k < count).nonzero().flatten()
        window = begin[group_row] + k
        first, end = scores.first[window], scores.first[window] + scores.count[window]
        within = (first < high) & (end > low)
        group_row, window, first = group_row[within], window[within], first[within]
        if not len(group_row):
            continue
        own = span_table(*context_scores(scores, window), max_length)  # (N, L, M)
        token = first[:, None] + torch.arange(own.shape[1], device=first.device) - low
        token = token.where((token >= 0) & (token < size - 1), size - 1)  # others: the spare row
        index = (group_row[:, None] * size + token).flatten()
        table[index] = torch.maximum(table[index], own.flatten(0, 1))
    table = table.view(len(questions), size, max_length)
    table[:, -1] = -math.inf
    return table


def _best_of_table(table: Tensor, n_best: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the row in ``(Q, C, M)``, i and m of ``span_table``, and the score of the n best."""
    flat = table.flatten(1)
    lowest = flat.topk(min(n_best, flat.shape[1])).values[:, -1:]
    # topk returns ties in any order; nonzero returns them by start, then by length.
    group_row, index = ((flat >= lowest) & (flat > -math.inf)).nonzero().unbind(1)
    score = flat[group_row, index]
    best = best_rows(group_row, score, n_best)
    group_row, index = group_row[best], index[best]
    return group_row, index // table.shape[2], index % table.shape[2], score[best]


def _log_sum(table: Tensor, temperature: float) -> Tensor:
    """Compute log(sum(exp(score / temperature))) of each row in float64, -inf without a span."""
    return (table.flatten(1).double() / temperature).logsumexp(1)


def logits_of(
    scores: WindowScores, question: Tensor, i: Tensor, j: Tensor
) -> tuple[Tensor, Tensor]:
    """Return S.T_i and E.T_j of spans, from the first of the windows that score them highest."""
    windows_of = scores.question.bincount()
    begin = windows_of.cumsum(0) - windows_of
    start, end = (torch.full(i.shape, -math.inf, device=i.device) for _ in range(2))
    for k in range(int(windows_of.max())):  # each question's k-th window
        spans = (k < windows_of[question]).nonzero().flatten()
        window = begin[question[spans]] + k
        first = scores.first[window]
        within = (i[spans] >= first) & (j[spans] < first + scores.count[window])
        spans, shift = spans[within], (scores.context[window] - first)[within]
        own_start = scores.start_logits[i[spans] + shift].float()
        own_end = scores.end_logits[j[spans] + shift].float()
        better = own_start + own_end > start[spans] + end[spans]
        start[spans[better]], end[spans[better]] = own_start[better], own_end[better]
    return start, end


# --- shared with top20.py and temperature.py -----------------------------------------------------


def log_sums(question: Tensor, score: Tensor, num_questions: int) -> Tensor:
    """Compute log(sum(exp(score))) of each question's rows, -inf without any: ``(Q,)`` float64."""
    highest = torch.full((num_questions,), -torch.inf, device=score.device, dtype=torch.double)
    highest.scatter_reduce_(0, question, score.double(), "amax")
    shifted = (score.double() - highest[question]).exp()
    return torch.zeros_like(highest).index_add_(0, question, shifted).log() + highest


def context_scores(scores: WindowScores, windows: Tensor) -> tuple[Tensor, Tensor]:
    """Gather S.T_i and E.T_i of some windows' context tokens: ``(N, C)`` each."""
    first, count = scores.context[windows], scores.count[windows]
    return rectangle(scores.start_logits, first, count), rectangle(scores.end_logits, first, count)


def rectangle(packed: Tensor, first: Tensor, count: Tensor) -> Tensor:
    """Gather ``count`` values of a batch from ``first`` on, a row per window, padded with -inf.

    The last column is padding in all rows, so that windows without context have a column, too.
    """
    column = torch.arange(int(count.max()) + 1, device=packed.device)
    indices = (first[:, None] + column).clamp_(max=len(packed) - 1)
    return packed[indices].float().masked_fill_(column >= count[:, None], -math.inf)


def best_rows(group: Tensor, score: Tensor, n_best: int) -> Tensor:
    """Return the rows of the ``n_best`` scores of each group, best first, in stable order."""
    order = score.argsort(descending=True, stable=True)
    order = order[group[order].argsort(stable=True)]
    sorted_group = group[order]
    begin = torch.searchsorted(sorted_group, sorted_group)  # where the rows of the group begin
    rank = torch.arange(len(order), device=order.device) - begin
    return order[rank < n_best]


def null_logits(scores: WindowScores) -> tuple[Tensor, Tensor]:
    """Return start and end score of [CLS] in the window of their lowest sum, ``(Q,)`` each."""
    start, end = scores.start_logits[scores.cls].float(), scores.end_logits[scores.cls].float()
    lowest = best_rows(scores.question, -(start.double() + end.double()), 1)
    return start[lowest], end[lowest]
