"""Integrated gradients sum to the score difference; ablation effects are loss differences."""

import copy
from itertools import product
from typing import Any

import pytest
import torch

from bertqa.errors import UserError
from bertqa.explain.attribution import (
    Attribution,
    head_effects,
    integrated_gradients,
    layer_effects,
    masked_baseline,
)
from bertqa.explain.hooks import intervene
from bertqa.model.bert import window_losses
from bertqa.model.packing import PackedBatch
from tests.helpers import TINY, our_batch, random_windows

LENGTH, CLS, SEP, MASK = 21, 2, 3, 4


@pytest.fixture(scope="module")
def window() -> PackedBatch:
    (ids,), types = random_windows((LENGTH,), seed=5)
    ids = [id_ if id_ > 4 else 9 for id_ in ids]
    ids[0], ids[7], ids[-1] = CLS, SEP, SEP
    return our_batch([ids], types)


@pytest.fixture(scope="module")
def baseline(window: PackedBatch) -> PackedBatch:
    return masked_baseline(window, MASK, (CLS, SEP))


def test_the_baseline_replaces_all_but_special_tokens(window, baseline):
    special = torch.isin(window.input_ids, torch.tensor([CLS, SEP]))
    assert torch.equal(baseline.input_ids, window.input_ids.where(special, torch.tensor(MASK)))
    assert special.sum() == 3 and torch.equal(baseline.token_type_ids, window.token_type_ids)


@pytest.mark.parametrize("of_end", [False, True])
@pytest.mark.parametrize("position", [0, 9, LENGTH - 1])
def test_contributions_sum_to_the_score_difference(model, window, baseline, position, of_end):
    found = integrated_gradients(model, window, baseline, position, of_end=of_end)
    with torch.no_grad():
        scores = [
            (o.end_logits if of_end else o.start_logits)[position]
            for o in map(model, (window, baseline))
        ]
    assert (found.score, found.baseline) == pytest.approx([float(s) for s in scores], abs=1e-5)
    assert abs(found.score - found.baseline) > 0.05  # not trivially zero
    assert abs(found.convergence_delta) < 1e-3 * abs(found.score - found.baseline)
    coarse = integrated_gradients(model, window, baseline, position, of_end=of_end, steps=4)
    assert abs(found.convergence_delta) < max(abs(coarse.convergence_delta), 1e-4)


def test_unchanged_tokens_contribute_zero(model, window, baseline):
    found = integrated_gradients(model, window, baseline, 9)
    same = window.input_ids == baseline.input_ids
    assert not found.tokens[same].any() and found.tokens[~same].all()


def test_a_linear_score_gives_input_times_gradient(model, window, baseline):
    """Without layers the score of a token is linear in its embedding."""
    shallow = copy.deepcopy(model)
    shallow.layers = torch.nn.ModuleList()
    found = integrated_gradients(shallow, window, baseline, 9, steps=1)
    with torch.no_grad():
        moved = shallow.embeddings(window) - shallow.embeddings(baseline)
    expected = torch.zeros(LENGTH)
    expected[9] = moved[9] @ shallow.head.S.detach()
    torch.testing.assert_close(found.tokens, expected)


def test_the_convergence_delta_is_the_sum_minus_the_score_difference():
    found = Attribution(torch.tensor([1.0, 0.5]), score=3.0, baseline=1.0)
    assert found.convergence_delta == pytest.approx(-0.5)


def test_effects_are_loss_differences_without_each_head_and_layer(model, window):
    labels = torch.tensor([9]), torch.tensor([11])

    def added(**changes: Any) -> float:
        losses = []
        for change in ({}, changes):
            with torch.no_grad(), intervene(model, **change):
                losses.append(float(window_losses(model(window), window.lengths, *labels)))
        return losses[1] - losses[0]

    heads, layers = head_effects(model, window, 9, 11), layer_effects(model, window, 9, 11)
    parts = list(product(range(TINY["num_hidden_layers"]), range(TINY["num_attention_heads"])))
    expected = [added(mask_heads={part}) for part in parts]
    assert heads.flatten().tolist() == pytest.approx(expected, abs=1e-5)
    assert len(heads.unique()) == len(parts)
    expected = [added(skip_layers={layer}) for layer in range(len(model.layers))]
    assert layers.tolist() == pytest.approx(expected, abs=1e-5)


def test_invalid_windows_and_positions_raise(model, window, baseline):
    two, short = our_batch(*random_windows((5, 6))), our_batch(*random_windows((5,)))
    for call, message in (
        (lambda: head_effects(model, two, 0, 0), r"\b2 windows\b"),
        (lambda: integrated_gradients(model, window, baseline, LENGTH), "0 to 20, got 21"),
        (lambda: layer_effects(model, window, 3, -1), "got -1"),
        (lambda: integrated_gradients(model, window, short, 3), "same length"),
        (lambda: integrated_gradients(model, window, baseline, 3, steps=0), "steps: .* got 0"),
    ):
        with pytest.raises(UserError, match=message):
            call()
