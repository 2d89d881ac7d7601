"""Checks of a run's folder, for new and resumed runs."""

import math
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from bertqa.answering.decoding_file import read_decoding_file, write_decoding_file
from bertqa.data.labels import FIRST_GOLD
from bertqa.errors import UserError
from bertqa.files import write_json
from bertqa.runtime import Runtime
from bertqa.settings import DecodingSettings, TrainingSettings, WindowSettings
from bertqa.training.run_folder import RunFolder, check_free
from tests.training.runs import DESCRIPTION, contents, make_run


@pytest.mark.parametrize(
    ("part", "key", "value", "printed"),
    [
        ("settings", "seed", 43, "seed must be 42, got 43"),
        ("settings", "model", "other", "model must be 'tiny', got 'other'"),
        (
            "settings",
            "model_commit",
            "b" * 40,
            r"model_commit must be 'aaa' \(--revision aaa selects it\), got",
        ),
        ("data", "train", "4567", "train questions must be the same"),
        ("data", "windows", {"a": 1, "b": 3}, "b must be 2, got 3"),
    ],
)
def test_a_different_run_is_not_resumed(
    tmp_path: Path, part: str, key: str, value: Any, printed: str
) -> None:
    folder = tmp_path / "run"
    description = DESCRIPTION | {"data": DESCRIPTION["data"] | {"windows": {"a": 1, "b": 2}}}
    description["settings"] = description["settings"] | {"model_commit": "aaa"}
    RunFolder(folder, description).open(0)
    before = contents(folder)
    RunFolder(folder, description).check_same_run()
    other = description | {part: description[part] | {key: value}}
    with pytest.raises(UserError, match=printed):
        RunFolder(folder, other).check_same_run()
    assert contents(folder) == before


def test_a_run_older_than_a_setting_is_resumed(tmp_path: Path) -> None:
    """It has the setting's default; also for settings of windows and decoding."""
    old = {"seed": 42}, {"windows": {"max_seq_length": 384}, "decoding": {"n_best_size": 20}}
    write_json(tmp_path / "run.json", {"settings": old[0], "data": old[1]})
    settings: dict[str, Any] = asdict(TrainingSettings(logging_steps=7))
    settings |= {"teachers": [], "teacher_digests": []}
    data: dict[str, Any] = {
        "windows": asdict(WindowSettings()),
        "decoding": asdict(DecodingSettings()),
        "chooses_threshold": False,
        "labels": FIRST_GOLD,
        "added_tokens": 0,
    }
    RunFolder(tmp_path, {"settings": settings, "data": data}).check_same_run()
    for changed, printed in (
        ({"settings": settings | {"lr_scheduler_type": "constant_with_warmup"}, "data": data},
         "lr_scheduler_type must be 'linear', got 'constant_with_warmup'"),
        ({"settings": settings, "data": data | {"chooses_threshold": True}},
         "chooses_threshold must be False, got True"),
        ({"settings": settings, "data": data | {"labels": "another"}},
         "labels must be 'the first', got 'another'"),
        ({"settings": settings, "data": data | {"added_tokens": 3}}, "added_tokens must be 0, got"),
        ({"settings": settings, "data": data | {"windows": data["windows"] | {"doc_stride": 64}}},
         "doc_stride must be 128, got 64"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=printed):
            RunFolder(tmp_path, changed).check_same_run()


def test_a_folder_with_other_files_is_not_changed(tmp_path: Path, checkpoint: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    for resume in (False, True):
        with pytest.raises(UserError, match=f"--output_dir: .* got {tmp_path}, which contains"):
            make_run(tmp_path, checkpoint, evaluator=False).start(resume)
    assert contents(tmp_path) == {"thesis.txt": b"years of work"}


@pytest.mark.parametrize("value", [math.inf, 1e6])
def test_invalid_weights_are_not_saved(tmp_path: Path, checkpoint: Path, value: float) -> None:
    """After a step that is too large, the loss can still be finite, because of LayerNorm."""
    run = make_run(tmp_path / "run", checkpoint, evaluator=False)
    run.start(resume=False)
    with torch.no_grad():
        run.loop.model.layers[0].attention.query.weight[0, 0] = value
    with pytest.raises(UserError, match=r"query.weight must be finite.*lower --learning_rate"):
        run.folder.keep_best(run.loop.model, run.tokenizer)
    assert not (tmp_path / "run" / "model.safetensors").exists()


def test_a_folder_that_differs_between_processes(
    tmp_path: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(tmp_path / "run", checkpoint, evaluator=False)
    monkeypatch.setattr(Runtime, "gather", lambda self, value: [value, 500])
    with pytest.raises(UserError, match="must have the same checkpoints for all processes"):
        run.start(resume=False)


def test_a_name_that_is_too_long(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be accessed: File name too long"):
        check_free(tmp_path / ("x" * 300), resume=False)


def test_a_new_best_model_removes_the_temperature_of_the_old_one(
    tmp_path: Path, checkpoint: Path
) -> None:
    """A run that stopped early was calibrated, and is continued with more patience."""
    run = make_run(tmp_path / "run", checkpoint, evaluator=False)
    run.start(resume=False)
    folder, decoding = run.folder.path, DecodingSettings(temperature=2.5)
    for settings in (decoding, replace(decoding, version_2_with_negative=True)):
        write_decoding_file(folder, settings, WindowSettings(96, 16))
        write_json(folder / "calibration.json", {})
        windows, _ = read_decoding_file(folder)
        run.folder.keep_best(run.loop.model, run.tokenizer)
        assert not (folder / "calibration.json").exists()
        assert read_decoding_file(folder) == (windows, replace(settings, temperature=1.0))
