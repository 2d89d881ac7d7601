"""The CUDA code path, tested without a GPU by fake tensors: device, dtype and shape, no numbers.

Each operator's shape function checks its arguments as on a GPU. Autograd does not run on fake CUDA
tensors in a CPU build of torch, so the backward operator of attention is called directly. The tests
marked ``gpu`` in test_kernels.py compare numbers.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from bertqa.model import kernels
from bertqa.model.bert import BertForQuestionAnswering, window_losses
from bertqa.model.checkpoint import _meta_model
from bertqa.model.config import BertConfig
from bertqa.model.packing import PackedBatch
from bertqa.training.optim import make_optimizer, set_learning_rate

CUDA = torch.device("cuda:0")
LENGTHS = (3, 4)
LAYERS, HEADS, SIZE = 2, 4, 16
CONFIG = BertConfig(101, HEADS * SIZE, LAYERS, HEADS, 96, 64, 2)
# Operators that synchronize with the GPU; a copy from the GPU also does.
WAITS = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "equal", "is_nonzero")


class Operators(TorchDispatchMode):
    """Records called operators, and fails for those that synchronize with the GPU."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[str, list[Tensor]]] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.name().partition("::")[2].partition(".")[0]
        assert not name.startswith(WAITS), f"{name} synchronizes with the GPU"
        output = func(*args, **(kwargs or {}))
        given = [x for x in args if isinstance(x, Tensor)]
        made = [x for x in (output if isinstance(output, tuple) else [output])
                if isinstance(x, Tensor)]  # fmt: skip
        leaves = any(x.is_cuda for x in given) and not all(x.is_cuda for x in made)
        assert not leaves, f"{name} synchronizes with the GPU"
        self.calls.append((name, given))
        return output

    def named(self, name: str) -> list[list[Tensor]]:
        """Return the tensors of each call of an operator."""
        return [given for called, given in self.calls if called == name]


@pytest.fixture
def fake_gpu(monkeypatch):
    """An H100, as far as the choice of kernels depends on it."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (9, 0))
    monkeypatch.setattr(torch.backends.cuda, "is_flash_attention_available", lambda: True)
    # Parameters of fake tensors have another type.
    monkeypatch.setattr(kernels, "is_plain_linear", lambda layer: isinstance(layer, nn.Linear))
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        yield


@contextmanager
def autocast_to_bf16() -> Iterator[None]:
    """Do what ``torch.autocast("cuda", torch.bfloat16)`` does, which needs a GPU."""
    torch.set_autocast_dtype("cuda", torch.bfloat16)
    torch.set_autocast_enabled("cuda", True)
    torch.autocast_increment_nesting()
    try:
        yield
    finally:
        torch.autocast_decrement_nesting()
        torch.clear_autocast_cache()
        torch.set_autocast_enabled("cuda", False)


def fake_model(dtype: torch.dtype = torch.float32) -> BertForQuestionAnswering:
    """Make a fake model on the GPU; S and E are in float32, as after ``prepare_for_inference``."""
    model = _meta_model(CONFIG)
    for path, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            kind = torch.float32 if path == "head" else dtype
            fake = torch.empty(parameter.shape, dtype=kind, device=CUDA)
            module.register_parameter(name, nn.Parameter(fake, requires_grad=False))
    return model


def fake_batch() -> PackedBatch:
    return PackedBatch.from_windows([[5] * n for n in LENGTHS], [[0] * n for n in LENGTHS]).to(CUDA)


def check_attention(operators: Operators) -> None:
    """Check that there is one flash call for each layer, with all windows, and no other softmax."""
    calls = operators.named("_flash_attention_forward")
    assert len(calls) == LAYERS
    for query, key, value, *bounds in calls:
        for x in (query, key, value):
            assert (x.shape, x.dtype) == ((sum(LENGTHS), HEADS, SIZE), torch.bfloat16)
        assert [(b.shape, b.dtype) for b in bounds] == [((len(LENGTHS) + 1,), torch.int32)] * 2
    assert not operators.named("_softmax")


@pytest.mark.usefixtures("fake_gpu")
def test_forward_and_loss_of_a_training_step():
    model, batch, labels = fake_model().train(), fake_batch(), torch.ones(2, device=CUDA).long()
    with autocast_to_bf16(), Operators() as operators:
        output = model(batch)
        losses = window_losses(output, batch.lengths, labels, labels)
    assert (losses.shape, losses.dtype, losses.device) == ((2,), torch.float32, CUDA)
    check_attention(operators)
    products = operators.named("addmm")
    # Query, key and value are one product; then output, up and down; S and E in float32.
    assert len(products) == LAYERS * 4 + 1
    assert [p[1].dtype for p in products] == [torch.bfloat16] * LAYERS * 4 + [torch.float32]


@pytest.mark.usefixtures("fake_gpu")
def test_forward_of_answering():
    model, batch = fake_model(torch.bfloat16).eval(), fake_batch()
    with Operators() as operators:
        output = model(batch)
    for logits in output:
        assert (logits.shape, logits.dtype) == ((sum(LENGTHS),), torch.float32)
    check_attention(operators)
    # On the GPU, only the last hidden states are converted, for S and E; no weights are.
    converted = [x.shape for [x] in operators.named("_to_copy") if x.is_cuda]
    assert converted == [(sum(LENGTHS), HEADS * SIZE)]


@pytest.mark.usefixtures("fake_gpu")
def test_backward_of_attention():
    shape = sum(LENGTHS), HEADS, SIZE
    query, key, value, grad = (
        torch.empty(shape, dtype=torch.bfloat16, device=CUDA) for _ in range(4)
    )
    bounds, longest = fake_batch().cumulative_lengths, max(LENGTHS)
    windows = bounds, bounds, longest, longest
    out, logsumexp, state, unused, _ = torch.ops.aten._flash_attention_forward(
        query, key, value, *windows, 0.1, False, False
    )
    gradients = torch.ops.aten._flash_attention_backward(
        grad, query, key, value, out, logsumexp, *windows, 0.1, False, state, unused
    )
    assert [(x.shape, x.dtype) for x in gradients] == [(shape, torch.bfloat16)] * 3


@pytest.mark.usefixtures("fake_gpu")
def test_gradient_clipping_and_the_step_of_adamw():
    model = fake_model()
    for parameter in model.parameters():
        parameter.requires_grad_()
        parameter.grad = torch.empty_like(parameter)
    optimizer = make_optimizer(model, weight_decay=0.01, epsilon=1e-8)
    with Operators() as operators:
        torch.nn.utils.clip_grad_norm_(model.parameters(), 2.0, foreach=True)
        set_learning_rate(optimizer, 1e-4)
        optimizer.step()
    assert operators.named("_fused_adamw_")


@pytest.mark.parametrize("wait", [lambda x: float(x.sum()), lambda x: x.nonzero(), Tensor.cpu])
@pytest.mark.usefixtures("fake_gpu")
def test_an_operator_that_synchronises_fails(wait):
    x = torch.empty(3, device=CUDA)
    # A build without CUDA rejects some of them before they are dispatched.
    with pytest.raises((AssertionError, RuntimeError), match=r"synchron|not linked"), Operators():
        wait(x)
