"""Training equals that of transformers' Trainer, step by step.

Same weights, same batches, no dropout, float32, on the CPU. Our loss, the sum of start loss and end
loss, is twice theirs, the mean. Therefore our gradients, the norm of gradient clipping and AdamW's
eps are twice theirs.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import SequentialSampler
from transformers import Trainer, TrainingArguments

from bertqa.data.batching import step_windows
from bertqa.data.labels import LabelledWindows, make_labelled_windows
from bertqa.data.readers import read_examples
from bertqa.data.tokenization import BertTokenizer
from bertqa.model.checkpoint import load_checkpoint
from bertqa.model.names import checkpoint_name
from bertqa.runtime import Runtime
from bertqa.settings import TrainingSettings, WindowSettings
from bertqa.training.optim import learning_rate
from bertqa.training.run import Run
from bertqa.training.run_folder import RunFolder
from tests.helpers import STORIES, TheirModel, write_checkpoint

SEED = 7
BATCH = 4
PEAK = 1e-3
DECAY = 0.01
CLIP = 3.0  # theirs; some gradient norms of the runs are above, some below


@dataclass(frozen=True)
class Case:
    """Settings of both trainings.

    Attributes:
        one_by_one: whether theirs has a batch size of one, with their model's loss and gradient
            accumulation; otherwise it uses a padded batch.
        attention: their attention implementation.
        at_once: our batch size; a step always has BATCH windows.
        epsilon: their AdamW's eps. A large one matters in every step; a usual one turns gradients
            that are rounding errors into steps.
        steps, warmup_steps: optimizer steps, and those of warmup.
        schedule: learning rate schedule.
    """

    one_by_one: bool
    attention: str
    at_once: int
    epsilon: float
    steps: int
    warmup_steps: int = 0
    schedule: str = "linear"


CASES = {
    "padded": Case(False, "sdpa", at_once=BATCH, epsilon=1e-8, steps=20),
    "padded, large eps": Case(False, "eager", at_once=BATCH, epsilon=1e-2, steps=20),
    "accumulated": Case(True, "sdpa", at_once=2, epsilon=1e-3, steps=14, warmup_steps=3),
    "cosine": Case(False, "sdpa", BATCH, epsilon=1e-2, steps=20, warmup_steps=2, schedule="cosine"),
}


@dataclass
class Task:
    """A checkpoint folder without dropout, and training windows."""

    folder: Path
    tokenizer: BertTokenizer
    windows: LabelledWindows


@pytest.fixture(scope="module")
def task(tmp_path_factory) -> Task:
    none = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    folder = write_checkpoint(tmp_path_factory.mktemp("checkpoint"), **none)
    tokenizer = BertTokenizer.load(folder)
    examples = read_examples(STORIES)[:4]
    windows = make_labelled_windows(
        examples, tokenizer, WindowSettings(max_seq_length=96, doc_stride=32)
    )
    return Task(folder, tokenizer, windows)


@dataclass
class Outcome:
    """Result of a run: loss and gradient norm of each step, and the weights."""

    losses: list[float]
    norms: list[float]
    weights: dict[str, Tensor]


# --- theirs --------------------------------------------------------------------------------------


def padded(windows: LabelledWindows, chosen: list[int]) -> dict[str, Tensor]:
    """Pad windows for their model."""
    rows = [windows[i] for i in chosen]
    longest = max(len(row.input_ids) for row in rows)

    def fill(values: list[int]) -> list[int]:
        return values + [0] * (longest - len(values))

    return {
        "input_ids": torch.tensor([fill(row.input_ids) for row in rows]),
        "token_type_ids": torch.tensor([fill(row.token_type_ids) for row in rows]),
        "attention_mask": torch.tensor([fill([1] * len(row.input_ids)) for row in rows]),
        "start_positions": windows.start_position[chosen].long(),
        "end_positions": windows.end_position[chosen].long(),
    }


class StepTrainer(Trainer):
    """A Trainer that uses batches in order and records losses."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.losses: list[float] = []

    def _get_train_sampler(self, train_dataset=None):
        return SequentialSampler(self.train_dataset)

    def training_step(self, *args, **kwargs):
        loss = super().training_step(*args, **kwargs)
        self.losses.append(loss.item())
        return loss


class MaskedTrainer(StepTrainer):
    """A Trainer whose loss excludes padding from the softmax, unlike their model's loss."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        start, end = inputs.pop("start_positions"), inputs.pop("end_positions")
        outputs = model(**inputs)
        padding = inputs["attention_mask"] == 0
        start_loss, end_loss = (
            F.cross_entropy(logits.masked_fill(padding, -torch.inf), label)
            for logits, label in ((outputs.start_logits, start), (outputs.end_logits, end))
        )
        return (start_loss + end_loss) / 2


def train_theirs(task: Task, folder: Path, case: Case) -> Outcome:
    number = len(task.windows)
    batches = [step_windows(number, BATCH, SEED, step).tolist() for step in range(case.steps)]
    if case.one_by_one:
        assert all(len(batch) == BATCH for batch in batches)
        batches = [[window] for batch in batches for window in batch]
    accumulated = BATCH if case.one_by_one else 1
    arguments = TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=1,  # an item of the dataset is a batch
        gradient_accumulation_steps=accumulated,
        max_steps=case.steps,
        learning_rate=PEAK,
        lr_scheduler_type=case.schedule,
        warmup_steps=case.warmup_steps,
        weight_decay=DECAY,
        adam_epsilon=case.epsilon,
        max_grad_norm=CLIP,
        optim="adamw_torch",
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
        remove_unused_columns=False,
    )
    model = TheirModel.from_pretrained(task.folder, attn_implementation=case.attention)
    trainer = (StepTrainer if case.one_by_one else MaskedTrainer)(
        model=model,
        args=arguments,
        train_dataset=batches,
        data_collator=lambda items: padded(task.windows, items[0]),
    )
    trainer.train()
    losses = torch.tensor(trainer.losses).view(case.steps, accumulated).sum(dim=1)
    norms = [line["grad_norm"] for line in trainer.state.log_history if "grad_norm" in line]
    weights = {name: p.detach() for name, p in model.named_parameters()}
    return Outcome(losses.tolist(), norms, weights)


# --- ours ----------------------------------------------------------------------------------------


def train_ours(task: Task, folder: Path, case: Case) -> Outcome:
    settings = TrainingSettings(
        max_steps=case.steps,
        learning_rate=PEAK,
        warmup_steps=case.warmup_steps,
        lr_scheduler_type=case.schedule,
        weight_decay=DECAY,
        adam_epsilon=2 * case.epsilon,
        max_grad_norm=2 * CLIP,
        per_device_train_batch_size=case.at_once,
        gradient_accumulation_steps=BATCH // case.at_once,
        seed=SEED,
        logging_steps=1,
    )
    model, _ = load_checkpoint(task.folder)
    run = Run(
        model=model,
        tokenizer=task.tokenizer,
        windows=task.windows,
        evaluator=None,
        settings=settings,
        runtime=Runtime(torch.device("cpu")),
        folder=RunFolder(folder, {"settings": {}, "data": {}}),
    )
    run.start(resume=False)
    run.train()
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    lines = [line for line in lines if "loss" in line]
    assert [line["step"] for line in lines] == list(range(1, case.steps + 1))
    weights = {checkpoint_name(name): p.detach() for name, p in model.named_parameters()}
    kept, _ = load_checkpoint(folder)
    for name, parameter in kept.named_parameters():
        assert torch.equal(parameter, weights[checkpoint_name(name)])
    return Outcome([x["loss"] for x in lines], [x["grad_norm"] for x in lines], weights)


# --- comparison ----------------------------------------------------------------------------------


@dataclass
class Runs:
    """The same training, theirs and ours."""

    case: Case
    theirs: Outcome
    ours: Outcome


@pytest.fixture(scope="module", params=CASES)
def runs(request, task, tmp_path_factory) -> Runs:
    case, folder = CASES[request.param], tmp_path_factory.mktemp("runs")
    theirs = train_theirs(task, folder / "theirs", case)
    return Runs(case, theirs, train_ours(task, folder / "ours", case))


def has_no_gradient(name: str) -> bool:
    """Return whether a parameter only shifts the inputs of a softmax, so that its gradient is 0.

    The computed gradient is a rounding error, which AdamW with a small eps turns into whole steps,
    in both runs. The model's output does not depend on these parameters.
    """
    last = "bert.encoder.layer.2.output.LayerNorm.bias"
    return name.endswith("self.key.bias") or name in ("qa_outputs.bias", last)


def test_the_task_has_all_cases(task):
    """Windows of several lengths, with and without an answer, and an incomplete last batch."""
    assert len(task.windows.lengths.unique()) > 3
    answered = (task.windows.start_position > 0).sum().item()
    assert 4 <= answered <= len(task.windows) - 4
    assert len(task.windows) % BATCH and len(task.windows) < CASES["padded"].steps * BATCH


def test_losses(runs):
    assert len(runs.ours.losses) == runs.case.steps
    assert runs.ours.losses == pytest.approx([2 * x for x in runs.theirs.losses], rel=2e-6)
    assert runs.ours.losses[-1] < runs.ours.losses[0] - 1


def test_gradient_norms(runs):
    assert runs.ours.norms == pytest.approx([2 * x for x in runs.theirs.norms], rel=5e-6)
    clipped = [norm > 2 * CLIP for norm in runs.ours.norms]
    assert clipped.count(True) >= 4 and clipped.count(False) >= 4


def test_final_weights(runs, task):
    theirs = runs.theirs.weights
    assert set(runs.ours.weights) == set(theirs)
    model, _ = load_checkpoint(task.folder)
    before = {checkpoint_name(name): p.detach() for name, p in model.named_parameters()}
    furthest = PEAK * sum(
        learning_rate(step, 1.0, runs.case.steps, runs.case.warmup_steps, runs.case.schedule)
        for step in range(runs.case.steps)
    )
    small_epsilon = runs.case.epsilon < 1e-6
    bound = 1e-5 if small_epsilon else 2e-6
    for name, ours in runs.ours.weights.items():
        off = (ours - theirs[name]).abs().max().item()
        moved = (ours - before[name]).abs().max().item()
        if has_no_gradient(name) and small_epsilon:
            assert off < 2 * furthest, name
        elif has_no_gradient(name):
            assert off < bound and moved < 1e-4, name
        else:
            assert off < bound and moved > 1e-4, name
