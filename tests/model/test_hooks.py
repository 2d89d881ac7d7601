"""Every module of the model is called: hooks fire, and replaced modules take effect."""

import copy
import re
from collections import Counter
from collections.abc import Callable
from contextlib import nullcontext
from functools import wraps
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.module import (
    register_module_forward_hook,
    register_module_forward_pre_hook,
    register_module_full_backward_hook,
)
from torch.nn.utils import parametrize
from torch.utils.hooks import RemovableHandle

from bertqa.errors import UserError
from bertqa.model import kernels
from bertqa.model.bert import (
    AttentionProbabilities,
    BertForQuestionAnswering,
    Dropout,
    FeedForward,
    window_losses,
)
from bertqa.model.checkpoint import check_saveable, load_checkpoint, save_model
from bertqa.model.config import BertConfig
from bertqa.model.cpu_inference import (
    Int8Linear,
    PrepackedLinear,
    can_prepack,
    is_prepacked,
    prepare_for_inference,
)
from bertqa.model.kernels import JointPart, linears
from bertqa.model.packing import PackedBatch
from tests.helpers import LENGTHS, TINY
from tests.model.conftest import scores

CPU = torch.device("cpu")
POSITIONS = [
    "attention.query", "attention.key", "attention.value", "attention.output",
    "feed_forward.up", "feed_forward.down",
]  # fmt: skip
LAYER = "layers.1."  # the middle one of the three layers in these tests

# Modes of a model: training, eval, or made ready for inference in a precision.
READY = {
    "fp32": (torch.float32, False),
    "bf16": (torch.bfloat16, False),
    "int8": (torch.float32, True),
}
WAYS = ["train", "eval", *READY]
AVAILABLE = [name for name, (dtype, int8) in READY.items() if can_prepack(CPU, dtype, int8)]
needs_prepacking = pytest.mark.skipif(not AVAILABLE, reason="this torch has no oneDNN")


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest) -> str:
    if request.param in READY and request.param not in AVAILABLE:
        pytest.skip("this processor cannot")
    return request.param


def made_ready(model: BertForQuestionAnswering, way: str) -> BertForQuestionAnswering:
    if way in READY:
        dtype, int8 = READY[way]
        return prepare_for_inference(model, CPU, dtype, int8=int8)
    return model.train(way == "train")


def near(values: Tensor, way: str) -> dict[str, float]:
    """Return tolerances for rounding errors."""
    rounds = way in ("bf16", "int8")
    return {"rtol": 0, "atol": 0.05 * float(values.abs().max()) if rounds else 1e-5}


def called(model: nn.Module) -> list[str]:
    """Return the names of modules that have a forward."""
    return [name for name, module in model.named_modules() if not isinstance(module, nn.ModuleList)]


def wanted_calls(name: str) -> int:
    """Return how often one forward pass calls a module."""
    if re.search(r"attention\.(probabilities|dropout)$", name):
        return len(LENGTHS)
    return 2 if re.fullmatch(r"layers\.\d\.dropout", name) else 1


# --- hooks ---------------------------------------------------------------------------------------


def test_a_hook_on_every_module_fires(model, batch, way):
    """Hooks change logits only by rounding."""
    model = made_ready(model, way)
    plain, names = scores(model, batch), called(model)
    assert len(names) == 8 + 14 * 3 + (3 if is_prepacked(model) else 0)
    calls: Counter[tuple[str, str]] = Counter()

    def hook(name: str) -> list[RemovableHandle]:
        module = model.get_submodule(name)
        return [
            module.register_forward_pre_hook(lambda *_: calls.update([("before", name)])),
            module.register_forward_hook(lambda *_: calls.update([("after", name)])),
        ]

    for name in names:
        hooks = hook(name)
        torch.testing.assert_close(scores(model, batch), plain, **near(plain, way), msg=name)
        for handle in hooks:
            handle.remove()
    wanted = {(when, name): wanted_calls(name) for when in ("before", "after") for name in names}
    assert calls == wanted
    assert torch.equal(scores(model, batch), plain)  # fused again
    calls.clear()
    for name in names:
        hook(name)
    torch.testing.assert_close(scores(model, batch), plain, **near(plain, way))
    # The joint product of query, key and value is computed for each of them.
    assert calls == {key: 3 if key[1].endswith(".joint") else n for key, n in wanted.items()}


@pytest.mark.parametrize("position", POSITIONS)
def test_the_result_of_a_hook_is_used(model, batch, way, position):
    model = made_ready(model, way)
    plain = scores(model, batch)
    module = model.get_submodule(LAYER + position)
    for register, change in (
        (module.register_forward_hook, lambda module, args, output: torch.zeros_like(output)),
        (module.register_forward_pre_hook, lambda module, args: torch.zeros_like(args[0])),
    ):
        hook = register(change)
        assert (scores(model, batch) - plain).abs().max() > 1e-2
        hook.remove()
    assert torch.equal(scores(model, batch), plain)


def loss_of(model: BertForQuestionAnswering, batch: PackedBatch) -> Tensor:
    starts, ends = torch.zeros(2, len(LENGTHS), dtype=torch.int64)
    return window_losses(model(batch), LENGTHS, starts, ends).mean()


def test_a_backward_hook_on_every_module_fires(model, batch):
    parameters = list(model.parameters())
    plain = torch.autograd.grad(loss_of(model, batch), parameters)
    for name in called(model):
        if re.search(r"embeddings\.(word|position|token_type)$|^embeddings$|^$", name):
            continue  # their inputs have no gradient
        module, calls = model.get_submodule(name), Counter()
        hooks = [
            module.register_full_backward_pre_hook(lambda *_, calls=calls: calls.update(["pre"])),
            module.register_full_backward_hook(lambda *_, calls=calls: calls.update(["full"])),
        ]
        found = torch.autograd.grad(loss_of(model, batch), parameters)
        for hook in hooks:
            hook.remove()
        assert calls == {"pre": wanted_calls(name), "full": wanted_calls(name)}, name
        torch.testing.assert_close(found, plain, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "register",
    [register_module_forward_hook, register_module_forward_pre_hook,
     register_module_full_backward_hook],
)  # fmt: skip
@pytest.mark.filterwarnings("ignore:Full backward hook is firing")
def test_global_hooks_fire_for_every_module(model, batch, register):
    names = {module: name for name, module in model.named_modules()}
    calls: Counter[str] = Counter()

    def see(module: nn.Module, *_: Any) -> None:
        if module in names:
            calls.update([names[module]])

    plain = torch.stack(tuple(model(batch)))
    hook = register(see)
    try:
        found = torch.stack(tuple(model(batch)))
        found.sum().backward()
    finally:
        hook.remove()
    for name in called(model):
        assert calls[name] == wanted_calls(name), name
    torch.testing.assert_close(found, plain, rtol=0, atol=1e-5)


# --- replaced modules ----------------------------------------------------------------------------


class Wrapper(nn.Module):
    """A module that contains another one, without its attributes."""

    def __init__(self, base: Any) -> None:
        super().__init__()
        self.base = base


class LowRank(Wrapper):
    """``base(x) + x A B``, as in LoRA."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__(base)
        generator = torch.Generator().manual_seed(base.in_features)
        self.a = nn.Parameter(torch.randn(base.in_features, 2, generator=generator) * 0.3)
        self.b = nn.Parameter(torch.randn(2, base.out_features, generator=generator) * 0.3)

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + x @ self.a @ self.b

    def merged(self) -> nn.Linear:
        linear = copy.deepcopy(self.base)
        with torch.no_grad():
            linear.weight += (self.a @ self.b).T
        return linear


def put(model: nn.Module, name: str, make: Callable[[Any], nn.Module]) -> None:
    """Replace a module by ``make(module)``."""
    parent, _, leaf = name.rpartition(".")
    holder = model.get_submodule(parent)
    setattr(holder, leaf, make(getattr(holder, leaf)))


class Negated(nn.Module):
    """A parametrization."""

    def forward(self, weight: Tensor) -> Tensor:
        return -weight


def negate_weight(linear: nn.Linear) -> nn.Module:
    return parametrize.register_parametrization(linear, "weight", Negated())


def replace_forward(linear: nn.Linear) -> nn.Module:
    linear.forward = lambda x: F.linear(x, -linear.weight, linear.bias)  # type: ignore[method-assign]
    return linear


class NegatedLinear(nn.Linear):
    """A subclass with the same weights."""

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, -self.weight, self.bias)


def subclass(linear: nn.Linear) -> nn.Module:
    other = NegatedLinear(linear.in_features, linear.out_features)
    other.load_state_dict(linear.state_dict())
    return other


class OwnWeight(torch.Tensor):
    """A weight that defines its own product, as quantized ones do."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.linear:
            x, weight, bias = args
            return F.linear(x, -weight.as_subclass(Tensor), bias)
        return super().__torch_function__(func, types, args, kwargs or {})


def own_weight(linear: nn.Linear) -> nn.Module:
    linear.weight = nn.Parameter(linear.weight.detach().as_subclass(OwnWeight))
    assert not kernels.is_plain_linear(linear)
    return linear


def without_bias(linear: nn.Linear) -> nn.Module:
    linear.bias = None
    return linear


@torch.no_grad()
def negated(linear: nn.Linear) -> nn.Module:
    linear.weight.neg_()
    return linear


def zero_bias(linear: nn.Linear) -> nn.Module:
    nn.init.zeros_(linear.bias)
    return linear


def merged(linear: nn.Linear) -> nn.Module:
    return LowRank(linear).merged()


# Replacements of a linear layer, and the plain layer that computes the same.
CHANGES = [
    (LowRank, merged),
    (negate_weight, negated),
    (replace_forward, negated),
    (subclass, negated),
    (own_weight, negated),
    (without_bias, zero_bias),
]


@pytest.mark.parametrize(("change", "plain"), CHANGES, ids=lambda change: change.__name__)
@pytest.mark.parametrize("position", POSITIONS)
def test_a_changed_linear_layer_acts(model, batch, way, position, change, plain):
    if change is own_weight and way in ("bf16", "int8"):
        pytest.skip("conversion to another precision replaces the weight")
    expected, before = copy.deepcopy(model), scores(made_ready(copy.deepcopy(model), way), batch)
    put(expected, LAYER + position, plain)
    put(model, LAYER + position, change)
    found, wanted = scores(made_ready(model, way), batch), scores(made_ready(expected, way), batch)
    if plain is not zero_bias:  # the bias of the keys has no effect
        assert (found - before).abs().max() > 0.05
    bound = 1e-4 if way not in ("bf16", "int8") else 0.05 * float(wanted.abs().max())
    torch.testing.assert_close(found, wanted, rtol=0, atol=bound)


@needs_prepacking
@pytest.mark.parametrize("name", AVAILABLE)
@pytest.mark.parametrize("position", POSITIONS)
def test_layers_that_are_not_wrapped_are_prepacked(model, position, name):
    put(model, LAYER + position, LowRank)
    ready = made_ready(model, name)
    kind = Int8Linear if name == "int8" else PrepackedLinear
    for other in POSITIONS:
        module = ready.get_submodule(LAYER + other)
        if other == position:
            assert type(module) is LowRank and type(module.base) is nn.Linear
        elif other in POSITIONS[:3] and position not in POSITIONS[:3]:
            assert type(module) is JointPart and type(module.joint) is kind
        else:
            assert type(module) is kind
    assert is_prepacked(ready)


class Doubled(Wrapper):
    """A wrapper that doubles the output."""

    def forward(self, *args: Any) -> Any:
        output = self.base(*args)
        return tuple(2 * x for x in output) if isinstance(output, tuple) else 2 * output


def test_a_wrapper_of_any_module_acts(model, batch, way):
    if way == "int8":
        pytest.skip("as with fp32")
    plain = scores(made_ready(copy.deepcopy(model), way), batch)
    for name in called(model):
        if name == "" or (way != "train" and re.fullmatch(".*dropout", name)):
            continue
        other = copy.deepcopy(model)
        put(other, name, Doubled)
        moved = (scores(made_ready(other, way), batch) - plain).abs().max()
        assert moved > 1e-2, name


@pytest.mark.parametrize("kind", [AttentionProbabilities, Dropout, nn.Linear, JointPart])
@pytest.mark.parametrize("named", [False, True], ids=["another name", "its name"])
def test_a_forward_replaced_on_a_class_is_called(model, batch, monkeypatch, kind, named):
    if kind is JointPart:
        if not AVAILABLE:
            pytest.skip("this torch has no oneDNN")
        model = made_ready(model, "fp32")
    plain, forward = scores(model, batch), kind.forward
    calls: Counter[int] = Counter()

    def counted(self: nn.Module, *args: Tensor) -> Tensor:
        calls.update([id(self)])
        return forward(self, *args)

    monkeypatch.setattr(kind, "forward", wraps(forward)(counted) if named else counted)
    torch.testing.assert_close(scores(model, batch), plain, rtol=0, atol=1e-5)
    assert calls.keys() == {id(m) for m in model.modules() if type(m) is kind}
    monkeypatch.undo()
    calls.clear()
    assert torch.equal(scores(model, batch), plain) and not calls


def test_parts_of_different_products_are_computed_apart():
    """Prepacked layers that were moved still compute their own part."""
    torch.manual_seed(0)
    products = nn.Linear(5, 6), nn.Linear(5, 6)
    a, b = ([JointPart(product, number, [2, 2, 2]) for number in range(3)] for product in products)
    x = torch.randn(4, 5)
    for layers in (a, a[::-1], [a[0]] * 3, [a[0], b[1], a[2]], a[:2]):
        torch.testing.assert_close(list(linears(x, layers)), [layer(x) for layer in layers])


# --- precisions ----------------------------------------------------------------------------------


class Scaled(Wrapper):
    """Always gives float32: its factor is not a parameter, so it is not converted."""

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) * torch.full((self.base.out_features,), 1.5)


class OnlyFloat32(Wrapper):
    """Rejects other inputs, as dynamically quantized layers do."""

    def forward(self, x: Tensor) -> Tensor:
        assert x.dtype is torch.float32
        return 1.5 * F.linear(x, self.base.weight, self.base.bias)


@needs_prepacking
@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("name", [name for name in AVAILABLE if name != "fp32"])
@pytest.mark.parametrize("kind", [Scaled, OnlyFloat32])
@pytest.mark.parametrize("position", POSITIONS)
def test_a_wrapper_of_float32_answers_in_other_precisions(
    model, batch, position, kind, name, autocast
):
    # int8 as in QuestionAnswerer on processors with native bfloat16.
    dtype, int8 = (torch.bfloat16, True) if name == "int8" else READY[name]
    put(model, LAYER + position, kind)
    expected = scores(model, batch)
    ready = prepare_for_inference(model, CPU, dtype, int8=int8)
    with torch.autocast("cpu", dtype) if autocast else nullcontext():
        found = scores(ready, batch)
    assert (found - expected).norm() / expected.norm() < 0.1
    assert next(ready.get_submodule(LAYER + position).parameters()).dtype is torch.float32
    assert prepare_for_inference(ready, CPU, dtype, int8=int8) is ready


def test_a_model_of_wrappers_is_made_ready_once(model, batch):
    """It has no prepacked layers, so it stores that it is ready."""
    for layer in range(len(model.layers)):
        for position in POSITIONS:
            put(model, f"layers.{layer}.{position}", OnlyFloat32)
    ready = prepare_for_inference(model, CPU, torch.bfloat16)
    assert not is_prepacked(ready)
    expected = scores(ready, batch)
    again = prepare_for_inference(copy.deepcopy(ready), CPU, torch.bfloat16)
    assert torch.equal(scores(again, batch), expected)
    assert len(again.layers[0].attention.query._forward_hooks) == 1
    for other in (
        {"dtype": torch.float32},
        {"dtype": torch.bfloat16, "int8": True} if "int8" in AVAILABLE else {"dtype": torch.half},
    ):
        with pytest.raises(ValueError, match="made ready in another precision: load it again"):
            prepare_for_inference(ready, CPU, **other)
    assert torch.equal(scores(ready, batch), expected)


@pytest.mark.parametrize(("kind", "is_bf16"), [(LowRank, False), (Scaled, True)])
@pytest.mark.parametrize("position", POSITIONS)
def test_a_wrapper_is_trained(model, batch, position, kind, is_bf16):
    put(model, LAYER + position, kind)
    model.train()
    with torch.autocast("cpu", torch.bfloat16, enabled=is_bf16):
        loss = loss_of(model, batch)
    loss.backward()
    for parameter in model.get_submodule(LAYER + position).parameters():
        assert parameter.grad.isfinite().all() and (is_bf16 or parameter.grad.any())


# --- saving --------------------------------------------------------------------------------------


def linear(number: int, name: str, make: Callable[[Any], nn.Module]) -> Callable[[nn.Module], None]:
    return lambda model: put(model, f"layers.{number}.{name}", make)


REFUSALS: dict[str, tuple[Callable[[Any], object], str]] = {
    "wrapper": (linear(0, "attention.query", LowRank), "layers.0.attention.query .* got LowRank"),
    "subclass": (linear(2, "feed_forward.up", subclass), "layers.2.feed_forward.up .* NegatedLi"),
    "parametrized": (
        linear(1, "attention.output", negate_weight), "layers.1.attention.output .* Parametrized",
    ),
    "around a layer": (
        lambda m: put(m, "layers.1", Doubled), "layers.1 must be Layer, got Doubled",
    ),
    "another forward": (
        lambda m: replace_forward(m.layers[0].attention.key), "forward of layers.0.attention.key ",
    ),
    "another forward of the whole": (
        lambda m: setattr(m, "forward", lambda batch: None), "forward of the model itself",
    ),
    "head": (lambda m: put(m, "head", Doubled), "head must be SpanHead, got Doubled"),
    "a layer less": (lambda m: m.layers.__delitem__(2), "layers.2 must be Layer, got nothing"),
    "more words": (
        lambda m: put(m, "embeddings.word", lambda _: nn.Embedding(105, 36)),
        r"embeddings.word.weight .* \(101, 36\), got \(105, 36\)",
    ),
    "no bias": (linear(0, "feed_forward.down", without_bias), "layers.0.feed_forward.down.bias "),
    "additional module": (
        lambda m: m.layers[0].add_module("adapter", nn.Linear(2, 2)),
        "layers.0.adapter must be nothing, got Linear",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("change", "words"), REFUSALS.values(), ids=REFUSALS)
def test_a_module_that_cannot_be_saved_is_named(model, tmp_path, change, words):
    check_saveable(model)
    change(model)
    with pytest.raises(UserError, match=words):
        check_saveable(model)
    with pytest.raises(UserError, match=words):
        save_model(tmp_path / "folder", model)
    assert not (tmp_path / "folder").exists()


def test_a_merged_and_a_hooked_model_are_saved(model, batch, tmp_path):
    """Hooks are not saved."""
    put(model, LAYER + "attention.query", merged)
    model.layers[0].register_forward_hook(lambda *_: None)
    save_model(tmp_path, model)
    loaded, _ = load_checkpoint(tmp_path)
    torch.testing.assert_close(scores(loaded, batch), scores(model, batch), rtol=0, atol=1e-5)


def test_a_subclass_of_the_whole_model_is_saved(tmp_path):
    class Mine(BertForQuestionAnswering):
        pass

    save_model(tmp_path, Mine(BertConfig(**TINY)))
    assert type(load_checkpoint(tmp_path)[0]) is BertForQuestionAnswering


def test_a_subclass_of_a_part_is_not_prepacked(model, batch):
    """It may use its layers differently."""

    class Swish(FeedForward):
        def forward(self, hidden: Tensor) -> Tensor:
            return F.linear(F.silu(self.up(hidden)), self.down.weight, self.down.bias)

    own = Swish(model.config)
    own.load_state_dict(model.layers[1].feed_forward.state_dict())
    model.layers[1].feed_forward = own
    expected = scores(model, batch)
    torch.testing.assert_close(
        scores(made_ready(model, "fp32"), batch), expected, rtol=0, atol=1e-5
    )
