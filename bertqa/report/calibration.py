"""Calibrate a model that is there, and draw how far its probabilities can be trusted."""

from dataclasses import replace
from pathlib import Path

from bertqa.answering.answerer import QuestionAnswerer
from bertqa.answering.calibration import (
    CALIBRATION_PICTURE,
    Calibration,
    calibrate,
    write_calibration,
)
from bertqa.answering.decoding_file import keep_temperature
from bertqa.answering.reliability import Reliability, measure
from bertqa.answering.temperature import ScoredQuestions
from bertqa.data.readers import read_examples
from bertqa.files import DECODING_FILE, write_text
from bertqa.report.charts import Line, line_chart
from bertqa.report.threshold import find_own_folder


def calibrate_model(
    model: str,
    file: Path,
    *,
    device: str = "auto",
    precision: str = "auto",
    revision: str | None = None,
    allow_bin: bool = False,
) -> tuple[Calibration, Path]:
    """Fit the temperature of a model to a file's questions, and keep it beside the model.

    Args:
        model: checkpoint folder or name; decoding.json, calibration.json and calibration.svg are
            written into the folder.

    Returns:
        The calibration, and the file that keeps the temperature.

    Raises:
        UserError: the questions cannot be used, see ``calibrate``; the model cannot be used, comes
            with the project, or is in the cache of the hub.
    """
    examples = read_examples(file)
    folder = find_own_folder(model, revision, allow_bin)
    qa = QuestionAnswerer.from_pretrained(
        folder, device=device, precision=precision, allow_bin=allow_bin
    )
    calibration, _ = calibrate(qa, examples, str(file))
    write_calibration(folder, calibration)
    write_text(folder / CALIBRATION_PICTURE, reliability_diagram(calibration))
    settings = replace(qa.decoding, temperature=calibration.temperature)
    keep_temperature(folder, settings, qa.windows)
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
    """Measure the probabilities of a model, at its own temperature, on all questions of a file.

    Raises:
        UserError: the questions or the model cannot be used.
    """
    examples = read_examples(file)
    qa = QuestionAnswerer.from_pretrained(
        model, device=device, precision=precision, revision=revision, allow_bin=allow_bin
    )
    scored, temperature = ScoredQuestions(qa, examples, str(file)), qa.decoding.temperature
    ids = {example.id for example in examples}
    return measure(scored, scored.predictions(temperature), ids, temperature)


def reliability_diagram(calibration: Calibration) -> str:
    """The share of right answers over their probability, before and after, as an SVG document."""
    lines = [Line("as it should be", [(0.0, 0.0), (1.0, 1.0)])]
    for when, found in (("before", calibration.before), ("after", calibration.after)):
        lines.append(Line(when, [(each.probability, each.accuracy) for each in found.bins]))
    title = (
        f"Share of right answers over their probability, before and after "
        f"T = {calibration.temperature:.3f}"
    )
    return line_chart(title, "probability, the mean of a bin", lines)
