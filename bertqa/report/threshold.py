"""Choose the threshold of "no answer", and keep it beside the model."""

from dataclasses import replace
from pathlib import Path

from bertqa.answering.answerer import QuestionAnswerer
from bertqa.answering.calibration import remove_calibration
from bertqa.answering.decoding_file import read_decoding_file, write_curve, write_decoding_file
from bertqa.answering.evaluation import best_point, curve_of
from bertqa.answering.metrics import ThresholdPoint
from bertqa.data.readers import read_examples
from bertqa.data.squad import check_answers, check_examples, has_both_kinds
from bertqa.errors import UserError
from bertqa.files import DECODING_FILE
from bertqa.model.hub import commit_of, find_folder, is_shipped
from bertqa.report.charts import draw_curve
from bertqa.settings import Overrides


def find_own_folder(model: str, revision: str | None, allow_bin: bool) -> Path:
    """The folder of a model, to write into.

    Raises:
        UserError: there is none, or it comes with the project, or is in the cache of the hub.
    """
    folder = find_folder(model, revision=revision, allow_bin=allow_bin)
    if is_shipped(folder) or commit_of(folder):
        origin = "comes with the project" if is_shipped(folder) else "the hub has"
        raise UserError(
            f"{model} is a model that {origin}, and its folder {folder} stays as it is: copy that, "
            "and name the copy"
        )
    return folder


def choose_threshold(
    model: str,
    file: Path,
    *,
    unanswerable_share: float | None,
    overrides: Overrides,
    device: str = "auto",
    precision: str = "auto",
    revision: str | None = None,
    allow_bin: bool = False,
) -> tuple[ThresholdPoint, Path, list[Path]]:
    """Choose the threshold with the best F1 on a file's questions, and keep it beside the model.

    The temperature stays: it is fitted to the scores of all answers, "no answer" among them, and
    the threshold changes none of them. It does change which answers are given, so figures of
    ``calibrate`` that are beside the model hold no longer and are removed.

    Args:
        model: checkpoint folder or name; decoding.json, threshold.json and threshold.svg are
            written into the folder.
        unanswerable_share: weight the questions so that those without an answer are this share;
            None counts every question once.

    Returns:
        The best point, the file that keeps it, and the files of ``calibrate`` that were removed.

    Raises:
        UserError: the questions have no answers, or all have or lack one; the model cannot be
            used, comes with the project, or is in the cache of the hub.
    """
    examples = read_examples(file)
    check_examples(examples, str(file))
    check_answers(examples, str(file))
    if not has_both_kinds(examples):
        raise UserError(
            f"{file} has not both questions with an answer and questions without, so one "
            "threshold would do for all: give a file in the form of SQuAD v2.0"
        )
    folder = find_own_folder(model, revision, allow_bin)
    before = read_decoding_file(folder)
    stored = replace(before[1], version_2_with_negative=True)
    qa = QuestionAnswerer.from_pretrained(
        folder, decoding=stored, overrides=overrides, device=device, precision=precision,
        allow_bin=allow_bin,
    )  # fmt: skip
    curve = curve_of(examples, list(qa.answer(examples)), unanswerable_share)
    best = best_point(curve)
    write_curve(folder, curve, unanswerable_share)
    draw_curve(folder, curve, unanswerable_share)
    chosen = replace(stored, null_score_diff_threshold=best.threshold)
    write_decoding_file(folder, chosen, qa.windows, unanswerable_share)
    removed = remove_calibration(folder) if (qa.windows, chosen) != before else []
    return best, folder / DECODING_FILE, removed
