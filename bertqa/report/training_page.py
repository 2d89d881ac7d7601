"""A training run as one HTML page: its curves, its evaluations, and what changed in between."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from bertqa.answering.metrics import question_scores
from bertqa.data.squad import Example
from bertqa.report.analysis import breakdown
from bertqa.report.charts import Line, line_chart, smoothed
from bertqa.report.page import document, figures, table, text

_SHOWN = 200  # questions won, and as many lost, that the page lists
_OPEN = 20  # up to so many stand open


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
    parts = [f"<h1>Training: <bdi>{text(title)}</bdi></h1>", _summary(description, log)]
    parts += ["<h2>Curves</h2>", *_curves(log)]
    rows = [line for line in log if "training_loss" in line]
    if rows:
        parts += ["<h2>Evaluations</h2>", _evaluations(rows)]
    if answered:
        parts += _changes(answered)
        parts += ["<h2>Where it is right and where not</h2>", *_groups(answered)]
    parts += ["<h2>Settings</h2>", _settings(description)]
    return document(f"Training: {title}", ["<main>", *parts, "</main>"])


def _summary(description: Mapping[str, Any], log: Sequence[Mapping[str, float]]) -> str:
    steps = int(max((line["step"] for line in log), default=0))
    rates = sorted(line["tokens_per_second"] for line in log if "tokens_per_second" in line)
    entries = [(f"{steps:,}", "steps logged")]
    if rates:
        entries.append((f"{rates[len(rates) // 2]:,.0f}", "tokens per second, the median"))
    spent = time_spent(log)
    if spent:
        entries.append((spent, "of training, evaluations apart"))
    best = max((line for line in log if "f1" in line), key=lambda line: line["f1"], default=None)
    if best:
        entries.append((f"{best['exact_match']:.2f}", "exact match of the best model, %"))
        entries.append((f"{best['f1']:.2f}", f"F1, %, at step {int(best['step']):,}"))
    return figures(entries)


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


def _curves(log: Sequence[Mapping[str, float]]) -> list[str]:
    """Loss, learning rate, and where it was measured EM and F1, over the steps."""

    def points(key: str) -> list[tuple[float, float]]:
        return [(line["step"], line[key]) for line in log if key in line]

    charts = []
    losses = [Line("training", smoothed(points("loss")))] if points("loss") else []
    if points("validation_loss"):
        losses.append(Line("validation", points("validation_loss")))
    if losses:
        charts.append(line_chart("Loss, start + end", "step", losses))
    if points("learning_rate"):
        rate = Line("rate", points("learning_rate"))
        charts.append(line_chart("Learning rate", "step", [rate]))
    if points("f1"):
        lines = [Line("F1", points("f1")), Line("exact match", points("exact_match"))]
        charts.append(
            line_chart("Exact match and F1 on the validation questions, %", "step", lines)
        )
    return [f"<figure>\n{chart}</figure>" for chart in charts] or ["<p>Nothing was logged yet.</p>"]


_COLUMNS = {
    "epoch": "{:.2f}", "step": "{:,.0f}", "training_loss": "{:.4f}", "validation_loss": "{:.4f}",
    "exact_match": "{:.2f}", "f1": "{:.2f}",
}  # fmt: skip


def _evaluations(rows: Sequence[Mapping[str, float]]) -> str:
    """The table of evaluations; the row of the model that was kept is marked."""
    scored = [row for row in rows if "f1" in row]
    kept = max(scored, key=lambda row: row["f1"]) if scored else rows[-1]
    lines = [
        [form.format(row[key]) if key in row else "-" for key, form in _COLUMNS.items()]
        + ["kept" if row is kept else ""]
        for row in rows
    ]
    heads = [(key.replace("_", " "), "n") for key in _COLUMNS] + [("", "")]
    return table("Loss is the sum of the start's and the end's.", heads, lines, first="td")


# --- from one evaluation to the next -------------------------------------------------------------


def _changes(answered: Answered) -> list[str]:
    """The questions that are answered rightly now and were not before, and the other way round."""
    if answered.answers_before is None:
        return []
    scores = _scores(answered, answered.answers)
    before = _scores(answered, answered.answers_before)
    parts = [f"<h2>From step {answered.step_before:,} to step {answered.step:,}</h2>"]
    for name, kind, sign in (("won", "better", 1), ("lost", "worse", -1)):
        found = [
            example
            for example in answered.examples
            if sign * (scores[example.id][0] - before[example.id][0]) > 0
        ]
        parts.append(_moved(name, kind, found, answered))
    return parts


def _scores(answered: Answered, answers: Mapping[str, str]) -> dict[str, tuple[float, float]]:
    references = {example.id: example.answers or () for example in answered.examples}
    return question_scores(answers, references, v2=answered.v2)


def _moved(name: str, kind: str, examples: Sequence[Example], answered: Answered) -> str:
    """A folded list of questions whose exact match has changed."""
    before = answered.answers_before or {}
    rows = [
        (
            f"<bdi>{text(example.id)}</bdi>",
            f'<span dir="auto">{text(example.question)}</span>',
            f'<span dir="auto">{_answer((example.answers or ("",))[0])}</span>',
            f'<span dir="auto">{_answer(before.get(example.id, ""))}</span>',
            f'<span dir="auto">{_answer(answered.answers.get(example.id, ""))}</span>',
        )
        for example in examples[:_SHOWN]
    ]
    shown = f", the first {_SHOWN} of them" if len(examples) > _SHOWN else ""
    heads = [
        ("id", "id"),
        ("question", "wide"),
        ("gold", "wide"),
        ("before", "wide"),
        ("now", "wide"),
    ]
    is_open = " open" if 0 < len(examples) <= _OPEN else ""
    return (
        f'<details{is_open}><summary><span class="{kind}">{len(examples):,} {name}</span>{shown}'
        f"</summary>\n{table(f'Questions {name} by exact match.', heads, rows, first='td')}\n"
        "</details>"
    )


def _answer(content: str) -> str:
    return text(content) if content else "<i>no answer</i>"


def _groups(answered: Answered) -> list[str]:
    """EM and F1 by kind of question, length and place of the answer."""
    groups = breakdown(answered.examples, answered.answers, v2=answered.v2)
    parts = []
    for by in dict.fromkeys(group.by for group in groups):
        rows = [
            (
                escape(group.name),
                f"{group.count:,}",
                f"{group.exact_match:.1f}",
                f"{group.f1:.1f}",
                f'<meter min="0" max="100" value="{group.f1:.1f}">{group.f1:.0f} %</meter>',
            )
            for group in groups
            if group.by == by
        ]
        heads = [(escape(by), ""), ("questions", "n"), ("EM", "n"), ("F1", "n"), ("", "")]
        parts.append(table(f"By {escape(by)}, at step {answered.step:,}.", heads, rows, first="th"))
    return parts


def _settings(description: Mapping[str, Any]) -> str:
    """All that run.json says, folded away."""
    rows = [
        (escape(f"{part}: {key}"), text(str(value)))
        for part in ("settings", "data", "versions")
        for key, value in description.get(part, {}).items()
    ]
    rows += [
        (escape(key), text(str(description[key])))
        for key in ("git_commit", "device", "processes")
        if key in description
    ]
    inner = table("From run.json.", [("name", ""), ("value", "wide")], rows, first="th")
    return f"<details><summary>All {len(rows)} of them</summary>\n{inner}\n</details>"
