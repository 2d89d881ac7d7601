"""The temperature: fitted by training or bertqa calibrate, saved, reported and applied."""

import json
import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bertqa.answering import temperature
from bertqa.answering.answerer import QuestionAnswerer
from bertqa.answering.calibration import read_calibration
from bertqa.answering.decoding_file import read_decoding_file, update_temperature
from bertqa.data.readers import read_examples
from bertqa.data.squad import split_by_article
from bertqa.settings import Overrides
from tests.commands.world import HERE, ROW, World, call, read_json
from tests.helpers import STORIES, STORIES_V2, Page, contents

WINDOWS = ["--max_seq_length", 96, "--doc_stride", 16, "--max_query_length", 24]
DATA = {"v1": STORIES, "v2": STORIES_V2}


@pytest.fixture(scope="module", params=["v1", "v2"])
def trained(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, checkpoint: Path
) -> Path:
    """Return a run that holds out three of ten articles."""
    folder = tmp_path_factory.mktemp("runs") / request.param
    negative = ["--version_2_with_negative"] if request.param == "v2" else []
    assert not call(
        "train", "--model", checkpoint, "--train_file", DATA[request.param], "--max_steps", 6,
        "--validation_split_percentage", 30, "--learning_rate", 1e-3, "--eval_steps", 3,
        "--output_dir", folder, *negative, *WINDOWS, *HERE,
    )  # fmt: skip
    return folder


def test_training_fits_a_temperature(trained: Path) -> None:
    windows, decoding = read_decoding_file(trained)
    found = read_calibration(trained)
    assert found and decoding.temperature == found.temperature != 1
    # For a model without "no answer", decoding.json has no windows.
    assert (windows is None) == (not decoding.version_2_with_negative)
    held_out = split_by_article(read_examples(DATA[trained.name]), 30)[1]
    assert found.fitted_on + found.after.questions == len(held_out)


def test_training_applies_the_temperature_to_probabilities_but_not_to_answers(
    trained: Path,
) -> None:
    log = [json.loads(line) for line in (trained / "log.jsonl").read_text().splitlines()]
    rows = [line for line in log if "f1" in line]
    step = max(rows, key=lambda row: row["f1"])["step"]
    best = trained / "evaluations" / f"step-{step:08d}.json"
    predictions = read_json(trained / "predictions.json")
    assert predictions == read_json(best)
    n_best: dict[str, list[dict[str, Any]]] = read_json(trained / "nbest_predictions.json")
    windows = {"max_seq_length": 96, "doc_stride": 16, "max_query_length": 24}
    qa = QuestionAnswerer.from_pretrained(
        trained, device="cpu", precision="fp32", overrides=Overrides(**windows)
    )
    for example in split_by_article(read_examples(DATA[trained.name]), 30)[1][:5]:
        (prediction,) = qa.answer([example])
        found = [entry["probability"] for entry in n_best[example.id]]
        assert found == pytest.approx([a.probability for a in prediction.answers], rel=1e-3)


def test_the_report_of_a_run_shows_the_calibration(trained: Path) -> None:
    found = read_calibration(trained)
    assert found
    page = Page((trained / "report.html").read_text(encoding="utf-8"))
    assert "Calibration" in page.inside["h2"]
    for figure in (found.before.ece, found.after.ece):
        assert f"{figure:.4f}" in page.inside["td"]
    root = ET.fromstring((trained / "calibration.svg").read_text())
    assert len(list(root.iter("{http://www.w3.org/2000/svg}polyline"))) == 3


def test_a_run_on_one_article_is_not_calibrated(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call("train", *world.train("--validation_file", world.row())) == 0
    assert "are not calibrated: the validation data must have" in capsys.readouterr().out
    assert not (world.out / "calibration.json").exists()


def test_calibrate_writes_the_temperature_of_an_existing_model(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, file = World(tmp_path, trained).checkpoint(), DATA[trained.name]
    before = read_json(folder / "decoding.json")
    assert call("calibrate", folder, file, *HERE) == 0
    after, found = read_json(folder / "decoding.json"), read_calibration(folder)
    assert found and after == before | {"temperature": found.temperature}
    output = capsys.readouterr().out
    assert f"temperature {found.temperature:.4f}, fitted on {found.fitted_on} questions" in output
    assert f"{found.before.ece:>10.4f}{found.after.ece:>10.4f}\n" in output
    share = next(p for p in found.after.coverage if p.threshold == 0.5)
    line = next(line for line in output.splitlines() if line.startswith("0.5 "))
    assert line.split()[1] == f"{100 * share.answered:.1f}"

    kept = contents(folder)
    assert call("calibrate", folder, file, "--measure_only", *HERE) == 0
    assert contents(folder) == kept
    output = capsys.readouterr().out
    assert f"on the {len(read_examples(file))} questions" in output
    assert f"{found.temperature:.4f}\n" in output


def test_the_other_entries_of_decoding_json_are_kept(tmp_path: Path) -> None:
    """Even windows that were added by hand for a model without "no answer"."""
    before = {
        "version_2_with_negative": False, "null_score_diff_threshold": 0.0, "max_seq_length": 64,
        "doc_stride": 16, "max_query_length": None,
    }  # fmt: skip
    (tmp_path / "decoding.json").write_text(json.dumps(before))
    windows, decoding = read_decoding_file(tmp_path)
    assert windows
    update_temperature(tmp_path, replace(decoding, temperature=2.5), windows)
    assert read_json(tmp_path / "decoding.json") == before | {"temperature": 2.5}


def test_unsuitable_data_is_rejected(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    folder = world.checkpoint()
    before = contents(folder)
    without_gold = [ROW | {"id": name, "context": name, "answers": None} for name in ("a", "b")]
    for file, words in (
        (world.rows("one.json", ROW), "about at least two articles"),
        (STORIES_V2, "must have an answer to every question"),
        (world.rows("two.json", *without_gold), "must have gold answers"),
        (world.folder / "none.json", "must be an existing file"),
    ):
        assert call("calibrate", folder, file, *HERE) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert words in line
    assert contents(folder) == before


@pytest.mark.parametrize("is_limit", [True, False])
def test_a_temperature_at_the_limit_of_the_search_is_reported(
    trained: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    is_limit: bool,
) -> None:
    monkeypatch.setattr(temperature, "at_limit", lambda value: is_limit)
    assert call("calibrate", World(tmp_path, trained).checkpoint(), DATA[trained.name], *HERE) == 0
    assert ("limit of the search" in capsys.readouterr().out) == is_limit
