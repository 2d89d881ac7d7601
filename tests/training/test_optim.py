"""The learning rate at every step, weight decay, and AdamW steps by hand."""

import math
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import get_scheduler

from bertqa.model.bert import BertForQuestionAnswering
from bertqa.model.names import checkpoint_name
from bertqa.settings import SCHEDULES
from bertqa.training.optim import learning_rate, make_optimizer, parameter_groups, set_learning_rate
from tests.helpers import our_model, their_model

PEAK = 3e-5


@pytest.fixture
def model(tmp_path: Path) -> BertForQuestionAnswering:
    """A model of three layers."""
    return our_model(their_model(), tmp_path)


def their_rates(total_steps: int, warmup_steps: int, steps: int, name: str) -> list[float]:
    optimizer = torch.optim.AdamW([nn.Parameter(torch.zeros(1))], lr=PEAK)
    schedule = get_scheduler(name, optimizer, warmup_steps, total_steps)
    rates = []
    for _ in range(steps):
        rates.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    return rates


@pytest.mark.parametrize(
    ("total_steps", "warmup_steps"),
    [(1, 0), (7, 0), (100, 0), (100, 1), (100, 10), (97, 13), (5, 4), (6, 6)],
)
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_learning_rate_equals_theirs_at_every_step(
    total_steps: int, warmup_steps: int, schedule: str
) -> None:
    steps = total_steps + 3  # also after the end
    ours = [learning_rate(step, PEAK, total_steps, warmup_steps, schedule) for step in range(steps)]
    theirs = their_rates(total_steps, warmup_steps, steps, schedule)
    assert ours == pytest.approx(theirs, rel=1e-12, abs=0)


def test_biases_and_layer_norm_have_no_weight_decay(tmp_path: Path) -> None:
    theirs = their_model()
    no_decay = {
        name
        for name, _ in theirs.named_parameters()
        if "bias" in name or "LayerNorm.weight" in name  # run_qa's no_decay
    }
    model = our_model(theirs, tmp_path)
    names = {id(parameter): checkpoint_name(name) for name, parameter in model.named_parameters()}
    decaying, without = parameter_groups(model, 0.25)
    ours = {names[id(parameter)] for parameter in without["params"]}
    assert ours == no_decay
    assert decaying["weight_decay"] == 0.25
    assert without["weight_decay"] == 0.0
    both = [id(parameter) for group in (decaying, without) for parameter in group["params"]]
    assert sorted(both) == sorted(names)  # each parameter once


def test_lower_layers_have_lower_learning_rates(model: BertForQuestionAnswering) -> None:
    groups = parameter_groups(model, 0.25, layerwise_lr_decay=0.5)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    scales = {names[id(p)]: group["lr_scale"] for group in groups for p in group["params"]}
    decays = {names[id(p)]: group["weight_decay"] for group in groups for p in group["params"]}
    assert scales.keys() == decays.keys() == set(names.values())
    expected = {"head.": 1, "layers.2.": 0.5, "layers.1.": 0.25, "layers.0.": 0.125}
    for beginning, scale in (expected | {"embeddings.": 0.0625}).items():
        found = {value for name, value in scales.items() if name.startswith(beginning)}
        assert found == {scale}, beginning
    no_decay = {names[id(p)] for p in parameter_groups(model, 0.25)[1]["params"]}
    assert {name for name, decay in decays.items() if decay == 0} == no_decay

    optimizer = make_optimizer(model, 0.0, 1e-8, layerwise_lr_decay=0.5)
    set_learning_rate(optimizer, 0.1)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    for name, parameter in model.named_parameters():  # Adam's first step is the learning rate
        torch.testing.assert_close(
            before[name] - parameter, torch.full_like(parameter, 0.1 * scales[name])
        )


def test_frozen_parameters_are_in_no_group(model: BertForQuestionAnswering) -> None:
    model.embeddings.word.requires_grad_(False)
    grouped = {id(p) for group in parameter_groups(model, 0.1) for p in group["params"]}
    assert grouped == {id(p) for p in model.parameters() if p.requires_grad}
    assert id(model.embeddings.word.weight) not in grouped


def test_three_steps_are_adamw_by_hand(model: BertForQuestionAnswering) -> None:
    """Loshchilov and Hutter 2019, algorithm 2, with weight decay times the learning rate."""
    decay, epsilon, rates = 0.1, 1e-6, (0.03, 0.02, 0.01)
    no_decay = {id(parameter) for parameter in parameter_groups(model, decay)[1]["params"]}
    optimizer = make_optimizer(model, decay, epsilon)
    generator = torch.Generator().manual_seed(3)
    expected = {name: p.detach().double().clone() for name, p in model.named_parameters()}
    mean = {name: torch.zeros_like(value) for name, value in expected.items()}
    square = {name: torch.zeros_like(value) for name, value in expected.items()}
    for t, rate in enumerate(rates, start=1):
        for name, parameter in model.named_parameters():
            parameter.grad = torch.randn(parameter.shape, generator=generator)
            gradient = parameter.grad.double()
            if id(parameter) not in no_decay:
                expected[name] -= rate * decay * expected[name]
            mean[name] = 0.9 * mean[name] + 0.1 * gradient
            square[name] = 0.999 * square[name] + 0.001 * gradient**2
            root = (square[name] / (1 - 0.999**t)).sqrt() + epsilon
            expected[name] -= rate * mean[name] / (1 - 0.9**t) / root
        set_learning_rate(optimizer, rate)
        optimizer.step()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.detach().double(), expected[name], rtol=0, atol=2e-6)


def test_no_update_before_a_learning_rate_is_set(model: BertForQuestionAnswering) -> None:
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimizer = make_optimizer(model, 0.1, 1e-8)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    assert all(torch.equal(before[name], p) for name, p in model.named_parameters())
    set_learning_rate(optimizer, math.pi)
    assert [group["lr"] for group in optimizer.param_groups] == [math.pi, math.pi]
