"""The metrics against torchmetrics, a plain implementation of the published rules, and by hand."""

import math
import re

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torchmetrics.functional.text import squad as torchmetrics_squad

from bertqa.answering.metrics import (
    ThresholdPoint,
    evaluate_v1,
    evaluate_v2,
    exact_match,
    f1,
    f1_v2,
    normalize_answer,
    threshold_curve,
)
from bertqa.errors import UserError

# --- texts that distinguish interpretations of the rules ----------------------------------------

ATOMS = (
    *("a", "A", "an", "AN", "the", "The", "tHe", "theory", "ana", "cat", "Cat", "dog", "dog"),
    *("1", "١", "２", "½", "²", "ß", "İ", "ſ", "\u212a", "é", "e\u0301", "\u0301", "猫"),
    *(" ", " ", "\t", "\n", "\u00a0", "\u2003", "\u200b", "\x1c"),
    *("—", "“", "”", "¿", "’", "…", "·", ".", ",", "'", "-", "_", "$", "^", "~", "\\", "]"),
)
NOTHING = ("", " ", "the", "A an THE", "...", "\u00a0\t", "a.n", "-the_")

glued = st.lists(st.sampled_from(ATOMS), max_size=7).map("".join)
spaced = st.lists(st.sampled_from(("cat", "dog", "The", "an", "1")), max_size=5).map(" ".join)
texts = st.one_of(glued, spaced, st.sampled_from(NOTHING), st.text(max_size=8))
questions = st.lists(
    st.tuples(st.none() | texts, st.lists(texts, max_size=3)), min_size=1, max_size=5
)
# Few distinct values, so that ties are common; and any finite float.
null_scores = st.one_of(
    st.sampled_from((-1.5, -0.0, 0.0, 0.25, 2.0)), st.floats(allow_nan=False, allow_infinity=False)
)


def split(rows):
    """Split rows of (prediction or None, golds) into predictions and references."""
    predictions = {f"q{i}": text for i, (text, _) in enumerate(rows) if text is not None}
    return predictions, {f"q{i}": golds for i, (_, golds) in enumerate(rows)}


# --- plain implementation of the published rules -------------------------------------------------


def plain_words(text):
    """Normalize by code points instead of a table, and runs instead of word boundaries."""
    ascii_punctuation = {*range(33, 48), *range(58, 65), *range(91, 97), *range(123, 127)}
    kept = "".join(c for c in text.lower() if ord(c) not in ascii_punctuation)
    runs = re.findall(r"\w+|\W+", kept)
    kept = "".join(" " if run in ("a", "an", "the") else run for run in runs)
    return [word for word in re.split(r"\s+", kept) if word]


def plain_exact(prediction, gold):
    return 1.0 if plain_words(prediction) == plain_words(gold) else 0.0


def plain_f1(prediction, gold, both_empty):
    """Compute F1 by removing words one by one; `both_empty` is the score of two empty texts."""
    words, left = plain_words(prediction), plain_words(gold)
    if not words and not left:
        return both_empty
    if not words or not left:
        return 0.0
    n_gold, hits = len(left), 0
    for word in words:
        if word in left:
            left.remove(word)
            hits += 1
    if hits == 0:
        return 0.0
    precision, recall = hits / len(words), hits / n_gold
    return 2 * precision * recall / (precision + recall)


def plain_v1(rows):
    exact = overlap = 0.0
    for prediction, golds in rows:
        if prediction is not None:
            exact += max(plain_exact(prediction, gold) for gold in golds)
            overlap += max(plain_f1(prediction, gold, both_empty=0.0) for gold in golds)
    n = len(rows)
    return {"exact_match": 100 * exact / n, "f1": 100 * overlap / n, "total": n}


def plain_v2(rows):
    kinds = {"": [], "HasAns_": [], "NoAns_": []}
    for prediction, golds in rows:
        golds = [gold for gold in golds if plain_words(gold)]
        kind = "HasAns_" if golds else "NoAns_"
        pair = (0.0, 0.0)
        if prediction is not None:
            pair = (
                max(plain_exact(prediction, gold) for gold in golds or [""]),
                max(plain_f1(prediction, gold, both_empty=1.0) for gold in golds or [""]),
            )
        kinds[""].append(pair)
        kinds[kind].append(pair)
    figures = {}
    for prefix, pairs in kinds.items():
        if pairs:
            figures[prefix + "exact"] = 100 * sum(pair[0] for pair in pairs) / len(pairs)
            figures[prefix + "f1"] = 100 * sum(pair[1] for pair in pairs) / len(pairs)
            figures[prefix + "total"] = len(pairs)
    return figures


# --- one text, one pair of texts --------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("", ""),
        ("The  Cat,\tthe\u00a0DOG! ", "cat dog"),
        ("An a THE", ""),
        ("theory anna a1", "theory anna a1"),
        ("...'\"\\_^~$", ""),
        ("Pan-Am", "panam"),
        ("a.n", ""),  # punctuation is removed before articles
        ("t-h-e U.S.A.", "usa"),
        ("“the” ¿cat? —", "“ ” ¿cat —"),
        ("off—the—record", "off— —record"),  # the article is replaced by a space
        ("a\u0301", "\u0301"),  # a combining accent is not a word character: "a" is a word
        ("á", "á"),
        ("Straße", "straße"),  # lower case, not case folding
        ("the_end", "theend"),
        ("1,000 ١٢ ２", "1000 ١٢ ２"),
        ("a１", "a１"),
        ("a\u200bcat", "\u200bcat"),  # a zero-width space ends a word, but is not whitespace
        ("x\x1cy\u2003z", "x y z"),
    ],
)
def test_normalize_answer_by_hand(text, normal):
    assert normalize_answer(text) == normal


@given(texts)
@settings(max_examples=600)
def test_normalize_answer_follows_the_published_rule(text):
    assert normalize_answer(text) == " ".join(plain_words(text))


@pytest.mark.parametrize(
    ("prediction", "gold", "exact", "v1", "v2"),
    [
        ("The Cat!", "cat", 1.0, 1.0, 1.0),
        ("the cat sat", "cat mat", 0.0, 0.5, 0.5),  # P 1/2, R 1/2
        ("cat sat on mat", "cat", 0.0, 0.4, 0.4),  # P 1/4, R 1
        ("cat cat cat", "cat cat dog dog", 0.0, 4 / 7, 4 / 7),  # a bag: two hits, not three
        ("sat cat", "cat sat", 0.0, 1.0, 1.0),  # F1 ignores the order
        ("dog", "cat", 0.0, 0.0, 0.0),
        ("The", "The", 1.0, 0.0, 1.0),
        ("", "...", 1.0, 0.0, 1.0),
        ("", "cat", 0.0, 0.0, 0.0),
        ("cat", "an", 0.0, 0.0, 0.0),
        ("“cat”", "cat", 0.0, 0.0, 0.0),
    ],
)
def test_one_pair_by_hand(prediction, gold, exact, v1, v2):
    assert exact_match(prediction, gold) == exact
    assert f1(prediction, gold) == pytest.approx(v1, abs=1e-15)
    assert f1_v2(prediction, gold) == pytest.approx(v2, abs=1e-15)


@given(texts, texts)
@settings(max_examples=400)
def test_one_pair_equals_the_published_rule_and_torchmetrics(prediction, gold):
    assert exact_match(prediction, gold) == plain_exact(prediction, gold)
    assert f1(prediction, gold) == pytest.approx(plain_f1(prediction, gold, 0.0), abs=1e-12)
    assert f1_v2(prediction, gold) == pytest.approx(plain_f1(prediction, gold, 1.0), abs=1e-12)
    theirs = torchmetrics_figures([(prediction, [gold])])
    assert 100 * f1_v2(prediction, gold) == pytest.approx(theirs["f1"], abs=1e-3)


# --- datasets: v1.1 ------------------------------------------------------------------------------


def torchmetrics_figures(rows):
    predictions, references = split(rows)
    theirs = torchmetrics_squad(
        [{"id": qid, "prediction_text": text} for qid, text in predictions.items()],
        [
            {"id": qid, "answers": {"text": golds, "answer_start": [0] * len(golds)}}
            for qid, golds in references.items()
        ],
    )
    return {name: value.item() for name, value in theirs.items()}


def with_gold(rows):
    return [(prediction, golds or ["cat"]) for prediction, golds in rows]


@pytest.mark.filterwarnings("ignore:Unanswered question")
@given(questions.map(with_gold))
@settings(max_examples=150)
def test_evaluate_v1_equals_the_published_rule_and_torchmetrics(rows):
    ours, theirs = evaluate_v1(*split(rows)), torchmetrics_figures(rows)
    assert ours == pytest.approx(plain_v1(rows), abs=1e-9)
    assert ours["exact_match"] == pytest.approx(theirs["exact_match"], abs=1e-3)
    # torchmetrics uses v2.0's F1 of two empty texts, which adds a known amount.
    extra = sum(
        prediction is not None
        and not plain_words(prediction)
        and any(not plain_words(gold) for gold in golds)
        for prediction, golds in rows
    )
    assert ours["f1"] + 100 * extra / len(rows) == pytest.approx(theirs["f1"], abs=1e-3)


def test_evaluate_v1_by_hand():
    references = {
        "one": ["dog", "The cat"],  # maximum over the gold answers: 1, 1
        "two": ["cat sat", "mat"],  # 0, 2/3
        "three": ["The"],  # 1, 0
        "four": ["cat"],  # no prediction: 0, 0
    }
    predictions = {"one": "cat", "two": "cat", "three": "the", "stranger": "cat"}
    figures = evaluate_v1(predictions, references)
    assert figures == pytest.approx({"exact_match": 50.0, "f1": 100 * (5 / 3) / 4, "total": 4.0})
    assert all(type(value) is float for value in figures.values())


# --- datasets: v2.0 ------------------------------------------------------------------------------


@given(questions)
@settings(max_examples=300)
def test_evaluate_v2_equals_the_published_rule(rows):
    assert evaluate_v2(*split(rows)) == pytest.approx(plain_v2(rows), abs=1e-9)


def test_evaluate_v2_by_hand():
    references = {
        "one": ["cat sat", "the"],  # "the" is dropped: 0, 2/3
        "two": [],  # answered "": 1, 1
        "three": [],  # answered: 0, 0
        "four": ["The", "..."],  # unanswerable, answered with an article: 1, 1
        "five": ["the", "dog"],  # answered "", but the empty gold answer is dropped: 0, 0
        "six": [],  # no prediction, which is not the prediction "": 0, 0
    }
    predictions = {"one": "cat", "two": "", "three": "cat", "four": "an", "five": ""}
    figures = evaluate_v2(predictions, references)
    assert figures == pytest.approx(
        {
            "exact": 100 * 2 / 6,
            "f1": 100 * (8 / 3) / 6,
            "total": 6.0,
            "HasAns_exact": 0.0,
            "HasAns_f1": 100 / 3,
            "HasAns_total": 2.0,
            "NoAns_exact": 50.0,
            "NoAns_f1": 50.0,
            "NoAns_total": 4.0,
        }
    )
    assert all(type(value) is float for value in figures.values())


# --- the threshold ----------------------------------------------------------------------------


def by_threshold(nulls, best, threshold):
    """Return the predictions at a threshold, one question at a time."""
    return {
        qid: "" if null > threshold else best[qid]
        for qid, null in nulls.items()
        if null > threshold or qid in best
    }


def figures_at(references, nulls, best, threshold):
    figures = evaluate_v2(by_threshold(nulls, best, threshold), references)
    return figures["exact"], figures["f1"]


# Half of the texts are from a short list, so that predictions are often correct.
likely = st.one_of(st.sampled_from(("cat", "The cat", "cat dog", "dog dog cat")), texts)
scored_questions = st.lists(
    st.tuples(st.none() | likely, st.lists(likely, max_size=2), null_scores), min_size=1, max_size=7
)


def split_scored(rows):
    best, references = split([row[:2] for row in rows])
    return references, {f"q{i}": null for i, (_, _, null) in enumerate(rows)}, best


@given(scored_questions)
@example([("cat", ["cat"], 0.0), ("cat", [], 0.0), ("cat", [], 1.0)])
@example([("cat", [], -1e300)])
@settings(max_examples=300)
def test_every_point_of_the_curve_equals_evaluate_v2_of_its_predictions(rows):
    references, nulls, best = split_scored(rows)
    curve = threshold_curve(references, nulls, best)
    assert [point.threshold for point in curve[1:]] == sorted(set(nulls.values()))
    assert curve[0].threshold < min(nulls.values())
    for point in curve:
        expected = figures_at(references, nulls, best, point.threshold)
        assert (point.exact, point.f1) == expected  # bit for bit


@given(scored_questions, st.lists(null_scores, max_size=4))
@example([("cat", ["cat"], 0.5), ("cat", [], 0.5)], [])  # a tie; separated, it would give 100
@settings(max_examples=300)
def test_the_best_threshold_equals_brute_force(rows, others):
    references, nulls, best = split_scored(rows)
    figures = evaluate_v2(best, references, nulls, best)
    candidates = sorted({-math.inf, *nulls.values()})
    tried = [figures_at(references, nulls, best, threshold) for threshold in candidates]
    elsewhere = [figures_at(references, nulls, best, threshold) for threshold in others]
    for i, name in enumerate(("exact", "f1")):
        top = max(pair[i] for pair in tried)
        assert figures[f"best_{name}"] == top
        assert all(pair[i] <= top for pair in elsewhere)
        threshold = figures[f"best_{name}_thresh"]
        assert figures_at(references, nulls, best, threshold)[i] == top
        # The lowest that reaches it. All thresholds below the scores are equivalent.
        lowest = candidates[[pair[i] for pair in tried].index(top)]
        assert threshold == lowest or (lowest == -math.inf and threshold < candidates[1])


def test_threshold_curve_by_hand():
    references = {"one": ["cat"], "two": [], "three": ["cat sat"], "four": []}
    nulls = {"one": -3, "two": 1.5, "three": -1.0, "four": 4.0}
    best = {"one": "cat", "two": "dog", "three": "cat", "four": "the"}
    curve = threshold_curve(references, nulls, best)
    expected = [
        (-4.0, 50.0, 50.0),  # all "": two and four
        (-3.0, 75.0, 75.0),  # one is answered
        (-1.0, 75.0, 100 * (11 / 3) / 4),  # three is, partly correct
        (1.5, 50.0, 100 * (8 / 3) / 4),  # two is, wrongly
        (4.0, 50.0, 100 * (8 / 3) / 4),  # four is, with a text that normalizes to ""
    ]
    assert [tuple(point) for point in curve] == [pytest.approx(row) for row in expected]
    assert all(type(value) is float for point in curve for value in point)
    assert isinstance(curve[0], ThresholdPoint)
    # The best metrics do not depend on the predictions.
    figures = evaluate_v2({}, references, nulls, best)
    assert figures["exact"] == 0.0
    assert (figures["best_exact"], figures["best_exact_thresh"]) == (75.0, -3.0)
    assert (figures["best_f1"], figures["best_f1_thresh"]) == (curve[2].f1, -1.0)


@given(scored_questions, st.floats(0.01, 0.99))
def test_a_weighted_curve_mixes_the_metrics_of_both_kinds(rows, share):
    """At each threshold: the weighted mean of the HasAns and NoAns metrics."""
    references, nulls, best = split_scored([("cat", ["cat"], 0.0), ("cat", [], 1.0), *rows])
    plain = threshold_curve(references, nulls, best)
    for point, unweighted in zip(
        threshold_curve(references, nulls, best, share), plain, strict=True
    ):
        assert point.threshold == unweighted.threshold
        figures = evaluate_v2(by_threshold(nulls, best, point.threshold), references)
        for name, found in (("exact", point.exact), ("f1", point.f1)):
            mixed = (1 - share) * figures[f"HasAns_{name}"] + share * figures[f"NoAns_{name}"]
            assert found == pytest.approx(mixed)


@pytest.mark.parametrize("golds", [["cat"], []])
def test_questions_of_one_kind_cannot_be_weighted(golds):
    with pytest.raises(UserError, match="both answerable and unanswerable"):
        threshold_curve({"one": golds}, {"one": 1.0}, {"one": "cat"}, 0.5)


def test_the_curve_accumulates_no_rounding_errors():
    """A running sum of thousands of inexact F1 scores would drift in floats."""
    rows = [(f"cat {'dog ' * (i % 11)}", ["cat"], float(i % 997)) for i in range(3000)]
    references, nulls, best = split_scored(rows)
    curve = threshold_curve(references, nulls, best)
    assert curve[-1].f1 == evaluate_v2(best, references)["f1"]
    middle = curve[500]
    assert middle.f1 == figures_at(references, nulls, best, middle.threshold)[1]


@pytest.mark.parametrize(
    ("nulls", "best", "words"),
    [
        ({"one": 1.0, "two": 1.0}, None, "null_scores and best_non_null"),
        (None, {"one": "cat"}, "null_scores and best_non_null"),
        ({"one": 1.0}, {"one": "cat"}, "'two': must have a null score"),
        *(
            ({"one": 1.0, "two": bad}, {"one": "cat"}, r"'two': its null score must be finite, got")
            for bad in (math.nan, math.inf, -math.inf)
        ),
    ],
)
def test_evaluate_v2_rejects_invalid_input(nulls, best, words):
    with pytest.raises(UserError, match=words):
        evaluate_v2({"one": "cat"}, {"one": ["cat"], "two": []}, nulls, best)


def test_empty_references_are_rejected():
    for evaluate in (evaluate_v1, evaluate_v2):
        with pytest.raises(UserError, match="references must contain"):
            evaluate({"one": "cat"}, {})
    with pytest.raises(UserError, match="'two': must have a gold answer"):
        evaluate_v1({"one": "cat"}, {"one": ["cat"], "two": []})
