"""The threshold of "no answer": chosen and kept, and a picture of how EM and F1 depend on it."""

from collections.abc import Sequence
from pathlib import Path

import torch

from bertqa.answering.answerer import QuestionAnswerer
from bertqa.answering.decoding_file import write_curve, write_decoding_file
from bertqa.answering.evaluation import best_point, curve_of
from bertqa.answering.metrics import ThresholdPoint
from bertqa.data.readers import read_examples
from bertqa.data.squad import check_answers, check_examples, has_both_kinds
from bertqa.errors import UserError
from bertqa.files import DECODING_FILE, write_text
from bertqa.model.hub import find_folder, is_shipped
from bertqa.report.charts import Line, line_chart
from bertqa.runtime import limit_onednn_cache
from bertqa.settings import DecodingSettings, Overrides

_DRAWN = 400  # points of the curve in the picture


def choose_threshold(
    model: str,
    file: Path,
    *,
    overrides: Overrides,
    device: str = "auto",
    precision: str = "auto",
    revision: str | None = None,
    allow_bin: bool = False,
) -> tuple[ThresholdPoint, Path]:
    """Choose the threshold with the best F1 on a file's questions, and keep it beside the model.

    Args:
        model: checkpoint folder or name; decoding.json, threshold.json and threshold.svg are
            written into the folder.

    Returns:
        The best point, and the file that keeps it.

    Raises:
        UserError: the questions have no answers, or all have or lack one; the model cannot be
            used, or is the one that comes with the project.
    """
    examples = read_examples(file)
    check_examples(examples, str(file))
    check_answers(examples, str(file))
    if not has_both_kinds(examples):
        raise UserError(
            f"{file} has not both questions with an answer and questions without, so one "
            "threshold would do for all: give a file in the form of SQuAD v2.0"
        )
    folder = find_folder(model, revision=revision, allow_bin=allow_bin)
    if is_shipped(folder):
        raise UserError(
            f"{model} is the model that comes with the project, which stays as it is: copy "
            "its folder, and name the copy"
        )
    limit_onednn_cache()
    qa = QuestionAnswerer.from_pretrained(
        folder, decoding=DecodingSettings(version_2_with_negative=True), overrides=overrides,
        device=device, precision=precision, allow_bin=allow_bin,
    )  # fmt: skip
    curve = curve_of(examples, list(qa.answer(examples)))
    best = best_point(curve)
    write_curve(folder, curve)
    draw_curve(folder, curve)
    write_decoding_file(folder, best.threshold, qa.windows)
    return best, folder / DECODING_FILE


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
