"""Charts as SVG text, without a library, for light and dark mode and screen readers."""

import math
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from bertqa.answering.answers import NO_SPAN_ODDS
from bertqa.answering.evaluation import best_point
from bertqa.answering.metrics import ThresholdPoint
from bertqa.files import write_text

_WIDTH, _HEIGHT = 680, 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 120, 40, 48  # margins; lines are named on the right
_LINE_HEIGHT = 20
_DOTTED = 30  # lines with at most so many points have markers

# Blue, orange, green: distinguishable with color blindness, on white and on black.
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
_COLORS = 3
_SMOOTHED = 10  # points averaged into one point of a smoothed curve
_DRAWN = 400  # maximum points of the drawn threshold curve

_MAP_WIDTH, _BAR_WIDTH, _ROW_HEIGHT = 416, 120, 26  # pixels: all cells, the longest bar, a row
_MOST_LABELS = 16  # maximum labels of an axis


@dataclass(frozen=True)
class Line:
    """One line of a chart.

    Attributes:
        name: label at its right end. Lines with the same name share a color, and only the last
            has the label.
        points: ``(x, y)``, x ascending.
    """

    name: str
    points: Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Bar:
    """One bar of a histogram: the count of values in [start, end)."""

    start: float
    end: float
    count: int


def line_chart(
    title: str,
    x_label: str,
    lines: Sequence[Line],
    *,
    x_names: Sequence[str] = (),
    y_ticks: Sequence[float] = (),
) -> str:
    """Return a line chart with up to three names as an SVG document.

    Args:
        x_names: labels at x = 0, 1, 2 and so on, instead of numbers.
        y_ticks: ticks of the y axis (default: from the points).

    Raises:
        ValueError: more names than colors, no point, or a number that is not finite.
    """
    points = [point for line in lines for point in line.points]
    named = {line.name: line for line in lines}  # the last of each name
    if not points or len(named) > _COLORS:
        raise ValueError(
            f"a chart must have 1 to {_COLORS} names and at least 1 point, got {len(named)} and "
            f"{len(points)}"
        )
    if not all(math.isfinite(number) for point in points for number in point):
        raise ValueError("all numbers of a chart must be finite")
    x_ticks, free_ticks = (ticks(min(v), max(v)) for v in zip(*points, strict=True))
    frame = _Frame(range(len(x_names)) or x_ticks, y_ticks or free_ticks, x_names)
    step = min(0.01, frame.y_ticks[1] - frame.y_ticks[0])
    label = "; ".join(
        f"{line.name} ends at {_shown(line.points[-1][1], step)}" for line in named.values()
    )
    svg = frame.draw(title, x_label, label)
    colors = {name: f"s{number}" for number, name in enumerate(named)}
    for line in lines:
        pixels = [frame.to_pixels(*point) for point in line.points]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in pixels)
        _add(svg, "polyline", colors[line.name], points=path)
        for x, y in pixels if len(pixels) <= _DOTTED else ():
            _add(svg, "circle", colors[line.name], cx=x, cy=y, r=3)
    ends = [frame.to_pixels(*line.points[-1]) for line in named.values()]
    for name, (x, _), height in zip(named, ends, _apart([y for _, y in ends]), strict=True):
        _write(svg, name, x + 8, height + 4)
    return _document(svg)


def draw_curve(
    folder: Path, curve: Sequence[ThresholdPoint], unanswerable_share: float | None = None
) -> None:
    """Write threshold.svg with EM and F1 over the threshold, unless no point can be drawn.

    Args:
        unanswerable_share: fraction to which the questions were weighted, for the title.

    Raises:
        UserError: the folder cannot be written.
    """
    # Leave out the null odds of a question without any span.
    drawable = [p for p in curve if abs(p.threshold) < NO_SPAN_ODDS / 2]
    if not drawable:
        return
    best = drawable.index(best_point(drawable))
    count = min(_DRAWN, len(drawable))
    even = {number * (len(drawable) - 1) // max(1, count - 1) for number in range(count)}
    shown = [drawable[number] for number in sorted(even | {best})]
    lines = [
        Line("F1", [(p.threshold, p.f1) for p in shown]),
        Line("exact match", [(p.threshold, p.exact) for p in shown]),
    ]
    title = f"EM and F1 by threshold, %; best {drawable[best].threshold:.3f}"
    if unanswerable_share is not None:
        title += f", {100 * unanswerable_share:.3g} % unanswerable"
    chart = line_chart(title, "threshold of the null score", lines)
    write_text(folder / "threshold.svg", chart)


def histogram(title: str, x_label: str, bars: Sequence[Bar]) -> str:
    """Return a histogram as an SVG document; hovering over a bar shows its numbers.

    Raises:
        ValueError: there is no bar.
    """
    if not bars:
        raise ValueError("a chart must have at least 1 bar, got 0")
    most = max(bars, key=lambda bar: bar.count)
    # Counts up to 5 have ticks of 1.
    edges = ticks(min(bar.start for bar in bars), max(bar.end for bar in bars))
    frame = _Frame(edges, ticks(0, max(5, most.count)))
    label = f"most, {_shown(most.count, 1)}, from {_shown(most.start, 1)} to {_shown(most.end, 1)}"
    svg = frame.draw(title, x_label, label)
    for bar in bars:
        left, top = frame.to_pixels(bar.start, bar.count)
        right, bottom = frame.to_pixels(bar.end, 0)
        width = max(1.0, right - left - 1)  # a gap between neighbors
        rect = _add(svg, "rect", x=left, y=top, width=width, height=bottom - top)
        note = f"{_shown(bar.start, 1)} to {_shown(bar.end, 1)}: {_shown(bar.count, 1)}"
        _add(rect, "title", text=note)
    return _document(svg)


def heat_map(
    title: str,
    cells: Sequence[Sequence[float]],
    bars: Sequence[float],
    *,
    row: str,
    column: str,
    bar: str,
) -> str:
    """Return a heat map with a bar at the end of each row as an SVG document.

    The opacity of a cell is proportional to its absolute value; orange is above 0, blue below. Bars
    have another scale. The ``<title>`` of a cell has its number, which browsers show on hover.

    Args:
        cells: rows of equal length, row 0 at the top.
        bars: one number for each row.
        row, column, bar: what a row, a column and a bar mean.

    Raises:
        ValueError: no cell, rows of different lengths, or a number that is not finite.
    """
    if len({len(numbers) for numbers in cells}) != 1 or not cells[0] or len(bars) != len(cells):
        raise ValueError("a heat map must have rows of equal length, and a bar for each")
    at = {(i, j): x for i, numbers in enumerate(cells) for j, x in enumerate(numbers)}
    if not all(map(math.isfinite, (*at.values(), *bars))):
        raise ValueError("all numbers of a heat map must be finite")
    i, j = max(at, key=lambda cell: abs(at[cell]))
    longest = max(range(len(bars)), key=lambda i: abs(bars[i]))
    label = (
        f"largest magnitude: {row} {i}, {column} {j} with {at[i, j]:.2f}; {bar} {longest} with "
        f"{bars[longest]:.2f}"
    )
    farthest, farthest_bar = abs(at[i, j]) or 1.0, abs(bars[longest]) or 1.0
    top, right = _TOP + 24, _LEFT + _MAP_WIDTH + 24
    bottom = top + _ROW_HEIGHT * len(cells)
    svg = _picture(bottom + 40, title, label, 8)
    _write(svg, row, _LEFT - 8, top - 8, "end")
    _write(svg, bar, right, top - 8)
    legend = f"{column}; orange above 0, blue below, full at {farthest:.2f}"
    _write(svg, legend, _LEFT, bottom + 24)
    width = _MAP_WIDTH / len(cells[0])
    for number in range(0, len(cells[0]), -(-len(cells[0]) // _MOST_LABELS)):
        _write(svg, str(number), _LEFT + (number + 0.5) * width, top - 8, "middle")
    for (i, j), x in at.items():
        box = (_LEFT + j * width, top + i * _ROW_HEIGHT + 1, width - 2, _ROW_HEIGHT - 2)
        _fill(svg, box, x, abs(x) / farthest, f"{row} {i}, {column} {j}: {x:.2f}")
    for i, x in enumerate(bars):
        y, length = top + i * _ROW_HEIGHT, abs(x) / farthest_bar * _BAR_WIDTH
        _write(svg, str(i), _LEFT - 8, y + _ROW_HEIGHT / 2 + 4, "end")
        _fill(svg, (right, y + 5, length, _ROW_HEIGHT - 10), x, 1, f"{bar} {i}: {x:.2f}")
        _write(svg, f"{x:.1f}", right + length + 6, y + _ROW_HEIGHT / 2 + 4)
    return _document(svg)


def _fill(
    svg: ET.Element, box: tuple[float, ...], number: float, opacity: float, label: str
) -> None:
    """Draw a rectangle (x, y, width, height) in the color of a number, over its outline."""
    x, y, width, height = box
    _add(svg, "rect", "cell", x=x, y=y, width=width, height=height)
    kind = "less" if number < 0 else "more"
    alpha = f"{opacity:.3f}"
    rect = _add(svg, "rect", kind, x=x, y=y, width=width, height=height, fill_opacity=alpha)
    _add(rect, "title", text=label)


def smoothed(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Average neighboring points if there are many."""
    size = _SMOOTHED if len(points) > 5 * _SMOOTHED else 1
    parts = [points[i : i + size] for i in range(0, len(points), size)]
    return [(part[-1][0], math.fsum(y for _, y in part) / len(part)) for part in parts]


@dataclass(frozen=True)
class _Frame:
    """The two axes of a chart: their ticks, and labels of the x axis."""

    x_ticks: Sequence[float]
    y_ticks: Sequence[float]
    x_names: Sequence[str] = ()

    def to_pixels(self, x: float, y: float) -> tuple[float, float]:
        """Return the coordinates of a point in pixels."""
        across = (x - self.x_ticks[0]) / (self.x_ticks[-1] - self.x_ticks[0])
        up = (y - self.y_ticks[0]) / (self.y_ticks[-1] - self.y_ticks[0])
        right, bottom = _WIDTH - _RIGHT, _HEIGHT - _BOTTOM
        return _LEFT + across * (right - _LEFT), bottom - up * (bottom - _TOP)

    def draw(self, title: str, x_label: str, aria_label: str) -> ET.Element:
        """Return the document with title, axes, ticks and grid.

        Args:
            aria_label: what a screen reader reads after the title.
        """
        right, bottom = _WIDTH - _RIGHT, _HEIGHT - _BOTTOM
        svg = _picture(_HEIGHT, title, aria_label, _LEFT)
        _write(svg, x_label, (_LEFT + right) / 2, _HEIGHT - 10, "middle")
        for y in self.y_ticks:
            across = self.to_pixels(self.x_ticks[0], y)[1]
            _add(svg, "path", "grid", d=f"M{_LEFT} {across:.1f}H{right}")
            label = _shown(y, self.y_ticks[1] - self.y_ticks[0])
            _write(svg, label, _LEFT - 8, across + 4, "end")
        _add(svg, "path", "axis", d=f"M{_LEFT} {bottom}H{right}")
        labels = self.x_names or [
            _shown(x, self.x_ticks[1] - self.x_ticks[0]) for x in self.x_ticks
        ]
        every = -(-len(labels) // _MOST_LABELS)
        for x, label in list(zip(self.x_ticks, labels, strict=True))[::every]:
            _write(svg, label, self.to_pixels(x, self.y_ticks[0])[0], bottom + 18, "middle")
        return svg


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Return about ``about`` round numbers that span ``low`` to ``high``."""
    if low == high:
        margin = abs(low) / 2 or 0.5
        low, high = low - margin, high + margin
    rough = (high - low) / about
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [number * step for number in range(first, last + 1)]


def _shown(number: float, step: float) -> str:
    """Format a number with enough decimals to differ from its neighbors, ``step`` away."""
    decimals = max(0, -math.floor(math.log10(step) + 1e-9))
    return f"{number:,.{decimals}f}"


def _apart(heights: Sequence[float]) -> list[float]:
    """Move heights apart, so that labels of lines that end close together do not overlap."""
    order = sorted(range(len(heights)), key=heights.__getitem__)
    moved = list(heights)
    for above, below in pairwise(order):
        moved[below] = max(moved[below], moved[above] + _LINE_HEIGHT)
    return moved


# --- SVG -----------------------------------------------------------------------------------------


def _picture(height: int, title: str, aria_label: str, left: float) -> ET.Element:
    """Return a picture with only its title, and what a screen reader reads after it."""
    attributes = {
        "xmlns": "http://www.w3.org/2000/svg", "viewBox": f"0 0 {_WIDTH} {height}", "role": "img",
        "aria-label": f"{title}: {aria_label}",
    }  # fmt: skip
    svg = ET.Element("svg", attributes)
    _add(svg, "style", text=f"\n{_STYLE}\n")
    _write(svg, title, left, 22, kind="title")
    return svg


def _add(
    parent: ET.Element, tag: str, kind: str = "", *, text: str | None = None, **where: float | str
) -> ET.Element:
    """Append an element of a class; numbers are pixels, and "_" in a name becomes "-"."""
    named = {"class": kind} if kind else {}
    for name, value in where.items():
        named[name.replace("_", "-")] = value if isinstance(value, str) else f"{value:.1f}"
    element = ET.SubElement(parent, tag, named)
    element.text = text
    return element


def _write(
    svg: ET.Element, text: str, x: float, y: float, anchor: str = "start", kind: str = ""
) -> None:
    _add(svg, "text", kind, text=text, x=x, y=y, text_anchor=anchor)


def _document(svg: ET.Element) -> str:
    ET.indent(svg, "")
    return ET.tostring(svg, encoding="unicode") + "\n"
