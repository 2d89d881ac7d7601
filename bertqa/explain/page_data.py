"""Numbers and strings of an explanation for page.jinja and page.js."""

import base64
import math
import unicodedata
import zlib
from bisect import bisect_right
from collections.abc import Iterator
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bertqa.data.text import shortened
from bertqa.explain.explanation import Candidate, Explanation
from bertqa.report.charts import Line, line_chart
from bertqa.report.page import clean

BUDGET = 2_300_000  # base64 characters for attention, in a page of 3 MB
_ENOUGH = 0.99  # of the attention mass; more targets would not be visible
_LADDER = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)
_ROWS = 20  # maximum rows of a table of spans
_OUTSIDE = 600  # characters of the context shown before and after the window
_LIST = 8  # rows of a list of tokens


class Mark(NamedTuple):
    """Style of a token.

    Attributes:
        title: tooltip.
        shades: custom properties of page.css, from 0 to 1.
        is_minus: whether its value is negative.
    """

    title: str
    shades: dict[str, float]
    is_minus: bool = False


def page_data(explanation: Explanation) -> dict[str, Any]:
    """Return the variables of page.jinja."""
    e = explanation
    compressed = compressed_attention(e.inside.attentions)
    return {
        "e": e,
        "tokens": list(_tokens(e)),
        "direction": direction_of(e.context),
        "context": _context(e),
        "spans": list(_spans(e)),
        "window_spans": _window_spans(e),
        "null_score": next((c.answer.score for c in e.candidates if not c.answer.text), None),
        "matrix": _matrix(e),
        "lens_chart": _lens_chart(e),
        "lens_marks": [_start_and_end(*p) for p in e.probabilities.T.tolist()],
        "heads": _heads(e),
        "attention": _attention(e),
        "compressed": compressed,
        "parts": _parts(e),
        "for_script": script_data(e, compressed),
    }


# --- numbers as texts ----------------------------------------------------------------------------


def signed(value: float, decimals: int = 3) -> str:
    """Format with a sign, using the minus sign that is as wide as the plus."""
    return f"{value:+.{decimals}f}".replace("-", "−")


def rounded(value: float, decimals: int) -> str:
    """Format with a sign; "0" if the value rounds to zero."""
    return signed(value, decimals) if round(value, decimals) else "0"


def percent(probability: float) -> str:
    """Format as a percentage: no decimals from 10 %, one below."""
    if probability < 0.0005:
        return "<0.1%" if probability > 0 else "0%"
    return f"{100 * probability:.{1 if probability < 0.1 else 0}f}%"


def strength(value: float) -> float:
    """Return the color intensity, from 0 to 1; the square root makes small values visible."""
    return round(min(1.0, max(0.0, value)) ** 0.5, 2)


def direction_of(text: str) -> str:
    """Return the writing direction of a text, "ltr" or "rtl", from its first letter."""
    kinds = (unicodedata.bidirectional(character) for character in text)
    first = next((kind for kind in kinds if kind in ("L", "R", "AL")), "L")
    return "ltr" if first == "L" else "rtl"


# --- section by section --------------------------------------------------------------------------


def _tokens(e: Explanation) -> Iterator[tuple[str, str, str]]:
    """Yield the name of each token, its classes in page.css, and its text without "##"."""
    kinds = {"question": "q", "context": "c", "special": "x"}
    for i, token in enumerate(e.tokens):
        is_part = token.startswith("##") and len(token) > 2
        yield token, kinds[e.part_of(i)] + " part" * is_part, token[2 * is_part :]


def _start_and_end(start: float, end: float) -> Mark:
    title = f"start {percent(start)}, end {percent(end)}"
    return Mark(title, {"s": strength(start), "e": strength(end)})


def _context(e: Explanation) -> dict[str, Any]:
    """Return the pieces of text before, in and after the answer, and the most likely tokens."""
    cells = list(e.cells())
    first, length = e.window_start, sum(len(cell.text) for cell in cells)
    inside = [n for n, cell in enumerate(cells) if set(e.answer.tokens) & set(cell.tokens)]
    marks = [
        _start_and_end(*e.probabilities[:, list(cell.tokens)].sum(dim=1).tolist()) for cell in cells
    ]
    pieces = [(shortened(c.text), c.tokens, mark) for c, mark in zip(cells, marks, strict=True)]
    begin, end = (inside[0], inside[-1] + 1) if inside else (0, 0)
    return {
        "outside_before": _outside(e.context[:first], before=True),
        "before": pieces[:begin],
        "answer": pieces[begin:end],
        "after": pieces[end:],
        "outside_after": _outside(e.context[first + length :], before=False),
        "strongest": [
            [(e.tokens[i], float(scores[i]), float(p[i])) for i in p.topk(min(5, len(p))).indices]
            for scores, p in zip(e.logits, e.probabilities, strict=True)
        ],
    }


def _outside(text: str, *, before: bool) -> str:
    """Return the context outside the window, shortened to the part next to it."""
    near = text[-_OUTSIDE:] if before else text[:_OUTSIDE]
    if near == text:
        return text
    more = f"[{len(text) - len(near):,} characters]"
    return f"{more} … {near}" if before else f"{near} … {more}"


def _spans(e: Explanation) -> Iterator[tuple[int, Candidate, list[int]]]:
    """Yield the index of each displayed candidate, the candidate, and its words in the text.

    The answer and "no answer" are always included.
    """
    words = [cell.tokens for cell in e.cells() if cell.tokens]
    for number, candidate in enumerate(e.candidates):
        if number < _ROWS or number == e.chosen or not candidate.answer.text:
            here = set(candidate.tokens if candidate.window == e.window else ())
            yield number, candidate, [tokens.start for tokens in words if here & set(tokens)]


def _window_spans(e: Explanation) -> list[Candidate]:
    """Return the ``_ROWS`` best of the windows' best spans, in the order of the text."""
    best = sorted(filter(None, e.best_spans), key=lambda c: -c.answer.score)[:_ROWS]
    return sorted(best, key=lambda c: c.window)


def _matrix(e: Explanation) -> dict[str, Any] | None:
    """Return row and column tokens, and cells: score, shade, why not a span, is the answer."""
    matrix = e.span_matrix()
    if matrix is None:
        return None
    low, high = matrix.scores[matrix.scores.isfinite()].aminmax()
    shades = ((matrix.scores - low) / (high - low or 1)).square()
    cells: list[list[tuple[float, float, str, bool]]] = []
    for i, scores, row in zip(matrix.starts, matrix.scores.tolist(), shades.tolist(), strict=True):
        cells.append([])
        for j, score, shade in zip(matrix.ends, scores, row, strict=True):
            never = "" if math.isfinite(score) else "j < i" if j < i else "too long"
            cells[-1].append((score, shade, never, (i, j) == (e.answer.first, e.answer.last)))
    return {
        "starts": [e.tokens[i] for i in matrix.starts],
        "ends": [e.tokens[j] for j in matrix.ends],
        "cells": cells,
    }


def _lens_chart(e: Explanation) -> str:
    """Return a line chart of the answer's P_start and P_end by layer."""
    names = ["emb.", *map(str, range(len(e.layers) - 1))]
    lines = [
        Line("start", [(i, 100 * r.start_probability) for i, r in enumerate(e.layers)]),
        Line("end", [(i, 100 * r.end_probability) for i, r in enumerate(e.layers)]),
    ]
    title = "Probability of the answer's start and end, %"
    return line_chart(title, "layer", lines, x_names=names, y_ticks=(0, 25, 50, 75, 100))


def _heads(e: Explanation) -> dict[str, Any]:
    """Return the effects of heads and layers, each with the maximum of its color scale."""
    heads, layers = e.inside.head_effects, e.inside.layer_effects
    most, deepest = float(heads.abs().max()), float(layers.abs().max())
    return {
        "effects": list(zip(heads.tolist(), layers.tolist(), strict=True)),
        "most": most,
        "deepest": deepest,
        "most_needed": e.inside.most_needed(5),
    }


def _attention(e: Explanation) -> dict[str, Any]:
    """Return the attention of the head with the largest effect, shown without JavaScript."""
    layer, head = e.inside.strongest_head
    square = e.inside.attentions[layer, head]
    question = list(e.question_tokens) or [0]  # the tokenizer drops control characters
    given, received = square[question].mean(dim=0).tolist(), square[:, question].sum(dim=1).tolist()
    words = [*e.question_tokens, *e.context_tokens]
    most = max((given[i] for i in words), default=0.0) or 1.0
    shares = [p / most if i in words else 0.0 for i, p in enumerate(given)]
    return {
        "layer": layer,
        "head": head,
        "marks": [
            Mark(percent(p), {"v": strength(share)}) for p, share in zip(given, shares, strict=True)
        ],
        "given": _strongest(e, words, given),
        "received": _strongest(e, words, received),
    }


def _strongest(
    e: Explanation, words: list[int], values: list[float]
) -> list[tuple[str, float, float]]:
    """Return the tokens with the largest values: token, value, value relative to the largest."""
    order = sorted(words, key=lambda i: -values[i])[:_LIST]
    return [(e.tokens[i], values[i], values[i] / (values[order[0]] or 1)) for i in order]


def _parts(e: Explanation) -> dict[str, Any]:
    """Return the contribution of each token to the score, and the sums that check them."""
    start, end, total = e.inside.start_attribution, e.inside.end_attribution, e.inside.attributions
    most = float(total.abs().max()) or 1.0
    order = total.abs().argsort(descending=True)[:12].tolist()
    values = (start.tokens, end.tokens, total)
    return {
        "marks": [Mark(signed(v), {"v": strength(abs(v) / most)}, v < 0) for v in total.tolist()],
        "rows": [(e.tokens[i], e.part_of(i), *(float(v[i]) for v in values)) for i in order],
        "sums": [
            (name, part.score, part.baseline, float(part.tokens.sum()), part.convergence_delta)
            for name, part in (("start", start), ("end", end))
        ],
    }


# --- for the script ------------------------------------------------------------------------------


class CompressedAttention(NamedTuple):
    """Attention of all heads as text.

    Attributes:
        heads: for each layer and head, base64 of a deflated ``(L, L)`` matrix of bytes.
        kept: number of key tokens kept for each query token.
        share: share of the attention mass that is kept.
    """

    heads: tuple[str, ...]
    kept: int
    share: float


def compressed_attention(attentions: Tensor, budget: int = BUDGET) -> CompressedAttention:
    """Keep as many of the largest weights as fit into ``budget`` characters, at least one.

    The full attention has layers * H * L * L elements: 56 million for BERT-large and 384 tokens.
    Only the largest weights of each query token are kept, in one byte each. Each head is a deflated
    matrix of bytes, mostly zeros, which the browser inflates when the head is selected.

    Args:
        attentions: ``(layers, H, L, L)``.
        budget: maximum total length of ``heads``.
    """
    squares = attentions.flatten(0, 1)  # (layers * H, L, L)
    shares = squares.sort(descending=True).values.sum(dim=(0, 1)).cumsum(dim=0) / squares.sum()
    enough = next((k for k, share in enumerate(shares, start=1) if share >= _ENOUGH), len(shares))
    ladder = sorted({k for k in _LADDER if k < enough} | {enough})

    @cache
    def heads(kept: int) -> tuple[str, ...]:
        values, chosen = squares.topk(kept, dim=-1)
        bytes_ = torch.zeros_like(squares, dtype=torch.uint8)
        bytes_.scatter_(-1, chosen, quantized(values))
        return tuple(_base64(zlib.compress(square.numpy().tobytes())) for square in bytes_)

    fitting = bisect_right(ladder, budget, lo=1, key=lambda kept: sum(map(len, heads(kept))))
    kept = ladder[fitting - 1]
    return CompressedAttention(heads(kept), kept, float(shares[kept - 1]))


def quantized(probabilities: Tensor) -> Tensor:
    """Quantize probabilities to bytes b, (b / 255)^2, with the finest steps near zero."""
    return (probabilities.clamp(0, 1).sqrt() * 255).round().to(torch.uint8)


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def script_data(e: Explanation, compressed: CompressedAttention) -> dict[str, Any]:
    """Return the data that page.js reads: numbers and tokens."""
    parts = {"start": e.inside.start_attribution.tokens, "end": e.inside.end_attribution.tokens}
    return {
        "tokens": [clean(token) for token in e.tokens],
        "heads": e.inside.attentions.shape[1],
        "question": [e.question_tokens.start, e.question_tokens.stop],
        "context": [e.context_tokens.start, e.context_tokens.stop],
        "answer": [e.answer.first, e.answer.last],
        "strongest": e.inside.strongest_head,
        "lens": _base64(quantized(e.layer_logits.softmax(dim=-1)).numpy().tobytes()),  # (n, 2, L)
        "bests": [r.best and (r.best.first, r.best.last) for r in e.layers],
        "parts": {
            name: [round(value, 4) for value in values.tolist()]
            for name, values in (parts | {"span": e.inside.attributions}).items()
        },
        "attention": compressed.heads,
    }
