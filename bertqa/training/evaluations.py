"""What a run tells of itself while it goes on: its evaluations, and who is told of them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

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
        is_best: this model is the one at the top of the run's folder now.
        evaluation: None in a run without validation data, as are ``examples``.
        examples: the validation questions.
        settings: how their answers were decoded.
    """

    row: Mapping[str, float]
    is_best: bool
    evaluation: Evaluation | None = None
    examples: Sequence[Example] = ()
    settings: DecodingSettings = field(default_factory=DecodingSettings)


class Observer:
    """What a run calls, in its main process alone; a class that inherits it defines what it needs.

    What is called has happened, and its files are written; the next step waits for the answer.
    """

    def after_log(self, line: Mapping[str, float | None]) -> None:
        """Take note of a line of the training in log.jsonl."""

    def after_evaluation(self, measured: Measured) -> None:
        """Take note of an evaluation."""

    def after_calibration(
        self, calibration: Calibration, examples: Sequence[Example], settings: DecodingSettings
    ) -> None:
        """Take note of the temperature of the best model, which comes after the end.

        Args:
            examples: the validation questions.
            settings: how their answers were decoded, with that temperature.
        """

    def at_end(self, progress: Progress) -> None:
        """Take note that the run has come to its end: the last step, or an early stop.

        A run that is stopped by a signal has not.
        """


def measure(
    model: BertForQuestionAnswering, evaluator: Evaluator | None, plan: Plan, progress: Progress
) -> Measured:
    """Measure a model after some steps, and note in ``progress`` what came of it.

    All processes call it together. Without an evaluator the row tells the training loss alone.
    """
    row: dict[str, float] = {
        "epoch": round(plan.epoch(progress.step), 2),
        "step": progress.step,
        "training_loss": mean(progress.losses_since_evaluation),
    }
    progress.losses_since_evaluation = []
    progress.evaluations.append(row)
    if evaluator is None:
        return Measured(row, is_best=True)  # the last model is the one to keep
    evaluation = evaluator(model)
    row |= {
        "validation_loss": evaluation.loss,
        "exact_match": evaluation.exact_match,
        "f1": evaluation.f1,
    }
    # Of equal ones the first is the best.
    is_best = progress.best_f1 is None or evaluation.f1 > progress.best_f1
    if is_best:
        progress.best_f1 = evaluation.f1
    return Measured(row, is_best, evaluation, evaluator.examples, evaluator.settings)


_FORMS = {
    "epoch": "{:.2f}", "step": "{:,.0f}", "training_loss": "{:.4f}", "validation_loss": "{:.4f}",
    "exact_match": "{:.2f}", "f1": "{:.2f}",
}  # fmt: skip


def figures_of(row: Mapping[str, float]) -> list[str]:
    """The figures of an evaluation as text, by column; "-" for what was not measured."""
    return [form.format(row[key]) if key in row else "-" for key, form in _FORMS.items()]


def evaluation_table(rows: Sequence[Mapping[str, float]]) -> str:
    """The evaluations of a run as a table, a line each."""
    lines = [[key.replace("_", " ") for key in _FORMS], *map(figures_of, rows)]
    return "\n".join("".join(f"{cell:>17}" for cell in line) for line in lines)
