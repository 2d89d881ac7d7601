"""Both decoders against plain loops over all spans."""

import math

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch.overrides import TorchFunctionMode

from bertqa.answering import decoding
from bertqa.answering.decoding import WindowScores, exact_spans
from bertqa.answering.evaluation import DECODERS

# --- questions -----------------------------------------------------------------------------------
# A question is a list of windows, a window is (first, prefix, start logits, end logits): its tokens
# are [CLS], question, [SEP], context from token `first` on, [SEP]; the first `prefix` tokens are
# not context. The logits have few values with exact sums, so that ties are common.

logits = st.sampled_from((-2.5, -1.0, 0.0, 0.5, 0.5, 3.0))


@st.composite
def questions(draw):
    """Draw one window, or several overlapping sliding windows."""
    prefix, room, overlap = (
        draw(st.integers(2, 5)),
        draw(st.integers(1, 7)),
        draw(st.integers(0, 6)),
    )
    tokens = draw(st.integers(0, 16))
    step = room - min(overlap, room - 1)
    found = []
    for first in range(0, max(1, tokens), step):
        count = min(room, tokens - first)
        row = st.lists(logits, min_size=prefix + count + 1, max_size=prefix + count + 1)
        found.append((first, prefix, draw(row), draw(row)))
        if first + room >= tokens:
            break
    return found


batches = st.lists(questions(), min_size=1, max_size=4)
n_bests = st.sampled_from((1, 2, 3, 5, 20, 1000))
longest = st.sampled_from((1, 2, 3, 6, 7, 30))
temperatures = st.sampled_from([0.5, 1.0, 3.0])

# Reproducible, and without time limits.
quiet = settings(derandomize=True, deadline=None)

EMPTY = [(0, 3, [1.0, 9.0, 0.0, 9.0], [2.0, 9.0, 0.0, 9.0])]
ONE_TOKEN = [(0, 2, [1.0, 9.0, -1.0, 9.0], [0.0, 9.0, 0.5, 9.0])]
ALL_EQUAL = [(0, 2, [0.5] * 8, [0.5] * 8)]
# The second window scores the shared token 1 higher; only the third window has tokens 3 and 4.
THREE_WINDOWS = [
    (0, 2, [0.5, 0.0, 1.0, 2.0, 0.0, 0.0], [0.0, 0.0, 0.0, 1.0, 1.0, 0.0]),
    (1, 2, [0.0, 0.0, 3.0, 0.5, 0.5, 0.0], [0.25, 0.0, 2.0, 1.0, 0.0, 0.0]),
    (3, 2, [9.0, 0.0, 1.0, 0.0, 0.0], [9.0, 0.0, 2.0, 2.0, 0.0]),
]


def window_scores(batch):
    """Pack the windows of all questions into one batch."""
    windows = [window for question in batch for window in question]
    lengths = torch.tensor([len(start) for *_, start, _ in windows])
    prefixes = torch.tensor([prefix for _, prefix, *_ in windows])
    cls = lengths.cumsum(0) - lengths
    return WindowScores(
        torch.tensor([x for *_, start, _ in windows for x in start]),
        torch.tensor([x for *_, end in windows for x in end]),
        cls,
        cls + prefixes,
        lengths - prefixes - 1,
        torch.tensor([first for first, *_ in windows]),
        torch.tensor([number for number, question in enumerate(batch) for _ in question]),
    )


def decode(decoder, batch, n_best, max_answer_length, temperature=1.0):
    """Run a decoder, and check what does not depend on the search."""
    spans = DECODERS[decoder](window_scores(batch), n_best, max_answer_length, temperature)
    assert spans.question.tolist() == sorted(spans.question.tolist())
    for name in ("start_logit", "end_logit", "null_start_logit", "null_end_logit"):
        assert getattr(spans, name).dtype == torch.float32
    assert spans.log_total.dtype == torch.float64
    nulls = [min(((w[2][0], w[3][0]) for w in question), key=sum) for question in batch]
    found = zip(spans.null_start_logit.tolist(), spans.null_end_logit.tolist(), strict=True)
    assert list(found) == nulls
    return spans


def by_question(spans, batch, decoder="top20"):
    """Return (score, start, end) of each question's spans, best first, and check the logits.

    With "exact", the logits are those of the first window that scores the span highest.
    """
    found = [[] for _ in batch]
    columns = (spans.question, spans.start, spans.end, spans.start_logit, spans.end_logit)
    for number, i, j, s, e in zip(*(column.tolist() for column in columns), strict=True):
        pairs = [pair for window in batch[number] for pair in logits_of(window, i, j)]
        assert (s, e) in ([max(pairs, key=sum)] if decoder == "exact" else pairs)
        found[number].append((s + e, i, j))
    return found


def logits_of(window, i, j):
    """Yield start and end logit of a span if the window contains it."""
    first, prefix, start, end = window
    if first <= i and j < first + len(start) - prefix - 1:
        yield start[prefix + i - first], end[prefix + j - first]


# --- plain implementations -----------------------------------------------------------------------


def all_spans(question, max_answer_length):
    """Return each span (i, j) of the context with its best score over the windows."""
    best = {}
    for first, prefix, start, end in question:
        for i in range(prefix, len(start) - 1):
            for j in range(i, min(i + max_answer_length, len(start) - 1)):
                span = i - prefix + first, j - prefix + first
                best[span] = max(start[i] + end[j], best.get(span, -math.inf))
    return best


def plain_exact(question, n_best, max_answer_length):
    spans = all_spans(question, max_answer_length)
    ranked = sorted(((score, *span) for span, score in spans.items()), key=by_rank)
    return ranked[:n_best]


def by_rank(span):
    score, i, j = span
    return -score, i, j


def plain_run_qa(question, n_best, max_answer_length):
    """Combine the n best starts with the n best ends of all tokens, then drop invalid pairs."""
    pairs = []
    for first, prefix, start, end in question:
        for i in sorted(range(len(start)), key=lambda token: -start[token])[:n_best]:
            for j in sorted(range(len(end)), key=lambda token: -end[token])[:n_best]:
                if i < prefix or j < prefix or len(start) - 1 in (i, j):
                    continue
                if j < i or j - i + 1 > max_answer_length:
                    continue
                pairs.append((start[i] + end[j], i - prefix + first, j - prefix + first))
    return sorted(pairs, key=lambda pair: -pair[0])[:n_best]


PLAIN = {"exact": plain_exact, "top20": plain_run_qa}


# --- both decoders -------------------------------------------------------------------------------


@pytest.mark.parametrize("decoder", ["exact", "top20"])
@pytest.mark.parametrize("table_size", [1, 40, 2**20])  # spans in a table: block by block, or whole
@settings(quiet, max_examples=100)
@given(batch=batches, n_best=n_bests, max_answer_length=longest, temperature=temperatures)
@example(batch=[EMPTY], n_best=20, max_answer_length=30, temperature=1.0)
@example(batch=[ONE_TOKEN], n_best=1, max_answer_length=1, temperature=3.0)
@example(
    batch=[ALL_EQUAL, EMPTY, ONE_TOKEN, ALL_EQUAL], n_best=3, max_answer_length=2, temperature=0.5
)
@example(batch=[ALL_EQUAL, THREE_WINDOWS, EMPTY], n_best=4, max_answer_length=3, temperature=3.0)
def test_the_spans_equal_a_plain_search(
    table_size, decoder, batch, n_best, max_answer_length, temperature
):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(decoding, "TABLE_SIZE", table_size)
        spans = decode(decoder, batch, n_best, max_answer_length, temperature)
        totals = decoding.log_totals(window_scores(batch), max_answer_length, temperature)
    if decoder == "exact":
        assert totals.tolist() == spans.log_total.tolist()
    plain = [PLAIN[decoder](question, n_best, max_answer_length) for question in batch]
    assert by_question(spans, batch, decoder) == plain
    for question, kept, total in zip(batch, plain, spans.log_total.tolist(), strict=True):
        scores = [score for score, *_ in kept]
        if decoder == "exact":  # all spans, not only the n best
            scores = list(all_spans(question, max_answer_length).values())
        terms = [math.exp(score / temperature) for score in scores]
        wanted = math.log(math.fsum(terms)) if scores else -math.inf
        assert total == pytest.approx(wanted, rel=1e-12, abs=1e-12)


@pytest.mark.parametrize("decoder", ["exact", "top20"])
@settings(quiet, max_examples=60)
@given(batch=batches, n_best=n_bests, data=st.data())
def test_spans_do_not_depend_on_the_batch(decoder, batch, n_best, data):
    order = data.draw(st.permutations(range(len(batch))))
    together = by_question(decode(decoder, batch, n_best, 4), batch)
    shuffled_batch = [batch[i] for i in order]
    shuffled = by_question(decode(decoder, shuffled_batch, n_best, 4), shuffled_batch)
    alone = [by_question(decode(decoder, [q], n_best, 4), [q])[0] for q in batch]
    assert shuffled == [together[i] for i in order]
    assert alone == together


@pytest.mark.parametrize("decoder", ["exact", "top20"])
def test_long_windows_with_random_scores(decoder):
    generator = torch.Generator().manual_seed(3)

    def window(first, prefix, length):
        # Sixteenths have exact sums, equal to those of Python.
        rows = (torch.randn(2, length, generator=generator) * 64).round() / 16
        return (first, prefix, *rows.tolist())

    batch = [
        [window(0, 12, 90)],
        [window(0, 2, 3)],
        [window(first, 7, 160) for first in (0, 100, 200)],
        [window(0, 40, 61)],
    ]
    for n_best, max_answer_length in ((20, 30), (7, 1), (3, 500)):
        found = by_question(decode(decoder, batch, n_best, max_answer_length), batch)
        assert found == [PLAIN[decoder](q, n_best, max_answer_length) for q in batch]


def test_the_total_is_finite_where_exponentials_overflow():
    window = (0, 2, [0.0, 0.0, 500.0, 499.0, 0.0], [0.0, 0.0, 499.0, 500.0, 0.0])
    spans = decode("exact", [[window]], 20, 30)
    # Scores 999, 1000, 999.
    wanted = 1000 + math.log(1 + 2 * math.exp(-1))
    assert spans.log_total.tolist() == [pytest.approx(wanted, rel=1e-12)]


def test_of_batch_treats_each_window_as_a_question():
    windows = [THREE_WINDOWS[0], ALL_EQUAL[0]]
    starts, ends = ([x for window in windows for x in window[n]] for n in (2, 3))
    scores = WindowScores.of_batch(torch.tensor(starts), torch.tensor(ends), [6, 8], [2, 2])
    spans = DECODERS["exact"](scores, 20, 30)
    batch = [[window] for window in windows]
    assert by_question(spans, batch) == [plain_exact(question, 20, 30) for question in batch]


# --- exact, by hand ------------------------------------------------------------------------------


def test_a_span_does_not_end_before_its_start():
    # The best start is the last token, the best end the first: two separate maxima would give a
    # span that ends before it starts. Of the true spans, the whole context scores 1 + 2 = 3, the
    # last token alone 5 + 2 = 7, the first alone 1 + 5 = 6.
    question = [(0, 2, [0.0, 0.0, 1.0, 0.0, 5.0, 0.0], [0.0, 0.0, 5.0, 0.0, 2.0, 0.0])]
    for decoder in ("exact", "top20"):
        assert by_question(decode(decoder, [question], 2, 30), [question]) == [
            [(7, 2, 2), (6, 0, 0)]
        ]


class Largest(TorchFunctionMode):
    """Records the number of elements of the largest tensor that functions return."""

    size = 0

    def __torch_function__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if isinstance(out, torch.Tensor):
            self.size = max(self.size, out.numel())
        return out


def test_the_table_size_is_bounded(monkeypatch):
    """Memory is bounded for long texts and any answer length."""
    long = [(first, 2, [0.5] * 53, [0.5] * 53) for first in range(0, 5000, 25)]
    scores = window_scores([long, ALL_EQUAL, *[[window] for window in long[:5]]])
    for table_size, is_whole in ((2**20, True), (2000, False)):
        monkeypatch.setattr(decoding, "TABLE_SIZE", table_size)
        with Largest() as largest:
            exact_spans(scores, 20, 10_000)
        whole = 5000 * 50  # of the long context
        assert largest.size >= whole if is_whole else largest.size < whole / 20


# --- spans missed by run_qa's search -------------------------------------------------------------


def test_the_best_span_may_have_neither_a_top_start_nor_a_top_end():
    # Three good starts are at the end of the context and three good ends at its beginning, too
    # far apart; between them the best span of all, 4 + 4.
    start = [0.0] * 2 + [0.0] * 3 + [4.0, 0.0] + [5.0] * 3 + [0.0]
    end = [0.0] * 2 + [5.0] * 3 + [0.0, 4.0] + [0.0] * 3 + [0.0]
    question = [(0, 2, start, end)]
    assert by_question(decode("exact", [question], 3, 4), [question])[0][0] == (8, 3, 4)
    assert by_question(decode("top20", [question], 3, 4), [question]) == [[]]


def test_question_tokens_take_ranks_among_the_best_twenty():
    # All twenty question tokens score higher than the only context token.
    scores = [0.0] + [2.0] * 20 + [0.0, 1.0, 0.0]
    question = [(0, 22, scores, scores)]
    assert by_question(decode("exact", [question], 20, 30), [question]) == [[(2, 0, 0)]]
    assert by_question(decode("top20", [question], 20, 30), [question]) == [[]]
    assert by_question(decode("top20", [question], 21, 30), [question]) == [[(2, 0, 0)]]
