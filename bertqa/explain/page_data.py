"""What the page of an answer shows, as plain numbers and texts for its template and its script."""

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

BUDGET = 2_300_000  # characters of base64: what a page of 3 MB has for attention
_ENOUGH = 0.99  # of the attention; beyond it more targets show nothing
_LADDER = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)
_ROWS = 20  # most rows of a table of spans
_OUTSIDE = 600  # characters of the context that are shown before and after the window
_LIST = 8  # rows of a list of tokens


class Mark(NamedTuple):
    """How a token is shown.

    Attributes:
        title: its tooltip.
        shades: custom properties of page.css, from 0 to 1.
        is_minus: whether its number is negative.
    """

    title: str
    shades: dict[str, float]
    is_minus: bool = False


def page_data(explanation: Explanation) -> dict[str, Any]:
    """All that page.jinja shows, by its sections."""
    e = explanation
    packed = packed_attention(e.inside.attentions)
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
        "packed": packed,
        "parts": _parts(e),
        "for_script": script_data(e, packed),
    }


# --- numbers as texts ----------------------------------------------------------------------------


def signed(value: float, decimals: int = 3) -> str:
    """With a sign, and with a minus that is as wide as the plus."""
    return f"{value:+.{decimals}f}".replace("-", "−")


def rounded(value: float, decimals: int) -> str:
    """With a sign, if there is anything left of it."""
    return signed(value, decimals) if round(value, decimals) else "0"


def percent(probability: float) -> str:
    """Short: whole per cents from ten on, below one decimal."""
    if probability < 0.0005:
        return "<0.1%" if probability > 0 else "0%"
    return f"{100 * probability:.{1 if probability < 0.1 else 0}f}%"


def strength(value: float) -> float:
    """How strong a colour is, from 0 to 1; small numbers are to be seen as well."""
    return round(min(1.0, max(0.0, value)) ** 0.5, 2)


def direction_of(text: str) -> str:
    """Which way a text is written, by its first letter."""
    kinds = (unicodedata.bidirectional(character) for character in text)
    first = next((kind for kind in kinds if kind in ("L", "R", "AL")), "L")
    return "ltr" if first == "L" else "rtl"


# --- section by section --------------------------------------------------------------------------


def _tokens(e: Explanation) -> Iterator[tuple[str, str, str]]:
    """Of each token its name, its classes in page.css, and how it is shown among the others."""
    kinds = {"question": "q", "text": "c", "frame": "x"}
    for i, token in enumerate(e.tokens):
        is_part = token.startswith("##") and len(token) > 2
        yield token, kinds[e.part_of(i)] + " part" * is_part, token[2 * is_part :]


def _start_and_end(start: float, end: float) -> Mark:
    title = f"start {percent(start)}, end {percent(end)}"
    return Mark(title, {"s": strength(start), "e": strength(end)})


def _context(e: Explanation) -> dict[str, Any]:
    """The text before the answer, in it, and after it, in pieces, and the likeliest tokens."""
    cells = list(e.cells())
    first, length = e.window_start, sum(len(cell.text) for cell in cells)
    inside = [n for n, cell in enumerate(cells) if set(e.answer.tokens) & set(cell.places)]
    marks = [
        _start_and_end(*e.probabilities[:, list(cell.places)].sum(dim=1).tolist()) for cell in cells
    ]
    pieces = [(shortened(c.text), c.places, mark) for c, mark in zip(cells, marks, strict=True)]
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
    """What of the context is not in the window; of much only what is near."""
    near = text[-_OUTSIDE:] if before else text[:_OUTSIDE]
    if near == text:
        return text
    more = f"[{len(text) - len(near):,} characters]"
    return f"{more} … {near}" if before else f"{near} … {more}"


def _spans(e: Explanation) -> Iterator[tuple[int, Candidate, list[int]]]:
    """The candidates that are shown, each with its number and its words in the text.

    The answer and "no answer" are always among them.
    """
    words = [cell.places for cell in e.cells() if cell.places]
    for number, candidate in enumerate(e.candidates):
        if number < _ROWS or number == e.chosen or not candidate.answer.text:
            here = set(candidate.tokens if candidate.window == e.window else ())
            yield number, candidate, [places.start for places in words if here & set(places)]


def _window_spans(e: Explanation) -> list[Candidate]:
    """The best spans of the windows, as many as there is room for, in the order of the text."""
    best = sorted(filter(None, e.best_spans), key=lambda c: -c.answer.score)[:_ROWS]
    return sorted(best, key=lambda c: c.window)


def _matrix(e: Explanation) -> dict[str, Any] | None:
    """Tokens of rows and columns; of each cell score, shade, why it is not a span, is it chosen."""
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
    """P_start and P_end of the answer over the layers, as a picture; the table has the numbers."""
    names = ["embedded", *map(str, range(len(e.layers) - 1))]
    lines = [
        Line("start", [(i, 100 * r.start_probability) for i, r in enumerate(e.layers)]),
        Line("end", [(i, 100 * r.end_probability) for i, r in enumerate(e.layers)]),
    ]
    title = "Probability of the answer's start and end after each layer, %"
    return line_chart(title, "layer", lines, x_names=names, y_ticks=(0, 25, 50, 75, 100))


def _heads(e: Explanation) -> dict[str, Any]:
    """The worth of every head and layer; layers have a scale and colours of their own."""
    heads, layers = e.inside.head_effects, e.inside.layer_effects
    most, deepest = float(heads.abs().max()), float(layers.abs().max())
    return {
        "effects": list(zip(heads.tolist(), layers.tolist(), strict=True)),
        "most": most,
        "deepest": deepest,
        "most_needed": e.inside.most_needed(5),
    }


def _attention(e: Explanation) -> dict[str, Any]:
    """The attention of the strongest head, which the page shows without its script."""
    layer, head = e.inside.strongest_head
    square = e.inside.attentions[layer, head]
    question = list(e.question_places) or [0]  # of control characters there is nothing left
    looks, seen = square[question].mean(dim=0).tolist(), square[:, question].sum(dim=1).tolist()
    words = [*e.question_places, *e.context_starts]
    most = max((looks[i] for i in words), default=0.0) or 1.0
    shares = [p / most if i in words else 0.0 for i, p in enumerate(looks)]
    return {
        "layer": layer,
        "head": head,
        "marks": [
            Mark(percent(p), {"v": strength(share)}) for p, share in zip(looks, shares, strict=True)
        ],
        "looks": _strongest(e, words, looks),
        "seen": _strongest(e, words, seen),
    }


def _strongest(
    e: Explanation, words: list[int], values: list[float]
) -> list[tuple[str, float, float]]:
    """The tokens with the largest values, each with its value and that as a share of the first."""
    order = sorted(words, key=lambda i: -values[i])[:_LIST]
    return [(e.tokens[i], values[i], values[i] / (values[order[0]] or 1)) for i in order]


def _parts(e: Explanation) -> dict[str, Any]:
    """What each token adds to the score, and that it adds up."""
    start, end, total = e.inside.start_parts, e.inside.end_parts, e.inside.parts
    most = float(total.abs().max()) or 1.0
    order = total.abs().argsort(descending=True)[:12].tolist()
    values = (start.tokens, end.tokens, total)
    return {
        "marks": [Mark(signed(v), {"v": strength(abs(v) / most)}, v < 0) for v in total.tolist()],
        "rows": [(e.tokens[i], e.part_of(i), *(float(v[i]) for v in values)) for i in order],
        "sums": [
            (name, part.score, part.baseline, float(part.tokens.sum()), part.gap)
            for name, part in (("start", start), ("end", end))
        ],
    }


# --- for the script ------------------------------------------------------------------------------


class PackedAttention(NamedTuple):
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

    All of it is layers * H * L * L numbers: for BERT-large and 384 tokens 56 million. Of each token
    only the strongest targets are kept; a number is one byte, and each head is a deflated square of
    bytes, mostly zeros, that the browser inflates when the head is chosen.

    Args:
        attentions: ``(layers, H, L, L)``.
    """
    squares = attentions.flatten(0, 1)  # (layers * H, L, L)
    shares = squares.sort(descending=True).values.sum(dim=(0, 1)).cumsum(dim=0) / squares.sum()
    enough = next((k for k, share in enumerate(shares, start=1) if share >= _ENOUGH), len(shares))
    ladder = sorted({k for k in _LADDER if k < enough} | {enough})

    @cache
    def heads(kept: int) -> tuple[str, ...]:
        values, chosen = squares.topk(kept, dim=-1)
        bytes_ = torch.zeros_like(squares, dtype=torch.uint8)
        bytes_.scatter_(-1, chosen, quantised(values))
        return tuple(_base64(zlib.compress(square.numpy().tobytes())) for square in bytes_)

    fitting = bisect_right(ladder, budget, lo=1, key=lambda kept: sum(map(len, heads(kept))))
    kept = ladder[fitting - 1]
    return PackedAttention(heads(kept), kept, float(shares[kept - 1]))


def quantised(probabilities: Tensor) -> Tensor:
    """Probabilities as bytes, b for (b / 255)^2: fine where they are small."""
    return (probabilities.clamp(0, 1).sqrt() * 255).round().to(torch.uint8)


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def script_data(e: Explanation, packed: PackedAttention) -> dict[str, Any]:
    """What page.js reads: numbers and the names of the tokens; the page has all other texts."""
    parts = {"start": e.inside.start_parts.tokens, "end": e.inside.end_parts.tokens}
    return {
        "tokens": [clean(token) for token in e.tokens],
        "heads": e.inside.attentions.shape[1],
        "question": [e.question_places.start, e.question_places.stop],
        "context": [e.context_starts.start, e.context_starts.stop],
        "answer": [e.answer.first, e.answer.last],
        "strongest": e.inside.strongest_head,
        "lens": _base64(quantised(e.layer_logits.softmax(dim=-1)).numpy().tobytes()),  # (n, 2, L)
        "bests": [r.best and (r.best.first, r.best.last) for r in e.layers],
        "parts": {
            name: [round(value, 4) for value in values.tolist()]
            for name, values in (parts | {"span": e.inside.parts}).items()
        },
        "attention": packed.heads,
    }
