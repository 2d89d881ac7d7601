"""Summed probabilities of spans of tokens that are the same characters, and so one answer.

Several tokens may be parts of one grapheme cluster, which is never split: a letter and its accents,
or the jamo into which a tokenizer splits a Hangul syllable. All spans that begin at one of these
tokens and end at the same character are the same text.
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import product

import torch
from torch import Tensor

from bertqa.answering.decoding import BestSpans, WindowScores, logits_of
from bertqa.data.graphemes import joined_clusters, snap_to_graphemes
from bertqa.data.tokenization import TokenTable


def add_same_text(
    spans: BestSpans,
    scores: WindowScores,
    contexts: Sequence[str],
    tokens: TokenTable,
    text: Tensor,
    max_answer_length: int,
    temperature: float,
) -> Tensor:
    """Add up exp(score / temperature) of each span and of all others of the same characters.

    Args:
        contexts: contexts of the Q questions.
        tokens: tokens of all distinct contexts.
        text: ``(Q,)``, index in ``tokens`` of each question's context.
        max_answer_length: maximum tokens of a span.

    Returns:
        ``(R,)`` float64, log of the sums: score / temperature if no other span has these
        characters.
    """
    total = spans.score.double() / temperature
    pairs = []
    for row in _may_be_shared(spans, contexts, tokens, text):
        question, i, j = (int(column[row]) for column in (spans.question, spans.start, spans.end))
        of_context = tokens.rows(int(text[question]))
        found = _same_text(contexts[question], of_context, tokens, i, j)
        pairs += [(row, a, b) for a, b in found if a <= b < a + max_answer_length]
    if pairs:
        of_span, first, last = torch.tensor(pairs, device=total.device).unbind(1)
        start, end = logits_of(scores, spans.question[of_span], first, last)
        times = ((start.double() + end.double()) / temperature - total[of_span]).exp()
        summed = torch.zeros_like(total).index_add_(0, of_span, times)
        total += torch.where(summed > 0, summed, 1).log()
    return total


def _may_be_shared(
    spans: BestSpans, contexts: Sequence[str], tokens: TokenTable, text: Tensor
) -> Iterator[int]:
    """Yield the rows of spans whose first or last token may share a grapheme cluster."""
    joined = torch.tensor([bool(joined_clusters(context)) for context in contexts])
    shares = joined[spans.question.cpu()]
    # Neighbours that overlap within a text; the offsets of the next text restart at 0.
    starts, ends = tokens.starts, tokens.ends
    overlaps = torch.zeros(len(starts) + 1, dtype=torch.bool)
    overlaps[1:-1] = (starts[1:] < ends[:-1]) & (starts[1:] >= starts[:-1])
    begin = tokens.bounds[text][spans.question.cpu()]
    for token in (begin + spans.start.cpu(), begin + spans.end.cpu()):
        shares = shares | overlaps[token] | overlaps[token + 1]
    yield from shares.nonzero().flatten().tolist()


def _same_text(
    context: str, rows: slice, tokens: TokenTable, i: int, j: int
) -> Iterator[tuple[int, int]]:
    """Yield all pairs of first and last token that have the same characters as tokens i to j."""
    starts, ends = tokens.starts[rows], tokens.ends[rows]

    def characters(token: int) -> tuple[int, int]:
        return snap_to_graphemes(context, int(starts[token]), int(ends[token]))

    start, end = characters(i)[0], characters(j)[1]
    firsts = _around(i, len(starts), lambda token: characters(token)[0] == start)
    lasts = _around(j, len(starts), lambda token: characters(token)[1] == end)
    return product(firsts, lasts)


def _around(token: int, count: int, is_same: Callable[[int], bool]) -> range:
    """Return the longest run of tokens around ``token`` for which ``is_same`` holds."""
    first = last = token
    while first > 0 and is_same(first - 1):
        first -= 1
    while last + 1 < count and is_same(last + 1):
        last += 1
    return range(first, last + 1)
