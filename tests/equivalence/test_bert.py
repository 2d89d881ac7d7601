"""The model equals transformers' BertForQuestionAnswering, part by part, in float32 on the CPU.

``theirs`` gets windows with padding and attention mask, ``ours`` a packed batch. Both have the same
random weights, which our loader converted. Their loss is half of ours: it is the mean of start loss
and end loss, the paper's the sum. Their softmax also includes padding, so their loss is computed on
one window at a time.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import pytest
import torch
from torch import nn

from bertqa.explain.hooks import attention_names, hidden_state_names, record
from bertqa.model import kernels
from bertqa.model.bert import (
    BertForQuestionAnswering,
    BertOutput,
    FeedForward,
    window_losses,
)
from bertqa.model.config import BertConfig
from bertqa.model.names import checkpoint_name
from bertqa.model.packing import PackedBatch, pad_windows
from bertqa.training.optim import make_optimizer, set_learning_rate
from tests.helpers import (
    LENGTHS,
    TINY,
    TheirModel,
    our_batch,
    our_model,
    random_windows,
    their_batch,
    their_model,
    unpadded,
)

assert_close = partial(torch.testing.assert_close, rtol=1e-5, atol=1e-5)

# Labels of the windows of LENGTHS: inside, at both ends, and [CLS].
STARTS = torch.tensor([2, 30, 0, 0, 63])
ENDS = torch.tensor([4, 32, 0, 0, 63])

SIZES: dict[str, dict[str, object]] = {
    "tiny": {},
    "one layer": {"num_hidden_layers": 1},
    "one head": {"num_attention_heads": 1},
    "heads of one number": {"hidden_size": 6, "num_attention_heads": 6},
    "hidden 8": {"hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 3},
    "wide feed-forward": {"intermediate_size": 151, "type_vocab_size": 3, "vocab_size": 113},
    "large eps": {"layer_norm_eps": 0.3},
}


@dataclass
class Pair:
    """Two models with the same weights."""

    theirs: TheirModel
    ours: BertForQuestionAnswering


@pytest.fixture(
    scope="module",
    params=[(size, attention) for size in SIZES for attention in ("eager", "sdpa")],
    ids=" ".join,
)
def pair(request, tmp_path_factory) -> Pair:
    size, attention = request.param
    theirs = their_model(attention, **SIZES[size])
    return Pair(theirs, our_model(theirs, tmp_path_factory.mktemp("pair")))


@pytest.fixture
def tiny(tmp_path) -> Pair:
    theirs = their_model()
    return Pair(theirs, our_model(theirs, tmp_path))


@pytest.fixture
def ours(tiny) -> BertForQuestionAnswering:
    return tiny.ours


@pytest.fixture
def batch() -> PackedBatch:
    return our_batch(*random_windows())


def with_hidden_states(
    model: BertForQuestionAnswering, batch: PackedBatch
) -> tuple[BertOutput, list[torch.Tensor]]:
    names = hidden_state_names(model)
    with record(model, names) as seen:
        output = model(batch)
    return output, [seen[name] for name in names]


def their_loss(theirs: TheirModel, twice: bool = True) -> torch.Tensor:
    """Return the mean of their loss on single windows, doubled to be a sum as ours."""
    losses = []
    windows = zip(*random_windows(), STARTS, ENDS, strict=True)
    for ids, types, start, end in windows:
        labels = {"start_positions": start[None], "end_positions": end[None]}
        losses.append(theirs(**their_batch([ids], [types]), **labels).loss)
    return torch.stack(losses).mean() * (2 if twice else 1)


def our_loss(ours: BertForQuestionAnswering, batch: PackedBatch) -> torch.Tensor:
    return window_losses(ours(batch), batch.lengths, STARTS, ENDS).mean()


def gradients(model: nn.Module, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return the gradient of every parameter, by its name in a checkpoint."""
    names, parameters = zip(*model.named_parameters(), strict=True)
    found = torch.autograd.grad(loss, parameters)
    is_ours = isinstance(model, BertForQuestionAnswering)
    return {checkpoint_name(n) if is_ours else n: g for n, g in zip(names, found, strict=True)}


def parameters(model: nn.Module) -> dict[str, torch.Tensor]:
    is_ours = isinstance(model, BertForQuestionAnswering)
    return {
        checkpoint_name(name) if is_ours else name: parameter.detach().clone()
        for name, parameter in model.named_parameters()
    }


def has_no_gradient(name: str, ours: BertForQuestionAnswering) -> bool:
    """Return whether a parameter only shifts the inputs of a softmax, so that its gradient is 0.

    The bias of the keys shifts all attention scores of a query equally; the biases of the head and
    of the last LayerNorm shift all logits equally. Their gradients are rounding errors.
    """
    last = f"bert.encoder.layer.{ours.config.num_hidden_layers - 1}.output.LayerNorm.bias"
    return name.endswith("self.key.bias") or name in ("qa_outputs.bias", last)


def assert_same(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor], **bounds) -> None:
    """Compare all tensors by name; a failure names the tensor."""
    assert set(ours) == set(theirs)
    for name, tensor in ours.items():
        assert_close(tensor, theirs[name], msg=lambda text, n=name: f"{n}: {text}", **bounds)


# --- against transformers ------------------------------------------------------------------------


def test_hidden_states_and_logits(pair, batch):
    ours, states = with_hidden_states(pair.ours, batch)
    theirs = pair.theirs(**their_batch(*random_windows()), output_hidden_states=True)
    assert len(states) == len(theirs.hidden_states)
    for our_state, their_state in zip(states, theirs.hidden_states, strict=True):
        assert_close(our_state, unpadded(their_state))
    assert_close(pair.ours.embeddings(batch), unpadded(theirs.hidden_states[0]))
    assert_close(ours.start_logits, unpadded(theirs.start_logits))
    assert_close(ours.end_logits, unpadded(theirs.end_logits))


@pytest.mark.parametrize("size", SIZES)
def test_attention_probabilities(size, tmp_path, batch):
    theirs = their_model(**SIZES[size])
    model = our_model(theirs, tmp_path)
    with record(model, attention_names(model)) as seen:
        model(batch)
    ours = [seen[name] for name in attention_names(model)]
    padded = theirs(**their_batch(*random_windows()), output_attentions=True).attentions
    assert len(ours) == len(padded) == theirs.config.num_hidden_layers
    for our_layer, their_layer in zip(ours, padded, strict=True):
        for window, (our_window, length) in enumerate(zip(our_layer, LENGTHS, strict=True)):
            assert_close(our_window, their_layer[window, :, :length, :length], rtol=1e-5, atol=1e-6)


def test_loss_is_twice_theirs(pair, batch):
    assert_close(our_loss(pair.ours, batch), their_loss(pair.theirs))


def test_gradient_of_every_parameter(pair, batch):
    ours = gradients(pair.ours, our_loss(pair.ours, batch))
    theirs = gradients(pair.theirs, their_loss(pair.theirs))
    assert_same(ours, theirs, atol=3e-6)
    # Equal gradients could all be zero, so check that only these are.
    for name, gradient in ours.items():
        largest = gradient.abs().max()
        assert largest < 1e-6 if has_no_gradient(name, pair.ours) else largest > 1e-4, name


@pytest.mark.parametrize("change", ["epsilon doubled", "gradient halved"])
def test_adamw_steps(tiny, batch, change):
    """Our gradient is twice theirs, and so are AdamW's m and sqrt(v).

    The step m / (sqrt(v) + eps) then equals theirs if eps is doubled or the gradient halved. The
    eps here is about as large as the gradients, so that it matters, and so that gradients that are
    only rounding errors cause no steps.
    """
    epsilon, decay, rates = 1e-2, 0.3, (0.05, 0.03, 0.01)
    no_decay = ("bias", "LayerNorm.weight")  # as in run_qa
    groups = [
        [p for n, p in tiny.theirs.named_parameters() if not n.endswith(no_decay)],
        [p for n, p in tiny.theirs.named_parameters() if n.endswith(no_decay)],
    ]
    theirs = torch.optim.AdamW(
        [
            {"params": groups[0], "weight_decay": decay},
            {"params": groups[1], "weight_decay": 0.0},
        ],
        eps=epsilon,
        fused=False,
    )
    factor = 2.0 if change == "epsilon doubled" else 1.0
    ours = make_optimizer(tiny.ours, decay, epsilon * factor)
    before = parameters(tiny.ours)
    for rate in rates:
        (our_loss(tiny.ours, batch) * (factor / 2)).backward()
        their_loss(tiny.theirs, twice=False).backward()
        set_learning_rate(ours, rate)
        for group in theirs.param_groups:
            group["lr"] = rate
        for optimizer in (ours, theirs):
            optimizer.step()
            optimizer.zero_grad()
    after = parameters(tiny.ours)
    assert_same(after, parameters(tiny.theirs))
    for name, parameter in after.items():
        moved = (parameter - before[name]).abs().max()
        assert moved < 1e-4 if has_no_gradient(name, tiny.ours) else moved > 1e-3, name


@pytest.mark.parametrize("implementation", ["fused", "reference"])
def test_dropout_is_applied_where_theirs_is(tmp_path, batch, monkeypatch, implementation):
    """With a constant factor instead of random masks, training equals theirs.

    The two dropout rates differ, so that exchanging them fails.
    """

    def their_dropout(x, p=0.5, training=True, inplace=False):
        return x * (1 - p) if training else x

    rates = {"hidden_dropout_prob": 0.3, "attention_probs_dropout_prob": 0.6}
    theirs = their_model(**rates).train()
    ours = our_model(theirs, tmp_path).train()
    ours.set_attention_implementation(implementation)
    in_eval = ours.eval()(batch).start_logits
    ours.train()
    monkeypatch.setattr(nn.functional, "dropout", their_dropout)

    def keep_all(shape, rate):
        return torch.full(shape, -1, dtype=torch.int16), 1 - rate

    monkeypatch.setattr(kernels, "keep_mask", keep_all)
    assert (ours(batch).start_logits - in_eval).abs().max() > 0.1
    expected = theirs(**their_batch(*random_windows()))
    assert_close(ours(batch).start_logits, unpadded(expected.start_logits))
    assert_close(ours(batch).end_logits, unpadded(expected.end_logits))
    assert_same(gradients(ours, our_loss(ours, batch)), gradients(theirs, their_loss(theirs)))


def test_default_layer_norm_eps_is_berts():
    assert BertConfig().layer_norm_eps == 1e-12


# --- the parts -----------------------------------------------------------------------------------


def test_S_and_E_are_rows_0_and_1(tiny, batch):
    ours, theirs = tiny.ours, tiny.theirs
    assert torch.equal(ours.head.S, theirs.qa_outputs.weight[0])
    assert torch.equal(ours.head.E, theirs.qa_outputs.weight[1])
    output, (*_, last) = with_hidden_states(ours, batch)
    assert_close(output.start_logits, last @ ours.head.S + theirs.qa_outputs.bias[0])
    assert_close(output.end_logits, last @ ours.head.E + theirs.qa_outputs.bias[1])


def test_gelu_is_the_erf_form():
    values = [x / 8 for x in range(-40, 41)]
    feed_forward = FeedForward(
        BertConfig(hidden_size=9, intermediate_size=9, num_attention_heads=1)
    )
    for linear in (feed_forward.up, feed_forward.down):
        nn.init.eye_(linear.weight)
        nn.init.zeros_(linear.bias)
    exact = [x * (1 + math.erf(x / math.sqrt(2))) / 2 for x in values]
    found = feed_forward(torch.tensor(values).view(9, 9)).flatten()
    # The tanh form is off by up to 5e-4.
    assert_close(found, torch.tensor(exact), rtol=0, atol=1e-6)


def test_initial_weights():
    """Normal with the config's standard deviation, biases 0, LayerNorm the identity."""
    torch.manual_seed(0)
    config = BertConfig(**(TINY | {"hidden_size": 64, "initializer_range": 0.05}))
    drawn = []
    for name, parameter in BertForQuestionAnswering(config).named_parameters():
        if name.endswith("bias"):
            assert not parameter.any(), name
        elif parameter.ndim == 1:
            assert (parameter == 1).all(), name
        else:
            tolerance = 5 * 0.05 / math.sqrt(2 * parameter.numel())
            assert abs(parameter.std().item() - 0.05) < tolerance, name
            drawn.append(parameter.detach().flatten()[:64])
    assert len(drawn) == 3 + 6 * config.num_hidden_layers + 1
    assert len(torch.stack(drawn).unique(dim=0)) == len(drawn)  # no two alike


def by_hand(logits: list[float], label: int) -> float:
    """Return the cross-entropy loss."""
    top = max(logits)
    return math.log(sum(math.exp(x - top) for x in logits)) - (logits[label] - top)


@pytest.mark.parametrize("scale", [1.0, 400.0])
def test_window_losses_by_hand(scale):
    generator = torch.Generator().manual_seed(3)
    start_logits, end_logits = torch.randn(2, sum(LENGTHS), generator=generator) * scale
    expected, first = [], 0
    for length, start, end in zip(LENGTHS, STARTS.tolist(), ENDS.tolist(), strict=True):
        window = slice(first, first + length)
        expected.append(
            by_hand(start_logits[window].tolist(), start)
            + by_hand(end_logits[window].tolist(), end)
        )
        first += length
    output = BertOutput(start_logits, end_logits)
    assert_close(window_losses(output, LENGTHS, STARTS, ENDS), torch.tensor(expected))
    assert len(set(expected)) == len(LENGTHS)


# --- windows are independent ---------------------------------------------------------------------


@pytest.fixture(params=["fused", "reference"])
def either(request, ours) -> BertForQuestionAnswering:
    ours.set_attention_implementation(request.param)
    return ours


def split_logits(model: BertForQuestionAnswering, ids, types) -> list[torch.Tensor]:
    """Return both logits of each window, ``(2, L)``."""
    batch = our_batch(ids, types)
    output = model(batch)
    return list(
        torch.stack([output.start_logits, output.end_logits]).split(list(batch.lengths), dim=1)
    )


def test_a_single_window_and_a_batch(either):
    ids, types = random_windows()
    together = split_logits(either, ids, types)
    for i in range(len(ids)):
        [single] = split_logits(either, ids[i : i + 1], types[i : i + 1])
        assert_close(single, together[i])


def test_the_order_of_the_windows(either):
    ids, types = random_windows()
    order = [3, 0, 4, 2, 1]
    in_order = split_logits(either, ids, types)
    mixed = split_logits(either, [ids[i] for i in order], [types[i] for i in order])
    for position, i in enumerate(order):
        assert_close(mixed[position], in_order[i])


def test_the_contents_of_other_windows(either):
    ids, types = random_windows()
    before = split_logits(either, ids, types)
    for changed in range(len(ids)):
        others = [row if i == changed else row[::-1] for i, row in enumerate(ids)]
        others = [[(t + (i != changed)) % 101 for t in row] for i, row in enumerate(others)]
        after = split_logits(either, others, types)
        assert_close(after[changed], before[changed], rtol=0, atol=1e-6)
        assert not any(
            torch.allclose(after[i], before[i], atol=1e-3) for i in range(len(ids)) if i != changed
        )


# --- the implementations of attention ------------------------------------------------------------


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
def test_fused_and_reference_attention(ours, batch, training):
    """With the same seed, dropout masks are also the same."""
    ours.train(training)
    results = []
    for implementation in ("fused", "reference"):
        ours.set_attention_implementation(implementation)
        torch.manual_seed(5)
        output, states = with_hidden_states(ours, batch)
        found = gradients(ours, window_losses(output, batch.lengths, STARTS, ENDS).mean())
        results.append(([*states, *output], found))
    (fused_numbers, fused_gradients), (reference_numbers, reference_gradients) = results
    for a, b in zip(fused_numbers, reference_numbers, strict=True):
        assert_close(a, b)
    assert_same(fused_gradients, reference_gradients)


def test_dropout_acts_only_in_training(ours, batch):
    first, second = ours.eval()(batch), ours(batch)
    assert torch.equal(first.start_logits, second.start_logits)
    ours.train()
    first, second = ours(batch), ours(batch)
    assert (first.start_logits - second.start_logits).abs().max() > 1e-2


@pytest.fixture
def calls(monkeypatch) -> Iterator[list[float]]:
    """The dropout rates of all calls of the CPU's fused attention."""
    rates: list[float] = []
    fused = kernels.cpu_attention

    def counted(query, key, value, batch, rate):
        rates.append(rate)
        return fused(query, key, value, batch, rate)

    monkeypatch.setattr(kernels, "cpu_attention", counted)
    return rates


def test_which_attention_runs(ours, batch, calls):
    ours(batch)
    assert calls == [0.0] * 3  # one for each layer; no dropout in eval
    ours.train()(batch)
    assert calls[3:] == [0.1] * 3
    calls.clear()
    with record(ours, ["layers.1.attention.probabilities"]):
        ours(batch)
    assert len(calls) == 2  # the two layers that are not recorded
    ours.set_attention_implementation("reference")
    ours(batch)
    assert len(calls) == 2
    ours.set_attention_implementation("fused")
    ours(batch)
    assert len(calls) == 5
    with pytest.raises(ValueError, match="must be fused or reference, got 'fast'"):
        ours.set_attention_implementation("fast")


# --- bfloat16 ------------------------------------------------------------------------------------


def distance(a: torch.Tensor, b: torch.Tensor) -> float:
    return ((a.float() - b).norm() / b.norm()).item()


@pytest.mark.parametrize("implementation", ["fused", "reference"])
def test_bf16_autocast_is_close(ours, batch, implementation):
    ours.set_attention_implementation(implementation)
    exact = ours(batch)
    exact_gradients = gradients(ours, our_loss(ours, batch))
    with torch.autocast("cpu", torch.bfloat16):
        half = ours(batch)
    assert half.start_logits.dtype == half.end_logits.dtype == torch.float32
    assert 0 < distance(half.start_logits, exact.start_logits) < 0.03
    assert 0 < distance(half.end_logits, exact.end_logits) < 0.03
    half_gradients = gradients(ours, window_losses(half, batch.lengths, STARTS, ENDS).mean())
    for name, gradient in half_gradients.items():
        assert gradient.dtype == torch.float32
        if not has_no_gradient(name, ours):
            assert distance(gradient, exact_gradients[name]) < 0.1, name


def test_head_is_never_rounded(ours):
    """Its logits are float32, whatever the precision of the model."""
    hidden = torch.randn(7, 36, generator=torch.Generator().manual_seed(0))
    exact = ours.head(hidden)
    with torch.autocast("cpu", torch.bfloat16):
        within = ours.head(hidden)
    assert torch.equal(exact[0], within[0]) and torch.equal(exact[1], within[1])
    converted = ours.head.bfloat16()(hidden.bfloat16())
    assert converted[0].dtype == torch.float32
    weight, bias = ours.head.weight.float(), ours.head.bias.float()
    assert_close(converted[0], hidden.bfloat16().float() @ weight[0] + bias[0])


# --- packing -------------------------------------------------------------------------------------


def test_packing_lays_windows_end_to_end():
    batch = PackedBatch.from_windows([[7, 8, 9], [5], [6, 4]], [[0, 0, 1], [0], [0, 1]])
    assert batch.input_ids.tolist() == [7, 8, 9, 5, 6, 4]
    assert batch.token_type_ids.tolist() == [0, 0, 1, 0, 0, 1]
    assert batch.position_ids.tolist() == [0, 1, 2, 0, 0, 1]
    assert batch.lengths == (3, 1, 2)
    assert batch.cumulative_lengths.tolist() == [0, 3, 4, 6]
    assert batch.cumulative_lengths.dtype == torch.int32
    assert batch.input_ids.dtype == batch.token_type_ids.dtype == torch.int64


@pytest.mark.parametrize("lengths", [(3, 2), (3, 4), (3, 3, 0), (7, -1), ()])
def test_lengths_must_sum_to_the_tokens(lengths):
    ids = torch.arange(6)
    with pytest.raises(ValueError, match="sum to 6 tokens, got"):
        PackedBatch(ids, torch.zeros_like(ids), ids, lengths)


def test_a_packed_batch_moves_to_a_device(batch):
    assert batch.to(torch.device("cpu")) is batch
    moved = batch.to(torch.device("meta"))
    fields = (moved.input_ids, moved.token_type_ids, moved.position_ids)
    assert {x.device.type for x in fields} == {"meta"}
    assert {x.shape for x in fields} == {(sum(LENGTHS),)}
    assert moved.lengths == batch.lengths


def test_pad_windows():
    padded = pad_windows(torch.tensor([1.0, 2, 3, 4, 5, 6]), (1, 3, 2), -math.inf)
    none = -math.inf
    assert padded.tolist() == [[1, none, none], [2, 3, 4], [5, 6, none]]
