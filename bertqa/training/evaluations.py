"""Evaluations of a run, and the observer of a run's events."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import compress

from bertqa.answering.calibration import Calibration
from bertqa.answering.evaluation import Evaluation, Evaluator
from bertqa.data.squad import Example
from bertqa.model.bert import BertForQuestionAnswering
from bertqa.settings import DecodingSettings
from bertqa.training.checkpoints import Progress
from bertqa.training.log import mean
from bertqa.training.plan import Plan


@dataclass(frozen=True)
class Measured:
    """One evaluation of a run.

    Attributes:
        row: its line in log.jsonl.
        is_best: whether the model is the best so far, and was saved.
        evaluation: None without validation data.
        examples: the validation questions; empty without validation data.
        settings: how their answers were decoded.
    """

    row: Mapping[str, float]
    is_best: bool
    evaluation: Evaluation | None = None
    examples: Sequence[Example] = ()
    settings: DecodingSettings = field(default_factory=DecodingSettings)


class Observer:
    """Base class for callbacks of a run; override the methods you need.

    A run calls them in its main process, after the files of the event are written, and waits for
    them to return.
    """

    def after_log(self, line: Mapping[str, float | None]) -> None:
        """Handle a training line of log.jsonl."""

    def after_evaluation(self, measured: Measured) -> None:
        """Handle an evaluation."""

    def after_calibration(
        self, calibration: Calibration, examples: Sequence[Example], settings: DecodingSettings
    ) -> None:
        """Handle the calibration of the best model, which comes after the end.

        Args:
            calibration: the temperature and its effect.
            examples: the validation questions.
            settings: how their answers were decoded, with that temperature.
        """

    def at_end(self, progress: Progress) -> None:
        """Handle the end of the run: the last step or early stopping, not a stop by a signal."""


def measure(
    model: BertForQuestionAnswering, evaluator: Evaluator | None, plan: Plan, progress: Progress
) -> Measured:
    """Evaluate a model, and record the result in ``progress``.

    All processes must call it. Without an evaluator the row only has the training loss.
    """
    row: dict[str, float] = {
        "epoch": round(plan.epoch(progress.step), 2),
        "step": progress.step,
        "training_loss": mean(progress.losses_since_evaluation),
    }
    progress.losses_since_evaluation = []
    progress.evaluations.append(row)
    if evaluator is None:
        return Measured(row, is_best=True)  # keep the last model
    evaluation = evaluator(model)
    row |= {
        "validation_loss": evaluation.loss,
        "exact_match": evaluation.exact_match,
        "f1": evaluation.f1,
    }
    # In a tie, the earlier model is kept.
    is_best = progress.best_f1 is None or evaluation.f1 > progress.best_f1
    if is_best:
        progress.best_f1 = evaluation.f1
    return Measured(row, is_best, evaluation, evaluator.examples, evaluator.settings)


_FORMATS = {
    "epoch": "{:.2f}", "step": "{:,.0f}", "training_loss": "{:.4f}", "validation_loss": "{:.4f}",
    "exact_match": "{:.2f}", "f1": "{:.2f}",
}  # fmt: skip


def figures_of(row: Mapping[str, float]) -> list[str]:
    """Format the columns of an evaluation; "-" for missing values."""
    return [style.format(row[key]) if key in row else "-" for key, style in _FORMATS.items()]


def evaluation_lines(rows: Sequence[Mapping[str, float]]) -> list[str]:
    """Format the evaluations of a run as a table: the header, and a line for each.

    Without validation data, the table has no columns for it.
    """
    used = [any(key in row for row in rows) for key in _FORMATS]
    lines = [[key.replace("_", " ") for key in _FORMATS], *map(figures_of, rows)]
    return ["".join(f"{cell:>17}" for cell in compress(line, used)) for line in lines]
