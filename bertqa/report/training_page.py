"""A training run as one HTML page: its curves, its evaluations, and what changed in between."""

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from bertqa.answering.calibration import CALIBRATION_PICTURE, Calibration, read_calibration
from bertqa.answering.metrics import question_scores
from bertqa.data.squad import Example
from bertqa.files import write_text
from bertqa.report.analysis import breakdown
from bertqa.report.calibration import reliability_diagram
from bertqa.report.charts import Line, draw_curve, line_chart, smoothed
from bertqa.report.page import render
from bertqa.settings import DecodingSettings
from bertqa.training.evaluations import Measured, Observer, figures_of
from bertqa.training.run_folder import kept_answers, last_answers, read_description, read_log

_LISTED = 200  # questions won, and as many lost, that the page lists


@dataclass(frozen=True)
class Answered:
    """The questions of an evaluation and the answers of two evaluations to them.

    Attributes:
        examples: with gold answers.
        step, answers: of the last evaluation: id -> answer.
        step_before, answers_before: of the one before; empty at the first.
        v2: "" is an answer too.
        kept_step, kept: step and answers of the model that is kept, the best so far; None where
            no file has them.
    """

    examples: Sequence[Example]
    step: int
    answers: Mapping[str, str]
    step_before: int = 0
    answers_before: Mapping[str, str] | None = None
    v2: bool = False
    kept_step: int | None = None
    kept: Mapping[str, str] | None = None


class RunReport(Observer):
    """Writes report.html and pictures into the folder of the run that it observes."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def after_evaluation(self, measured: Measured) -> None:
        """Draw the curve of a new best model, and bring the page up to date.

        Raises:
            UserError: the folder cannot be written.
        """
        if measured.is_best and measured.evaluation and measured.evaluation.curve:
            evaluation = measured.evaluation
            draw_curve(self.path, evaluation.curve, evaluation.unanswerable_share)
        write_report(self.path, measured.examples, v2=measured.settings.version_2_with_negative)

    def after_calibration(
        self, calibration: Calibration, examples: Sequence[Example], settings: DecodingSettings
    ) -> None:
        """Draw the reliability diagram, and bring the page up to date.

        Raises:
            UserError: the folder cannot be written.
        """
        write_text(self.path / CALIBRATION_PICTURE, reliability_diagram(calibration))
        write_report(self.path, examples, v2=settings.version_2_with_negative)


def write_report(path: Path, examples: Sequence[Example], *, v2: bool) -> None:
    """Write report.html from what else is in a run's folder.

    Args:
        examples: the validation questions; none if there are none.
        v2: "" is an answer too.

    Raises:
        UserError: the folder cannot be written.
    """
    kept = last_answers(path) if examples else []  # of two evaluations at most
    step_before, before = kept[0] if len(kept) > 1 else (0, None)
    log = read_log(path)
    best = run_figures(log)["kept"], kept_answers(path)
    answered = Answered(examples, *kept[-1], step_before, before, v2, *best) if kept else None
    page = report_page(
        path.resolve().name,
        read_description(path),
        log,
        answered,
        read_calibration(path) if examples else None,
    )
    write_text(path / "report.html", page)


def report_page(
    title: str,
    description: Mapping[str, Any],
    log: Sequence[Mapping[str, float]],
    answered: Answered | None,
    calibration: Calibration | None = None,
) -> str:
    """The page of a run, finished or not.

    Args:
        title: what it is called.
        description: what run.json holds.
        log: the lines of log.jsonl.
        answered: None for a run without validation data.
        calibration: None for a run that is not at its end.
    """
    figures = run_figures(log)
    groups = []
    if answered:
        by_kept = answered.answers if answered.kept is None else answered.kept
        groups = breakdown(answered.examples, by_kept, v2=answered.v2)
    return render(
        "report/training.jinja",
        title=f"Training: {title}",
        name=title,
        summary=list(_summary(figures)),
        charts=[chart for item in _CHARTS.items() if (chart := draw_series(item[0], log, item[1]))],
        evaluations=_evaluations(log, figures["best"]),
        answered=answered,
        moved=_moved(answered) if answered and answered.answers_before is not None else [],
        most_listed=_LISTED,
        calibration=calibration,
        diagram=reliability_diagram(calibration) if calibration else "",
        groups=[(by, list(members)) for by, members in groupby(groups, key=lambda g: g.by)],
        settings=list(_settings(description)),
    )


def run_figures(log: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """A log in a few figures; None for what it does not tell.

    ``best`` is the first line with the best F1, ``kept`` its step, else the last; ``loss`` the last
    one logged until then; ``rate`` the median of tokens per second; ``seconds`` those of the
    training, evaluations apart, which early versions did not log.
    """
    steps = max((line["step"] for line in log), default=0)
    best = max((line for line in log if "f1" in line), key=lambda line: line["f1"], default=None)
    kept = best["step"] if best else steps
    logged = [line for line in log if "loss" in line]
    rates = [line["tokens_per_second"] for line in logged if "tokens_per_second" in line]
    timed = logged and all("seconds" in line for line in logged)
    return {
        "steps": steps,
        "best": best,
        "kept": kept,
        "loss": next((line["loss"] for line in reversed(logged) if line["step"] <= kept), None),
        "seconds": math.fsum(line["seconds"] for line in logged) if timed else None,
        "rate": statistics.median_low(rates) if rates else None,
    }


def _summary(figures: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    yield f"{figures['steps']:,}", "steps logged"
    if figures["rate"] is not None:
        yield f"{figures['rate']:,.0f}", "tokens per second, the median"
    if figures["seconds"] is not None:
        yield in_words(figures["seconds"]), "of training, evaluations apart"
    if best := figures["best"]:
        yield f"{best['exact_match']:.2f}", "exact match of the best model, %"
        yield f"{best['f1']:.2f}", f"F1, %, at step {best['step']:,}"


def in_words(total: float) -> str:
    """So many seconds: "2 h 08 min", "12 min 40 s", "3.1 s"."""
    minutes, seconds = divmod(round(total), 60)
    if total < 59.95:
        return f"{total:.1f} s"
    if minutes < 60:
        return f"{minutes} min {seconds:02d} s"
    hours, minutes = divmod(round(total / 60), 60)
    return f"{hours} h {minutes:02d} min"


def draw_series(
    title: str, log: Sequence[Mapping[str, float]], names: Mapping[str, str]
) -> str | None:
    """A chart of some keys of a log, by their names, over the steps; None where none is there."""
    lines = []
    for key, name in names.items():
        if points := [(line["step"], line[key]) for line in log if key in line]:
            lines.append(Line(name, smoothed(points) if key == "loss" else points))
    return line_chart(title, "step", lines) if lines else None


_CHARTS = {
    "Loss, start + end": {"loss": "training", "validation_loss": "validation"},
    "Learning rate": {"learning_rate": "rate"},
    "Exact match and F1 on the validation questions, %": {"f1": "F1", "exact_match": "exact match"},
}


def _evaluations(
    log: Sequence[Mapping[str, float]], best: Mapping[str, float] | None
) -> list[tuple[list[str], bool]]:
    """The figures of each evaluation, and whether its model was kept: the best, or the last."""
    rows = [line for line in log if "training_loss" in line]
    return [(figures_of(row), row is (best or rows[-1])) for row in rows]


def _moved(answered: Answered) -> list[tuple[str, str, list[Example]]]:
    """The questions that are answered rightly now and were not before, and the other way round."""
    references = {example.id: example.answers or () for example in answered.examples}
    now, before = (
        question_scores(answers or {}, references, v2=answered.v2)
        for answers in (answered.answers, answered.answers_before)
    )
    gains = [(now[example.id][0] - before[example.id][0], example) for example in answered.examples]
    return [
        ("won", "better", [example for gain, example in gains if gain > 0]),
        ("lost", "worse", [example for gain, example in gains if gain < 0]),
    ]


def _settings(description: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """All that run.json says."""
    for part in ("settings", "data", "versions"):
        for key, value in description.get(part, {}).items():
            yield f"{part}: {key}", str(value)
    for key in ("git_commit", "device", "processes"):
        if key in description:
            yield key, str(description[key])
