"""The fast forms of what model.py says readably, and the one place that chooses among them.

Each form here computes what a readable line of model.py computes; the tests hold them equal.
T, H, K, L as in model.py.
"""

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bertqa.stream import TokenBatch

# (query, key, value, batch, dropout rate) -> gathered; tensors (T, H, K).
AttentionForm = Callable[[Tensor, Tensor, Tensor, TokenBatch, float], Tensor]

_STEPS = 2**16  # dropout compares 16 random bits with its rate: off by 1 part in 100,000 at most


def dropout_multiplier(x: Tensor, rate: float) -> Tensor:
    """What inverted dropout multiplies ``x`` by: 0 with probability ``rate``, else 1 / (1 - rate).

    For tensors on the CPU; same shape and dtype as ``x``. There torch draws its Bernoulli numbers
    one by one, which costs as much as the matrix products around them; here raw 64-bit words are
    drawn and each is read as four 16-bit numbers.
    """
    words = torch.empty((x.numel() + 3) // 4, dtype=torch.int64).random_(-(2**63), None)
    dropped = min(round(rate * _STEPS), _STEPS - 1)  # a rate below 1 keeps something
    kept = words.view(torch.int16)[: x.numel()].view(x.shape) >= dropped - _STEPS // 2
    return kept.to(x.dtype).mul_(_STEPS / (_STEPS - dropped))


def dropout(x: Tensor, rate: float) -> Tensor:
    """Inverted dropout: each number is zeroed with probability ``rate``, the others scaled up."""
    if x.device.type != "cpu":
        return F.dropout(x, rate)
    return x * dropout_multiplier(x, rate)


def linears(x: Tensor, layers: Sequence[nn.Linear]) -> Sequence[Tensor]:
    """Several linear layers of one input as a single matrix product: ``(T, D)`` to each output."""
    weight = torch.cat([layer.weight for layer in layers])
    bias = torch.cat([layer.bias for layer in layers])
    return F.linear(x, weight, bias).split([layer.out_features for layer in layers], dim=-1)


def choose_attention(query: Tensor) -> AttentionForm | None:
    """The fastest form for tensors like ``query``; None where only the readable form runs."""
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
    query: Tensor, key: Tensor, value: Tensor, batch: TokenBatch, rate: float
) -> Tensor:
    """Attention window by window, with its gradient written by hand.

    A window's scores stay in the processor's cache from the first product to the last, and the
    gradients are written where they belong, without autograd's book-keeping for every window.
    """
    output: Tensor = _WindowAttention.apply(query, key, value, batch.lengths, rate)
    return output


class _WindowAttention(torch.autograd.Function):
    """softmax(Q K^T / sqrt(K)) V for each window, as in ``model.attention``."""

    @staticmethod
    def forward(ctx, query, key, value, lengths, rate):  # type: ignore[no-untyped-def]
        scale = 1 / math.sqrt(query.shape[-1])
        gathered = torch.empty_like(value, memory_format=torch.contiguous_format)
        saved = [] if any(ctx.needs_input_grad) else None
        for q, k, v, out in _windows(lengths, query, key, value, gathered):
            scores = torch.baddbmm(q.new_empty(1), q, k.transpose(1, 2), beta=0, alpha=scale)
            probability = scores.softmax(dim=-1)  # (H, L, L)
            multiplier = dropout_multiplier(probability, rate) if rate else None
            dropped = probability if multiplier is None else probability * multiplier
            out.copy_(dropped @ v)
            if saved is not None:
                saved.append((probability, multiplier))
        if saved is not None:
            ctx.save_for_backward(query, key, value, gathered)
        ctx.lengths, ctx.scale, ctx.saved = lengths, scale, saved
        return gathered

    @staticmethod
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        tensors = ctx.saved_tensors
        grads = [torch.empty_like(x, memory_format=torch.contiguous_format) for x in tensors[:3]]
        windows = _windows(ctx.lengths, *tensors, grad, *grads)
        for (q, k, v, out, d_out, d_q, d_k, d_v), kept in zip(windows, ctx.saved, strict=True):
            probability, multiplier = kept
            dropped = probability if multiplier is None else probability * multiplier
            d_v.copy_(dropped.transpose(1, 2) @ d_out)
            d_probability = d_out @ v.transpose(1, 2)  # (H, L, L)
            if multiplier is not None:
                d_probability.mul_(multiplier)
            # The softmax's gradient is P * (dP - sum of dP * P over the row), and that sum is
            # the inner product of a token's output with its output's gradient.
            row = (d_out * out).sum(dim=-1, keepdim=True)
            d_scores = d_probability.sub_(row).mul_(probability).mul_(ctx.scale)
            d_q.copy_(d_scores @ k)
            d_k.copy_(d_scores.transpose(1, 2) @ q)
        return *grads, None, None


def _windows(lengths, *tensors):  # type: ignore[no-untyped-def]
    """For each window its part of every tensor: views ``(T, H, K)`` -> ``(H, L, K)``."""
    split = (x.transpose(0, 1).split(list(lengths), dim=1) for x in tensors)
    return zip(*split, strict=True)


def flash_attention(
    query: Tensor, key: Tensor, value: Tensor, batch: TokenBatch, rate: float
) -> Tensor:
    """One variable-length FlashAttention call (Dao 2023) for the whole stream, on CUDA.

    The public ``varlen_attn`` of torch has no dropout, and attention dropout is part of BERT's
    recipe; the operator below it has, so it is called here and nowhere else.
    """
    bounds, longest = batch.cumulative_lengths, max(batch.lengths)
    output: Tensor = torch.ops.aten._flash_attention_forward(
        query, key, value, bounds, bounds, longest, longest, rate, False, False
    )[0]
    return output
