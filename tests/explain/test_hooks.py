"""Recording and interventions affect exactly the named modules, heads, layers and tokens."""

import copy
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, nullcontext
from typing import Any

import pytest
import torch
from torch import nn

from bertqa.answering.answerer import QuestionAnswerer
from bertqa.data.readers import read_examples
from bertqa.errors import UserError
from bertqa.explain.hooks import (
    Patch,
    Recording,
    attention_names,
    hidden_state_names,
    intervene,
    logit_lens,
    patch_from,
    record,
)
from bertqa.model.bert import BertForQuestionAnswering, BertOutput
from bertqa.model.packing import PackedBatch
from bertqa.runtime import local_runtime
from tests.helpers import LENGTHS, STORIES, TINY, our_batch, our_model, random_windows, their_model

LAYERS, HEADS = TINY["num_hidden_layers"], TINY["num_attention_heads"]
K = TINY["hidden_size"] // HEADS
NAMES = ["embeddings", *(f"layers.{layer}" for layer in range(LAYERS))]
NOTHING = Patch(torch.zeros(0, dtype=torch.int64), torch.zeros(0, 36))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> BertForQuestionAnswering:
    return our_model(their_model(), tmp_path_factory.mktemp("interventions"))


@pytest.fixture(params=["fused", "reference"], autouse=True)
def either(model: BertForQuestionAnswering, request: pytest.FixtureRequest) -> None:
    model.set_attention_implementation(request.param)


@pytest.fixture(scope="module")
def batch() -> PackedBatch:
    return our_batch(*random_windows())


@pytest.fixture(scope="module")
def other() -> PackedBatch:
    """Windows of the same lengths with other tokens."""
    return our_batch(*random_windows(seed=7))


@torch.no_grad()
def run(model: BertForQuestionAnswering, batch: PackedBatch, **changes: Any) -> BertOutput:
    with intervene(model, **changes):
        return model(batch)


@torch.no_grad()
def states_of(
    model: BertForQuestionAnswering, batch: PackedBatch, **changes: Any
) -> dict[str, torch.Tensor]:
    """Return the hidden states by name."""
    with record(model, hidden_state_names(model)) as seen, intervene(model, **changes):
        model(batch)
    return dict(seen)


def same(a: BertOutput, b: BertOutput) -> bool:
    """Return whether two outputs are bitwise equal."""
    return torch.equal(a.start_logits, b.start_logits) and torch.equal(a.end_logits, b.end_logits)


def columns(head: int) -> slice:
    """Return the columns of a head in the input of the attention output layer."""
    return slice(head * K, (head + 1) * K)


@pytest.mark.parametrize("heads", [{(0, 0)}, {(1, 3)}, {(0, 1), (0, 2), (2, 3)}])
def test_a_masked_head_contributes_zero(model, batch, heads):
    """Masking equals zeroing its columns of the output matrix, and ignores its values."""
    masked = run(model, batch, mask_heads=heads)
    assert not same(masked, run(model, batch))
    without, other_values = copy.deepcopy(model), copy.deepcopy(model)
    for layer, head in heads:
        without.layers[layer].attention.output.weight.data[:, columns(head)] = 0.0
        other_values.layers[layer].attention.value.weight.data[columns(head)] *= -3.0
    removed = run(without, batch)
    torch.testing.assert_close(masked.start_logits, removed.start_logits, rtol=0, atol=1e-5)
    torch.testing.assert_close(masked.end_logits, removed.end_logits, rtol=0, atol=1e-5)
    assert same(masked, run(other_values, batch, mask_heads=heads))


@pytest.mark.parametrize("heads", [[0], [1, 3]])
def test_an_averaged_head_outputs_its_window_mean(model, batch, heads):
    seen: list[torch.Tensor] = []
    handle = model.layers[1].attention.output.register_forward_pre_hook(
        lambda module, inputs: seen.append(inputs[0])
    )
    try:
        run(model, batch)
        run(model, batch, mean_heads=frozenset((1, head) for head in heads))
    finally:
        handle.remove()
    plain, changed = seen
    for before, after in zip(plain.split(LENGTHS), changed.split(LENGTHS), strict=True):
        for head in range(HEADS):
            part = before[:, columns(head)]
            expected = part.mean(dim=0).expand_as(part) if head in heads else part
            torch.testing.assert_close(after[:, columns(head)], expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("skipped", [{0}, {1}, {0, 2}, {0, 1, 2}])
def test_skipping_a_layer_equals_removing_it(model, batch, skipped):
    shorter = copy.deepcopy(model)
    kept = [layer for i, layer in enumerate(shorter.layers) if i not in skipped]
    shorter.layers = nn.ModuleList(kept)
    assert same(run(model, batch, skip_layers=skipped), run(shorter, batch))
    found = states_of(model, batch, skip_layers=skipped)
    assert list(found) == NAMES
    for layer in range(LAYERS):
        unchanged = torch.equal(found[NAMES[layer]], found[NAMES[layer + 1]])
        assert unchanged == (layer in skipped)


@pytest.mark.parametrize("name", NAMES)
def test_patching_with_own_states_or_all_states_of_another_run(model, batch, other, name):
    plain, seen = run(model, batch), states_of(model, batch)
    for tokens in ([0], [3, 50, 7], range(sum(LENGTHS)), []):
        assert same(run(model, batch, patch=patch_from(seen, name, tokens)), plain)
    whole = patch_from(states_of(model, other), name, range(sum(LENGTHS)))
    assert same(run(model, batch, patch=whole), run(model, other))


def test_a_patched_token_changes_only_its_window(model, batch, other):
    plain, theirs = run(model, batch), states_of(model, other)
    token = LENGTHS[0] + 2  # of the second window
    patch = patch_from(theirs, "layers.0", [token])
    assert torch.equal(
        states_of(model, batch, patch=patch)["layers.0"][token], theirs["layers.0"][token]
    )
    found = run(model, batch, patch=patch)
    parts = zip(found.start_logits.split(LENGTHS), plain.start_logits.split(LENGTHS), strict=True)
    moved = [not torch.equal(a, b) for a, b in parts]
    assert moved == [False, True, False, False, False]
    last = run(model, batch, patch=patch_from(theirs, NAMES[-1], [token]))
    differs = last.start_logits != plain.start_logits
    assert differs.nonzero().flatten().tolist() == [token]


def test_any_module_with_an_output_per_token_can_be_patched(model, batch):
    """Patching attention with zeros equals zeroing its output layer."""
    zeros = Patch(torch.arange(sum(LENGTHS)), torch.zeros(sum(LENGTHS), 36))
    without = copy.deepcopy(model)
    without.layers[1].attention.output.weight.data.zero_()
    without.layers[1].attention.output.bias.data.zero_()
    assert same(run(model, batch, patch={"layers.1.attention": zeros}), run(without, batch))


def test_gradients_flow_through_interventions(model, batch):
    """Recorded tensors get gradients too; masked heads get none."""
    own = copy.deepcopy(model)
    changes = {"mask_heads": {(1, 0)}, "mean_heads": {(1, 2)}, "skip_layers": {0}}
    with intervene(own, **changes), record(own, ["layers.0"]) as seen:
        loss = own(batch).start_logits.square().sum()
    assert torch.autograd.grad(loss, seen["layers.0"], retain_graph=True)[0].any()
    loss.backward()
    value = own.layers[1].attention.value.weight.grad
    assert not value[columns(0)].any()
    assert all(value[columns(head)].any() for head in (1, 2, 3))
    assert own.layers[0].attention.value.weight.grad is None


def test_embeddings_instead_of_ids(model, batch, other):
    with torch.no_grad():
        vectors = model.embeddings(other)
    assert same(run(model, batch, embeddings=vectors), run(model, other))


def test_interventions_combine(model, batch, other):
    """The outputs of a skipped layer and of replaced embeddings can be patched."""
    theirs = states_of(model, other)
    patch = patch_from(theirs, "layers.0", [4]) | patch_from(theirs, "embeddings", [2])
    zeros = torch.zeros(sum(LENGTHS), 36)
    found = states_of(model, batch, embeddings=zeros, skip_layers={0}, patch=patch)
    expected = zeros.clone()
    expected[2] = theirs["embeddings"][2]
    assert torch.equal(found["embeddings"], expected)
    expected[4] = theirs["layers.0"][4]
    assert torch.equal(found["layers.0"], expected)


@pytest.mark.parametrize("made", [list, tuple, iter, lambda heads: [list(h) for h in heads]])
def test_heads_and_layers_in_any_iterable(model, batch, made):
    heads, means = {(1, 2), (0, 0)}, {(2, 1)}
    expected = run(model, batch, mask_heads=heads, mean_heads=means, skip_layers={0})
    found = run(model, batch, mask_heads=made(heads), mean_heads=made(means), skip_layers=iter([0]))
    assert same(found, expected)


def patch(tokens: list[int], *shape: int) -> dict[str, Patch]:
    """Return a patch with zeros for some tokens after layer 0."""
    return {"layers.0": Patch(torch.tensor(tokens), torch.zeros(shape))}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mask_heads": {(3, 0)}}, "layer: .*0 to 2, got 3"),
        ({"mean_heads": {(0, 4)}}, "head of layer 0: .*0 to 3, got 4"),
        ({"mask_heads": [(-1, 0)]}, "layer: .*got -1"),
        ({"mask_heads": [(1, 1)], "mean_heads": {(1, 1)}}, "both"),
        ({"skip_layers": [3]}, "layer: .*got 3"),
        ({"patch": {"layers.3": NOTHING}}, "'layers.3'.*did you mean 'layers.2'"),
        ({"patch": {"head": NOTHING}}, "got 'head'"),
        ({"patch": {"layers.0.attention.probabilities": NOTHING}}, "one output per token"),
        ({"patch": {"layers": NOTHING}}, "container 'layers'"),
        ({"patch": patch([-1], 1, 36)}, "0 to 120.*tokens -1 to -1"),
        ({"patch": patch([121], 1, 36)}, "0 to 120.*tokens 121 to 121"),
        ({"patch": patch([3, 7], 1, 36)}, r"'layers.0'.*\(2, 36\).*got \(1, 36\)"),
        ({"patch": patch([3, 7], 2, 1)}, r"'layers.0'.*\(2, 36\).*got \(2, 1\)"),
        ({"embeddings": torch.zeros(120, 36)}, r"\(121, 36\).*got \(120, 36\)"),
        ({"embeddings": torch.zeros(121, 35)}, r"\(121, 36\).*got \(121, 35\)"),
    ],
)
def test_impossible_interventions_raise(model, batch, changes, message):
    with pytest.raises(UserError, match=message):
        run(model, batch, **changes)
    assert not hooks_of(model)


# --- recording -----------------------------------------------------------------------------------


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
def test_recording_does_not_change_outputs(model, batch, training):
    own = copy.deepcopy(model).train(training)

    def run_with(names: list[str]) -> tuple[BertOutput, Recording]:
        torch.manual_seed(0)
        with record(own, names) as seen:
            return own(batch), seen

    plain, nothing = run_with([])
    assert not dict(nothing)
    output, states = run_with(NAMES)
    assert same(output, plain)
    assert [states[name].shape for name in NAMES] == [(sum(LENGTHS), 36)] * 4
    output, both = run_with([*NAMES, *attention_names(own)])
    torch.testing.assert_close(output, plain)
    for name in attention_names(own):
        assert [p.shape for p in both[name]] == [(4, length, length) for length in LENGTHS]
        for probabilities in both[name]:
            torch.testing.assert_close(
                probabilities.sum(dim=-1), torch.ones(probabilities.shape[:-1])
            )
            assert (probabilities > 0).all()


def test_every_called_module_can_be_recorded(model, batch):
    names = [n for n, m in model.named_modules() if not isinstance(m, nn.ModuleList)]
    with record(model, names) as seen:
        output = model(batch)
    assert set(seen) == set(names) and len(seen) == len(names)
    assert seen[""] is output and same(BertOutput(*seen["head"]), output)
    assert [len(x) for name, x in seen.items() if isinstance(x, list)] == [5, 5, 2] * LAYERS
    first, second = seen["layers.1.dropout"]
    assert first is seen["layers.1.attention"] and second is seen["layers.1.feed_forward"]
    torch.testing.assert_close(output, model(batch), rtol=0, atol=1e-5)


def test_a_recording_holds_the_last_pass_and_can_be_read_afterwards(model, batch, other):
    names = ["layers.1", "layers.1.attention.probabilities", "layers.1.dropout"]
    with record(model, names) as seen:
        assert "layers.1" not in seen and len(seen) == 0
        model(other)
        model(batch)
    model(other)  # after the recording has ended
    with record(model, names) as again:
        model(batch)
    for name in names:
        torch.testing.assert_close(seen[name], again[name], rtol=0, atol=0)
    with pytest.raises(KeyError):
        seen["layers.0"]


def test_a_failed_pass_is_not_recorded(model, batch, other):
    names = [*NAMES, *attention_names(model)]
    with record(model, names) as seen:
        model(batch)
        before = dict(seen)
        handle = model.head.register_forward_hook(lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            model(other)
        handle.remove()
        assert all(seen[name] is before[name] for name in NAMES)
        for _ in range(2):  # a layer that is called directly replaces only its own output
            model.layers[0](before["embeddings"], batch)
        assert seen["layers.0"] is not before["layers.0"]
        assert seen["layers.1"] is before["layers.1"]
        assert len(seen["layers.0.attention.probabilities"]) == len(LENGTHS)


def test_a_recording_entered_during_a_pass_holds_the_next_one(model, batch):
    with ExitStack() as late:
        late.enter_context(record(model, [""]))  # else torch does not check for hooks at the end
        seen: list[Recording] = []
        handle = model.layers[1].register_forward_hook(
            lambda *_: seen.append(late.enter_context(record(model, NAMES)))
        )
        model(batch)
        handle.remove()
        model(batch)
    assert list(seen[0]) == NAMES and len(seen) == 1


def test_recording_attention_switches_all_threads_and_copies_to_the_reference(model, batch):
    plain = run(model, batch)
    own = copy.deepcopy(model)
    own.set_attention_implementation("reference")
    reference = run(own, batch)
    with record(model, attention_names(model)), ThreadPoolExecutor(1) as pool:
        assert same(pool.submit(run, model, batch).result(), reference)
        copied = copy.deepcopy(model)
    assert same(run(copied, batch), reference)
    assert same(run(model, batch), plain)


def test_a_recording_includes_interventions(model, batch):
    """In either order of entering the contexts."""
    inner = states_of(model, batch, skip_layers={1})
    with intervene(model, skip_layers={1}), record(model, NAMES) as outer:
        model(batch)
    for name in NAMES:
        assert torch.equal(inner[name], outer[name])
    assert torch.equal(outer["layers.1"], outer["layers.0"])


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["embeddings", "layers.7"], r"got 'layers.7'.*did you mean 'layers\.\d'"),
        (["layers.1.attention.probs"], "did you mean 'layers.1.attention.probabilities'"),
        (["layers"], "container 'layers'"),
        ("layers.0", r"must be a list .*got the string 'layers.0'"),
    ],
)
def test_names_that_cannot_be_recorded(model, names, message):
    with pytest.raises(UserError, match=message), record(model, names):
        pass
    assert not hooks_of(model)


def test_the_logit_lens_applies_s_and_e_to_every_layer(model, batch):
    with torch.no_grad():
        states = states_of(model, batch)
        found = logit_lens(model, states.values())
        assert len(found) == LAYERS + 1
        for state, (start, end) in zip(states.values(), found, strict=True):
            torch.testing.assert_close(start, state @ model.head.S + model.head.bias[0])
            torch.testing.assert_close(end, state @ model.head.E + model.head.bias[1])
        assert same(BertOutput(*found[-1]), model(batch))


# --- cleanup, nesting, copies, threads -----------------------------------------------------------


def hooks_of(model: nn.Module) -> list[str]:
    """Return the names of the modules that have hooks."""
    return [
        name
        for name, module in model.named_modules()
        if module._forward_hooks or module._forward_pre_hooks
    ]


CHANGES: dict[str, Any] = {
    "mask_heads": {(0, 1)},
    "mean_heads": {(2, 0)},
    "skip_layers": {1},
    "patch": {"layers.2": Patch(torch.tensor([3]), torch.ones(1, 36))},
    "embeddings": torch.zeros(sum(LENGTHS), 36),
}


@pytest.mark.parametrize("fails", [False, True])
def test_all_hooks_are_removed(model, batch, fails):
    plain = run(model, batch)
    with (
        pytest.raises(ZeroDivisionError) if fails else nullcontext(),
        record(model, [*NAMES, *attention_names(model)]),
        intervene(model, **CHANGES),
    ):
        assert not same(model(batch), plain)
        assert hooks_of(model)
        assert 1 / (not fails)
    assert not hooks_of(model)
    assert same(run(model, batch), plain)


def test_nested_interventions_combine(model, batch):
    both = run(model, batch, skip_layers={0}, mask_heads={(1, 2)})
    with intervene(model, skip_layers={0}):
        assert same(run(model, batch, mask_heads={(1, 2)}), both)
        once = model(batch)
    assert same(once, run(model, batch, skip_layers={0}))


def test_copies_are_recorded_and_changed_while_the_context_is_active(model, batch, other):
    """An ``Evaluator`` makes such a copy."""
    plain = run(model, other)
    with record(model, [*NAMES, *attention_names(model)]) as seen, intervene(model, **CHANGES):
        expected, copied = model(batch), copy.deepcopy(model)
        assert same(copied(batch), expected)
        assert same(BertOutput(*model.head(seen["layers.2"])), expected)
    before = dict(seen)
    torch.testing.assert_close(copied(other), plain)
    assert list(seen) == list(before) and all(seen[name] is before[name] for name in NAMES)
    assert len(seen["layers.0.attention.probabilities"]) == len(LENGTHS)


def test_threads_that_share_a_model_are_independent(model, batch, other):
    """Each has its own recording and intervention at the same time."""
    cases = [(skipped, given) for skipped in range(LAYERS) for given in (batch, other)]
    all_in = threading.Barrier(len(cases), timeout=60)

    def work(skipped: int, given: PackedBatch) -> Recording:
        names = [*NAMES, *attention_names(model)]
        with torch.no_grad(), record(model, names) as seen, intervene(model, skip_layers={skipped}):
            all_in.wait()
            for _ in range(5):
                model(given)
            all_in.wait()
        return seen

    with ThreadPoolExecutor(len(cases)) as pool:
        together = list(pool.map(work, *zip(*cases, strict=True)))
    assert not hooks_of(model)
    for seen, (skipped, given) in zip(together, cases, strict=True):
        expected = states_of(model, given, skip_layers={skipped})
        torch.testing.assert_close({name: seen[name] for name in NAMES}, expected)
        assert {len(seen[name]) for name in attention_names(model)} == {len(LENGTHS)}


def test_worker_threads_of_a_runtime_inherit_the_hooks(model, monkeypatch):
    """Two passes with different window lengths always run at once."""
    batches = [our_batch(*random_windows(lengths)) for lengths in (LENGTHS, (20, 9))] * 4
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    changes = {"skip_layers": {0}, "mean_heads": {(1, 2)}}
    expected = [run(model, given, **changes) for given in batches]
    both, threads = threading.Barrier(2, timeout=60), set()

    def meet(*_: Any) -> None:
        threads.add(threading.get_ident())
        both.wait()

    # In attention, after each thread has stored the lengths of its windows.
    handle = model.layers[1].attention.query.register_forward_hook(meet)
    names = ["", *NAMES, *attention_names(model)]
    try:
        with record(model, names) as seen, intervene(model, **changes):
            found = list(local_runtime("cpu", "fp32").map_batches(model, batches))
    finally:
        handle.remove()
    assert threading.get_ident() not in threads
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    (number,) = (i for i, output in enumerate(found) if output is seen[""])
    assert seen["layers.0"].equal(model.embeddings(batches[number]))
    assert same(BertOutput(*model.head(seen["layers.2"])), found[number])
    for name in attention_names(model):
        assert tuple(len(p[0]) for p in seen[name]) == batches[number].lengths


@torch.no_grad()
def test_a_question_answerer_can_be_recorded(folder):
    qa = QuestionAnswerer.from_pretrained(folder, device="cpu", precision="fp32")
    names = [*hidden_state_names(qa.model), *attention_names(qa.model), "head"]
    with record(qa.model, names) as seen:
        assert list(qa.answer(read_examples(STORIES)))
    assert sorted(seen) == sorted(names)
    for name in attention_names(qa.model):
        assert sum(len(p[0]) for p in seen[name]) == len(seen["embeddings"])
    assert same(BertOutput(*qa.model.head(seen[names[3]])), BertOutput(*seen["head"]))
