"""The loop: the computation of an optimizer step, and its randomness."""

import math
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest
import torch
from torch import Tensor

from bertqa.answering.evaluation import Evaluator
from bertqa.runtime import Runtime
from bertqa.settings import DecodingSettings, TrainingSettings
from bertqa.training.checkpoints import load_for_training
from tests.training.runs import (
    BF16,
    CPU,
    FP32,
    SCALED,
    SETTINGS,
    TRAINING,
    make_loop,
    same,
    weights_of,
)


def losses(
    checkpoint: Path, settings: TrainingSettings = SETTINGS, runtime: Runtime = FP32
) -> list[float]:
    return [float(step.loss) for step in make_loop(checkpoint, settings, runtime).steps()]


def test_the_steps_of_a_loop(checkpoint: Path) -> None:
    loop = make_loop(checkpoint)
    steps = list(loop.steps())
    assert [step.number for step in steps] == list(range(1, 13))
    for number, step in enumerate(steps):
        assert step.tokens == int(loop.windows.lengths[loop.plan.windows_of(number)].sum())
    assert float(steps[-1].loss) < float(steps[0].loss)


def test_steps_are_computed_lazily(checkpoint: Path) -> None:
    """After each step taken from the generator, the model has that step's weights."""
    loop = make_loop(checkpoint)
    before = weights_of(loop)
    steps = loop.steps()
    assert same(weights_of(loop), before)
    next(steps)  # with learning rate 0
    next(steps)
    after_two = weights_of(loop)
    assert not same(after_two, before)
    assert all(parameter.grad is None for parameter in loop.model.parameters())
    other = make_loop(checkpoint)
    list(islice(other.steps(), 2))
    assert same(weights_of(other), after_two)


def test_the_first_loss_is_that_of_the_model_before_training(still_checkpoint: Path) -> None:
    """With all windows in one batch, it equals the evaluator's loss."""
    settings = replace(
        SETTINGS, per_device_train_batch_size=500, gradient_accumulation_steps=1, max_steps=1
    )
    loop = make_loop(still_checkpoint, settings)
    before = Evaluator(TRAINING, loop.windows, DecodingSettings(), FP32)(loop.model).loss
    assert [float(step.loss) for step in loop.steps()] == pytest.approx([before], rel=1e-5)


# --- gradient accumulation, gradient clipping ----------------------------------------------------


def test_four_batches_of_four_equal_one_of_sixteen(still_checkpoint: Path) -> None:
    found = []
    for size, times in ((16, 1), (4, 4)):
        settings = replace(
            SETTINGS, per_device_train_batch_size=size, gradient_accumulation_steps=times,
            max_steps=3, learning_rate=1e-3,
        )  # fmt: skip
        loop = make_loop(still_checkpoint, settings)
        assert len(loop.windows) % 16 not in (0, 4, 8, 12)  # the epoch's last step is uneven
        found.append(([float(step.loss) for step in loop.steps()], weights_of(loop)))
    (whole, weights), (parts, other) = found
    assert whole == pytest.approx(parts, rel=1e-6)
    for name, value in weights.items():
        torch.testing.assert_close(other[name], value, rtol=0, atol=1e-6)


def test_the_gradient_is_clipped_to_its_norm(checkpoint: Path) -> None:
    norms, reported = [], []
    for limit in (0.5, 0.0, 1e6):
        loop = make_loop(checkpoint, replace(SETTINGS, max_grad_norm=limit, max_steps=1))
        parameters = list(loop.model.parameters())

        def note(*arguments: object, parameters: list[Tensor] = parameters) -> None:
            gradients = [p.grad.flatten() for p in parameters if p.grad is not None]
            norms.append(float(torch.cat(gradients).norm()))

        loop.optimizer.register_step_pre_hook(note)
        reported += [float(step.grad_norm) for step in loop.steps()]
    assert reported[0] == reported[1] == reported[2] > 0.5  # the norm before clipping is reported
    assert norms == pytest.approx([0.5, reported[0], reported[0]], rel=1e-4)


def test_a_process_without_a_window_gives_gradients_of_zero(
    checkpoint: Path, one_of_two: None
) -> None:
    """In an epoch's last step the second process has no window, but takes part in the sum."""
    settings = replace(
        SETTINGS, per_device_train_batch_size=1, gradient_accumulation_steps=1, max_steps=None
    )
    loop = make_loop(checkpoint, settings, Runtime(CPU, rank=1, world_size=2))
    assert len(loop.windows) % 2 == 1
    last = loop.plan.steps_per_epoch - 1
    assert 0 < last < loop.plan.total_steps
    zeros = []
    loop.optimizer.register_step_pre_hook(
        lambda *_: zeros.extend(torch.equal(p.grad, p * 0) for p in loop.model.parameters())
    )
    step = next(loop.steps(first=last))
    assert len(zeros) == len(list(loop.model.parameters())) and all(zeros)
    assert (float(step.loss), float(step.grad_norm), step.tokens) == (0.0, 0.0, 0)


# --- settings ------------------------------------------------------------------------------------


def test_dropout_overrides_the_checkpoints(checkpoint: Path, still_checkpoint: Path) -> None:
    off = losses(checkpoint, replace(SETTINGS, dropout=0.0))
    on = losses(still_checkpoint, replace(SETTINGS, dropout=0.1))
    assert off == losses(still_checkpoint)
    assert on == losses(checkpoint)
    assert on != off


def test_frozen_word_embeddings_do_not_change(checkpoint: Path) -> None:
    before = load_for_training(str(checkpoint), seed=SETTINGS.seed)[0].state_dict()
    loop = make_loop(checkpoint, replace(SETTINGS, freeze_word_embeddings=True))
    list(loop.steps())
    after = weights_of(loop)
    assert torch.equal(before["embeddings.word.weight"], after["embeddings.word.weight"])
    moved = [name for name in before if not torch.equal(before[name], after[name])]
    assert {"embeddings.position.weight", "embeddings.norm.weight", "head.weight"} <= set(moved)
    assert len(moved) == len(before) - 1


def test_bf16_is_close_to_fp32(checkpoint: Path) -> None:
    loop = make_loop(checkpoint, runtime=BF16)
    rounded, exact = [float(step.loss) for step in loop.steps()], losses(checkpoint)
    assert all(value.dtype is torch.float32 for value in weights_of(loop).values())
    assert rounded != exact
    assert rounded == pytest.approx(exact, rel=0.05)


def test_a_scaled_loss_gives_the_same_steps(checkpoint: Path) -> None:
    """Scales are powers of two, so the result is identical."""
    plain, scaled = make_loop(checkpoint), make_loop(checkpoint, runtime=SCALED)
    assert scaled.scaler.get_scale() > 1
    assert list(plain.steps()) == list(scaled.steps())
    assert same(weights_of(plain), weights_of(scaled))


def test_a_step_whose_gradients_overflow_is_skipped(checkpoint: Path) -> None:
    loop = make_loop(checkpoint, runtime=SCALED)
    loop.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127)
    before = weights_of(loop)
    steps = loop.steps(first=3)
    first = next(steps)
    assert math.isfinite(first.loss) and not math.isfinite(first.grad_norm)
    assert same(weights_of(loop), before) and loop.scaler.get_scale() == 2.0**126
    assert math.isfinite(list(steps)[-1].grad_norm) and not same(weights_of(loop), before)


# --- randomness ----------------------------------------------------------------------------------


def test_every_step_and_process_has_another_dropout_seed(
    checkpoint: Path, one_of_two: None
) -> None:
    """If masks were repeated in each step or process, the same units would always be dropped."""
    seeds: list[int] = []
    for seed in (42, 43):
        for rank in (0, 1):
            settings = replace(SETTINGS, seed=seed, max_steps=3, gradient_accumulation_steps=1)
            loop = make_loop(checkpoint, settings, Runtime(CPU, rank=rank, world_size=2))
            loop.optimizer.register_step_pre_hook(lambda *_: seeds.append(torch.initial_seed()))
            list(loop.steps())
    assert len(seeds) == len(set(seeds)) == 12


def test_another_seed_changes_the_run(still_checkpoint: Path) -> None:
    """Also without dropout: the order of the windows differs."""
    first, other = (
        losses(still_checkpoint, replace(SETTINGS, seed=seed, max_steps=2)) for seed in (42, 43)
    )
    assert first[0] != other[0] and first[1] != other[1]


@pytest.mark.parametrize("first", [1, 7])
def test_a_step_only_depends_on_the_seed_and_its_number(checkpoint: Path, first: int) -> None:
    """Not on random numbers drawn before, in this process or one that crashed."""
    loop = make_loop(checkpoint)
    list(islice(loop.steps(), first))
    torch.manual_seed(99)
    torch.rand(7)
    rest = [float(step.loss) for step in loop.steps(first)]
    assert rest == losses(checkpoint)[first:]
