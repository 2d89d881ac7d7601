"""What each head and each layer is worth to the answers: EM, F1 and the loss without it."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

from bertqa.answering.evaluation import Evaluation, Evaluator
from bertqa.explain.attribution import Progress
from bertqa.explain.hooks import intervene
from bertqa.model.bert import BertForQuestionAnswering
from bertqa.model.config import BertConfig


@dataclass(frozen=True)
class ModelPart:
    """A layer, or a head of it; both are counted from 0.

    Attributes:
        head: None for the whole layer.
        how: what a head gives when it is taken away: "mask" zeros, "mean" its mean over the window.
    """

    layer: int
    head: int | None = None
    how: str = "mask"

    def taken_from(self, model: BertForQuestionAnswering) -> AbstractContextManager[None]:
        """The intervention in which the model works without the part."""
        if self.head is None:
            return intervene(model, skip_layers={self.layer})
        heads = {(self.layer, self.head)}
        if self.how == "mean":
            return intervene(model, mean_heads=heads)
        return intervene(model, mask_heads=heads)


def parts_of(config: BertConfig, how: str) -> Iterator[ModelPart]:
    """Every layer, then every head.

    Args:
        how: "mask" or "mean", for heads.
    """
    for layer in range(config.num_hidden_layers):
        yield ModelPart(layer)
    for layer in range(config.num_hidden_layers):
        for head in range(config.num_attention_heads):
            yield ModelPart(layer, head, how)


@dataclass(frozen=True)
class Effect:
    """What the model is worth without a part.

    Attributes:
        head: None for the whole layer.
        exact_match, f1, loss: without it, as in ``Evaluation``.
        exact_match_lost, f1_lost: in points; negative where the answers are better without it.
        loss_added: the same of the loss.
    """

    layer: int
    head: int | None
    exact_match: float
    f1: float
    loss: float
    exact_match_lost: float
    f1_lost: float
    loss_added: float

    @classmethod
    def of(cls, part: ModelPart, without: Evaluation, whole: Evaluation) -> "Effect":
        """The figures without a part beside those of the whole model."""
        return cls(
            part.layer,
            part.head,
            without.exact_match,
            without.f1,
            without.loss,
            whole.exact_match - without.exact_match,
            whole.f1 - without.f1,
            without.loss - whole.loss,
        )

    @property
    def name(self) -> str:
        """What was taken away."""
        return f"layer {self.layer}" + ("" if self.head is None else f", head {self.head}")


def ranked(effects: Sequence[Effect]) -> list[Effect]:
    """The most needed first: by F1 lost, then by EM, then by what the loss gained."""
    return sorted(effects, key=lambda e: (-e.f1_lost, -e.exact_match_lost, -e.loss_added))


def part_effects(
    model: BertForQuestionAnswering,
    evaluator: Evaluator,
    parts: Sequence[ModelPart],
    whole: Evaluation,
    progress: Progress | None = None,
) -> list[Effect]:
    """Evaluate a model without each of the parts in turn.

    Args:
        model: made ready for answering, such as a ``QuestionAnswerer``'s.
        whole: the evaluation of the whole model.
        progress: is told of each part.
    """
    effects = []
    for part in parts:
        with part.taken_from(model):
            effects.append(Effect.of(part, evaluator.of_ready(model), whole))
        if progress:
            progress(1)
    return effects
