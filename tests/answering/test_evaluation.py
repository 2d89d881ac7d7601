"""Answers, figures and files, against the rules told anew over plain lists of logits."""

import copy
import json
import math
import unicodedata
import weakref
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
from bertqa.model.cpu_inference import is_prepacked, make_ready
from bertqa.model.packing import PackedBatch
from bertqa.runtime import Runtime
from bertqa.settings import DecodingSettings, WindowSettings
from tests.corpus import PAIRS
from tests.helpers import (
    STORIES,
    STORIES_V2,
    their_batch,
    their_model,
    write_checkpoint,
    write_tokenizer,
)

RUNTIME = Runtime(torch.device("cpu"))
NARROW = WindowSettings(max_seq_length=96, doc_stride=24, max_query_length=64)
ALL = 100_000  # an n_best that keeps every span
NO_SPAN_ODDS = torch.finfo(torch.float32).max


def short(path):
    return [example for example in read_examples(path) if len(example.context) < 800]


stories, stories_v2 = short(STORIES)[::9], short(STORIES_V2)[::2]
# The long contexts say the same things again and again.
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
    """A model that says of each window what a function of its ids says.

    ``calls`` are the lengths of the windows of each batch.
    """

    def __init__(self, script):
        super().__init__()
        self.script = script
        self.calls = []
        self.embeddings, self.layers = nn.Identity(), nn.ModuleList()  # nothing to make ready

    def __deepcopy__(self, memo):
        return self  # the copy that answers tells its calls here

    def forward(self, batch):
        self.calls.append(batch.lengths)
        rows = [self.script(ids.tolist()) for ids in batch.input_ids.split(list(batch.lengths))]
        starts, ends = zip(*rows, strict=True)
        return BertOutput(
            torch.tensor([x for row in starts for x in row]),
            torch.tensor([x for row in ends for x in row]),
        )


def jagged(ids):
    """Logits of few values, so that ties abound, that change from window to window."""
    salt = len(ids) + ids[-2]
    start = [(token * 7 + place * 5 + salt) % 11 / 4 for place, token in enumerate(ids)]
    end = [(token * 3 + place * 8 + salt) % 13 / 4 for place, token in enumerate(ids)]
    return start, end


def logits_of(model, window):
    """The model's logits of one window alone, as two lists."""
    with torch.no_grad():
        output = model(PackedBatch.from_windows([window.input_ids], [window.token_type_ids]))
    return output.start_logits.tolist(), output.end_logits.tolist()


def told(model, examples, windows):
    """For each example its windows as (offsets, start logits, end logits)."""
    rows = {example.id: [] for example in examples}
    for number in range(len(windows)):
        window = windows[number]
        rows[examples[window.example].id].append((window.offsets, *logits_of(model, window)))
    return rows


# --- the rules, told anew ------------------------------------------------------------------------


def plain_spans(row, max_answer_length):
    """Every (score, start, end) of a window's tokens, in characters of the context."""
    offsets, start, end = row
    tokens = [token for token, offset in enumerate(offsets) if offset is not None]
    for i in tokens:
        for j in tokens:
            if i <= j < i + max_answer_length:
                yield (start[i] + end[j], offsets[i], offsets[j])


def plain_null(rows):
    return min(start[0] + end[0] for _, start, end in rows)


def plain_exact(context, rows, settings):
    """The n best (score, start, end), "no answer" as (score, 0, 0), and their probabilities.

    A span of tokens counts once, at the best score that a window gives it.
    """
    spans = {}
    for row in rows:
        for value, first, last in plain_spans(row, settings.max_answer_length):
            spans[first, last] = max(value, spans.get((first, last), -math.inf))
    total = sum(map(math.exp, spans.values()))
    kept = sorted(spans, key=lambda tokens: (-spans[tokens], tokens))[: settings.n_best_size]
    best = {}
    for first, last in kept:
        place = snap_to_graphemes(context, first[0], last[1])
        best.setdefault(place, spans[first, last])
    answers = sorted(((value, *place) for place, value in best.items()), key=by_rank)
    if settings.version_2_with_negative:
        total += math.exp(plain_null(rows))
        answers.append((plain_null(rows), 0, 0))
        answers.sort(key=lambda answer: -answer[0])
    return [(answer, math.exp(answer[0]) / total) for answer in answers]


def by_rank(answer):
    value, start, end = answer
    return -value, start, end


def plain_run_qa(context, rows, settings):
    """run_qa's answers of a question, told from its published script: text, odds, n best list.

    Two things are otherwise: an answer takes grapheme clusters whole, and where the search finds
    no span the answer is "" (the script makes one up, the word "empty" with the score 0).
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
                    place = snap_to_graphemes(context, offsets[i][0], offsets[j][1])
                    found.append((start[i] + end[j], context[slice(*place)]))
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
    """Ask about LETTERS with logits by letter; those of [CLS] by the window's first letter."""

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


def test_the_letters_are_cut_as_the_tests_below_suppose(tokenizer):
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


def test_a_span_that_two_windows_share_is_one_answer_to_exact_and_two_to_top20(ask):
    exact = ask({"e": 3.0}, {"f": 3.0}, n_best_size=ALL)
    top20 = ask({"e": 3.0}, {"f": 3.0}, n_best_size=20, decoder="top20")
    assert [a.text for a in exact.answers].count("e f") == 1
    assert [a.text for a in top20.answers].count("e f") == 2
    # 4 windows of 10 spans; each 2 letters that windows share, 3 times, have 3 spans.
    assert len(exact.answers) == len({a.text for a in exact.answers}) == 4 * 10 - 3 * 3


def test_a_shared_span_counts_at_its_better_score(tokenizer):
    # The same letters stand at other places in the next window, and score by place.
    examples = [Example("x", "q", LETTERS)]
    windows = make_labelled_windows(examples, tokenizer, FOUR_LETTERS)
    model = Scripted(lambda ids: ([float(i) for i in range(len(ids))], [0.0] * len(ids)))
    settings = DecodingSettings(n_best_size=ALL)
    (prediction,) = predict(model, examples, windows, settings, RUNTIME)
    alone = {a.text: a.start_logit for a in prediction.answers if len(a.text) == 1}
    # [CLS] q [SEP] takes 0 to 2. a and b are in the first window only, c d first at 5 6, and so on.
    wanted = {"a": 3.0, "b": 4.0} | dict(zip("cdefghij", [5.0, 6.0] * 4, strict=True))
    assert alone == wanted


def test_no_answer_has_the_lowest_score_of_all_windows(ask):
    nulls = {"a": (4.0, 5.0), "c": (0.5, 1.0), "e": (9.0, 9.0), "g": (1.0, 1.0)}
    prediction = ask({"h": 3.0}, {"i": 3.0}, nulls, version_2_with_negative=True)
    (null,) = [a for a in prediction.answers if a.text == ""]
    assert (null.start, null.end, null.start_logit, null.end_logit) == (0, 0, 0.5, 1.0)
    assert prediction.null_odds == 1.5 - 6.0
    assert prediction.text == "h i"


@pytest.mark.parametrize("decoder", ["exact", "top20"])
@pytest.mark.parametrize(
    ("threshold", "text"), [(1.75, ""), (2.0, "h i"), (2.25, "h i"), (-3.0, "")]
)
def test_no_answer_must_pass_the_threshold_strictly(ask, decoder, threshold, text):
    nulls = dict.fromkeys("aceg", (5.0, 3.0))
    prediction = ask(
        {"h": 3.0},
        {"i": 3.0},
        nulls,
        version_2_with_negative=True,
        null_score_diff_threshold=threshold,
        decoder=decoder,
    )
    assert prediction.null_odds == 2.0
    assert (prediction.text, prediction.best_span) == (text, "h i")
    assert [a.text for a in prediction.answers[:2]] == ["", "h i"]


def test_a_threshold_below_a_negative_difference(ask):
    asked = {"version_2_with_negative": True, "null_score_diff_threshold": -7.0}
    prediction = ask({"h": 3.0}, {"i": 3.0}, **asked)
    assert (prediction.null_odds, prediction.text, prediction.best_span) == (-6.0, "", "h i")


def test_no_answer_stands_after_a_span_of_the_same_score(ask):
    prediction = ask(
        {"h": 3.0}, {}, dict.fromkeys("aceg", (1.0, 2.0)), version_2_with_negative=True
    )
    texts = [a.text for a in prediction.answers]
    assert texts[: texts.index("") + 1] == ["h", "h i", "h i j", ""]
    assert (prediction.text, prediction.null_odds) == ("h", 0.0)


def test_without_version_2_no_answer_is_none(ask):
    prediction = ask({"h": 3.0}, {"i": 3.0}, dict.fromkeys("aceg", (50.0, 50.0)), n_best_size=ALL)
    assert prediction.text == "h i"
    assert "" not in [a.text for a in prediction.answers]


# --- probabilities -------------------------------------------------------------------------------

ONE_WINDOW = WindowSettings(max_seq_length=64, doc_stride=2)
SLOPES = {letter: i * 5 % 7 / 2 for i, letter in enumerate("abcdefghij")}


def test_the_probabilities_of_all_spans_of_a_window_sum_to_one(ask):
    prediction = ask(SLOPES, SLOPES, windows=ONE_WINDOW, n_best_size=ALL)
    assert len(prediction.answers) == 10 * 11 / 2
    assert math.fsum(a.probability for a in prediction.answers) == pytest.approx(1, abs=1e-6)


def test_with_version_2_the_sum_of_one_includes_no_answer(ask):
    null = {"a": (2.0, 3.5)}
    asked = {"windows": ONE_WINDOW, "n_best_size": ALL, "version_2_with_negative": True}
    prediction = ask(SLOPES, SLOPES, null, **asked)
    assert len(prediction.answers) == 10 * 11 / 2 + 1
    assert math.fsum(a.probability for a in prediction.answers) == pytest.approx(1, abs=1e-6)
    best, null = prediction.answers[0], next(a for a in prediction.answers if not a.text)
    ratio = best.probability / null.probability
    assert ratio == pytest.approx(math.exp(best.score - 5.5), rel=1e-6)


def test_a_probability_is_of_all_spans_however_few_are_kept(ask):
    kept = [ask(SLOPES, SLOPES, windows=ONE_WINDOW, n_best_size=n) for n in (1, 3, ALL)]
    assert [len(p.answers) for p in kept] == [1, 3, 55]
    assert len({p.answers[0].probability for p in kept}) == 1
    assert kept[0].answers[0].probability < 0.5


def test_a_certain_answer_has_probability_one_and_not_more(ask):
    for height in (80.3, 99.9, 1234.5):
        best, *others = ask({"h": height}, {"i": 70.7}, windows=ONE_WINDOW).answers
        assert 1 - 1e-6 < best.probability <= 1
        assert max(other.probability for other in others) < 1e-6


@pytest.mark.parametrize("version_2", [False, True])
def test_with_top20_the_kept_answers_sum_to_one(ask, version_2):
    asked = {"n_best_size": 5, "version_2_with_negative": version_2, "decoder": "top20"}
    prediction = ask(SLOPES, SLOPES, windows=ONE_WINDOW, **asked)
    weights = [math.exp(a.score) for a in prediction.answers]
    wanted = [weight / sum(weights) for weight in weights]
    assert [a.probability for a in prediction.answers] == pytest.approx(wanted)
    # No answer, of score 0, is not among the five best, and comes on top of them.
    assert len(prediction.answers) == 5 + version_2


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
    asked = {"version_2_with_negative": version_2, "decoder": decoder}
    prediction = ask({}, {}, {"[SEP]": (-8.0, 2.0)}, context=INVISIBLE, **asked)
    assert (prediction.text, prediction.best_span) == ("", "")
    assert prediction.answers == (Answer("", 0, 0, -8.0, 2.0, 1.0),)
    # Beyond any threshold, and a number.
    assert prediction.null_odds == (NO_SPAN_ODDS if version_2 else None)
    assert math.isfinite(NO_SPAN_ODDS)


def test_an_unreachable_threshold_does_not_find_an_answer_where_there_is_none(ask):
    asked = {"version_2_with_negative": True, "null_score_diff_threshold": math.inf}
    assert ask({}, {}, context=INVISIBLE, **asked).text == ""


@pytest.mark.parametrize("decoder", ["exact", "top20"])
def test_a_context_without_tokens_among_others_is_scored_and_written(tokenizer, tmp_path, decoder):
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
    assert figures["best_exact"] >= figures["exact"] >= 20  # "none" is right
    write_predictions(tmp_path, predictions, settings)
    for file in ("predictions", "nbest_predictions", "null_odds"):
        read_strictly(tmp_path / f"{file}.json")


@pytest.mark.parametrize("windows", [ONE_WINDOW, NARROW])
def test_a_character_of_several_tokens_is_one_answer(tokenizer, windows):
    """An uncased BERT takes a Korean syllable apart, and its parts cover the same characters."""
    example = Example("x", "q", "각 나라 " * 3)
    cut = make_labelled_windows([example], tokenizer, windows)
    [prediction] = predict(Scripted(jagged), [example], cut, DecodingSettings(), RUNTIME)
    places = [(answer.start, answer.end) for answer in prediction.answers]
    assert len(cut) == 1 and cut.contexts.lengths.tolist() != [6]  # there are such tokens
    assert len(places) > 5 and len(set(places)) == len(places)


def test_a_packed_model_is_measured_as_it_is(model, labelled):
    evaluator = Evaluator(*labelled, RUNTIME)
    wanted = evaluator(model)
    ready = make_ready(copy.deepcopy(model), RUNTIME.device, RUNTIME.dtype)
    assert is_prepacked(ready)
    assert evaluator(ready).predictions == wanted.predictions


def test_logits_on_a_device_without_float64_are_decoded_on_the_cpu(tokenizer):
    """Apple's GPUs have none; the sums that probabilities are normalised by need it."""

    class OnMps(torch.Tensor):
        """A tensor of the CPU that says it is on such a device, until it is moved."""

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


def test_figures_where_no_question_has_a_span(ask):
    examples = [Example("x", "q", INVISIBLE, answers=())]
    prediction = ask({}, {}, context=INVISIBLE, version_2_with_negative=True)
    figures = score(examples, [prediction], DecodingSettings(version_2_with_negative=True))
    assert figures["exact"] == figures["best_exact"] == figures["best_f1"] == 100
    assert all(map(math.isfinite, figures.values()))


# --- many questions ------------------------------------------------------------------------------


def same(prediction):
    """All of a prediction that is exact: a probability's last bits depend on the batch."""
    return replace(
        prediction, answers=tuple(a._replace(probability=0.0) for a in prediction.answers)
    )


@pytest.mark.parametrize("version_2", [False, True])
@pytest.mark.parametrize("n_best_size", [4, 20])
def test_exact_answers_are_those_of_a_plain_search(tokenizer, version_2, n_best_size):
    examples = [*stories_v2[:4], *pairs[9:25:3]]
    windows = make_labelled_windows(examples, tokenizer, NARROW)
    settings = DecodingSettings(n_best_size, 7, version_2_with_negative=version_2)
    model = Scripted(jagged)
    rows = told(model, examples, windows)
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


@pytest.mark.parametrize("decoder", ["exact", "top20"])
@pytest.mark.parametrize(("block", "budget"), [(1, 4096), (2048, 1), (9, 300), (64, 777)])
def test_neither_blocks_nor_batches_change_an_answer(
    tokenizer, monkeypatch, decoder, block, budget
):
    examples = [*stories[:5], Example("none", "q", INVISIBLE), *pairs[:3], *stories_v2[:4]]
    windows = make_labelled_windows(examples, tokenizer, NARROW)
    settings = DecodingSettings(decoder=decoder, version_2_with_negative=True)
    at_once, in_parts = Scripted(jagged), Scripted(jagged)
    wanted = list(predict(at_once, examples, windows, settings, RUNTIME))
    monkeypatch.setattr(evaluation, "_BLOCK", block)
    monkeypatch.setattr(Runtime, "tokens_per_batch", budget)
    monkeypatch.setattr(decoding, "_TABLE_SIZE", 3 * budget)
    found = list(predict(in_parts, examples, windows, settings, RUNTIME))
    assert list(map(same, found)) == list(map(same, wanted))
    for ours, theirs in zip(found, wanted, strict=True):
        weights = [[a.probability for a in prediction.answers] for prediction in (ours, theirs)]
        assert weights[0] == pytest.approx(weights[1], rel=1e-5, abs=1e-12)
    # The parts were other parts, no window was lost, and the budget was kept.
    assert len(in_parts.calls) > len(at_once.calls)
    assert sum(map(len, in_parts.calls)) == sum(map(len, at_once.calls)) == len(windows)
    assert all(sum(call) <= budget or len(call) == 1 for call in in_parts.calls)


def test_cores_with_batches_of_their_own_change_no_answer(tokenizer, model, monkeypatch):
    """A real model, whose batches take different times."""
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


def test_a_block_has_about_as_many_windows_as_it_should(tokenizer, monkeypatch):
    windows = make_labelled_windows(stories, tokenizer, NARROW)
    monkeypatch.setattr(evaluation, "_BLOCK", 10)
    blocks = list(evaluation._blocks(windows, len(stories)))
    assert [i for block in blocks for i in block.examples] == list(range(len(stories)))
    assert [i for block in blocks for i in block.windows] == list(range(len(windows)))
    for block in blocks:
        owners = windows.example[block.windows.start : block.windows.stop]
        assert owners.unique().tolist() == list(block.examples)
        per_example = owners.bincount().tolist()
        assert len(block.windows) - per_example[-1] < 10  # without its last example it were less


@pytest.mark.parametrize("decoder", ["exact", "top20"])
def test_the_order_of_the_questions_changes_no_answer(tokenizer, decoder):
    examples = [*stories[:6], *stories_v2[:6]]
    settings = DecodingSettings(decoder=decoder)
    found = []
    for order in (examples, examples[::-1], [*examples[7:], *examples[:7]]):
        windows = make_labelled_windows(order, tokenizer, NARROW)
        predictions = list(predict(Scripted(jagged), order, windows, settings, RUNTIME))
        assert [p.id for p in predictions] == [e.id for e in order]
        found.append({p.id: same(p) for p in predictions})
    assert found[0] == found[1] == found[2]


def test_a_model_gives_the_same_scores_whatever_the_batches(model, tokenizer, monkeypatch):
    examples = stories[:4]
    windows = make_labelled_windows(examples, tokenizer, NARROW)
    wanted = list(predict(model, examples, windows, DecodingSettings(), RUNTIME))
    monkeypatch.setattr(Runtime, "tokens_per_batch", 150)
    found = list(predict(model, examples, windows, DecodingSettings(), RUNTIME))
    for ours, theirs in zip(found, wanted, strict=True):
        scores = [[a.score for a in prediction.answers] for prediction in (ours, theirs)]
        assert scores[0] == pytest.approx(scores[1], abs=1e-4)


def continues(text, place):
    """Whether a mark, a joiner or what was joined stands here: nothing begins with it."""
    if not 0 < place < len(text):
        return False
    kind = unicodedata.category(text[place])
    joined = text[place - 1] == "\u200d" and kind == "So"
    return kind.startswith("M") or text[place] in "\u200c\u200d" or joined


@pytest.mark.parametrize("decoder", ["exact", "top20"])
def test_an_answer_is_a_slice_of_its_context_in_whole_characters(model, tokenizer, decoder):
    examples = [*stories, *pairs]
    windows = make_labelled_windows(examples, tokenizer, NARROW)
    settings = DecodingSettings(decoder=decoder)
    answers = 0
    for example, prediction in zip(
        examples, predict(model, examples, windows, settings, RUNTIME), strict=True
    ):
        context = example.context
        for answer in prediction.answers:
            answers += 1
            assert answer.text == context[answer.start : answer.end] != ""
            assert not continues(context, answer.start)
            assert not continues(context, answer.end)
            assert 0 <= answer.probability <= 1
        assert sum(a.probability for a in prediction.answers) < 1 + 1e-5
        if decoder == "exact":
            places = {(answer.start, answer.end) for answer in prediction.answers}
            assert len(places) == len(prediction.answers)
    assert answers > 10 * len(examples)


def test_parts_of_one_written_character_are_one_answer(ask):
    # Decomposed Korean: each syllable is two or three tokens.
    context = unicodedata.normalize("NFD", "늙은 시계공")
    prediction = ask({}, {}, context=context, windows=ONE_WINDOW, n_best_size=ALL)
    # Five syllables: 15 answers, and the blank between begins and ends none.
    assert len(prediction.answers) == 15
    assert len({a.text for a in prediction.answers}) == 15


# --- run_qa --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def theirs(checkpoint):
    return their_model(
        vocab_size=write_tokenizer(checkpoint).vocab_size, max_position_embeddings=384
    )


@pytest.fixture(scope="module")
def asked(theirs, tokenizer):
    """Questions, their windows, and what transformers' model says of each."""
    examples = [*stories_v2[::2], *stories[:4], *pairs[:2], *pairs[13:16]]
    windows = make_labelled_windows(examples, tokenizer, NARROW)
    shown = [windows[i] for i in range(len(windows))]
    rows = {example.id: [] for example in examples}
    for first in range(0, len(shown), 64):
        part = shown[first : first + 64]
        ids, types = [w.input_ids for w in part], [w.token_type_ids for w in part]
        with torch.no_grad():
            output = theirs(**their_batch(ids, types))
        for window, start, end in zip(part, output.start_logits, output.end_logits, strict=True):
            size = len(window.input_ids)
            row = (window.offsets, start[:size].tolist(), end[:size].tolist())
            rows[examples[window.example].id].append(row)
    return examples, windows, rows


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
            # Scores as close as rounding change places.
            if min(scores[i + 1] - scores[i], scores[i + 2] - scores[i + 1]) > 1e-4:
                assert answer.text == wanted
    if threshold == -2.0:
        assert 0 < texts.count("") < len(texts)  # both sides of the threshold were seen


# --- Evaluator -----------------------------------------------------------------------------------


@pytest.fixture(params=["v1", "v2"])
def labelled(request, tokenizer):
    """Questions with gold answers, their windows and the settings they want."""
    examples = stories[:6] if request.param == "v1" else stories_v2[::2]
    settings = DecodingSettings(version_2_with_negative=request.param == "v2")
    return examples, make_labelled_windows(examples, tokenizer, NARROW), settings


def test_the_loss_is_the_mean_over_the_windows(model, labelled, monkeypatch):
    monkeypatch.setattr(evaluation, "_BLOCK", 30)
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


def test_an_evaluation_is_the_predictions_and_their_official_figures(model, labelled):
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


def test_right_answers_score_full_marks(tokenizer):
    examples = [Example("x", "q", LETTERS, ("c d",), (4,)), Example("y", "q", "a b", ("b",), (2,))]
    windows = make_labelled_windows(examples, tokenizer, ONE_WINDOW)
    right = {"c": 5.0, "b": 1.0}, {"d": 5.0, "b": 1.0}

    def script(ids):
        letters = tokenizer.tokens(ids)
        return tuple([values.get(letter, 0.0) for letter in letters] for values in right)

    found = Evaluator(examples, windows, DecodingSettings(), RUNTIME)(Scripted(script))
    assert (found.exact_match, found.f1) == (100, 100)
    # The label's logit 5 among 8 zeros, a 1 and itself in the first window, 1 among 5 zeros.
    first = 2 * (math.log(math.exp(5) + math.exp(1) + 12) - 5)
    second = 2 * (math.log(math.exp(1) + 5) - 1)
    assert found.loss == pytest.approx((first + second) / 2, rel=1e-6)


@pytest.mark.parametrize("training", [True, False])
def test_evaluation_drops_nothing_out_and_leaves_the_model_as_it_was(
    checkpoint, model, labelled, training
):
    examples, windows, settings = labelled
    other, _ = load_checkpoint(checkpoint)
    other.train(training)
    evaluate = Evaluator(examples, windows, settings, RUNTIME)
    assert other.config.hidden_dropout_prob > 0
    assert evaluate(other) == evaluate(model)
    assert {module.training for module in other.modules()} == {training}


def test_processes_share_the_questions_and_all_get_the_whole(labelled, monkeypatch):
    examples, windows, settings = labelled
    monkeypatch.setattr(evaluation, "_BLOCK", 12)
    alone = Evaluator(examples, windows, settings, RUNTIME)(Scripted(jagged))
    parts = []

    class Said(Exception):
        pass

    def say(self, value):
        parts.append(value)
        raise Said

    models = [Scripted(jagged) for _ in range(3)]
    monkeypatch.setattr(Runtime, "gather", say)
    for rank in range(3):
        with pytest.raises(Said):
            runtime = replace(RUNTIME, rank=rank, world_size=3)
            Evaluator(examples, windows, settings, runtime)(models[rank])
    monkeypatch.setattr(Runtime, "gather", lambda self, value: parts)
    together = Evaluator(examples, windows, settings, replace(RUNTIME, rank=2, world_size=3))(
        Scripted(jagged)
    )
    assert together.predictions == alone.predictions
    assert together.metrics == alone.metrics
    assert together.loss == pytest.approx(alone.loss, rel=1e-6)
    shares = [sum(map(len, model.calls)) for model in models]
    assert sum(shares) == len(windows)
    assert min(shares) > 0


# --- files ---------------------------------------------------------------------------------------


def read_strictly(path):
    """JSON as its standard has it: no NaN, no Infinity, UTF-8."""

    def refuse(word):
        raise AssertionError(f"{path} holds {word}")

    return json.loads(path.read_bytes().decode("utf-8"), parse_constant=refuse)


def made_up(question_id, text, *answers):
    return Prediction(question_id, text, answers, answers[0].text, 0.25)


def test_the_files_are_run_qas(tmp_path):
    predictions = [
        made_up("1", "ja", Answer("ja", 3, 5, 1.5, 0.25, 0.75), Answer("", 0, 0, 1.0, 1.0, 0.25)),
        made_up("café \u2028", "", Answer('"né"\n', 1, 6, -1.5, 0.5, 0.5)),
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


def test_files_that_say_nothing_are_not_written(tmp_path):
    prediction = Prediction("1", "ja", (Answer("ja", 3, 5, 1.5, 0.25, 1.0),), "ja", None)
    _, files = write_predictions(tmp_path, [prediction], DecodingSettings())
    assert [file.name for file in files] == ["nbest_predictions.json", "predictions.json"]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(f.name for f in files)


def test_predictions_are_written_as_they_come(tmp_path):
    """No prediction waits in memory with its n best for the last one."""

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


def test_predictions_that_fail_leave_the_last_files_as_they_were(tmp_path):
    """A question that is too long is found when its turn comes."""

    def failing():
        yield made_up("1", "new", Answer("new", 0, 3, 1.0, 1.0, 1.0))
        raise UserError("question 2 is too long")

    write_predictions(
        tmp_path, [made_up("1", "old", Answer("old", 0, 3, 1.0, 1.0, 1.0))], DecodingSettings()
    )
    before = {path.name: path.read_text() for path in tmp_path.iterdir()}
    with pytest.raises(UserError, match="question 2 is too long"):
        write_predictions(tmp_path, failing(), DecodingSettings())
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == before


def test_half_a_surrogate_pair_is_written_as_its_escape(tmp_path, ask):
    prediction = ask({"\ufffd": 9.0}, {"\ufffd": 9.0}, context="a \ud83d b", windows=ONE_WINDOW)
    texts = {answer.text for answer in prediction.answers}
    assert "a \ud83d b" in texts
    prediction = replace(prediction, id="\udc00", text="a \ud83d b")
    _, (n_best, predictions) = write_predictions(tmp_path, [prediction], DecodingSettings())
    assert read_strictly(predictions) == {"\udc00": "a \ud83d b"}
    assert {answer["text"] for answer in read_strictly(n_best)["\udc00"]} == texts


def test_a_folder_that_cannot_be_is_named(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match="file"):
        write_predictions(tmp_path / "file", [], DecodingSettings())


# --- score and settings --------------------------------------------------------------------------


def said(question_id, text, span="", odds=None):
    return Prediction(question_id, text, (), span or text, odds)


def test_score_by_the_rules_of_v1():
    examples = [
        Example("1", "q", "The Osk", ("The",), (0,)),
        Example("2", "q", "red blue", ("red", "blue"), (0, 4)),
    ]
    figures = score(examples, [said("2", "red blue"), said("1", "the")], DecodingSettings())
    # v1.1: an answer that normalises to nothing is exact and yet has F1 0; 2/3 for "red blue".
    assert figures == {"exact_match": 50.0, "f1": pytest.approx(100 / 3), "total": 2}


def test_score_by_the_rules_of_v2():
    examples = [
        Example("1", "q", "The Osk", ("Osk",), (4,)),
        Example("2", "q", "red blue", ()),
        Example("3", "q", "red blue", ()),
        Example("4", "q", "red blue", None),
    ]
    predictions = [said("1", "", "Osk", 1.5), said("2", "red", "red", 2.5), said("3", "", "red", 3)]
    predictions.append(said("4", "red", "red", 0.5))
    figures = score(examples, predictions, DecodingSettings(version_2_with_negative=True))
    assert figures["exact"] == figures["f1"] == pytest.approx(100 / 3)
    assert (figures["HasAns_total"], figures["NoAns_total"]) == (1, 2)
    assert (figures["total"], figures["without_gold"]) == (3, 1)
    # All would be right with "Osk" said and the others not: a threshold from 1.5 on.
    assert (figures["best_exact"], figures["best_exact_thresh"]) == (100, 1.5)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"n_best_size": 0}, "--n_best_size 0"),
        ({"max_answer_length": 0}, "--max_answer_length 0"),
        ({"max_answer_length": -3}, "--max_answer_length -3"),
        ({"decoder": "beam"}, "--decoder beam"),
    ],
)
def test_settings_that_leave_no_answer_are_refused(wrong, message):
    with pytest.raises(UserError, match=message):
        DecodingSettings(**wrong)
