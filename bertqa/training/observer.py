"""What a run tells of itself while it goes on, to whoever wants to draw, print or count it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from bertqa.answering.evaluation import Evaluation
from bertqa.data.squad import Example
from bertqa.settings import DecodingSettings
from bertqa.training.checkpoints import Progress


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


class Observer(Protocol):
    """What a run calls, in its main process alone; a class that inherits it defines what it needs.

    What is called has happened, and its files are written; the next step waits for the answer.
    """

    def after_log(self, line: Mapping[str, float | None]) -> None:
        """Take note of a line of the training in log.jsonl."""
        return None

    def after_evaluation(self, measured: Measured) -> None:
        """Take note of an evaluation."""
        return None

    def at_end(self, progress: Progress) -> None:
        """Take note that the last step is done; a run that is stopped has not come to its end."""
        return None


class Nobody(Observer):
    """Takes note of nothing."""
