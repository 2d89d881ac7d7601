"""The page and the picture of a training run, brought up to date while it goes on."""

from collections.abc import Sequence
from pathlib import Path

from bertqa.data.squad import Example
from bertqa.files import write_text
from bertqa.report.threshold_curve import draw_curve
from bertqa.report.training_page import Answered, report_page
from bertqa.training.evaluations import Measured, Observer
from bertqa.training.run_folder import last_answers, read_description, read_log


class RunReport(Observer):
    """Writes report.html and threshold.svg into the folder of the run that it observes."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def after_evaluation(self, measured: Measured) -> None:
        """Draw the curve of a new best model, and bring the page up to date.

        Raises:
            UserError: the folder cannot be written.
        """
        if measured.is_best and measured.evaluation and measured.evaluation.curve:
            draw_curve(self.path, measured.evaluation.curve)
        write_report(self.path, measured.examples, v2=measured.settings.version_2_with_negative)


def write_report(path: Path, examples: Sequence[Example], *, v2: bool) -> None:
    """Write report.html from what else is in a run's folder.

    Args:
        examples: the validation questions; none if there are none.
        v2: "" is an answer too.

    Raises:
        UserError: the folder cannot be written.
    """
    answered = _answered(path, examples, v2) if examples else None
    page = report_page(path.resolve().name, read_description(path), read_log(path), answered)
    write_text(path / "report.html", page)


def _answered(path: Path, examples: Sequence[Example], v2: bool) -> Answered | None:
    """The answers of the last evaluation, and of the one before."""
    answers = last_answers(path)
    if not answers:
        return None
    if len(answers) == 1:
        return Answered(examples, *answers[0], v2=v2)
    before, last = answers
    return Answered(examples, *last, *before, v2)
