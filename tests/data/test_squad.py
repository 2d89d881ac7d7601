"""Reading of data: every format gives the same examples, every fault one message."""

import csv
import gzip
import io
import json
import logging
import os
import re
import subprocess
import sys
import tracemalloc
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import Table, parquet

from bertqa.data.formats import has_row_each
from bertqa.data.readers import iter_rows, load_hub_dataset, read_examples
from bertqa.data.squad import Example, check_answers, check_examples, split_by_article
from bertqa.errors import UserError

# Has a character beyond 16 bits before the answers, and line ends of every kind between them.
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


# --- the same examples in every format -----------------------------------------------------------


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


def _articles(examples: list[Example], v2: bool) -> list[dict]:
    """Return SQuAD's nested format, with extra keys."""
    paragraphs: dict[str, list] = {}
    for e in examples:
        qa = {"id": e.id, "question": e.question, "answers": _pairs(e)}
        if v2:
            qa["is_impossible"] = e.is_impossible
            qa["plausible_answers"] = [{"text": "The", "answer_start": 0}]
        for answer in qa["answers"]:
            answer["start_guessed"] = True
        paragraphs.setdefault(e.context, []).append(qa)
    return [
        {"topic": "x", "paragraphs": [{"context": context, "qas": qas, "source": "y"}]}
        for context, qas in paragraphs.items()
    ]


ARTICLES = {version: _articles(GOLD, v2=version == "v2.0") for version in ("1.1", "v2.0")}
PARAGRAPHS = [paragraph for article in ARTICLES["v2.0"] for paragraph in article["paragraphs"]]


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
    """Write answers as pandas writes a cell from Arrow."""
    starts = ", ".join(f"np.int64({start})" for start in answers["answer_start"])
    texts = f"array({answers['text']!r},\n dtype=object)"
    return f"{{'text': {texts}, 'answer_start': array([{starts}], dtype=object)}}"


FORMATS = {
    "nested-v1": ("x.json", json.dumps({"version": "1.1", "data": ARTICLES["1.1"]}), GOLD),
    "nested-v2": ("x.json", json.dumps({"data": ARTICLES["v2.0"]}), GOLD),
    "articles": ("x.json", json.dumps(ARTICLES["v2.0"]), GOLD),
    "one-article": ("x.json", json.dumps(ARTICLES["1.1"][0]), GOLD[:3]),
    "paragraphs": ("x.json", json.dumps(PARAGRAPHS), GOLD),
    "paragraphs-in-data": ("x.json", json.dumps({"data": PARAGRAPHS}), GOLD),
    "one-paragraph": ("x.json", json.dumps(PARAGRAPHS[1]), GOLD[3:]),
    "lines-paragraphs": (
        "x.jsonl",
        _json_lines([{"header": {"dataset": "x"}}, *PARAGRAPHS]),
        GOLD,
    ),
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
    "csv-semicolons": ("x.csv", "\n" + _table(_cells(GOLD, json.dumps), delimiter=";"), GOLD),
    "csv-tabs": ("x.csv", _table(_single(ONE_ANSWER), delimiter="\t"), ONE_ANSWER),
    "tsv-commas": ("x.tsv", _table(_cells(GOLD, json.dumps)), GOLD),
}


@pytest.mark.parametrize("compressed", [False, True], ids=["plain", "gz"])
@pytest.mark.parametrize("form", FORMATS)
def test_every_format_gives_the_same_examples(tmp_path, form, compressed):
    name, text, expected = FORMATS[form]
    path = tmp_path / (name + ".gz" if compressed else name)
    path.write_bytes(gzip.compress(text.encode()) if compressed else text.encode())
    assert read_examples(path) == expected


@pytest.mark.parametrize("form", ["nested-v2", "flat", "lines", "lines-in-json", "csv-json"])
def test_a_byte_order_mark_is_dropped(tmp_path, form):
    name, text, expected = FORMATS[form]
    (tmp_path / name).write_bytes(text.encode("utf-8-sig"))
    assert read_examples(tmp_path / name) == expected


def test_a_byte_order_mark_on_a_later_line_is_text(tmp_path):
    (tmp_path / "x.csv").write_text('question,context\n?,"A\n\ufeffB"\n', encoding="utf-8")
    assert read_examples(tmp_path / "x.csv") == [Example("0", "?", "A\n\ufeffB")]


@pytest.mark.parametrize("compressed", [False, True])
def test_gzip_is_detected_by_content_not_by_name(tmp_path, compressed):
    path = tmp_path / ("x.jsonl" if compressed else "x.jsonl.gz")
    text = FORMATS["lines"][1].encode()
    path.write_bytes(gzip.compress(text) if compressed else text)
    assert read_examples(path) == GOLD


@pytest.mark.parametrize("form", FORMATS)
def test_equal_texts_are_one_object(tmp_path, form):
    name, text, _ = FORMATS[form]
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


@pytest.mark.parametrize("key", ["id", "qid", "question_id", "guid", "_id"])
@pytest.mark.parametrize("name", ["x.jsonl", "x.csv"])
def test_ids_under_their_usual_names(tmp_path, name, key):
    rows = [{"question": "a?", "context": "A", key: value} for value in ("b7", 12)]
    (tmp_path / name).write_text(_json_lines(rows) if name == "x.jsonl" else _table(rows))
    assert [e.id for e in read_examples(tmp_path / name)] == ["b7", "12"]


def test_generated_ids_are_unique(tmp_path):
    rows = [{"question": "a?", "context": "A"} for _ in range(4)]
    for number, name in [(1, 0), (3, "row 0")]:
        rows[number]["id"] = name
    (tmp_path / "x.jsonl").write_text(_json_lines(rows))
    printed = []
    examples = read_examples(tmp_path / "x.jsonl", say=printed.append)
    assert [e.id for e in examples] == ["row row 0", "0", "2", "row 0"]
    (line,) = printed
    assert "x.jsonl: 4 questions; 2 without an id" in line and "4 without gold answers" in line
    lines = [r.example.id for r in iter_rows(tmp_path / "x.jsonl", one_by_one=True)]
    assert lines == ["line 1", "0", "line 3", "row 0"]


def _said(path: Path) -> list[str]:
    printed: list[str] = []
    read_examples(path, say=printed.append)
    return printed


def test_missing_values_and_ignored_keys_are_reported(tmp_path):
    path = tmp_path / "x.json"
    path.write_text(json.dumps([{"question": "?", "context": "A", "id": 1, "target": "A"}]))
    assert _said(path) == [
        f"{path}: 1 question; 1 without gold answers, excluded from EM and F1; ignored keys: "
        "'target'"
    ]


UNREAD = [
    ({"answers": {"text": ["A"], "start": [0]}}, "'answers.start'"),
    ({"answers": [{"text": "A", "start": 0}, {"text": "b", "end": 3}]}, "'answers.start', "),
    ({"answer": {"text": "A", "answer_start": 0, "html_answer_start": 3}}, "'answer.html_answer_"),
    ({"answers": ["A"], "start": 0}, "'start'"),
    ({"answers": ["A"], "text": "B"}, "'text'"),
    ({"answers": ["A"], "answers.answer_start": [0]}, "'answers.answer_start'"),
]


@pytest.mark.parametrize(("gold", "names"), UNREAD)
@pytest.mark.parametrize("name", ["x.json", "x.jsonl", "x.csv", "x.parquet"])
def test_ignored_keys_are_listed(tmp_path, datasets, name, gold, names):
    _write(tmp_path / name, _row(GOLD[0]) | gold, datasets)
    (line,) = _said(tmp_path / name)
    assert f"x.{name[2:]}: 1 question; ignored keys: {names}" in line


def test_ignored_keys_are_listed_on_every_level(tmp_path):
    qas = [_row(GOLD[0], answers=_lists(GOLD[0]), answerable=True, plausible_answers=[])]
    del qas[0]["context"]
    paragraph = {"context": MILL, "qas": qas, "source": "x"}
    article = {"title": "Mill", "paragraphs": [paragraph], "url": "y", "qas": []}
    path = tmp_path / "x.json"
    path.write_text(json.dumps({"version": "2", "data": [article], "license": "z"}))
    (line,) = _said(path)
    assert line.endswith(
        "ignored keys: 'document.license', 'article.url', 'article.qas', 'paragraph.source', "
        "'answerable'"
    )
    squad = json.loads(json.dumps(ARTICLES["v2.0"]), object_hook=_only_squad)
    path.write_text(json.dumps({"version": "v2.0", "data": squad}))
    assert _said(path) == []


def _only_squad(entry: dict) -> dict:
    """Return only the keys of SQuAD."""
    return {key: entry[key] for key in entry if key not in ("topic", "source", "start_guessed")}


DIFFERENT = [
    ({"answers": ["A"], "answer": "b"}, "answers and answer must agree, got 'A' and 'b'"),
    ({"answers": _lists(GOLD[0]), "answer_text": "A"}, "answers and answer_text must agree"),
    ({"answers": [], "answer": "A"}, "answer and answers must agree, got 'A' and no answer"),
    ({"answers": ["A", "b"], "answer": ["b", "C"]}, "'A', 'b' and 'b', 'C'"),
    (
        {"answers": {"text": ["A"], "answer_start": [0]}, "answer_start": 3},
        "answer_start must agree with the answers, got [3] and [0]",
    ),
    (
        {
            "answers": {"text": ["A"], "answer_start": [0]},
            "answer": {"text": ["A"], "answer_start": [3]},
        },
        "got 'A' at [0] and 'A' at [3]",
    ),
    (
        {"answer": ["A"], "answers.text": ["b"], "answers.answer_start": [0]},
        "answers.text and answer must agree",
    ),
]


@pytest.mark.parametrize(("gold", "words"), DIFFERENT)
@pytest.mark.parametrize("name", ["x.json", "x.jsonl", "x.csv", "x.parquet"])
def test_contradictory_gold_is_rejected(tmp_path, datasets, name, gold, words):
    _write(tmp_path / name, _row(GOLD[0]) | gold, datasets)
    assert words in _message(tmp_path / name)


@pytest.mark.parametrize(
    ("gold", "answers", "starts"),
    [
        ({"answers": {"text": ["A"]}, "answer_start": 0}, ("A",), (0,)),
        ({"answers": [{"text": "A"}], "answer_start": [0]}, ("A",), (0,)),
        ({"answer": "A", "answers": ["b", "A"]}, ("b", "A"), ()),
        ({"answers": ["A"], "answer": {"text": "A", "answer_start": 0}}, ("A",), (0,)),
        (
            {
                "answers": {"text": ["b", "A"], "answer_start": [2, 0]},
                "answer_text": "A", "answer_start": 0,
            },
            ("b", "A"),
            (2, 0),
        ),
        ({"answers": [], "answer": "A", "is_impossible": False}, ("A",), ()),
        ({"answers": [], "answer": None, "answer_text": ""}, (), ()),
    ],
)  # fmt: skip
@pytest.mark.parametrize("name", ["x.json", "x.jsonl", "x.csv", "x.parquet"])
def test_consistent_gold_is_read(tmp_path, datasets, name, gold, answers, starts):
    _write(tmp_path / name, _row(GOLD[0]) | gold, datasets)
    (example,) = read_examples(tmp_path / name)
    assert (example.answers, example.answer_starts) == (answers, starts)


def _write(path: Path, row: dict, datasets) -> None:
    """Write a file of one row."""
    if path.suffix == ".parquet":
        datasets.Dataset.from_list([row]).to_parquet(path)
    else:
        write = {".json": json.dumps, ".jsonl": _json_lines, ".csv": _table}[path.suffix]
        path.write_text(write([row]))


def test_a_row_that_contradicts_its_paragraph_is_rejected(tmp_path):
    path = tmp_path / "x.json"
    qas = [{"question": "?", "context": "B", "title": "own"}]
    path.write_text(json.dumps([{"context": "A", "qas": qas, "title": "mine"}]))
    assert ", [0].qas[0]: context must be the paragraph's" in _message(path)
    path.write_text(json.dumps([{"paragraphs": [{"context": "B", "qas": qas, "title": "mine"}]}]))
    assert [e.title for e in read_examples(path)] == ["mine"]


def test_rows_with_a_fault_can_be_kept(tmp_path):
    faulty = [{"is_impossible": True, "answers": ["A"]}, {"question": 5}, {"answer": 7}]
    rows = [
        _row(GOLD[0], answers=_lists(GOLD[0])),
        *({"question": "?", "context": "A"} | f for f in faulty),
        5,
    ]
    (tmp_path / "x.json").write_text(json.dumps(rows))
    examples = read_examples(tmp_path / "x.json", keep_faulty=True)
    assert examples[0] == GOLD[0] and not GOLD[0].fault
    faults = [
        "answers must be empty if is_impossible is true, got 'A'",
        "question must be a string, got 5 (int)",
        "answer must be a list, got 7 (int)",
        "must be an object with question and context, got 5 (int)",
    ]
    assert [e.fault.rpartition(": ")[0] for e in examples[1:]] == faults
    assert examples[4].id == f"{tmp_path / 'x.json'}, [4]"


def test_a_missing_id_in_the_nested_format_is_the_number_of_the_row(tmp_path):
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
        ({"answers": {"text": [], "answer_start": []}, "is_impossible": True}, (), ()),
        ({"answers": {"text": ["A", "B"], "answer_start": None}}, ("A", "B"), ()),
        ({"answers": {"text": ["A"]}}, ("A",), ()),
        ({"answers": [{"text": "A"}]}, ("A",), ()),
        ({"answers": {"text": ["A", "B"], "answer_start": [0]}}, ("A", "B"), (0,)),
        ({"answers": {"text": ["A"], "answer_start": 0}}, ("A",), (0,)),
        ({"answer": "A", "answer_start": 0}, ("A",), (0,)),
        ({"answer": {"text": "B", "answer_start": 2, "html_answer_start": 9}}, ("B",), (2,)),
        ({"text": ["A", "B"], "answer_start": [0, 2]}, ("A", "B"), (0, 2)),
        ({"text": "any other text"}, None, ()),
        ({"answers": None, "answer_text": "B", "answer_start": 2}, ("B",), (2,)),
        (
            {
                "answers": ["B", "C"],
                "detected_answers": [{"text": "B", "char_spans": [[2, 2], [7, 7]]}],
            },
            ("B", "C"),
            (2, -1),
        ),
        # An unknown start, and one that pandas made a float.
        ({"answers": {"text": ["A", "B"], "answer_start": [None, -1]}}, ("A", "B"), ()),
        ({"answers": [{"text": "A"}, {"text": "B", "answer_start": 2.0}]}, ("A", "B"), (-1, 2)),
        ({"answers": {"text": ["A"], "answer_start": [float("nan")]}}, ("A",), ()),
        ({"answers": float("nan"), "is_impossible": float("nan")}, None, ()),
        # A blank answer among others, or with a position, is an error in the data.
        ({"answers": {"text": ["", "A"], "answer_start": [0, 0]}}, ("", "A"), (0, 0)),
        ({"answers": {"text": [""], "answer_start": [5]}}, ("",), (5,)),
    ],
)
def test_gold(tmp_path, gold, answers, starts):
    (tmp_path / "x.jsonl").write_text(json.dumps({"question": "?", "context": "A B"} | gold))
    (example,) = read_examples(tmp_path / "x.jsonl")
    assert (example.answers, example.answer_starts) == (answers, starts)
    assert example.is_impossible == (answers == ())


def test_gold_is_read_as_documented(tmp_path):
    text = (Path(__file__).parents[2] / "docs/data.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\".*)` \| `(.*)` \| `(.*)` \|$", text, re.MULTILINE)
    assert len(rows) > 20
    for gold, answers, starts in rows:
        row = f'{{"question": "Who?", "context": "Ada built it.", {gold}}}'
        (tmp_path / "x.jsonl").write_text(row)
        (example,) = read_examples(tmp_path / "x.jsonl")
        assert (repr(example.answers), repr(example.answer_starts)) == (
            answers.replace('"', "'"),
            starts,
        ), gold


NO_ANSWER = [
    {"answers": {"text": [""], "answer_start": start}} for start in ([-1], [None], [0], -1, None)
] + [
    {"answers": []},
    {"answers": {"text": [], "answer_start": [-1]}},
    {"answers": [{"text": " ", "answer_start": -1}]},
    {"answers": [""]},
    {"answer": ""},
    {"answer_text": "", "answer_start": -1},
    {"answer_text": None, "answer_start": -1},
]


@pytest.mark.parametrize("gold", NO_ANSWER, ids=str)
def test_all_ways_to_write_no_answer(tmp_path, gold):
    """With ``is_impossible`` false they all mean that no answer is given."""
    for impossible, answers in [(None, ()), (True, ()), (False, None)]:
        row = {"question": "?", "context": "A B", "is_impossible": impossible} | gold
        (tmp_path / "x.jsonl").write_text(json.dumps(row))
        assert read_examples(tmp_path / "x.jsonl") == [Example("0", "?", "A B", answers)]


@pytest.mark.parametrize(
    "cell",
    [
        "Series(['red'], [3])",
        "{'text': 0    red\ndtype: str}",
        "0    red\n1    mill\nName: text, dtype: object",
        "['red' ... 'mill']",
        "['it''s']",
    ],
)
@pytest.mark.parametrize("name", ["answers", "answer", "answer_text"])
def test_ambiguous_csv_cells_are_rejected(tmp_path, cell, name):
    (tmp_path / "x.csv").write_text(_table([{"question": "?", "context": "A", name: cell}]))
    assert ", line 2: an" in _message(tmp_path / "x.csv")


@pytest.mark.parametrize(
    ("cells", "answers", "starts"),
    [
        # As pandas and numpy print lists.
        ({"answers": "['an' 'an ox']"}, ("an", "an ox"), ()),
        ({"answers": "['an'\n \"it's\" 'a \\'b\\'']"}, ("an", "it's", "a 'b'"), ()),
        ({"answers": "[np.str_('an') np.str_('ox')]"}, ("an", "ox"), ()),
        ({"answers": "{'text': ['an' 'ox'], 'answer_start': [ 3 -7]}"}, ("an", "ox"), (3, -7)),
        ({"answers": "{'text': array(['ox'], dtype=object)}"}, ("ox",), ()),
        ({"answers": "[{'text': 'an'}\n {'text': 'ox'}]"}, ("an", "ox"), ()),
        # One start.
        *(
            ({"answer_text": "ox", "answer_start": cell}, ("ox",), starts)
            for cell, starts in [("3.0", (3,)), ("-1", ()), ("", ()), ("0003", (3,))]
        ),
        # One answer, or a list.
        ({"answer_text": ""}, None, ()),
        ({"answer": "an ox"}, ("an ox",), ()),
        ({"answer": "[1] ox"}, ("[1] ox",), ()),
        ({"answer": "[1]"}, ("[1]",), ()),
        ({"answer": "[sic]"}, ("[sic]",), ()),
        ({"answer": "{ox}"}, ("{ox}",), ()),
        ({"answer": "[]"}, (), ()),
        ({"answer": "['an' 'ox']"}, ("an", "ox"), ()),
        ({"answer": "{'text': ['ox'], 'answer_start': [3]}"}, ("ox",), (3,)),
        ({"answer": "", "is_impossible": "0.0"}, None, ()),
        ({"text": "ox", "answer_start": "3.0"}, ("ox",), (3,)),
        ({"text": "['an' 'ox']", "answer_start": "[0 3]"}, ("an", "ox"), (0, 3)),
        ({"text": "", "answer_start": "-1"}, (), ()),
        ({"text": "", "answer_start": ""}, None, ()),
        ({"answers.text": "['ox']", "answers.answer_start": "[3]"}, ("ox",), (3,)),
        ({"answers": '"ox"'}, ("ox",), ()),
    ],
)
def test_csv_gold(tmp_path, cells, answers, starts):
    (tmp_path / "x.csv").write_text(_table([{"question": "?", "context": "an ox"} | cells]))
    assert read_examples(tmp_path / "x.csv") == [Example("0", "?", "an ox", answers, starts)]


def test_csv_with_a_huge_field_blank_lines_and_unnamed_columns(tmp_path):
    context = "long " * 100_000
    (tmp_path / "x.csv").write_text(f",question,,context\n\n0,?,,{context}\n\n")
    assert read_examples(tmp_path / "x.csv") == [Example("0", "?", context)]


# Without the null character, which Python 3.10's csv module rejects.
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
    expected = [
        e if any(map(str.strip, e.answers or ("x",))) else replace(e, answers=()) for e in examples
    ]
    cells = [row | {"answers": json.dumps(row["answers"])} for row in rows]
    literals = [row | {"answers": str(row["answers"])} for row in rows]
    for name, text in [
        ("x.jsonl", _json_lines(rows, ascii_only=not raw)),
        ("x.json", json.dumps(rows, ensure_ascii=not raw)),
        ("x.csv", _table(cells)),
        ("x.tsv", _table(literals, delimiter="\t")),
    ]:
        (folder / name).write_text(text, encoding="utf-8", newline="")
        assert read_examples(folder / name) == expected, name


# --- streaming -----------------------------------------------------------------------------------


def test_iter_rows_stops_reading_at_the_line_it_yields(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text(_json_lines(_rows(GOLD[:1])) + "{broken\n")
    lines = iter_rows(path)
    assert next(lines).example == GOLD[0]
    assert "x.jsonl, line 2, " in next(lines).fault


def test_a_broken_parquet_file_is_reported_once(tmp_path, caplog):
    """Only by the error, not also by a log line of the library."""
    path = tmp_path / "broken.parquet"
    path.write_text("no table")
    with pytest.raises(UserError, match=r"broken\.parquet: must be parquet"):
        read_examples(path)
    assert not [record for record in caplog.records if record.name.startswith("datasets")]


@pytest.mark.skipif(not Path("/dev/zero").is_char_device(), reason="needs /dev/zero")
@pytest.mark.parametrize("ending", [".json", ".jsonl", ".csv"])
def test_a_device_is_not_read(tmp_path, ending):
    path = tmp_path / f"endless{ending}"
    path.symlink_to("/dev/zero")
    with pytest.raises(UserError, match=f"{path.name}: must be a file or a pipe, got a device"):
        read_examples(path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_iter_rows_yields_before_the_file_has_an_end(tmp_path):
    path = tmp_path / "x.jsonl"
    os.mkfifo(path)
    # The writer waits for input before it ends: a reader that waited for the end would hang.
    script = "import sys; f = open(sys.argv[1], 'w'); f.write(sys.argv[2]); f.flush(); input()"
    command = [sys.executable, "-c", script, str(path), _json_lines(_rows(GOLD[:2]))]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as writer:
        try:
            lines = iter_rows(path)
            assert [next(lines).example, next(lines).example] == GOLD[:2]
            assert writer.poll() is None
        finally:
            writer.communicate(b"\n", timeout=60)
    assert list(lines) == []


@pytest.mark.parametrize("form", ["plain", "gz", "parquet"])
def test_iter_rows_needs_constant_memory(tmp_path, form):
    rows = [{"question": f"{n}?", "context": f"{n} " * 500} for n in range(4000)]
    text = _json_lines(rows).encode()
    path = tmp_path / ("x.parquet" if form == "parquet" else "x.jsonl")
    if form == "parquet":
        parquet.write_table(Table.from_pylist(rows), path)
    else:
        path.write_bytes(gzip.compress(text, 1) if form == "gz" else text)
    tracemalloc.start()
    try:
        count = sum(1 for _ in iter_rows(path))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert count == 4000
    assert len(text) > 8_000_000
    assert peak < 1_000_000


def test_lines_with_several_questions_are_not_streamed(tmp_path):
    """predictions.jsonl has one answer per line."""
    path = tmp_path / "x.jsonl"
    for first, is_row in [({"header": {}}, False), (PARAGRAPHS[0], False), (_row(GOLD[0]), True)]:
        path.write_text(_json_lines([first, *PARAGRAPHS]))
        assert has_row_each(path) == is_row
    fault = list(iter_rows(path, one_by_one=True))[1].fault
    assert "line 2: must have one question, got 3" in fault
    assert len(list(iter_rows(path))) == 1 + len(GOLD)
    path.write_text("{broken")
    assert has_row_each(path) and has_row_each(tmp_path / "missing.jsonl")


def test_iter_rows_continues_after_faulty_lines(tmp_path):
    path = tmp_path / "x.jsonl"
    good = _json_lines(_rows(GOLD[:2])).encode().splitlines(keepends=True)
    bad = {
        b"{broken\n": "must be JSON, got",
        b'{"question": "\xff", "context": "x"}\n': "0xff",
        b"[" * 100_000 + b"\n": "nested too deeply",
        b'{"question": "Who?"}\n': "must have context",
        b'{"question": " ", "context": "x"}\n': "question with a visible",
        b'{"question": "Who?", "context": "\\u200b\\n "}\n': "a context with",  # of zero width
        b'{"question": "Who?", "context": "\\u0378"}\n': "",  # not assigned yet
        b'{"question": "Who?", "context": "\\ud83d"}': "surrogate",
    }
    path.write_bytes(good[0] + b"\n  \n" + b"".join(bad) + b"\n" + good[1])
    lines = list(iter_rows(path))
    assert [line.number for line in lines] == [1, *range(4, 4 + len(bad)), 4 + len(bad)]
    assert [line.example for line in (lines[0], lines[-1])] == GOLD[:2]
    for line, (raw, words) in zip(lines[1:-1], bad.items(), strict=True):
        assert line.raw.rstrip(b"\n") == raw.rstrip(b"\n")
        assert (line.example is None) == bool(words) == bool(line.fault)
        assert words in line.fault
        assert not line.fault or f"x.jsonl, line {line.number}" in line.fault


# --- faulty files --------------------------------------------------------------------------------


def _message(path: Path, read=read_examples) -> str:
    """Return the error message of a file without its name, with which it begins."""
    with pytest.raises(UserError) as caught:
        read(path)
    message = str(caught.value)
    assert message.startswith(str(path)) and "\n" not in message
    return message.removeprefix(str(path))


ROW = b'"question": "?", "context": "A b"'
GOOD = b"{%s}" % ROW
DEEP = b"[" * 200_000
ZIPPED = gzip.compress(b'[{"question": "who", "context": "long"}]' * 99)
PARAGRAPH = b'{"data": [{"paragraphs": [%s]}]}'
HEADER = b"question,context,answers\n"

# Contents of a file, and words of the message.
FAULTY_FILES = [
    # The file as a whole.
    ("x.json", b"", "got an empty file"),
    ("x.jsonl.gz", gzip.compress(b""), "got an empty file"),
    ("x.jsonl", b"\xef\xbb\xbf \n\n", "got only blank lines"),
    ("x.txt", b"hello", "'.txt'", ".json, .jsonl, .ndjson, .csv, .tsv, .parquet"),
    ("x.gz", b"{}", "must end in", "got ''"),
    ("cut.json.gz", ZIPPED[:-20], "must be intact gzip"),
    ("crc.json.gz", ZIPPED[:-8] + bytes(8), "must be intact gzip", "CRC"),
    ("noise.csv.gz", ZIPPED[:10] + b"\xff" * 30, "must be intact gzip"),
    ("x.parquet.gz", gzip.compress(b"PAR1"), "gunzip"),
    # Encoding.
    ("x.json", b'[\n{"question": "caf\xe9?"}]', "line 2", "0xe9"),
    ("x.jsonl", GOOD + b'\n\n{"question": "caf\xe9?"}', "line 3", "0xe9"),
    ("x.csv", b"\xff\xfeq\0", "line 1", "0xff"),
    ("x.csv", b"question,context\n?,x\n?,caf\xe9\n", "line 3", "0xe9"),
    # JSON.
    ("x.json", b'{"data": [\n  {"id": 1,}\n]}', "line 2, column 1", "must be JSON, got"),
    ("x.json", b'{"data": [1, 2', "line 1, column 15", "must be JSON, got"),
    ("x.json", b'{"data":\n []}\n{}', "line 3, column 1", "got '{}'"),
    ("x.json", GOOD + b"\nnonsense\n", "line 2, column 1", "got 'nonsense'"),
    ("x.jsonl", GOOD + b"\n\n{'question': 1}\n", "line 3, column 2", "must be JSON, got"),
    ("x.jsonl", b'{"question": "Who?", "context": "x\n' + GOOD, "line 1", "must be JSON, got"),
    ("x.json", DEEP, "line 1", "nested too deeply"),
    ("x.json", DEEP + b"\n[]", "line 1", "nested too deeply"),
    ("x.jsonl", GOOD + b'\n{"question":' + DEEP, "line 2", "nested too deeply"),
    ("x.json", b"[" + b"9" * 5000 + b"]", "line 1", "must be valid JSON"),
    ("x.json", b'[{"id": 1, "question": "?", "question": "!"}]', "key 'question', 2 times"),
    ("x.jsonl", GOOD + b'\n{"answers": {"text": [], "text": []}}', "line 2", "'text', 2 times"),
    # JSON that is not a dataset.
    ("x.json", b'{"foo": 1, "b\\nar": 2}', "must be a dataset", "'foo', 'b\\nar'"),
    ("x.json", b"{}", "must be a dataset", "nothing"),
    ("x.json", b"12", "must be a dataset", "12"),
    ("x.json", json.dumps({f"id{n}": "x" for n in range(12)}).encode(), "'id9', 2 more"),
    ("x.json", b'{"data": "x"}', "data must be a list, got 'x' (str)"),
    # The nested format.
    (
        "x.json",
        b'{"data": [{"paragraphs": []}, {"title": "t"}]}',
        "data[1]: must have question and context, got 'title'",
    ),
    (
        "x.json",
        b'{"data": [{"paragraphs": []}, []]}',
        "data[1]: must be an object",
        "got [] (list)",
    ),
    (
        "x.json",
        b'{"data": [{"paragraphs": {}}]}',
        "data[0]: paragraphs must be a list",
        "{} (dict)",
    ),
    ("x.json", PARAGRAPH % b'{"qas": [{}]}', "paragraphs[0]: must have context, got 'qas'"),
    ("x.json", PARAGRAPH % b'{"text": ""}', "must have qas, got 'text'"),
    ("x.json", PARAGRAPH % b'{"context": "A", "qas": 5}', "paragraphs[0]: qas", "got 5 (int)"),
    ("x.json", PARAGRAPH % b'{"context": null, "qas": [{}]}', "context must be a string, got None"),
    (
        "x.json",
        PARAGRAPH % b'{"context": "A", "qas": [{"question": "?"}, {"id": "i"}]}',
        "data[0].paragraphs[0].qas[1]: must have question",
    ),
    ("x.json", b'[{"context_text": "A", "qas": [{}]}]', "[0]: must have context", "CMRC"),
    ("x.json", b'{"data": [{"story": "A", "questions": []}]}', "data[0]: must have", "CoQA"),
    # Rows.
    ("x.json", b'{"data": [{"question": "?"}]}', "data[0]: must have context, got 'question'"),
    ("x.json", b'[%s, "?"]' % GOOD, "[1]: must be an object", "got '?' (str)"),
    ("x.jsonl", b'\n{"Question": "?", "text": "A"}', "line 2: must have question and context"),
    ("x.jsonl", b"[1, 2]", "line 1: must be an object", "got [1, 2] (list)"),
    (
        "x.jsonl",
        b'{"question": "?", "context": [%s1]}' % (b"1, " * 5000),
        "[1, 1, 1, 1, 1, 1, ...]",
    ),
    # CSV.
    ("x.csv", b"question|context\n", "line 1", "must have question and context"),
    ("x.csv", b"question;context\n?;A;B\n", "line 2: must have 2 fields", "got 3", "contain ';'"),
    ("x.csv", b"\n\nid,question,text\n", "line 3", "must have context"),
    ("x.csv", b"\n", "must have question and context", "nothing"),
    ("x.csv", b"question,context,question\n", "line 1", "'question' twice"),
    ("x.csv", HEADER + b"7,?\n", "line 2: must have 3 fields", "got 2", "'7'"),
    ("x.csv", HEADER + b'1,"two\nlines",\n\n8,?,A, b\n', "line 5", "got 4", "'8'"),
    ("x.csv", HEADER + b'1,A,\n2,"never\nclosed\n', "line 3", "must be valid CSV"),
    ("x.csv", HEADER + b'1,"A" b,\n', "line 2", "must be valid CSV"),
    ("x.csv", b"question,context\r?,A\r", "line 1", "must be valid CSV", "line ends"),
    ("x.csv", HEADER + b"?,A,Paris\n", "line 2", "JSON or a Python literal, got 'Paris'"),
    ("x.csv", HEADER + b"?,A,__import__('os').getcwd()\n", "line 2", "JSON or a Python literal"),
    ("x.csv", HEADER + b"?,A," + b"[" * 9999 + b"\n", "line 2", "[[...[[", "JSON or a Python"),
    (
        "x.csv",
        HEADER + b"?,A,'red' 'mill'\n",
        "answers must be a list, got ('red', 'mill') (tuple)",
    ),
    ("x.csv", HEADER + b"?,A,5\n", "line 2", "answers must be a list, got 5 (int)"),
    ("x.csv", b"question,context,answer_text,answer_start\n?,A,A,1.5\n", "answer_start", "'1.5'"),
    ("x.csv", b"question,context,is_impossible\n?,A,maybe\n", "is_impossible", "got 'maybe'"),
    ("x.tsv", b"question\tcontext\n?\ta\tb\n", "line 2: must have 2 fields", r"'\t'"),
]

# Faults inside a row.
FAULTY_ROWS = [
    (b'"question": 12, "context": "A"', "question must be a string, got 12 (int)"),
    (b'"question": "?", "context": ["A"]', "context must be a string, got ['A'] (list)"),
    (b'"question": "?", "context": "\\ud83d"', "context must not contain a lone surrogate"),
    (b'"question": "\\udc00", "context": ""', "question must not contain a lone surrogate"),
    (b'"id": 1.5, ' + ROW, "id must be a string or a whole number, got 1.5 (float)"),
    (b'"id": true, ' + ROW, "id must be", "got True (bool)"),
    (b'"id": "\\ud83d", ' + ROW, "id must not contain a lone surrogate"),
    (b'"is_impossible": "no", ' + ROW, "is_impossible must be true or false, got 'no' (str)"),
    (b'"is_impossible": 1, ' + ROW, "is_impossible must be", "got 1 (int)"),
    (b'"is_impossible": true, "answers": ["A"], ' + ROW, "is_impossible is true", "'A'"),
    (b'"answers": 5, ' + ROW, "answers must be a list, got 5 (int)"),
    (b'"answers": ["A", 5], ' + ROW, "an answer must be a string, got 5 (int)"),
    (b'"answers": ["A", {"text": "A"}], ' + ROW, "an answer: must be an object", "'A' (str)"),
    (b'"answers": [{"answer_start": 0}], ' + ROW, "an answer: must have text"),
    (b'"answers": [{"text": "A", "answer_start": "12"}], ' + ROW, "answer_start", "'12' (str)"),
    (b'"answers": {"answer_start": [0]}, ' + ROW, "answers: must have text"),
    (b'"answer": 5, ' + ROW, "answer must be a list, got 5 (int)"),
    (b'"answers": {"text": 7, "answer_start": 0}, ' + ROW, "text must be a list, got 7 (int)"),
    (b'"answers": ["A"], "detected_answers": ["A"], ' + ROW, "detected_answers", "['A'] (list)"),
    (b'"qid": 1.5, ' + ROW, "qid must be a string or a whole number, got 1.5 (float)"),
    (b'"answers": {"text": ["A"], "answer_start": [12.5]}, ' + ROW, "answer_start", "got 12.5"),
    (b'"answers": {"text": ["A"], "answer_start": [true]}, ' + ROW, "answer_start", "got True"),
    (
        b'"answers": {"text": ["\\ud83d"], "answer_start": [0]}, ' + ROW,
        "an answer must not contain",
    ),
]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [(name, content, words) for name, content, *words in FAULTY_FILES],
    ids=[f"{name} {words[0]}" for name, _, *words in FAULTY_FILES],
)
def test_faulty_files(tmp_path, name, content, words):
    (tmp_path / name).write_bytes(content)
    message = _message(tmp_path / name)
    assert [word for word in words if word not in message] == [], message


@pytest.mark.parametrize(("row", "words"), [(row, words) for row, *words in FAULTY_ROWS])
def test_faulty_rows(tmp_path, row, words):
    path = tmp_path / "x.jsonl"
    path.write_bytes(GOOD + b"\n{%s}\n" % row)
    message = _message(path)
    assert [word for word in (", line 2: ", *words) if word not in message] == [], message
    assert list(iter_rows(path))[1].fault == str(path) + message


@pytest.mark.parametrize("read", [read_examples, lambda path: list(iter_rows(path))])
def test_files_that_cannot_be_opened(tmp_path, read):
    assert "must be an existing file" in _message(tmp_path / "none.jsonl", read)
    (tmp_path / "folder.jsonl").mkdir()
    assert "got a directory" in _message(tmp_path / "folder.jsonl", read)
    loop = tmp_path / "loop.jsonl"
    loop.symlink_to(loop)
    assert "Too many levels of symbolic links" in _message(loop, read)


@pytest.mark.skipif(getattr(os, "geteuid", lambda: 0)() == 0, reason="root may read everything")
def test_a_file_without_permission(tmp_path):
    path = tmp_path / "x.json"
    path.write_text("{}")
    path.chmod(0)
    assert "Permission denied" in _message(path)


# --- the datasets library ------------------------------------------------------------------------


@pytest.fixture
def datasets(tmp_path, monkeypatch):
    """The library, without progress bars and with a temporary cache."""
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
    assert ": must be parquet" in _message(path)
    datasets.Dataset.from_list([{"question": "?", "text": "A"}]).to_parquet(path)
    assert ", row 0: must have context, got 'question', 'text'" in _message(path)
    datasets.Dataset.from_list([{"question": "?", "context": 5}]).to_parquet(path)
    assert ", row 0: context must be a string, got 5 (int)" in _message(path)


def test_csv_as_the_datasets_library_writes_it(tmp_path, datasets):
    datasets.Dataset.from_list(_rows(GOLD)).to_csv(tmp_path / "x.csv")
    assert "array([" in (tmp_path / "x.csv").read_text()
    assert read_examples(tmp_path / "x.csv") == GOLD


def test_json_as_the_datasets_library_writes_it(tmp_path, datasets):
    datasets.Dataset.from_list(_rows(GOLD)).to_json(tmp_path / "x.json")
    assert read_examples(tmp_path / "x.json") == GOLD


@pytest.fixture
def hub_set(tmp_path, datasets):
    """A folder that the library loads as a dataset: two splits, two configurations."""
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
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_hub_errors(tmp_path, hub_set, datasets):
    for name, split, detail in [
        (hub_set, "test", "test"),
        (f"{hub_set}:long", "train", "long"),
        (str(tmp_path / "none"), "train", "none"),
    ]:
        message = _hub_message(name, split)
        assert message.startswith(f"--dataset {name!r}, split {split!r}: ")
        assert detail in message.partition("must be available (")[2]  # the library's message


def test_without_a_network_the_client_does_not_warn_of_each_attempt(monkeypatch):
    warns = []

    def load_dataset(*names, **options):
        client = logging.getLogger("huggingface_hub.utils._http")
        warns.append(client.isEnabledFor(logging.WARNING))
        raise ConnectionError("Couldn't reach 'squad_v2' on the Hub")

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    level = logging.getLogger("huggingface_hub").level
    message = _hub_message("squad_v2", "validation")
    assert message.startswith("--dataset 'squad_v2', split 'validation': must be available (Could")
    assert "--train_file" not in message
    assert warns == [False]
    assert logging.getLogger("huggingface_hub").level == level


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"passage": "A", "answers": ["A"]}, "'train', row 0: must have context, got 'question', "),
        ({"context": "A", "answers": 5}, "'train', row 0: answers must be a list, got 5 (int)"),
    ],
)
def test_hub_columns(tmp_path, datasets, row, words):
    table = datasets.Dataset.from_list([{"question": "?"} | row])
    table.to_parquet(tmp_path / "columns" / "train.parquet")
    assert words in _hub_message(str(tmp_path / "columns"), "train")


# --- contents of examples ------------------------------------------------------------------------


def test_valid_examples_pass():
    check_examples(GOLD, "x.json")
    check_examples(WITHOUT_GOLD, "x.json")
    check_answers(GOLD, "x.json")


def _example(**changes) -> Example:
    return replace(Example("b", "?", "A"), **changes)


@pytest.mark.parametrize(
    ("check", "examples", "words"),
    [
        (check_examples, [], "at least one question, got none"),
        (check_examples, [_example(id=i) for i in "abcbdabe"], "got 'a' 2 times (2 repeated"),
        (
            check_examples,
            [_example(id="a"), _example(question=""), _example(id="c", question="\n\u3000")],
            "'b': must have a question with a visible character, got '' (2 such",
        ),
        (check_examples, [_example(id="b\n", context="\t\u00a0")], r"'b\n': must have a context"),
        (check_answers, [_example(), _example()], "'b': must have gold answers, got none (2 such"),
        (check_answers, [_example(answers=("A",))], "answer texts, got 0 and 1 (1 such"),
        (
            check_answers,
            [
                _example(answers=(), answer_starts=(0,)),
                _example(answers=("A",) * 2, answer_starts=(0,)),
            ],
            "answer texts, got 1 and 0 (2 such",
        ),
        (check_answers, [_example(answers=("A",) * 2, answer_starts=(0, -1))], "got 1 and 2"),
        (
            check_answers,
            [_example(answers=("A", ""), answer_starts=(0, 1))],
            "no blank answer text, got ''",
        ),
        (
            # Counted in UTF-16 units, not in code points.
            check_answers,
            [_example(context="🏚 red\ndoor", answers=("🏚", "red"), answer_starts=(0, 4))],
            r"its answer 'red' at answer_start 4, got 'd\nd'",
        ),
        (
            # Counted from the end, the text would be there; after the end there is none.
            check_answers,
            [
                _example(context="red door", answers=("red",), answer_starts=(-8,)),
                _example(answers=("A",), answer_starts=(9,)),
            ],
            "its answer 'red' at answer_start -8, got '' (2 such",
        ),
    ],
)
def test_invalid_examples(check, examples, words):
    with pytest.raises(UserError) as caught:
        check([*GOLD, *examples] if examples else [], "x.json")
    assert str(caught.value).startswith("x.json") and words in str(caught.value)


# --- splitting -----------------------------------------------------------------------------------


def _about(*titles: str) -> list[Example]:
    """Make a question about each title, with different contexts."""
    return [
        Example(str(i), "Who?", f"{title} {i}", ("x",), (0,), title)
        for i, title in enumerate(titles)
    ]


def test_whole_articles_are_held_out_evenly():
    examples = _about(*"aabbccddeeffgghhiijja")  # ten articles; the first occurs again at the end
    train, held = split_by_article(examples, 20)
    assert {e.title for e in held} == {"e", "j"}
    assert {e.title for e in train} == set("abcdfghi")
    assert sorted(train + held, key=lambda e: int(e.id)) == examples
    assert train == [e for e in examples if e in train]  # in order


@pytest.mark.parametrize(("percentage", "number"), [(1, 2), (10, 20), (33, 66), (50, 100)])
def test_the_number_of_held_out_articles(percentage, number):
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


def test_one_article_cannot_be_split():
    with pytest.raises(UserError, match=r"--validation_split_percentage 10 .* got one"):
        split_by_article(_about("a", "a"), 10)


def test_titles_of_any_type_are_read_from_both_formats(tmp_path):
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
