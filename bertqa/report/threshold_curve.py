"""The picture of how EM and F1 depend on the threshold of "no answer"."""

from collections.abc import Sequence
from pathlib import Path

import torch

from bertqa.answering.evaluation import best_point
from bertqa.answering.metrics import ThresholdPoint
from bertqa.files import write_text
from bertqa.report.charts import Line, line_chart

_DRAWN = 400  # points of the curve in the picture


def draw_curve(folder: Path, curve: Sequence[ThresholdPoint]) -> None:
    """Write threshold.svg: EM and F1 over the threshold; nothing where no point can be drawn.

    Raises:
        UserError: the folder cannot be written.
    """
    # A question without any span has the largest float32 for its odds; the picture ends before.
    drawable = [p for p in curve if abs(p.threshold) < torch.finfo(torch.float32).max / 2]
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
    title = (
        f"EM and F1 over the threshold of the null score, %; best {drawable[best].threshold:.3f}"
    )
    write_text(folder / "threshold.svg", line_chart(title, "threshold", lines))
