"""The threshold of "no answer": chosen on held-out questions, saved with the model, applied."""

import json
import math
import os
import shutil
import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from bertqa.answering.answerer import QuestionAnswerer
from bertqa.answering.answers import Prediction
from bertqa.answering.calibration import calibrate
from bertqa.answering.decoding_file import (
    read_decoding_file,
    update_temperature,
    write_curve,
    write_decoding_file,
)
from bertqa.answering.evaluation import best_point, curve_of
from bertqa.answering.metrics import ThresholdPoint, evaluate_v2
from bertqa.data.readers import read_examples
from bertqa.data.squad import Example, split_by_article
from bertqa.errors import UserError, shown
from bertqa.report.charts import draw_curve
from bertqa.settings import DecodingSettings, Overrides, WindowSettings
from tests.commands.world import HERE, World, call
from tests.helpers import STORIES, STORIES_V2, write_questions

WINDOWS = ["--max_seq_length", 96, "--doc_stride", 16, "--max_query_length", 24]


@pytest.fixture
def copied(checkpoint: Path, tmp_path: Path) -> Path:
    """Return a copy of the checkpoint."""
    return World(tmp_path, checkpoint).checkpoint()


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, checkpoint: Path) -> Path:
    """Return a run that holds out three of ten articles."""
    folder = tmp_path_factory.mktemp("runs") / "v2"
    assert not call(
        "train", "--model", checkpoint, "--train_file", STORIES_V2, "--max_steps", 6,
        "--validation_split_percentage", 30, "--version_2_with_negative", "--learning_rate",
        1e-3, "--eval_steps", 3, "--output_dir", folder, *WINDOWS, *HERE,
    )  # fmt: skip
    return folder


def stored_decoding(folder: Path) -> DecodingSettings:
    return read_decoding_file(folder)[1]


def held_out() -> list[Example]:
    return split_by_article(read_examples(STORIES_V2), 30)[1]


@pytest.fixture(scope="module")
def held_out_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a file of the held-out questions."""
    return write_questions(tmp_path_factory.mktemp("data") / "held_out.json", held_out())


def test_the_best_point_has_the_highest_f1() -> None:
    examples = [
        Example(str(number), "q", "c", answers)
        for number, answers in enumerate([("oak",), (), ("elm",)], start=1)
    ]
    predictions = [
        Prediction("1", "", (), "oak", 1.5), Prediction("2", "", (), "x", 2.5),
        Prediction("3", "", (), "elm", -1.0),
    ]  # fmt: skip
    curve = curve_of(examples, predictions)
    assert [point.threshold for point in curve[1:]] == [-1.0, 1.5, 2.5]
    assert best_point(curve) == (1.5, 100.0, 100.0)


def test_training_saves_the_threshold_of_the_best_model(trained: Path) -> None:
    examples = held_out()
    windows, settings = read_decoding_file(trained)
    assert windows == WindowSettings(96, 16, 24)
    assert settings.version_2_with_negative
    odds = json.loads((trained / "null_odds.json").read_text())
    texts = json.loads((trained / "predictions.json").read_text())
    assert list(odds) == [example.id for example in examples]
    limit = settings.null_score_diff_threshold
    assert {name for name, value in odds.items() if value > limit} == {
        name for name, text in texts.items() if text == ""
    }
    metrics = json.loads((trained / "metrics.json").read_text())
    references = {e.id: e.answers or () for e in examples}
    assert evaluate_v2(texts, references)["f1"] == metrics["f1"]
    halves = (metrics["HasAns_f1"] + metrics["NoAns_f1"]) / 2
    curve = json.loads((trained / "threshold.json").read_text())
    assert curve["unanswerable_share"] == 0.5
    assert max(row[2] for row in curve["rows"]) == pytest.approx(halves)


def test_the_curve_is_saved_as_data_and_as_a_picture(trained: Path) -> None:
    curve = json.loads((trained / "threshold.json").read_text())
    assert curve["columns"] == ["threshold", "exact", "f1"]
    rows = [tuple(row) for row in curve["rows"]]
    limit = stored_decoding(trained).null_score_diff_threshold
    assert max(rows, key=lambda row: row[2])[0] == limit
    assert "50 % unanswerable" in (trained / "threshold.svg").read_text()
    root = ET.fromstring((trained / "threshold.svg").read_text())
    assert len(list(root.iter("{http://www.w3.org/2000/svg}polyline"))) == 2


def test_infer_uses_the_saved_threshold(
    trained: Path, held_out_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ask = ["--model", trained, "--input", held_out_file, *HERE]

    def unanswered(*more: object) -> int:
        flags = ["--output_dir", tmp_path / "o", "--overwrite_output_dir", *more]
        assert call("infer", *ask, *flags) == 0
        texts = json.loads((tmp_path / "o" / "predictions.json").read_text())
        return sum(text == "" for text in texts.values())

    kept = stored_decoding(trained).null_score_diff_threshold
    assert unanswered() == unanswered("--null_score_diff_threshold", kept, *WINDOWS)
    answered = json.loads((tmp_path / "o" / "null_odds.json").read_text())
    chosen_on = json.loads((trained / "null_odds.json").read_text())
    assert answered == pytest.approx(chosen_on, abs=1e-3)
    assert unanswered("--null_score_diff_threshold", -1e6) == len(held_out())
    assert unanswered("--null_score_diff_threshold", 1e6) == 0
    assert call("infer", *ask, "--output_dir", tmp_path / "p", "--no_version_2_with_negative") == 2
    assert "must have an answer to every question" in capsys.readouterr().err


def test_a_given_threshold_is_saved(checkpoint: Path, tmp_path: Path) -> None:
    flags = [
        "--model", checkpoint, "--train_file", STORIES_V2, "--validation_split_percentage", 30,
        "--max_steps", 1, "--version_2_with_negative", *WINDOWS, *HERE,
        "--null_score_diff_threshold", 2.5, "--output_dir", tmp_path / "given",
    ]  # fmt: skip
    assert call("train", *flags) == 0
    assert stored_decoding(tmp_path / "given").null_score_diff_threshold == 2.5
    assert not (tmp_path / "given" / "threshold.json").exists()


def test_a_validation_file_does_not_choose_the_threshold(checkpoint: Path, tmp_path: Path) -> None:
    flags = [
        "--model", checkpoint, "--train_file", STORIES_V2, "--validation_file", STORIES_V2,
        "--max_steps", 1, "--max_train_samples", 8, "--max_eval_samples", 8,
        "--version_2_with_negative", "--output_dir", tmp_path / "o",
    ]  # fmt: skip
    assert call("train", *flags, *WINDOWS, *HERE) == 0
    kept = replace(stored_decoding(tmp_path / "o"), temperature=1.0)  # only this was fitted
    assert kept == DecodingSettings(version_2_with_negative=True)
    assert "best_f1" in json.loads((tmp_path / "o" / "metrics.json").read_text())


def test_threshold_writes_the_threshold_of_an_existing_model(
    copied: Path, held_out_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert stored_decoding(copied) == DecodingSettings()
    assert call("threshold", copied, held_out_file, *HERE) == 0
    kept = stored_decoding(copied)
    assert kept.version_2_with_negative
    output = capsys.readouterr().out
    assert f"threshold {kept.null_score_diff_threshold:.4f}: EM" in output
    assert "weighted to 50 % unanswerable" in output
    examples = held_out()
    qa = QuestionAnswerer.from_pretrained(copied, device="cpu", precision="fp32")
    assert qa.decoding == kept
    texts = {p.id: p.text for p in qa.answer(examples)}
    figures = evaluate_v2(texts, {e.id: e.answers or () for e in examples})
    assert f"F1 {(figures['HasAns_f1'] + figures['NoAns_f1']) / 2:.2f}" in output


def test_the_temperature_does_not_depend_on_the_threshold_but_the_ece_does(
    trained: Path,
) -> None:
    found = []
    for threshold in (-1e3, 1e3):
        options = Overrides(null_score_diff_threshold=threshold)
        qa = QuestionAnswerer.from_pretrained(trained, overrides=options, device="cpu")
        found.append(calibrate(qa, read_examples(STORIES_V2), "stories")[0])
    assert found[0].temperature == found[1].temperature
    assert found[0].after.ece != found[1].after.ece


def test_another_threshold_keeps_the_temperature_and_removes_the_calibration(
    copied: Path, held_out_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = [copied, held_out_file, *HERE, "--unanswerable_share"]
    assert call("threshold", *flags, 0.02) == 0
    before = replace(stored_decoding(copied), temperature=2.5)
    update_temperature(copied, before, WindowSettings())
    files = [copied / "calibration.json", copied / "calibration.svg"]
    for file in files:
        file.write_text("measured with the first threshold")
    for share, removes in ((0.02, False), (0.98, True)):
        capsys.readouterr()
        assert call("threshold", *flags, share) == 0
        output = capsys.readouterr().out
        assert ("removed calibration.json and calibration.svg" in output) == removes
        assert [file.exists() for file in files] == [not removes] * 2
        assert stored_decoding(copied).temperature == 2.5
        assert (stored_decoding(copied) != before) == removes


def test_a_higher_share_of_unanswerable_questions_lowers_the_threshold(
    copied: Path, held_out_file: Path
) -> None:
    found = []
    for share in (0.02, 0.98):
        flags = [copied, held_out_file, *HERE, "--unanswerable_share", share]
        assert call("threshold", *flags) == 0
        assert json.loads((copied / "decoding.json").read_text())["unanswerable_share"] == share
        found.append(stored_decoding(copied).null_score_diff_threshold)
    assert found[0] > found[1]
    assert call("threshold", copied, held_out_file, "--unanswerable_share", 1) == 2


@pytest.mark.parametrize("command", ["threshold", "calibrate"])
def test_the_shipped_model_is_not_changed(
    copied: Path, held_out_file: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str], command: str,
) -> None:  # fmt: skip
    monkeypatch.setattr("bertqa.model.hub.SHIPPED_MODEL", copied.name)
    monkeypatch.setattr("bertqa.model.hub.weights_dir", lambda: copied.parent)
    before = sorted(copied.iterdir())
    assert call(command, copied, held_out_file, *HERE) == 2
    assert "is shipped with the project" in capsys.readouterr().err
    assert sorted(copied.iterdir()) == before


@pytest.mark.parametrize("command", ["threshold", "calibrate"])
def test_a_folder_without_write_permission_is_rejected_before_answering(
    copied: Path, held_out_file: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str], command: str,
) -> None:  # fmt: skip
    monkeypatch.setattr(os, "access", lambda path, mode: path != copied)  # also for root
    monkeypatch.setattr(QuestionAnswerer, "from_pretrained", lambda *_, **__: pytest.fail("loaded"))
    assert call(command, copied, held_out_file, *HERE) == 2
    error = capsys.readouterr().err
    assert str(copied) in error and "has no write permission" in error


@pytest.mark.parametrize("command", ["threshold", "calibrate"])
def test_a_model_in_the_hub_cache_is_not_changed(
    copied: Path, held_out_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    command: str,
) -> None:  # fmt: skip
    snapshot = tmp_path / "models--org--bert" / "snapshots" / ("a" * 40)
    shutil.copytree(copied, snapshot)
    assert call(command, snapshot, held_out_file, *HERE) == 2
    assert "which is in the hub's cache: copy the folder" in capsys.readouterr().err
    assert not (snapshot / "decoding.json").exists()


def test_a_threshold_requires_answerable_and_unanswerable_questions(
    copied: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"question": "Who?", "context": f"Ada {i}.", "answers": []} for i in range(3)]
    path = tmp_path / "none.json"
    path.write_text(json.dumps({"data": rows}))
    for alike in (STORIES, path):
        assert call("threshold", copied, alike, *HERE) == 2
        assert "both answerable and unanswerable questions" in capsys.readouterr().err
    assert not (copied / "decoding.json").exists()
    run = [
        "--model", copied, "--train_file", path, "--validation_split_percentage", 30,
        "--version_2_with_negative", "--max_steps", 1, "--output_dir", tmp_path / "o",
    ]  # fmt: skip
    assert call("train", *run, *WINDOWS, *HERE) == 0
    assert "no threshold is chosen" in capsys.readouterr().out
    assert stored_decoding(tmp_path / "o").null_score_diff_threshold == 0.0


def test_a_curve_of_questions_without_spans_is_not_drawn(tmp_path: Path) -> None:
    largest = float(torch.finfo(torch.float32).max)
    curve = [ThresholdPoint(largest, 50.0, 50.0)]
    write_curve(tmp_path, curve)
    draw_curve(tmp_path, curve)
    assert (tmp_path / "threshold.json").exists() and not (tmp_path / "threshold.svg").exists()


def test_the_picture_has_the_best_and_the_last_point(tmp_path: Path) -> None:
    curve = [ThresholdPoint(float(i), 50.0, 50.0 + (i == 1197)) for i in range(1199)]
    draw_curve(tmp_path, curve)
    svg = (tmp_path / "threshold.svg").read_text()
    line = next(ET.fromstring(svg).iter("{http://www.w3.org/2000/svg}polyline"))
    points = [tuple(map(float, point.split(","))) for point in line.attrib["points"].split()]
    assert 400 <= len(points) <= 401
    assert min(y for _, y in points) < points[0][1] - 100
    assert "best 1197.000" in svg


def test_the_title_of_the_picture_fits(tmp_path: Path) -> None:
    draw_curve(tmp_path, [ThresholdPoint(-12.3456, 50.0, 50.0)], unanswerable_share=1 / 3)
    svg = ET.fromstring((tmp_path / "threshold.svg").read_text())
    title = next(
        e for e in svg.iter("{http://www.w3.org/2000/svg}text") if "title" in e.attrib.values()
    )
    assert title.text and "-12.346" in title.text and "33.3 % unanswerable" in title.text
    pixels_per_letter = 8.5  # at 14 pixels, semibold: more than the average of any system font
    width = int(svg.attrib["viewBox"].split()[2])
    assert float(title.attrib["x"]) + pixels_per_letter * len(title.text) <= width


def test_an_infinite_threshold_is_not_saved(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="null_score_diff_threshold must be finite, got inf"):
        write_decoding_file(
            tmp_path, DecodingSettings(null_score_diff_threshold=math.inf), WindowSettings()
        )
    assert list(tmp_path.iterdir()) == []


SOUND = {
    "version_2_with_negative": True, "null_score_diff_threshold": 0.0, "max_seq_length": 384,
    "doc_stride": 128, "max_query_length": None,
}  # fmt: skip


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("version_2_with_negative", 1),
        ("version_2_with_negative", None),
        *(
            ("null_score_diff_threshold", value)
            for value in ("low", None, True, math.nan, math.inf, 10**400, [[]])
        ),
        *(
            (key, value)
            for key in ("max_seq_length", "doc_stride", "max_query_length")
            for value in (1.5, "long", False, 10**30, 10**400)
        ),
        ("max_seq_length", None),
        ("doc_stride", None),
        *((key, "half") for key in ("unanswerable_share", "temperature")),
        ("temperature", True),
    ],
)
def test_an_invalid_decoding_file_is_rejected(copied: Path, key: str, value: Any) -> None:
    (copied / "decoding.json").write_text(json.dumps(SOUND | {key: value}))
    with pytest.raises(UserError, match=rf"decoding\.json: {key} must be .*, got") as caught:
        QuestionAnswerer.from_pretrained(copied)
    assert shown(value) in str(caught.value)


@pytest.mark.parametrize("value", [0, -1.5, 1e-9, 1e9])
def test_a_temperature_out_of_range_is_rejected_with_its_file(copied: Path, value: float) -> None:
    (copied / "decoding.json").write_text(json.dumps(SOUND | {"temperature": value}))
    with pytest.raises(UserError, match=r"decoding\.json: --temperature must be .*, got"):
        QuestionAnswerer.from_pretrained(copied)


@pytest.mark.parametrize(
    ("length", "message"),
    [
        (10**18, r"max_seq_length must be at most .*, got 10{18}"),
        (20, "--max_seq_length must exceed .* got 20"),
    ],
)
def test_invalid_windows_are_rejected_with_their_file(
    copied: Path, length: int, message: str
) -> None:
    (copied / "decoding.json").write_text(json.dumps(SOUND | {"max_seq_length": length}))
    with pytest.raises(UserError, match=rf"decoding\.json: {message}"):
        QuestionAnswerer.from_pretrained(copied)
