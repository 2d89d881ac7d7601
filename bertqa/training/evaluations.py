"""The evaluations of a run: what is measured, which model is the best, and their table."""

from collections.abc import Sequence

from bertqa.answering.evaluation import Evaluation, Evaluator
from bertqa.model.bert import BertForQuestionAnswering
from bertqa.training.checkpoints import Progress
from bertqa.training.log import mean
from bertqa.training.observer import Measured
from bertqa.training.plan import Plan


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
    is_best = _is_best(evaluation, progress)
    return Measured(row, is_best, evaluation, evaluator.examples, evaluator.settings)


def _is_best(evaluation: Evaluation, progress: Progress) -> bool:
    """Whether the F1 is higher than any before; of equal ones the first is the best."""
    if progress.best_f1 is not None and evaluation.f1 <= progress.best_f1:
        return False
    progress.best_f1 = evaluation.f1
    return True


def evaluation_table(rows: Sequence[dict[str, float]]) -> str:
    """The evaluations of a run as a table, a line each."""
    titles = {
        "epoch": "{:.2f}", "step": "{:.0f}", "training_loss": "{:.4f}",
        "validation_loss": "{:.4f}", "exact_match": "{:.2f}", "f1": "{:.2f}",
    }  # fmt: skip
    lines = ["".join(f"{title.replace('_', ' '):>17}" for title in titles)]
    for row in rows:
        cells = (form.format(row[title]) if title in row else "-" for title, form in titles.items())
        lines.append("".join(f"{cell:>17}" for cell in cells))
    return "\n".join(lines)
