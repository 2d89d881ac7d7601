"""When to say that a text holds no answer: the null score's threshold, chosen and kept.

python -m bertqa.commands.threshold MODEL FILE

asks the questions of FILE, which the model was not trained on, takes the threshold with the best
F1 (Devlin et al. 2019, section 4.3, choose tau so) and keeps it beside the model:

    decoding.json        that there is "no answer", the threshold and the windows that it is for;
                         infer.py obeys it
    threshold.json       the curve: a row of threshold, EM and F1 for each that makes a difference
    threshold.svg        its picture

train.py does the same with the questions that --validation_split_percentage holds out. A threshold
chosen on the questions that a model is then judged by flatters it.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from bertqa.answering.answerer import QuestionAnswerer
from bertqa.answering.decoding_file import read_decoding_file, write_decoding_file
from bertqa.answering.evaluation import best_point, curve_of
from bertqa.answering.metrics import ThresholdPoint
from bertqa.commands.flags import (
    Parser,
    add_place_flags,
    add_window_flags,
    run_script,
    window_settings,
)
from bertqa.data.readers import read_examples
from bertqa.data.squad import check_answers, check_examples, has_both_kinds
from bertqa.errors import UserError
from bertqa.files import DECODING_FILE, write_json, write_text
from bertqa.model.folders import is_shipped
from bertqa.model.names import find_folder
from bertqa.report.charts import Line, line_chart
from bertqa.runtime import limit_onednn_cache
from bertqa.settings import DecodingSettings

_DRAWN = 400  # points of the curve in the picture


def parse_flags(arguments: Sequence[str]) -> argparse.Namespace:
    """The flags of ``python -m bertqa.commands.threshold``."""
    parser = Parser(__doc__ or "")
    parser.add_argument("model", metavar="MODEL", help="checkpoint folder or name under weights/")
    parser.add_argument("file", type=Path, metavar="FILE", help="questions with gold, as in v2.0")
    add_place_flags(parser)
    add_window_flags(parser)
    return parser.parse(arguments)


def main(flags: argparse.Namespace) -> None:
    """Ask, choose, keep."""
    examples = read_examples(flags.file)
    check_examples(examples, str(flags.file))
    check_answers(examples, str(flags.file))
    if not has_both_kinds(examples):
        raise UserError(
            f"{flags.file} has not both questions with an answer and questions without, so one "
            "threshold would do for all: give a file in the form of SQuAD v2.0"
        )
    window_settings(flags)  # before a model is looked for
    folder = find_folder(flags.model)
    if is_shipped(folder):
        raise UserError(
            f"{flags.model} is the model that comes with the project, which stays as it is: copy "
            "its folder, and name the copy"
        )
    windows = window_settings(flags, stored=read_decoding_file(folder)[0])
    limit_onednn_cache()
    qa = QuestionAnswerer.from_pretrained(
        folder, windows=windows, decoding=DecodingSettings(version_2_with_negative=True),
        device=flags.device, precision=flags.precision,
    )  # fmt: skip
    curve = curve_of(examples, list(qa.answer(examples)))
    best = best_point(curve)
    keep_curve(folder, curve)
    write_decoding_file(folder, best.threshold, windows)
    print(
        f"threshold {best.threshold:.4f}: EM {best.exact:.2f}, F1 {best.f1:.2f} on {flags.file}; "
        f"kept in {folder / DECODING_FILE}"
    )


def keep_curve(folder: Path, curve: Sequence[ThresholdPoint]) -> None:
    """Put the curve beside a model, as data and as a picture."""
    columns = list(ThresholdPoint._fields)
    write_json(folder / "threshold.json", {"columns": columns, "rows": [list(p) for p in curve]})
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


if __name__ == "__main__":
    sys.exit(run_script(main, parse_flags(sys.argv[1:])))
