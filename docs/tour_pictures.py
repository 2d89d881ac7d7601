"""Figures of the tour, drawn from the namespace of its snippets.

Each is an SVG document with a white background, readable on a dark page too.
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any
from xml.sax.saxutils import escape

_WIDTH = 760
_STYLE = """
  text { font: 12px system-ui, sans-serif; fill: #222 }
  .b { font-weight: 600 } .s { font-size: 10px } .l { fill: #666 } .code { font-family: monospace }
  .box { fill: #f4f6f8; stroke: #8a94a0 } .norm { fill: #fdf0d5; stroke: #b98a2c }
  .way { fill: none; stroke: #555; stroke-width: 1.3 } .head { fill: #555 }
  .q { fill: #cfe3f7 } .t { fill: #fbdcc4 } .c { fill: #d9dde2 } .p { fill: #f4f4f4 }
  .cell { stroke: #fff } .no { fill: #ececec } .yes { fill: #0060b0 } .other { fill: #c04800 }
  .mark { fill: none; stroke: #c04800; stroke-width: 2 } .grid { fill: none; stroke: #ccc }
""".strip("\n")

Names = Mapping[str, Any]


class Picture:
    """An SVG document; coordinates are in pixels from the upper left corner."""

    def __init__(self, title: str, height: int) -> None:
        label = escape(title, {'"': "&quot;"})
        self._parts = [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" '
            f'width="{_WIDTH}" height="{height}" role="img" aria-label="{label}">',
            f"<title>{escape(title)}</title>",
            f"<style>\n{_STYLE}\n</style>",
            f'<rect width="{_WIDTH}" height="{height}" rx="6" fill="#fff"/>',
        ]

    def __str__(self) -> str:
        return "\n".join([*self._parts, "</svg>"]) + "\n"

    def text(self, x: float, y: float, text: str, kind: str = "", anchor: str = "start") -> None:
        """Add a line of text with baseline ``y``."""
        style = f' class="{kind}"' if kind else ""
        self._parts.append(
            f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{style}>{escape(text)}</text>'
        )

    def upright(self, x: float, y: float, text: str, kind: str = "s") -> None:
        """Add text that runs upwards from a point."""
        self._parts.append(
            f'<text class="{kind}" transform="translate({x:.1f} {y:.1f}) rotate(-90)">'
            f"{escape(text)}</text>"
        )

    def rect(
        self, x: float, y: float, width: float, height: float, kind: str, fullness: float = 1.0
    ) -> None:
        """Add a rectangle with opacity ``fullness``, from 0 to 1."""
        opacity = "" if fullness == 1.0 else f' fill-opacity="{fullness:.2f}"'
        self._parts.append(
            f'<rect class="{kind}" x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" '
            f'height="{height:.1f}"{opacity}/>'
        )

    def box(
        self, x: float, y: float, width: float, height: float, lines: Sequence[str], kind: str
    ) -> None:
        """Add a box with centered lines of text, the first in bold."""
        self.rect(x, y, width, height, kind)
        top = y + height / 2 - 8 * len(lines) + 12
        for i, line in enumerate(lines):
            self.text(x + width / 2, top + 16 * i, line, "" if i else "b", "middle")

    def way(self, *points: tuple[float, float], arrow: bool = True) -> None:
        """Add a polyline; with an arrow its last segment must be horizontal or vertical."""
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        self._parts.append(f'<polyline class="way" points="{path}"/>')
        if arrow:
            (x0, y0), (x, y) = points[-2:]
            dx, dy = (x > x0) - (x < x0), (y > y0) - (y < y0)
            corners = [
                (x, y),
                (x - 7 * dx - 4 * dy, y - 7 * dy - 4 * dx),
                (x - 7 * dx + 4 * dy, y - 7 * dy + 4 * dx),
            ]
            head = " ".join(f"{a:.1f},{b:.1f}" for a, b in corners)
            self._parts.append(f'<polygon class="head" points="{head}"/>')


def pictures(names: Names) -> dict[str, str]:
    """Return file name -> SVG document."""
    drawn = {
        "tour-path.svg": _path(names),
        "tour-windows.svg": _windows(names),
        "tour-stream.svg": _stream(names),
        "tour-layer.svg": _layer(names),
        "tour-spans.svg": _spans(names),
        "tour-lens.svg": _lens(names),
    }
    return {name: str(picture) for name, picture in drawn.items()}


def _path(names: Names) -> Picture:
    """Draw the data flow, one box per data type."""
    T, D, lengths = names["T"], names["D"], names["lengths"]
    question = names["examples"][0].question
    layers = len(names["model"].layers)
    steps = [
        ("Example", f"question, context, gold answer with its offset: “{question}”",
         "BertTokenizer.encode", "tokenization.py"),
        ("Tokens with offsets", f"{len(names['pieces'])} of the context; each is a slice of it",
         "make_windows", "windows.py, labels.py"),
        ("Window", f"[CLS] question [SEP] context [SEP]: L = {lengths[0]}, label "
         f"{names['s']} to {names['e']}", "collate", "batching.py"),
        ("PackedBatch", f"N = {len(lengths)} windows concatenated: ids, types, positions, each "
         f"(T,) = ({T},)", "Embeddings", "bert.py"),
        ("Embeddings", f"(T, D) = ({T}, {D})", f"Layer, {layers} times", "bert.py, kernels.py"),
        ("Hidden states T_i", f"(T, D) = ({T}, {D})", "SpanHead", "bert.py"),
        ("Logits S.T_i and E.T_i", f"(T,) = ({T},) each", "exact_spans", "decoding.py"),
        ("Spans i to j", "the best with j ≥ i, over all windows of the context", "predict",
         "evaluation.py"),
        ("Answer", "a slice of the context with its probability", "", ""),
    ]  # fmt: skip
    picture = Picture("Data flow from a question and a context to an answer", 668)
    for number, (name, what, step, file) in enumerate(steps):
        y = 20 + 73 * number
        picture.rect(20, y, 560, 44, "box")
        picture.text(34, y + 19, name, "b")
        picture.text(34, y + 36, what)
        if step:
            picture.way((60, y + 44), (60, y + 73))
            picture.text(76, y + 63, step, "code")
            picture.text(92 + 7.3 * len(step), y + 63, f"in {file}", "l")
    y = 20 + 73 * 6
    picture.box(640, y - 6, 100, 56, ["loss", "training"], "norm")
    picture.way((580, y + 22), (640, y + 22))
    picture.text(640, y + 66, "window_losses", "code s")
    picture.way((690, y - 6), (690, y - 124), (580, y - 124))
    picture.text(682, y - 74, "gradients,", "l", "end")
    picture.text(682, y - 58, "of all weights", "l", "end")
    return picture


def _windows(names: Names) -> Picture:
    """Draw sliding windows over a context."""
    pieces, small = names["pieces"], names["small"]
    width = 700 / len(pieces)
    answer = range(names["s"] - names["begin"], names["e"] + 1 - names["begin"])
    picture = Picture("Sliding windows over a context, and their labels", 108 + 44 * len(small))
    for number, piece in enumerate(pieces):
        x = 30 + number * width
        picture.rect(x, 20, width, 70, "t cell" if number in answer else "c cell")
        picture.upright(x + width / 2 + 4, 86, piece)
    for w in range(len(small)):
        y = 102 + 44 * w
        first, count = int(small.first[w]), int(small.count[w])
        label = names["label_text"](small, w, names["context"]) or "[CLS]"
        picture.rect(30 + first * width, y, count * width, 30, "box")
        inside = [number for number in answer if first <= number < first + count]
        if inside:
            x = 30 + inside[0] * width
            picture.rect(x, y + 1, len(inside) * width, 28, "t")
        caption = f"window {w}: {label}"
        left = 30 + first * width + 8
        if inside and left + 6.5 * len(caption) > 30 + inside[0] * width:
            left = 30 + (inside[-1] + 1) * width + 8
        picture.text(left, y + 19, caption)
    return picture


def _stream(names: Names) -> Picture:
    """Draw two windows as a packed sequence and as a padded batch."""
    lengths, T = names["lengths"], names["T"]
    words = names["tokenizer"].tokens(names["batch"].input_ids.tolist())
    kinds = names["batch"].token_type_ids.tolist()
    width = 704 / T
    picture = Picture("Two windows packed into one sequence, and padded to a rectangle", 372)
    picture.text(28, 26, f"Packed: T = {T} tokens", "b")
    for x, color, label in ((250, "q", "type 0"), (330, "t", "type 1"), (410, "p", "[PAD]")):
        picture.rect(x, 15, 14, 14, color)
        picture.text(x + 20, 26, label)

    def row(y: float, first: int, last: int, start: int) -> None:
        for i in range(first, last):
            x = 28 + (i - start) * width
            picture.rect(x, y, width, 66, ("t" if kinds[i] else "q") + " cell")
            picture.upright(x + width / 2 + 3.5, y + 62, words[i])

    row(40, 0, T, 0)
    bounds = [0, lengths[0], T]
    for first, last in pairwise(bounds):
        middle = 28 + (first + last) / 2 * width
        picture.way((28 + first * width + 2, 116), (28 + last * width - 2, 116), arrow=False)
        picture.text(middle, 134, f"window of {last - first} tokens", "", "middle")
    longest = max(lengths)
    padding = longest * len(lengths) - T
    caption = f"Padded: {len(lengths)} x {longest} tokens, {padding} of them [PAD]"
    picture.text(28, 176, caption, "b")
    for number, (first, last) in enumerate(pairwise(bounds)):
        y = 190 + 74 * number
        row(y, first, last, first)
        for i in range(last - first, longest):
            picture.rect(28 + i * width, y, width, 66, "p cell")
            picture.upright(28 + i * width + width / 2 + 3.5, y + 62, "[PAD]", "s l")
    picture.text(28, 358, "Padding takes part in every layer, and needs an attention mask.", "l")
    return picture


def _layer(names: Names) -> Picture:
    """Draw a layer from top to bottom, and post-norm and pre-norm."""
    T, D, H, K, F = (names[letter] for letter in "TDHKF")
    L = names["lengths"][0]
    picture = Picture("One layer of BERT, with the norm after each sum", 596)
    middle = 270
    picture.box(middle - 80, 16, 160, 40, ["x", f"(T, D) = ({T}, {D})"], "box")
    for number, name in enumerate("QKV"):
        x = middle - 170 + number * 120
        picture.way((middle, 56), (middle, 70), (x + 50, 70), (x + 50, 86))
        picture.box(x, 86, 100, 40, [name, f"({T}, {H}, {K})"], "box")
        picture.way((x + 50, 126), (x + 50, 148))
    picture.box(middle - 170, 148, 340, 58,
                ["A = softmax(Q Kᵀ / √K),  A V",
                 f"per window and head: A is ({H}, {L}, {L})",
                 "for the first window"], "box")  # fmt: skip
    picture.way((middle, 206), (middle, 226))
    picture.box(middle - 80, 226, 160, 28, ["W_O"], "box")
    picture.way((middle, 254), (middle, 274))
    picture.box(middle - 80, 274, 160, 28, ["x + …"], "box")
    picture.way((middle, 302), (middle, 316))
    picture.box(middle - 80, 316, 160, 28, ["LayerNorm"], "norm")
    picture.way((middle, 344), (middle, 376))
    picture.text(middle + 12, 364, f"x'  ({T}, {D})")
    picture.box(middle - 80, 376, 160, 40, ["W_1, GELU", f"({T}, {F})"], "box")
    picture.way((middle, 416), (middle, 436))
    picture.box(middle - 80, 436, 160, 28, ["W_2"], "box")
    picture.way((middle, 464), (middle, 484))
    picture.box(middle - 80, 484, 160, 28, ["x' + …"], "box")
    picture.way((middle, 512), (middle, 526))
    picture.box(middle - 80, 526, 160, 28, ["LayerNorm"], "norm")
    picture.way((middle, 554), (middle, 580))
    picture.text(middle + 12, 576, f"x''  ({T}, {D}), to the next layer")
    picture.way((middle - 80, 36), (60, 36), (60, 288), (middle - 80, 288))
    picture.way((middle, 354), (60, 354), (60, 498), (middle - 80, 498))
    for number, (name, norm, formula) in enumerate((
        ("BERT: post-norm", 3, "LayerNorm(x + f(x))"), ("GPT-2: pre-norm", 0, "x + f(LayerNorm(x))")
    )):  # fmt: skip
        x, y = 640, 96 + 240 * number
        picture.text(x, y - 38, name, "b", "middle")
        picture.text(x, y - 20, formula, "code", "middle")
        rows = [["LayerNorm"], ["f"], ["x + …"]] if norm == 0 else [["f"], ["x + …"], ["LayerNorm"]]
        picture.way((x, y - 12), (x, y + 16))
        for i, lines in enumerate(rows):
            top = y + 16 + 42 * i
            picture.box(x - 50, top, 100, 26, lines, "norm" if lines == ["LayerNorm"] else "box")
            picture.way((x, top + 26), (x, top + 42))
        to = y + 29 + 42 * rows.index(["x + …"])
        picture.way((x, y + 2), (x - 76, y + 2), (x - 76, to), (x - 50, to))
    return picture


def _spans(names: Names) -> Picture:
    """Draw the scores of all spans, with P_start and P_end."""
    score, allowed, begin = names["score"], names["allowed"], names["begin"]
    words = names["pieces"]
    size, left, top = 18, 110, 154
    side = size * len(words)
    picture = Picture("Scores of all spans, with P_start and P_end", top + side + 60)
    low, high = float(score[allowed].min()), float(score[allowed].max())
    picture.text(left, 24, "P_end of each column", "b")
    picture.text(left + side + 14, top - 12, "P_start of each row", "b")
    for number, word in enumerate(words):
        start = float(names["p_start"][begin + number])
        end = float(names["p_end"][begin + number])
        x, y = left + number * size, top + number * size
        picture.upright(x + size / 2 + 3.5, top - 6, word)
        picture.text(left - 8, y + size / 2 + 4, word, "s", "end")
        picture.rect(x + 3, 90 - 54 * end, size - 6, 54 * end + 1, "other")
        picture.rect(left + side + 14, y + 3, 120 * start + 1, size - 6, "yes")
    for i, row in enumerate(score.tolist()):
        for j, value in enumerate(row):
            kind, full = ("yes", (value - low) / (high - low)) if allowed[i, j] else ("no", 1.0)
            x, y = left + j * size, top + i * size
            picture.rect(x, y, size - 1, size - 1, kind, min(full, 0.999) if kind == "yes" else 1.0)
    i, j = names["best_i"], names["best_j"]
    picture.rect(left + j * size - 1, top + i * size - 1, size + 1, size + 1, "mark")
    picture.text(left + 20, top + side - 60, "j < i: the end is before", "b")
    picture.text(left + 20, top + side - 42, "the start, not a span", "b")
    picture.text(left, top + side + 22, f"rows: first token i; columns: last token j; color: "
                 f"score S.T_i + E.T_j, from {low:.1f} to {high:.1f}")  # fmt: skip
    text = names["context"][names["offsets"][i][0] : names["offsets"][j][1]]
    picture.text(left, top + side + 42, f"framed: the best span, “{text}”")
    return picture


def _lens(names: Names) -> Picture:
    """Draw P_start of each context token after each layer."""
    words, begin = names["pieces"], names["begin"]
    left, top, height = 110, 100, 24
    width = 620 / len(words)
    rows = names["lens"]
    picture = Picture("P_start of each token after each layer", top + 24 * len(rows) + 40)
    for number, word in enumerate(words):
        picture.upright(left + (number + 0.5) * width + 3.5, top - 6, word)
    for depth, p in enumerate(rows):
        y = top + height * depth
        name = f"layer {depth - 1}" if depth else "embeddings"
        picture.text(left - 8, y + 16, name, "", "end")
        for number in range(len(words)):
            x = left + number * width
            picture.rect(x, y, width - 1, height - 1, "grid")
            share = min(float(p[begin + number]), 0.999)
            picture.rect(x, y, width - 1, height - 1, "yes", share)
    caption = (
        "white: 0, blue: 1; the rest of each row's probability is on [CLS], question and [SEP]"
    )
    picture.text(left, top + height * len(rows) + 24, caption)
    return picture
