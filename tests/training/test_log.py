"""The log: contents of its lines, and NaN or infinite losses."""

import json
import math
import time
from dataclasses import replace
from pathlib import Path

import pytest
from torch import Tensor

from bertqa.answering.answerer import load_folder
from bertqa.answering.evaluation import Evaluation
from bertqa.errors import UserError
from bertqa.model.bert import window_losses
from bertqa.settings import DecodingSettings
from bertqa.training.run import Run
from tests.training.runs import (
    SCALED,
    SETTINGS,
    TRAINING,
    check_clock,
    checkpoints_of,
    every_step,
    in_step,
    log_of,
    losses_of,
    make_run,
    same,
    trained,
    weights_of,
)


def test_a_line_in_the_log_for_each_logged_step(whole_run: Run) -> None:
    text = (whole_run.folder.path / "log.jsonl").read_text()
    assert text.endswith("\n")
    lines = [json.loads(line) for line in text.splitlines()]
    logged = [line for line in lines if "loss" in line]
    keys = ["step", "epoch", "loss", "learning_rate", "grad_norm", "tokens_per_second", "seconds"]
    assert all(list(line) == keys for line in logged)
    assert [line["step"] for line in logged] == [3, 6, 9, 12]
    epoch = math.ceil(len(whole_run.loop.windows) / 6)
    assert [line["epoch"] for line in logged] == [round(s / epoch, 4) for s in (3, 6, 9, 12)]
    # Three steps of warmup from 0 (1/5 of twelve, rounded up), then linear decay to 0 at step 12.
    rates = [line["learning_rate"] for line in logged]
    assert rates == pytest.approx([5e-3 * x for x in (2 / 3, 7 / 9, 4 / 9, 1 / 9)])
    assert all(line["grad_norm"] > 0 and line["tokens_per_second"] > 0 for line in logged)
    check_clock(whole_run)
    assert logged[-1]["loss"] < logged[0]["loss"]


def test_the_logged_loss_is_the_mean_of_the_steps_since_the_last_line(
    tmp_path: Path, checkpoint: Path, whole_run: Run
) -> None:
    every = trained(make_run(tmp_path / "run", checkpoint, every_step(), evaluator=False))
    assert same(weights_of(every), weights_of(whole_run))  # logging does not change the training
    each = losses_of(tmp_path / "run")
    assert len(each) == 12
    means = [sum(each[i : i + 3]) / 3 for i in (0, 3, 6, 9)]
    assert losses_of(whole_run.folder.path) == pytest.approx(means, rel=1e-12)
    # An evaluation's training loss is the mean of all steps since the previous evaluation.
    rows = whole_run.progress.evaluations
    assert rows[0]["training_loss"] == pytest.approx(sum(each[:7]) / 7)
    assert rows[1]["training_loss"] == pytest.approx(sum(each[7:]) / 5)
    # Also if evaluations are between log lines.
    often = replace(SETTINGS, eval_steps=2, logging_steps=5)
    run = trained(make_run(tmp_path / "often", checkpoint, often, evaluator=False))
    found = [row["training_loss"] for row in run.progress.evaluations]
    assert found == pytest.approx([sum(each[i : i + 2]) / 2 for i in range(0, 12, 2)])


def test_seconds_do_not_include_evaluations(tmp_path: Path, checkpoint: Path) -> None:
    def slow(model: object) -> Evaluation:
        time.sleep(0.5)
        return Evaluation([], 1.0, {"exact_match": 0.0, "f1": 0.0})

    slow.examples, slow.settings = (), DecodingSettings()  # type: ignore[attr-defined]
    run = make_run(tmp_path / "run", checkpoint, evaluator=slow)
    run.loop.optimizer.register_step_pre_hook(lambda *_: time.sleep(0.05))
    started = time.perf_counter()
    trained(run)
    elapsed = time.perf_counter() - started
    text = (tmp_path / "run" / "log.jsonl").read_text()
    lines = [json.loads(line) for line in text.splitlines()]
    seconds = [line["seconds"] for line in lines if "loss" in line]
    assert len(seconds) == 4 and all(each > 3 * 0.05 for each in seconds)
    assert sum(seconds) < elapsed - 2 * 0.5  # there were two evaluations


# --- NaN and infinity ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "logging_steps", "eval_steps"),
    [(math.nan, 1, 100), (math.inf, 5, 100), (math.nan, 100, 100), (math.inf, 100, 6)],
)
def test_a_loss_that_is_not_finite_ends_the_run_before_it_is_saved(
    tmp_path: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch,
    value: float, logging_steps: int, eval_steps: int,
) -> None:  # fmt: skip
    """Whether a log line, an evaluation or a save is next."""
    folder = tmp_path / "run"
    settings = replace(
        SETTINGS, logging_steps=logging_steps, eval_steps=eval_steps, save_steps=2,
        save_total_limit=9,
    )  # fmt: skip

    def never(model: object) -> None:
        raise AssertionError("the model of such a step must not be evaluated")

    run = make_run(folder, checkpoint, settings, evaluator=never)

    def spoiled(*arguments: object) -> Tensor:
        factor = value if run.progress.step == 4 else 1.0  # the fifth step
        return window_losses(*arguments) * factor

    monkeypatch.setattr("bertqa.training.loop.window_losses", spoiled)
    with pytest.raises(UserError, match=f"step 5: .* got {value}") as caught:
        trained(run)
    last = folder / "checkpoints" / "step-00000004"
    assert f"from the last checkpoint with --model {last}" in str(caught.value)
    load_folder(last, allow_bin=False, require_head=True)  # that command would work
    assert checkpoints_of(folder) == ["step-00000002", "step-00000004"]
    failure = json.loads((folder / "failure.json").read_text())
    assert (failure["step"], failure["loss"]) == (5, str(value))
    assert failure["last_checkpoint"] == str(last)
    windows = run.loop.plan.windows_of(4)
    ids = {TRAINING[int(run.loop.windows.example[window])].id for window in windows}
    assert set(failure["example_ids"]) == ids and len(ids) > 1
    assert not (folder / "model.safetensors").exists()
    logged = [line["step"] for line in log_of(folder)] if logging_steps == 1 else []
    assert logged == [1, 2, 3, 4][: len(logged)] and (logging_steps > 1 or logged)


def overflow_in(run: Run, step: int) -> None:
    """Make a gradient infinite in one step, counted from 0."""
    run.loop.model.head.weight.register_hook(
        lambda gradient: gradient * (math.inf if run.progress.step == step else 1.0)
    )


def test_a_gradient_that_is_not_finite_ends_the_run_as_well(
    tmp_path: Path, checkpoint: Path
) -> None:
    settings = replace(SETTINGS, save_steps=1)
    run = make_run(tmp_path / "run", checkpoint, settings)
    overflow_in(run, 2)  # the third
    with pytest.raises(UserError, match=r"step 3: .* got \d.* and (inf|nan)"):
        trained(run)
    assert checkpoints_of(tmp_path / "run")[-1] == "step-00000002"
    assert (tmp_path / "run" / "failure.json").exists()
    trained(make_run(tmp_path / "run", checkpoint, settings), resume=True)
    assert not (tmp_path / "run" / "failure.json").exists()


def test_a_gradient_that_overflows_in_fp16_is_logged_as_none(
    tmp_path: Path, checkpoint: Path
) -> None:
    run = make_run(tmp_path / "run", checkpoint, every_step(), SCALED, evaluator=False)
    overflow_in(run, 2)
    trained(run)
    norms = [line["grad_norm"] for line in log_of(tmp_path / "run") if "loss" in line]
    assert [number for number, norm in enumerate(norms) if norm is None] == [2]


@pytest.mark.parametrize("save_steps", [1, 100])
def test_invalid_weights_end_the_run_and_list_its_questions(
    tmp_path: Path, checkpoint: Path, save_steps: int
) -> None:
    """When a checkpoint or the best model is saved; the loss may still be finite."""
    settings = replace(SETTINGS, save_steps=save_steps, eval_steps=5)
    run = make_run(tmp_path / "run", checkpoint, settings)

    def spoil() -> None:
        run.loop.model.layers[0].attention.query.weight.data[0, 0] = 1e6

    in_step(run, 4, spoil)  # the fifth
    with pytest.raises(UserError, match=r"step 5, or .*query.weight must be finite") as caught:
        trained(run)
    last = run.checkpoints.last()
    assert (last is not None) == (save_steps == 1)
    advice = f"last checkpoint with --model {last}" if last else "there is no checkpoint yet"
    assert advice in str(caught.value) and " listed in " in str(caught.value)
    failure = json.loads((tmp_path / "run" / "failure.json").read_text())
    assert failure["step"] == 5 and "query.weight" in failure["weights"]
    assert len(failure["example_ids"]) > 1
    assert not (tmp_path / "run" / "model.safetensors").exists()
