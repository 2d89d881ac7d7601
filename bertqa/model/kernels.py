"""Fused implementations of dropout, joint linear layers and attention.

Tests check each against the reference in bert.py. A fused implementation does not call the modules
it replaces, so it is used only where skipping them has no effect: see ``is_plain``. T, H, K, L as
in bert.py.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from types import FunctionType
from typing import Any, TypeGuard, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.modules import module as torch_module

from bertqa.model.packing import PackedBatch

# (query, key, value, batch, dropout rate) -> attn_output; tensors (T, H, K).
AttentionImplementation = Callable[[Tensor, Tensor, Tensor, PackedBatch, float], Tensor]

_STEPS = 2**16  # dropout compares 16 random bits with its rate: an error below 1e-5
# A sum of exponentials between these is accurate: the largest term is far from overflow, and a term
# that underflows is negligible.
_SMALLEST_SUM, _LARGEST_SUM = 1e-15, 1e30
# The integers of as many bytes as a number, to read its bits.
INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


_GENERATOR: ContextVar[torch.Generator | None] = ContextVar("generator", default=None)


@contextmanager
def dropout_generator(generator: torch.Generator) -> Iterator[None]:
    """Draw dropout on the CPU from this generator instead of torch's, in this thread."""
    token = _GENERATOR.set(generator)
    try:
        yield
    finally:
        _GENERATOR.reset(token)


def keep_mask(shape: Sequence[int], rate: float) -> tuple[Tensor, float]:
    """Draw a dropout mask on the CPU.

    torch draws Bernoulli numbers one at a time, which costs as much as the matrix products around
    them. Here each random 64-bit word gives four 16-bit numbers.

    Returns:
        The mask, ``shape`` int16: 0 with probability ``rate``, else -1 (all bits set); and the
        scale of the kept elements, one over the fraction kept.
    """
    count = math.prod(shape)
    words = torch.empty((count + 3) // 4, dtype=torch.int64)
    words.random_(-(2**63), None, generator=_GENERATOR.get())
    numbers = words.view(torch.int16)[:count].view(shape)
    dropped = min(round(rate * _STEPS), _STEPS - 1)  # a rate below 1 keeps some elements
    if dropped == 0:
        return numbers.fill_(-1), 1.0
    first_dropped = _STEPS // 2 - dropped  # the largest numbers are dropped
    mask = numbers.clamp_(first_dropped - 1, first_dropped).sub_(first_dropped)
    return mask, _STEPS / (_STEPS - dropped)


def keep(x: Tensor, mask: Tensor) -> Tensor:
    """Return ``x`` where the mask of ``keep_mask`` is -1, else 0: a bitwise "and" of the two."""
    bits = INTEGERS[x.element_size()]
    kept: Tensor = (x.view(bits) & mask.to(bits)).view(x.dtype)
    return kept


def dropout(x: Tensor, rate: float) -> Tensor:
    """Apply inverted dropout: zero each element with probability ``rate``, scale up the rest."""
    if x.device.type != "cpu":
        return F.dropout(x, rate)
    output: Tensor = _Dropout.apply(x, rate)
    return output


class _Dropout(torch.autograd.Function):
    """Dropout on the CPU; dropped elements get no gradient."""

    @staticmethod
    def forward(ctx, x, rate):  # type: ignore[no-untyped-def]
        mask, ctx.scale = keep_mask(x.shape, rate)
        ctx.save_for_backward(mask)
        return keep(x, mask).mul_(ctx.scale)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        (mask,) = ctx.saved_tensors
        return keep(grad, mask).mul_(ctx.scale), None


# --- which modules may be fused -------------------------------------------------------------------

_GLOBAL_HOOKS = (
    torch_module._global_forward_pre_hooks,
    torch_module._global_forward_hooks,
    torch_module._global_backward_pre_hooks,
    torch_module._global_backward_hooks,
)

AnyModule = TypeVar("AnyModule", bound=nn.Module)


def is_plain(module: nn.Module, kind: type[AnyModule]) -> TypeGuard[AnyModule]:
    """Return whether calling a module only runs ``kind.forward``.

    False for subclasses, wrappers and parametrized modules, which have another type; for hooks, on
    the module or global; and for a replaced ``forward``, of the module or its class. Checked at
    every forward pass, so hooks may be added and removed at any time.
    """
    return (
        type(module) is kind
        and not (
            module._forward_pre_hooks
            or module._forward_hooks
            or module._backward_pre_hooks
            or module._backward_hooks
        )
        and "forward" not in module.__dict__
        and _has_own_forward(kind)
        and not any(_GLOBAL_HOOKS)
    )


def _has_own_forward(kind: type[nn.Module]) -> bool:
    """Return whether the ``forward`` of a class is the one in its source.

    A function's globals are those of the module that defines it; ``functools.wraps`` does not
    change them.
    """
    forward: Any = kind.forward
    return (
        isinstance(forward, FunctionType)
        and forward.__globals__["__name__"] == kind.__module__
        and forward.__qualname__ == f"{kind.__qualname__}.forward"
    )


def is_plain_linear(module: nn.Module) -> TypeGuard[nn.Linear]:
    """Return whether a module computes only ``x W^T + b``, so that W and b can be used directly.

    Weights that are not ordinary parameters, such as those of torchao and FSDP, define their own
    product.
    """
    return (
        is_plain(module, nn.Linear)
        and type(module._parameters.get("weight")) is nn.Parameter
        and type(module._parameters.get("bias")) is nn.Parameter
    )


# --- linear layers with the same input -----------------------------------------------------------


class Prepacked(nn.Module):
    """Linear layer in one of the formats of cpu_inference.py, for inference only."""


class JointPart(Prepacked):
    """One of several layers with the same input that ``joint`` computes in a single product."""

    def __init__(self, joint: nn.Module, part: int, sizes: Sequence[int]) -> None:
        super().__init__()
        self.joint, self.part, self.sizes = joint, part, list(sizes)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(T, D)`` to this part's ``(T, out)``."""
        output: Tensor = self.joint(x).split(self.sizes, dim=-1)[self.part]
        return output


def linears(x: Tensor, layers: Sequence[nn.Module]) -> Sequence[Tensor]:
    """Apply several layers to one input ``(T, D)``; return each output.

    Plain linear layers are computed as one matrix product; other modules are called.
    """
    parts = [layer for layer in layers if is_plain(layer, JointPart)]
    if len(parts) == len(layers) and _are_one(parts):
        outputs: Sequence[Tensor] = parts[0].joint(x).split(parts[0].sizes, dim=-1)
        return outputs
    plain = [layer for layer in layers if is_plain_linear(layer)]
    if len(plain) == len(layers):
        weight = torch.cat([layer.weight for layer in plain])
        bias = torch.cat([layer.bias for layer in plain])
        return F.linear(x, weight, bias).split([layer.out_features for layer in plain], dim=-1)
    return [layer(x) for layer in layers]


def _are_one(parts: Sequence[JointPart]) -> bool:
    """Return whether these are all the parts of one product, in order."""
    joint, count = parts[0].joint, len(parts[0].sizes)
    return [(part.joint, part.part) for part in parts] == [(joint, i) for i in range(count)]


# --- attention -----------------------------------------------------------------------------------


def choose_attention(query: Tensor, key: Tensor, value: Tensor) -> AttentionImplementation | None:
    """Return the fastest implementation for these tensors; None if only the reference works."""
    if not query.dtype == key.dtype == value.dtype:  # the output of a wrapped layer
        return None
    if query.device.type == "cpu":
        return cpu_attention
    if query.device.type == "cuda" and query.dtype in (torch.bfloat16, torch.float16):
        head_size = query.shape[-1]
        capable = torch.cuda.get_device_capability(query.device) >= (8, 0)  # Ampere and later
        built = torch.backends.cuda.is_flash_attention_available() and hasattr(
            torch.ops.aten, "_flash_attention_forward"
        )
        if capable and built and head_size % 8 == 0 and head_size <= 256:
            return flash_attention
    return None


def cpu_attention(
    query: Tensor, key: Tensor, value: Tensor, batch: PackedBatch, rate: float
) -> Tensor:
    """Compute attention window by window, with a handwritten backward pass.

    A window's scores stay in the processor's cache from the first product to the last, and
    gradients are written into one tensor, without autograd's overhead for each window.
    """
    output: Tensor = _WindowAttention.apply(query, key, value, batch.lengths, rate)
    return output


class _WindowAttention(torch.autograd.Function):
    """softmax(Q K^T / sqrt(K)) V for each window, as in ``SelfAttention.reference``.

    A softmax divides exponentials by the sum of their row. The division is applied to the output,
    whose rows have K elements, not to the exponentials, whose rows have L. Below, ``weights`` are
    the unnormalized exponentials, and ``scale`` is the factor of each row: one over its sum and,
    with dropout, over the fraction kept.
    """

    @staticmethod
    def forward(ctx, query, key, value, lengths, rate):  # type: ignore[no-untyped-def]
        attn_output = torch.empty(query.shape, dtype=query.dtype)  # (T, H, K)
        softmax_scale = 1 / math.sqrt(query.shape[-1])
        saved = [] if any(ctx.needs_input_grad) else None
        for q, k, v, out in _windows(lengths, query, key, value, attn_output):
            q, k, v = (x.transpose(0, 1) for x in (q, k, v))  # (H, L, K)
            q = torch.mul(q, softmax_scale, out=q.new_empty(q.shape))  # a copy, as for k and v
            k, v = k.contiguous(), v.contiguous()
            weights, scale = _exponentials(q, k)  # (H, L, L), (H, L, 1)
            mask, kept = None, weights
            if rate:
                mask, dropout_scale = keep_mask(weights.shape, rate)
                kept, scale = keep(weights, mask), scale * dropout_scale
            # Write the product straight into the batch's output, (L, H, K) seen as (H, L, K).
            torch.mul(torch.bmm(kept, v), scale, out=out.transpose(0, 1))
            if saved is not None:
                saved.append((q, k, v, weights, scale, mask))
        if saved is not None:
            ctx.save_for_backward(attn_output)
        ctx.lengths, ctx.saved, ctx.softmax_scale = lengths, saved, softmax_scale
        ctx.dropout_scale = dropout_scale if rate else 1.0
        return attn_output

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        (attn_output,) = ctx.saved_tensors
        d_query, d_key, d_value = (torch.empty_like(attn_output) for _ in range(3))
        # The gradient of a softmax is P * (dP - sum of dP * P over the row), and that sum is the
        # inner product of a token's output and the gradient of that output.
        rows = (grad * attn_output).sum(dim=-1, keepdim=True) / ctx.dropout_scale  # (T, H, 1)
        windows = _windows(ctx.lengths, grad, rows, d_query, d_key, d_value)
        for views, saved in zip(windows, ctx.saved, strict=True):
            d_out, row, *gradients = (x.transpose(0, 1) for x in views)  # (H, L, K)
            q, k, v, weights, scale, mask = saved
            # P is weights * scale. Scaling the rows of d_out (K elements) is equivalent to scaling
            # those of the weights (L elements).
            d_out, row = d_out * scale, row * scale
            kept = weights if mask is None else keep(weights, mask)
            d_v = torch.bmm(kept.transpose(1, 2), d_out)
            d_weights = torch.bmm(d_out, v.transpose(1, 2))  # (H, L, L)
            if mask is not None:
                d_weights = keep(d_weights, mask)
            d_scores = d_weights.sub_(row).mul_(weights)
            d_q, d_k = torch.bmm(d_scores, k), torch.bmm(d_scores.transpose(1, 2), q)
            for target, gradient in zip(gradients, (d_q, d_k, d_v), strict=True):
                target.copy_(gradient)
        # d_key needs no factor: the saved queries are already scaled.
        return d_query.mul_(ctx.softmax_scale), d_key, d_value, None, None


def _windows(lengths, *tensors):  # type: ignore[no-untyped-def]
    """Yield each window's view of every tensor: ``(T, ...)`` -> ``(L, ...)``."""
    return zip(*(x.split(list(lengths)) for x in tensors), strict=True)


def _exponentials(query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
    """Return exp(Q K^T), and one over the sum of each row: their product is the softmax.

    A softmax usually subtracts the largest score of a row first, so that no exponential overflows.
    Scores of a trained BERT are far from overflow, and the sums show whether these were; if not,
    the usual softmax is computed.

    Args:
        query, key: ``(H, L, K)``; one of them already scaled by 1 / sqrt(K).

    Returns:
        ``(H, L, L)`` and ``(H, L, 1)``.
    """
    weights = torch.bmm(query, key.transpose(1, 2)).exp_()
    total = weights.sum(dim=-1, keepdim=True)
    smallest, largest = total.aminmax()
    if float(smallest) > _SMALLEST_SUM and float(largest) < _LARGEST_SUM:
        return weights, total.reciprocal_()
    scores = torch.bmm(query, key.transpose(1, 2))
    return scores.softmax(dim=-1), torch.ones_like(total)


def flash_attention(
    query: Tensor, key: Tensor, value: Tensor, batch: PackedBatch, rate: float
) -> Tensor:
    """Compute attention of the whole packed batch by one varlen FlashAttention call (Dao 2023).

    CUDA only. BERT uses attention dropout; torch's public ``varlen_attn`` does not support it, so
    this function calls the private operator that does.
    """
    bounds, longest = batch.cumulative_lengths, max(batch.lengths)
    output: Tensor = torch.ops.aten._flash_attention_forward(
        query, key, value, bounds, bounds, longest, longest, rate, False, False
    )[0]
    return output
