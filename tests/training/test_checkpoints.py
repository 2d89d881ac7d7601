"""A run that crashes at any time continues from its last checkpoint with the same result."""

import errno
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from bertqa.errors import UserError
from bertqa.files import write_json
from bertqa.report.training_page import RunReport
from bertqa.training import checkpoints
from bertqa.training.run import Run
from bertqa.training.run_folder import RunFolder
from tests.training.runs import (
    BF16,
    FP32,
    SCALED,
    SETTINGS,
    Stop,
    check_clock,
    checkpoints_of,
    contents,
    crash,
    log_of,
    make_run,
    same,
    trained,
    weights_of,
)


@pytest.mark.parametrize(
    "stops",
    [[4], [6], [2], [7], [8], [11], [1, 5, 10]],
    ids=["at a save", "between saves", "before the first save", "after an evaluation",
         "at a save after an evaluation", "before the last step", "three times"],
)  # fmt: skip
def test_a_resumed_run_is_identical(
    tmp_path: Path, checkpoint: Path, whole_run: Run, stops: list[int]
) -> None:
    folder = tmp_path / "run"
    for number, stop in enumerate(stops):
        crash(make_run(folder, checkpoint), stop, resume=number > 0)
    torch.manual_seed(99)  # as in another process
    run = trained(make_run(folder, checkpoint), resume=True)
    assert same(weights_of(run), weights_of(whole_run))
    assert log_of(folder) == log_of(whole_run.folder.path)
    check_clock(run)
    assert run.progress == whole_run.progress
    ours, theirs = contents(folder), contents(whole_run.folder.path)
    assert ours.pop("log.jsonl") and theirs.pop("log.jsonl")  # they contain times
    assert ours == theirs  # the best model, its answers, the last checkpoint with moments


@pytest.mark.parametrize("kind", ["bf16", "fp16", "frozen embeddings", "averaged", "distilled"])
def test_other_kinds_of_training_resume(
    tmp_path: Path, checkpoint: Path, teachers: tuple[Path, Path], kind: str
) -> None:
    """fp16's scaler has skipped a step and halved its scale twice before the crash."""
    changes: dict[str, dict[str, Any]] = {
        "frozen embeddings": {"freeze_word_embeddings": True},
        "averaged": {"freeze_word_embeddings": True, "ema_decay": 0.4},
    }
    settings = replace(SETTINGS, logging_steps=1, **changes.get(kind, {}))
    runtime = {"bf16": BF16, "fp16": SCALED}.get(kind, FP32)

    def make(folder: Path) -> Run:
        # fp16 requires a GPU; only training works here, in float32.
        evaluator = False if kind == "fp16" else None
        models = teachers if kind == "distilled" else ()
        run = make_run(folder, checkpoint, settings, runtime, evaluator, teachers=models)
        if kind == "fp16":
            run.loop.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127, growth_interval=3)
        return run

    folders = tmp_path / "whole", tmp_path / "resumed"
    whole = trained(make(folders[0]))
    crash(make(folders[1]), 6)
    resumed = make(folders[1])
    resumed.start(resume=True)
    assert resumed.progress.step == 4
    if kind == "fp16":
        assert resumed.loop.scaler.get_scale() < 2.0**127
        assert whole.progress.scaler != {}
    resumed.train()
    assert same(weights_of(resumed), weights_of(whole))
    assert log_of(folders[0]) == log_of(folders[1])
    assert resumed.progress == whole.progress
    ours, theirs = (contents(folder) for folder in folders)
    assert ours.pop("log.jsonl") and theirs.pop("log.jsonl")  # they contain times
    assert ours == theirs


# --- which checkpoints are kept ------------------------------------------------------------------


def test_the_newest_checkpoints_are_kept_and_resumed_from(
    tmp_path: Path, checkpoint: Path, whole_run: Run
) -> None:
    settings = replace(SETTINGS, save_steps=2, save_total_limit=3)
    crash(make_run(tmp_path / "run", checkpoint, settings), 7)
    assert checkpoints_of(tmp_path / "run") == [f"step-{n:08}" for n in (4, 6, 7)]
    run = make_run(tmp_path / "run", checkpoint, settings)
    run.start(resume=True)
    assert run.progress.step == 7
    run.train()
    assert same(weights_of(run), weights_of(whole_run))
    assert checkpoints_of(tmp_path / "run") == [f"step-{n:08}" for n in (8, 10, 12)]


def test_resuming_a_finished_run_changes_nothing(
    tmp_path: Path, checkpoint: Path, whole_run: Run
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(whole_run.folder.path, folder)
    before = contents(folder)
    run = trained(make_run(folder, checkpoint), resume=True)
    assert run.progress == whole_run.progress
    assert contents(folder) == before


def test_settings_that_may_change(tmp_path: Path, still_checkpoint: Path) -> None:
    """How often to log and save, and batch size and accumulation for the same step."""
    whole = trained(make_run(tmp_path / "whole", still_checkpoint))
    crash(make_run(tmp_path / "run", still_checkpoint), 6)
    other = replace(
        SETTINGS, logging_steps=5, save_steps=5, save_total_limit=2,
        per_device_train_batch_size=6, gradient_accumulation_steps=1,
    )  # fmt: skip
    run = trained(make_run(tmp_path / "run", still_checkpoint, other), resume=True)
    # The order of summation differs: AdamW amplifies rounding errors of small gradients.
    for name, value in weights_of(whole).items():
        torch.testing.assert_close(weights_of(run)[name], value, rtol=0, atol=1e-5)


# --- crashes while writing -----------------------------------------------------------------------


def stop(*arguments: object) -> None:
    raise Stop


def stop_in_progress_json(path: Path, value: Any) -> None:
    """Call ``write_json``, but raise at the checkpoint of step 8."""
    if value["step"] == 8:
        raise Stop
    write_json(path, value)


def stop_after_half_a_line(folder: RunFolder, line: dict[str, Any]) -> None:
    text = json.dumps(line)
    done = line["step"] < 9
    with (folder.path / "log.jsonl").open("a") as file:
        file.write(text + "\n" if done else text[: len(text) // 2])
    if not done:
        raise Stop


@pytest.mark.parametrize(
    ("owner", "name", "accident"),
    [
        (checkpoints, "write_json", stop_in_progress_json),
        (RunFolder, "keep_predictions", stop),
        (RunFolder, "append_log", stop_after_half_a_line),
    ],
    ids=["in a checkpoint", "between model and predictions", "after half a line"],
)
def test_a_crash_while_writing(
    tmp_path: Path, checkpoint: Path, whole_run: Run, monkeypatch: pytest.MonkeyPatch,
    owner: object, name: str, accident: Callable[..., None],
) -> None:  # fmt: skip
    folder = tmp_path / "run"
    run = make_run(folder, checkpoint)
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, accident)
        with pytest.raises(Stop):
            trained(run)
    resumed = trained(make_run(folder, checkpoint), resume=True)
    assert same(weights_of(resumed), weights_of(whole_run))
    assert log_of(folder) == log_of(whole_run.folder.path)


def test_a_disk_that_is_full_at_any_write_loses_nothing(
    tmp_path: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever file cannot be written: one message, and the run can be resumed."""
    sync, calls = os.fsync, 0
    settings = replace(SETTINGS, max_steps=4, logging_steps=1, eval_steps=3, save_steps=2)

    def full_at(last: int) -> Callable[[int], None]:
        def counted(descriptor: int) -> None:
            nonlocal calls
            calls += 1
            if calls == last:
                raise OSError(errno.ENOSPC, "No space left on device")
            sync(descriptor)

        return counted

    def observed(folder: Path) -> Run:
        return make_run(folder, checkpoint, settings, observer=RunReport(folder))

    monkeypatch.setattr(os, "fsync", full_at(0))
    whole = trained(observed(tmp_path / "counted"))
    assert calls > 40
    printed = set()
    for last in range(1, calls + 1, 7):
        calls, folder = 0, tmp_path / f"full-{last}"
        monkeypatch.setattr(os, "fsync", full_at(last))
        with pytest.raises(UserError, match="cannot be written: No space left on device") as error:
            trained(observed(folder))
        printed.add(str(error.value).partition(" cannot be")[0].rpartition("/")[2])
        monkeypatch.setattr(os, "fsync", sync)
        resumed = trained(observed(folder), resume=(folder / "run.json").exists())
        assert same(weights_of(resumed), weights_of(whole)), last
        assert log_of(folder) == log_of(whole.folder.path)
        assert (folder / "report.html").exists()
    assert len(printed) > 4, printed  # different files


def test_a_partial_checkpoint_is_removed(tmp_path: Path, checkpoint: Path, whole_run: Run) -> None:
    folder = tmp_path / "run"
    crash(make_run(folder, checkpoint), 6)
    partial = folder / "checkpoints" / ".step-00000006.4711.partial"
    partial.mkdir()
    (partial / "config.json").write_text("{")
    resumed = trained(make_run(folder, checkpoint), resume=True)
    assert same(weights_of(resumed), weights_of(whole_run))
    assert checkpoints_of(folder) == ["step-00000012"]


@pytest.mark.parametrize("name", ["config.json", "optimizer.safetensors", "progress.json"])
def test_a_checkpoint_without_permission_is_not_called_damaged(
    tmp_path: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    crash(make_run(tmp_path / "run", checkpoint, evaluator=False), 6)
    run, usual = make_run(tmp_path / "run", checkpoint, evaluator=False), Path.open

    def opened(path: Path, *arguments: Any) -> Any:
        if path.name == name:
            raise PermissionError(errno.EACCES, "Permission denied")
        return usual(path, *arguments)

    monkeypatch.setattr(Path, "open", opened)
    with pytest.raises(UserError, match=f"{name} cannot be read: Permission denied: check its"):
        run.start(resume=True)
