"""Evaluation of a model on a dataset: answers, metrics and prediction files.

Questions are answered in blocks, of which only the answers are kept, so that memory does not grow
with the logits of the dataset. Within a block, windows are batched by length; the answers are in
the order of the questions.
"""

import copy
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bertqa.answering.answers import Answer, Prediction, make_answer, prediction_of
from bertqa.answering.decoding import BestSpans, WindowScores, exact_spans
from bertqa.answering.metrics import ThresholdPoint, evaluate_v1, evaluate_v2, threshold_curve
from bertqa.answering.same_text import add_same_text
from bertqa.answering.top20 import top20_spans
from bertqa.data.batching import collate, token_budget_batches
from bertqa.data.labels import LabelledWindows
from bertqa.data.squad import Example
from bertqa.data.windows import WindowSet
from bertqa.errors import UserError, flag
from bertqa.files import write_json_map
from bertqa.model.bert import BertForQuestionAnswering, BertOutput, window_losses
from bertqa.model.cpu_inference import is_prepacked, prepare_for_inference
from bertqa.runtime import Runtime
from bertqa.settings import DecodingSettings

WINDOWS_PER_BLOCK = 2048  # windows of a block
DECODERS = {"exact": exact_spans, "top20": top20_spans}


def predict(
    model: BertForQuestionAnswering,
    examples: Sequence[Example],
    windows: WindowSet,
    settings: DecodingSettings,
    runtime: Runtime,
) -> Iterator[Prediction]:
    """Answer each example, in order; ``windows`` are those of ``examples``.

    Raises:
        UserError: a score is not finite.
    """
    for block, scores in scored_blocks(model, windows, len(examples), runtime):
        yield from predictions_of(examples, windows, block, scores, settings)


@dataclass(frozen=True)
class ExampleBlock:
    """Examples and their windows, as two ranges."""

    examples: range
    windows: range


def scored_blocks(
    model: BertForQuestionAnswering, windows: WindowSet, num_examples: int, runtime: Runtime
) -> Iterator[tuple[ExampleBlock, WindowScores]]:
    """Run the model on all windows, block by block, in order; see ``_blocks``."""
    for block in _blocks(windows, num_examples):
        yield block, _run_block(model, windows, block, runtime)[0]


@dataclass(frozen=True)
class Evaluation:
    """Predictions for a labelled dataset, and their metrics.

    Attributes:
        predictions: one for each example, in order.
        loss: mean training loss over the windows.
        metrics: the official metrics (see metrics.py), in percent.
        curve: with ``Evaluator.chooses_threshold``, EM and F1 over the threshold; the predictions
            are those at its best point.
        unanswerable_share: fraction to which the questions are weighted in the curve, but not in
            the metrics.
    """

    predictions: list[Prediction]
    loss: float
    metrics: dict[str, float]
    curve: Sequence[ThresholdPoint] = ()
    unanswerable_share: float | None = None

    @property
    def exact_match(self) -> float:
        """EM in percent."""
        return self.metrics.get("exact_match", self.metrics.get("exact", math.nan))

    @property
    def f1(self) -> float:
        """F1 in percent."""
        return self.metrics["f1"]


@dataclass(frozen=True)
class Evaluator:
    """Callable that evaluates models on a labelled dataset.

    Several processes share the questions, and each returns the whole ``Evaluation``.

    Attributes:
        chooses_threshold: use the "no answer" threshold with the best F1 instead of the settings'.
            This is fair on questions held out from training, but not on a test set.
        unanswerable_share: choose the threshold for this fraction of unanswerable questions; None
            for the fraction of the dataset.
    """

    examples: Sequence[Example]
    windows: LabelledWindows
    settings: DecodingSettings
    runtime: Runtime
    chooses_threshold: bool = False
    unanswerable_share: float | None = None

    def __call__(self, model: BertForQuestionAnswering) -> Evaluation:
        """Answer all questions and score the answers."""
        runtime = self.runtime
        # Evaluate the model as an answerer would run it: a copy, converted and prepacked.
        own = model if is_prepacked(model) else copy.deepcopy(model)
        return self.evaluate_prepared(
            prepare_for_inference(own, runtime.device, runtime.dtype, int8=runtime.int8)
        )

    def evaluate_prepared(self, ready: BertForQuestionAnswering) -> Evaluation:
        """Evaluate a model prepared for inference, such as a ``QuestionAnswerer``'s."""
        runtime = self.runtime
        predictions: list[Prediction] = []
        loss_sum = 0.0
        blocks = list(_blocks(self.windows, len(self.examples)))
        for block in blocks[runtime.rank :: runtime.world_size]:
            scores, losses = _run_block(ready, self.windows, block, runtime, labels=self.windows)
            loss_sum += losses
            predictions += predictions_of(self.examples, self.windows, block, scores, self.settings)
        return self._gathered(predictions, loss_sum)

    def _gathered(self, predictions: list[Prediction], loss_sum: float) -> Evaluation:
        parts = self.runtime.gather((predictions, loss_sum))
        by_id = {prediction.id: prediction for part, _ in parts for prediction in part}
        ordered = [by_id[example.id] for example in self.examples]
        loss = sum(part for _, part in parts) / max(1, len(self.windows))
        curve: Sequence[ThresholdPoint] = ()
        if self.chooses_threshold:
            curve = curve_of(self.examples, ordered, self.unanswerable_share)
            ordered = _at_threshold(ordered, best_point(curve).threshold)
        metrics = score(self.examples, ordered, self.settings)
        return Evaluation(ordered, loss, metrics, curve, self.unanswerable_share)


def score(
    examples: Sequence[Example], predictions: Sequence[Prediction], settings: DecodingSettings
) -> dict[str, float]:
    """Compute EM and F1 by the official rules, those of v2.0 with version_2_with_negative.

    Questions without gold answers do not count; ``without_gold`` is their number, if any.
    """
    texts = {prediction.id: prediction.text for prediction in predictions}
    references, odds, spans = _for_metrics(examples, predictions)
    if settings.version_2_with_negative:
        figures = evaluate_v2(texts, references, odds, spans)
    else:
        figures = evaluate_v1(texts, references)
    without = len(examples) - len(references)
    return figures | ({"without_gold": float(without)} if without else {})


def curve_of(
    examples: Sequence[Example],
    predictions: Sequence[Prediction],
    unanswerable_share: float | None = None,
) -> list[ThresholdPoint]:
    """Return EM and F1 at every distinct threshold, see ``threshold_curve``."""
    return threshold_curve(*_for_metrics(examples, predictions), unanswerable_share)


def _for_metrics(
    examples: Sequence[Example], predictions: Sequence[Prediction]
) -> tuple[dict[str, tuple[str, ...]], dict[str, float], dict[str, str]]:
    """Return three maps by question id: gold answers, null odds, best non-null answer."""
    references = {e.id: e.answers for e in examples if e.answers is not None}
    odds = {p.id: p.null_odds for p in predictions if p.null_odds is not None}
    return references, odds, {p.id: p.best_span for p in predictions}


def best_point(curve: Sequence[ThresholdPoint]) -> ThresholdPoint:
    """Return the point with the highest F1; ties are broken by the lowest threshold."""
    return max(curve, key=lambda point: point.f1)


def _at_threshold(predictions: Sequence[Prediction], threshold: float) -> list[Prediction]:
    """Return the predictions, with "" where the null odds exceed the threshold."""
    return [
        replace(p, text="" if p.null_odds is not None and p.null_odds > threshold else p.best_span)
        for p in predictions
    ]


PREDICTION_FILES = ("predictions.json", "nbest_predictions.json", "null_odds.json")
_N_BEST_KEYS = ("text", "probability", "start_logit", "end_logit", "start", "end")


def write_predictions(
    folder: Path, predictions: Iterable[Prediction], settings: DecodingSettings
) -> tuple[list[Prediction], list[Path]]:
    """Write run_qa's files: predictions.json, nbest_predictions.json, for v2.0 null_odds.json.

    The n-best lists, which are the largest part, are streamed into their file.

    Returns:
        The predictions without their n-best lists, and the paths of the files.

    Raises:
        UserError: the folder cannot be written.
    """
    kept: list[Prediction] = []

    def n_best() -> Iterator[tuple[str, Any]]:
        for prediction in predictions:
            kept.append(replace(prediction, answers=()))
            entries = map(Answer._asdict, prediction.answers)
            yield prediction.id, [{key: entry[key] for key in _N_BEST_KEYS} for entry in entries]

    contents: dict[str, Iterable[tuple[str, Any]]] = {
        "nbest_predictions.json": n_best(),  # first: it fills ``kept`` for the other files
        "predictions.json": ((p.id, p.text) for p in kept),
    }
    if settings.version_2_with_negative:
        contents["null_odds.json"] = ((p.id, p.null_odds) for p in kept)
    for name, entries in contents.items():
        write_json_map(folder / name, entries)
    return kept, [folder / name for name in contents]


# --- running the model ---------------------------------------------------------------------------


def _blocks(windows: WindowSet, num_examples: int) -> Iterator[ExampleBlock]:
    """Split examples, in order, into blocks of about ``WINDOWS_PER_BLOCK`` windows."""
    owner = windows.example
    first_example, first_window = 0, 0
    while first_example < num_examples:
        last_window = min(first_window + WINDOWS_PER_BLOCK, len(windows))
        last_example = int(owner[last_window - 1]) + 1
        last_window = int(torch.searchsorted(owner, last_example))
        yield ExampleBlock(range(first_example, last_example), range(first_window, last_window))
        first_example, first_window = last_example, last_window


def _run_block(
    model: BertForQuestionAnswering,
    windows: WindowSet,
    block: ExampleBlock,
    runtime: Runtime,
    labels: LabelledWindows | None = None,
) -> tuple[WindowScores, float]:
    """Run the model on a block's windows, and return their scores and the sum of their losses.

    Args:
        labels: the same windows with labels; without them, no loss is computed.

    Raises:
        UserError: a score is not finite.
    """

    @torch.inference_mode()
    def run(chosen: Tensor) -> tuple[Tensor, BertOutput, float]:
        tokens = collate(windows, chosen)
        with runtime.autocast():
            output = model(tokens.to(runtime.device))
        loss = 0.0
        if labels:
            positions = labels.start_position[chosen], labels.end_position[chosen]
            on_device = (each.long().to(runtime.device) for each in positions)
            loss = float(window_losses(output, tokens.lengths, *on_device).sum())
        return chosen, output, loss

    first = block.windows.start
    lengths = windows.lengths[first : block.windows.stop]
    batches = (batch + first for batch in token_budget_batches(lengths, runtime.tokens_per_batch))
    chosen, outputs, losses = zip(*runtime.map_batches(run, batches), strict=True)
    start_logits = torch.cat([output.start_logits for output in outputs])
    end_logits = torch.cat([output.end_logits for output in outputs])
    if not (start_logits + end_logits).isfinite().all():
        raise UserError(
            "the model's scores must be finite, got NaN or infinity: its weights are corrupt, or "
            f"too large for the precision: pass {flag('precision fp32')}, or use another model"
        )
    if start_logits.device.type == "mps":  # it lacks float64, which the sums need
        start_logits, end_logits = start_logits.cpu(), end_logits.cpu()
    return window_scores(windows, torch.cat(chosen), start_logits, end_logits), sum(losses)


def window_scores(
    windows: WindowSet, chosen: Tensor, start_logits: Tensor, end_logits: Tensor
) -> WindowScores:
    """Make ``WindowScores`` of logits concatenated in the order of the ``chosen`` windows."""
    order = chosen.argsort()  # from the order of the batches to the order of the questions
    length = windows.lengths[chosen].long()
    cls = (length.cumsum(0) - length)[order]
    chosen = chosen[order]
    owner = windows.example[chosen].long()
    columns = (
        cls,
        cls + windows.context_starts[chosen],
        windows.count[chosen].long(),
        windows.first[chosen].long(),
        owner - owner[0],
    )
    device = start_logits.device
    return WindowScores(start_logits, end_logits, *(column.to(device) for column in columns))


@torch.inference_mode()
def predictions_of(
    examples: Sequence[Example],
    windows: WindowSet,
    block: ExampleBlock,
    scores: WindowScores,
    settings: DecodingSettings,
) -> Iterator[Prediction]:
    """Yield a prediction for each example of the block."""
    decode, temperature = DECODERS[settings.decoder], settings.temperature
    spans = decode(scores, settings.n_best_size, settings.max_answer_length, temperature)
    probabilities, nulls = _probabilities(examples, windows, block, scores, spans, settings)
    offsets = _character_offsets(windows, block, spans)
    rows = _rows(*offsets, spans.start_logit, spans.end_logit, probabilities)
    null_rows = _rows(spans.null_start_logit, spans.null_end_logit, nulls)
    log_totals = spans.log_total.tolist()
    bounds = torch.searchsorted(spans.question.cpu(), torch.arange(len(null_rows) + 1)).tolist()
    for i, number in enumerate(block.examples):
        context = examples[number].context
        answers = [
            make_answer((context[start:end], start, end, start_logit, end_logit, probability))
            for start, end, start_logit, end_logit, probability in rows[bounds[i] : bounds[i + 1]]
        ]
        null = make_answer(("", 0, 0, *null_rows[i]))
        yield prediction_of(examples[number], answers, null, settings, log_totals[i])


def _rows(*columns: Tensor) -> list[tuple[Any, ...]]:
    return list(zip(*(column.tolist() for column in columns), strict=True))


def _probabilities(
    examples: Sequence[Example],
    windows: WindowSet,
    block: ExampleBlock,
    scores: WindowScores,
    spans: BestSpans,
    settings: DecodingSettings,
) -> tuple[Tensor, Tensor]:
    """Return the probability of each span, ``(R,)``, and of "no answer", ``(Q,)``."""
    temperature = settings.temperature
    null_score = (spans.null_start_logit.double() + spans.null_end_logit.double()) / temperature
    without_span = spans.log_total.isneginf()  # then only "no answer" is left
    has_null = without_span | settings.version_2_with_negative
    total = torch.where(has_null, spans.log_total.logaddexp(null_score), spans.log_total)
    score = spans.score.double() / temperature
    if settings.decoder == "exact":
        of_block = slice(block.examples.start, block.examples.stop)
        contexts = [example.context for example in examples[of_block]]
        text, longest = windows.context_of[of_block], settings.max_answer_length
        score = add_same_text(spans, scores, contexts, windows.contexts, text, longest, temperature)
    return (score - total[spans.question]).exp(), (null_score - total).exp()


def _character_offsets(
    windows: WindowSet, block: ExampleBlock, spans: BestSpans
) -> tuple[Tensor, Tensor]:
    """Return start and end of each span in its context's characters, ``(R,)`` each."""
    contexts = windows.contexts
    first = contexts.bounds[windows.context_of[spans.question.cpu() + block.examples.start]]
    return contexts.starts[first + spans.start.cpu()], contexts.ends[first + spans.end.cpu()]
