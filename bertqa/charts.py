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
  @media (prefers-color-scheme: dark) {
    text { fill: #ddd } .grid { stroke: #444 }
    .s0 { stroke: #62b0f4 } .s1 { stroke: #f59150 } .s2 { stroke: #4cc9a4 }
    circle { fill: #111 } rect { fill: #62b0f4 }
  }
""".strip("\n")
_COLOURS = 3
_SMOOTHED = 10  # points that one of a smoothed curve is the mean of


@dataclass(frozen=True)
class Line:
    """One line of a chart.

    Attributes:
        name: stands at its right end.
        points: ``(x, y)``, x ascending.
    """

    name: str
    points: Sequence[tuple[float, float]]


def line_chart(title: str, x_label: str, lines: Sequence[Line]) -> str:
    """A chart of up to three lines as an SVG document.

    Raises:
        ValueError: more lines than colours, no point, or a number that is not finite.
    """
    points = [point for line in lines for point in line.points]
    if not points or len(lines) > _COLOURS:
        raise ValueError(f"{len(lines)} lines of {len(points)} points make no chart")
    if not all(math.isfinite(number) for point in points for number in point):
        raise ValueError("a chart has no place for numbers that are not finite")
    frame = _Frame(*(ticks(min(v), max(v)) for v in zip(*points, strict=True)))
    said = "; ".join(f"{line.name} ends at {_shown(line.points[-1][1])}" for line in lines)
    parts = frame.parts(title, x_label, said)
    heights = _apart([frame.place(*line.points[-1])[1] for line in lines])
    for number, (line, height) in enumerate(zip(lines, heights, strict=True)):
        places = [frame.place(*point) for point in line.points]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        parts.append(f'<polyline class="s{number}" points="{path}"/>')
        if len(places) <= _DOTTED:
            parts += [
                f'<circle class="s{number}" cx="{x:.1f}" cy="{y:.1f}" r="3"/>' for x, y in places
            ]
        parts.append(_text(places[-1][0] + 8, height + 4, line.name, "start"))
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


def _apart(heights: Sequence[float]) -> list[float]:
    """The heights, moved so that names of lines that end close together do not overlap."""
    order = sorted(range(len(heights)), key=heights.__getitem__)
    moved = list(heights)
    for above, below in pairwise(order):
        moved[below] = max(moved[below], moved[above] + _LINE_HEIGHT)
    return moved


def _text(x: float, y: float, text: str, anchor: str, kind: str = "") -> str:
    style = f' class="{kind}"' if kind else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{style}>{escape(text)}</text>'
