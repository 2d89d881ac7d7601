"""run_qa's search for spans: the best 20 starts times the best 20 ends of each window.

It can miss the best span, and finds a span in two windows twice. It serves comparisons with scripts
that search this way (``--decoder top20``).

Q  tokens of the longest window      n  n_best (20 in the scripts)
"""

import torch
from torch import Tensor

from bertqa.answering.decoding import (
    BestSpans,
    WindowScores,
    best_rows,
    log_sums,
    null_logits,
    rectangle,
)


def top20_spans(
    scores: WindowScores, n_best: int, max_answer_length: int, temperature: float = 1.0
) -> BestSpans:
    """Find the ``n_best`` spans of each question by run_qa's search.

    In each window the ``n_best`` best starts are combined with the ``n_best`` best ends, among all
    tokens including the question's; pairs that are outside the context, too long, or end before
    their start are dropped afterwards. Ties are broken by the earlier window, then the better
    start, then the better end.
    """
    context_start = scores.context - scores.cls
    count = context_start + scores.count + 1  # all tokens of the window
    all_starts = rectangle(scores.start_logits, scores.cls, count)  # (N, Q)
    all_ends = rectangle(scores.end_logits, scores.cls, count)
    start = _highest(all_starts, n_best)[:, :, None]  # (N, n, 1)
    end = _highest(all_ends, n_best)[:, None, :]  # (N, 1, n)
    valid = (
        (start >= context_start[:, None, None])
        & (end < (count - 1)[:, None, None])
        & (end >= start)
        & (end < start + min(max_answer_length, all_starts.shape[1]))
    )
    window, start_rank, end_rank = valid.nonzero().unbind(1)
    start, end = start[window, start_rank, 0], end[window, 0, end_rank]
    start_logit, end_logit = all_starts[window, start], all_ends[window, end]
    question = scores.question[window]
    best = best_rows(question, start_logit + end_logit, n_best)
    offset = (scores.first - context_start)[window]  # from a window's tokens to the context's
    columns = question, start + offset, end + offset, start_logit, end_logit
    question, start, end, start_logit, end_logit = (column[best] for column in columns)
    nulls = null_logits(scores)
    total = log_sums(question, (start_logit + end_logit).double() / temperature, len(nulls[0]))
    return BestSpans(question, start, end, start_logit, end_logit, total, *nulls)


def _highest(scores: Tensor, count: int) -> Tensor:
    """Return the positions of the ``count`` highest of each row, with ties in order of position.

    The bits of a float, read as an integer, have the order of the number after inverting those of
    negative numbers. The position in the lower 32 bits makes all keys distinct.
    """
    bits = (scores + 0.0).view(torch.int32)  # -0.0 becomes 0.0, its equal
    ordered = bits ^ ((bits >> 31) & torch.iinfo(torch.int32).max)
    size = scores.shape[1]
    keys = (ordered.long() << 32) + torch.arange(size - 1, -1, -1, device=scores.device)
    return keys.topk(min(count, size), dim=1).indices
