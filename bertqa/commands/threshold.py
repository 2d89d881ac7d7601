"""When to say that a text holds no answer: the null score's threshold, chosen and kept.

bertqa threshold MODEL FILE

asks the questions of FILE, which the model was not trained on, takes the threshold with the best
F1 (Devlin et al. 2019, section 4.3, choose tau so) and keeps it beside the model:

    decoding.json        that there is "no answer", the threshold and the windows that it is for;
                         bertqa infer obeys it
    threshold.json       the curve: a row of threshold, EM and F1 for each that makes a difference
    threshold.svg        its picture

bertqa train does the same with the questions that --validation_split_percentage holds out. A
threshold chosen on the questions that a model is then judged by flatters it.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from bertqa.answering.answerer import QuestionAnswerer
from bertqa.answering.decoding_file import write_curve, write_decoding_file
from bertqa.answering.evaluation import best_point, curve_of
from bertqa.commands.flags import (
    Parser,
    add_place_flags,
    add_window_flags,
    overrides,
)
from bertqa.data.readers import read_examples
from bertqa.data.squad import check_answers, check_examples, has_both_kinds
from bertqa.errors import UserError
from bertqa.files import DECODING_FILE
from bertqa.model.folders import is_shipped
from bertqa.model.names import find_folder
from bertqa.report.threshold_curve import draw_curve
from bertqa.runtime import limit_onednn_cache
from bertqa.settings import DecodingSettings


def parse_flags(arguments: Sequence[str], prog: str | None = None) -> argparse.Namespace:
    """Parse the flags of ``bertqa threshold``."""
    parser = Parser(__doc__ or "", prog)
    parser.group("model")("model", metavar="MODEL", help="checkpoint folder or name under weights/")
    parser.group("data")(
        "file", type=Path, metavar="FILE",
        help="questions with gold answers, some of them without any, as in SQuAD v2.0",
    )  # fmt: skip
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
    overrides(flags).check()  # before a model is looked for
    folder = find_folder(flags.model)
    if is_shipped(folder):
        raise UserError(
            f"{flags.model} is the model that comes with the project, which stays as it is: copy "
            "its folder, and name the copy"
        )
    limit_onednn_cache()
    qa = QuestionAnswerer.from_pretrained(
        folder, decoding=DecodingSettings(version_2_with_negative=True),
        overrides=overrides(flags), device=flags.device, precision=flags.precision,
    )  # fmt: skip
    curve = curve_of(examples, list(qa.answer(examples)))
    best = best_point(curve)
    write_curve(folder, curve)
    draw_curve(folder, curve)
    write_decoding_file(folder, best.threshold, qa.windows)
    print(
        f"threshold {best.threshold:.4f}: EM {best.exact:.2f}, F1 {best.f1:.2f} on {flags.file}; "
        f"kept in {folder / DECODING_FILE}"
    )
