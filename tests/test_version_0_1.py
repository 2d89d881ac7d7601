"""Folders of version 0.1 are resumed and loaded, see tests/fixtures/version-0.1/README.md."""

import hashlib
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from bertqa import QuestionAnswerer
from bertqa.answering.decoding_file import read_decoding_file
from bertqa.commands import infer, train
from bertqa.commands.flags import run_script
from bertqa.settings import DecodingSettings, WindowSettings
from tests.helpers import DATA

STOPPED, LAST = 23, 40  # optimizer steps of the run
WINDOWS = WindowSettings(max_seq_length=48, doc_stride=8, max_query_length=16)
DECODING = DecodingSettings(
    version_2_with_negative=True, null_score_diff_threshold=0.645775318145752
)
ASK = (
    "--model released --input asked.jsonl --output_dir answers --device cpu --precision fp32 "
    "--top_k 2 --all_offsets"
).split()


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the folder as working directory, since its paths are relative."""
    copy = shutil.copytree(DATA / "version-0.1", tmp_path / "version-0.1")
    monkeypatch.chdir(copy)
    return copy


def json_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def resumed(folder: Path) -> int:
    """Repeat the command of the run with --resume; return the exit code."""
    name, *flags = json.loads((folder / "run.json").read_text())["command"]
    assert name == "train.py"
    flags[flags.index("--output_dir") + 1] = folder.name
    return run_script(train.main, train.parse_flags([*flags, "--resume"]))


# --- the run -------------------------------------------------------------------------------------


def test_the_run_is_resumed_to_its_end(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (home / "run" / "log.jsonl").read_bytes()
    assert resumed(home / "run") == 0
    assert f"{LAST} steps of 8 windows on cpu in torch.float32, from step {STOPPED}" in (
        capsys.readouterr().out.splitlines()
    )
    assert (home / "run" / "log.jsonl").read_bytes().startswith(before)
    found, expected = json_lines(home / "run" / "log.jsonl"), json_lines(Path("expected/log.jsonl"))
    assert found[-1]["step"] == LAST
    for line, whole in zip(found, expected, strict=True):
        for key in ("tokens_per_second", "seconds"):
            assert (key in line) == (whole.pop(key, None) is not None)
        # Rounding depends on the processor; the order of windows and dropout masks do not.
        assert {key: line[key] for key in whole} == pytest.approx(whole, rel=1e-4)
    best = max(line["f1"] for line in expected if "f1" in line)
    assert json.loads((home / "run" / "metrics.json").read_text())["f1"] == pytest.approx(best)


def test_resuming_twice_gives_identical_weights(home: Path) -> None:
    shutil.copytree(home / "run", home / "again")
    for folder in (home / "run", home / "again"):
        assert resumed(folder) == 0
    for name in ("model.safetensors", "optimizer.safetensors"):
        file = f"checkpoints/step-{LAST:08d}/{name}"
        assert (home / "run" / file).read_bytes() == (home / "again" / file).read_bytes()


def test_a_run_whose_data_have_changed_is_rejected(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = json.loads((home / "questions.json").read_text())
    data["data"][0]["paragraphs"][0]["qas"][0]["question"] = "Who first lit the lamp?"
    (home / "questions.json").write_text(json.dumps(data))
    before = (home / "run" / "log.jsonl").read_bytes()
    assert resumed(home / "run") == 2
    errors = capsys.readouterr().err.splitlines()
    assert [line for line in errors if line.startswith("error: ")] == errors[-1:]
    assert "train questions must be the same" in errors[-1]
    assert (home / "run" / "log.jsonl").read_bytes() == before


# --- the answers of a file -----------------------------------------------------------------------


def test_the_json_lines_job_is_resumed(home: Path) -> None:
    predictions = home / "answers" / "predictions.jsonl"
    before = predictions.read_bytes().replace(b'"score": 0.4694', b'"score": 0.9999', 1)
    predictions.write_bytes(before)  # the changed score shows whether the line is kept
    kept = before[: before.rindex(b"\n") + 1]  # the job was killed while writing a line
    assert len(kept) < len(before)
    assert run_script(infer.main, infer.parse_flags([*ASK, "--resume", "--skip_bad"])) == 0
    assert predictions.read_bytes().startswith(kept)
    found, expected = json_lines(predictions), json_lines(home / "expected" / "predictions.jsonl")
    asked = [line["id"] for line in json_lines(home / "asked.jsonl") if "question" in line]
    assert [line["id"] for line in found] == asked
    assert [line["line"] for line in json_lines(home / "answers" / "rejects.jsonl")] == [8]
    assert len(found) == len(expected)
    for line, whole in list(zip(found, expected, strict=True))[kept.count(b"\n") :]:
        assert list(line) == list(whole)
        for key in ("score", "null_odds"):
            assert line.pop(key) == pytest.approx(whole.pop(key), abs=1e-4)
        for answer, previous in zip(line.pop("answers"), whole.pop("answers"), strict=True):
            assert answer == pytest.approx(previous, abs=1e-4)
        assert line == whole


# --- the released model --------------------------------------------------------------------------


def test_the_released_folder_gives_the_same_answers(home: Path) -> None:
    qa = QuestionAnswerer.from_pretrained("released", device="cpu", precision="fp32")
    answered = {line["id"]: line for line in json_lines(home / "expected" / "predictions.jsonl")}
    rows = [row for row in json_lines(home / "asked.jsonl") if "question" in row]
    assert {answered[row["id"]]["answer"] == "" for row in rows} == {True, False}
    for row in rows:
        found, expected = qa(row["question"], row["context"], top_k=2), answered[row["id"]]
        for answer, before in zip(found, expected["answers"], strict=True):
            assert answer == pytest.approx({key: before[key] for key in answer}, abs=1e-4)


def test_its_settings_are_read(home: Path) -> None:
    assert read_decoding_file(home / "released") == (WINDOWS, DECODING)
    qa = QuestionAnswerer.from_pretrained("released", device="cpu", precision="fp32")
    assert (qa.windows, qa.decoding) == (WINDOWS, DECODING)
    kept = json.loads((home / "run" / "decoding.json").read_text())["null_score_diff_threshold"]
    assert read_decoding_file(home / "run")[1].null_score_diff_threshold == kept


def test_its_weights_have_the_digest_of_its_card(home: Path) -> None:
    card = (home / "released" / "README.md").read_text(encoding="utf-8")
    (digest,) = re.findall(r"SHA-256 `([0-9a-f]{64})`", card)
    weights = (home / "released" / "model.safetensors").read_bytes()
    assert hashlib.sha256(weights).hexdigest() == digest
