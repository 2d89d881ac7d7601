"""Windows equal transformers', token for token; labels equal run_qa's rule where that is right.

Where the rule is wrong, its result is asserted as well, to document the difference.
"""

import dataclasses
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from bertqa.data.graphemes import snap_to_graphemes
from bertqa.data.labels import (
    CAUSES,
    Outcome,
    label_report,
    label_rule,
    label_text,
    make_labelled_windows,
)
from bertqa.data.readers import read_examples
from bertqa.data.squad import Example
from bertqa.data.tokenization import BertTokenizer
from bertqa.errors import UserError
from bertqa.settings import WindowSettings
from tests.corpus import PAIRS
from tests.helpers import STORIES, STORIES_V2, write_tokenizer


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """Our tokenizer and theirs, from the same files."""
    folder = tmp_path_factory.mktemp("both")
    return write_tokenizer(folder), AutoTokenizer.from_pretrained(folder)


@pytest.fixture(scope="module")
def ours(both):
    return both[0]


@pytest.fixture(scope="module")
def stories():
    return read_examples(STORIES)


def their_windows(tokenizer, examples, sizes):
    """Cut windows with transformers' tokenizer."""
    return tokenizer(
        [e.question for e in examples], [e.context for e in examples],
        truncation="only_second", max_length=sizes.max_seq_length, stride=sizes.doc_stride,
        return_overflowing_tokens=True, return_offsets_mapping=True, split_special_tokens=True,
    )  # fmt: skip


def assert_equal_windows(windows, theirs):
    assert len(windows) == len(theirs["input_ids"])
    assert windows.example.tolist() == theirs["overflow_to_sample_mapping"]
    for i in range(len(windows)):
        window = windows[i]
        assert window.example == theirs["overflow_to_sample_mapping"][i]
        assert window.input_ids == theirs["input_ids"][i]
        assert window.token_type_ids == theirs["token_type_ids"][i]
        in_context = [kind == 1 for kind in theirs.sequence_ids(i)]
        offsets = zip(theirs["offset_mapping"][i], in_context, strict=True)
        assert window.offsets == [span if inside else None for span, inside in offsets]
    assert windows.lengths.tolist() == list(map(len, theirs["input_ids"]))


def asked(*pairs):
    return [Example(str(i), question, context) for i, (question, context) in enumerate(pairs)]


def fitting(tokenizer, examples, sizes):
    """Return the examples whose windows exceed the overlap; for others their tokenizer panics."""
    lengths = tokenizer.encode([e.question for e in examples]).lengths.tolist()
    return [e for e, n in zip(examples, lengths, strict=True) if n <= sizes.longest_question]


# --- windows -------------------------------------------------------------------------------------


@pytest.mark.parametrize("sizes", [(384, 128), (512, 0), (128, 64), (64, 16), (97, 1)], ids=str)
def test_pairs_in_many_scripts(both, sizes):
    sizes = WindowSettings(*sizes)
    examples = fitting(both[0], asked(*PAIRS), sizes)
    assert len(examples) > 20
    windows = make_labelled_windows(examples, both[0], sizes)
    assert len(windows) > 2 * len(examples)
    assert_equal_windows(windows, their_windows(both[1], examples, sizes))


@pytest.mark.parametrize("sizes", [(384, 128), (128, 32), (96, 0)], ids=str)
def test_stories(both, stories, sizes):
    sizes = WindowSettings(*sizes)
    examples = fitting(both[0], stories, sizes)
    windows = make_labelled_windows(examples, both[0], sizes)
    assert len(windows) > len(examples) > 100
    assert_equal_windows(windows, their_windows(both[1], examples, sizes))


@pytest.mark.parametrize("doc_stride", range(5))
def test_tiny_windows(both, doc_stride):
    contexts = [" ".join("the river and a town in of to was".split()[:n]) for n in range(10)]
    questions = ["", "who", "who did", "[SEP]"]
    for longest in range(doc_stride + 5, doc_stride + 13):
        sizes = WindowSettings(longest, doc_stride)
        pairs = asked(*((question, context) for question in questions for context in contexts))
        examples = fitting(both[0], pairs, sizes)
        windows = make_labelled_windows(examples, both[0], sizes)
        assert_equal_windows(windows, their_windows(both[1], examples, sizes))
        assert windows.lengths.max() <= longest


def plain_windows(length, capacity, doc_stride):
    """Slide a window step by step; return first token and token count of each window."""
    windows = [(0, min(capacity, length))]
    while sum(windows[-1]) < length:
        first = windows[-1][0] + capacity - doc_stride
        windows.append((first, min(capacity, length - first)))
    return windows


@settings(derandomize=True, max_examples=100)
@given(
    shapes=st.lists(st.tuples(st.integers(0, 9), st.integers(0, 60)), min_size=1, max_size=5),
    doc_stride=st.integers(0, 12),
    more=st.integers(1, 20),
)
def test_bounds_of_windows(ours, shapes, doc_stride, more):
    sizes = WindowSettings(3 + max(n for n, _ in shapes) + doc_stride + 1 + more, doc_stride)
    windows = make_labelled_windows(
        asked(*(("who " * n, "the " * m) for n, m in shapes)), ours, sizes
    )
    expected = [
        (i, first, count)
        for i, (question, context) in enumerate(shapes)
        for first, count in plain_windows(
            context, sizes.max_seq_length - 3 - question, sizes.doc_stride
        )
    ]
    found = (windows.example, windows.first, windows.count)
    assert list(zip(*(x.tolist() for x in found), strict=True)) == expected
    assert windows.question_lengths.tolist() == [shapes[i][0] for i, _, _ in expected]
    assert windows.lengths.tolist() == [shapes[i][0] + count + 3 for i, _, count in expected]
    assert windows.context_starts.tolist() == [shapes[i][0] + 2 for i, _, _ in expected]
    for i in range(len(shapes)):
        own = windows.of_examples(i, i + 1)
        assert windows.example[own].tolist() == [i] * len(own)
        assert len(own) == sum(example == i for example, _, _ in expected)
    assert windows.of_examples(0, len(shapes)) == range(len(windows))


def test_each_text_is_tokenized_once(both, stories, monkeypatch):
    seen = []
    monkeypatch.setattr(both[0], "_kept", {})  # other tests have encoded these contexts
    encode = BertTokenizer.encode
    monkeypatch.setattr(BertTokenizer, "encode", lambda self, t: seen.extend(t) or encode(self, t))
    windows = make_labelled_windows(stories, both[0], WindowSettings())
    contexts = list(dict.fromkeys(e.context for e in stories))
    assert len(contexts) < len(stories) / 4
    assert Counter(seen) == Counter(contexts) + Counter(e.question for e in stories)
    assert len(windows.contexts.lengths) == len(contexts)
    assert [contexts[i] for i in windows.context_of.tolist()] == [e.context for e in stories]


# --- questions that are too long -----------------------------------------------------------------


def test_a_question_that_is_too_long(ours):
    sizes = WindowSettings(20, 6)
    assert sizes.longest_question == 10
    make_labelled_windows(asked(("who " * 10, "the river " * 20)), ours, sizes)
    river = "the river " * 5
    examples = asked(("who", river), ("who " * 11, river), ("who " * 12, river))
    with pytest.raises(UserError) as caught:
        make_labelled_windows(examples, ours, sizes)
    message = str(caught.value)
    assert "\n" not in message
    for word in ("'2'", "at most 10 tokens", "got 12", "--max_seq_length 20", "--doc_stride 6"):
        assert word in message
    assert "--max_query_length" in message


@pytest.mark.parametrize("doc_stride", [0, 6, 15])
def test_a_question_may_fill_the_only_window_of_a_short_context(both, doc_stride):
    """A single window has no overlap: as in transformers, for each length."""
    sizes = WindowSettings(20, doc_stride)
    words = "the river in a town was".split() * 5
    for question in range(1, 20):
        for context in range(12):
            case = asked(("who " * question, " ".join(words[:context])))
            if question <= sizes.longest_question or question + context <= 17:
                windows = make_labelled_windows(case, both[0], sizes)
                assert_equal_windows(windows, their_windows(both[1], case, sizes))
            else:
                with pytest.raises(UserError, match=f"got {question}"):
                    make_labelled_windows(case, both[0], sizes)


@pytest.mark.parametrize(
    ("context", "limit", "kept"), [(2, 20, 15), (3, 20, 10), (3, 14, 14), (4, 14, 10), (4, 9, 9)]
)
def test_max_query_length_is_applied_first(ours, context, limit, kept):
    """Then the question is kept if one window suffices, or truncated to fit beside an overlap."""
    words = " ".join("the river in a town".split()[:context])
    case = one(words, "river", question="who " * 15)
    windows = make_labelled_windows([case], ours, WindowSettings(20, 6, limit))
    assert windows.questions.lengths.tolist() == [kept]
    assert windows.cut_questions.tolist() == [15 - kept]
    assert [label_text(windows, i, words) for i in range(len(windows))] == ["river"]


@pytest.mark.parametrize(
    ("max_query_length", "kept"), [(1, (1, 1, 0, 1)), (4, (1, 4, 0, 4)), (99, (1, 10, 0, 7))]
)
def test_questions_are_truncated(both, max_query_length, kept):
    questions = ["who", "who did what when where how many ship is to in of", "", "a b c d e f g"]
    lengths = [1, 12, 0, 7]
    context = "the river in the town " * 8
    examples = asked(*((question, context) for question in questions))
    sizes = WindowSettings(20, 6, max_query_length)
    windows = make_labelled_windows(examples, both[0], sizes)
    assert windows.questions.lengths.tolist() == list(kept)
    cut = [length - k for length, k in zip(lengths, kept, strict=True)]
    assert windows.cut_questions.tolist() == cut
    report = label_report(examples, windows)
    assert report.cut_questions == [str(i) for i in range(4) if cut[i]]
    # The beginning of the question is kept, and windows are as for that shorter question.
    words = [" ".join(question.split()[:n]) for question, n in zip(questions, kept, strict=True)]
    shorter = asked(*((question, context) for question in words))
    assert_equal_windows(windows, their_windows(both[1], shorter, sizes))


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ((384, -1), ("--doc_stride", "got -1")),
        ((384, 128, 0), ("--max_query_length", "got 0")),
        ((384, 128, -3), ("--max_query_length", "got -3")),
        ((132, 128), ("--max_seq_length", "--doc_stride", "at least 5", "got 132 and 128")),
        ((128, 384), ("--max_seq_length", "--doc_stride", "got 128 and 384")),
        ((4, 0), ("--max_seq_length", "got 4 and 0")),
        ((-1, 0), ("--max_seq_length", "got -1 and 0")),
    ],
)
def test_invalid_settings(values, words):
    with pytest.raises(UserError) as caught:
        WindowSettings(*values)
    for word in words:
        assert word in str(caught.value)


# --- labels: run_qa's rule -----------------------------------------------------------------------


def run_qa_label(offsets, sequence_ids, start_char, end_char):
    """Label one window by the rule of run_qa.py and many tutorials, including its errors."""
    first = 0
    while sequence_ids[first] != 1:
        first += 1
    last = len(sequence_ids) - 1
    while sequence_ids[last] != 1:
        last -= 1
    if not (offsets[first][0] <= start_char and offsets[last][1] >= end_char):
        return 0, 0
    while first < len(offsets) and offsets[first][0] <= start_char:
        first += 1
    while offsets[last][1] >= end_char:
        last -= 1
    return first - 1, last + 1


def their_labels(tokenizer, examples, sizes):
    """Label each window by the rule with the first gold answer that it contains."""
    theirs = their_windows(tokenizer, examples, sizes)
    labels = []
    for i, row in enumerate(theirs["overflow_to_sample_mapping"]):
        window = theirs["offset_mapping"][i], theirs.sequence_ids(i)
        golds = zip(examples[row].answer_starts, examples[row].answers, strict=True)
        found = [run_qa_label(*window, start, start + len(text)) for start, text in golds]
        labels.append(next((label for label in found if label != (0, 0)), (0, 0)))
    return labels


def our_labels(windows):
    return list(zip(windows.start_position.tolist(), windows.end_position.tolist(), strict=True))


@pytest.mark.parametrize("sizes", [(384, 128), (160, 40), (128, 0)], ids=str)
def test_labels_of_stories(both, stories, sizes):
    sizes = WindowSettings(*sizes)
    examples = fitting(both[0], stories, sizes)
    windows = make_labelled_windows(examples, both[0], sizes)
    ours, theirs = our_labels(windows), their_labels(both[1], examples, sizes)
    labelled = sum(start > 0 for start, _ in ours)
    assert len(windows) > labelled > 100
    for i, (our, their) in enumerate(zip(ours, theirs, strict=True)):
        if their[0] > their[1]:  # an answer of one token, the window's last
            assert our[0] == our[1] == their[1] == windows.lengths[i] - 2
        else:
            assert our == their
        example = examples[int(windows.example[i])]
        assert label_text(windows, i, example.context) in (*example.answers, "")


def test_every_story_is_labelled_exactly(ours, stories):
    windows = make_labelled_windows(stories, ours, WindowSettings())
    report = label_report(stories, windows)
    assert report.counts == {Outcome.EXACT: 174}
    assert report.listed == {}
    assert report.cut_questions == []
    assert str(report) == "174 examples, 174 answers labelled exactly"


def test_stories_without_answers(ours):
    examples = read_examples(STORIES_V2)
    windows = make_labelled_windows(examples, ours, WindowSettings())
    impossible = torch.tensor([e.is_impossible for e in examples])
    assert 5 < impossible.sum() < 35
    expected = torch.where(impossible, Outcome.UNANSWERABLE, Outcome.EXACT)
    assert torch.equal(windows.outcome.long(), expected)
    labelled = windows.start_position > 0
    assert torch.equal(labelled, windows.end_position > 0)
    assert set(windows.example[labelled].tolist()) == set(
        (~impossible).nonzero().flatten().tolist()
    )


def one(context, answer, start=None, question="who"):
    """Make an example; by default the answer is at its first occurrence."""
    start = context.index(answer) if start is None else start
    assert context[start : start + len(answer)] == answer
    return Example("x", question, context, (answer,), (start,))


def labelled(tokenizer, one_example, sizes=None):
    """Return the labels of an example's windows, their texts, and the outcome."""
    windows = make_labelled_windows([one_example], tokenizer, sizes or WindowSettings())
    texts = [label_text(windows, i, one_example.context) for i in range(len(windows))]
    return our_labels(windows), texts, Outcome(int(windows.outcome[0]))


@pytest.mark.parametrize(
    ("case", "sizes", "labels", "texts", "outcome", "theirs"),
    [
        # [CLS] who [SEP] the river in a [SEP] | [CLS] who [SEP] town was in the [SEP]
        # The rule's start is [SEP], or the last [PAD] if there is padding: after its end.
        (
            one("the river in a town was in the", "a"), WindowSettings(8, 0),
            [(6, 6), (0, 0)], ["a", ""], Outcome.EXACT, [(7, 6), (0, 0)],
        ),
        (
            one("the river in a town", "town"), WindowSettings(),
            [(7, 7)], ["town"], Outcome.EXACT, [(8, 7)],
        ),
        (
            one("the river in a town was", " town"), WindowSettings(),
            [(7, 7)], ["town"], Outcome.BLANKS, [(6, 7)],  # "a town"
        ),
        (
            one("the ship in a town \n", "a town \n"), WindowSettings(),
            [(6, 7)], ["a town"], Outcome.BLANKS, [(0, 0)],  # "no answer"
        ),
        (
            one("a to\u0301 town", "to\u0301"), WindowSettings(),
            [(4, 4)], ["to\u0301"], Outcome.EXACT, [(4, 5)],  # and the next word
        ),
    ],
    ids=["last of a window", "last of all", "leading blank", "trailing blank", "accent"],
)  # fmt: skip
def test_where_run_qas_rule_is_wrong(both, case, sizes, labels, texts, outcome, theirs):
    assert labelled(both[0], case, sizes) == (labels, texts, outcome)
    assert their_labels(both[1], [case], sizes) == theirs


def test_a_context_without_tokens(both):
    case = one("\u200b \u00ad", "\u200b")
    assert labelled(both[0], case) == ([(0, 0)], [""], Outcome.NO_TOKENS)
    with pytest.raises(IndexError):
        their_labels(both[1], [case], WindowSettings())


@pytest.mark.parametrize("answer", ["iv", "riv", "ver", "r", "e"])
def test_an_answer_inside_a_token(both, answer):
    case = one("in the big river town", answer, start=11 + "river".index(answer))
    labels, texts, outcome = labelled(both[0], case)
    assert texts == ["river"]
    assert outcome == Outcome.INSIDE_TOKEN
    assert labels == their_labels(both[1], [case], WindowSettings())


# --- labels: every outcome -----------------------------------------------------------------------

COOK = "\U0001f469\u200d\U0001f373"


@pytest.mark.parametrize(
    ("context", "answer", "label", "outcome"),
    [
        ("the river", "the river", "the river", Outcome.EXACT),
        ("the ships", "ships", "ships", Outcome.EXACT),
        ("E\u0301te\u0301 ", "E\u0301te\u0301", "E\u0301te\u0301", Outcome.EXACT),
        (f"a {COOK} b", COOK, COOK, Outcome.EXACT),
        ("(the) river", "the", "the", Outcome.EXACT),
        ("a ri\u00adver", "ri\u00adver", "ri\u00adver", Outcome.EXACT),
        ("the\x00river", "the", "the", Outcome.EXACT),
        ("老钟表匠", "钟", "钟", Outcome.EXACT),
        ("the river ", "the ", "the", Outcome.BLANKS),
        ("a\u00a0\u3000river\t\nin", "\u3000river\t\n", "river", Outcome.BLANKS),
        ("un cafe\u0301", "cafe", "cafe\u0301", Outcome.GRAPHEME),
        ("un cafe\u0301", "caf", "caf", Outcome.EXACT),
        (f"a {COOK} b", COOK[0], COOK, Outcome.GRAPHEME),
        (f"a {COOK} b", COOK[2:], COOK, Outcome.GRAPHEME),
        ("the\u200b river", "the\u200b", "the", Outcome.INVISIBLE),
        ("a \u00adriver \u00ad", "\u00adriver \u00ad", "river", Outcome.INVISIBLE),
        ("the\x00 river", "the\x00", "the", Outcome.INVISIBLE),
        ("the ships", "hip", "ship", Outcome.INSIDE_TOKEN),
        ("the ships", "he sh", "the ship", Outcome.INSIDE_TOKEN),
        ("the \u200b river", "\u200b", "", Outcome.NO_TOKENS),
        ("cafe\u0301 in", "\u0301", "", Outcome.NO_TOKENS),
        ("the  river", "  ", "", Outcome.NO_TOKENS),
        ("the river", "", "", Outcome.NO_TOKENS),
    ],
)
def test_outcomes(ours, context, answer, label, outcome):
    _, texts, found = labelled(ours, one(context, answer))
    assert (texts, found) == ([label], outcome)


@pytest.mark.parametrize(
    ("answer", "sizes", "labels", "texts", "outcome"),
    [
        ("in a town was", (8, 0), [(0, 0)] * 3, [""] * 3, Outcome.CUT),
        ("in a town was", (9, 3), [(0, 0), (3, 6), (0, 0)], ["", "in a town was", ""],
         Outcome.EXACT),
        ("a town", (9, 3), [(6, 7), (4, 5), (0, 0)], ["a town", "a town", ""], Outcome.EXACT),
    ],
    ids=["in none", "in one", "in two"],
)  # fmt: skip
def test_windows_that_contain_an_answer(ours, answer, sizes, labels, texts, outcome):
    case = one("the river in a town was in the town", answer)
    assert labelled(ours, case, WindowSettings(*sizes)) == (labels, texts, outcome)


@pytest.mark.parametrize(
    ("golds", "texts", "used", "outcome"),
    [
        # the river in a town | a town was in the
        ([("was", 20), ("river", 4)], ["river", "was"], [1, 0], Outcome.EXACT),
        ([("a town", 13), ("town", 15), ("river", 4)], ["a town", "a town"], [0, 0], Outcome.EXACT),
        ([("in a town was", 10), ("in a town", 10)], ["in a town", ""], [1, 0], Outcome.EXACT),
        ([("river in a town was", 4), ("in a town was in", 10)], ["", ""], [0, 0], Outcome.CUT),
        ([("river in a town was", 4), ("iver", 5)], ["river", ""], [1, 0], Outcome.INSIDE_TOKEN),
        ([(" ", 3), ("was ", 20)], ["", "was"], [0, 1], Outcome.BLANKS),
        ([("was", 20), ("was", 20)], ["", "was"], [0, 0], Outcome.EXACT),
        ([("was", 20), ("the", 0), ("the", 27)], ["the", "was"], [1, 0], Outcome.EXACT),
    ],
)
def test_several_golds(ours, golds, texts, used, outcome):
    """A window has the first one it contains; the outcome is that of the first labelled window."""
    answers, starts = zip(*golds, strict=True)
    several = Example("x", "who", "the river in a town was in the", answers, starts)
    other = one("the town", "town")
    windows = make_labelled_windows([other, several, other], ours, WindowSettings(9, 2))
    found = [label_text(windows, w, several.context) for w in range(1, 3)]
    assert (found, windows.outcome[1]) == (texts, outcome)
    assert windows.gold.tolist() == [0, *used, 0]
    expected = "the first that a window holds" if any(used) else "the first"
    assert label_rule(windows) == expected


@pytest.mark.parametrize(
    ("answers", "outcome"),
    [(None, Outcome.UNLABELLED), (("river",), Outcome.UNLABELLED), ((), Outcome.UNANSWERABLE)],
)
def test_examples_without_a_position(ours, answers, outcome):
    case = Example("x", "who", "the river", answers)
    assert labelled(ours, case) == ([(0, 0)], [""], outcome)


def numbered(cases):
    """Return examples with the ids 0, 1, 2, ..."""
    return [dataclasses.replace(case, id=str(i)) for i, case in enumerate(cases)]


def test_a_report_of_every_outcome(ours):
    impossible = Example("", "who", "the river", ())
    unlabelled = Example("", "who", "the river", None)
    examples = numbered(
        [
            *(one("the river", "river"), impossible, unlabelled, impossible),
            *(one("the river ", " river") for _ in range(2)),
            one("un cafe\u0301", "cafe"),
            one("the\u200b", "the\u200b"),
            *(one("the river", "riv") for _ in range(5)),
            one("the \u200b", "\u200b"),
            one("the town " * 9, "the town " * 9),
            one("the town " * 9, "town the town", question="who did what when where how"),
        ]
    )
    windows = make_labelled_windows(examples, ours, WindowSettings(14, 4, max_query_length=5))
    report = label_report(examples, windows)
    counts = dict(zip(Outcome, (2, 2, 1, 2, 1, 1, 5, 1, 1), strict=True))
    assert report.counts == counts
    assert report.listed == {
        Outcome.BLANKS: ["4", "5"],
        Outcome.GRAPHEME: ["6"],
        Outcome.INVISIBLE: ["7"],
        Outcome.INSIDE_TOKEN: ["8", "9", "10", "11", "12"],
        Outcome.NO_TOKENS: ["13"],
        Outcome.CUT: ["14"],
    }
    assert report.cut_questions == ["15"]


# --- labels: any text ----------------------------------------------------------------------------

ATOMS = (
    *("the", "river", "Town", "ships", "a", " ", " ", " ", "\n", "\u00a0", ".", "-", "(", "1"),
    *("e\u0301", "\u0301", "é", "中", "\u200b", "\u00ad", "\x00", COOK, "👍", "\ufe0f", "[SEP]"),
    *("각", "\u1112\u1161\u11ab", "क\u093f", "İ", "\ud800", "##s"),
)
contexts = st.lists(st.sampled_from(ATOMS), max_size=14).map("".join)


@st.composite
def example_lists(draw):
    """Draw questions about a few contexts; their answers are slices of the context, or missing."""
    examples = []
    for context in draw(st.lists(contexts, min_size=1, max_size=3)):
        for _ in range(draw(st.integers(1, 3))):
            golds = []
            for _ in range(draw(st.sampled_from([1, 1, 1, 2, 3]))):
                first = draw(st.integers(0, len(context)))
                golds.append((context[first : draw(st.integers(first, len(context)))], first))
            gold = draw(st.sampled_from(["slice", "slice", "slice", "slice", "none", "empty"]))
            answer = {
                "slice": tuple(zip(*golds, strict=True)),
                "none": (None, ()),
                "empty": ((), ()),
            }[gold]
            question = draw(st.sampled_from(["who", "", "where [SEP] is"]))
            examples.append(Example("", question, context, *answer))
    return numbered(examples)


def check_labels(windows, i, e, offsets):
    """Check an example's labels and outcome against every token of its context."""
    outcome = Outcome(int(windows.outcome[i]))
    rows = windows.of_examples(i, i + 1)
    labels = our_labels(windows)
    texts = [label_text(windows, w, e.context) for w in rows if labels[w] != (0, 0)]
    if not e.answers:
        assert outcome == (Outcome.UNLABELLED if e.answers is None else Outcome.UNANSWERABLE)
        assert not texts
        return
    golds = []
    for answer, start in zip(e.answers, e.answer_starts, strict=True):
        start += len(answer) - len(answer.lstrip())
        end = start + len(answer.strip())
        covering = [t for t, (a, b) in enumerate(offsets) if a < end and b > start and start < end]
        golds.append((answer, start, end, covering))
    used = []
    for w in rows:
        first, count = int(windows.first[w]), int(windows.count[w])
        shift = int(windows.context_starts[w]) - first
        whole = [
            (number, (covering[0] + shift, covering[-1] + shift))
            for number, (*_, covering) in enumerate(golds)
            if covering and first <= covering[0] and covering[-1] < first + count
        ]
        assert labels[w] == (whole[0][1] if whole else (0, 0))
        used += [number for number, _ in whole[:1]]
        assert windows.gold[w] == (whole[0][0] if whole else 0)
    answer, start, end, covering = golds[(used or [0])[0]]
    if not texts:
        assert outcome == (Outcome.CUT if covering else Outcome.NO_TOKENS)
        return
    text = texts[0]
    assert (outcome == Outcome.EXACT) == (text == answer)
    first, last = offsets[covering[0]][0], offsets[covering[-1]][1]
    if outcome == Outcome.BLANKS:
        assert text == answer.strip() != answer
    elif outcome == Outcome.GRAPHEME:
        assert snap_to_graphemes(e.context, start, end) != (start, end)
    elif outcome == Outcome.INVISIBLE:
        assert start <= first < last <= end
        assert text in answer
    elif outcome == Outcome.INSIDE_TOKEN:
        assert first < start or end < last
    else:
        assert outcome == Outcome.EXACT


@settings(derandomize=True, max_examples=200)
@given(example_lists(), st.sampled_from([(384, 128), (16, 4), (12, 1), (11, 0)]))
def test_labels_of_any_text(ours, examples, sizes):
    windows = make_labelled_windows(examples, ours, WindowSettings(*sizes, max_query_length=3))
    assert len(windows.outcome) == len(examples)
    for i, e in enumerate(examples):
        rows = windows.contexts.rows(int(windows.context_of[i]))
        spans = windows.contexts.starts[rows].tolist(), windows.contexts.ends[rows].tolist()
        check_labels(windows, i, e, list(zip(*spans, strict=True)))
    report = label_report(examples, windows)
    assert report.counts.total() == len(examples)
    listed = {outcome: len(ids) for outcome, ids in report.listed.items()}
    assert listed == {o: n for o, n in report.counts.items() if o in CAUSES}
