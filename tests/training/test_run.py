"""A run: evaluations, the best model, early stopping, observers and signals."""

import json
import os
import random
import signal
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from torch import Tensor
from transformers import EarlyStoppingCallback, TrainerState

from bertqa.answering.answers import Answer, Prediction
from bertqa.answering.evaluation import Evaluation
from bertqa.interrupts import Stopped
from bertqa.model.bert import BertForQuestionAnswering
from bertqa.runtime import Runtime
from bertqa.settings import DecodingSettings
from bertqa.training.checkpoints import Progress, load_for_training
from bertqa.training.evaluations import Measured, Observer, evaluation_lines
from bertqa.training.run import Run
from tests.training.runs import (
    CPU,
    SETTINGS,
    VALIDATION,
    checkpoints_of,
    contents,
    crash,
    in_step,
    log_of,
    losses_of,
    make_loop,
    make_run,
    same,
    trained,
    weights_of,
)


def test_a_run_has_the_steps_of_its_loop(checkpoint: Path, whole_run: Run) -> None:
    """Logging, evaluation and saving do not change the training."""
    loop = make_loop(checkpoint)
    losses = [float(step.loss) for step in loop.steps()]
    assert same(weights_of(loop), weights_of(whole_run))
    every_third = [sum(losses[i : i + 3]) / 3 for i in range(0, 12, 3)]
    assert losses_of(whole_run.folder.path) == every_third


# --- evaluations ---------------------------------------------------------------------------------


def test_a_line_in_the_log_for_each_evaluation(whole_run: Run) -> None:
    evaluated = [line for line in log_of(whole_run.folder.path) if "loss" not in line]
    keys = ["epoch", "step", "training_loss", "validation_loss", "exact_match", "f1"]
    assert all(list(line) == keys for line in evaluated)
    assert [line["step"] for line in evaluated] == [7, 12]
    assert evaluated == whole_run.progress.evaluations


def test_the_evaluation_table() -> None:
    rows = [
        {"epoch": 1.0, "step": 500, "training_loss": 1.23456, "validation_loss": 2.5,
         "exact_match": 81.234, "f1": 88.5678},
        {"epoch": 1.5, "step": 1000, "training_loss": 0.5},
    ]  # fmt: skip
    title, first, second = evaluation_lines(rows)
    assert title.split("  ") != title  # columns
    names = ["epoch", "step", "training loss", "validation loss", "exact match", "f1"]
    assert [name.strip() for name in title.split("  ") if name.strip()] == names
    assert first.split() == ["1.00", "500", "1.2346", "2.5000", "81.23", "88.57"]
    assert second.split() == ["1.50", "1,000", "0.5000", "-", "-", "-"]
    assert len(title) == len(first) == len(second)
    title, second = evaluation_lines(rows[1:])  # without validation
    assert title.split() == ["epoch", "step", "training", "loss"]
    assert second.split() == ["1.50", "1,000", "0.5000"]


def test_each_evaluation_is_printed_once(
    tmp_path: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A resumed run begins with the evaluations so far."""
    crash(make_run(tmp_path / "run", checkpoint), 10)
    before = capsys.readouterr().out.splitlines()
    run = trained(make_run(tmp_path / "run", checkpoint), resume=True)
    lines = evaluation_lines(run.progress.evaluations)
    assert before == lines[:2] and len(lines) == 3
    assert capsys.readouterr().out.splitlines() == lines


def test_without_a_validation_set_the_last_model_is_kept(tmp_path: Path, checkpoint: Path) -> None:
    folder = tmp_path / "run"
    run = trained(make_run(folder, checkpoint, evaluator=False))
    kept, _, _ = load_for_training(str(folder))
    assert same(kept.state_dict(), weights_of(run))
    assert [sorted(row) for row in run.progress.evaluations] == [
        ["epoch", "step", "training_loss"]
    ] * 2
    assert not (folder / "predictions.json").exists()


@dataclass
class ScriptedEvaluator:
    """Returns given F1 values in order, and records the models."""

    f1: list[float]
    settings: DecodingSettings = field(default_factory=DecodingSettings)
    seen: list[dict[str, Tensor]] = field(default_factory=list)
    examples: tuple[()] = ()

    def __call__(self, model: BertForQuestionAnswering) -> Evaluation:
        self.seen.append({name: value.clone() for name, value in model.state_dict().items()})
        text = f"answer {len(self.seen)}"
        answer = Answer(text, 0, len(text), 1.0, 2.0, 0.5)
        prediction = Prediction("id", text, (answer,), text, None)
        f1 = self.f1.pop(0)
        return Evaluation([prediction], 1.5, {"exact_match": f1 / 2, "f1": f1})


def test_the_best_model_by_f1_is_kept_and_not_the_last(tmp_path: Path, checkpoint: Path) -> None:
    folder = tmp_path / "run"
    evaluator = ScriptedEvaluator([10.0, 50.0, 50.0, 30.0])
    settings = replace(SETTINGS, eval_steps=3)
    run = trained(make_run(folder, checkpoint, settings, evaluator=evaluator))
    assert [row["f1"] for row in run.progress.evaluations] == [10, 50, 50, 30]
    assert run.progress.best_f1 == 50
    kept, _, _ = load_for_training(str(folder))
    first, best, equal, last = evaluator.seen
    assert same(kept.state_dict(), best)
    assert not same(best, equal) and not same(best, last) and not same(best, first)
    assert json.loads((folder / "predictions.json").read_text()) == {"id": "answer 2"}
    assert json.loads((folder / "metrics.json").read_text()) == {"exact_match": 25, "f1": 50}
    assert same(last, weights_of(run))


def test_the_best_model_is_kept_after_resuming(tmp_path: Path, checkpoint: Path) -> None:
    folder = tmp_path / "run"
    settings = replace(SETTINGS, eval_steps=3)
    first = ScriptedEvaluator([10.0, 50.0])
    crash(make_run(folder, checkpoint, settings, evaluator=first), step=8)
    second = ScriptedEvaluator([40.0, 30.0])
    trained(make_run(folder, checkpoint, settings, evaluator=second), resume=True)
    kept, _, _ = load_for_training(str(folder))
    assert same(kept.state_dict(), first.seen[1])
    assert [row["f1"] for row in log_of(folder) if "f1" in row] == [10, 50, 40, 30]


# --- early stopping ------------------------------------------------------------------------------

EARLY = replace(SETTINGS, eval_steps=2, logging_steps=1, early_stopping_patience=2)


@pytest.mark.parametrize(
    ("f1", "last", "best"),
    [
        ([10, 20, 20, 15], 8, 4),  # a tie is not an improvement
        ([10, 9, 20, 19, 21, 20], 12, 10),  # an improvement resets the count
        ([0, 0, 0], 6, 2),
        ([10, 20, 30, 40, 30, 20], 12, 8),
    ],
)
def test_evaluations_without_a_better_f1_end_a_run(
    tmp_path: Path, checkpoint: Path, f1: list[float], last: int, best: int
) -> None:
    folder, diary = tmp_path / "run", Diary(tmp_path / "run")
    evaluator = ScriptedEvaluator([*f1])
    run = trained(make_run(folder, checkpoint, EARLY, evaluator=evaluator, observer=diary))
    assert (run.progress.step, diary.lines[-1][:2]) == (last, ("end", last))
    assert checkpoints_of(folder) == [f"step-{last:08}"]
    kept, _, _ = load_for_training(str(folder))
    assert same(kept.state_dict(), evaluator.seen[best // 2 - 1])


def test_early_stopping_equals_the_trainers() -> None:
    """Their callback has the same count for random F1."""
    draw = random.Random(5)
    for _ in range(50):
        theirs, state = EarlyStoppingCallback(3), TrainerState()
        arguments = SimpleNamespace(greater_is_better=True)
        progress = Progress()
        for _ in range(12):
            f1 = float(draw.randint(0, 4))
            theirs.check_metric_value(arguments, state, None, f1)
            state.best_metric = max(f1, state.best_metric or 0.0)
            progress.evaluations.append({"f1": f1})
            progress.best_f1 = state.best_metric
            assert progress.evaluations_since_best == theirs.early_stopping_patience_counter


@pytest.mark.parametrize("stop", [3, 5, 7])
def test_a_resumed_run_stops_at_the_same_step(tmp_path: Path, checkpoint: Path, stop: int) -> None:
    f1 = [10.0, 20.0, 15.0, 18.0]
    whole = trained(
        make_run(tmp_path / "whole", checkpoint, EARLY, evaluator=ScriptedEvaluator([*f1]))
    )
    folder = tmp_path / "run"
    crash(make_run(folder, checkpoint, EARLY, evaluator=ScriptedEvaluator([*f1])), step=stop)
    rest = ScriptedEvaluator(f1[stop // 2 :])
    resumed = trained(make_run(folder, checkpoint, EARLY, evaluator=rest), resume=True)
    assert resumed.progress == whole.progress and whole.progress.step == 8
    assert same(weights_of(resumed), weights_of(whole))
    assert log_of(folder) == log_of(whole.folder.path)


def test_a_run_that_stopped_early_continues_with_more_patience(
    tmp_path: Path, checkpoint: Path
) -> None:
    folder, f1 = tmp_path / "run", [10.0, 20.0, 15.0, 18.0]
    trained(make_run(folder, checkpoint, EARLY, evaluator=ScriptedEvaluator(f1)))
    before = contents(folder)
    again = trained(make_run(folder, checkpoint, EARLY, evaluator=ScriptedEvaluator([])), True)
    assert again.progress.step == 8 and contents(folder) == before  # it had ended
    patient = replace(EARLY, early_stopping_patience=3)
    further = make_run(folder, checkpoint, patient, evaluator=ScriptedEvaluator([30.0, 25.0]))
    assert trained(further, resume=True).progress.step == 12


# --- the observer --------------------------------------------------------------------------------


@dataclass
class Diary(Observer):
    """Records all calls, and the number of log lines at that time."""

    folder: Path
    lines: list[tuple[str, float | None, int]] = field(default_factory=list)
    measured: list[Measured] = field(default_factory=list)

    def _record(self, event: str, step: float | None) -> None:
        self.lines.append((event, step, len(log_of(self.folder))))

    def after_log(self, line: Mapping[str, float | None]) -> None:
        self._record("log", line["step"])

    def after_evaluation(self, measured: Measured) -> None:
        self.measured.append(measured)
        self._record("evaluation", measured.row["step"])

    def at_end(self, progress: Progress) -> None:
        self._record("end", progress.step)


def test_the_calls_of_an_observer(tmp_path: Path, checkpoint: Path, whole_run: Run) -> None:
    """Each call comes after the log has its line."""
    diary = Diary(tmp_path / "run")
    run = trained(make_run(tmp_path / "run", checkpoint, observer=diary))
    assert diary.lines == [
        ("log", 3, 1), ("log", 6, 2), ("evaluation", 7, 3), ("log", 9, 4), ("log", 12, 5),
        ("evaluation", 12, 6), ("end", 12, 6),
    ]  # fmt: skip
    assert [measured.row for measured in diary.measured] == run.progress.evaluations
    first = diary.measured[0]
    assert first.is_best and first.examples == VALIDATION and first.settings == DecodingSettings()
    assert first.evaluation and first.evaluation.f1 == first.row["f1"]
    assert same(weights_of(run), weights_of(whole_run))


def test_an_observer_gets_which_model_is_the_best(tmp_path: Path, checkpoint: Path) -> None:
    diary, evaluator = Diary(tmp_path / "run"), ScriptedEvaluator([10.0, 50.0, 50.0, 30.0])
    settings = replace(SETTINGS, eval_steps=3)
    trained(make_run(tmp_path / "run", checkpoint, settings, evaluator=evaluator, observer=diary))
    assert [measured.is_best for measured in diary.measured] == [True, True, False, False]
    diary = Diary(tmp_path / "none")
    trained(make_run(tmp_path / "none", checkpoint, evaluator=False, observer=diary))
    assert [(each.is_best, each.evaluation) for each in diary.measured] == [(True, None)] * 2


def test_at_end_is_not_called_after_a_signal(tmp_path: Path, checkpoint: Path) -> None:
    diary = Diary(tmp_path / "run")
    run = make_run(tmp_path / "run", checkpoint, observer=diary)
    in_step(run, 7, lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(Stopped, match="SIGTERM after step 8 of 12"):  # the step is finished
        trained(run)
    assert diary.lines[-1] == ("evaluation", 7, 3)
    assert checkpoints_of(tmp_path / "run")[-1] == "step-00000008"


def test_only_the_main_process_calls_an_observer(
    tmp_path: Path, checkpoint: Path, one_of_two: None
) -> None:
    diary = Diary(tmp_path / "run")
    runtime = Runtime(CPU, rank=1, world_size=2)
    settings = replace(SETTINGS, max_steps=3)
    run = make_run(tmp_path / "run", checkpoint, settings, runtime, False, diary)
    trained(run)
    assert run.progress.step == 3
    assert diary.lines == []
    assert not (tmp_path / "run").exists()  # and only that one writes


# --- signals -------------------------------------------------------------------------------------


def test_a_signal_in_the_last_step_has_no_effect(
    tmp_path: Path, checkpoint: Path, whole_run: Run
) -> None:
    run = make_run(tmp_path / "run", checkpoint)
    in_step(run, 11, lambda: os.kill(os.getpid(), signal.SIGTERM))
    trained(run)
    assert same(weights_of(run), weights_of(whole_run))


def test_all_processes_end_after_the_same_step(
    tmp_path: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch, one_of_two: None
) -> None:
    """The other process receives the signal, in step 3."""

    def of_another(runtime: Runtime, number: int) -> int:
        assert number == 0  # this process received none
        return signal.SIGINT if run.progress.step == 3 else 0

    monkeypatch.setattr(Runtime, "max_over_ranks", of_another)
    run = make_run(
        tmp_path / "run", checkpoint, runtime=Runtime(CPU, world_size=2), evaluator=False
    )
    with pytest.raises(Stopped, match="stopped by SIGINT after step 3 of 12") as stop:
        trained(run)
    assert stop.value.exit_code == 130
    assert checkpoints_of(tmp_path / "run")[-1] == "step-00000003"
