"""Search the best spans of tokens, given the score of each token as a start and as an end.

The score of the span from token i to token j >= i is S.T_i + E.T_j (Devlin et al. 2019, section
4.2). A span lies in the context and has at most ``max_answer_length`` tokens.

``exact_spans`` searches all such spans. ``top20_spans`` searches the 20 best starts and the 20
best ends of a window only, as run_qa does. Both work on all windows of a batch at once.

T  tokens in the batch      C  context tokens of the longest window, and one to spare
N  windows                  Q  the same with the question's tokens
R  spans or starts found    M  max_answer_length             n  n_best
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class WindowSpans:
    """The best spans of N windows, R spans in all, and what is needed to weigh them.

    Attributes:
        window: ``(R,)``, ascending: whose span it is.
        start, end: ``(R,)``, first and last token, counted from the window's first context token.
        start_logit, end_logit: ``(R,)`` float32, S.T_start and E.T_end. The spans of a window
            are ordered, best first.
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


def exact_spans(
    start_logits: Tensor,
    end_logits: Tensor,
    lengths: Sequence[int],
    context_starts: Sequence[int],
    n_best: int,
    max_answer_length: int,
) -> WindowSpans:
    """The ``n_best`` spans of each window, among all with start <= end.

    Equal scores have a fixed order, whatever the batch: earliest start, then shortest.

    Args:
        start_logits, end_logits: ``(T,)`` of the packed batch.
        lengths: tokens of each window.
        context_starts: position in each window of its first context token.
    """
    start, end = _context_scores(start_logits, end_logits, lengths, context_starts)
    longest = min(max_answer_length, end.shape[1])  # no span is longer than its context
    # Of each start its best span: the n highest of these are n spans, so the n-th best of all
    # spans scores no less than the n-th of them, and a start whose best span scores less than
    # that has no span among the n best.
    best_of_start = start + _sliding(end, longest, torch.maximum, -math.inf)  # (N, C)
    bound = best_of_start.topk(min(n_best, best_of_start.shape[1]), dim=1).values[:, -1]
    window, first = (best_of_start >= bound[:, None]).nonzero().unbind(dim=1)  # (R,)
    beyond = end.new_full((len(end), longest - 1), -math.inf)
    ends = torch.cat([end, beyond], dim=1).unfold(1, longest, 1)  # (N, C, M), a view
    scores = start[window, first, None] + ends[window, first]  # (R, M)
    candidates = (scores >= bound[window, None]) & (scores > -math.inf)
    row, length = candidates.nonzero().unbind(dim=1)  # ascending: the order of ties
    best = _best_rows(window[row], scores[row, length], n_best)
    row, length = row[best], length[best]
    window, first = window[row], first[row]
    last = first + length
    return WindowSpans(
        window,
        first,
        last,
        start[window, first],
        end[window, last],
        *_null_logits(start_logits, end_logits, lengths),
        _log_totals(start, end, longest),
    )


def top20_spans(
    start_logits: Tensor,
    end_logits: Tensor,
    lengths: Sequence[int],
    context_starts: Sequence[int],
    n_best: int,
    max_answer_length: int,
) -> WindowSpans:
    """run_qa's search: the ``n_best`` (20) best starts with the ``n_best`` best ends of a window.

    All tokens of the window compete for a rank among the 20, the question's too; pairs outside
    the context, too long or ending before their start are dropped afterwards, so good spans can
    be missed. Same arguments as ``exact_spans``. Equal scores have the order of the search:
    by rank of the start, then by rank of the end.
    """
    first, count = _bounds(start_logits, lengths)
    all_starts = _rectangle(start_logits, first, count)  # (N, Q)
    all_ends = _rectangle(end_logits, first, count)
    context_start = torch.tensor(context_starts, device=start_logits.device)[:, None, None]
    last = count[:, None, None] - 2  # before the final [SEP]
    start = _highest(all_starts, n_best)[:, :, None]
    end = _highest(all_ends, n_best)[:, None, :]
    max_answer_length = min(max_answer_length, all_starts.shape[1])  # it may be any number
    valid = (
        (start >= context_start)
        & (end <= last)
        & (end >= start)
        & (end < start + max_answer_length)
    )
    window, start_rank, end_rank = valid.nonzero().unbind(dim=1)
    start, end = start[window, start_rank, 0], end[window, 0, end_rank]
    scores = all_starts[window, start] + all_ends[window, end]
    rows = _best_rows(window, scores, n_best)
    window, start, end = window[rows], start[rows], end[rows]
    context_scores = _context_scores(start_logits, end_logits, lengths, context_starts)
    context_start = context_start[window, 0, 0]
    return WindowSpans(
        window,
        start - context_start,
        end - context_start,
        all_starts[window, start],
        all_ends[window, end],
        *_null_logits(start_logits, end_logits, lengths),
        _log_totals(*context_scores, max_answer_length),
    )


DECODERS = {"exact": exact_spans, "top20": top20_spans}


def _bounds(packed: Tensor, lengths: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Where in the batch each window begins, and how many tokens it has: ``(N,)`` each."""
    count = torch.tensor(lengths, device=packed.device)
    return count.cumsum(0) - count, count


def _context_scores(
    start_logits: Tensor,
    end_logits: Tensor,
    lengths: Sequence[int],
    context_starts: Sequence[int],
) -> tuple[Tensor, Tensor]:
    """S.T_i and E.T_i of the context's tokens alone, ``(N, C)`` each."""
    first, count = _bounds(start_logits, lengths)
    context_start = torch.tensor(context_starts, device=start_logits.device)
    first, count = first + context_start, count - context_start - 1  # without the final [SEP]
    return _rectangle(start_logits, first, count), _rectangle(end_logits, first, count)


def _rectangle(packed: Tensor, first: Tensor, count: Tensor) -> Tensor:
    """``count`` values of the batch from ``first`` on, one row for each window, -inf beyond them.

    There is a column to spare, so that a row without values has a maximum. Columns that are beyond
    the values of a row read the batch where they may, and what they read is masked.
    """
    column = torch.arange(int(count.max()) + 1, device=packed.device)
    indices = (first[:, None] + column).clamp_(max=len(packed) - 1)
    return packed[indices].float().masked_fill_(column >= count[:, None], -math.inf)


def _sliding(
    values: Tensor, width: int, combine: Callable[[Tensor, Tensor], Tensor], neutral: float
) -> Tensor:
    """``combine`` over ``values[:, i : i + width]`` for each i: ``(N, C)`` to ``(N, C)``.

    A width is a sum of powers of two (30 = 2 + 4 + 8 + 16), and what covers twice as many values
    is combined from two that stand side by side.
    """

    def shifted(x: Tensor, by: int) -> Tensor:
        return F.pad(x[:, by:], (0, min(by, x.shape[1])), value=neutral)

    covered, result = 0, torch.full_like(values, neutral)
    power, reach = values, 1
    while True:
        if width & reach:
            result = combine(result, shifted(power, covered))
            covered += reach
        if 2 * reach > width:
            return result
        power, reach = combine(power, shifted(power, reach)), 2 * reach


def _highest(scores: Tensor, count: int) -> Tensor:
    """Positions of the ``count`` highest of each row, of equals the first: to ``(N, count)``.

    The bits of a float, read as an integer, have the order of the number once those of the
    negative ones are turned round. Below them goes the position, so that no two keys are equal.
    """
    bits = (scores + 0.0).view(torch.int32)  # -0.0 becomes 0.0, its equal
    ordered = bits ^ ((bits >> 31) & torch.iinfo(torch.int32).max)
    size = scores.shape[1]
    keys = (ordered.long() << 32) + torch.arange(size - 1, -1, -1, device=scores.device)
    return keys.topk(min(count, size), dim=1).indices


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
    first, _ = _bounds(start_logits, lengths)
    return start_logits[first].float(), end_logits[first].float()


def _log_totals(start: Tensor, end: Tensor, longest: int) -> Tensor:
    """log of the sum of exp(S.T_i + E.T_j) over all spans: it factorises into starts and ends.

    In float64, whose exponents reach from the best end of a window down to every other.

    Args:
        start, end: ``(N, C)``.
        longest: tokens of a span.
    """
    end = end.double()
    highest = end.amax(dim=1, keepdim=True).clamp(min=torch.finfo(torch.float32).min)
    reachable = _sliding((end - highest).exp(), longest, torch.add, 0.0)  # over ends from i on
    totals = (start + reachable.log() + highest).logsumexp(dim=1)
    return totals.float()
