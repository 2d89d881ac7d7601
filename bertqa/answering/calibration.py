"""Calibration of probabilities: a fitted temperature, and its effect on other articles."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from bertqa.answering.answerer import QuestionAnswerer
from bertqa.answering.answers import Prediction
from bertqa.answering.reliability import Reliability, finite_numbers, measure
from bertqa.answering.temperature import ScoredQuestions, fit_temperature
from bertqa.data.squad import Example, split_by_article
from bertqa.errors import UserError
from bertqa.files import os_errors_as_user_errors, read_json_object, write_json

CALIBRATION_FILE, CALIBRATION_PICTURE = "calibration.json", "calibration.svg"


@dataclass(frozen=True)
class Calibration:
    """A temperature, and its effect on questions to which it was not fitted.

    Attributes:
        fitted_on: number of questions to which it was fitted.
        before, after: reliability on the other questions, at temperature 1 and at the fitted one.
    """

    fitted_on: int
    before: Reliability
    after: Reliability

    @property
    def temperature(self) -> float:
        """The fitted temperature."""
        return self.after.temperature


def calibrate(
    qa: QuestionAnswerer, examples: Sequence[Example], source: str
) -> tuple[Calibration, list[Prediction]]:
    """Fit a temperature on every other article, and measure its effect on the remaining ones.

    Args:
        examples: questions with gold answers on which the model was not trained. Questions with the
            same title, or the same context if there are no titles, are about one article.
        source: name of the examples in messages.

    Returns:
        The calibration, and the answers to all questions at its temperature.

    Raises:
        UserError: the examples are invalid, or all about one article.
    """
    if len({example.title or example.context for example in examples}) < 2:
        raise UserError(
            f"{source} must have questions about at least two articles, one to fit and one to "
            "measure, got one article: add more"
        )
    scored = ScoredQuestions(qa, examples, source)
    fitting, measuring = split_by_article(examples, 50)
    temperature = fit_temperature(scored, {example.id for example in fitting}, source)
    ids = {example.id for example in measuring}
    predictions = scored.predictions(temperature)
    before = measure(scored, scored.predictions(1.0), ids, 1.0)
    after = measure(scored, predictions, ids, temperature)
    return Calibration(len(fitting), before, after), predictions


def write_calibration(folder: Path, calibration: Calibration) -> None:
    """Write calibration.json.

    Raises:
        UserError: the folder cannot be written.
    """
    write_json(folder / CALIBRATION_FILE, asdict(calibration))


def remove_calibration(folder: Path) -> list[Path]:
    """Remove the calibration files of a folder, and return those that existed.

    Raises:
        UserError: a file cannot be removed.
    """
    found = [folder / name for name in (CALIBRATION_FILE, CALIBRATION_PICTURE)]
    found = [path for path in found if path.exists()]
    for path in found:
        with os_errors_as_user_errors(path, "removed"):
            path.unlink()
    return found


def read_calibration(folder: Path) -> Calibration | None:
    """Read calibration.json of a folder; None if it does not exist.

    Raises:
        UserError: the file is not as ``write_calibration`` writes it.
    """
    path = folder / CALIBRATION_FILE
    if not path.exists():
        return None
    entries = read_json_object(path)
    try:
        before, after = (Reliability.from_json(entries[key]) for key in ("before", "after"))
        fitted_on = finite_numbers({"fitted_on": entries["fitted_on"]})["fitted_on"]
        return Calibration(fitted_on, before, after)
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise UserError(
            f"{path}: must be as bertqa calibrate writes it, got another format ({error}): remove "
            "it, or calibrate again"
        ) from error
