"""HTML report of a training run: curves, evaluations, newly correct and newly wrong answers."""

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

_LISTED = 200  # newly correct, and as many newly wrong, answers that the page lists


@dataclass(frozen=True)
class Answered:
    """The validation questions and the answers of the last two evaluations.

    Attributes:
        examples: with gold answers.
        step, answers: of the last evaluation: id -> answer.
        step_before, answers_before: of the previous evaluation; 0 and None if there is none.
        v2: score as in SQuAD v2.0, where "" is an answer.
        kept_step, kept: step and answers of the kept model, the best so far; None if no file has
            them.
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
    """Observer that writes report.html and pictures into the folder of its run."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def after_evaluation(self, measured: Measured) -> None:
        """Draw the threshold curve of a new best model, and update the page.

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
        """Draw the reliability diagram, and update the page.

        Raises:
            UserError: the folder cannot be written.
        """
        write_text(self.path / CALIBRATION_PICTURE, reliability_diagram(calibration))
        write_report(self.path, examples, v2=settings.version_2_with_negative)


def write_report(path: Path, examples: Sequence[Example], *, v2: bool) -> None:
    """Write report.html from the other files of a run's folder.

    Args:
        examples: the validation questions, if any.
        v2: score as in SQuAD v2.0, where "" is an answer.

    Raises:
        UserError: the folder cannot be written.
    """
    kept = last_answers(path) if examples else []  # of at most two evaluations
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
    """Return the page of a run, finished or not.

    Args:
        title: name of the run.
        description: the content of run.json.
        log: the lines of log.jsonl.
        answered: None for a run without validation data.
        calibration: None for an unfinished run.
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
    """Summarize a log; figures that it lacks are None.

    ``best`` is the first line with the best F1; ``kept`` its step, or the last step without
    evaluations; ``loss`` the last logged until then; ``rate`` the median throughput in tokens per
    second; ``seconds`` the time of training without evaluations, which early versions did not log.
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
        yield f"{figures['rate']:,.0f}", "tokens per second (median)"
    if figures["seconds"] is not None:
        yield format_duration(figures["seconds"]), "of training, without evaluations"
    if best := figures["best"]:
        yield f"{best['exact_match']:.2f}", "exact match of the best model, %"
        yield f"{best['f1']:.2f}", f"F1, %, at step {best['step']:,}"


def format_duration(total: float) -> str:
    """Format seconds as "2 h 08 min", "12 min 40 s" or "3.1 s"."""
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
    """Draw keys of a log over the steps; None if no line has them.

    Args:
        names: key -> name in the chart.
    """
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
    """Return the figures of each evaluation, and whether its model was kept: the best or last."""
    rows = [line for line in log if "training_loss" in line]
    return [(figures_of(row), row is (best or rows[-1])) for row in rows]


def _moved(answered: Answered) -> list[tuple[str, str, list[Example]]]:
    """Return the questions with newly correct and newly wrong answers."""
    references = {example.id: example.answers or () for example in answered.examples}
    now, before = (
        question_scores(answers or {}, references, v2=answered.v2)
        for answers in (answered.answers, answered.answers_before)
    )
    gains = [(now[example.id][0] - before[example.id][0], example) for example in answered.examples]
    return [
        ("newly correct", "better", [example for gain, example in gains if gain > 0]),
        ("newly wrong", "worse", [example for gain, example in gains if gain < 0]),
    ]


def _settings(description: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield all settings of run.json."""
    for part in ("settings", "data", "versions"):
        for key, value in description.get(part, {}).items():
            yield f"{part}: {key}", str(value)
    for key in ("git_commit", "device", "processor", "threads", "processes"):
        if key in description:
            yield key, str(description[key])
