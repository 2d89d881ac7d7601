"""Whether a run may begin or go on in a folder."""

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
    ("part", "key", "value", "said"),
    [
        ("settings", "seed", 43, "has seed 42, not 43"),
        ("settings", "model", "other", "has model 'tiny', not 'other'"),
        (
            "settings",
            "model_commit",
            "b" * 40,
            r"model_commit 'aaa', .* \(--revision aaa takes that",
        ),
        ("data", "train", "4567", "began with other train questions than are read now"),
        ("data", "windows", {"a": 1, "b": 3}, "has b 2, not 3"),
    ],
)
def test_another_run_does_not_go_on_with_this_one(
    tmp_path: Path, part: str, key: str, value: Any, said: str
) -> None:
    folder = tmp_path / "run"
    description = DESCRIPTION | {"data": DESCRIPTION["data"] | {"windows": {"a": 1, "b": 2}}}
    description["settings"] = description["settings"] | {"model_commit": "aaa"}
    RunFolder(folder, description).open(0)
    before = contents(folder)
    RunFolder(folder, description).check_same_run()
    other = description | {part: description[part] | {key: value}}
    with pytest.raises(UserError, match=said):
        RunFolder(folder, other).check_same_run()
    assert contents(folder) == before


def test_a_run_from_before_a_setting_existed_goes_on(tmp_path: Path) -> None:
    """It did what the setting's default does; those of windows and decoding as well."""
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
    for changed, said in (
        ({"settings": settings | {"lr_scheduler_type": "constant_with_warmup"}, "data": data},
         "lr_scheduler_type 'linear', not 'constant_with_warmup'"),
        ({"settings": settings, "data": data | {"chooses_threshold": True}},
         "chooses_threshold False, not True"),
        ({"settings": settings, "data": data | {"labels": "another"}},
         "labels 'the first', not 'another'"),
        ({"settings": settings, "data": data | {"added_tokens": 3}}, "added_tokens 0, not 3"),
        ({"settings": settings, "data": data | {"windows": data["windows"] | {"doc_stride": 64}}},
         "doc_stride 128, not 64"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=said):
            RunFolder(tmp_path, changed).check_same_run()


def test_a_folder_with_something_in_it_is_not_touched(tmp_path: Path, checkpoint: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    for resume in (False, True):
        with pytest.raises(UserError, match=f"--output_dir {tmp_path} is not empty"):
            make_run(tmp_path, checkpoint, evaluator=False).start(resume)
    assert contents(tmp_path) == {"thesis.txt": b"years of work"}


@pytest.mark.parametrize("value", [math.inf, 1e6])
def test_weights_that_would_not_be_loaded_again_are_not_saved(
    tmp_path: Path, checkpoint: Path, value: float
) -> None:
    """Too large a step can leave the loss finite: layer norm brings any size back to one."""
    run = make_run(tmp_path / "run", checkpoint, evaluator=False)
    run.start(resume=False)
    with torch.no_grad():
        run.loop.model.layers[0].attention.query.weight[0, 0] = value
    with pytest.raises(UserError, match=r"query.weight holds numbers.*lower --learning_rate"):
        run.folder.keep_best(run.loop.model, run.tokenizer)
    assert not (tmp_path / "run" / "model.safetensors").exists()


def test_a_folder_that_is_another_for_each_process(
    tmp_path: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(tmp_path / "run", checkpoint, evaluator=False)
    monkeypatch.setattr(Runtime, "gather", lambda self, value: [value, 500])
    with pytest.raises(UserError, match="other checkpoints for one process than for another"):
        run.start(resume=False)


def test_a_name_that_no_disk_takes_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be looked at: File name too long"):
        check_free(tmp_path / ("x" * 300), resume=False)


def test_the_temperature_of_one_best_model_is_not_left_to_the_next(
    tmp_path: Path, checkpoint: Path
) -> None:
    """A run that stopped early was calibrated, and goes on with more patience."""
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
