"""When to say that a text holds no answer: the null score's threshold, chosen and kept.

python -m bertqa.threshold MODEL FILE

asks the questions of FILE, which the model was not trained on, takes the threshold with the best
F1 (Devlin et al. 2019, section 4.3, choose tau so) and keeps it beside the model:

    decoding.json        that there is "no answer", and the threshold; infer.py obeys it
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

from bertqa.answering import QuestionAnswerer, find_folder
from bertqa.charts import Line, line_chart
from bertqa.cli import Parser, add_place_flags, run_script
from bertqa.errors import UserError
from bertqa.evaluation import DecodingSettings, best_point, curve_of
from bertqa.files import write_json, write_text
from bertqa.folders import DECODING_FILE
from bertqa.metrics import ThresholdPoint
from bertqa.readers import read_examples
from bertqa.runtime import forget_kernels
from bertqa.squad import check_answers, check_examples

_DRAWN = 400  # points of the curve in the picture


def parse_flags(arguments: Sequence[str]) -> argparse.Namespace:
    """The flags of ``python -m bertqa.threshold``."""
    parser = Parser(__doc__ or "")
    parser.add_argument("model", metavar="MODEL", help="checkpoint folder or name under weights/")
    parser.add_argument("file", type=Path, metavar="FILE", help="questions with gold, as in v2.0")
    add_place_flags(parser)
    return parser.parse(arguments)


def main(flags: argparse.Namespace) -> None:
    """Ask, choose, keep."""
    examples = read_examples(flags.file)
    check_examples(examples, str(flags.file))
    check_answers(examples, str(flags.file))
    if not any(example.is_impossible for example in examples):
        raise UserError(
            f"{flags.file} has no question without an answer, so any low threshold would do: give "
            "a file in the form of SQuAD v2.0"
        )
    folder = find_folder(flags.model)
    forget_kernels()
    qa = QuestionAnswerer.from_pretrained(
        folder, decoding=DecodingSettings(version_2_with_negative=True),
        device=flags.device, precision=flags.precision,
    )  # fmt: skip
    curve = curve_of(examples, list(qa.answer(examples)))
    best = best_point(curve)
    keep_threshold(folder, best.threshold)
    keep_curve(folder, curve)
    print(
        f"threshold {best.threshold:.4f}: EM {best.exact:.2f}, F1 {best.f1:.2f} on {flags.file}; "
        f"kept in {folder / DECODING_FILE}"
    )


def keep_threshold(folder: Path, threshold: float) -> None:
    """Let the model in a folder say "no answer" from a threshold on."""
    entries = {"version_2_with_negative": True, "null_score_diff_threshold": threshold}
    write_json(folder / DECODING_FILE, entries)


def keep_curve(folder: Path, curve: Sequence[ThresholdPoint]) -> None:
    """Put the curve beside a model, as data and as a picture."""
    columns = list(ThresholdPoint._fields)
    write_json(folder / "threshold.json", {"columns": columns, "rows": [list(p) for p in curve]})
    # A question without any span has the largest float32 for its odds; the picture ends before.
    shown = [p for p in curve if abs(p.threshold) < torch.finfo(torch.float32).max / 2]
    shown = shown[:: max(1, len(shown) // _DRAWN)]
    lines = [
        Line("F1", [(p.threshold, p.f1) for p in shown]),
        Line("exact match", [(p.threshold, p.exact) for p in shown]),
    ]
    title = "EM and F1 over the threshold of the null score, %"
    write_text(folder / "threshold.svg", line_chart(title, "threshold", lines))


if __name__ == "__main__":
    sys.exit(run_script(main, parse_flags(sys.argv[1:])))
