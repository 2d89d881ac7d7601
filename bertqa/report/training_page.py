"""A training run as one HTML page: its curves, its evaluations, and what changed in between."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from bertqa.answering.metrics import question_scores
from bertqa.data.squad import Example
from bertqa.files import write_text
from bertqa.report.analysis import breakdown
from bertqa.report.charts import Line, draw_curve, line_chart, smoothed
from bertqa.report.page import render
from bertqa.training.evaluations import Measured, Observer
from bertqa.training.run_folder import last_answers, read_description, read_log

_LISTED = 200  # questions won, and as many lost, that the page lists


@dataclass(frozen=True)
class Answered:
    """The questions of an evaluation and the answers of two evaluations to them.

    Attributes:
        examples: with gold answers.
        step, answers: of the last evaluation: id -> answer.
        step_before, answers_before: of the one before; empty at the first.
        v2: "" is an answer too.
    """

    examples: Sequence[Example]
    step: int
    answers: Mapping[str, str]
    step_before: int = 0
    answers_before: Mapping[str, str] | None = None
    v2: bool = False


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
    kept = last_answers(path) if examples else []  # of two evaluations at most
    step_before, before = kept[0] if len(kept) > 1 else (0, None)
    answered = Answered(examples, *kept[-1], step_before, before, v2) if kept else None
    page = report_page(path.resolve().name, read_description(path), read_log(path), answered)
    write_text(path / "report.html", page)


def report_page(
    title: str,
    description: Mapping[str, Any],
    log: Sequence[Mapping[str, float]],
    answered: Answered | None,
) -> str:
    """The page of a run, finished or not.

    Args:
        title: what it is called.
        description: what run.json holds.
        log: the lines of log.jsonl.
        answered: None for a run without validation data.
    """
    groups = breakdown(answered.examples, answered.answers, v2=answered.v2) if answered else []
    return render(
        "report/training.jinja",
        title=f"Training: {title}",
        name=title,
        summary=list(_summary(log)),
        charts=list(_curves(log)),
        evaluations=_evaluations([line for line in log if "training_loss" in line]),
        answered=answered,
        moved=_moved(answered) if answered and answered.answers_before is not None else [],
        most_listed=_LISTED,
        groups=[(by, list(members)) for by, members in groupby(groups, key=lambda g: g.by)],
        settings=list(_settings(description)),
    )


def _summary(log: Sequence[Mapping[str, float]]) -> Iterator[tuple[str, str]]:
    steps = int(max((line["step"] for line in log), default=0))
    yield f"{steps:,}", "steps logged"
    rates = sorted(line["tokens_per_second"] for line in log if "tokens_per_second" in line)
    if rates:
        yield f"{rates[len(rates) // 2]:,.0f}", "tokens per second, the median"
    spent = time_spent(log)
    if spent:
        yield spent, "of training, evaluations apart"
    best = max((line for line in log if "f1" in line), key=lambda line: line["f1"], default=None)
    if best:
        yield f"{best['exact_match']:.2f}", "exact match of the best model, %"
        yield f"{best['f1']:.2f}", f"F1, %, at step {int(best['step']):,}"


def time_spent(log: Sequence[Mapping[str, Any]]) -> str:
    """How long the logged steps took, evaluations apart: "2 h 08 min", "12 min 40 s", "3.1 s".

    "" where a line does not tell, as in the log of an earlier version.
    """
    steps = [line for line in log if "loss" in line]
    if not steps or not all("seconds" in line for line in steps):
        return ""
    total = math.fsum(line["seconds"] for line in steps)
    minutes, seconds = divmod(round(total), 60)
    if total < 59.95:
        return f"{total:.1f} s"
    if minutes < 60:
        return f"{minutes} min {seconds:02d} s"
    hours, minutes = divmod(round(total / 60), 60)
    return f"{hours} h {minutes:02d} min"


def _curves(log: Sequence[Mapping[str, float]]) -> Iterator[str]:
    """Loss, learning rate, and where it was measured EM and F1, over the steps."""

    def line(name: str, key: str) -> Line:
        return Line(name, [(entry["step"], entry[key]) for entry in log if key in entry])

    loss = line("training", "loss")
    for title, lines in (
        (
            "Loss, start + end",
            [Line(loss.name, smoothed(loss.points)), line("validation", "validation_loss")],
        ),
        ("Learning rate", [line("rate", "learning_rate")]),
        (
            "Exact match and F1 on the validation questions, %",
            [line("F1", "f1"), line("exact match", "exact_match")],
        ),
    ):
        drawn = [line for line in lines if line.points]
        if drawn:
            yield line_chart(title, "step", drawn)


_COLUMNS = {
    "epoch": "{:.2f}", "step": "{:,.0f}", "training_loss": "{:.4f}", "validation_loss": "{:.4f}",
    "exact_match": "{:.2f}", "f1": "{:.2f}",
}  # fmt: skip


def _evaluations(rows: Sequence[Mapping[str, float]]) -> list[tuple[list[str], bool]]:
    """The figures of each evaluation, and whether its model was kept."""
    scored = [row for row in rows if "f1" in row]
    kept = max(scored, key=lambda row: row["f1"]) if scored else rows[-1] if rows else None
    return [
        (
            [form.format(row[key]) if key in row else "-" for key, form in _COLUMNS.items()],
            row is kept,
        )
        for row in rows
    ]


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
