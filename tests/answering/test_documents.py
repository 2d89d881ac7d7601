"""Answers from many documents."""

import math
from dataclasses import replace

import pytest

from bertqa.answering.answerer import QuestionAnswerer
from bertqa.answering.answers import Answer, Prediction
from bertqa.answering.documents import ReadSettings, read_documents
from bertqa.data.squad import Example
from bertqa.data.text import is_blank
from bertqa.errors import UserError
from bertqa.settings import DecodingSettings
from tests.helpers import write_checkpoint

WHO = "Who built the port?"
DOCUMENTS = [
    "Ada built the port of Quill in the town.",
    "The river ran past the ship; the ship was old. A man ran to the town.",
    {"id": "rain", "text": "Rain fell.", "year": 1931},
    "\u200b",  # no token
    "  ",
    {"text": "There is a port a\u0301 in 한국."},
]


@pytest.fixture(scope="module")
def qa(tmp_path_factory):
    folder = write_checkpoint(tmp_path_factory.mktemp("documents") / "tiny")
    return QuestionAnswerer.from_pretrained(folder, device="cpu", precision="fp32")


def text_of(document):
    return document if isinstance(document, str) else document["text"]


# --- scores --------------------------------------------------------------------------------------


@pytest.mark.parametrize("impossible", [False, True])
@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_scores_are_probabilities_among_all_spans_of_all_documents(qa, impossible, temperature):
    """Compared with the answers of single documents, rescaled by their scores."""
    decoding = replace(qa.decoding, temperature=temperature)
    qa = QuestionAnswerer(qa.model, qa.tokenizer, qa.windows, decoding, qa.runtime)
    decoding = replace(decoding, n_best_size=10**5, version_2_with_negative=True)
    weights, nulls = {}, []
    for number, document in enumerate(DOCUMENTS):
        if is_blank(text_of(document)):
            continue
        own = QuestionAnswerer(qa.model, qa.tokenizer, qa.windows, decoding, qa.runtime)
        (prediction,) = own.answer([Example("", WHO, text_of(document))])
        null = next(answer for answer in prediction.answers if not answer.text)
        scale = math.exp(null.score / temperature) / null.probability
        nulls.append(null.score)
        name = document.get("id", number) if isinstance(document, dict) else number
        for answer in prediction.answers:
            if answer is not null:
                weights[name, answer.start, answer.end] = answer.probability * scale
    if impossible:
        weights[None, 0, 0] = math.exp(min(nulls) / temperature)
    total = math.fsum(weights.values())
    entries = qa.read(
        WHO, DOCUMENTS, top_k=10**5, max_overlap=1.0, handle_impossible_answer=impossible
    )
    found = {(e["document"], e["start"], e["end"]): e["score"] for e in entries}
    assert found == pytest.approx({key: w / total for key, w in weights.items()}, rel=1e-4)
    assert math.fsum(found.values()) == pytest.approx(1, abs=1e-6)


def test_entries_name_their_document(qa):
    entries = qa.read(WHO, iter(DOCUMENTS), top_k=50, context_window=0)
    assert {"rain", 0, 1, 5} == {entry["document"] for entry in entries}
    for entry in entries:
        number = 2 if entry["document"] == "rain" else entry["document"]
        text = text_of(DOCUMENTS[number])
        assert entry["answer"] == text[entry["start"] : entry["end"]] != ""
        snippet = entry["snippet"]
        assert entry["answer"] == snippet[entry["snippet_start"] : entry["snippet_end"]]
        assert entry["metadata"] == ({"year": 1931} if number == 2 else {})
    unnamed = {"id": None, "text": "Ada"}  # None is the document of "no answer"
    assert qa.read(WHO, [unnamed])[0]["document"] == 0


def test_answers_equal_those_of_single_documents(qa):
    alone = qa.read(WHO, DOCUMENTS[1:2], top_k=3)
    among = qa.read(WHO, DOCUMENTS, top_k=10**4, max_overlap=0)
    offsets = [(e["start"], e["end"]) for e in among if e["document"] == 1]
    assert offsets[:3] == [(e["start"], e["end"]) for e in alone]


def test_several_questions_tokenize_each_document_once(qa, monkeypatch):
    questions = [WHO, "What ran past the ship?", "Where did rain fall?"]
    expected = [qa.read(question, DOCUMENTS) for question in questions]
    encode, seen = qa.tokenizer.encode, []
    monkeypatch.setattr(qa.tokenizer, "encode", lambda texts: seen.extend(texts) or encode(texts))
    monkeypatch.setattr(qa.tokenizer, "_kept", {})
    monkeypatch.setattr("bertqa.answering.documents._SPANS", 1)  # so that more are asked for
    found = qa.read(questions, DOCUMENTS)
    texts = [text_of(document) for document in DOCUMENTS if not is_blank(text_of(document))]
    assert sorted(text for text in seen if text in texts) == sorted(texts)
    for entries, wanted in zip(found, expected, strict=True):
        assert [(e["document"], e["answer"]) for e in entries] == [
            (e["document"], e["answer"]) for e in wanted
        ]
        assert [e["score"] for e in entries] == pytest.approx(
            [e["score"] for e in wanted], rel=1e-4
        )


# --- selection of answers, with predictions written by hand --------------------------------------


def make_prediction(spans, null=-5.0):
    """Make a prediction from spans (start, end, score) and a null score."""
    total = math.log(math.fsum(math.exp(score) for _, _, score in spans)) if spans else -math.inf
    whole = math.exp(total) + math.exp(null)
    answers = [
        Answer("x" * (end - start), start, end, score, 0.0, math.exp(score) / whole)
        for start, end, score in sorted(spans, key=lambda span: -span[2])
    ]
    answers.append(Answer("", 0, 0, null, 0.0, math.exp(null) / whole))
    return Prediction("", "", tuple(answers), "", 0.0, total)


def read(predictions, threshold=0.0, impossible=True, **settings):
    """Read documents for which the model makes these predictions."""
    asked = []

    def predict(examples, decoding):
        asked.append((len(examples), decoding.n_best_size))
        for example in examples:
            prediction = predictions[int(example.context.split()[0])]
            null = [answer for answer in prediction.answers if not answer.text]
            spans = [a for a in prediction.answers if a.text][: decoding.n_best_size]
            distinct = {(span.start, span.end): span for span in reversed(spans)}
            answers = (*reversed(distinct.values()), *null)
            yield replace(prediction, answers=answers, spans_found=len(spans))

    decoding = DecodingSettings(
        version_2_with_negative=impossible, null_score_diff_threshold=threshold
    )
    documents = (f"{number} {'x' * 400}" for number in range(len(predictions)))
    (entries,) = read_documents(["q"], documents, predict, decoding, ReadSettings(**settings))
    return entries, asked


@pytest.mark.parametrize(
    ("tenth", "threshold", "answer"),
    [(4.0, 0.0, "xx"), (2.5, 0.0, ""), (2.5, 1.0, "xx"), (4.0, -2.0, "")],
)
def test_no_answer_wins_only_if_it_wins_in_every_document(tenth, threshold, answer):
    nine = [make_prediction([(0, 3, 1.0), (5, 6, 0.5)], null=9.0)] * 9
    entries, _ = read([*nine, make_prediction([(2, 4, tenth)], null=3.0)], threshold, top_k=30)
    assert entries[0]["answer"] == answer
    assert sum(entry["document"] is None for entry in entries) == 1
    assert math.fsum(entry["score"] for entry in entries) == pytest.approx(1, abs=1e-9)


@pytest.mark.parametrize(("score", "null"), [(1.0, 99.0), (-60.0, 700.0)])
def test_without_no_answer_there_is_always_a_span(score, null):
    """Even if its probability underflows next to "no answer"."""
    entries, _ = read([make_prediction([(0, 3, score)], null)], impossible=False)
    assert [(e["answer"], e["score"]) for e in entries] == [("xxx", pytest.approx(1))]


@pytest.mark.parametrize("impossible", [False, True])
def test_no_answer_comes_before_an_answer_below_the_score_threshold(qa, impossible):
    decoding = replace(qa.decoding, version_2_with_negative=impossible)
    qa = QuestionAnswerer(qa.model, qa.tokenizer, qa.windows, decoding, qa.runtime)
    qa.decoding = replace(decoding, null_score_diff_threshold=1e9)
    plain = qa.read(WHO, DOCUMENTS, top_k=3)
    assert plain[0]["answer"]
    for factor, silenced in ((1, False), (1.01, True)):
        qa.decoding = replace(qa.decoding, score_threshold=plain[0]["score"] * factor)
        entries = qa.read(WHO, DOCUMENTS, top_k=3)
        assert (entries[0]["answer"] == "") == silenced
    assert entries[0]["document"] is None and entries[1] == plain[0]
    assert (entries[0]["score"] > 0) == impossible
    assert len(entries) == 3


@pytest.mark.parametrize(
    ("settings", "kept"),
    [
        ({}, [(0, 10), (10, 14), (20, 24)]),
        ({"max_overlap": 0.5}, [(0, 10), (8, 12), (10, 14), (20, 24)]),
        ({"max_overlap": 0.49}, [(0, 10), (10, 14), (20, 24)]),
        ({"max_overlap": 1}, [(0, 10), (1, 5), (8, 12), (10, 14), (20, 24)]),
        ({"top_k": 2}, [(0, 10), (10, 14)]),
        ({"top_k_per_document": 1}, [(0, 10)]),
        ({"score_threshold": 0.1}, [(0, 10)]),
    ],
)
def test_which_answers_of_a_document_are_kept(settings, kept):
    spans = [(0, 10, 9.0), (1, 5, 8.9), (8, 12, 4.0), (10, 14, 3.0), (20, 24, 2.0)]
    if "score_threshold" in settings:
        spans[1] = (1, 5, 3.5)
    entries, _ = read([make_prediction(spans)], impossible=False, **settings)
    assert [(e["start"], e["end"]) for e in entries] == kept


def test_top_k_ranks_the_answers_of_all_documents():
    predictions = [
        make_prediction([(0, 1, score), (2, 3, score - 10)]) for score in (1.0, 5.0, 3.0)
    ]
    entries, _ = read(predictions, impossible=False, top_k=4)
    assert [(e["document"], e["start"]) for e in entries] == [(1, 0), (2, 0), (0, 0), (1, 2)]


@pytest.mark.parametrize("longer", [0, 1])  # 0: spans of the same characters, so one answer
def test_the_search_is_extended_if_the_best_spans_overlap(longer):
    crowded = [(0, 9 + n * longer, 9.0 - n / 1000) for n in range(300)]
    entries, asked = read([make_prediction([*crowded, (350, 360, 1.0)])], impossible=False, top_k=2)
    assert [(e["start"], e["end"]) for e in entries] == [(0, 9), (350, 360)]
    assert [spans for _, spans in asked] == [40, 320]
    # Not if the remaining spans of a document cannot be among the best.
    poor = make_prediction([(0, 9 + n, 0.5 - n / 1000) for n in range(300)])
    good = make_prediction([(0, 9, 9.0), (20, 29, 8.0)])
    _, asked = read([good, poor], impossible=False, top_k=2)
    assert [spans for _, spans in asked] == [40]


def test_documents_are_streamed():
    taken, seen = [], []

    def documents():
        for number in range(200):
            taken.append(number)
            yield f"{number} text"

    def predict(examples, decoding):
        seen.append((len(examples), len(taken)))
        return (make_prediction([(0, 1, float(int(e.context.split()[0])))]) for e in examples)

    settings = ReadSettings(top_k=2)
    (entries,) = read_documents(["q"], documents(), predict, DecodingSettings(), settings)
    assert [entry["document"] for entry in entries] == [199, 198]
    assert seen == [(64, 64), (64, 128), (64, 192), (8, 200)]


# --- snippets ------------------------------------------------------------------------------------

TEXT = 'It rained. "Ada built it!" said Ole of Lund. The mill\n\nstood on e\u0301 hill'


@pytest.mark.parametrize(
    ("marked", "window", "snippet"),
    [
        ("Ada", "sentence", '"Ada built it!"'),
        ("Ole", "sentence", "said Ole of Lund."),
        ("Lund.", "sentence", "said Ole of Lund."),
        ("The mill", "sentence", "The mill"),
        ("hill", "sentence", "stood on e\u0301 hill"),
        ("It", "sentence", "It rained."),
        ("Ole", 0, "Ole"),
        ("Ole", 4, "Ole of"),
        ("Ole", 5, "said Ole of"),
        ("hill", 2, "e\u0301 hill"),
        ("hill", 10**6, TEXT),
    ],
)
def test_snippets_have_whole_words_or_sentences(marked, window, snippet):
    start = TEXT.index(marked)

    def predict(examples, decoding):
        return [make_prediction([(start, start + len(marked), 1.0)])]

    settings = ReadSettings(context_window=window)
    ((entry,),) = read_documents(["q"], [TEXT], predict, DecodingSettings(), settings)
    assert entry["snippet"] == snippet
    assert snippet[entry["snippet_start"] : entry["snippet_end"]] == marked


# --- bad input -----------------------------------------------------------------------------------


def test_without_documents_there_are_no_answers(qa):
    assert qa.read(WHO, []) == qa.read(WHO, ["", " \n"], handle_impossible_answer=True) == []
    assert qa.read([WHO, WHO], []) == [[], []]


def test_documents_with_the_same_id_differ_in_their_number(qa):
    texts = ["Ada built the port.", "Ben built a ship.", "Quill is a town."]
    documents = [
        {"id": name, "text": text} for name, text in zip(("a", "a", 0), texts, strict=True)
    ]
    entries = qa.read(WHO, documents, top_k=9, top_k_per_document=1)
    assert {(e["document"], e["number"]) for e in entries} == {("a", 0), ("a", 1), (0, 2)}
    for entry in entries:
        text = texts[entry["number"]]
        assert text[entry["start"] : entry["end"]] == entry["answer"]


@pytest.mark.parametrize("document", [None, 7, {"txt": "a"}, {"text": None}, ["a"]])
def test_a_document_without_text_is_rejected(qa, document):
    with pytest.raises(UserError, match="document 1: must be a text or a dictionary with the key"):
        qa.read(WHO, ["a b", document])


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("top_k", 0), ("top_k_per_document", 0), ("max_overlap", 1.1), ("max_overlap", -0.1),
        ("score_threshold", 2), ("context_window", -1), ("context_window", "paragraph"),
        ("top_k", "3"), ("top_k_per_document", 1.5), ("max_overlap", "0.5"), ("max_overlap", True),
        ("score_threshold", None), ("context_window", None),
    ],
)  # fmt: skip
def test_settings_out_of_range_are_rejected(qa, name, value):
    with pytest.raises(UserError, match=f"^{name}.* must be .*, got"):
        qa.read(WHO, ["a b"], **{name: value})


def test_an_unknown_setting_is_rejected(qa):
    with pytest.raises(TypeError, match="topk"):
        qa.read(WHO, ["a b"], topk=3)


@pytest.mark.parametrize("one", ["Ada built the port.", b"Ada", {"text": "Ada built it."}, None, 3])
def test_a_single_document_instead_of_several_is_rejected(qa, one):
    with pytest.raises(UserError, match="documents: must be a list of documents, got"):
        qa.read(WHO, one)
