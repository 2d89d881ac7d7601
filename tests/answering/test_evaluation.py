"""Answers, metrics and files, against plain implementations over lists of logits."""

import copy
import json
import math
import unicodedata
import weakref
from collections import Counter
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from bertqa.answering import decoding, evaluation
from bertqa.answering.answers import Answer, Prediction
from bertqa.answering.evaluation import Evaluator, predict, score, write_predictions
from bertqa.answering.metrics import evaluate_v1, evaluate_v2
from bertqa.data.graphemes import snap_to_graphemes
from bertqa.data.labels import make_labelled_windows
from bertqa.data.readers import read_examples
from bertqa.data.squad import Example
from bertqa.errors import UserError
from bertqa.model.bert import BertOutput
from bertqa.model.checkpoint import load_checkpoint
from bertqa.model.cpu_inference import is_prepacked, prepare_for_inference
from bertqa.model.packing import PackedBatch
from bertqa.runtime import Runtime
from bertqa.settings import DecodingSettings, WindowSettings
from tests.corpus import PAIRS
from tests.helpers import (
    STORIES,
    STORIES_V2,
    write_checkpoint,
    write_tokenizer,
)

RUNTIME = Runtime(torch.device("cpu"))
NARROW = WindowSettings(max_seq_length=96, doc_stride=24, max_query_length=64)
ALL = 100_000  # n_best_size for all spans
NO_SPAN_ODDS = torch.finfo(torch.float32).max


def short(path):
    return [example for example in read_examples(path) if len(example.context) < 800]


stories, stories_v2 = short(STORIES)[::9], short(STORIES_V2)[::2]
# The long contexts repeat themselves.
pairs = [Example(f"pair-{i}", question, text[:500]) for i, (question, text) in enumerate(PAIRS)]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return write_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("checkpoint") / "tiny")


@pytest.fixture(scope="module")
def model(checkpoint):
    return load_checkpoint(checkpoint)[0].eval()


class Scripted(nn.Module):
    """A model whose logits of each window are a function of its ids.

    ``calls`` are the lengths of the windows of each batch.
    """

    def __init__(self, script):
        super().__init__()
        self.script = script
        self.calls = []
        self.embeddings, self.layers = nn.Identity(), nn.ModuleList()  # nothing to prepack

    def __deepcopy__(self, memo):
        return self  # so that calls of the copy are recorded here

    def forward(self, batch):
        self.calls.append(batch.lengths)
        rows = [self.script(ids.tolist()) for ids in batch.input_ids.split(list(batch.lengths))]
        starts, ends = zip(*rows, strict=True)
        return BertOutput(
            torch.tensor([x for row in starts for x in row]),
            torch.tensor([x for row in ends for x in row]),
        )


def jagged(ids):
    """Return logits of few values, so that ties are common, that vary between windows."""
    salt = len(ids) + ids[-2]
    start = [(token * 7 + position * 5 + salt) % 11 / 4 for position, token in enumerate(ids)]
    end = [(token * 3 + position * 8 + salt) % 13 / 4 for position, token in enumerate(ids)]
    return start, end


def logits_of(model, window):
    """Return the model's logits of a single window as two lists."""
    with torch.no_grad():
        output = model(PackedBatch.from_windows([window.input_ids], [window.token_type_ids]))
    return output.start_logits.tolist(), output.end_logits.tolist()


def window_logits(model, examples, windows):
    """Return for each example its windows as (offsets, start logits, end logits)."""
    rows = {example.id: [] for example in examples}
    for number in range(len(windows)):
        window = windows[number]
        rows[examples[window.example].id].append((window.offsets, *logits_of(model, window)))
    return rows


# --- plain implementations -----------------------------------------------------------------------


def plain_null(rows):
    return min(start[0] + end[0] for _, start, end in rows)


def plain_exact(context, rows, settings):
    """Return the n best (score, start, end), with "no answer" as (score, 0, 0), and probabilities.

    A span in several windows counts once, with its best score.
    """
    spans = {}
    for offsets, start, end in rows:
        tokens = [token for token, offset in enumerate(offsets) if offset is not None]
        for i in tokens:
            for j in tokens:
                if i <= j < i + settings.max_answer_length:
                    span, value = (offsets[i], offsets[j]), start[i] + end[j]
                    spans[span] = max(value, spans.get(span, -math.inf))
    total = sum(map(math.exp, spans.values()))
    sums = Counter()  # of the spans of the same characters
    for (first, last), value in spans.items():
        sums[snap_to_graphemes(context, first[0], last[1])] += math.exp(value)
    kept = sorted(spans, key=lambda tokens: (-spans[tokens], tokens))[: settings.n_best_size]
    best = {}
    for first, last in kept:
        characters = snap_to_graphemes(context, first[0], last[1])
        best.setdefault(characters, spans[first, last])
    answers = sorted(((value, *characters) for characters, value in best.items()), key=by_rank)
    if settings.version_2_with_negative:
        total += math.exp(plain_null(rows))
        answers.append((plain_null(rows), 0, 0))
        answers.sort(key=lambda answer: -answer[0])
        sums[0, 0] = math.exp(plain_null(rows))
    return [(answer, sums[answer[1:]] / total) for answer in answers]


def by_rank(answer):
    value, start, end = answer
    return -value, start, end


def plain_run_qa(context, rows, settings):
    """Return text, odds and n-best list of run_qa's published script.

    Two deviations: answers are whole grapheme clusters, and if the search finds no span, the answer
    is "" (in the script, the word "empty" with the score 0).
    """
    found = []
    for offsets, start, end in rows:
        ranked = [
            sorted(range(len(values)), key=lambda token, values=values: -values[token])
            for values in (start, end)
        ]
        for i in ranked[0][: settings.n_best_size]:
            for j in ranked[1][: settings.n_best_size]:
                if offsets[i] is None or offsets[j] is None or j < i:
                    continue
                if j - i + 1 <= settings.max_answer_length:
                    characters = snap_to_graphemes(context, offsets[i][0], offsets[j][1])
                    found.append((start[i] + end[j], context[slice(*characters)]))
    null = (plain_null(rows), "")
    with_null = settings.version_2_with_negative or not found
    if with_null:
        found.append(null)
    best = sorted(found, key=lambda answer: -answer[0])[: settings.n_best_size]
    if with_null and null not in best:
        best.append(null)
    total = sum(math.exp(value) for value, _ in best)
    n_best = [(text, value, math.exp(value) / total) for value, text in best]
    value, text = next((answer for answer in best if answer[1]), (-math.inf, ""))
    if not settings.version_2_with_negative:
        return text, None, n_best
    odds = null[0] - value
    return "" if odds > settings.null_score_diff_threshold else text, odds, n_best


# --- small data by hand --------------------------------------------------------------------------

LETTERS = "a b c d e f g h i j"
FOUR_LETTERS = WindowSettings(max_seq_length=8, doc_stride=2)  # a b c d, c d e f, e f g h, g h i j


@pytest.fixture
def ask(tokenizer):
    """Return a function that answers from LETTERS with logits given by letter.

    The logits of [CLS] are given by the window's first letter.
    """

    def ask(start, end, null=None, context=LETTERS, windows=FOUR_LETTERS, **decoding):
        def script(ids):
            letters = tokenizer.tokens(ids)
            cls = (null or {}).get(letters[3], (0.0, 0.0))
            return (
                [cls[0], *(start.get(letter, 0.0) for letter in letters[1:])],
                [cls[1], *(end.get(letter, 0.0) for letter in letters[1:])],
            )

        examples = [Example("x", "q", context)]
        made = make_labelled_windows(examples, tokenizer, windows)
        settings = DecodingSettings(**decoding)
        (prediction,) = predict(Scripted(script), examples, made, settings, RUNTIME)
        return prediction

    return ask


def test_the_windows_of_the_letters(tokenizer):
    windows = make_labelled_windows([Example("x", "q", LETTERS)], tokenizer, FOUR_LETTERS)
    shown = ["".join(tokenizer.tokens(windows[i].input_ids)) for i in range(len(windows))]
    assert shown == [f"[CLS]q[SEP]{four}[SEP]" for four in ("abcd", "cdef", "efgh", "ghij")]


@pytest.mark.parametrize("decoder", ["exact", "top20"])
def test_the_best_of_all_windows_wins(ask, decoder):
    prediction = ask({"a": 2.0, "h": 3.0}, {"b": 2.0, "i": 3.0}, decoder=decoder)
    assert (prediction.text, prediction.best_span) == ("h i", "h i")
    # 3 + 3 in the last window, 2 + 2 in the first, then 3 + 0.
    assert [a.text for a in prediction.answers[:2]] == ["h i", "a b"]
    best = prediction.answers[0]
    assert (best.start, best.end, best.start_logit, best.end_logit) == (14, 17, 3.0, 3.0)
    assert best.score == 6.0
    assert prediction.null_odds is None


@pytest.mark.parametrize("decoder", ["exact", "top20"])
@pytest.mark.parametrize(
    ("null", "threshold", "text"),
    [(8.0, 1.75, ""), (8.0, 2.0, "h i"), (8.0, 2.25, "h i"), (8.0, -3.0, ""), (0.0, -7.0, "")],
)
def test_no_answer_must_exceed_the_threshold(ask, decoder, null, threshold, text):
    decoding = {"version_2_with_negative": True, "null_score_diff_threshold": threshold}
    nulls = dict.fromkeys("aceg", (null - 3, 3.0))
    prediction = ask({"h": 3.0}, {"i": 3.0}, nulls, decoder=decoder, **decoding)
    assert prediction.null_odds == null - 6
    assert (prediction.text, prediction.best_span) == (text, "h i")
    first = ["", "h i"] if null > 6 else ["h i"]
    assert [a.text for a in prediction.answers[: len(first)]] == first


def test_no_answer_is_ranked_after_a_tied_span(ask):
    prediction = ask(
        {"h": 3.0}, {}, dict.fromkeys("aceg", (1.0, 2.0)), version_2_with_negative=True
    )
    texts = [a.text for a in prediction.answers]
    assert texts[: texts.index("") + 1] == ["h", "h i", "h i j", ""]
    assert (prediction.text, prediction.null_odds) == ("h", 0.0)


ONE_WINDOW = WindowSettings(max_seq_length=64, doc_stride=2)
SLOPES = {letter: i * 5 % 7 / 2 for i, letter in enumerate("abcdefghij")}


def test_the_probability_of_a_certain_answer_is_at_most_one(ask):
    for height in (80.3, 99.9, 1234.5):
        best, *others = ask({"h": height}, {"i": 70.7}, windows=ONE_WINDOW).answers
        assert 1 - 1e-6 < best.probability <= 1
        assert max(other.probability for other in others) < 1e-6


def test_top20_counts_no_answer_among_the_n_best(ask):
    null = {"a": (9.0, 9.0)}
    asked = {"windows": ONE_WINDOW, "version_2_with_negative": True, "decoder": "top20"}
    three = ask(SLOPES, SLOPES, null, n_best_size=3, **asked)
    assert [bool(a.text) for a in three.answers] == [False, True, True]
    one = ask({"c": 9.5}, {"c": 9.5}, null, n_best_size=1, **asked)
    assert [a.text for a in one.answers] == ["c", ""]


# --- a context without tokens --------------------------------------------------------------------

INVISIBLE = "\u200b"


@pytest.mark.parametrize("decoder", ["exact", "top20"])
@pytest.mark.parametrize("version_2", [False, True])
def test_a_context_without_tokens_has_no_answer(ask, decoder, version_2):
    decoding = {"version_2_with_negative": version_2, "decoder": decoder}
    if version_2:
        decoding["null_score_diff_threshold"] = math.inf
    prediction = ask({}, {}, {"[SEP]": (-8.0, 2.0)}, context=INVISIBLE, **decoding)
    assert (prediction.text, prediction.best_span) == ("", "")
    assert prediction.answers == (Answer("", 0, 0, -8.0, 2.0, 1.0),)
    # Above every threshold, and finite like the metrics.
    assert prediction.null_odds == (NO_SPAN_ODDS if version_2 else None)
    if version_2:
        examples = [Example("x", "q", INVISIBLE, answers=())]
        figures = score(examples, [prediction], DecodingSettings(**decoding))
        assert figures["exact"] == figures["best_exact"] == figures["best_f1"] == 100
        assert all(map(math.isfinite, figures.values()))


@pytest.mark.parametrize("decoder", ["exact", "top20"])
def test_a_context_without_tokens_is_scored_and_written(tokenizer, tmp_path, decoder):
    examples = [
        Example("none", "q", INVISIBLE, answers=()),
        *stories_v2[:3],
        Example("lost", "q", INVISIBLE * 3, answers=(INVISIBLE,), answer_starts=(0,)),
    ]
    windows = make_labelled_windows(examples, tokenizer, NARROW)
    settings = DecodingSettings(version_2_with_negative=True, decoder=decoder)
    predictions = list(predict(Scripted(jagged), examples, windows, settings, RUNTIME))
    figures = score(examples, predictions, settings)
    assert figures["total"] == 5
    assert figures["best_exact"] >= figures["exact"] >= 20  # "none" is correct
    write_predictions(tmp_path, predictions, settings)
    for file in ("predictions", "nbest_predictions", "null_odds"):
        read_strictly(tmp_path / f"{file}.json")


def test_a_prepacked_model_is_evaluated_unchanged(model, labelled):
    evaluator = Evaluator(*labelled, RUNTIME)
    wanted = evaluator(model)
    ready = prepare_for_inference(copy.deepcopy(model), RUNTIME.device, RUNTIME.dtype)
    assert is_prepacked(ready)
    assert evaluator(ready).predictions == wanted.predictions


def test_logits_on_a_device_without_float64_are_decoded_on_the_cpu(tokenizer):
    """Apple's GPUs lack float64, which the softmax's denominator needs."""

    class OnMps(torch.Tensor):
        """A CPU tensor that claims to be on such a device until it is moved."""

        @property
        def device(self):
            return torch.device("mps")

        def cpu(self):
            return self.as_subclass(torch.Tensor)

        def double(self):
            raise TypeError("Cannot convert a MPS Tensor to float64")

    class Moved(Scripted):
        def forward(self, batch):
            output = super().forward(batch)
            return BertOutput(*(x.as_subclass(OnMps) for x in output))

    examples = [Example("x", "q", "one two three")]
    windows = make_labelled_windows(examples, tokenizer, ONE_WINDOW)
    found, wanted = (
        list(predict(model(jagged), examples, windows, DecodingSettings(), RUNTIME))
        for model in (Moved, Scripted)
    )
    assert found == wanted


# --- many questions ------------------------------------------------------------------------------


def same(prediction):
    """Return a prediction without probabilities, whose last bits depend on the batch."""
    return replace(
        prediction, answers=tuple(a._replace(probability=0.0) for a in prediction.answers)
    )


@pytest.mark.parametrize("version_2", [False, True])
@pytest.mark.parametrize("n_best_size", [4, 20, ALL])
def test_exact_answers_equal_a_plain_search(tokenizer, version_2, n_best_size):
    examples = [*stories_v2[:4], *pairs[9:25:3]]
    windows = make_labelled_windows(examples, tokenizer, NARROW)
    settings = DecodingSettings(n_best_size, 7, version_2_with_negative=version_2)
    model = Scripted(jagged)
    rows = window_logits(model, examples, windows)
    predictions = list(predict(model, examples, windows, settings, RUNTIME))
    assert [p.id for p in predictions] == [e.id for e in examples]
    for example, prediction in zip(examples, predictions, strict=True):
        plain = plain_exact(example.context, rows[example.id], settings)
        found = [((a.score, a.start, a.end), a.probability) for a in prediction.answers]
        assert [answer for answer, _ in found] == [answer for answer, _ in plain]
        assert [p for _, p in found] == pytest.approx([p for _, p in plain], rel=1e-5)
        text = next(a.text for a in prediction.answers if a.text)
        assert prediction.best_span == text
        if version_2:
            best = next(answer for answer, _ in plain if answer[1:] != (0, 0))
            assert prediction.null_odds == plain_null(rows[example.id]) - best[0]
            assert prediction.text == ("" if prediction.null_odds > 0 else text)
        else:
            assert (prediction.text, prediction.null_odds) == (text, None)


@pytest.mark.parametrize("version_2", [False, True])
@pytest.mark.parametrize(("decoder", "n_best"), [("exact", ALL), ("top20", 20)])
def test_a_temperature_changes_only_probabilities(tokenizer, decoder, n_best, version_2):
    examples = [*stories_v2[:4], *pairs]
    windows = make_labelled_windows(examples, tokenizer, NARROW)
    settings = DecodingSettings(n_best, 7, decoder, version_2)
    plain, flat = (
        list(predict(Scripted(jagged), examples, windows, wanted, RUNTIME))
        for wanted in (settings, replace(settings, temperature=2.5))
    )
    assert list(map(same, plain)) == list(map(same, flat))
    for one, other in zip(plain, flat, strict=True):
        for found in (one, other):
            assert math.fsum(a.probability for a in found.answers) == pytest.approx(1)
        if one.spans_found == len(one.answers) - version_2:  # no spans of the same characters
            roots = [answer.probability ** (1 / 2.5) for answer in one.answers]
            wanted = [root / math.fsum(roots) for root in roots]
            assert [a.probability for a in other.answers] == pytest.approx(wanted)
    assert any(one.spans_found > len(one.answers) for one in plain) == (decoder == "exact")


@pytest.mark.parametrize("version_2", [False, True])
@pytest.mark.parametrize("decoder", ["exact", "top20"])
def test_an_answer_below_a_threshold_becomes_no_answer(tokenizer, decoder, version_2):
    examples = [*stories_v2[:4], *pairs, Example("none", "q", INVISIBLE)]
    windows = make_labelled_windows(examples, tokenizer, NARROW)
    settings = DecodingSettings(20, 7, decoder, version_2, 1.0)
    plain = list(predict(Scripted(jagged), examples, windows, settings, RUNTIME))
    best = [next((a.probability for a in p.answers if a.text), 0.0) for p in plain]
    limit = sorted(best)[len(best) // 2]  # this answer is just kept
    wanted = replace(settings, score_threshold=limit)
    found = list(predict(Scripted(jagged), examples, windows, wanted, RUNTIME))
    for one, other, probability in zip(plain, found, best, strict=True):
        silenced = probability < limit
        assert other.text == ("" if silenced else one.text)
        assert (other.best_span, other.null_odds) == (one.best_span, one.null_odds)
        null = other.answers[len(one.answers) :]
        assert other.answers == (*one.answers, *null)
        assert len(null) == (silenced and not version_2 and bool(one.text))
        assert all((a.text, a.start, a.end, a.probability) == ("", 0, 0, 0.0) for a in null)
    texts = [p.text for p in found]
    assert 0 < texts.count("") < len(texts)


@pytest.mark.parametrize("decoder", ["exact", "top20"])
@pytest.mark.parametrize(("block", "budget"), [(1, 4096), (2048, 1), (9, 300), (64, 777)])
def test_blocks_and_batches_do_not_change_answers(tokenizer, monkeypatch, decoder, block, budget):
    examples = [*stories[:5], Example("none", "q", INVISIBLE), *pairs[:3], *stories_v2[:4]]
    windows = make_labelled_windows(examples, tokenizer, NARROW)
    settings = DecodingSettings(decoder=decoder, version_2_with_negative=True)
    at_once, in_parts = Scripted(jagged), Scripted(jagged)
    wanted = list(predict(at_once, examples, windows, settings, RUNTIME))
    monkeypatch.setattr(evaluation, "WINDOWS_PER_BLOCK", block)
    monkeypatch.setattr(Runtime, "tokens_per_batch", budget)
    monkeypatch.setattr(decoding, "TABLE_SIZE", 3 * budget)
    found = list(predict(in_parts, examples, windows, settings, RUNTIME))
    assert list(map(same, found)) == list(map(same, wanted))
    for ours, theirs in zip(found, wanted, strict=True):
        weights = [[a.probability for a in prediction.answers] for prediction in (ours, theirs)]
        assert weights[0] == pytest.approx(weights[1], rel=1e-5, abs=1e-12)
    # The batches differ, no window is lost, and the budget is kept.
    assert len(in_parts.calls) > len(at_once.calls)
    assert sum(map(len, in_parts.calls)) == sum(map(len, at_once.calls)) == len(windows)
    assert all(sum(call) <= budget or len(call) == 1 for call in in_parts.calls)


def test_the_number_of_cores_does_not_change_answers(tokenizer, model, monkeypatch):
    """With a real model, whose batches take different times."""
    examples = [*stories[:20], *stories_v2[:4]]
    windows = make_labelled_windows(examples, tokenizer, NARROW)
    settings = DecodingSettings(version_2_with_negative=True)
    evaluator = Evaluator(examples, windows, settings, RUNTIME)
    monkeypatch.setattr(Runtime, "tokens_per_batch", 300)
    before = torch.get_num_threads()
    found = []
    for cores in (1, 3):
        torch.set_num_threads(cores)
        result = evaluator(model)
        found.append((list(map(same, result.predictions)), result.loss))
    torch.set_num_threads(before)
    assert found[0] == found[1]


def test_only_the_windows_of_one_block_are_run_ahead(tokenizer, monkeypatch):
    windows = make_labelled_windows(stories, tokenizer, NARROW)
    monkeypatch.setattr(evaluation, "WINDOWS_PER_BLOCK", 10)
    model = Scripted(jagged)
    counts = windows.example.bincount()
    taken = 0
    predictions = predict(model, stories, windows, DecodingSettings(), RUNTIME)
    for count, _ in zip(counts.tolist(), predictions, strict=True):
        taken += count
        # The last question of a block may exceed its size.
        assert taken <= sum(map(len, model.calls)) < taken + 10 + int(counts.max())


def continues(text, offset):
    """Return whether the character at an offset continues a grapheme cluster."""
    if not 0 < offset < len(text):
        return False
    kind = unicodedata.category(text[offset])
    joined = text[offset - 1] == "\u200d" and kind == "So"
    return kind.startswith("M") or text[offset] in "\u200c\u200d" or joined


@pytest.mark.parametrize("decoder", ["exact", "top20"])
def test_an_answer_is_a_slice_of_whole_grapheme_clusters(model, tokenizer, decoder):
    examples = [*stories, *pairs]
    windows = make_labelled_windows(examples, tokenizer, NARROW)
    predictions = list(
        predict(model, examples, windows, DecodingSettings(decoder=decoder), RUNTIME)
    )
    for example, prediction in zip(examples, predictions, strict=True):
        context = example.context
        for answer in prediction.answers:
            assert answer.text == context[answer.start : answer.end] != ""
            assert not continues(context, answer.start)
            assert not continues(context, answer.end)
            assert 0 <= answer.probability <= 1
        assert sum(a.probability for a in prediction.answers) < 1 + 1e-5
        if decoder == "exact":
            offsets = {(answer.start, answer.end) for answer in prediction.answers}
            assert len(offsets) == len(prediction.answers)
    assert sum(len(prediction.answers) for prediction in predictions) > 10 * len(examples)


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_spans_of_the_same_grapheme_clusters_are_one_answer(ask, form):
    """An uncased BERT splits a Korean syllable, which the text may have split already."""
    context = unicodedata.normalize(form, "늙은 시계공")
    prediction = ask({}, {}, context=context, windows=ONE_WINDOW, n_best_size=ALL)
    # Five syllables: 15 answers, and none begins or ends with the space.
    assert len(prediction.answers) == len({a.text for a in prediction.answers}) == 15


# --- run_qa --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def asked(model, tokenizer):
    """Return questions, their windows, and the model's logits."""
    examples = [*stories_v2[::2], *stories[:4], *pairs[:2], *pairs[13:16]]
    windows = make_labelled_windows(examples, tokenizer, NARROW)
    return examples, windows, window_logits(model, examples, windows)


@pytest.mark.parametrize("n_best_size", [4, 20])
@pytest.mark.parametrize(("version_2", "threshold"), [(False, 0.0), (True, 0.0), (True, -2.0)])
def test_top20_answers_as_run_qa_does(model, asked, n_best_size, version_2, threshold):
    examples, windows, rows = asked
    settings = DecodingSettings(n_best_size, 30, "top20", version_2, threshold)
    predictions = list(predict(model, examples, windows, settings, RUNTIME))
    texts = []
    for example, ours in zip(examples, predictions, strict=True):
        text, odds, n_best = plain_run_qa(example.context, rows[example.id], settings)
        texts.append(text)
        assert ours.text == text
        if odds == math.inf:
            assert ours.null_odds == NO_SPAN_ODDS
        else:
            assert ours.null_odds == (odds and pytest.approx(odds, abs=1e-4))
        assert [a.score for a in ours.answers] == pytest.approx([s for _, s, _ in n_best], abs=1e-4)
        weights = [a.probability for a in ours.answers]
        assert weights == pytest.approx([p for *_, p in n_best], abs=1e-4)
        scores = [-math.inf, *(-s for _, s, _ in n_best), math.inf]
        for i, (answer, (wanted, *_)) in enumerate(zip(ours.answers, n_best, strict=True)):
            # Rounding may swap scores that are as close as this.
            if min(scores[i + 1] - scores[i], scores[i + 2] - scores[i + 1]) > 1e-4:
                assert answer.text == wanted
    if threshold == -2.0:
        assert 0 < texts.count("") < len(texts)  # both sides of the threshold occur


# --- Evaluator -----------------------------------------------------------------------------------


@pytest.fixture(params=["v1", "v2"])
def labelled(request, tokenizer):
    """Return questions with gold answers, their windows and settings."""
    examples = stories[:6] if request.param == "v1" else stories_v2[::2]
    settings = DecodingSettings(version_2_with_negative=request.param == "v2")
    return examples, make_labelled_windows(examples, tokenizer, NARROW), settings


def test_the_loss_is_the_mean_over_the_windows(model, labelled, monkeypatch):
    monkeypatch.setattr(evaluation, "WINDOWS_PER_BLOCK", 30)
    examples, windows, settings = labelled
    losses = []
    for number in range(len(windows)):
        window, (first, last) = windows[number], windows.label_of(number)
        start, end = (torch.tensor(row) for row in logits_of(model, window))
        log_start, log_end = F.log_softmax(start, dim=0), F.log_softmax(end, dim=0)
        losses.append(-log_start[first] - log_end[last])
    assert windows.start_position.bool().any()  # not all labels are [CLS]
    assert not windows.start_position.bool().all()
    found = Evaluator(examples, windows, settings, RUNTIME)(model)
    assert found.loss == pytest.approx(float(torch.stack(losses).mean()), rel=1e-5)


def test_an_evaluation_has_the_predictions_and_official_metrics(model, labelled):
    examples, windows, settings = labelled
    found = Evaluator(examples, windows, settings, RUNTIME)(model)
    assert found.predictions == list(predict(model, examples, windows, settings, RUNTIME))
    texts = {p.id: p.text for p in found.predictions}
    golds = {e.id: e.answers for e in examples}
    if settings.version_2_with_negative:
        odds = {p.id: p.null_odds for p in found.predictions}
        spans = {p.id: p.best_span for p in found.predictions}
        assert found.metrics == evaluate_v2(texts, golds, odds, spans)
        assert found.exact_match == found.metrics["exact"]
    else:
        assert found.metrics == evaluate_v1(texts, golds)
        assert found.exact_match == found.metrics["exact_match"]
    assert found.f1 == found.metrics["f1"]


@pytest.mark.parametrize("training", [True, False])
def test_evaluation_uses_no_dropout_and_keeps_the_model(checkpoint, model, labelled, training):
    examples, windows, settings = labelled
    other, _ = load_checkpoint(checkpoint)
    other.train(training)
    evaluate = Evaluator(examples, windows, settings, RUNTIME)
    assert other.config.hidden_dropout_prob > 0
    assert evaluate(other) == evaluate(model)
    assert {module.training for module in other.modules()} == {training}


def test_processes_share_the_questions_and_gather_the_whole_result(labelled, monkeypatch):
    examples, windows, settings = labelled
    monkeypatch.setattr(evaluation, "WINDOWS_PER_BLOCK", 12)
    parts, models = [], [Scripted(jagged) for _ in range(4)]
    monkeypatch.setattr(Runtime, "gather", lambda self, value: parts.append(value) or parts)

    def evaluated(rank):
        runtime = replace(RUNTIME, rank=rank, world_size=3)
        return Evaluator(examples, windows, settings, runtime)(models[rank])

    for rank in range(2):
        with pytest.raises(KeyError):  # later processes' parts are missing
            evaluated(rank)
    together = evaluated(2)
    monkeypatch.setattr(Runtime, "gather", lambda self, value: [value])
    alone = Evaluator(examples, windows, settings, RUNTIME)(models[3])
    assert together.predictions == alone.predictions
    assert together.metrics == alone.metrics
    assert together.loss == pytest.approx(alone.loss, rel=1e-6)
    shares = [sum(map(len, model.calls)) for model in models[:3]]
    assert sum(shares) == len(windows)
    assert min(shares) > 0


# --- files ---------------------------------------------------------------------------------------


def read_strictly(path):
    """Read standard JSON: no NaN, no Infinity, UTF-8."""

    def refuse(word):
        raise AssertionError(f"{path} contains {word}")

    return json.loads(path.read_bytes().decode("utf-8"), parse_constant=refuse)


def make_prediction(question_id, text, *answers):
    return Prediction(question_id, text, answers, answers[0].text, 0.25)


def test_the_files_have_run_qas_format(tmp_path):
    predictions = [
        make_prediction(
            "1", "ja", Answer("ja", 3, 5, 1.5, 0.25, 0.75), Answer("", 0, 0, 1.0, 1.0, 0.25)
        ),
        make_prediction("café \u2028", "", Answer('"né"\n', 1, 6, -1.5, 0.5, 0.5)),
    ]
    folder = tmp_path / "new" / "folder"
    settings = DecodingSettings(version_2_with_negative=True)
    kept, files = write_predictions(folder, iter(predictions), settings)
    assert kept == [replace(prediction, answers=()) for prediction in predictions]
    names = ["nbest_predictions.json", "predictions.json", "null_odds.json"]
    assert files == [folder / name for name in names]
    assert {path.name for path in folder.iterdir()} == set(names)
    assert read_strictly(files[1]) == {"1": "ja", "café \u2028": ""}
    keys = ("text", "probability", "start_logit", "end_logit", "start", "end")
    assert read_strictly(files[0]) == {
        "1": [
            dict(zip(keys, ("ja", 0.75, 1.5, 0.25, 3, 5), strict=True)),
            dict(zip(keys, ("", 0.25, 1.0, 1.0, 0, 0), strict=True)),
        ],
        "café \u2028": [dict(zip(keys, ('"né"\n', 0.5, -1.5, 0.5, 1, 6), strict=True))],
    }
    assert read_strictly(files[2]) == {"1": 0.25, "café \u2028": 0.25}
    _, files = write_predictions(tmp_path / "v1", predictions, DecodingSettings())
    assert [file.name for file in files] == names[:2]
    assert {path.name for path in (tmp_path / "v1").iterdir()} == set(names[:2])


def test_predictions_are_streamed_to_their_file(tmp_path):
    """N-best lists are not kept in memory."""

    class Watched(Prediction):
        __slots__ = ("__weakref__",)

    alive: list[weakref.ref[Watched]] = []

    def coming():
        for number in range(20):
            answers = (Answer("ja", 3, 5, 1.5, 0.25, 1.0),)
            prediction = Watched(str(number), "ja", answers, "ja", None)
            alive.append(weakref.ref(prediction))
            yield prediction
            del prediction
            assert sum(ref() is not None for ref in alive) <= 1

    kept, _ = write_predictions(tmp_path, coming(), DecodingSettings())
    assert [prediction.id for prediction in kept] == [str(number) for number in range(20)]


def test_a_failure_keeps_the_old_files(tmp_path):
    """A question that is too long raises an error in the middle."""

    def failing():
        yield make_prediction("1", "new", Answer("new", 0, 3, 1.0, 1.0, 1.0))
        raise UserError("question 2 is too long")

    old = make_prediction("1", "old", Answer("old", 0, 3, 1.0, 1.0, 1.0))
    write_predictions(tmp_path, [old], DecodingSettings())
    before = {path.name: path.read_text() for path in tmp_path.iterdir()}
    with pytest.raises(UserError, match="question 2 is too long"):
        write_predictions(tmp_path, failing(), DecodingSettings())
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == before


def test_a_lone_surrogate_is_written_as_an_escape(tmp_path):
    prediction = make_prediction("\udc00", "a \ud83d b", Answer("\ud83d", 2, 3, 1.0, 1.0, 1.0))
    _, files = write_predictions(tmp_path, [prediction], DecodingSettings())
    n_best, predictions = map(read_strictly, files)
    assert predictions == {"\udc00": "a \ud83d b"}
    assert n_best["\udc00"][0]["text"] == "\ud83d"


# --- score and settings --------------------------------------------------------------------------


def prediction_of(question_id, text, span="", odds=None):
    return Prediction(question_id, text, (), span or text, odds)


def test_score_with_version_2():
    examples = [
        Example("1", "q", "The Osk", ("Osk",), (4,)),
        Example("2", "q", "red blue", ()),
        Example("3", "q", "red blue", ()),
        Example("4", "q", "red blue", None),
    ]
    predictions = [
        prediction_of("1", "", "Osk", 1.5),
        prediction_of("2", "red", "red", 2.5),
        prediction_of("3", "", "red", 3),
        prediction_of("4", "red", "red", 0.5),
    ]
    figures = score(examples, predictions, DecodingSettings(version_2_with_negative=True))
    assert figures["exact"] == figures["f1"] == pytest.approx(100 / 3)
    assert (figures["HasAns_total"], figures["NoAns_total"]) == (1, 2)
    assert (figures["total"], figures["without_gold"]) == (3, 1)
    # All are correct if only "Osk" is answered: at thresholds from 1.5.
    assert (figures["best_exact"], figures["best_exact_thresh"]) == (100, 1.5)
