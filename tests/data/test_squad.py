"""``bertqa.data.squad``: every form reads back the same, every fault is one exact sentence."""

import csv
import gzip
import io
import json
import os
import re
import subprocess
import sys
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bertqa.data.readers import iter_json_lines, load_hub_dataset, read_examples
from bertqa.data.squad import Example, check_answers, check_examples, split_by_article
from bertqa.errors import UserError

# A character beyond 16 bits stands before the answers, and line ends of every kind between them.
MILL = (
    'The old mill at Ørebro, 🏚\ufe0f\u200d painted red, grinds "rye" and\toats;\r\n\u2028'
    "it's 212 years old. "
)
PIER = "  Two piers, one café.\n\nTwo gulls.\x85"


def _at(context: str, *texts: str) -> tuple[tuple[str, ...], tuple[int, ...]]:
    return texts, tuple(context.index(text) for text in texts)


GOLD = [
    Example("mill-1", "What colour is the mill?", MILL, *_at(MILL, "red")),
    Example(
        "mill-2", 'Is it "old", or\tnew?\n', MILL, *_at(MILL, "212 years", "212 years old", '"')
    ),
    Example("mill-3", "Who sold the mill?", MILL, ()),
    Example("7", "Où est le café?", PIER, *_at(PIER, "one café")),
    Example("pier-2", "What colour is the mill?", PIER, ()),
]
WITHOUT_GOLD = [Example(e.id, e.question, e.context) for e in GOLD]
WITHOUT_STARTS = [Example(e.id, e.question, e.context, e.answers) for e in GOLD]
ONE_ANSWER = [
    Example(e.id, e.question, e.context, e.answers[:1], e.answer_starts[:1]) for e in GOLD
]


# --- the same examples, written in every form ----------------------------------------------------


def _pairs(example: Example) -> list[dict]:
    both = zip(example.answers, example.answer_starts, strict=True)
    return [{"text": text, "answer_start": start} for text, start in both]


def _lists(example: Example) -> dict:
    return {"text": list(example.answers), "answer_start": list(example.answer_starts)}


def _row(example: Example, **more) -> dict:
    row = {"id": example.id, "question": example.question, "context": example.context}
    return row | more


def _rows(examples: list[Example], answers=_lists) -> list[dict]:
    return [
        _row(e) if e.answers is None else _row(e, topic="ignored", answers=answers(e))
        for e in examples
    ]


def _nested(examples: list[Example], v2: bool) -> str:
    """SQuAD's own form, with the extra keys met in it."""
    paragraphs: dict[str, list] = {}
    for e in examples:
        qa = {"id": e.id, "question": e.question, "answers": _pairs(e)}
        if v2:
            qa["is_impossible"] = e.is_impossible
            qa["plausible_answers"] = [{"text": "The", "answer_start": 0}]
        for answer in qa["answers"]:
            answer["start_guessed"] = True
        paragraphs.setdefault(e.context, []).append(qa)
    articles = [
        {"topic": "x", "paragraphs": [{"context": context, "qas": qas, "source": "y"}]}
        for context, qas in paragraphs.items()
    ]
    return json.dumps({"version": "v2.0" if v2 else "1.1", "data": articles})


def _json_lines(rows: list[dict], ascii_only: bool = True) -> str:
    return "".join(json.dumps(row, ensure_ascii=ascii_only) + "\n" for row in rows)


def _table(rows: list[dict], **dialect) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, rows[0].keys(), **dialect)
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _cells(examples: list[Example], write) -> list[dict]:
    return [_row(e, answers=write(_lists(e))) for e in examples]


def _single(examples: list[Example]) -> list[dict]:
    return [
        _row(
            e,
            answer_text="".join(e.answers),
            answer_start="".join(map(str, e.answer_starts)),
            is_impossible=e.is_impossible,
        )
        for e in examples
    ]


def _numpy_literal(answers: dict) -> str:
    """As pandas writes a cell that came from Arrow."""
    starts = ", ".join(f"np.int64({start})" for start in answers["answer_start"])
    texts = f"array({answers['text']!r},\n dtype=object)"
    return f"{{'text': {texts}, 'answer_start': array([{starts}], dtype=object)}}"


FORMS = {
    "nested-v1": ("x.json", _nested(GOLD, v2=False), GOLD),
    "nested-v2": ("x.json", _nested(GOLD, v2=True), GOLD),
    "flat": ("x.json", json.dumps({"version": "1", "data": _rows(GOLD)}), GOLD),
    "flat-no-version": ("x.json", json.dumps({"data": _rows(GOLD, _pairs)}, indent=1), GOLD),
    "flat-bare-list": ("x.json", json.dumps(_rows(GOLD)), GOLD),
    "flat-raw-text": ("X.JSON", json.dumps(_rows(GOLD), ensure_ascii=False), GOLD),
    "flat-no-gold": ("x.json", json.dumps(_rows(WITHOUT_GOLD)), WITHOUT_GOLD),
    "one-row": ("x.json", json.dumps(_rows(GOLD)[0], indent=4), GOLD[:1]),
    "lines": ("x.jsonl", _json_lines(_rows(GOLD)), GOLD),
    "lines-raw-text": ("x.ndjson", _json_lines(_rows(GOLD), ascii_only=False), GOLD),
    "lines-in-json": ("x.json", "\n" + _json_lines(_rows(GOLD), ascii_only=False), GOLD),
    "lines-blank": ("x.jsonl", "\n \n" + _json_lines(_rows(GOLD)).replace("\n", "\r\n\r\n"), GOLD),
    "lines-last-open": ("x.jsonl", _json_lines(_rows(GOLD)).rstrip("\n"), GOLD),
    "lines-no-starts": (
        "x.jsonl",
        _json_lines(_rows(GOLD, lambda e: list(e.answers))),
        WITHOUT_STARTS,
    ),
    "lines-null": ("x.jsonl", _json_lines([_row(e, answers=None) for e in GOLD]), WITHOUT_GOLD),
    "csv-json": ("x.csv", _table(_cells(GOLD, json.dumps)), GOLD),
    "csv-literal": ("x.csv", _table(_cells(GOLD, str)), GOLD),
    "csv-numpy": ("x.csv", _table(_cells(GOLD, _numpy_literal)), GOLD),
    "csv-no-gold": ("x.csv", _table(_rows(WITHOUT_GOLD)), WITHOUT_GOLD),
    "csv-blank-answers": ("x.csv", _table([_row(e, answers="") for e in GOLD]), WITHOUT_GOLD),
    "csv-one-answer": ("x.csv", _table(_single(ONE_ANSWER)), ONE_ANSWER),
    "csv-all-quoted": ("x.csv", _table(_single(ONE_ANSWER), quoting=csv.QUOTE_ALL), ONE_ANSWER),
    "tsv": ("x.tsv", _table(_cells(GOLD, json.dumps), delimiter="\t"), GOLD),
}


@pytest.mark.parametrize("compressed", [False, True], ids=["plain", "gz"])
@pytest.mark.parametrize("form", FORMS)
def test_every_form_reads_back(tmp_path, form, compressed):
    name, text, expected = FORMS[form]
    path = tmp_path / (name + ".gz" if compressed else name)
    path.write_bytes(gzip.compress(text.encode()) if compressed else text.encode())
    assert read_examples(path) == expected


@pytest.mark.parametrize("form", ["nested-v2", "flat", "lines", "lines-in-json", "csv-json"])
def test_a_byte_order_mark_is_no_text(tmp_path, form):
    name, text, expected = FORMS[form]
    (tmp_path / name).write_bytes(text.encode("utf-8-sig"))
    assert read_examples(tmp_path / name) == expected


def test_a_byte_order_mark_on_a_later_line_is_text(tmp_path):
    (tmp_path / "x.csv").write_text('question,context\n?,"A\n\ufeffB"\n', encoding="utf-8")
    assert read_examples(tmp_path / "x.csv") == [Example("0", "?", "A\n\ufeffB")]


@pytest.mark.parametrize("compressed", [False, True])
def test_gzip_is_known_by_content_not_by_name(tmp_path, compressed):
    path = tmp_path / ("x.jsonl" if compressed else "x.jsonl.gz")
    text = FORMS["lines"][1].encode()
    path.write_bytes(gzip.compress(text) if compressed else text)
    assert read_examples(path) == GOLD


@pytest.mark.parametrize("form", FORMS)
def test_equal_texts_are_one_object(tmp_path, form):
    name, text, _ = FORMS[form]
    (tmp_path / name).write_text(text, newline="")
    examples = read_examples(tmp_path / name)
    for key in ("context", "question"):
        texts = [getattr(example, key) for example in examples]
        assert len({id(text) for text in texts}) == len(set(texts))


def test_blanks_are_stripped_before_a_question_and_nowhere_else(tmp_path):
    row = {"question": " \n\u00a0Who? ", "context": " It was Ann. ", "answers": [" Ann. "]}
    (tmp_path / "x.json").write_text(json.dumps([row]))
    assert read_examples(tmp_path / "x.json") == [
        Example("0", "Who? ", " It was Ann. ", (" Ann. ",))
    ]


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("x.jsonl", lambda rows: "\n\n".join(map(json.dumps, rows))),
        ("x.json", json.dumps),
        ("x.csv", lambda rows: _table([{"id": None} | row for row in rows])),
    ],
)
def test_a_missing_id_is_the_number_of_the_row(tmp_path, name, write):
    rows = [{"question": "a?", "context": "A"}, {"question": "b?", "context": "B", "id": 12}]
    rows.append({"question": "c?", "context": "C", "id": None})
    (tmp_path / name).write_text(write(rows))
    assert [e.id for e in read_examples(tmp_path / name)] == ["0", "12", "2"]


def test_a_missing_id_in_the_nested_form_counts_through_the_file(tmp_path):
    paragraph = {"context": "A", "qas": [{"question": "a?"}, {"question": "b?"}]}
    articles = [{"paragraphs": [paragraph, paragraph]}, {"paragraphs": [paragraph]}]
    (tmp_path / "x.json").write_text(json.dumps({"data": articles}))
    examples = read_examples(tmp_path / "x.json")
    assert [e.id for e in examples] == ["0", "1", "2", "3", "4", "5"]
    assert {e.answers for e in examples} == {None}


@pytest.mark.parametrize(
    ("gold", "answers", "starts"),
    [
        ({}, None, ()),
        ({"answers": None, "is_impossible": None}, None, ()),
        ({"answers": []}, (), ()),
        ({"is_impossible": True}, (), ()),
        ({"answers": [], "is_impossible": True}, (), ()),
        ({"answers": {"text": [], "answer_start": []}, "is_impossible": True}, (), ()),
        # Said to have an answer, which is not given: unlabelled, not unanswerable.
        ({"answers": [], "is_impossible": False}, None, ()),
        ({"answers": {"text": ["A", "B"], "answer_start": None}}, ("A", "B"), ()),
        ({"answers": {"text": ["A"]}}, ("A",), ()),
        ({"answers": [{"text": "A"}]}, ("A",), ()),
        ({"answers": {"text": ["A", "B"], "answer_start": [0]}}, ("A", "B"), (0,)),
    ],
)
def test_gold(tmp_path, gold, answers, starts):
    (tmp_path / "x.jsonl").write_text(json.dumps({"question": "?", "context": "A B"} | gold))
    (example,) = read_examples(tmp_path / "x.jsonl")
    assert (example.answers, example.answer_starts) == (answers, starts)
    assert example.is_impossible == (answers == ())


@pytest.mark.parametrize(
    ("start", "starts"), [("3", (3,)), ("3.0", (3,)), ("-1", (-1,)), ("", ()), ("0003", (3,))]
)
def test_csv_answer_start(tmp_path, start, starts):
    row = {"question": "?", "context": "an ox", "answer_text": "ox", "answer_start": start}
    (tmp_path / "x.csv").write_text(_table([row]))
    assert read_examples(tmp_path / "x.csv") == [Example("0", "?", "an ox", ("ox",), starts)]


def test_csv_answer_text_alone(tmp_path):
    (tmp_path / "x.csv").write_text("question,context,answer_text\n?,an ox,ox\n?,an ox,\n")
    assert [e.answers for e in read_examples(tmp_path / "x.csv")] == [("ox",), None]


def test_csv_with_a_huge_field_blank_lines_and_unnamed_columns(tmp_path):
    context = "long " * 100_000
    (tmp_path / "x.csv").write_text(f",question,,context\n\n0,?,,{context}\n\n")
    assert read_examples(tmp_path / "x.csv") == [Example("0", "?", context)]


# Not the null character: the csv module of Python 3.10 refuses it.
_TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=30)
_ODD = st.text(st.sampled_from("a\"',\t\r\n\\ \u2028\x85\ufeff\u0301é🏚{[:"), max_size=12)
_EXAMPLE = st.builds(
    Example,
    id=st.text("ab1", min_size=1),
    question=(_TEXT | _ODD).map(str.lstrip),
    context=_TEXT | _ODD,
    answers=st.none() | st.lists(_TEXT | _ODD, max_size=3).map(tuple),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("hypothesis")


@settings(max_examples=150)
@given(examples=st.lists(_EXAMPLE, min_size=1, max_size=4), raw=st.booleans())
def test_odd_text_survives_json_lines_and_csv(folder, examples, raw):
    answers = [None if e.answers is None else list(e.answers) for e in examples]
    rows = [_row(e, answers=a) for e, a in zip(examples, answers, strict=True)]
    cells = [row | {"answers": json.dumps(row["answers"])} for row in rows]
    literals = [row | {"answers": str(row["answers"])} for row in rows]
    for name, text in [
        ("x.jsonl", _json_lines(rows, ascii_only=not raw)),
        ("x.json", json.dumps(rows, ensure_ascii=not raw)),
        ("x.csv", _table(cells)),
        ("x.tsv", _table(literals, delimiter="\t")),
    ]:
        (folder / name).write_text(text, encoding="utf-8", newline="")
        assert read_examples(folder / name) == examples, name


# --- streaming -----------------------------------------------------------------------------------


def test_iter_json_lines_stops_reading_at_the_line_it_yields(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text(_json_lines(_rows(GOLD[:1])) + "{broken\n")
    lines = iter_json_lines(path)
    assert next(lines).example == GOLD[0]
    assert "x.jsonl, line 2, " in next(lines).fault


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_iter_json_lines_yields_before_the_file_has_an_end(tmp_path):
    path = tmp_path / "x.jsonl"
    os.mkfifo(path)
    # The writer ends only when told: a reader that waited for the end would never return.
    script = "import sys; f = open(sys.argv[1], 'w'); f.write(sys.argv[2]); f.flush(); input()"
    command = [sys.executable, "-c", script, str(path), _json_lines(_rows(GOLD[:2]))]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as writer:
        try:
            lines = iter_json_lines(path)
            assert [next(lines).example, next(lines).example] == GOLD[:2]
            assert writer.poll() is None
        finally:
            writer.communicate(b"\n", timeout=60)
    assert list(lines) == []


@pytest.mark.parametrize("compressed", [False, True], ids=["plain", "gz"])
def test_iter_json_lines_holds_little_of_a_large_file(tmp_path, compressed):
    rows = [{"question": f"{n}?", "context": f"{n} " * 500} for n in range(4000)]
    text = _json_lines(rows).encode()
    path = tmp_path / "x.jsonl"
    path.write_bytes(gzip.compress(text, 1) if compressed else text)
    tracemalloc.start()
    try:
        count = sum(1 for _ in iter_json_lines(path))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert count == 4000
    assert len(text) > 8_000_000
    assert peak < 1_000_000


def test_iter_json_lines_goes_on_after_lines_that_are_no_questions(tmp_path):
    path = tmp_path / "x.jsonl"
    good = _json_lines(_rows(GOLD[:2])).encode().splitlines(keepends=True)
    bad = {
        b"{broken\n": "malformed JSON",
        b'{"question": "\xff", "context": "x"}\n': "0xff",
        b"[" * 100_000 + b"\n": "nested too deeply",
        b'{"question": "Who?"}\n': "lacks context",
        b'{"question": " ", "context": "x"}\n': "blank question",
        b'{"question": "Who?", "context": "\\u200b\\n "}\n': "",  # no blank: a zero-width space
        b'{"question": "Who?", "context": "\\ud83d"}': "surrogate",
    }
    path.write_bytes(good[0] + b"\n  \n" + b"".join(bad) + b"\n" + good[1])
    lines = list(iter_json_lines(path))
    assert [line.number for line in lines] == [1, *range(4, 4 + len(bad)), 4 + len(bad)]
    assert [line.example for line in (lines[0], lines[-1])] == GOLD[:2]
    for line, (raw, words) in zip(lines[1:-1], bad.items(), strict=True):
        assert line.raw.rstrip(b"\n") == raw.rstrip(b"\n")
        assert (line.example is None) == bool(words) == bool(line.fault)
        assert words in line.fault
        assert not line.fault or f"x.jsonl, line {line.number}" in line.fault


def test_importing_stays_fast():
    script = "import sys, bertqa.data.readers; print({'datasets', 'pyarrow'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True)
    assert done.stdout.strip() == b"set()"


# --- errors of form: the whole sentence, with FILE for the path -----------------------------------


def _message(path: Path, read=read_examples) -> str:
    with pytest.raises(UserError) as caught:
        read(path)
    return str(caught.value)


def _expect(path: Path, sentence: str) -> None:
    assert _message(path) == sentence.replace("FILE", str(path))


ENDINGS = ".json, .jsonl, .ndjson, .csv, .tsv, .parquet (all but .parquet also with .gz)"
ROW = '"question": "?", "context": "A b"'
ANSWERS = ROW + ', "answers": '
PLAIN_CSV = "id,question,context\n"

FAULTY_FILES = {
    # The file as a whole.
    "empty.json": (b"", "FILE is empty; fetch or write it again"),
    "empty.jsonl.gz": (gzip.compress(b""), "FILE is empty; fetch or write it again"),
    "notes.txt": (
        b"hello",
        f"FILE has the ending '.txt', which is not read; give one of {ENDINGS}",
    ),
    "squad": (b"{}", f"FILE has the ending '', which is not read; give one of {ENDINGS}"),
    "x.gz": (b"{}", f"FILE has the ending '', which is not read; give one of {ENDINGS}"),
    "cut.json.gz": (
        gzip.compress(json.dumps(["x" * 99] * 99).encode())[:60],
        "FILE is damaged gzip (Compressed file ended before the end-of-stream marker was reached); "
        "fetch or compress it again",
    ),
    "crc.jsonl.gz": (
        gzip.compress(b"{%s}" % ROW.encode())[:-8] + bytes(8),
        re.compile(r"FILE is damaged gzip \(CRC check failed .*\); fetch or compress it again"),
    ),
    "noise.csv.gz": (
        gzip.compress(b"question,context\n")[:10] + b"\xff" * 30,
        re.compile(r"FILE is damaged gzip \(Error -3 .*\); fetch or compress it again"),
    ),
    "x.parquet.gz": (
        gzip.compress(b"PAR1"),
        "FILE: parquet is not read through gzip; unpack it with gunzip",
    ),
    # Encoding.
    "latin.json": (
        b'[\n{"question": "caf\xe9?"}]',
        "FILE, line 2: byte 0xe9 is not UTF-8; save the file as UTF-8",
    ),
    "latin.jsonl": (
        b'{%s}\n\n{"question": "caf\xe9?"}' % ROW.encode(),
        "FILE, line 3: byte 0xe9 is not UTF-8; save the file as UTF-8",
    ),
    "bom16.csv": (
        "id,question".encode("utf-16-le").join([b"\xff\xfe", b""]),
        "FILE, line 1: byte 0xff is not UTF-8; save the file as UTF-8",
    ),
    "latin.csv": (
        b"question,context\n?,x\n?,caf\xe9\n",
        "FILE, line 3: byte 0xe9 is not UTF-8; save the file as UTF-8",
    ),
    # JSON.
    "comma.json": (
        b'{"data": [\n  {"id": 1,}\n]}',
        re.compile(
            r"FILE, line 2, column 1[012]: malformed JSON \(.*\) near .*\]\}'; "
            r"correct it or fetch the file again"
        ),
    ),
    "open.json": (
        b'{"data": [1, 2',
        "FILE, line 1, column 15: malformed JSON (Expecting ',' delimiter) near ''; "
        "correct it or fetch the file again",
    ),
    "tail.json": (
        b'{"data":\n []}\n{}',
        "FILE, line 3, column 1: malformed JSON (Extra data) near '{}'; "
        "correct it or fetch the file again",
    ),
    "bad.jsonl": (
        b"{%s}\n\n{'question': 1}\n" % ROW.encode(),
        "FILE, line 3, column 2: malformed JSON "
        "(Expecting property name enclosed in double quotes) "
        "near \"'question': 1}\"; correct it or fetch the file again",
    ),
    "cut.jsonl": (
        b'{"question": "Who?", "context": "x\n{%s}\n' % ROW.encode(),
        re.compile("FILE, line 1, column [0-9]+: malformed JSON .*; correct it or fetch the .*"),
    ),
    "cut-later.jsonl": (
        b'{%s}\n{"question": "Who?", "context"\n{%s}\n' % (ROW.encode(), ROW.encode()),
        re.compile("FILE, line 2, column 31: malformed JSON .*; correct it or fetch the .*"),
    ),
    "bad-lines.json": (
        b"{%s}\nnonsense\n" % ROW.encode(),
        "FILE, line 2, column 1: malformed JSON (Expecting value) near 'nonsense'; "
        "correct it or fetch the file again",
    ),
    "deep.json": (b"[" * 200_000, "FILE, line 1: the JSON is nested too deeply; give a data set"),
    "deep-lines.json": (
        b"[" * 200_000 + b"\n[]",
        "FILE, line 1: the JSON is nested too deeply; give a data set",
    ),
    "deep.jsonl": (
        b'{%s}\n{"question":' % ROW.encode() + b'{"a":' * 200_000,
        "FILE, line 2: the JSON is nested too deeply; give a data set",
    ),
    "digits.json": (
        b"[" + b"9" * 5000 + b"]",
        re.compile(r"FILE, line 1: unreadable JSON \(Exceeds the limit .*\); correct it"),
    ),
    # JSON that is no data set.
    "foo.json": (
        b'{"foo": 1, "b\\nar": 2}',
        "FILE is JSON, but no data set (found: 'foo', 'b\\nar'); "
        'give {"data": [...]}, as SQuAD does, or rows with question and context',
    ),
    "none.json": (
        b"{}",
        "FILE is JSON, but no data set (found: nothing); "
        'give {"data": [...]}, as SQuAD does, or rows with question and context',
    ),
    "number.json": (
        b"12",
        "FILE is JSON, but no data set (found: 12); "
        'give {"data": [...]}, as SQuAD does, or rows with question and context',
    ),
    "predictions.json": (
        json.dumps({f"id{n}": "x" for n in range(12)}).encode(),
        "FILE is JSON, but no data set (found: 'id0', 'id1', 'id2', 'id3', 'id4', 'id5', 'id6', "
        "'id7', 'id8', 'id9', 2 more); "
        'give {"data": [...]}, as SQuAD does, or rows with question and context',
    ),
    "data.json": (b'{"data": "x"}', "FILE: data is 'x' (str), but must be a list; correct it"),
    # The nested form.
    "article.json": (
        b'{"data": [{"paragraphs": []}, {"title": "t"}]}',
        "FILE, data[1] lacks paragraphs (found: 'title'); add or rename it",
    ),
    "article-list.json": (
        b'{"data": [{"paragraphs": []}, []]}',
        "FILE, data[1] is [] (list), but must be an object with paragraphs; correct it",
    ),
    "paragraphs.json": (
        b'{"data": [{"paragraphs": {}}]}',
        "FILE, data[0]: paragraphs is {} (dict), but must be a list; correct it",
    ),
    "paragraph.json": (
        b'{"data": [{"paragraphs": [{"qas": []}]}]}',
        "FILE, data[0].paragraphs[0] lacks context (found: 'qas'); add or rename it",
    ),
    "qas.json": (
        b'{"data": [{"paragraphs": [{"text": ""}]}]}',
        "FILE, data[0].paragraphs[0] lacks context and qas (found: 'text'); add or rename it",
    ),
    "qas-number.json": (
        b'{"data": [{"paragraphs": [{"context": "A", "qas": 5}]}]}',
        "FILE, data[0].paragraphs[0]: qas is 5 (int), but must be a list; correct it",
    ),
    "context.json": (
        b'{"data": [{"paragraphs": [{"context": null, "qas": []}]}]}',
        "FILE, data[0].paragraphs[0]: context is None (NoneType), but must be a string; correct it",
    ),
    "question.json": (
        b'{"data": [{"paragraphs": [{"context": "A", "qas": [{"question": "?"}, {"id": "i"}]}]}]}',
        "FILE, data[0].paragraphs[0].qas[1] lacks question (found: 'id'); add or rename it",
    ),
    "impossible.json": (
        b'{"data": [{"paragraphs": [{"context": "A", "qas": [{"question": "?", '
        b'"is_impossible": true, "answers": [{"text": "A", "answer_start": 0}]}]}]}]}',
        "FILE, data[0].paragraphs[0].qas[0]: is_impossible is true, but there is an answer, 'A'; "
        "remove one of the two",
    ),
    # Rows.
    "row.json": (
        b'{"data": [{"question": "?"}]}',
        "FILE, data[0] lacks context (found: 'question'); add or rename it",
    ),
    "row-list.json": (
        b'[{%s}, "?"]' % ROW.encode(),
        "FILE, [1] is '?' (str), but must be an object with question and context; correct it",
    ),
    "row.jsonl": (
        b'\n{"Question": "?", "text": "A"}',
        "FILE, line 2 lacks question and context (found: 'Question', 'text'); add or rename it",
    ),
    "list.jsonl": (
        b"[1, 2]",
        "FILE, line 1 is [1, 2] (list), but must be an object with question and context; "
        "correct it",
    ),
}


def _row_faults():
    """Faults inside a row; all stand on line 2 of a JSON lines file."""
    fault = "FILE, line 2: "
    string, whole = "must be a string; correct it", "must be a whole number; correct it"
    return {
        '"question": 12, "context": "A"': fault + "question is 12 (int), but " + string,
        '"question": "?", "context": ["A"]': fault + "context is ['A'] (list), but " + string,
        '"question": "?", "context": "\\ud83d"': fault
        + "context holds half a surrogate pair, '\\ud83d'; remove it",
        '"question": "\\udc00", "context": ""': fault
        + "question holds half a surrogate pair, '\\udc00'; remove it",
        '"id": 1.5, ' + ROW: fault
        + "id is 1.5 (float), but must be a string or a whole number; correct it",
        '"id": true, ' + ROW: fault
        + "id is True (bool), but must be a string or a whole number; correct it",
        '"id": "\\ud83d", ' + ROW: fault + "id holds half a surrogate pair, '\\ud83d'; remove it",
        '"is_impossible": "no", ' + ROW: fault
        + "is_impossible is 'no' (str), but must be true or false; correct it",
        '"is_impossible": 1, ' + ROW: fault
        + "is_impossible is 1 (int), but must be true or false; correct it",
        ANSWERS + "5": fault + "answers is 5 (int), but must be a list; correct it",
        ANSWERS + '"A"': fault + "answers is 'A' (str), but must be a list; correct it",
        ANSWERS + "NaN": fault + "answers is nan (float), but must be a list; correct it",
        ANSWERS + '["A", 5]': fault + "an answer is 5 (int), but " + string,
        ANSWERS + '["A", {"text": "A"}]': fault
        + "an answer is 'A' (str), but must be an object with text; correct it",
        ANSWERS + '[{"answer_start": 0}]': fault
        + "an answer lacks text (found: 'answer_start'); add or rename it",
        ANSWERS + '[{"text": "A", "answer_start": "12"}]': fault
        + "answer_start is '12' (str), but " + whole,
        ANSWERS + '[{"text": "A", "answer_start": null}]': fault
        + "answer_start is None (NoneType), but " + whole,
        ANSWERS + '{"answer_start": [0]}': fault
        + "answers lacks text (found: 'answer_start'); add or rename it",
        ANSWERS + '{"text": "A", "answer_start": 0}': fault
        + "text is 'A' (str), but must be a list; correct it",
        ANSWERS + '{"text": ["A"], "answer_start": 0}': fault
        + "answer_start is 0 (int), but must be a list; correct it",
        ANSWERS + '{"text": ["A"], "answer_start": [12.5]}': fault
        + "answer_start is 12.5 (float), but " + whole,
        ANSWERS + '{"text": ["A"], "answer_start": [true]}': fault
        + "answer_start is True (bool), but " + whole,
        ANSWERS + '{"text": ["\\ud83d"], "answer_start": [0]}': fault
        + "an answer holds half a surrogate pair, '\\ud83d'; remove it",
    }  # fmt: skip


FAULTY_CSV = {
    "question;context\n": "FILE, line 1: the header lacks question and context "
    "(found: 'question;context'); add or rename it",
    "\n\nid,question,text\n": "FILE, line 3: the header lacks context "
    "(found: 'id', 'question', 'text'); add or rename it",
    "\n": "FILE: the header lacks question and context (found: nothing); add or rename it",
    "question,context,question\n": "FILE, line 1: the header has 'question' twice; rename one",
    PLAIN_CSV + "7,?\n": "FILE, line 2 has 2 fields, but the header 3 (the first: '7'); "
    "put quotes around fields that hold ',', quotes or line ends",
    PLAIN_CSV + '1,?,"two\nlines"\n\n8,?,A, b\n': "FILE, line 5 has 4 fields, but the header 3 "
    "(the first: '8'); put quotes around fields that hold ',', quotes or line ends",
    PLAIN_CSV + '1,?,A\n2,?,"never\nclosed\n': "FILE, line 3: malformed CSV "
    "(unexpected end of data); correct the quotes or line ends",
    PLAIN_CSV + '1,?,"A" b\n': "FILE, line 2: malformed CSV "
    "(',' expected after '\"'); correct the quotes or line ends",
    "question,context,answers\n?,A,Paris\n": "FILE, line 2: answers is 'Paris', neither JSON nor a "
    'Python literal; write {"text": [...], "answer_start": [...]}',
    "question,context,answers\n?,A,__import__('os').getcwd()\n": "FILE, line 2: answers is "
    "\"__import__('os').getcwd()\", neither JSON nor a Python literal; "
    'write {"text": [...], "answer_start": [...]}',
    f"question,context,answers\n?,A,{'[' * 9999}\n": f"FILE, line 2: answers is "
    f"'{'[' * 27}...{'[' * 28}', neither JSON nor a Python literal; "
    'write {"text": [...], "answer_start": [...]}',
    "question,context,answers\n?,A,5\n": "FILE, line 2: answers is 5 (int), but must be a list; "
    "correct it",
    "question,context,answer_text,answer_start\n?,A,A,1.5\n": "FILE, line 2: answer_start is '1.5' "
    "(str), but must be a whole number; correct it",
    "question,context,is_impossible\n?,A,maybe\n": "FILE, line 2: is_impossible is 'maybe' (str), "
    "but must be true or false; correct it",
}


@pytest.mark.parametrize("name", FAULTY_FILES)
def test_faulty_files(tmp_path, name):
    content, sentence = FAULTY_FILES[name]
    (tmp_path / name).write_bytes(content)
    if isinstance(sentence, str):
        _expect(tmp_path / name, sentence)
    else:
        # The detail in parentheses is another library's, and differs between its versions.
        message = _message(tmp_path / name).replace(str(tmp_path / name), "FILE")
        assert sentence.fullmatch(message)


@pytest.mark.parametrize(("row", "sentence"), _row_faults().items())
def test_faulty_rows(tmp_path, row, sentence):
    path = tmp_path / "x.jsonl"
    path.write_text(f"{{{ROW}}}\n{{{row}}}\n")
    _expect(path, sentence)
    assert list(iter_json_lines(path))[1].fault == sentence.replace("FILE", str(path))


@pytest.mark.parametrize(("text", "sentence"), FAULTY_CSV.items())
def test_faulty_csv(tmp_path, text, sentence):
    (tmp_path / "x.csv").write_text(text)
    _expect(tmp_path / "x.csv", sentence)


def test_a_lone_carriage_return_parts_no_csv_rows(tmp_path):
    (tmp_path / "x.csv").write_bytes(b"question,context\r?,A\r")
    message = _message(tmp_path / "x.csv")
    assert re.search("line 1: malformed CSV (.*); correct the quotes or line ends", message)


def test_faulty_tsv_names_the_tab(tmp_path):
    (tmp_path / "x.tsv").write_text("question\tcontext\n?\ta\tb\n")
    _expect(
        tmp_path / "x.tsv",
        "FILE, line 2 has 3 fields, but the header 2 (the first: '?'); "
        "put quotes around fields that hold '\\t', quotes or line ends",
    )


def test_long_values_are_shortened(tmp_path):
    (tmp_path / "x.jsonl").write_text('{"question": "?", "context": [%s]}' % ("1, " * 5000 + "1"))
    _expect(
        tmp_path / "x.jsonl",
        "FILE, line 1: context is [1, 1, 1, 1, 1, 1, ...] (list), but must be a string; correct it",
    )


@pytest.mark.parametrize("read", [read_examples, lambda path: list(iter_json_lines(path))])
def test_files_that_cannot_be_opened(tmp_path, read):
    missing = tmp_path / "none.jsonl"
    assert _message(missing, read) == f"{missing} does not exist; check the path"
    folder = tmp_path / "folder.jsonl"
    folder.mkdir()
    assert _message(folder, read) == f"{folder} is a directory; name a file in it"
    loop = tmp_path / "loop.jsonl"
    loop.symlink_to(loop)
    reason = "Too many levels of symbolic links"
    assert _message(loop, read) == f"{loop} cannot be read ({reason}); check the path"


@pytest.mark.skipif(getattr(os, "geteuid", lambda: 0)() == 0, reason="root may read everything")
def test_a_file_without_permission(tmp_path):
    path = tmp_path / "x.json"
    path.write_text("{}")
    path.chmod(0)
    _expect(path, "FILE cannot be read (Permission denied); check the path")


# --- the datasets library ------------------------------------------------------------------------


@pytest.fixture
def datasets(tmp_path, monkeypatch):
    """The library, quiet and with its cache in a temporary place."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    was_shown = datasets.is_progress_bar_enabled()
    datasets.disable_progress_bars()
    yield datasets
    if was_shown:
        datasets.enable_progress_bars()


@pytest.mark.parametrize("name", ["x.parquet", "odd [1] *.PARQUET"])
def test_parquet_reads_back(tmp_path, datasets, name):
    datasets.Dataset.from_list(_rows(GOLD)).to_parquet(tmp_path / name)
    examples = read_examples(tmp_path / name)
    assert examples == GOLD
    assert examples[0].context is examples[2].context
    assert not (tmp_path / "cache").exists()


def test_parquet_without_gold_and_with_missing_values(tmp_path, datasets):
    datasets.Dataset.from_list(_rows(WITHOUT_GOLD)).to_parquet(tmp_path / "x.parquet")
    assert read_examples(tmp_path / "x.parquet") == WITHOUT_GOLD
    rows = [{"question": "?", "context": "A", "id": 5, "answers": [{"text": "A"}]}]
    rows.append({"question": "?", "context": "B", "id": None, "answers": None})
    datasets.Dataset.from_list(rows).to_parquet(tmp_path / "x.parquet")
    examples = [Example("5", "?", "A", ("A",)), Example("1", "?", "B")]
    assert read_examples(tmp_path / "x.parquet") == examples


def test_parquet_of_more_rows_than_a_batch(tmp_path, datasets):
    rows = [{"question": f"{n}?", "context": "A"} for n in range(2345)]
    datasets.Dataset.from_list(rows).to_parquet(tmp_path / "x.parquet")
    examples = read_examples(tmp_path / "x.parquet")
    assert examples == [Example(str(n), f"{n}?", "A") for n in range(2345)]


def test_faulty_parquet(tmp_path, datasets):
    path = tmp_path / "x.parquet"
    path.write_bytes(b"PAR1 and nothing of parquet PAR1")
    pattern = r"FILE is not readable as parquet \(.+\); write it again"
    assert re.fullmatch(pattern, _message(path).replace(str(path), "FILE"))
    datasets.Dataset.from_list([{"question": "?", "text": "A"}]).to_parquet(path)
    _expect(path, "FILE, row 0 lacks context (found: 'question', 'text'); add or rename it")
    datasets.Dataset.from_list([{"question": "?", "context": 5}]).to_parquet(path)
    _expect(path, "FILE, row 0: context is 5 (int), but must be a string; correct it")


def test_csv_as_the_datasets_library_writes_it(tmp_path, datasets):
    datasets.Dataset.from_list(_rows(GOLD)).to_csv(tmp_path / "x.csv")
    assert "array([" in (tmp_path / "x.csv").read_text()
    assert read_examples(tmp_path / "x.csv") == GOLD


def test_json_as_the_datasets_library_writes_it(tmp_path, datasets):
    datasets.Dataset.from_list(_rows(GOLD)).to_json(tmp_path / "x.json")
    assert read_examples(tmp_path / "x.json") == GOLD


@pytest.fixture
def hub_set(tmp_path, datasets):
    """A folder that the library takes for a data set: two splits, two configurations."""
    folder = tmp_path / "tiny"
    for config, examples in [("full", GOLD), ("short", GOLD[:2])]:
        table = datasets.Dataset.from_list(_rows(examples))
        table.to_parquet(folder / config / "train.parquet")
        table.select([0]).to_parquet(folder / config / "validation.parquet")
    (folder / "README.md").write_text(
        "---\nconfigs:\n- config_name: full\n  default: true\n  data_dir: full\n"
        "- config_name: short\n  data_dir: short\n---\n"
    )
    return str(folder)


def test_hub_data_set(hub_set):
    examples = load_hub_dataset(hub_set, "train")
    assert examples == GOLD
    assert examples[0].context is examples[2].context
    assert load_hub_dataset(hub_set, "validation") == GOLD[:1]
    assert load_hub_dataset(hub_set, "train[1:3]") == GOLD[1:3]
    assert load_hub_dataset(f"{hub_set}:short", "train") == GOLD[:2]


def test_hub_data_set_of_json_lines(tmp_path, datasets):
    folder = tmp_path / "lines"
    folder.mkdir()
    (folder / "train.jsonl").write_text(_json_lines(_rows(GOLD, _pairs)))
    assert load_hub_dataset(str(folder), "train") == GOLD


def _hub_message(name: str, split: str) -> str:
    with pytest.raises(UserError) as caught:
        load_hub_dataset(name, split)
    return str(caught.value)


CURE = "check both names, or pass --train_file/--validation_file instead when offline"


def test_hub_errors(tmp_path, hub_set, datasets):
    # Between the parentheses stands the library's own message.
    for name, split, detail in [
        (hub_set, "test", "test"),
        (f"{hub_set}:long", "train", "long"),
        (str(tmp_path / "none"), "train", "none"),
    ]:
        start = f"split {split!r} of the data set {_shown(name)} cannot be loaded ("
        message = _hub_message(name, split)
        assert message.startswith(start)
        assert message.endswith(f"); {CURE}")
        assert detail in message[len(start) :]
        assert "\n" not in message


def _shown(name: str) -> str:
    """A name as messages show it, cut at 60 characters."""
    whole = repr(name)
    return whole if len(whole) <= 60 else f"{whole[:28]}...{whole[-29:]}"


def test_hub_columns(tmp_path, datasets):
    folder = tmp_path / "columns"
    rows = [{"question": "?", "passage": "A", "answers": ["A"]}]
    datasets.Dataset.from_list(rows).to_parquet(folder / "train.parquet")
    assert _hub_message(str(folder), "train") == (
        f"data set {_shown(str(folder))}, split 'train' lacks context "
        "(found: 'question', 'passage', 'answers'); add or rename it"
    )
    rows = [{"question": "?", "context": "A", "answers": 5}]
    datasets.Dataset.from_list(rows).to_parquet(folder / "train.parquet")
    assert _hub_message(str(folder), "train") == (
        f"data set {_shown(str(folder))}, split 'train', row 0: "
        "answers is 5 (int), but must be a list; correct it"
    )


def test_hub_offline(tmp_path):
    # In a process of its own: the libraries look at the variable when they are imported.
    script = "from bertqa.data.readers import load_hub_dataset as load; load('squad', 'train')"
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True
    )
    last = done.stderr.splitlines()[-1]
    start = "bertqa.errors.UserError: split 'train' of the data set 'squad' cannot be loaded ("
    assert last.startswith(start), done.stderr
    assert last.endswith(f"); {CURE}")


# --- what the examples hold ----------------------------------------------------------------------


def _refusal(check, examples: list[Example]) -> str:
    with pytest.raises(UserError) as caught:
        check(examples, "x.json")
    return str(caught.value)


def test_good_examples_pass():
    check_examples(GOLD, "x.json")
    check_examples(WITHOUT_GOLD, "x.json")
    check_answers(GOLD, "x.json")


@pytest.mark.parametrize(
    ("examples", "sentence"),
    [
        ([], "x.json holds no examples; give at least one question"),
        (
            [Example(name, "?", "A") for name in "abcbdabe"],
            "x.json: the id 'a' stands 2 times (2 repeated ids in all); give each question its own",
        ),
        (
            [Example("a", "?", "A"), Example("b", "", "A"), Example("c", "\n\u3000", "A")],
            "x.json: question 'b' has a blank question (2 such in all); "
            "fill it in or remove the question",
        ),
        (
            [Example("a", "?", "A"), Example("b\n", "?", "\t\u00a0")],
            "x.json: question 'b\\n' has a blank context (1 such in all); "
            "fill it in or remove the question",
        ),
    ],
)
def test_check_examples(examples, sentence):
    assert _refusal(check_examples, examples) == sentence


@pytest.mark.parametrize(
    ("faulty", "sentence"),
    [
        (
            [Example("a", "?", "A"), Example("b", "?", "A")],
            "question 'a' has no gold answers (2 such in all); "
            "add them, or an empty list if there is no answer",
        ),
        (
            [Example("a", "?", "A", ("A",))],
            "question 'a' has answer texts and answer_starts in different numbers, 1 and 0 "
            "(1 such in all); give one answer_start for each text",
        ),
        (
            [Example("a", "?", "A", (), (0,)), Example("b", "?", "A", ("A", "A"), (0,))],
            "question 'a' has answer texts and answer_starts in different numbers, 0 and 1 "
            "(2 such in all); give one answer_start for each text",
        ),
        (
            [Example("a", "?", "A b", ("A", ""), (0, 1)), Example("b", "?", "A b", (" ",), (1,))],
            "question 'a' has a blank answer text (2 such in all); "
            "give an empty list if there is no answer",
        ),
        (
            [Example("a", "?", "🏚 red\ndoor", ("🏚", "red"), (0, 4))],  # UTF-16 units, not points.
            "question 'a' has the answer 'red', but its context has 'd\\nd' at answer_start 4 "
            "(1 such in all); count the code points before it, from 0",
        ),
        (
            # From the end, the text would be there; past the end, nothing is.
            [Example("a", "?", "red door", ("red",), (-8,)), Example("b", "?", "A", ("A",), (9,))],
            "question 'a' has the answer 'red', but its context has '' at answer_start -8 "
            "(2 such in all); count the code points before it, from 0",
        ),
    ],
)
def test_check_answers(faulty, sentence):
    assert _refusal(check_answers, [*GOLD, *faulty]) == f"x.json: {sentence}"


# --- holding out ---------------------------------------------------------------------------------


def _about(*titles: str) -> list[Example]:
    """A question about each title, each with a context of its own."""
    return [
        Example(str(i), "Who?", f"{title} {i}", ("x",), (0,), title)
        for i, title in enumerate(titles)
    ]


def test_whole_articles_are_held_out_evenly_and_nothing_is_lost():
    examples = _about(*"aabbccddeeffgghhiijja")  # ten articles, the first is taken up again
    train, held = split_by_article(examples, 20)
    assert {e.title for e in held} == {"e", "j"}
    assert {e.title for e in train} == set("abcdfghi")
    assert sorted(train + held, key=lambda e: int(e.id)) == examples
    assert train == [e for e in examples if e in train]  # in order


@pytest.mark.parametrize(("percentage", "number"), [(1, 2), (10, 20), (33, 66), (50, 100)])
def test_as_many_articles_are_held_out_as_asked_for(percentage, number):
    train, held = split_by_article(_about(*map(str, range(200))), percentage)
    assert (len(held), len(train)) == (number, 200 - number)


def test_at_least_one_article_is_held_out():
    train, held = split_by_article(_about("a", "b", "c"), 10)
    assert ([e.title for e in train], [e.title for e in held]) == (["a", "b"], ["c"])


def test_without_titles_contexts_are_kept_together():
    examples = [Example(str(i), "Who?", f"text {i // 3}", ("x",), (0,)) for i in range(30)]
    train, held = split_by_article(examples, 10)
    assert {e.context for e in held} == {"text 9"}
    assert len(train) == 27


def test_one_article_cannot_be_divided():
    with pytest.raises(UserError, match=r"--validation_split_percentage 10 .* about one article"):
        split_by_article(_about("a", "a"), 10)


def test_titles_are_read_from_both_forms_and_anything_may_stand_there(tmp_path):
    qas = [{"question": "Who?", "id": "1"}]
    nested = {"data": [{"title": "River", "paragraphs": [{"context": "Ada.", "qas": qas}]}]}
    flat = {"data": [{"question": "Who?", "context": "Ada.", "title": t} for t in ("River", 7)]}
    for document, titles in ((nested, ["River"]), (flat, ["River", ""])):
        path = tmp_path / "titled.json"
        path.write_text(json.dumps(document))
        assert [e.title for e in read_examples(path)] == titles
    table = tmp_path / "titled.csv"
    table.write_text("question,context,title\nWho?,Ada.,River\nWho?,Bo.,\n")
    assert [e.title for e in read_examples(table)] == ["River", ""]
