"""Runs of twelve steps on a tiny model, and helpers to read their folders."""

import json
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from bertqa.answering.evaluation import Evaluator
from bertqa.data.labels import make_labelled_windows
from bertqa.data.readers import read_examples
from bertqa.model.bert import BertForQuestionAnswering
from bertqa.model.checkpoint import load_checkpoint
from bertqa.runtime import Runtime
from bertqa.settings import DecodingSettings, TrainingSettings, WindowSettings
from bertqa.training.checkpoints import load_for_training
from bertqa.training.distillation import Teacher
from bertqa.training.evaluations import Observer
from bertqa.training.loop import TrainingLoop
from bertqa.training.run import Run
from bertqa.training.run_folder import RunFolder
from tests import helpers
from tests.helpers import STORIES

ROOT = Path(__file__).parents[2]


class ScaledRuntime(Runtime):
    """Scales the loss as for fp16, but computes in float32, since fp16 requires a GPU."""

    def autocast(self) -> AbstractContextManager[Any]:
        return nullcontext()


CPU = torch.device("cpu")
FP32, BF16, SCALED = Runtime(CPU), Runtime(CPU, torch.bfloat16), ScaledRuntime(CPU, torch.float16)
WINDOWS = WindowSettings(max_seq_length=96, doc_stride=16, max_query_length=24)

EXAMPLES = read_examples(STORIES)
TRAINING, VALIDATION = EXAMPLES[:5], EXAMPLES[60:63]

# Twelve steps, with logs, evaluations and saves mostly at different steps.
SETTINGS = TrainingSettings(
    max_steps=12,
    learning_rate=5e-3,
    warmup_ratio=0.2,
    per_device_train_batch_size=3,
    gradient_accumulation_steps=2,
    logging_steps=3,
    eval_steps=7,
    save_steps=4,
    # The gradients of the keys' biases are rounding errors; a smaller epsilon would turn them into
    # steps, which depend on the order of summation.
    adam_epsilon=1e-4,
)
DESCRIPTION = {"settings": {"seed": 42, "model": "tiny"}, "data": {"train": "0123"}}


def make_loop(
    checkpoint: Path,
    settings: TrainingSettings = SETTINGS,
    runtime: Runtime = FP32,
    teachers: Sequence[Path] = (),
) -> TrainingLoop:
    """Make only the loop: no folder, no log, no evaluation."""
    model, tokenizer, _ = load_for_training(str(checkpoint), seed=settings.seed)
    windows = make_labelled_windows(TRAINING, tokenizer, WINDOWS)
    return TrainingLoop(
        model, windows, settings, runtime, [Teacher(load(each)) for each in teachers]
    )


def load(checkpoint: Path) -> BertForQuestionAnswering:
    return load_checkpoint(checkpoint)[0]


def make_run(
    folder: Path,
    checkpoint: Path,
    settings: TrainingSettings = SETTINGS,
    runtime: Runtime = FP32,
    evaluator: Any = None,
    observer: Observer | None = None,
    teachers: Sequence[Path] = (),
) -> Run:
    """Make a run from the checkpoint, as a new process would; evaluator False for none."""
    model, tokenizer, _ = load_for_training(str(checkpoint), seed=settings.seed)
    windows = make_labelled_windows(TRAINING, tokenizer, WINDOWS)
    if evaluator is None:
        validation = make_labelled_windows(VALIDATION, tokenizer, WINDOWS)
        evaluator = Evaluator(VALIDATION, validation, DecodingSettings(), runtime)
    return Run(
        model=model, tokenizer=tokenizer, windows=windows, evaluator=evaluator or None,
        settings=settings, runtime=runtime, folder=RunFolder(folder, DESCRIPTION),
        example_ids=[example.id for example in TRAINING], observer=observer,
        teachers=[Teacher(load(each)) for each in teachers],
    )  # fmt: skip


def trained(run: Run, resume: bool = False) -> Run:
    run.start(resume)
    run.train()
    return run


# --- accidents -----------------------------------------------------------------------------------


class Stop(Exception):
    """Simulates a crash of the machine."""


def in_step(run: Run, step: int, act: Callable[[], object]) -> None:
    """Call ``act`` in an optimizer step, counted from 0, before its update."""

    def hook(*arguments: object) -> None:
        if run.progress.step == step:
            act()

    run.loop.optimizer.register_step_pre_hook(hook)


def crash(run: Run, step: int, resume: bool = False) -> None:
    """Train until a crash in an optimizer step, counted from 0."""

    def stop() -> None:
        raise Stop

    in_step(run, step, stop)
    with pytest.raises(Stop):
        trained(run, resume)


# --- results of a run ----------------------------------------------------------------------------


def log_of(folder: Path) -> list[dict[str, float]]:
    """Return the lines of the log without times."""
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    for line in lines:
        for key in ("tokens_per_second", "seconds"):
            line.pop(key, None)
    return lines


def losses_of(folder: Path) -> list[float]:
    return [line["loss"] for line in log_of(folder) if "loss" in line]


def check_clock(run: Run) -> None:
    """Check that the times of each log line are those of all steps since the previous line."""
    text = (run.folder.path / "log.jsonl").read_text()
    logged = [line for line in map(json.loads, text.splitlines()) if "loss" in line]
    assert logged
    plan, lengths = run.loop.plan, run.loop.windows.lengths
    for before, line in zip([{"step": 0}, *logged], logged, strict=False):
        seen = torch.cat([plan.windows_of(step) for step in range(before["step"], line["step"])])
        tokens = line["tokens_per_second"] * line["seconds"]
        assert tokens == pytest.approx(int(lengths[seen].sum()), rel=0.05)


def weights_of(loop: TrainingLoop | Run) -> dict[str, Tensor]:
    model = (loop.loop if isinstance(loop, Run) else loop).model
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    """Return whether all tensors are identical."""
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def checkpoints_of(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "checkpoints").iterdir())


def contents(folder: Path) -> dict[str, bytes]:
    """Read all files; remove the time from progress.json."""
    files = helpers.contents(folder)
    for name in files:
        if name.endswith("progress.json"):
            progress = json.loads(files[name])
            assert progress.pop("seconds_since_log") >= 0
            files[name] = json.dumps(progress).encode()
    return files


def every_step(settings: TrainingSettings = SETTINGS) -> TrainingSettings:
    """Return the settings with a log line for each step."""
    return replace(settings, logging_steps=1)
