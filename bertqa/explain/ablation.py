"""Head and layer ablation on a dataset: the implementation of ``bertqa ablate``."""

import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path

from tqdm import tqdm

from bertqa.answering.answerer import QuestionAnswerer
from bertqa.answering.evaluation import Evaluation, Evaluator
from bertqa.data.labels import make_labelled_windows
from bertqa.data.readers import read_examples
from bertqa.data.squad import check_answers, check_examples, check_version
from bertqa.errors import Say, counted
from bertqa.explain.hooks import intervene
from bertqa.files import output_folder, write_json, write_text
from bertqa.model.bert import BertForQuestionAnswering
from bertqa.report.charts import heat_map
from bertqa.settings import Overrides

Part = tuple[int, int | None]  # a layer and its head, both from 0; None for the whole layer


@dataclass(frozen=True)
class Effect:
    """Metrics of the model without one head or layer.

    Attributes:
        head: None for the whole layer.
        exact_match, f1, loss: metrics without the part, as in ``Evaluation``.
        exact_match_lost, f1_lost: decrease in points; negative if the answers improve.
        loss_added: increase of the loss.
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
    def of(cls, part: Part, without: Evaluation, whole: Evaluation) -> "Effect":
        """Return the metrics without a part and their difference to the whole model."""
        em, f1, loss = without.exact_match, without.f1, without.loss
        return cls(*part, em, f1, loss, whole.exact_match - em, whole.f1 - f1, loss - whole.loss)

    @property
    def name(self) -> str:
        """Name of the ablated part."""
        return f"layer {self.layer}" + ("" if self.head is None else f", head {self.head}")


@dataclass(frozen=True)
class Ablation:
    """Metrics of the whole model and of the model without each part.

    Attributes:
        source: description of the questions.
        effects: sorted by F1 lost, then EM lost, then loss added, largest first.
    """

    source: str
    whole: Evaluation
    effects: tuple[Effect, ...]

    def report(self, heads: int) -> str:
        """Return a table of all layers and the ``heads`` heads with the largest effects."""
        whole = self.whole
        layers = [effect for effect in self.effects if effect.head is None]
        of_heads = [effect for effect in self.effects if effect.head is not None]
        lines = [
            f"the whole model: EM {whole.exact_match:.2f}, F1 {whole.f1:.2f}, "
            f"loss {whole.loss:.4f} ({self.source})",
            "",
            f"{'without':<20}{'EM lost':>9}{'F1 lost':>9}{'loss added':>12}",
        ]
        for e in [*layers, *of_heads[:heads]]:
            figures = f"{e.exact_match_lost:9.2f}{e.f1_lost:9.2f}{e.loss_added:12.4f}"
            lines.append(f"{e.name:<20}{figures}")
        if rest := of_heads[heads:]:
            added = [effect.loss_added for effect in rest]
            lines.append(
                f"... and {counted(len(rest), 'head')}: F1 lost {rest[0].f1_lost:.2f} to "
                f"{rest[-1].f1_lost:.2f}, loss added {max(added):.4f} to {min(added):.4f}"
            )
        return "\n".join(lines)

    def picture(self) -> str:
        """Return an SVG heat map of the F1 lost without each head and each layer."""
        lost = {(e.layer, e.head): e.f1_lost for e in self.effects}
        layers = range(1 + max(layer for layer, _ in lost))
        heads = range(1 + max(head for _, head in lost if head is not None))
        return heat_map(
            "F1 lost without one head, or without one layer, in points",
            [[lost[layer, head] for head in heads] for layer in layers],
            [lost[layer, None] for layer in layers],
            row="layer",
            column="head",
            bar="whole layer",
        )


def without(
    model: BertForQuestionAnswering, part: Part, how: str = "mask"
) -> AbstractContextManager[None]:
    """Return the intervention that ablates a head or skips a layer.

    Args:
        how: "mask" sets the output of a head to zero, "mean" to its mean over the window.
    """
    layer, head = part
    if head is None:
        return intervene(model, skip_layers=[layer])
    masked, averaged = ([(layer, head)] if how == name else [] for name in ("mask", "mean"))
    return intervene(model, mask_heads=masked, mean_heads=averaged)


def ablate(
    model: str,
    data: Path,
    figures_file: Path,
    picture_file: Path,
    *,
    how: str = "mask",
    max_samples: int,
    overrides: Overrides,
    device: str = "auto",
    precision: str = "auto",
    revision: str | None = None,
    allow_bin: bool = False,
    say: Say,
) -> Ablation:
    """Evaluate a model on a file without each head and without each layer.

    Args:
        model: checkpoint folder or name.
        figures_file, picture_file: JSON and SVG to write, in one folder.
        how: see ``without``.
        max_samples: number of questions, from the start of the file.
        say: called with an estimate of the duration.

    Raises:
        UserError: the model or the questions are invalid, or a file cannot be written.
    """
    examples = read_examples(data)
    check_examples(examples, str(data))
    examples = examples[:max_samples]
    check_answers(examples, str(data))
    qa = QuestionAnswerer.from_pretrained(
        model, overrides=overrides, device=device, precision=precision, revision=revision,
        allow_bin=allow_bin,
    )  # fmt: skip
    check_version(examples, str(data), qa.decoding.version_2_with_negative)
    with output_folder(figures_file.parent):  # before the long computation
        windows = make_labelled_windows(examples, qa.tokenizer, qa.windows)
        evaluator = Evaluator(examples, windows, qa.decoding, qa.runtime)
        found = _measured(qa.model, evaluator, how, str(data), say)
        whole = found.whole
        entries = {
            "model": model, "data": str(data), "questions": len(examples), "windows": len(windows),
            "how": how, "precision": qa.runtime.precision,
            "whole": {"exact_match": whole.exact_match, "f1": whole.f1, "loss": whole.loss},
            "ranking": [asdict(effect) for effect in found.effects],
        }  # fmt: skip
        write_json(figures_file, entries)
        write_text(picture_file, found.picture())
    return found


def _measured(
    model: BertForQuestionAnswering, evaluator: Evaluator, how: str, data: str,
    say: Say,
) -> Ablation:  # fmt: skip
    """Evaluate the whole model, then the model without each layer and each head."""
    heads = [None, *range(model.config.num_attention_heads)]
    parts = [(layer, head) for head in heads for layer in range(model.config.num_hidden_layers)]
    questions = counted(len(evaluator.examples), "question")
    asked = f"{questions} in {counted(len(evaluator.windows), 'window')}"
    began = time.monotonic()
    whole = evaluator.evaluate_prepared(model)
    seconds = (time.monotonic() - began) * len(parts)
    say(f"{asked}, once for each of {len(parts)} heads and layers: about {seconds:.0f} s")
    effects = []
    for part in tqdm(parts, unit="pass", disable=None):
        with without(model, part, how):
            effects.append(Effect.of(part, evaluator.evaluate_prepared(model), whole))
    return Ablation(f"{asked} of {data}", whole, ranked(effects))


def ranked(effects: Sequence[Effect]) -> tuple[Effect, ...]:
    """Sort effects as described in ``Ablation``, largest first."""
    return tuple(sorted(effects, key=lambda e: (-e.f1_lost, -e.exact_match_lost, -e.loss_added)))
