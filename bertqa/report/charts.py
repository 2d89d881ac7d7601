"""Charts as SVG text: no library, readable in light and dark, and by a screen reader."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from xml.sax.saxutils import escape

_WIDTH, _HEIGHT = 680, 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 120, 40, 48  # margins; lines are named on the right
_LINE_HEIGHT = 15
_DOTTED = 30  # up to so many points of a line are marked

# Blue, orange, green: told apart by those who see few colours as well, on white and on black.
_STYLE = """
  text { font: 12px system-ui, sans-serif; fill: #333 }
  .title { font-size: 14px; font-weight: 600 }
  .grid { stroke: #ddd } .axis { stroke: #888 }
  polyline { fill: none; stroke-width: 2; stroke-linejoin: round }
  .s0 { stroke: #0060b0 } .s1 { stroke: #c04800 } .s2 { stroke: #00785a }
  circle { fill: #fff; stroke-width: 2 } rect { fill: #0060b0 }
  .cell { fill: none; stroke: #ccc } .less { fill: #0060b0 } .more { fill: #c04800 }
  @media (prefers-color-scheme: dark) {
    text { fill: #ddd } .grid { stroke: #444 }
    .s0 { stroke: #62b0f4 } .s1 { stroke: #f59150 } .s2 { stroke: #4cc9a4 }
    circle { fill: #111 } rect { fill: #62b0f4 }
    .cell { fill: none; stroke: #555 } .less { fill: #62b0f4 } .more { fill: #f59150 }
  }
""".strip("\n")
_COLOURS = 3
_SMOOTHED = 10  # points that one of a smoothed curve is the mean of

_MAP_WIDTH, _BAR_WIDTH, _ROW_HEIGHT = 416, 120, 26  # pixels: all cells, the longest bar, a row
_LABELLED = 16  # up to so many columns have their numbers


@dataclass(frozen=True)
class Line:
    """One line of a chart.

    Attributes:
        name: stands at its right end. Lines of one name have one colour, and the name once, at the
            last of them.
        points: ``(x, y)``, x ascending.
    """

    name: str
    points: Sequence[tuple[float, float]]


def line_chart(title: str, x_label: str, lines: Sequence[Line]) -> str:
    """A chart of lines of up to three names as an SVG document.

    Raises:
        ValueError: more names than colours, no point, or a number that is not finite.
    """
    points = [point for line in lines for point in line.points]
    named = {line.name: line for line in lines}  # the last of each name
    if not points or len(named) > _COLOURS:
        raise ValueError(f"{len(named)} names of lines with {len(points)} points make no chart")
    if not all(math.isfinite(number) for point in points for number in point):
        raise ValueError("a chart has no place for numbers that are not finite")
    frame = _Frame(*(ticks(min(v), max(v)) for v in zip(*points, strict=True)))
    said = "; ".join(f"{line.name} ends at {_shown(line.points[-1][1])}" for line in named.values())
    parts = frame.parts(title, x_label, said)
    colours = {name: number for number, name in enumerate(named)}
    for line in lines:
        number = colours[line.name]
        places = [frame.place(*point) for point in line.points]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        parts.append(f'<polyline class="s{number}" points="{path}"/>')
        if len(places) <= _DOTTED:
            parts += [
                f'<circle class="s{number}" cx="{x:.1f}" cy="{y:.1f}" r="3"/>' for x, y in places
            ]
    ends = [frame.place(*line.points[-1]) for line in named.values()]
    heights = apart([y for _, y in ends])
    for name, (x, _), height in zip(named, ends, heights, strict=True):
        parts.append(_text(x + 8, height + 4, name, "start"))
    return "\n".join([*parts, "</svg>"]) + "\n"


@dataclass(frozen=True)
class Bar:
    """One bar of a histogram: how many things lie from ``start`` to below ``end``."""

    start: float
    end: float
    count: int


def histogram(title: str, x_label: str, bars: Sequence[Bar]) -> str:
    """How many things lie where, as an SVG document; a bar tells its numbers where one points.

    Raises:
        ValueError: there is no bar.
    """
    if not bars:
        raise ValueError("no bars make no chart")
    most = max(bars, key=lambda bar: bar.count)
    # Up to five things are counted one by one.
    edges = ticks(min(bar.start for bar in bars), max(bar.end for bar in bars))
    frame = _Frame(edges, ticks(0, max(5, most.count)))
    said = f"most, {_shown(most.count, 1)}, from {_shown(most.start, 1)} to {_shown(most.end, 1)}"
    parts = frame.parts(title, x_label, said)
    for bar in bars:
        (left, top), (right, bottom) = frame.place(bar.start, bar.count), frame.place(bar.end, 0)
        width = max(1.0, right - left - 1)  # a gap between neighbours
        note = f"{_shown(bar.start, 1)} to {_shown(bar.end, 1)}: {_shown(bar.count, 1)}"
        parts.append(
            f'<rect x="{left:.1f}" y="{top:.1f}" width="{width:.1f}" '
            f'height="{bottom - top:.1f}"><title>{note}</title></rect>'
        )
    return "\n".join([*parts, "</svg>"]) + "\n"


@dataclass(frozen=True)
class _Frame:
    """The two axes of a chart, by the numbers that stand at them."""

    x_ticks: Sequence[float]
    y_ticks: Sequence[float]

    def place(self, x: float, y: float) -> tuple[float, float]:
        """Where a point lies, in pixels."""
        across = (x - self.x_ticks[0]) / (self.x_ticks[-1] - self.x_ticks[0])
        up = (y - self.y_ticks[0]) / (self.y_ticks[-1] - self.y_ticks[0])
        right, bottom = _WIDTH - _RIGHT, _HEIGHT - _BOTTOM
        return _LEFT + across * (right - _LEFT), bottom - up * (bottom - _TOP)

    def parts(self, title: str, x_label: str, said: str) -> list[str]:
        """The document's beginning and all that stands behind what is drawn.

        Args:
            said: what a screen reader says after the title.
        """
        right, bottom = _WIDTH - _RIGHT, _HEIGHT - _BOTTOM
        parts = [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" '
            f'aria-label="{escape(f"{title}: {said}", {chr(34): "&quot;"})}">',
            f"<style>\n{_STYLE}\n</style>",
            _text(_LEFT, 22, title, "start", "title"),
            _text((_LEFT + right) / 2, _HEIGHT - 10, x_label, "middle"),
        ]
        for y in self.y_ticks:
            across = self.place(self.x_ticks[0], y)[1]
            parts.append(f'<path class="grid" d="M{_LEFT} {across:.1f}H{right}"/>')
            label = _shown(y, self.y_ticks[1] - self.y_ticks[0])
            parts.append(_text(_LEFT - 8, across + 4, label, "end"))
        parts.append(f'<path class="axis" d="M{_LEFT} {bottom}H{right}"/>')
        step = self.x_ticks[1] - self.x_ticks[0]
        for x in self.x_ticks:
            label = _shown(x, step)
            parts.append(_text(self.place(x, self.y_ticks[0])[0], bottom + 18, label, "middle"))
        return parts


def smoothed(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Means of neighbouring points, where there are many."""
    size = _SMOOTHED if len(points) > 5 * _SMOOTHED else 1
    parts = [points[i : i + size] for i in range(0, len(points), size)]
    return [(part[-1][0], math.fsum(y for _, y in part) / len(part)) for part in parts]


def heat_map(
    title: str,
    cells: Sequence[Sequence[float]],
    bars: Sequence[float],
    *,
    row: str,
    column: str,
    bar: str,
) -> str:
    """A table of numbers as colours, with a bar at the end of each row, as an SVG document.

    A cell is the fuller of colour the farther its number is from 0, up to the farthest of all;
    orange is above 0, blue below. Bars have a scale of their own. Each number stands in the
    ``<title>`` of its cell, which browsers show where the pointer is.

    Args:
        cells: rows of one length, row 0 at the top.
        bars: one number for each row.
        row, column, bar: what one of them is.

    Raises:
        ValueError: no cell, rows of several lengths, or a number that is not finite.
    """
    if len({len(numbers) for numbers in cells}) != 1 or not cells[0] or len(bars) != len(cells):
        raise ValueError("a heat map needs rows of one length, and a bar for each")
    if not all(math.isfinite(number) for numbers in (*cells, bars) for number in numbers):
        raise ValueError("a heat map has no place for numbers that are not finite")
    width = _MAP_WIDTH / len(cells[0])
    farthest = max(abs(number) for numbers in cells for number in numbers) or 1.0
    farthest_bar = max(map(abs, bars)) or 1.0
    top, right = _TOP + 24, _LEFT + _MAP_WIDTH + 24
    bottom = top + _ROW_HEIGHT * len(cells)
    at_cell, at_bar = _farthest_cell(cells), max(range(len(bars)), key=lambda i: abs(bars[i]))
    said = (
        f"{title}: farthest from 0 {row} {at_cell[0]}, {column} {at_cell[1]} with "
        f"{cells[at_cell[0]][at_cell[1]]:.2f}; {bar} {at_bar} with {bars[at_bar]:.2f}"
    )
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {bottom + 40}" role="img" '
        f'aria-label="{escape(said, {chr(34): "&quot;"})}">',
        f"<style>\n{_STYLE}\n</style>",
        _text(8, 22, title, "start", "title"),
        _text(_LEFT - 8, top - 8, row, "end"),
        _text(right, top - 8, bar, "start"),
        _text(_LEFT, bottom + 24, f"{column}; orange above 0, blue below, full at {farthest:.2f}",
              "start"),
    ]  # fmt: skip
    every = -(-len(cells[0]) // _LABELLED)
    for number in range(0, len(cells[0]), every):
        parts.append(_text(_LEFT + (number + 0.5) * width, top - 8, str(number), "middle"))
    for i, numbers in enumerate(cells):
        y = top + i * _ROW_HEIGHT
        parts.append(_text(_LEFT - 8, y + _ROW_HEIGHT / 2 + 4, str(i), "end"))
        for j, x in enumerate(numbers):
            place = (_LEFT + j * width, y + 1, width - 2, _ROW_HEIGHT - 2)
            parts.append(_rect(*place, x, abs(x) / farthest, f"{row} {i}, {column} {j}: {x:.2f}"))
        length = abs(bars[i]) / farthest_bar * _BAR_WIDTH
        parts.append(
            _rect(right, y + 5, length, _ROW_HEIGHT - 10, bars[i], 1, f"{bar} {i}: {bars[i]:.2f}")
        )
        parts.append(_text(right + length + 6, y + _ROW_HEIGHT / 2 + 4, f"{bars[i]:.1f}", "start"))
    return "\n".join([*parts, "</svg>"]) + "\n"


def _farthest_cell(cells: Sequence[Sequence[float]]) -> tuple[int, int]:
    """Row and column of the number farthest from 0."""
    places = ((i, j) for i, numbers in enumerate(cells) for j in range(len(numbers)))
    return max(places, key=lambda place: abs(cells[place[0]][place[1]]))


def _rect(
    x: float, y: float, width: float, height: float, number: float, fullness: float, said: str
) -> str:
    """A rectangle in the colour of a number, over its outline."""
    place = f'x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}"'
    kind = "less" if number < 0 else "more"
    return (
        f'<rect class="cell" {place}/><rect class="{kind}" {place} '
        f'fill-opacity="{fullness:.3f}"><title>{escape(said)}</title></rect>'
    )


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round numbers, about so many, the first at most ``low`` and the last at least ``high``."""
    if low == high:
        low, high = low - 0.5, high + 0.5
    rough = (high - low) / about
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [number * step for number in range(first, last + 1)]


def _shown(number: float, step: float = 0.01) -> str:
    """The number with as many decimals as tell it from its neighbours, ``step`` away."""
    decimals = max(0, -math.floor(math.log10(step) + 1e-9))
    return f"{number:,.{decimals}f}"


def apart(heights: Sequence[float]) -> list[float]:
    """The heights, moved so that names of lines that end close together do not overlap."""
    order = sorted(range(len(heights)), key=heights.__getitem__)
    moved = list(heights)
    for above, below in pairwise(order):
        moved[below] = max(moved[below], moved[above] + _LINE_HEIGHT)
    return moved


def _text(x: float, y: float, text: str, anchor: str, kind: str = "") -> str:
    style = f' class="{kind}"' if kind else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{style}>{escape(text)}</text>'
