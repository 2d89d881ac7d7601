"""Scores of tokens -> spans of tokens.

The score of the span from token i to token j >= i is S.T_i + E.T_j (Devlin et al. 2019, section
4.2). A span lies in the context and has at most ``max_answer_length`` tokens.

``exact_spans`` looks at every such span. ``top20_spans`` looks at the 20 best starts and the 20
best ends of a window only, as run_qa does. Both work on all windows of a batch at once.

N  windows      C  context tokens of the longest      M  max_answer_length      n  n_best
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bertqa.stream import pad_windows


@dataclass(frozen=True)
class WindowSpans:
    """The best spans of N windows, R spans in all, and what is needed to weigh them.

    Attributes:
        window: ``(R,)``, ascending: whose span it is.
        start, end: ``(R,)``, first and last token, counted from the window's first context token.
        start_logit, end_logit: ``(R,)`` float32, S.T_start and E.T_end. The spans of a window
            stand best first.
        null_start_logit, null_end_logit: ``(N,)`` float32, the scores of [CLS]: "no answer".
        log_total: ``(N,)`` float32, log of the sum of exp(score) over all spans of a window,
            not only the ones kept: what a probability is normalised by.
    """

    window: Tensor
    start: Tensor
    end: Tensor
    start_logit: Tensor
    end_logit: Tensor
    null_start_logit: Tensor
    null_end_logit: Tensor
    log_total: Tensor


@dataclass(frozen=True)
class _Table:
    """The scores of a batch as rectangles: -inf where there is no token.

    Attributes:
        start: ``(N, C)``, S.T_i of the context tokens.
        ends: ``(N, C, M)``, E.T_j of the token itself and the M - 1 after it.
    """

    start: Tensor
    ends: Tensor

    @property
    def scores(self) -> Tensor:
        """``(N, C, M)``, S.T_i + E.T_j of the span from i to j = i + m."""
        return self.start[:, :, None] + self.ends


def exact_spans(
    start_logits: Tensor,
    end_logits: Tensor,
    lengths: Sequence[int],
    context_places: Sequence[int],
    n_best: int,
    max_answer_length: int,
) -> WindowSpans:
    """The ``n_best`` spans of each window, among all with start <= end.

    Equal scores stand in a fixed order, whatever the batch: earliest start, then shortest.

    Args:
        start_logits, end_logits: ``(T,)`` of the stream.
        lengths: tokens of each window.
        context_places: place in each window of its first context token.
    """
    table = _context_table(start_logits, end_logits, lengths, context_places, max_answer_length)
    scores = table.scores
    # A start whose best span is not among the n best of its window's starts heads no span that
    # is, so the n-th best of these bounds the n-th best span from below.
    best_of_start = scores.amax(dim=2)  # (N, C)
    bound = best_of_start.topk(min(n_best, best_of_start.shape[1]), dim=1).values[:, -1]
    candidates = (scores >= bound[:, None, None]) & (scores > -math.inf)
    window, start, length = candidates.nonzero().unbind(dim=1)  # ascending: the order of ties
    rows = _best_rows(window, scores[window, start, length], n_best)
    window, start, end = window[rows], start[rows], (start + length)[rows]
    return WindowSpans(
        window,
        start,
        end,
        table.start[window, start],
        table.ends[window, end, 0],
        *_null_logits(start_logits, end_logits, lengths),
        _log_totals(table),
    )


def top20_spans(
    start_logits: Tensor,
    end_logits: Tensor,
    lengths: Sequence[int],
    context_places: Sequence[int],
    n_best: int,
    max_answer_length: int,
) -> WindowSpans:
    """run_qa's search: the ``n_best`` (20) best starts with the ``n_best`` best ends of a window.

    All tokens of the window compete for a place among the 20, the question's too; pairs outside
    the context, too long or ending before their start are dropped afterwards, so good spans can
    be missed. Same arguments as ``exact_spans``. Equal scores stand in the order of the search:
    by rank of the start, then by rank of the end.
    """
    table = _context_table(start_logits, end_logits, lengths, context_places, max_answer_length)
    device = start_logits.device
    place = torch.tensor(context_places, device=device)[:, None, None]
    last = torch.tensor(lengths, device=device)[:, None, None] - 2  # before the final [SEP]
    padded_start = pad_windows(start_logits, lengths, -math.inf)  # (N, S)
    padded_end = pad_windows(end_logits, lengths, -math.inf)
    start = padded_start.sort(dim=1, descending=True, stable=True).indices[:, :n_best, None]
    end = padded_end.sort(dim=1, descending=True, stable=True).indices[:, None, :n_best]
    valid = (start >= place) & (end <= last) & (end >= start) & (end < start + max_answer_length)
    window, start_rank, end_rank = valid.nonzero().unbind(dim=1)
    start, end = start[window, start_rank, 0], end[window, 0, end_rank]
    scores = padded_start[window, start] + padded_end[window, end]
    rows = _best_rows(window, scores, n_best)
    window, start, end = window[rows], start[rows], end[rows]
    place = place[window, 0, 0]
    return WindowSpans(
        window,
        start - place,
        end - place,
        padded_start[window, start],
        padded_end[window, end],
        *_null_logits(start_logits, end_logits, lengths),
        _log_totals(table),
    )


DECODERS = {"exact": exact_spans, "top20": top20_spans}


def _context_table(
    start_logits: Tensor,
    end_logits: Tensor,
    lengths: Sequence[int],
    context_places: Sequence[int],
    max_answer_length: int,
) -> _Table:
    """Only the context's tokens, each beside the ends that a span from it may have."""
    pieces: list[int] = []  # of the stream: question side, context, final [SEP], and so on
    for length, place in zip(lengths, context_places, strict=True):
        pieces += [place, length - place - 1, 1]
    start = _pad(start_logits.float().split(pieces)[1::3])  # (N, C)
    end = _pad(end_logits.float().split(pieces)[1::3])
    longest = min(max_answer_length, end.shape[1])  # no span is longer than its context
    beyond = end.new_full((len(end), longest - 1), -math.inf)
    return _Table(start, torch.cat([end, beyond], dim=1).unfold(1, longest, 1))


def _pad(rows: Sequence[Tensor]) -> Tensor:
    """Rows of different lengths as a rectangle with a column to spare, so that a maximum exists."""
    rectangle = nn.utils.rnn.pad_sequence(list(rows), batch_first=True, padding_value=-math.inf)
    return F.pad(rectangle, (0, 1), value=-math.inf)


def _best_rows(window: Tensor, scores: Tensor, n_best: int) -> Tensor:
    """The rows of the ``n_best`` scores of each window, best first; ties keep their order."""
    order = scores.argsort(descending=True, stable=True)
    order = order[window[order].argsort(stable=True)]
    sorted_window = window[order]
    first = torch.searchsorted(sorted_window, sorted_window)  # where the window's rows begin
    rank = torch.arange(len(order), device=order.device) - first
    return order[rank < n_best]


def _null_logits(
    start_logits: Tensor, end_logits: Tensor, lengths: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """The scores of each window's [CLS], its first token."""
    bounds = torch.tensor(lengths, device=start_logits.device).cumsum(0)
    first = bounds - bounds.new_tensor(lengths)
    return start_logits[first].float(), end_logits[first].float()


def _log_totals(table: _Table) -> Tensor:
    """log of the sum of exp(S.T_i + E.T_j) over all spans: it factorises into starts and ends.

    In float64, whose exponents reach from the best end of a window down to every other.
    """
    end = table.ends[:, :, 0].double()  # (N, C)
    highest = end.amax(dim=1, keepdim=True).clamp(min=torch.finfo(torch.float32).min)
    weight = F.pad((end - highest).exp(), (0, table.ends.shape[2] - 1))
    reachable = weight.unfold(1, table.ends.shape[2], 1).sum(dim=2)  # (N, C), over ends from i on
    totals = (table.start + reachable.log() + highest).logsumexp(dim=1)
    return totals.float()
