"""The work of ``bertqa threshold``: ask, choose, keep."""

import argparse

from bertqa.answering.answerer import QuestionAnswerer
from bertqa.answering.decoding_file import write_curve, write_decoding_file
from bertqa.answering.evaluation import best_point, curve_of
from bertqa.commands.flags import overrides
from bertqa.data.readers import read_examples
from bertqa.data.squad import check_answers, check_examples, has_both_kinds
from bertqa.errors import UserError
from bertqa.files import DECODING_FILE
from bertqa.model.folders import is_shipped
from bertqa.model.names import find_folder
from bertqa.report.charts import draw_curve
from bertqa.runtime import limit_onednn_cache
from bertqa.settings import DecodingSettings


def choose(flags: argparse.Namespace) -> None:
    """Choose the threshold of "no answer" for a model, and keep it beside the model."""
    examples = read_examples(flags.file)
    check_examples(examples, str(flags.file))
    check_answers(examples, str(flags.file))
    if not has_both_kinds(examples):
        raise UserError(
            f"{flags.file} has not both questions with an answer and questions without, so one "
            "threshold would do for all: give a file in the form of SQuAD v2.0"
        )
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
