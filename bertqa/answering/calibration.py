"""Calibrate probabilities: fit a temperature, and measure what it changes on other articles."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from bertqa.answering.answerer import QuestionAnswerer
from bertqa.answering.answers import Prediction
from bertqa.answering.reliability import Reliability, finite_numbers, measure
from bertqa.answering.temperature import ScoredQuestions, fit_temperature
from bertqa.data.squad import Example, split_by_article
from bertqa.errors import UserError
from bertqa.files import read_json_object, said_plainly, write_json

CALIBRATION_FILE, CALIBRATION_PICTURE = "calibration.json", "calibration.svg"


@dataclass(frozen=True)
class Calibration:
    """A temperature, and what it changes on questions that it was not fitted on.

    Attributes:
        fitted_on: questions that it was fitted on.
        before, after: at temperature 1, and at the one that was found, on the others.
    """

    fitted_on: int
    before: Reliability
    after: Reliability

    @property
    def temperature(self) -> float:
        """The one that was found."""
        return self.after.temperature


def calibrate(
    qa: QuestionAnswerer, examples: Sequence[Example], source: str
) -> tuple[Calibration, list[Prediction]]:
    """Fit a temperature on every other article, and measure on the others what it changes.

    Args:
        examples: questions with gold answers that the model was not trained on; those about one
            article, or where there are no titles one context, stay together.
        source: what messages call them.

    Returns:
        The calibration, and the answers to all questions at its temperature.

    Raises:
        UserError: the examples cannot be used, or are all about one article.
    """
    if len({example.title or example.context for example in examples}) < 2:
        raise UserError(
            f"{source} must have questions about two articles or more to be fitted and measured on "
            "different ones, got one article: give more"
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
    """Remove figures that hold no longer; the files that there were.

    Raises:
        UserError: one cannot be removed.
    """
    found = [folder / name for name in (CALIBRATION_FILE, CALIBRATION_PICTURE)]
    found = [path for path in found if path.exists()]
    for path in found:
        with said_plainly(path, "removed"):
            path.unlink()
    return found


def read_calibration(folder: Path) -> Calibration | None:
    """What calibration.json in a folder says; None where there is none.

    Raises:
        UserError: it is not as ``write_calibration`` writes it.
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
            f"{path} must be as bertqa calibrate writes it, got another form ({error}): remove it, "
            "or calibrate again"
        ) from error
