"""The fused implementations of what bert.py computes step by step, and the rules for taking them.

Each computes what the reference in bert.py computes; the tests hold them equal. A fused
implementation does not call the modules that it replaces, so it is used only where that has no
effect: see ``is_plain``. T, H, K, L as in bert.py.
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

_STEPS = 2**16  # dropout compares 16 random bits with its rate: off by 1 part in 100,000 at most
# Between these a sum of exponentials has lost nothing: the largest is far from overflow, and what
# is too small for the range is too small to count beside it.
_SMALLEST_SUM, _LARGEST_SUM = 1e-15, 1e30
_INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}  # by size in bytes


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
    """Which numbers of a tensor on the CPU dropout keeps, and what it multiplies those by.

    torch draws its Bernoulli numbers one by one, which costs as much as the matrix products around
    them; here raw 64-bit words are drawn and each is read as four 16-bit numbers.

    Returns:
        ``shape`` int16: 0, with probability ``rate``, or -1, all of whose bits are 1; and the
        reciprocal of the share that is kept.
    """
    count = math.prod(shape)
    words = torch.empty((count + 3) // 4, dtype=torch.int64)
    words.random_(-(2**63), None, generator=_GENERATOR.get())
    numbers = words.view(torch.int16)[:count].view(shape)
    dropped = min(round(rate * _STEPS), _STEPS - 1)  # a rate below 1 keeps something
    if dropped == 0:
        return numbers.fill_(-1), 1.0
    first_dropped = _STEPS // 2 - dropped  # the largest numbers are dropped
    mask = numbers.clamp_(first_dropped - 1, first_dropped).sub_(first_dropped)
    return mask, _STEPS / (_STEPS - dropped)


def keep(x: Tensor, mask: Tensor) -> Tensor:
    """``x`` where the mask of ``keep_mask`` is -1, else 0: a bitwise "and" of the two."""
    bits = _INTEGERS[x.element_size()]
    kept: Tensor = (x.view(bits) & mask.to(bits)).view(x.dtype)
    return kept


def dropout(x: Tensor, rate: float) -> Tensor:
    """Inverted dropout: each number is zeroed with probability ``rate``, the others scaled up."""
    if x.device.type != "cpu":
        return F.dropout(x, rate)
    output: Tensor = _Dropout.apply(x, rate)
    return output


class _Dropout(torch.autograd.Function):
    """Dropout on the CPU; what was dropped gets no gradient."""

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
    """Whether to call a module does nothing but what ``kind.forward`` does.

    A subclass, a wrapper and a parametrised module are of another type. A hook, on the module or
    global, and a replaced ``forward``, of the module or its class, want to be called. A model is
    asked at every forward pass, so hooks may come and go.
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
    """Whether the ``forward`` of a class is the one that its source defines.

    The globals of a function are those of the module that defines it, and a decorator that gives
    a wrapper the name of what it wraps leaves them as they are.
    """
    forward: Any = kind.forward
    return (
        isinstance(forward, FunctionType)
        and forward.__globals__["__name__"] == kind.__module__
        and forward.__qualname__ == f"{kind.__qualname__}.forward"
    )


def is_plain_linear(module: nn.Module) -> TypeGuard[nn.Linear]:
    """Whether a module is ``x W^T + b`` and nothing else, so that W and b may be used without it.

    Weights that are not ordinary parameters, such as those of torchao and FSDP, have a product of
    their own.
    """
    return (
        is_plain(module, nn.Linear)
        and type(module._parameters.get("weight")) is nn.Parameter
        and type(module._parameters.get("bias")) is nn.Parameter
    )


# --- several linear layers of one input ----------------------------------------------------------


class Prepacked(nn.Module):
    """A linear layer in one of the formats of cpu_inference.py, for inference only."""


class JointPart(Prepacked):
    """One of several layers of the same input that ``joint`` computes in a single product."""

    def __init__(self, joint: nn.Module, part: int, sizes: Sequence[int]) -> None:
        super().__init__()
        self.joint, self.part, self.sizes = joint, part, list(sizes)

    def forward(self, x: Tensor) -> Tensor:
        """``(T, D)`` to this part's ``(T, out)``."""
        output: Tensor = self.joint(x).split(self.sizes, dim=-1)[self.part]
        return output


def linears(x: Tensor, layers: Sequence[nn.Module]) -> Sequence[Tensor]:
    """Several layers of one input, ``(T, D)`` to each output.

    Plain linear layers are a single matrix product; other modules are called.
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
    """Whether these are all the parts of one product, in its order."""
    joint, count = parts[0].joint, len(parts[0].sizes)
    return [(part.joint, part.part) for part in parts] == [(joint, i) for i in range(count)]


# --- attention -----------------------------------------------------------------------------------


def choose_attention(query: Tensor, key: Tensor, value: Tensor) -> AttentionImplementation | None:
    """The fastest implementation for such tensors; None where only the reference runs."""
    if not query.dtype == key.dtype == value.dtype:  # one of them comes from a wrapped layer
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
    """Attention window by window, with its gradient written by hand.

    A window's scores stay in the processor's cache from the first product to the last, and the
    gradients are written where they belong, without autograd's book-keeping for every window.
    """
    output: Tensor = _WindowAttention.apply(query, key, value, batch.lengths, rate)
    return output


class _WindowAttention(torch.autograd.Function):
    """softmax(Q K^T / sqrt(K)) V for each window, as in ``SelfAttention.reference``.

    A softmax is exponentials over their sum, and the sum is one number for a whole row: it is
    divided by where rows are K numbers long, not L. Below, ``weights`` are exponentials that have
    not been divided, and ``scale`` holds for each row what they would be multiplied by: one over
    their sum, and with dropout one over the share that is kept.
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
            # (L, H, K) of the batch as (H, L, K): the product goes where it belongs.
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
        # The softmax's gradient is P * (dP - sum of dP * P over the row), and that sum is the
        # inner product of a token's output with its output's gradient.
        rows = (grad * attn_output).sum(dim=-1, keepdim=True) / ctx.dropout_scale  # (T, H, 1)
        windows = _windows(ctx.lengths, grad, rows, d_query, d_key, d_value)
        for views, kept_back in zip(windows, ctx.saved, strict=True):
            d_out, row, *gradients = (x.transpose(0, 1) for x in views)  # (H, L, K)
            q, k, v, weights, scale, mask = kept_back
            # P is weights * scale. To scale the rows of d_out, K numbers long, does the same as
            # to scale those of the weights, which are L long.
            d_out, row = d_out * scale, row * scale
            kept = weights if mask is None else keep(weights, mask)
            d_v = torch.bmm(kept.transpose(1, 2), d_out)
            d_weights = torch.bmm(d_out, v.transpose(1, 2))  # (H, L, L)
            if mask is not None:
                d_weights = keep(d_weights, mask)
            d_scores = d_weights.sub_(row).mul_(weights)
            d_q, d_k = torch.bmm(d_scores, k), torch.bmm(d_scores.transpose(1, 2), q)
            for into, found in zip(gradients, (d_q, d_k, d_v), strict=True):
                into.copy_(found)
        # d_key has its factor from the queries, which were scaled before they were saved.
        return d_query.mul_(ctx.softmax_scale), d_key, d_value, None, None


def _windows(lengths, *tensors):  # type: ignore[no-untyped-def]
    """For each window its part of every tensor: views ``(T, ...)`` -> ``(L, ...)``."""
    return zip(*(x.split(list(lengths)) for x in tensors), strict=True)


def _exponentials(query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
    """exp(Q K^T), and one over the sum of each row: their product is the softmax.

    A softmax usually subtracts the largest score of a row first, so that no exponential is beyond
    the floating-point range. Scores of a trained BERT stay far inside it, and the sums show
    whether these did; where they did not, the usual softmax is taken.

    Args:
        query, key: ``(H, L, K)``; one of them scaled by 1 / sqrt(K).

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
    """One variable-length FlashAttention call (Dao 2023) for the whole packed batch, on CUDA.

    The public ``varlen_attn`` of torch has no dropout, and attention dropout is part of BERT's
    recipe; the operator below it has, so it is called here and nowhere else.
    """
    bounds, longest = batch.cumulative_lengths, max(batch.lengths)
    output: Tensor = torch.ops.aten._flash_attention_forward(
        query, key, value, bounds, bounds, longest, longest, rate, False, False
    )[0]
    return output
