"""Distillation: its loss, compared with a plain implementation, and its teachers."""

import math
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from bertqa.answering.decoding_file import write_decoding_file
from bertqa.data.batching import TrainingBatch, training_batch
from bertqa.data.tokenization import BertTokenizer
from bertqa.model.bert import BertOutput, window_losses
from bertqa.model.packing import PackedBatch
from bertqa.runtime import Runtime
from bertqa.settings import DecodingSettings
from bertqa.training.distillation import Distillation, Teacher, load_teachers
from bertqa.training.loop import TrainingLoop
from tests.helpers import random_windows
from tests.training.runs import BF16, FP32, SETTINGS, WINDOWS, load, make_loop, same, weights_of

LENGTHS = (5, 33, 1, 18)


def reference(
    output: BertOutput,
    theirs: Sequence[BertOutput],
    lengths: Sequence[int],
    labels: Sequence[Tensor],
    temperature: float,
    weight: float,
    spans_only: Sequence[bool] = (False,) * 3,
) -> Tensor:
    """Compute the loss of each window, token by token, in float64."""
    totals, first = [], 0
    for window, length in enumerate(lengths):
        hard = soft = torch.zeros((), dtype=torch.float64)
        used = [
            teacher
            for teacher, needs_answer in zip(theirs, spans_only, strict=False)
            if labels[0][window] or not needs_answer
        ]
        for side in (0, 1):  # start, end
            z = output[side][first : first + length].double()
            hard = hard - (z[labels[side][window]] - z.exp().sum().log())
            q = (z / temperature).exp() / (z / temperature).exp().sum()
            p = torch.zeros(length, dtype=torch.float64)
            for teacher in used:
                t = (teacher[side][first : first + length].double() / temperature).exp()
                p += t / t.sum() / len(used)
            for i in range(length if used else 0):
                soft = soft + p[i] * (p[i].log() - q[i].log())
        soft_weight = weight if used else 0
        totals.append((1 - soft_weight) * hard + soft_weight * temperature**2 * soft)
        first += length
    return torch.stack(totals)


class Scripted(torch.nn.Module):
    """A teacher with fixed logits."""

    def __init__(self, output: BertOutput) -> None:
        super().__init__()
        self.output = output

    def forward(self, batch: PackedBatch) -> BertOutput:
        return self.output


@pytest.mark.parametrize(("temperature", "weight"), [(2.0, 0.9), (1.0, 1.0), (0.5, 0.25)])
@pytest.mark.parametrize(
    "spans_only", [(False,), (False,) * 3, (True,), (True, True), (True, False, False)]
)
def test_the_loss_and_its_gradient_equal_the_reference(
    monkeypatch: pytest.MonkeyPatch,
    temperature: float,
    weight: float,
    spans_only: tuple[bool, ...],
) -> None:
    generator = torch.Generator().manual_seed(len(spans_only))

    def scores() -> BertOutput:
        return BertOutput(*(3 * torch.randn(2, sum(LENGTHS), generator=generator)).unbind())

    ours, theirs = scores(), [scores() for _ in spans_only]
    labels = [torch.tensor([4, 7, 0, 17]), torch.tensor([4, 30, 0, 0])]
    monkeypatch.setattr(
        "bertqa.training.distillation.prepare_for_inference", lambda model, *_: model
    )
    settings = replace(SETTINGS, distillation_temperature=temperature, distillation_weight=weight)
    teachers = [
        Teacher(Scripted(each), *rest) for each, *rest in zip(theirs, spans_only, strict=True)
    ]  # type: ignore[arg-type]
    distillation = Distillation(teachers, settings, FP32)
    batch = TrainingBatch(PackedBatch.from_windows(*random_windows(LENGTHS)), *labels)
    found = []
    for loss_of in (
        lambda out: distillation(batch, out, window_losses(out, LENGTHS, *labels)),
        lambda out: reference(out, theirs, LENGTHS, labels, temperature, weight, spans_only),
    ):
        output = BertOutput(*(each.clone().requires_grad_() for each in ours))
        losses = loss_of(output)
        (losses * torch.arange(1, 5)).sum().backward()
        found.append((losses.detach(), *(each.grad for each in output)))
    for mine, expected in zip(*found, strict=True):
        torch.testing.assert_close(mine.double(), expected.double(), rtol=1e-5, atol=1e-5)


def test_equal_logits_have_no_divergence() -> None:
    """A probability that underflows to 0 adds 0, not NaN, to divergence and gradient."""
    logits = torch.tensor([300.0, 0.0, -300.0, 5.0], requires_grad=True)
    distillation = Distillation([], SETTINGS, FP32)
    used = torch.ones(1, 2, dtype=torch.bool)
    divergence = distillation._divergence(logits, [logits.detach()], (3, 1), used)
    assert divergence.tolist() == [0, 0]
    divergence.sum().backward()
    assert logits.grad is not None and logits.grad.abs().max() == 0


def test_the_loop_uses_its_teachers(still_checkpoint: Path, teachers: tuple[Path, Path]) -> None:
    """Teachers of other sizes; the first step's loss is that of their logits."""
    loop = make_loop(still_checkpoint, teachers=teachers)
    batch = training_batch(loop.windows, loop.plan.windows_of(0))
    labels = batch.start_positions, batch.end_positions
    with torch.inference_mode():
        ours, *theirs = (load(each).eval()(batch.tokens) for each in (still_checkpoint, *teachers))
        expected = reference(ours, theirs, batch.tokens.lengths, labels, 2.0, 0.9).mean()
        span_loss = window_losses(ours, batch.tokens.lengths, *labels).mean()
    found = [float(step.loss) for step in loop.steps()]
    assert found[0] == pytest.approx(float(expected), rel=1e-5) != pytest.approx(float(span_loss))
    assert found[-1] < found[0]


def test_teachers_do_not_change(checkpoint: Path, teachers: tuple[Path, Path]) -> None:
    """They are not trained, have no dropout, and use the precision of the run."""

    def make(runtime: Runtime) -> TrainingLoop:
        return make_loop(checkpoint, SETTINGS, runtime, teachers)

    loop = make(FP32)
    distillation = loop.distillation
    assert distillation is not None
    batch = training_batch(loop.windows, torch.arange(3)).tokens
    with torch.inference_mode():
        before = [teacher(batch) for teacher in distillation.models]
    list(loop.steps())
    with torch.inference_mode():
        after = [teacher(batch) for teacher in distillation.models]
    for was, now in zip(before, after, strict=True):
        assert all(map(torch.equal, was, now)) and torch.isfinite(now.start_logits).all()
    assert not any(teacher.training for teacher in distillation.models)
    rounded = make(BF16).distillation
    assert rounded is not None
    dtypes = {each.embeddings.word.weight.dtype for each in rounded.models}
    assert dtypes == {torch.bfloat16}


def test_the_model_itself_as_teacher_gives_no_gradient(still_checkpoint: Path) -> None:
    """In the first step, divergence and gradient are 0."""
    settings = replace(SETTINGS, distillation_weight=1.0, max_steps=1)
    loop = make_loop(still_checkpoint, settings, teachers=[still_checkpoint])
    before = weights_of(loop)
    (step,) = loop.steps()
    assert float(step.loss) == pytest.approx(0, abs=1e-5)
    assert math.isclose(float(step.grad_norm), 0, abs_tol=1e-3)
    assert same(weights_of(loop), before)  # warmup begins with learning rate 0


@pytest.mark.parametrize("version_2_with_negative", [False, True])
def test_teachers_used_only_for_spans(
    tmp_path: Path, checkpoint: Path, version_2_with_negative: bool
) -> None:
    """In a run with "no answer": those whose decoding.json does not enable it."""
    with_negative = shutil.copytree(checkpoint, tmp_path / "with-negative")
    write_decoding_file(with_negative, DecodingSettings(version_2_with_negative=True), WINDOWS)
    names, tokenizer = [str(checkpoint), str(with_negative)], BertTokenizer.load(checkpoint)
    loaded = load_teachers(names, SETTINGS, tokenizer, WINDOWS, version_2_with_negative)
    assert [teacher.spans_only for teacher in loaded] == [version_2_with_negative, False]
    # The same files but for decoding.json: a run is resumed only if both are used alike.
    assert (len({teacher.digest for teacher in loaded}) == 1) == (not version_2_with_negative)
