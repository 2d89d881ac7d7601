"""Calibration of an existing model, and its reliability diagram."""

from dataclasses import replace
from pathlib import Path

from bertqa.answering.answerer import QuestionAnswerer
from bertqa.answering.calibration import (
    CALIBRATION_PICTURE,
    Calibration,
    calibrate,
    write_calibration,
)
from bertqa.answering.decoding_file import update_temperature
from bertqa.answering.reliability import Reliability, measure
from bertqa.answering.temperature import ScoredQuestions
from bertqa.data.readers import read_examples
from bertqa.files import DECODING_FILE, write_text
from bertqa.report.charts import Line, line_chart
from bertqa.report.threshold import find_writable_folder


def calibrate_model(
    model: str,
    file: Path,
    *,
    device: str = "auto",
    precision: str = "auto",
    revision: str | None = None,
    allow_bin: bool = False,
) -> tuple[Calibration, Path]:
    """Fit the temperature of a model to a file's questions, and save it with the model.

    Args:
        model: checkpoint folder or name; decoding.json, calibration.json and calibration.svg are
            written into the folder.

    Returns:
        The calibration, and the path of the file with the temperature.

    Raises:
        UserError: the questions are unsuitable, see ``calibrate``; the model is invalid, is shipped
            with the project, or is in the hub's cache.
    """
    examples = read_examples(file)
    folder = find_writable_folder(model, revision, allow_bin)
    qa = QuestionAnswerer.from_pretrained(
        folder, device=device, precision=precision, allow_bin=allow_bin
    )
    calibration, _ = calibrate(qa, examples, str(file))
    write_calibration(folder, calibration)
    write_text(folder / CALIBRATION_PICTURE, reliability_diagram(calibration))
    settings = replace(qa.decoding, temperature=calibration.temperature)
    update_temperature(folder, settings, qa.windows)
    return calibration, folder / DECODING_FILE


def measure_model(
    model: str,
    file: Path,
    *,
    device: str = "auto",
    precision: str = "auto",
    revision: str | None = None,
    allow_bin: bool = False,
) -> Reliability:
    """Measure the calibration of a model, at its own temperature, on all questions of a file.

    Raises:
        UserError: the questions or the model are invalid.
    """
    examples = read_examples(file)
    qa = QuestionAnswerer.from_pretrained(
        model, device=device, precision=precision, revision=revision, allow_bin=allow_bin
    )
    scored, temperature = ScoredQuestions(qa, examples, str(file)), qa.decoding.temperature
    ids = {example.id for example in examples}
    return measure(scored, scored.predictions(temperature), ids, temperature)


def reliability_diagram(calibration: Calibration) -> str:
    """Return accuracy over probability, before and after calibration, as an SVG document."""
    lines = [Line("ideal", [(0.0, 0.0), (1.0, 1.0)])]
    for when, found in (("before", calibration.before), ("after", calibration.after)):
        lines.append(Line(when, [(each.probability, each.accuracy) for each in found.bins]))
    title = (
        f"Accuracy of answers over their probability, before and after "
        f"T = {calibration.temperature:.3f}"
    )
    return line_chart(title, "mean probability of a bin", lines)
