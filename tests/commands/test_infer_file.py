"""bertqa infer --input and --dataset: validation of the rows, and the files written."""

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from bertqa.answering.answerer import QuestionAnswerer
from bertqa.commands import infer, infer_file
from bertqa.commands.infer_rows import LINE_FILES
from bertqa.errors import UserError
from tests.commands.world import CONTEXT, HERE, ROW, WINDOWS, World, call, read_json, run
from tests.helpers import contents


@pytest.fixture
def world(tmp_path: Path, checkpoint: Path) -> World:
    return World(tmp_path, checkpoint)


def test_json_lines_are_answered_line_by_line(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """An invalid line without and with --skip_bad."""
    lines = [json.dumps(ROW | {"id": name}) for name in ("a", "b")]
    (tmp_path / "in.jsonl").write_text(f"{lines[0]}\n{{}}\n{lines[1]}\n")
    flags = ["--model", checkpoint, *WINDOWS, *HERE, "--input", tmp_path / "in.jsonl"]
    flags += ["--output_dir", tmp_path / "out", "--top_k", 2, "--all_offsets"]
    assert call("infer", *flags) == 2
    assert "in.jsonl, line 2: " in capsys.readouterr().err
    assert call("infer", *flags, "--skip_bad") == 0
    printed = capsys.readouterr()
    assert re.search(r"\b2 lines answered .*, 1 rejected$", printed.err, re.MULTILINE)
    metrics = json.loads(printed.out)
    assert read_json(tmp_path / "out" / "metrics.json") == metrics and metrics["total"] == 2
    text = (tmp_path / "out" / "predictions.jsonl").read_text()
    first, second = map(json.loads, text.splitlines())
    assert (first["id"], second["id"]) == ("a", "b")
    assert first["answer"] == second["answer"] == CONTEXT[first["start_byte"] : first["end_byte"]]
    assert len(first["answers"]) == 2
    (tmp_path / "in.jsonl").write_text(json.dumps({"question": "Who?", "context": CONTEXT}))
    assert call("infer", *flags, "--overwrite_output_dir") == 0
    assert not (tmp_path / "out" / "metrics.json").exists()  # of the overwritten answers
    capsys.readouterr()
    alone = ["--question", ROW["question"], "--context", CONTEXT, "--top_k", 2, "--all_offsets"]
    assert call("infer", "--model", checkpoint, *WINDOWS, *HERE, *alone, "--json") == 0
    expected = [{**a, "score": pytest.approx(a["score"], rel=1e-4)} for a in first["answers"]]
    assert json.loads(capsys.readouterr().out) == expected


@pytest.mark.parametrize("name", ["in.json", "in.jsonl"])
def test_questions_without_gold_answers_are_counted(
    name: str, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Gold answers under an unknown key do not count."""
    skipped = {"id": "skipped", "question": "Who?", "context": CONTEXT, "target": "Ada"}
    source, out = tmp_path / name, tmp_path / "out"
    flags = ["--model", checkpoint, *WINDOWS, *HERE, "--input", source, "--output_dir", out]
    source.write_text("\n".join(json.dumps(row) for row in (skipped, ROW)))
    assert call("infer", *flags) == 0
    printed = capsys.readouterr()
    metrics = json.loads(printed.out)
    assert (metrics["total"], metrics["without_gold"]) == (1, 1)
    assert read_json(out / "metrics.json") == metrics
    assert f"{name}: 2 questions; 1 without gold answers" in printed.err
    source.write_text(json.dumps(skipped))
    assert call("infer", *flags, "--overwrite_output_dir") == 0
    printed = capsys.readouterr()
    assert not (out / "metrics.json").exists() and printed.out == ""
    assert f"{name}: 1 question; 1 without gold answers" in printed.err
    assert "ignored keys: 'target'" in printed.err


GOOD = [ROW | {"id": name} for name in ("a", "b")]
BAD_ROWS = {  # words of the message -> invalid row
    "got 60": ROW | {"id": "long", "question": "who " * 60},
    "context with a visible": ROW | {"id": "blank", "context": " "},
    "id must be unique": GOOD[0],
}


def as_csv(rows: list[dict[str, Any]]) -> str:
    cells = [[row["id"], row["question"], row["context"], row["answers"]] for row in rows]
    lines = [",".join(f'"{cell}"' for cell in line) for line in cells]
    return "\n".join(["id,question,context,answers", *lines])


def as_squad(rows: list[dict[str, Any]]) -> dict[str, Any]:
    return {"data": [{"paragraphs": [{"context": r["context"], "qas": [r]} for r in rows]}]}


@pytest.mark.parametrize(
    ("name", "form"),
    [("in.json", lambda rows: {"data": rows}), ("in.json", as_squad), ("in.csv", as_csv)],
    ids=["flat", "nested", "csv"],
)
def test_invalid_rows_are_reported_before_answering_or_skipped(
    world: World, capsys: pytest.CaptureFixture[str], name: str, form: Callable[[Any], object]
) -> None:
    flags = ["--model", world.good, *WINDOWS, *HERE, "--output_dir", world.out, "--input"]
    for words, row in BAD_ROWS.items():
        bad = world.write(name, form([*GOOD, row]))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(QuestionAnswerer, "answer", lambda *_: pytest.fail("asked"))
            assert call("infer", *flags, bad) == 2
        error = capsys.readouterr().err.splitlines()[-1]
        assert name in error and words in error and "--skip_bad" in error
        assert not world.out.exists()
    mixed = world.write(name, form([GOOD[0], *BAD_ROWS.values(), GOOD[1]]))
    assert call("infer", *flags, mixed, "--skip_bad") == 0
    assert "3 rows rejected" in capsys.readouterr().err
    kept = contents(world.out)
    rejects = [json.loads(line) for line in kept.pop("rejects.jsonl").splitlines()]
    assert [reject["row"] for reject in rejects] == [1, 2, 3]
    for reject, (words, row) in zip(rejects, BAD_ROWS.items(), strict=True):
        assert words in reject["fault"] and name in reject["fault"]
        assert row["question"] in reject["raw"]
    assert call("infer", *flags, world.write(name, form(GOOD)), "--overwrite_output_dir") == 0
    assert contents(world.out) == kept
    only_bad = world.write(name, form([BAD_ROWS["got 60"]]))
    capsys.readouterr()
    assert call("infer", *flags, only_bad, "--skip_bad", "--overwrite_output_dir") == 2
    assert "every row is invalid" in capsys.readouterr().err


def as_lines(rows: list[dict[str, Any]]) -> str:
    return "\n".join(map(json.dumps, rows))


@pytest.mark.parametrize(("name", "form"), [("in.json", as_squad), ("in.jsonl", as_lines)])
def test_invalid_rows_are_counted_in_any_format(
    world: World, capsys: pytest.CaptureFixture[str], name: str, form: Callable[[Any], object]
) -> None:
    """Rows that only the model's windows or settings exclude are counted, too."""
    more = {"is_impossible": True, "answers": []}, {"answer": "Ben"}, {"question": 5}
    rows = [ROW | {"id": str(number)} | fault for number, fault in enumerate(more)]
    bad = [BAD_ROWS["got 60"], BAD_ROWS["context with a visible"], *rows]
    flags = ["--model", world.good, *WINDOWS, *HERE, "--output_dir", world.out]
    flags += ["--input", world.write(name, form([GOOD[0], *bad]))]
    assert call("infer", *flags) == 2
    assert "(4 more invalid rows)" in capsys.readouterr().err
    assert call("infer", *flags, "--skip_bad") == 0
    assert len((world.out / "rejects.jsonl").read_text().splitlines()) == 5


@pytest.mark.parametrize("name", ["in.json", "in.jsonl"])
def test_a_folder_without_answers_is_removed(
    world: World, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    form = as_squad if name == "in.json" else as_lines
    source = world.write(name, form(GOOD))
    out = world.out / "new" / "newer"
    flags = ["--input", source, *WINDOWS, *HERE, "--output_dir", out, "--model"]
    assert call("infer", *flags, world.folder / "missing") == 2
    assert not world.out.exists()
    monkeypatch.setattr(QuestionAnswerer, "answer", interrupted)
    assert call("infer", *flags, world.good) == 130
    assert out.exists() == (name == "in.jsonl")  # it has settings.json, for --resume
    world.out.mkdir(exist_ok=True)
    assert call("infer", *flags, world.folder / "missing") == 2
    assert world.out.exists()


def interrupted(*_: object) -> None:
    raise KeyboardInterrupt


def test_without_rejects_none_are_mentioned(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call("infer", *world.file(world.write("in.jsonl", as_lines(GOOD)))) == 0
    message = f"2 lines answered in {world.out / 'predictions.jsonl'}\n"
    assert capsys.readouterr().err.endswith(message)


def test_questions_of_a_paragraph_without_context_are_skipped(world: World) -> None:
    data = as_squad(GOOD)["data"]
    data[0]["paragraphs"].insert(1, {"qas": [ROW, ROW | {"id": "second"}]})
    bad = world.write("in.json", {"data": data})
    flags = ["--model", world.good, *WINDOWS, *HERE, "--output_dir", world.out, "--input", bad]
    assert call("infer", *flags) == 2
    assert call("infer", *flags, "--skip_bad") == 0
    assert list(read_json(world.out / "predictions.json")) == ["a", "b"]
    rejects = (world.out / "rejects.jsonl").read_text().splitlines()
    faults = [json.loads(line)["fault"] for line in rejects]
    assert len(faults) == 2 and all("paragraphs[1]: must have context" in fault for fault in faults)


@pytest.fixture
def data_set(world: World) -> Path:
    """Return a folder that the datasets library loads as a dataset."""
    folder = world.folder / "set"
    world.write("set/README.md", "---\nconfigs:\n- config_name: own\n  data_dir: own\n---\n")
    for split, rows in (("validation", GOOD), ("test", [*GOOD, BAD_ROWS["got 60"]])):
        world.write(f"set/own/{split}.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_a_dataset_is_answered_like_a_file_of_its_rows(
    world: World, data_set: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--model", world.good, *WINDOWS, *HERE, "--dataset"]
    assert call("infer", *world.file(world.rows("rows.json", *GOOD))) == 0
    expected = contents(world.out)
    out = ["--output_dir", world.folder / "set out"]
    assert call("infer", *flags, data_set, *out) == 0  # the default split is validation
    assert contents(world.folder / "set out") == expected
    assert call("infer", *flags, f"{data_set}:own", *out) == 2  # answers exist
    capsys.readouterr()
    test = [*flags, f"{data_set}:own", *out, "--overwrite_output_dir", "--split", "test"]
    assert call("infer", *test) == 2
    assert "split 'test', row 2: question 'long': must have" in capsys.readouterr().err
    assert call("infer", *test, "--skip_bad") == 0
    found = contents(world.folder / "set out")
    assert json.loads(found.pop("rejects.jsonl"))["row"] == 2
    assert found == expected


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_lines_through_a_pipe_are_answered(world: World) -> None:
    os.mkfifo(world.folder / "in.jsonl")
    command = ["-m", "bertqa", "infer", "--model", world.good, *WINDOWS, *HERE]
    command += ["--input", world.folder / "in.jsonl", "--output_dir", world.out]
    writer = Thread(target=world.write, args=("in.jsonl", json.dumps(ROW)), daemon=True)
    writer.start()
    assert run(command, world.folder, timeout=120).returncode == 0
    assert json.loads((world.out / "predictions.jsonl").read_text())["id"] == "first"


@pytest.mark.parametrize(
    ("source", "file"),
    [
        (source, file)
        for source, own in (
            ("a.jsonl", LINE_FILES),
            ("a.parquet", (*LINE_FILES, "predictions.parquet")),
            (
                "a.json",
                ("predictions.json", "nbest_predictions.json", "null_odds.json", "rejects.jsonl"),
            ),
        )
        for file in (*own, "metrics.json")
    ],
)
def test_existing_files_are_not_overwritten_or_removed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], source: str, file: str
) -> None:
    """The output folder may be a model's, which has metrics.json, too."""
    (tmp_path / file).write_text("mine")
    flags = ["--input", tmp_path / source, "--output_dir", tmp_path]
    with pytest.raises(UserError, match=f"{file} already exists: name another --output_dir"):
        infer_file.answer_file(infer.parse_flags(list(map(str, flags))))
    assert {path.name for path in tmp_path.iterdir()} == {file}
