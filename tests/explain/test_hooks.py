"""Heads masked or averaged, layers skipped, states replaced: exactly that and nothing else."""

import copy

import pytest
import torch
from torch import nn

from bertqa.errors import UserError
from bertqa.explain.hooks import Interventions, patch_from
from bertqa.model.bert import BertForQuestionAnswering, BertOutput
from bertqa.model.packing import PackedBatch
from tests.helpers import LENGTHS, TINY, our_batch, our_model, random_windows, their_model

LAYERS, HEADS = TINY["num_hidden_layers"], TINY["num_attention_heads"]
K = TINY["hidden_size"] // HEADS


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> BertForQuestionAnswering:
    return our_model(their_model(), tmp_path_factory.mktemp("interventions"))


@pytest.fixture(params=[True, False], ids=["fast", "readable"], autouse=True)
def either(model: BertForQuestionAnswering, request: pytest.FixtureRequest) -> None:
    model.use_fast_attention(request.param)


@pytest.fixture(scope="module")
def batch() -> PackedBatch:
    return our_batch(*random_windows())


@pytest.fixture(scope="module")
def other() -> PackedBatch:
    """Windows of the same lengths with other tokens."""
    return our_batch(*random_windows(seed=7))


@torch.no_grad()
def run(model: BertForQuestionAnswering, batch: PackedBatch, **asked: object) -> BertOutput:
    return model(batch, output_hidden_states=True, **asked)


def same(a: BertOutput, b: BertOutput) -> bool:
    """Bit for bit."""
    return torch.equal(a.start_logits, b.start_logits) and torch.equal(a.end_logits, b.end_logits)


def columns(head: int) -> slice:
    """A head's part of what goes into the output layer of attention."""
    return slice(head * K, (head + 1) * K)


def test_the_way_of_an_intervention_changes_nothing_by_itself(model, batch):
    """A head that adds nothing is masked: the same numbers, by the code that masks."""
    silent = copy.deepcopy(model)
    silent.layers[1].attention.output.weight.data[:, columns(2)] = 0.0
    silent.layers[1].attention.value.weight.data[columns(2)] = 0.0
    silent.layers[1].attention.value.bias.data[columns(2)] = 0.0
    change = Interventions(mask_heads={(1, 2)})
    assert same(run(silent, batch), run(silent, batch, interventions=change))


def test_a_state_for_a_token_that_is_not_there(model, batch):
    states = run(model, batch).hidden_states
    for token in (-1, len(batch.input_ids)):
        change = Interventions(states={1: (torch.tensor([token]), states[1][:1])})
        with pytest.raises(UserError, match=f"tokens {token} to {token}: name tokens from 0 to"):
            run(model, batch, interventions=change)


@pytest.mark.parametrize("heads", [{(0, 0)}, {(1, 3)}, {(0, 1), (0, 2), (2, 3)}])
def test_a_masked_head_adds_nothing(model, batch, heads):
    """As if its columns of the output matrix were zeros, and whatever its values are."""
    masked = run(model, batch, interventions=Interventions(mask_heads=heads))
    assert not same(masked, run(model, batch))
    without, other_values = copy.deepcopy(model), copy.deepcopy(model)
    for layer, head in heads:
        without.layers[layer].attention.output.weight.data[:, columns(head)] = 0.0
        other_values.layers[layer].attention.value.weight.data[columns(head)] *= -3.0
    removed = run(without, batch)
    torch.testing.assert_close(masked.start_logits, removed.start_logits, rtol=0, atol=1e-5)
    torch.testing.assert_close(masked.end_logits, removed.end_logits, rtol=0, atol=1e-5)
    assert same(masked, run(other_values, batch, interventions=Interventions(mask_heads=heads)))


def test_with_all_heads_masked_the_layers_see_each_token_alone(model):
    every = frozenset((layer, head) for layer in range(LAYERS) for head in range(HEADS))
    alone, beside = our_batch(*random_windows((9,))), our_batch(*random_windows((9,), seed=3))
    ids = beside.input_ids.clone()
    ids[4] = alone.input_ids[4]
    beside = PackedBatch(ids, alone.token_type_ids, alone.position_ids, alone.lengths)
    found = [run(model, b, interventions=Interventions(mask_heads=every)) for b in (alone, beside)]
    assert torch.equal(found[0].hidden_states[-1][4], found[1].hidden_states[-1][4])
    assert not torch.equal(found[0].hidden_states[-1][3], found[1].hidden_states[-1][3])


@pytest.mark.parametrize("heads", [[0], [1, 3]])
def test_an_averaged_head_gives_its_windows_mean(model, batch, heads):
    seen: list[torch.Tensor] = []
    handle = model.layers[1].attention.output.register_forward_pre_hook(
        lambda module, inputs: seen.append(inputs[0])
    )
    try:
        run(model, batch)
        averaged = Interventions(mean_heads=frozenset((1, head) for head in heads))
        run(model, batch, interventions=averaged)
    finally:
        handle.remove()
    plain, changed = seen
    for before, after in zip(plain.split(LENGTHS), changed.split(LENGTHS), strict=True):
        for head in range(HEADS):
            part = before[:, columns(head)]
            expected = part.mean(dim=0).expand_as(part) if head in heads else part
            torch.testing.assert_close(after[:, columns(head)], expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("skipped", [{0}, {1}, {0, 2}, {0, 1, 2}])
def test_a_skipped_layer_is_one_that_is_not_there(model, batch, skipped):
    shorter = copy.deepcopy(model)
    kept = [layer for i, layer in enumerate(shorter.layers) if i not in skipped]
    shorter.layers = nn.ModuleList(kept)
    changes = Interventions(skip_layers=skipped)
    assert same(run(model, batch, interventions=changes), run(shorter, batch))
    found = run(model, batch, interventions=changes, output_attentions=True)
    assert len(found.hidden_states) == LAYERS + 1
    for layer in range(LAYERS):
        assert (found.attentions[layer] == []) == (layer in skipped)
        unchanged = torch.equal(found.hidden_states[layer], found.hidden_states[layer + 1])
        assert unchanged == (layer in skipped)


@pytest.mark.parametrize("place", range(LAYERS + 1))
def test_a_run_patched_with_itself_changes_nothing(model, batch, place):
    plain = run(model, batch)
    for tokens in ([0], [3, 50, 7], range(sum(LENGTHS))):
        patch = patch_from(plain.hidden_states, place, tokens)
        assert same(run(model, batch, interventions=patch), plain)


@pytest.mark.parametrize("place", range(LAYERS + 1))
def test_a_run_patched_whole_is_the_other_run(model, batch, other, place):
    theirs = run(model, other)
    patch = patch_from(theirs.hidden_states, place, range(sum(LENGTHS)))
    assert same(run(model, batch, interventions=patch), theirs)


def test_a_patched_token_moves_its_own_window_alone(model, batch, other):
    plain, theirs = run(model, batch), run(model, other)
    token = LENGTHS[0] + 2  # of the second window
    found = run(model, batch, interventions=patch_from(theirs.hidden_states, 1, [token]))
    assert torch.equal(found.hidden_states[1][token], theirs.hidden_states[1][token])
    parts = zip(found.start_logits.split(LENGTHS), plain.start_logits.split(LENGTHS), strict=True)
    moved = [not torch.equal(a, b) for a, b in parts]
    assert moved == [False, True, False, False, False]
    last = run(model, batch, interventions=patch_from(theirs.hidden_states, LAYERS, [token]))
    differs = last.start_logits != plain.start_logits
    assert differs.nonzero().flatten().tolist() == [token]


def test_gradients_pass_through(model, batch):
    """What is masked gets none."""
    changes = Interventions(mask_heads={(1, 0)}, mean_heads={(1, 2)}, skip_layers={0})
    own = copy.deepcopy(model)
    own(batch, interventions=changes).start_logits.square().sum().backward()
    value = own.layers[1].attention.value.weight.grad
    assert not value[columns(0)].any()
    assert all(value[columns(head)].any() for head in (1, 2, 3))
    assert own.layers[0].attention.value.weight.grad is None


def test_the_head_reads_every_layer(model, batch):
    with torch.no_grad():
        found = model(batch, output_layer_logits=True, output_hidden_states=True)
        assert len(found.layer_logits) == LAYERS + 1
        for state, (start, end) in zip(found.hidden_states, found.layer_logits, strict=True):
            torch.testing.assert_close(start, state @ model.head.S + model.head.bias[0])
            torch.testing.assert_close(end, state @ model.head.E + model.head.bias[1])
        assert torch.equal(found.layer_logits[-1][0], found.start_logits)
        assert torch.equal(found.layer_logits[-1][1], found.end_logits)
        alone = model(batch, output_layer_logits=True)
        assert alone.hidden_states == [] and len(alone.layer_logits) == LAYERS + 1
        assert model(batch).layer_logits == []


def test_vectors_in_place_of_ids(model, batch, other):
    with torch.no_grad():
        vectors = model.embeddings(other)
        assert same(model(batch, embedded=vectors), model(other))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (Interventions(mask_heads={(3, 0)}), "head 0 of layer 3 is not there.*0 to 2"),
        (Interventions(mean_heads={(0, 4)}), "head 4 of layer 0 is not there.*0 to 3"),
        (Interventions(mask_heads={(-1, 0)}), "layer -1"),
        (Interventions(mask_heads={(1, 1)}, mean_heads={(1, 1)}), "both"),
        (Interventions(skip_layers={3}), "layer 3 is not there"),
        (Interventions(states={4: (torch.tensor([0]), torch.zeros(1, 36))}), "no place 4"),
    ],
)
def test_what_is_not_there_is_refused(model, batch, changes, words):
    with pytest.raises(UserError, match=words):
        run(model, batch, interventions=changes)
