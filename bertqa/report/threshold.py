"""Choice of the "no answer" threshold of an existing model."""

import os
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


def find_writable_folder(model: str, revision: str | None, allow_bin: bool) -> Path:
    """Return the folder of a model that may be written to.

    Raises:
        UserError: the folder does not exist, is shipped with the project, is in the hub's cache, or
            there is no write permission.
    """
    folder = find_folder(model, revision=revision, allow_bin=allow_bin)
    if is_shipped(folder):
        reason = "is shipped with the project"
    elif commit_of(folder):
        reason = "is in the hub's cache"
    elif not os.access(folder, os.W_OK):
        reason = "has no write permission"
    else:
        return folder
    raise UserError(
        f"{model}: must have a folder of your own, got {folder}, which {reason}: copy the folder, "
        "and name the copy"
    )


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
    """Choose the threshold with the best F1 on a file's questions, and save it with the model.

    The temperature stays, as it was fitted to the scores of all answers and "no answer", which the
    threshold does not change. It changes the predicted answers, so the files of ``calibrate`` are
    outdated and removed.

    Args:
        model: checkpoint folder or name; decoding.json, threshold.json and threshold.svg are
            written into the folder.
        unanswerable_share: weight the questions so that this fraction of them is unanswerable;
            None weights all equally.

    Returns:
        The best point, the file with the threshold, and the removed files of ``calibrate``.

    Raises:
        UserError: the file has no gold answers, or not both answerable and unanswerable questions;
            the model is invalid, is shipped with the project, or is in the hub's cache.
    """
    examples = read_examples(file)
    check_examples(examples, str(file))
    check_answers(examples, str(file))
    if not has_both_kinds(examples):
        raise UserError(
            f"{file}: must have both answerable and unanswerable questions, as in SQuAD v2.0: "
            "pass another file"
        )
    folder = find_writable_folder(model, revision, allow_bin)
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
