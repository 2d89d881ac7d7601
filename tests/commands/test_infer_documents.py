"""infer --documents: a folder of texts or JSON lines, a table or JSON."""

import json
import os

import pytest

from bertqa.answering.answerer import QuestionAnswerer
from bertqa.data.documents import iter_documents
from bertqa.errors import UserError
from tests.commands.world import HERE, call

WHO = "Who built the quay?"
TEXTS = {
    "a.txt": "Ada built the quay\r\nin 1642.",
    "deep/er/B.MD": "\ufeffBen swept the e\u0301 town.",
    "deep/c.markdown": "",
}


@pytest.fixture
def notes(tmp_path):
    folder = tmp_path / "notes"
    for name, text in {**TEXTS, "picture.png": "no text"}.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(text.encode())
    return folder


def lines(tmp_path, *entries):
    path = tmp_path / "notes.jsonl"
    path.write_text("\n".join(e if isinstance(e, str) else json.dumps(e) for e in entries))
    return path


def test_the_documents_of_a_folder_are_sorted_by_name(notes):
    found = [(document["id"], document["text"]) for document in iter_documents(notes)]
    assert found == sorted((name, text.removeprefix("\ufeff")) for name, text in TEXTS.items())


def test_a_text_file_and_json_lines_as_documents(tmp_path, notes):
    assert [d["id"] for d in iter_documents(notes / "a.txt")] == ["a.txt"]
    first, *others = {"text": "a"}, {"id": "x", "text": "b", "year": 7}, {"id": None, "text": "c"}
    path = lines(tmp_path, "\ufeff" + json.dumps(first), "", *others)
    assert list(iter_documents(path)) == [
        {"id": 1, "text": "a"},
        {"id": "x", "text": "b", "year": 7},
        {"id": 4, "text": "c"},
    ]


def test_infer_documents_prints_the_answers_of_read(notes, checkpoint, capsys):
    flags = ["--model", checkpoint, "--question", WHO, "--documents", notes, "--top_k", 3, *HERE]
    assert call("infer", *flags, "--json") == 0
    qa = QuestionAnswerer.from_pretrained(checkpoint, device="cpu", precision="fp32")
    found = json.loads(capsys.readouterr().out)
    assert found == qa.read(WHO, iter_documents(notes), top_k=3)
    assert len(found) == 3
    assert call("infer", *flags) == 0
    table = capsys.readouterr().out.splitlines()
    assert len(table) == 6
    for entry, line, snippet in zip(found, table[::2], table[1::2], strict=True):
        location = f"{entry['document']}:{entry['start']}-{entry['end']}"
        answer = " ".join(entry["answer"].split())
        assert line.split(maxsplit=2) == [f"{entry['score']:.4f}", location, answer]
        assert f"[{answer}]" in snippet


def test_documents_with_the_same_id_show_their_number(tmp_path, checkpoint, capsys):
    texts = ("x", "Ada built it."), ("x", "Ben swept it."), ("y", "The town.")
    path = lines(tmp_path, *({"id": name, "text": text} for name, text in texts))
    flags = ["--model", checkpoint, "--question", WHO, "--documents", path, "--top_k", 30, *HERE]
    assert call("infer", *flags) == 0
    names = {line[10:].partition(":")[0] for line in capsys.readouterr().out.splitlines()[::2]}
    assert names == {"x (number 0)", "x (number 1)", "y"}


def test_no_answer_is_a_line_of_the_table(notes, checkpoint, capsys):
    flags = ["--model", checkpoint, "--question", WHO, "--documents", notes, *HERE]
    silent = ["--version_2_with_negative", "--null_score_diff_threshold=-1e9"]
    for more in (silent, ["--score_threshold", 1]):
        assert call("infer", *flags, *more) == 0
        assert capsys.readouterr().out.split(maxsplit=1)[1] == "(no answer)\n"


@pytest.mark.parametrize(
    ("entries", "words"),
    [
        ([{"text": "a"}, "{"], ["line 2", "must be JSON"]),
        ([{"text": "a"}, {"txt": "b"}], ["line 2", 'a string "text"']),
        (["[1]"], ["line 1", 'a string "text"']),
        ([{"text": None}], ["line 1", 'a string "text"']),
        ([""], ["must contain documents, got none"]),
    ],
)
def test_invalid_lines_are_rejected(tmp_path, entries, words):
    with pytest.raises(UserError) as refused:
        list(iter_documents(lines(tmp_path, *entries)))
    assert all(word in str(refused.value) for word in ("--documents", "notes.jsonl", *words))


def test_invalid_paths_of_documents_are_rejected(tmp_path, notes):
    (tmp_path / "empty").mkdir()
    os.mkfifo(tmp_path / "pipe.jsonl")
    os.mkfifo(tmp_path / "pipe")
    (notes / "latin.txt").write_bytes(b"caf\xe9")
    for path, words in {
        tmp_path / "empty": "must contain documents",
        tmp_path / "none": "must be an existing folder or file, got none",
        tmp_path / "none.jsonl": "must be an existing folder or file, got none",
        tmp_path / "pipe.jsonl": "must be a folder or file, got a pipe",
        tmp_path / "pipe": "must be a folder or file, got a pipe",
        notes / "picture.png": "must be a folder, JSON lines",
        notes: r"latin.txt: must be UTF-8",
    }.items():
        with pytest.raises(UserError, match=words):
            list(iter_documents(path))


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ([], "--documents requires --question"),
        (["--question", " "], "question must be a text with a visible character, got ' '"),
        (["--question", WHO, "--context", "a"], "--documents and --context exclude each other"),
        (["--question", WHO, "--explain"], "--documents and --explain exclude each other"),
        (["--question", WHO, "--all_offsets"], "--documents and --all_offsets exclude"),
        (["--question", WHO, "--top_k", "0"], "--top_k must be at least 1, got 0"),
        (["--demo"], "--documents requires --question"),
        (["--question", WHO, "--input", "x.json"], "exclude each other"),
    ],
)
def test_contradicting_flags_are_rejected(notes, capsys, flags, words):
    assert call("infer", "--model", "none", "--documents", notes, *flags) == 2
    assert words in capsys.readouterr().err


def test_blank_documents_are_rejected(tmp_path, checkpoint, capsys):
    path = lines(tmp_path, {"text": " "}, {"text": "\u200b"})
    flags = ["--model", checkpoint, "--question", WHO, "--documents", path, *HERE]
    assert call("infer", *flags) == 2
    assert "must contain visible text" in capsys.readouterr().err


def test_an_invalid_document_is_rejected_before_the_model_is_loaded(tmp_path, capsys):
    path = lines(tmp_path, {"text": "a"}, "{")
    assert call("infer", "--model", "none", "--question", WHO, "--documents", path) == 2
    assert "line 2: must be JSON" in capsys.readouterr().err
