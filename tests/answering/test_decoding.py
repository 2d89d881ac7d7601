"""Spans against plain loops over all of them, and against run_qa's search told anew."""

import math

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from bertqa.answering.decoding import DECODERS

# --- batches -------------------------------------------------------------------------------------
# A window is (place, start logits, end logits): its tokens are [CLS], the question's, [SEP], the
# context's from `place` on, [SEP]. The logits are few and their sums exact, so that ties abound.

logits = st.sampled_from((-2.5, -1.0, 0.0, 0.5, 0.5, 3.0))


@st.composite
def windows(draw):
    place, context = draw(st.integers(2, 5)), draw(st.integers(0, 7))
    row = st.lists(logits, min_size=place + context + 1, max_size=place + context + 1)
    return place, draw(row), draw(row)


batches = st.lists(windows(), min_size=1, max_size=5)
n_bests = st.sampled_from((1, 2, 3, 5, 20, 1000))
longest = st.sampled_from((1, 2, 3, 6, 7, 30))

# Reproducible, and never red because the machine is busy.
quiet = settings(derandomize=True)

EMPTY = (3, [1.0, 9.0, 0.0, 9.0], [2.0, 9.0, 0.0, 9.0])
ONE_TOKEN = (2, [1.0, 9.0, -1.0, 9.0], [0.0, 9.0, 0.5, 9.0])
ALL_EQUAL = (2, [0.5] * 8, [0.5] * 8)


def decode(decoder, batch, n_best, max_answer_length):
    """Run a decoder; checks all of its answer that does not depend on what the search is."""
    places, starts, ends = zip(*batch, strict=True)
    spans = DECODERS[decoder](
        torch.tensor([x for row in starts for x in row]),
        torch.tensor([x for row in ends for x in row]),
        [len(row) for row in starts],
        places,
        n_best,
        max_answer_length,
    )
    assert spans.window.tolist() == sorted(spans.window.tolist())
    for name in ("start_logit", "end_logit", "null_start_logit", "null_end_logit", "log_total"):
        assert getattr(spans, name).dtype == torch.float32
    assert spans.null_start_logit.tolist() == [row[0] for row in starts]
    assert spans.null_end_logit.tolist() == [row[0] for row in ends]
    return spans


def by_window(spans, batch):
    """For each window its (score, start, end), once the logits are seen to be of those tokens."""
    found = [[] for _ in batch]
    columns = (spans.window, spans.start, spans.end, spans.start_logit, spans.end_logit)
    for window, i, j, s, e in zip(*(column.tolist() for column in columns), strict=True):
        place, start, end = batch[window]
        assert (s, e) == (start[place + i], end[place + j])
        found[window].append((s + e, i, j))
    return found


# --- the rules, told anew ------------------------------------------------------------------------


def all_spans(window, max_answer_length):
    """Every (score, i, j) of the context, by earliest start, then shortest."""
    place, start, end = window
    tokens = range(place, len(start) - 1)
    return [
        (start[i] + end[j], i - place, j - place)
        for i in tokens
        for j in tokens
        if i <= j and j - i + 1 <= max_answer_length
    ]


def plain_exact(window, n_best, max_answer_length):
    spans = all_spans(window, max_answer_length)
    return sorted(spans, key=lambda span: -span[0])[:n_best]  # stable


def plain_run_qa(window, n_best, max_answer_length):
    """The n best starts with the n best ends of all tokens; what is no span drops out after."""
    place, start, end = window
    pairs = []
    for i in sorted(range(len(start)), key=lambda token: -start[token])[:n_best]:
        for j in sorted(range(len(end)), key=lambda token: -end[token])[:n_best]:
            if i < place or j < place or len(start) - 1 in (i, j):
                continue
            if j < i or j - i + 1 > max_answer_length:
                continue
            pairs.append((start[i] + end[j], i - place, j - place))
    return sorted(pairs, key=lambda pair: -pair[0])[:n_best]


PLAIN = {"exact": plain_exact, "top20": plain_run_qa}


# --- both decoders -------------------------------------------------------------------------------


@pytest.mark.parametrize("decoder", ["exact", "top20"])
@settings(quiet, max_examples=150)
@given(batch=batches, n_best=n_bests, max_answer_length=longest)
@example(batch=[EMPTY], n_best=20, max_answer_length=30)
@example(batch=[ONE_TOKEN], n_best=1, max_answer_length=1)
@example(batch=[ALL_EQUAL, EMPTY, ONE_TOKEN, ALL_EQUAL], n_best=3, max_answer_length=2)
def test_the_spans_are_those_of_a_plain_search(decoder, batch, n_best, max_answer_length):
    spans = decode(decoder, batch, n_best, max_answer_length)
    plain = [PLAIN[decoder](window, n_best, max_answer_length) for window in batch]
    assert by_window(spans, batch) == plain


@pytest.mark.parametrize("decoder", ["exact", "top20"])
@settings(quiet, max_examples=80)
@given(batch=batches, max_answer_length=longest)
@example(batch=[EMPTY, ONE_TOKEN], max_answer_length=30)
def test_the_total_is_of_all_spans_also_of_those_not_kept(decoder, batch, max_answer_length):
    spans = decode(decoder, batch, 1, max_answer_length)
    for window, total in zip(batch, spans.log_total.tolist(), strict=True):
        weights = [math.exp(score) for score, _, _ in all_spans(window, max_answer_length)]
        assert total == pytest.approx(math.log(sum(weights)) if weights else -math.inf, rel=1e-5)


@pytest.mark.parametrize("decoder", ["exact", "top20"])
@settings(quiet, max_examples=60)
@given(batch=batches, n_best=n_bests, data=st.data())
def test_a_window_gets_the_same_spans_in_every_batch(decoder, batch, n_best, data):
    order = data.draw(st.permutations(range(len(batch))))
    together = by_window(decode(decoder, batch, n_best, 4), batch)
    shuffled_batch = [batch[i] for i in order]
    shuffled = by_window(decode(decoder, shuffled_batch, n_best, 4), shuffled_batch)
    alone = [by_window(decode(decoder, [window], n_best, 4), [window])[0] for window in batch]
    assert shuffled == [together[i] for i in order]
    assert alone == together


@pytest.mark.parametrize("decoder", ["exact", "top20"])
def test_long_windows_of_random_scores(decoder):
    generator = torch.Generator().manual_seed(3)
    batch = []
    for place, length in ((12, 90), (2, 3), (7, 160), (40, 61)):
        # Sixteenths: their sums are exact, so a plain sum of Python's is the same number.
        rows = (torch.randn(2, length, generator=generator) * 64).round() / 16
        batch.append((place, *rows.tolist()))
    for n_best, max_answer_length in ((20, 30), (7, 1), (3, 500)):
        found = by_window(decode(decoder, batch, n_best, max_answer_length), batch)
        assert found == [PLAIN[decoder](w, n_best, max_answer_length) for w in batch]


def test_the_total_stays_finite_where_a_plain_sum_of_exponentials_overflows():
    window = (2, [0.0, 0.0, 500.0, 499.0, 0.0], [0.0, 0.0, 499.0, 500.0, 0.0])
    spans = decode("exact", [window], 20, 30)
    # Scores 999, 1000, 999.
    wanted = 1000 + math.log(1 + 2 * math.exp(-1))
    assert spans.log_total.tolist() == [pytest.approx(wanted, rel=1e-6)]


# --- exact, by hand ------------------------------------------------------------------------------


def test_an_end_before_its_start_is_no_span():
    # The best start is the last token, the best end the first: two separate maxima would give a
    # span that ends before it starts. Of the true spans, the whole context scores 1 + 2 = 3, the
    # last token alone 5 + 2 = 7, the first alone 1 + 5 = 6.
    window = (2, [0.0, 0.0, 1.0, 0.0, 5.0, 0.0], [0.0, 0.0, 5.0, 0.0, 2.0, 0.0])
    assert max(range(2, 5), key=window[1].__getitem__) > max(range(2, 5), key=window[2].__getitem__)
    for decoder in ("exact", "top20"):
        assert by_window(decode(decoder, [window], 2, 30), [window]) == [[(7, 2, 2), (6, 0, 0)]]


def test_equal_scores_earliest_start_first_then_shortest():
    window = (2, [0.0] * 6, [0.0] * 6)
    (found,) = by_window(decode("exact", [window], 5, 30), [window])
    assert found == [(0, 0, 0), (0, 0, 1), (0, 0, 2), (0, 1, 1), (0, 1, 2)]


def test_length_is_counted_in_tokens_both_ends_included():
    # From the first token, each token more makes a better span.
    window = (2, [0.0, 0.0, 9.0, 0.0, 0.0, 0.0, 0.0], [0.0, 0.0, 1.0, 2.0, 3.0, 4.0, 0.0])
    best = [by_window(decode("exact", [window], 1, m), [window])[0] for m in (1, 2, 3, 4, 5)]
    assert best == [[(10, 0, 0)], [(11, 0, 1)], [(12, 0, 2)], [(13, 0, 3)], [(13, 0, 3)]]


@pytest.mark.parametrize(
    ("decoder", "spans"),
    [
        ("exact", [(3, 0, 0), (3, 1, 1), (2, 0, 1)]),
        ("top20", [(3, 1, 1), (3, 0, 0), (2, 0, 1)]),  # of equals, the one with the better start
    ],
)
def test_only_the_context_answers(decoder, spans):
    # [CLS], the question, both [SEP] and the window beside this one score higher than the context.
    window = (4, [7.0, 8.0, 9.0, 9.0, 1.0, 2.0, 9.0], [7.0, 8.0, 9.0, 9.0, 2.0, 1.0, 9.0])
    found = by_window(decode(decoder, [window, window], 20, 30), [window, window])
    assert found == [spans, spans]


@pytest.mark.parametrize("decoder", ["exact", "top20"])
def test_windows_without_context_have_no_spans(decoder):
    spans = decode(decoder, [EMPTY, EMPTY], 20, 30)
    assert spans.window.tolist() == []
    assert spans.log_total.tolist() == [-math.inf, -math.inf]
    assert spans.null_start_logit.tolist() == [1.0, 1.0]


# --- what run_qa's search misses -----------------------------------------------------------------


def test_the_best_span_may_have_neither_a_best_start_nor_a_best_end():
    # Three good starts stand at the end of the context and three good ends at its beginning, too
    # far apart; between them the best span of all, 4 + 4.
    start = [0.0] * 2 + [0.0] * 3 + [4.0, 0.0] + [5.0] * 3 + [0.0]
    end = [0.0] * 2 + [5.0] * 3 + [0.0, 4.0] + [0.0] * 3 + [0.0]
    window = (2, start, end)
    assert by_window(decode("exact", [window], 3, 4), [window])[0][0] == (8, 3, 4)
    assert by_window(decode("top20", [window], 3, 4), [window]) == [[]]


def test_tokens_of_the_question_take_places_among_the_best_twenty():
    # A question of twenty tokens that all score higher than the context's one.
    window = (22, [0.0] + [2.0] * 20 + [0.0, 1.0, 0.0], [0.0] + [2.0] * 20 + [0.0, 1.0, 0.0])
    assert by_window(decode("exact", [window], 20, 30), [window]) == [[(2, 0, 0)]]
    assert by_window(decode("top20", [window], 20, 30), [window]) == [[]]
    assert by_window(decode("top20", [window], 21, 30), [window]) == [[(2, 0, 0)]]
