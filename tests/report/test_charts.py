"""Charts: positions of points, labels, and rejected input."""

import math
import xml.etree.ElementTree as ET
from collections import Counter
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bertqa.report.charts import Bar, Line, heat_map, histogram, line_chart, smoothed, ticks

SVG = "{http://www.w3.org/2000/svg}"


def texts(root: ET.Element) -> list[str]:
    return [element.text or "" for element in root.iter(f"{SVG}text")]


def points_of(root: ET.Element, number: int = 0) -> list[tuple[float, float]]:
    """Return the points of a line in pixels."""
    line = list(root.iter(f"{SVG}polyline"))[number]
    return [tuple(map(float, point.split(","))) for point in line.attrib["points"].split()]


def ticks_of(root: ET.Element) -> dict[float, float]:
    """Label of a tick of the y axis -> its height in pixels."""
    return {
        float((text.text or "").replace(",", "")): float(text.attrib["y"]) - 4
        for text in root.iter(f"{SVG}text")
        if text.attrib["text-anchor"] == "end"
    }


def test_points_match_the_ticks() -> None:
    root = ET.fromstring(line_chart("Loss", "step", [Line("loss", [(0, 4), (50, 1), (100, 2)])]))
    marks = ticks_of(root)
    assert list(marks) == [1, 2, 3, 4]
    points = points_of(root)
    assert [y for _, y in points] == pytest.approx([marks[4], marks[1], marks[2]], abs=0.1)
    assert points[1][0] == pytest.approx((points[0][0] + points[2][0]) / 2, abs=0.1)
    assert len(list(root.iter(f"{SVG}circle"))) == 3


def test_texts_are_present_and_escaped() -> None:
    lines = [Line("F1 <all>", [(0, 10), (1, 80)]), Line('"EM"', [(0, 5), (1, 79)])]
    root = ET.fromstring(line_chart("A & B", "x", lines))
    assert {"A & B", "x", "F1 <all>", '"EM"'} <= set(texts(root))
    assert root.attrib["aria-label"] == 'A & B: F1 <all> ends at 80.00; "EM" ends at 79.00'
    assert root.attrib["role"] == "img"


def test_labels_of_lines_that_end_close_together_do_not_overlap() -> None:
    lines = [Line(name, [(0, 0), (1, end)]) for name, end in (("a", 50), ("b", 50.1), ("c", 49.9))]
    root = ET.fromstring(line_chart("t", "x", lines))
    heights = sorted(
        float(e.attrib["y"]) for e in root.iter(f"{SVG}text") if e.text in {"a", "b", "c"}
    )
    assert all(below - above >= 14.9 for above, below in pairwise(heights))


def test_lines_with_the_same_name_share_a_color_and_one_label() -> None:
    lines = [Line("a", [(0, 0), (1, 5)]), Line("b", [(0, 9), (1, 9)]), Line("a", [(1, 5), (2, 2)])]
    root = ET.fromstring(line_chart("t", "x", lines))
    assert [line.attrib["class"] for line in root.iter(f"{SVG}polyline")] == ["s0", "s1", "s0"]
    names = {e.text: e for e in root.iter(f"{SVG}text") if e.text in {"a", "b"}}
    assert Counter(texts(root))["a"] == 1
    x, y = points_of(root, 2)[-1]
    assert float(names["a"].attrib["x"]) == pytest.approx(x + 8, abs=0.11)
    assert float(names["a"].attrib["y"]) == pytest.approx(y + 4, abs=0.11)
    assert root.attrib["aria-label"] == "t: a ends at 2.00; b ends at 9.00"


@pytest.mark.parametrize(
    "lines",
    [
        [], [Line("a", [])], [Line(name, [(0, 0)]) for name in "abcd"],
        [Line("a", [(0, math.nan)])], [Line("a", [(math.inf, 0)])],
    ],
)  # fmt: skip
def test_invalid_charts_are_rejected(lines: list[Line]) -> None:
    with pytest.raises(ValueError, match="chart"):
        line_chart("t", "x", lines)
    with pytest.raises(ValueError, match="chart"):
        histogram("t", "x", [])


@pytest.mark.parametrize("value", [7, 3e-5, 1e30, 0])
def test_a_chart_of_equal_values_has_ticks_of_their_size(value: float) -> None:
    root = ET.fromstring(line_chart("t", "x", [Line("a", [(3, value)])]))
    ((x, y),) = points_of(root)
    assert 0 < x < 680 and 0 < y < 300
    assert max(ticks_of(root)) <= 2 * value or value == 0


def test_the_description_of_small_numbers_has_their_digits() -> None:
    root = ET.fromstring(line_chart("t", "x", [Line("a", [(0, 3e-5), (1, 1e-5)])]))
    assert root.attrib["aria-label"] == "t: a ends at 0.000010"


@given(st.floats(-1e6, 1e6), st.floats(1e-3, 1e6))
def test_ticks_are_few_evenly_spaced_and_span_the_range(low: float, width: float) -> None:
    high = low + width
    found = ticks(low, high)
    steps = [b - a for a, b in pairwise(found)]
    slack = (high - low) * 1e-6 + 1e-9 * max(abs(low), abs(high))
    assert found[0] <= low + slack and found[-1] >= high - slack
    assert 3 <= len(found) <= 8
    assert steps == pytest.approx([steps[0]] * len(steps), rel=1e-3)


def test_neighboring_ticks_have_different_labels() -> None:
    root = ET.fromstring(line_chart("t", "x", [Line("a", [(0, 72.501), (4000, 72.509)])]))
    heights = [t.text for t in root.iter(f"{SVG}text") if t.attrib["text-anchor"] == "end"]
    assert len(heights) == len(set(heights)) > 3
    assert "4,000" in texts(root)


# --- histograms ----------------------------------------------------------------------------------


def test_bars_start_at_the_axis_and_have_the_height_of_their_count() -> None:
    bars = [Bar(0, 10, 20), Bar(10, 20, 5), Bar(20, 30, 0)]
    root = ET.fromstring(histogram("A & B", "tokens", bars))
    marks = ticks_of(root)
    drawn = [{k: float(v) for k, v in rect.attrib.items()} for rect in root.iter(f"{SVG}rect")]
    assert [d["y"] for d in drawn] == pytest.approx([marks[20], marks[5], marks[0]], abs=0.1)
    assert [d["y"] + d["height"] for d in drawn] == pytest.approx([marks[0]] * 3, abs=0.2)
    assert all(left["x"] + left["width"] < right["x"] for left, right in pairwise(drawn))
    notes = [note.text for note in root.iter(f"{SVG}title")]
    assert notes == ["0 to 10: 20", "10 to 20: 5", "20 to 30: 0"]
    assert root.attrib["aria-label"] == "A & B: most, 20, from 0 to 10"
    assert {"A & B", "tokens"} <= set(texts(root))


def test_ticks_of_small_counts_are_integers() -> None:
    root = ET.fromstring(histogram("t", "x", [Bar(0, 1, 1)]))
    assert list(ticks_of(root)) == [0, 1, 2, 3, 4, 5]


def test_many_points_are_averaged() -> None:
    assert smoothed([(1, 4.0), (2, 2.0)]) == [(1, 4.0), (2, 2.0)]
    many = smoothed([(step, step % 2) for step in range(95)])
    assert many[0] == (9, 0.5) and many[-1][0] == 94 and len(many) == 10


# --- heat maps -----------------------------------------------------------------------------------

CELLS, BARS = [[0.5, -2.0, 0.0], [1.0, 0.25, 4.0]], [30.0, -10.0]


def heat_map_of(cells: list[list[float]], bars: list[float]) -> ET.Element:
    names = {"row": "layer", "column": "head", "bar": "whole layer"}
    return ET.fromstring(heat_map("Lost <F1>", cells, bars, **names))


def colored(root: ET.Element) -> dict[str, ET.Element]:
    """Title of each rectangle of a number -> the rectangle."""
    found = {}
    for rect in root.iter(f"{SVG}rect"):
        title = rect.find(f"{SVG}title")
        if title is not None:
            found[title.text or ""] = rect
    return found


def test_larger_numbers_are_more_opaque_in_a_heat_map() -> None:
    root = heat_map_of(CELLS, BARS)
    found = colored(root)
    assert list(found) == [
        "layer 0, head 0: 0.50", "layer 0, head 1: -2.00", "layer 0, head 2: 0.00",
        "layer 1, head 0: 1.00", "layer 1, head 1: 0.25", "layer 1, head 2: 4.00",
        "whole layer 0: 30.00", "whole layer 1: -10.00",
    ]  # fmt: skip
    opacity = [float(rect.attrib["fill-opacity"]) for rect in found.values()]
    assert opacity == pytest.approx([1 / 8, 1 / 2, 0, 1 / 4, 1 / 16, 1, 1, 1], abs=1e-3)
    kinds = [rect.attrib["class"] for rect in found.values()]
    assert [kind == "less" for kind in kinds] == [name.find("-") > 0 for name in found]
    long, short = (
        float(found[f"whole layer {n}"].attrib["width"]) for n in ("0: 30.00", "1: -10.00")
    )
    assert long == pytest.approx(3 * short, abs=0.1)
    assert root.attrib["aria-label"] == (
        "Lost <F1>: largest magnitude: layer 1, head 2 with 4.00; whole layer 0 with 30.00"
    )
    assert {"Lost <F1>", "layer", "whole layer", "30.0", "-10.0"} <= set(texts(root))


def test_cells_of_a_heat_map_are_in_their_row_and_column() -> None:
    found = colored(heat_map_of(CELLS, BARS))
    at = {name: (float(r.attrib["x"]), float(r.attrib["y"])) for name, r in found.items()}
    first, second = at["layer 0, head 1: -2.00"], at["layer 1, head 2: 4.00"]
    assert first[0] < second[0] and first[1] < second[1]
    assert at["layer 0, head 2: 0.00"] == (second[0], first[1])
    farthest_right = max(x + float(found[name].attrib["width"]) for name, (x, _) in at.items())
    assert farthest_right < 680


def test_a_heat_map_of_zeros_and_of_many_columns() -> None:
    found = colored(heat_map_of([[0.0] * 40], [0.0]))
    assert {rect.attrib["fill-opacity"] for rect in found.values()} == {"0.000", "1.000"}
    root = heat_map_of([[1.0] * 40], [1.0])
    numbers = [text for text in texts(root) if text.isdigit()]
    assert numbers == [str(n) for n in range(0, 40, 3)] + ["0"]  # and the row's


@pytest.mark.parametrize(
    ("cells", "bars"),
    [([], []), ([[]], [1.0]), ([[1.0], [1.0, 2.0]], [1.0, 1.0]), ([[1.0]], []),
     ([[math.nan]], [1.0]), ([[1.0]], [math.inf])],
)  # fmt: skip
def test_invalid_heat_maps_are_rejected(cells: list[list[float]], bars: list[float]) -> None:
    with pytest.raises(ValueError, match="heat map"):
        heat_map_of(cells, bars)
