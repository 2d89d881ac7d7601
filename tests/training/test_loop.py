"""The loop: what a run leaves behind, how it goes on after a stop, and that processes agree."""

import errno
import json
import math
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from torch import Tensor
from transformers import AutoModelForQuestionAnswering, AutoTokenizer

from bertqa import QuestionAnswerer
from bertqa.answering.answerer import load_folder
from bertqa.answering.answers import Answer, Prediction
from bertqa.answering.evaluation import Evaluation, Evaluator
from bertqa.commands import train
from bertqa.data.batching import collate, step_windows
from bertqa.data.readers import read_examples
from bertqa.data.squad import data_fingerprint
from bertqa.data.windows import make_windows
from bertqa.errors import UserError
from bertqa.interrupts import Stopped
from bertqa.model.bert import BertForQuestionAnswering
from bertqa.model.checkpoint import read_tensors
from bertqa.runtime import Runtime
from bertqa.settings import DecodingSettings, TrainingSettings, WindowSettings
from bertqa.training import checkpoints as runs
from bertqa.training.checkpoints import Checkpoints, Progress, load_for_training
from bertqa.training.loop import Run, total_steps
from bertqa.training.run_folder import RunFolder, check_free, evaluation_table
from tests.helpers import STORIES, their_batch, unpadded, write_checkpoint

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")
FP32, BF16 = Runtime(CPU), Runtime(CPU, torch.bfloat16)
WINDOWS = WindowSettings(max_seq_length=96, doc_stride=16, max_query_length=24)

EXAMPLES = read_examples(STORIES)
TRAINING, VALIDATION = EXAMPLES[:5], EXAMPLES[60:63]

# Twelve steps; logs, evaluations and saves fall on the same step only here and there.
SETTINGS = TrainingSettings(
    max_steps=12,
    learning_rate=5e-3,
    warmup_ratio=0.2,
    per_device_train_batch_size=3,
    gradient_accumulation_steps=2,
    logging_steps=3,
    eval_steps=7,
    save_steps=4,
    # The keys' biases move nothing, so that their gradient is rounding alone; a smaller epsilon
    # would make steps of it, other ones for another order of the same sum.
    adam_epsilon=1e-4,
)


@pytest.fixture(scope="module", autouse=True)
def nothing_outside(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Caches go into a temporary folder, and one thread works: what is equal bit for bit is so
    with the same number of threads.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
        for variable in ("WORLD_SIZE", "RANK", "LOCAL_RANK"):
            patch.delenv(variable, raising=False)
        yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_checkpoint(tmp_path_factory.mktemp("checkpoint") / "tiny")
    dropout = json.loads((folder / "config.json").read_text())
    assert dropout["hidden_dropout_prob"] == dropout["attention_probs_dropout_prob"] == 0.1
    return folder


@pytest.fixture(scope="module")
def still_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same without dropout."""
    return write_checkpoint(
        tmp_path_factory.mktemp("checkpoint") / "still",
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )


DESCRIPTION = {"settings": {"seed": 42, "model": "tiny"}, "data": {"train": "0123"}}


def make_run(
    folder: Path,
    checkpoint: Path,
    settings: TrainingSettings = SETTINGS,
    runtime: Runtime = FP32,
    evaluator: Any = None,
) -> Run:
    """A run from the checkpoint, as a fresh process would make it."""
    model, tokenizer, _ = load_for_training(str(checkpoint), seed=settings.seed)
    windows = make_windows(TRAINING, tokenizer, WINDOWS)
    if evaluator is None:
        validation = make_windows(VALIDATION, tokenizer, WINDOWS)
        evaluator = Evaluator(VALIDATION, validation, DecodingSettings(), runtime)
    return Run(
        model, tokenizer, windows, evaluator or None, settings, runtime,
        RunFolder(folder, DESCRIPTION), [example.id for example in TRAINING],
    )  # fmt: skip


def trained(run: Run, resume: bool = False) -> Run:
    run.start(resume)
    run.train()
    return run


def log_of(folder: Path) -> list[dict[str, float]]:
    """The lines of the log without what differs from run to run."""
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    for line in lines:
        for of_the_clock in ("tokens_per_second", "seconds"):
            line.pop(of_the_clock, None)
    return lines


def check_clock(run: Run) -> None:
    """That speed and seconds of each line in the log are of all steps since the line before."""
    text = (run.folder.path / "log.jsonl").read_text()
    logged = [line for line in map(json.loads, text.splitlines()) if "loss" in line]
    assert logged
    for before, line in zip([{"step": 0}, *logged], logged, strict=False):
        seen = torch.cat([
            step_windows(len(run.windows), run.windows_per_step, run.settings.seed, step)
            for step in range(before["step"], line["step"])
        ])  # fmt: skip
        by_the_clock = line["tokens_per_second"] * line["seconds"]
        assert by_the_clock == pytest.approx(int(run.windows.lengths[seen].sum()), rel=0.05)


def losses_of(folder: Path) -> list[float]:
    return [line["loss"] for line in log_of(folder) if "loss" in line]


def weights_of(run: Run) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in run.model.state_dict().items()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    """Bit for bit."""
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def checkpoints_of(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "checkpoints").iterdir())


def contents(folder: Path) -> dict[str, bytes]:
    """All files; of a checkpoint's progress without the time that it took."""
    files = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    for path in files:
        if path.name == "progress.json":
            progress = json.loads(files[path])
            assert progress.pop("seconds_since_log") >= 0
            files[path] = json.dumps(progress).encode()
    return {str(path.relative_to(folder)): content for path, content in files.items()}


# --- what a run leaves behind --------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory: pytest.TempPathFactory, checkpoint: Path) -> Run:
    """A run of twelve steps, never stopped."""
    return trained(make_run(tmp_path_factory.mktemp("runs") / "whole", checkpoint))


def test_a_line_in_the_log_for_each_logged_step(whole_run: Run) -> None:
    text = (whole_run.folder.path / "log.jsonl").read_text()
    assert text.endswith("\n")
    lines = [json.loads(line) for line in text.splitlines()]
    logged = [line for line in lines if "loss" in line]
    keys = ["step", "epoch", "loss", "learning_rate", "grad_norm", "tokens_per_second", "seconds"]
    assert all(list(line) == keys for line in logged)
    assert [line["step"] for line in logged] == [3, 6, 9, 12]
    epoch = whole_run.steps_per_epoch
    assert epoch == math.ceil(len(whole_run.windows) / 6)
    assert [line["epoch"] for line in logged] == [round(s / epoch, 4) for s in (3, 6, 9, 12)]
    # Three steps of warm-up from 0 (a fifth of twelve, rounded up), then down to 0 at step 12.
    rates = [line["learning_rate"] for line in logged]
    assert rates == pytest.approx([5e-3 * x for x in (2 / 3, 7 / 9, 4 / 9, 1 / 9)])
    assert all(line["grad_norm"] > 0 and line["tokens_per_second"] > 0 for line in logged)
    check_clock(whole_run)
    assert logged[-1]["loss"] < logged[0]["loss"]


def test_a_line_in_the_log_for_each_evaluation(whole_run: Run) -> None:
    evaluated = [line for line in log_of(whole_run.folder.path) if "loss" not in line]
    keys = ["epoch", "step", "training_loss", "validation_loss", "exact_match", "f1"]
    assert all(list(line) == keys for line in evaluated)
    assert [line["step"] for line in evaluated] == [7, 12]
    assert evaluated == whole_run.progress.evaluations


def test_the_logged_loss_is_the_mean_of_the_steps_since_the_last_line(
    tmp_path: Path, checkpoint: Path, whole_run: Run
) -> None:
    every = trained(make_run(tmp_path / "run", checkpoint, replace(SETTINGS, logging_steps=1)))
    assert same(weights_of(every), weights_of(whole_run))  # looking changes nothing
    each = losses_of(tmp_path / "run")
    assert len(each) == 12
    means = [sum(each[i : i + 3]) / 3 for i in (0, 3, 6, 9)]
    assert losses_of(whole_run.folder.path) == pytest.approx(means, rel=1e-12)
    # An evaluation's training loss: of all steps since the one before.
    rows = whole_run.progress.evaluations
    assert rows[0]["training_loss"] == pytest.approx(sum(each[:7]) / 7)
    assert rows[1]["training_loss"] == pytest.approx(sum(each[7:]) / 5)


def test_the_first_loss_is_that_of_the_model_before_training(
    tmp_path: Path, still_checkpoint: Path
) -> None:
    """All windows in one batch: the logged loss is what the evaluator finds."""
    settings = replace(
        SETTINGS, per_device_train_batch_size=500, gradient_accumulation_steps=1, max_steps=1
    )
    run = make_run(tmp_path / "run", still_checkpoint, settings)
    evaluator = Evaluator(TRAINING, run.windows, DecodingSettings(), FP32)
    before = evaluator(run.model).loss
    trained(run)
    assert losses_of(tmp_path / "run") == pytest.approx([before], rel=1e-5)


def test_the_evaluation_table() -> None:
    rows = [
        {"epoch": 1.0, "step": 500, "training_loss": 1.23456, "validation_loss": 2.5,
         "exact_match": 81.234, "f1": 88.5678},
        {"epoch": 1.5, "step": 1000, "training_loss": 0.5},
    ]  # fmt: skip
    title, first, second = evaluation_table(rows).splitlines()
    assert title.split("  ") != title  # columns
    names = ["epoch", "step", "training loss", "validation loss", "exact match", "f1"]
    assert [name.strip() for name in title.split("  ") if name.strip()] == names
    assert first.split() == ["1.00", "500", "1.2346", "2.5000", "81.23", "88.57"]
    assert second.split() == ["1.50", "1000", "0.5000", "-", "-", "-"]
    assert len(title) == len(first) == len(second)


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
    """Finds the F1 values it was given, one after another, and remembers the models it saw."""

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


def test_the_best_model_stays_the_best_after_a_stop(tmp_path: Path, checkpoint: Path) -> None:
    folder = tmp_path / "run"
    settings = replace(SETTINGS, eval_steps=3)
    first = ScriptedEvaluator([10.0, 50.0])
    run = make_run(folder, checkpoint, settings, evaluator=first)
    with stopped_at(8):
        trained(run)
    second = ScriptedEvaluator([40.0, 30.0])
    trained(make_run(folder, checkpoint, settings, evaluator=second), resume=True)
    kept, _, _ = load_for_training(str(folder))
    assert same(kept.state_dict(), first.seen[1])
    assert [row["f1"] for row in log_of(folder) if "f1" in row] == [10, 50, 40, 30]


def test_the_evaluator_does_not_disturb_the_training(tmp_path: Path, checkpoint: Path) -> None:
    often = trained(make_run(tmp_path / "a", checkpoint, replace(SETTINGS, eval_steps=1)))
    never = trained(make_run(tmp_path / "b", checkpoint, evaluator=False))
    assert same(weights_of(often), weights_of(never))
    assert often.model.training


def test_only_the_newest_checkpoints_are_kept(tmp_path: Path, checkpoint: Path) -> None:
    settings = replace(SETTINGS, save_steps=2, save_total_limit=3)
    trained(make_run(tmp_path / "run", checkpoint, settings, evaluator=False))
    assert checkpoints_of(tmp_path / "run") == [
        "step-00000008", "step-00000010", "step-00000012",
    ]  # fmt: skip
    one = replace(SETTINGS, save_steps=5)
    trained(make_run(tmp_path / "one", checkpoint, one, evaluator=False))
    assert checkpoints_of(tmp_path / "one") == ["step-00000012"]


def test_saves_fall_on_evaluations_too(
    tmp_path: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved = []
    save = Checkpoints.save

    def note(self: Checkpoints, *given: Any) -> None:
        saved.append(next(value for value in given if isinstance(value, Progress)).step)
        save(self, *given)

    monkeypatch.setattr(Checkpoints, "save", note)
    trained(make_run(tmp_path / "run", checkpoint))
    assert saved == [4, 7, 8, 12]


# --- how long it trains --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("epochs", "max_steps", "world_size", "expected"),
    [
        (3.0, None, 1, 33),  # 11 steps of at most 6 windows in an epoch of 61
        (1.0, None, 1, 11),
        (0.5, None, 1, 6),
        (1.5, None, 1, 17),
        (0.001, None, 1, 1),
        (1.0, None, 2, 6),
        (1.0, 100, 1, 100),
        (3.0, 1, 1, 1),
    ],
)
def test_steps_of_a_run(
    epochs: float, max_steps: int | None, world_size: int, expected: int
) -> None:
    settings = replace(SETTINGS, num_train_epochs=epochs, max_steps=max_steps)
    assert total_steps(settings, 61, world_size) == expected


def test_a_fraction_of_an_epoch_is_evaluated_at_its_end(tmp_path: Path, checkpoint: Path) -> None:
    settings = replace(
        SETTINGS, max_steps=None, num_train_epochs=1.5, eval_steps=None, logging_steps=100,
        per_device_train_batch_size=8, gradient_accumulation_steps=1,
    )  # fmt: skip
    run = make_run(tmp_path / "run", checkpoint, settings, evaluator=False)
    epoch = run.steps_per_epoch
    assert run.total_steps == math.ceil(1.5 * epoch)
    trained(run)
    steps = [row["step"] for row in run.progress.evaluations]
    assert steps == [epoch, run.total_steps]
    assert run.progress.evaluations[0]["epoch"] == 1.0
    assert [line["step"] for line in log_of(tmp_path / "run") if "loss" in line] == [steps[-1]]


# --- accumulation, clipping ----------------------------------------------------------------------


def test_four_batches_of_four_are_one_of_sixteen(tmp_path: Path, still_checkpoint: Path) -> None:
    def with_batches(size: int, times: int) -> Run:
        settings = replace(
            SETTINGS, per_device_train_batch_size=size, gradient_accumulation_steps=times,
            max_steps=3, logging_steps=1, learning_rate=1e-3,
        )  # fmt: skip
        folder = tmp_path / f"{size}x{times}"
        return trained(make_run(folder, still_checkpoint, settings, evaluator=False))

    whole, parts = with_batches(16, 1), with_batches(4, 4)
    assert len(whole.windows) % 16 not in (0, 4, 8, 12)  # the epoch's last step is uneven
    assert losses_of(tmp_path / "16x1") == pytest.approx(losses_of(tmp_path / "4x4"), rel=1e-6)
    for name, value in weights_of(whole).items():
        torch.testing.assert_close(weights_of(parts)[name], value, rtol=0, atol=1e-6)


def test_the_gradient_is_clipped_to_its_norm(
    tmp_path: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    norms = []

    def note(run: Run) -> Callable[..., Any]:
        step = run.optimizer.step

        def noted(*args: Any, **kwargs: Any) -> Any:
            gradients = [p.grad.flatten() for p in run.model.parameters()]
            norms.append(float(torch.cat(gradients).norm()))
            return step(*args, **kwargs)

        return noted

    logged = {}
    for limit in (0.5, 0.0, 1e6):
        settings = replace(SETTINGS, max_grad_norm=limit, max_steps=1, logging_steps=1)
        folder = tmp_path / str(limit)
        run = make_run(folder, checkpoint, settings, evaluator=False)
        monkeypatch.setattr(run.optimizer, "step", note(run))
        trained(run)
        logged[limit] = log_of(folder)[0]["grad_norm"]
    assert logged[0.5] == logged[0.0] == logged[1e6] > 0.5  # what is logged is from before
    assert norms == pytest.approx([0.5, logged[0.0], logged[0.0]], rel=1e-4)


# --- what is random ------------------------------------------------------------------------------


def test_a_rate_that_stays(tmp_path: Path, checkpoint: Path) -> None:
    settings = replace(SETTINGS, lr_scheduler_type="constant_with_warmup", logging_steps=1)
    trained(make_run(tmp_path / "run", checkpoint, settings))
    rates = [line["learning_rate"] for line in log_of(tmp_path / "run") if "loss" in line]
    warmup = math.ceil(len(rates) * settings.warmup_ratio)
    assert rates[warmup:] == [settings.learning_rate] * (len(rates) - warmup)
    with pytest.raises(UserError, match="--lr_scheduler_type cosine"):
        replace(SETTINGS, lr_scheduler_type="cosine")


def test_dropout_takes_the_place_of_the_checkpoints(
    tmp_path: Path, checkpoint: Path, still_checkpoint: Path
) -> None:
    still = trained(make_run(tmp_path / "still", still_checkpoint))
    off = trained(make_run(tmp_path / "off", checkpoint, replace(SETTINGS, dropout=0.0)))
    on = trained(make_run(tmp_path / "on", still_checkpoint, replace(SETTINGS, dropout=0.1)))
    usual = trained(make_run(tmp_path / "usual", checkpoint))
    assert losses_of(off.folder.path) == losses_of(still.folder.path)
    assert losses_of(on.folder.path) == losses_of(usual.folder.path)
    assert losses_of(on.folder.path) != losses_of(off.folder.path)
    saved = json.loads((tmp_path / "off" / "config.json").read_text())
    assert saved["hidden_dropout_prob"] == saved["attention_probs_dropout_prob"] == 0.0


def test_every_step_and_process_draws_its_own_dropout(
    tmp_path: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A mask that comes again in each step, or in each process, would leave out the same units."""
    batches = Run._micro_batches
    seeds: list[int] = []

    def note(run: Run, step: int) -> Iterator[Any]:
        seeds.append(torch.initial_seed())
        return batches(run, step)

    monkeypatch.setattr(Run, "_micro_batches", note)
    monkeypatch.setattr(Runtime, "wait_for_all", lambda runtime: None)
    monkeypatch.setattr(Runtime, "gather", lambda runtime, value: [value])
    monkeypatch.setattr(Runtime, "sum_over_ranks", lambda runtime, tensors: None)
    monkeypatch.setattr(Runtime, "max_over_ranks", lambda runtime, number: number)
    for seed in (42, 43):
        for rank in (0, 1):
            settings = replace(SETTINGS, seed=seed, max_steps=3, gradient_accumulation_steps=1)
            runtime = Runtime(CPU, rank=rank, world_size=2)
            folder = tmp_path / f"{seed}-{rank}"
            trained(make_run(folder, checkpoint, settings, runtime, evaluator=False))
            assert folder.exists() == (rank == 0)  # only the first process writes
    assert len(seeds) == len(set(seeds)) == 12


def test_another_seed_is_another_run(tmp_path: Path, still_checkpoint: Path) -> None:
    """Without dropout too: the windows come in another order."""
    losses = []
    for seed in (42, 43):
        settings = replace(SETTINGS, seed=seed, max_steps=2, logging_steps=1)
        trained(make_run(tmp_path / str(seed), still_checkpoint, settings, evaluator=False))
        losses.append(losses_of(tmp_path / str(seed)))
    assert losses[0][0] != losses[1][0] and losses[0][1] != losses[1][1]


# --- resumed -------------------------------------------------------------------------------------


class Stop(Exception):
    """As if the machine had gone down."""


@contextmanager
def stopped_at(step: int) -> Iterator[None]:
    """The run inside goes down in the first batch of optimiser step ``step``, from 0."""
    batches = Run._micro_batches

    def until(run: Run, number: int) -> Iterator[Any]:
        if number == step:
            raise Stop
        return batches(run, number)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Stop):
        patch.setattr(Run, "_micro_batches", until)
        yield


@pytest.mark.parametrize(
    "stops",
    [[4], [6], [2], [7], [8], [11], [1, 5, 10]],
    ids=["at a save", "between saves", "before the first save", "after an evaluation",
         "at a save after an evaluation", "before the last step", "three times"],
)  # fmt: skip
def test_a_resumed_run_is_the_same_run(
    tmp_path: Path, checkpoint: Path, whole_run: Run, stops: list[int]
) -> None:
    folder = tmp_path / "run"
    for number, stop in enumerate(stops):
        with stopped_at(stop):
            trained(make_run(folder, checkpoint), resume=number > 0)
    torch.manual_seed(99)  # another process, another state of the random numbers
    run = trained(make_run(folder, checkpoint), resume=True)
    assert same(weights_of(run), weights_of(whole_run))
    assert log_of(folder) == log_of(whole_run.folder.path)
    check_clock(run)
    assert run.progress == whole_run.progress
    ours, theirs = contents(folder), contents(whole_run.folder.path)
    assert ours.pop("log.jsonl") and theirs.pop("log.jsonl")  # they tell the speed
    assert ours == theirs  # the kept model, its answers, the last checkpoint with its moments


def test_a_signal_in_the_middle_of_a_step_lets_it_end(
    tmp_path: Path, checkpoint: Path, whole_run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, batches = tmp_path / "run", Run._micro_batches

    def interrupt(run: Run, step: int) -> Iterator[Any]:
        for number, batch in enumerate(batches(run, step)):
            if (step, number) == (4, 1):
                os.kill(os.getpid(), signal.SIGTERM)
            yield batch

    with monkeypatch.context() as patch, pytest.raises(Stopped, match="SIGTERM after step 5 of 12"):
        patch.setattr(Run, "_micro_batches", interrupt)
        trained(make_run(folder, checkpoint))
    assert checkpoints_of(folder)[-1] == "step-00000005"
    resumed = trained(make_run(folder, checkpoint), resume=True)
    assert same(weights_of(resumed), weights_of(whole_run))
    assert log_of(folder) == log_of(whole_run.folder.path)


def test_a_signal_in_the_last_step_stops_nothing(
    tmp_path: Path, checkpoint: Path, whole_run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches = Run._micro_batches

    def interrupt(run: Run, step: int) -> Iterator[Any]:
        if step == 11:
            os.kill(os.getpid(), signal.SIGTERM)
        return batches(run, step)

    monkeypatch.setattr(Run, "_micro_batches", interrupt)
    run = trained(make_run(tmp_path / "run", checkpoint))
    assert (
        contents(run.folder.path)["model.safetensors"]
        == (contents(whole_run.folder.path)["model.safetensors"])
    )


def test_all_processes_end_after_the_same_step(
    tmp_path: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other process got the signal, in step 3."""

    def of_another(runtime: Runtime, number: int) -> int:
        assert number == 0  # none came here
        return signal.SIGINT if run.progress.step == 3 else 0

    monkeypatch.setattr(Runtime, "wait_for_all", lambda runtime: None)
    monkeypatch.setattr(Runtime, "gather", lambda runtime, value: [value])
    monkeypatch.setattr(Runtime, "sum_over_ranks", lambda runtime, tensors: None)
    monkeypatch.setattr(Runtime, "max_over_ranks", of_another)
    run = make_run(
        tmp_path / "run", checkpoint, runtime=Runtime(CPU, world_size=2), evaluator=False
    )
    with pytest.raises(Stopped, match="stopped by SIGINT after step 3 of 12"):
        trained(run)
    assert checkpoints_of(tmp_path / "run")[-1] == "step-00000003"


@pytest.mark.parametrize("stop", [2, 6])
def test_a_resumed_run_is_the_same_run_in_bf16(tmp_path: Path, checkpoint: Path, stop: int) -> None:
    folders = tmp_path / "whole", tmp_path / "resumed"
    whole = trained(make_run(folders[0], checkpoint, runtime=BF16))
    with stopped_at(stop):
        trained(make_run(folders[1], checkpoint, runtime=BF16))
    resumed = trained(make_run(folders[1], checkpoint, runtime=BF16), resume=True)
    assert same(weights_of(resumed), weights_of(whole))
    assert log_of(folders[0]) == log_of(folders[1])


def test_bf16_rounds_and_fp32_does_not(tmp_path: Path, checkpoint: Path, whole_run: Run) -> None:
    run = trained(make_run(tmp_path / "run", checkpoint, runtime=BF16))
    assert all(value.dtype is torch.float32 for value in weights_of(run).values())
    assert losses_of(tmp_path / "run") != losses_of(whole_run.folder.path)
    assert losses_of(tmp_path / "run") == pytest.approx(losses_of(whole_run.folder.path), rel=0.05)


@pytest.mark.parametrize("name", ["_save", "keep_best", "append_log"])
def test_a_run_that_goes_down_while_it_writes(
    tmp_path: Path,
    checkpoint: Path,
    whole_run: Run,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
) -> None:
    """In the middle of a checkpoint, between model and predictions, after half a line."""
    folder = tmp_path / "run"
    run = make_run(folder, checkpoint)

    def fail(*args: Any) -> None:
        raise Stop

    with monkeypatch.context() as patch:
        if name == "_save":
            patch.setattr(runs, "write_json", lambda path, value: real_or_stop(path, value, 8))
        elif name == "keep_best":
            patch.setattr(RunFolder, "keep_predictions", fail)
        else:
            patch.setattr(RunFolder, "append_log", half_a_line)
        with pytest.raises(Stop):
            trained(run)
    resumed = trained(make_run(folder, checkpoint), resume=True)
    assert same(weights_of(resumed), weights_of(whole_run))
    assert log_of(folder) == log_of(whole_run.folder.path)


def test_a_disk_that_is_full_at_any_write_loses_nothing(
    tmp_path: Path, checkpoint: Path, whole_run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever file it is that the disk has no room for: one sentence, and the run goes on."""
    sync, calls = os.fsync, 0

    def full_at(last: int) -> Callable[[int], None]:
        def counted(descriptor: int) -> None:
            nonlocal calls
            calls += 1
            if calls == last:
                raise OSError(errno.ENOSPC, "No space left on device")
            sync(descriptor)

        return counted

    monkeypatch.setattr(os, "fsync", full_at(0))
    trained(make_run(tmp_path / "counted", checkpoint))
    assert calls > 60
    said = set()
    for last in range(1, calls + 1, 8):
        calls, folder = 0, tmp_path / f"full-{last}"
        monkeypatch.setattr(os, "fsync", full_at(last))
        with pytest.raises(UserError, match="cannot be written: No space left on device") as error:
            trained(make_run(folder, checkpoint))
        said.add(str(error.value).partition(" cannot be")[0].rpartition("/")[2])
        monkeypatch.setattr(os, "fsync", sync)
        resumed = trained(make_run(folder, checkpoint), resume=(folder / "run.json").exists())
        assert same(weights_of(resumed), weights_of(whole_run)), last
        assert log_of(folder) == log_of(whole_run.folder.path)
    assert len(said) > 4, said  # different files


def real_or_stop(path: Path, value: Any, step: int) -> None:
    """``write_json`` until the checkpoint of a step."""
    if path.name == "progress.json" and value["step"] == step:
        raise Stop
    write_json(path, value)


write_json = runs.write_json


def half_a_line(folder: RunFolder, line: dict[str, Any]) -> None:
    text = json.dumps(line)
    done = line["step"] < 9
    with (folder.path / "log.jsonl").open("a") as file:
        file.write(text + "\n" if done else text[: len(text) // 2])
    if not done:
        raise Stop


def test_a_checkpoint_that_was_never_finished_is_swept_away(
    tmp_path: Path, checkpoint: Path, whole_run: Run
) -> None:
    folder = tmp_path / "run"
    with stopped_at(6):
        trained(make_run(folder, checkpoint))
    partial = folder / "checkpoints" / ".step-00000006.4711.partial"
    partial.mkdir()
    (partial / "config.json").write_text("{")
    resumed = trained(make_run(folder, checkpoint), resume=True)
    assert same(weights_of(resumed), weights_of(whole_run))
    assert checkpoints_of(folder) == ["step-00000012"]


def test_of_several_checkpoints_the_newest_is_gone_on_from(
    tmp_path: Path, checkpoint: Path, whole_run: Run
) -> None:
    settings = replace(SETTINGS, save_steps=2, save_total_limit=3)
    with stopped_at(7):
        trained(make_run(tmp_path / "run", checkpoint, settings))
    names = ["step-00000004", "step-00000006", "step-00000007"]
    assert checkpoints_of(tmp_path / "run") == names
    run = make_run(tmp_path / "run", checkpoint, settings)
    run.start(resume=True)
    assert run.progress.step == 7
    run.train()
    assert same(weights_of(run), weights_of(whole_run))


def test_a_run_that_is_done_is_done(tmp_path: Path, checkpoint: Path, whole_run: Run) -> None:
    folder = tmp_path / "run"
    shutil.copytree(whole_run.folder.path, folder)
    before = contents(folder)
    run = trained(make_run(folder, checkpoint), resume=True)
    assert run.progress == whole_run.progress
    assert contents(folder) == before


def test_resuming_nothing_begins(tmp_path: Path, checkpoint: Path, whole_run: Run) -> None:
    run = trained(make_run(tmp_path / "run", checkpoint), resume=True)
    assert same(weights_of(run), weights_of(whole_run))


def test_what_changes_no_number_may_change(tmp_path: Path, still_checkpoint: Path) -> None:
    """How often to log and save, and how a step's windows are shared out."""
    whole = trained(make_run(tmp_path / "whole", still_checkpoint))
    with stopped_at(6):
        trained(make_run(tmp_path / "run", still_checkpoint))
    other = replace(
        SETTINGS, logging_steps=5, save_steps=5, save_total_limit=2,
        per_device_train_batch_size=6, gradient_accumulation_steps=1,
    )  # fmt: skip
    run = trained(make_run(tmp_path / "run", still_checkpoint, other), resume=True)
    # The same sums in another order: AdamW enlarges what is rounded where gradients are small.
    for name, value in weights_of(whole).items():
        torch.testing.assert_close(weights_of(run)[name], value, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("part", "key", "value", "said"),
    [
        ("settings", "seed", 43, "has seed 42, not 43"),
        ("settings", "model", "other", "has model 'tiny', not 'other'"),
        ("data", "train", "4567", "began with other train questions than --train_file holds"),
        ("data", "windows", {"a": 1, "b": 3}, "has b 2, not 3"),
    ],
)
def test_another_run_does_not_go_on_with_this_one(
    tmp_path: Path, part: str, key: str, value: Any, said: str
) -> None:
    folder = tmp_path / "run"
    description = DESCRIPTION | {"data": DESCRIPTION["data"] | {"windows": {"a": 1, "b": 2}}}
    RunFolder(folder, description).open(0)
    before = contents(folder)
    RunFolder(folder, description).check_same_run()
    other = description | {part: description[part] | {key: value}}
    with pytest.raises(UserError, match=said):
        RunFolder(folder, other).check_same_run()
    assert contents(folder) == before


def test_a_run_from_before_a_flag_existed_goes_on(tmp_path: Path) -> None:
    now = {"lr_scheduler_type": "linear", "dropout": None, "seed": 42}
    write_json(tmp_path / "run.json", {"settings": {"seed": 42}, "data": {}})
    RunFolder(tmp_path, {"settings": now, "data": {"chooses_threshold": False}}).check_same_run()
    other = now | {"lr_scheduler_type": "constant_with_warmup"}
    with pytest.raises(UserError, match="lr_scheduler_type 'linear', not 'constant_with_warmup'"):
        RunFolder(tmp_path, {"settings": other, "data": {}}).check_same_run()


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
        run.model.layers[0].attention.query.weight[0, 0] = value
    with pytest.raises(UserError, match=r"query.weight holds numbers.*lower --learning_rate"):
        run.folder.keep_best(run.model, run.tokenizer)
    assert not (tmp_path / "run" / "model.safetensors").exists()


@pytest.mark.parametrize("save_steps", [1, 100])
def test_weights_that_no_checkpoint_holds_end_the_run_with_its_questions(
    tmp_path: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch, save_steps: int
) -> None:
    """At a checkpoint, and where the best model is to be kept; the loss may still be finite."""
    settings = replace(SETTINGS, save_steps=save_steps, eval_steps=5)
    run = make_run(tmp_path / "run", checkpoint, settings)
    step = run.optimizer.step

    def spoiled(*arguments: Any) -> Any:
        step(*arguments)
        if run.progress.step == 4:  # the fifth step
            run.model.layers[0].attention.query.weight.data[0, 0] = 1e6

    monkeypatch.setattr(run.optimizer, "step", spoiled)
    with pytest.raises(UserError, match=r"at step 5, or .*query.weight holds numbers") as caught:
        trained(run)
    last = run.checkpoints.last()
    assert (last is not None) == (save_steps == 1)
    advice = f"--model {last}, the checkpoint from before" if last else "there is no checkpoint yet"
    assert advice in str(caught.value) and "questions are in" in str(caught.value)
    failure = json.loads((tmp_path / "run" / "failure.json").read_text())
    assert failure["step"] == 5 and "query.weight" in failure["weights"]
    assert len(failure["example_ids"]) > 1
    assert not (tmp_path / "run" / "model.safetensors").exists()


def test_word_embeddings_that_are_frozen_stay(tmp_path: Path, checkpoint: Path) -> None:
    settings = replace(SETTINGS, freeze_word_embeddings=True, save_total_limit=9)
    before = load_for_training(str(checkpoint), seed=settings.seed)[0].state_dict()
    whole = trained(make_run(tmp_path / "whole", checkpoint, settings))
    after = whole.model.state_dict()
    assert torch.equal(before["embeddings.word.weight"], after["embeddings.word.weight"])
    moved = [name for name in before if not torch.equal(before[name], after[name])]
    assert {"embeddings.position.weight", "embeddings.norm.weight", "head.weight"} <= set(moved)
    assert len(moved) == len(before) - 1

    folder = tmp_path / "run"
    shutil.copytree(whole.folder.path, folder)
    for late in checkpoints_of(folder)[-1:]:
        assert late == "step-00000012"
        shutil.rmtree(folder / "checkpoints" / late)
    resumed = make_run(folder, checkpoint, settings)
    resumed.start(resume=True)
    assert resumed.progress.step == 8
    resumed.train()
    assert same(weights_of(resumed), weights_of(whole))


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


def test_memory_that_is_short_is_not_taken_for_a_dead_process(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def short(*args: Any, **options: Any) -> None:
        raise torch.OutOfMemoryError("no memory")

    monkeypatch.setattr("torch.distributed.barrier", short)
    with pytest.raises(torch.OutOfMemoryError):
        Runtime(torch.device("cpu"), world_size=2).wait_for_all()


# --- a loss that is no number --------------------------------------------------------------------


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize(
    ("logging_steps", "eval_steps"), [(1, 100), (5, 100), (100, 100), (100, 6)]
)
def test_a_loss_that_is_not_finite_ends_the_run_before_it_is_saved(
    tmp_path: Path,
    checkpoint: Path,
    monkeypatch: pytest.MonkeyPatch,
    value: float,
    logging_steps: int,
    eval_steps: int,
) -> None:
    """Whatever comes first after it: a log line, an evaluation, a save."""
    folder = tmp_path / "run"
    settings = replace(
        SETTINGS, logging_steps=logging_steps, eval_steps=eval_steps, save_steps=2,
        save_total_limit=9,
    )  # fmt: skip
    evaluator = ScriptedEvaluator([1.0, 2.0, 3.0])
    run = make_run(folder, checkpoint, settings, evaluator=evaluator)
    losses = sys.modules["bertqa.training.loop"].window_losses

    def spoiled(*args: Any) -> Tensor:
        factor = value if run.progress.step == 4 else 1.0  # the fifth step
        return losses(*args) * factor

    monkeypatch.setattr("bertqa.training.loop.window_losses", spoiled)
    with pytest.raises(UserError, match=f"step 5 has loss {value}") as caught:
        trained(run)
    last = folder / "checkpoints" / "step-00000004"
    assert f"--model {last}, the checkpoint from before" in str(caught.value)
    load_folder(last, allow_bin=False, require_head=True)  # that command finds all it needs
    assert checkpoints_of(folder) == ["step-00000002", "step-00000004"]
    failure = json.loads((folder / "failure.json").read_text())
    assert (failure["step"], failure["loss"]) == (5, str(value))
    windows = step_windows(len(run.windows), run.windows_per_step, settings.seed, 4)
    asked = {TRAINING[int(run.windows.example[window])].id for window in windows}
    assert set(failure["example_ids"]) == asked and len(asked) > 1
    assert not evaluator.seen
    assert not (folder / "model.safetensors").exists()
    logged = [line["step"] for line in log_of(folder)] if logging_steps == 1 else []
    assert logged == [1, 2, 3, 4][: len(logged)] and (logging_steps > 1 or logged)


# --- train.py as a whole -------------------------------------------------------------------------


def train_flags(checkpoint: Path, folder: Path, *more: str) -> list[str]:
    # fmt: off
    return [
        "--model", str(checkpoint), "--train_file", str(STORIES), "--output_dir", str(folder),
        "--max_seq_length", "96", "--doc_stride", "16", "--max_query_length", "24",
        "--device", "cpu", "--precision", "fp32", *more,
    ]
    # fmt: on


def test_run_json_says_what_was_run(
    tmp_path: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"
    flags = train_flags(
        checkpoint, folder, "--validation_file", str(STORIES), "--max_train_samples", "4",
        "--max_eval_samples", "3", "--max_steps", "2", "--learning_rate", "1e-3",
        "--gradient_accumulation_steps", "2", "--per_device_train_batch_size", "3",
        "--max_answer_length", "12",
    )  # fmt: skip
    monkeypatch.setattr(sys, "argv", ["train.py", *flags])
    train.main(train.parse_flags(flags))
    run = json.loads((folder / "run.json").read_text())
    settings = run.pop("settings")
    assert settings.pop("windows_per_step") == 6
    assert settings.pop("precision") == "torch.float32"
    assert settings.pop("model") == str(checkpoint)
    assert TrainingSettings(**settings) == TrainingSettings(
        max_steps=2, learning_rate=1e-3, gradient_accumulation_steps=2,
        per_device_train_batch_size=3,
    )  # fmt: skip
    data = run.pop("data")
    assert data["train"] == data_fingerprint(EXAMPLES[:4])
    assert data["validation"] == data_fingerprint(EXAMPLES[:3]) != data["train"]
    assert WindowSettings(**data["windows"]) == WINDOWS
    assert DecodingSettings(**data["decoding"]) == DecodingSettings(max_answer_length=12)
    versions = run.pop("versions")
    assert versions["torch"] == torch.__version__
    assert versions["datasets"] == datasets.__version__
    assert versions["python"] == ".".join(map(str, sys.version_info[:3]))
    assert None not in versions.values()
    assert run == {
        "git_commit": train.git_commit(),
        "command": ["train.py", *flags],
        "device": "cpu",
        "processes": 1,
    }


@pytest.mark.skipif(not shutil.which("git"), reason="git is not installed")
def test_the_commit_of_the_source_tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    monkeypatch.setattr(train, "__file__", str(tmp_path / "train.py"))
    assert train.git_commit() is None  # no repository

    def git(*arguments: str) -> str:
        command = ["git", "-c", "user.name=a", "-c", "user.email=a@b.c", *arguments]
        result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
        return result.stdout.strip()

    git("init")
    (tmp_path / "train.py").write_text("1")
    git("add", ".")
    git("commit", "-m", "first")
    git("tag", "-a", "v1", "-m", "a name must not hide the commit")
    commit = git("rev-parse", "HEAD")
    assert train.git_commit() == commit
    (tmp_path / "train.py").write_text("2")
    assert train.git_commit() == f"{commit}-dirty"
    monkeypatch.setenv("PATH", str(tmp_path))
    assert train.git_commit() is None  # no git


def test_transformers_and_the_answerer_open_what_was_trained(
    tmp_path: Path, checkpoint: Path
) -> None:
    folder = tmp_path / "run"
    flags = train_flags(checkpoint, folder, "--max_train_samples", "4", "--max_steps", "2")
    train.main(train.parse_flags(flags))
    theirs = AutoModelForQuestionAnswering.from_pretrained(folder).eval()
    their_tokenizer = AutoTokenizer.from_pretrained(folder)
    qa = QuestionAnswerer.from_pretrained(folder, device="cpu", precision="fp32")
    example = TRAINING[1]
    answer = qa(example.question, example.context)
    assert answer["answer"] == example.context[answer["start"] : answer["end"]] != ""

    windows = make_windows(TRAINING, qa.tokenizer, WindowSettings(384, 64))
    tokens = collate(windows, torch.arange(len(windows)))
    with torch.no_grad():
        ours = qa.model(tokens)
        rows = [windows[i] for i in range(len(windows))]
        batch = their_batch([w.input_ids for w in rows], [w.token_type_ids for w in rows])
        output = theirs(**batch)
    for name in ("start_logits", "end_logits"):
        expected = unpadded(getattr(output, name), tokens.lengths)
        torch.testing.assert_close(getattr(ours, name), expected, rtol=0, atol=1e-4)

    encoded = their_tokenizer(example.question, example.context)
    both = make_windows([example], qa.tokenizer, WindowSettings(10_000, 0))
    assert encoded["input_ids"] == both[0].input_ids
    assert encoded["token_type_ids"] == both[0].token_type_ids


# --- several processes ---------------------------------------------------------------------------


# Short windows, so that the validation set has several blocks for the processes to share. The last
# step of an epoch has one window of twelve, so that all processes but one have none there.
# fmt: off
SHARED_RUN = [
    "--validation_file", str(STORIES), "--max_train_samples", "1", "--max_eval_samples", "90",
    "--max_seq_length", "24", "--doc_stride", "0", "--max_query_length", "2",
    "--max_steps", "5", "--logging_steps", "1", "--learning_rate", "1e-3",
    "--eval_steps", "100", "--save_steps", "100", "--adam_epsilon", str(SETTINGS.adam_epsilon),
]
# fmt: on


@pytest.fixture(scope="module")
def one_process(tmp_path_factory: pytest.TempPathFactory, still_checkpoint: Path) -> Path:
    """The folder of a run of one process, twelve windows a step."""
    folder = tmp_path_factory.mktemp("one") / "run"
    flags = train_flags(
        still_checkpoint, folder, *SHARED_RUN, "--per_device_train_batch_size", "12"
    )
    train.main(train.parse_flags(flags))
    return folder


@pytest.mark.parametrize(
    ("processes", "batch", "times"), [(2, 3, 2), (3, 4, 1)], ids=["two", "three"]
)
def test_processes_together_train_as_one_does(
    tmp_path: Path,
    still_checkpoint: Path,
    one_process: Path,
    processes: int,
    batch: int,
    times: int,
) -> None:
    folder = tmp_path / "run"
    flags = train_flags(
        still_checkpoint, folder, *SHARED_RUN, "--per_device_train_batch_size", str(batch),
        "--gradient_accumulation_steps", str(times),
    )  # fmt: skip
    environment = os.environ | {
        "HF_HOME": str(tmp_path / "hf"),
        "HF_DATASETS_CACHE": str(tmp_path / "datasets"),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
    }
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    result = subprocess.run(
        [sys.executable, *launcher, "train.py", *flags],
        cwd=ROOT, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("5 steps of 12 windows") == 1  # one process speaks
    assert "training: 25 windows" in result.stdout
    assert json.loads((folder / "run.json").read_text())["processes"] == processes
    assert losses_of(folder) == pytest.approx(losses_of(one_process), rel=0, abs=1e-5)
    theirs, ours = log_of(one_process)[-1], log_of(folder)[-1]
    assert ours["validation_loss"] == pytest.approx(theirs["validation_loss"], abs=1e-5)
    predictions = [json.loads((f / "predictions.json").read_text()) for f in (one_process, folder)]
    assert len(predictions[0]) == 90 and predictions[0].keys() == predictions[1].keys()
    same_texts = [predictions[0][id_] == predictions[1][id_] for id_ in predictions[0]]
    assert sum(same_texts) >= 85  # all but those between whose spans rounding may decide
    expected = read_tensors(one_process / "model.safetensors")
    weights = read_tensors(folder / "model.safetensors")
    assert weights.keys() == expected.keys()
    for name, value in weights.items():
        torch.testing.assert_close(value, expected[name], rtol=0, atol=1e-5)


def test_what_the_first_process_cannot_do_all_say(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that is not there is an error of all processes, not a connection that breaks."""
    said: list[Any] = []

    def gather(runtime: Runtime, value: Any) -> list[Any]:
        said.append(value)
        return [said[0], None]

    monkeypatch.setattr(Runtime, "gather", gather)

    def fail() -> None:
        raise UserError("nope.json does not exist")

    def never() -> None:
        raise AssertionError("only the first process tries")

    for rank, make in ((0, fail), (1, never)):
        with pytest.raises(UserError, match="does not exist"):
            train.main_first(Runtime(CPU, rank=rank, world_size=2), make)


def test_the_first_process_makes_what_the_others_find(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []
    monkeypatch.setattr(Runtime, "gather", lambda runtime, value: [value, None])
    for rank in (0, 1):
        runtime = Runtime(CPU, rank=rank, world_size=2)
        assert train.main_first(runtime, lambda: made.append(1) or len(made)) == rank + 1


# --- settings ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("num_train_epochs", 0.0),
        ("num_train_epochs", math.inf),
        ("max_steps", 0),
        ("learning_rate", math.nan),
        ("warmup_ratio", 1.0),
        ("warmup_ratio", -0.1),
        ("warmup_ratio", math.nan),
        ("weight_decay", -0.01),
        ("adam_epsilon", 0.0),
        ("max_grad_norm", -1.0),
        ("per_device_train_batch_size", 0),
        ("gradient_accumulation_steps", -2),
        ("seed", -1),
        ("logging_steps", 0),
        ("eval_steps", 0),
        ("save_steps", -5),
        ("save_total_limit", 0),
    ],
)
def test_settings_that_cannot_be_are_named(name: str, value: float) -> None:
    with pytest.raises(UserError, match=f"--{name} {value}"):
        replace(SETTINGS, **{name: value})


def test_a_gradient_that_is_not_finite_ends_the_run_as_well(
    tmp_path: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(tmp_path / "run", checkpoint, replace(SETTINGS, save_steps=1))
    clip = run._clip

    def spoiled() -> Tensor:
        return clip() * (math.inf if run.progress.step == 2 else 1.0)  # the third step

    monkeypatch.setattr(run, "_clip", spoiled)
    with pytest.raises(UserError, match=r"step 3 has loss .* and gradient norm inf"):
        trained(run)
    assert checkpoints_of(tmp_path / "run")[-1] == "step-00000002"
    assert (tmp_path / "run" / "failure.json").exists()
    again = replace(SETTINGS, save_steps=1)
    trained(make_run(tmp_path / "run", checkpoint, again), resume=True)
    assert not (tmp_path / "run" / "failure.json").exists()


def test_an_evaluation_between_log_lines_has_its_own_mean(
    tmp_path: Path, checkpoint: Path, whole_run: Run
) -> None:
    every = trained(make_run(tmp_path / "every", checkpoint, replace(SETTINGS, logging_steps=1)))
    each = losses_of(every.folder.path)
    settings = replace(SETTINGS, eval_steps=2, logging_steps=5)
    run = trained(make_run(tmp_path / "run", checkpoint, settings))
    means = [row["training_loss"] for row in run.progress.evaluations]
    assert means == pytest.approx([sum(each[i : i + 2]) / 2 for i in range(0, 12, 2)])
