"""The numbers that the script of an answer's page works with, small enough to stand in it.

The attention of all heads is layers * H * L * L numbers: for BERT-large and 384 tokens 56 million.
Of each token of each head only the strongest targets are kept, so many that all fits into
``BUDGET``; a number is one byte, and each head is a deflated square of bytes, mostly zeros, that
the browser inflates when the head is chosen.
"""

import base64
import zlib
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bertqa.explain.explanation import Explanation
from bertqa.report.page import clean

BUDGET = 2_300_000  # characters of base64: what a page of 3 MB has for attention
_ENOUGH = 0.99  # of the attention; beyond it more targets show nothing
_LADDER = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)


@dataclass(frozen=True)
class PackedAttention:
    """The attention of all heads as text.

    Attributes:
        heads: layer by layer and head by head, base64 of a deflated ``(L, L)`` square of bytes.
        kept: targets kept for each token.
        share: of all attention that they hold.
    """

    heads: tuple[str, ...]
    kept: int
    share: float


def packed_attention(attentions: Tensor, budget: int = BUDGET) -> PackedAttention:
    """As many of the strongest targets as fit into ``budget`` characters, and at least one.

    Args:
        attentions: ``(layers, H, L, L)``.
    """
    squares = attentions.flatten(0, 1)  # (layers * H, L, L)
    best: PackedAttention | None = None
    for kept in [k for k in _LADDER if k < squares.shape[-1]] + [squares.shape[-1]]:
        values, chosen = squares.topk(kept, dim=-1)
        share = float(values.sum() / squares.sum())
        bytes_ = torch.zeros_like(squares, dtype=torch.uint8).scatter_(
            -1, chosen, quantised(values)
        )
        heads = tuple(_deflated(square) for square in bytes_)
        if best is not None and sum(map(len, heads)) > budget:
            return best
        best = PackedAttention(heads, kept, share)
        if share >= _ENOUGH:
            break
    assert best is not None
    return best


def quantised(probabilities: Tensor) -> Tensor:
    """Probabilities as bytes, b for (b / 255)^2: fine where they are small."""
    return (probabilities.clamp(0, 1).sqrt() * 255).round().to(torch.uint8)


def _deflated(square: Tensor) -> str:
    return _base64(zlib.compress(square.contiguous().numpy().tobytes(), 6))


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def script_data(explanation: Explanation, attention: PackedAttention) -> dict[str, Any]:
    """What page.js reads, for JSON.

    Texts stand in the page itself; here are numbers, and the names of the word pieces.
    """
    e = explanation
    probabilities = quantised(e.layer_logits.softmax(dim=-1))  # (layers + 1, 2, L)
    return {
        "tokens": [clean(token) for token in e.tokens],
        "heads": e.inside.attentions.shape[1],
        "question": [e.question_places.start, e.question_places.stop],
        "context": [e.context_starts.start, e.context_starts.stop],
        "answer": [e.answer.first, e.answer.last],
        "strongest": list(e.inside.strongest_head),
        "lens": _base64(probabilities.contiguous().numpy().tobytes()),
        "bests": [[r.best.first, r.best.last] if r.best else None for r in e.layers],
        "parts": {
            "start": _rounded(e.inside.start_parts.tokens),
            "end": _rounded(e.inside.end_parts.tokens),
            "span": _rounded(e.inside.parts),
        },
        "attention": attention.heads,
    }


def _rounded(values: Tensor) -> list[float]:
    return [round(value, 4) for value in values.tolist()]
