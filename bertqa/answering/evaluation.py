"""A model over a data set: answers, figures, files.

Questions go through in blocks, and what is kept of a block is its answers, so the memory does not
grow with the logits of the data set. Within a block windows are taken by length, and the answers
come out in the order of the questions.
"""

import copy
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bertqa.answering.decoding import DECODERS, WindowSpans
from bertqa.answering.metrics import ThresholdPoint, evaluate_v1, evaluate_v2, threshold_curve
from bertqa.data.batching import collate, token_budget_batches
from bertqa.data.graphemes import has_joins, snap_to_graphemes
from bertqa.data.squad import Example
from bertqa.data.windows import WindowSet
from bertqa.errors import UserError
from bertqa.files import write_json_map
from bertqa.model.bert import BertForQuestionAnswering, BertOutput, window_losses
from bertqa.model.cpu_inference import is_prepacked, make_ready
from bertqa.runtime import Runtime

_BLOCK = 2048  # windows whose answers are made together
_DECODED_TOGETHER = 32768  # tokens: one batch of the model is too little work for one search

# The null odds of a question whose context has no tokens, and so no span: beyond every threshold,
# and still a number, which JSON and the search for the best threshold need.
_NO_SPAN_ODDS = torch.finfo(torch.float32).max


@dataclass(frozen=True)
class DecodingSettings:
    """How spans become answers; the names are run_qa's.

    Attributes:
        n_best_size: answers kept for each question.
        max_answer_length: most tokens of an answer.
        decoder: "exact", or "top20" for run_qa's search.
        version_2_with_negative: "" is an answer too, where the scores of [CLS] say so.
        null_score_diff_threshold: the answer is "" if the null score passes the best span's by
            more than this.
    """

    n_best_size: int = 20
    max_answer_length: int = 30
    decoder: str = "exact"
    version_2_with_negative: bool = False
    null_score_diff_threshold: float = 0.0

    def __post_init__(self) -> None:
        for name in ("n_best_size", "max_answer_length"):
            if getattr(self, name) < 1:
                raise UserError(f"--{name} {getattr(self, name)} leaves no answer: give 1 or more")
        if self.decoder not in DECODERS:
            raise UserError(f"--decoder {self.decoder} is unknown: pass exact or top20")


class Answer(NamedTuple):
    """One answer to a question: ``text == context[start:end]``.

    Attributes:
        start, end: code points of the context; both 0 for "no answer", whose text is "".
        start_logit, end_logit: S.T_start and E.T_end; their sum is the score.
        probability: of this answer among all spans of the question (and "no answer", where that
            is one). With the top20 decoder among the n best only, as run_qa has it.
    """

    text: str
    start: int
    end: int
    start_logit: float
    end_logit: float
    probability: float

    @property
    def score(self) -> float:
        """S.T_start + E.T_end."""
        return self.start_logit + self.end_logit


@dataclass(frozen=True, slots=True)
class Prediction:
    """What the model says to one question.

    Attributes:
        text: the answer; "" for no answer.
        answers: the n best, best first; with version_2_with_negative "" is among them.
        best_span: text of the best answer that is not "".
        null_odds: null score minus the score of the best span, the largest float32 where there
            is no span; None without version_2_with_negative.
    """

    id: str
    text: str
    answers: tuple[Answer, ...]
    best_span: str
    null_odds: float | None


def predict(
    model: BertForQuestionAnswering,
    examples: Sequence[Example],
    windows: WindowSet,
    settings: DecodingSettings,
    runtime: Runtime,
) -> Iterator[Prediction]:
    """Answer each example, in order; ``windows`` are those of ``examples``."""
    for block in _blocks(windows, len(examples)):
        results, _ = _run_block(model, windows, block, settings, runtime, with_loss=False)
        yield from _predictions(examples, windows, block, results, settings)


@dataclass(frozen=True)
class Evaluation:
    """Predictions for a labelled data set, and how good they are.

    Attributes:
        predictions: one for each example, in order.
        loss: mean of the training objective over the windows.
        metrics: the official figures (see metrics.py), in per cent.
        curve: with ``Evaluator.chooses_threshold``, EM and F1 over the threshold; the predictions
            are those of its best point.
    """

    predictions: list[Prediction]
    loss: float
    metrics: dict[str, float]
    curve: Sequence[ThresholdPoint] = ()

    @property
    def exact_match(self) -> float:
        """EM in per cent."""
        return self.metrics.get("exact_match", self.metrics.get("exact", math.nan))

    @property
    def f1(self) -> float:
        """F1 in per cent."""
        return self.metrics["f1"]


@dataclass(frozen=True)
class Evaluator:
    """A labelled data set to measure models on.

    Calling it with a model gives an ``Evaluation``. Several processes share the questions and all
    get the whole result.

    Attributes:
        chooses_threshold: take the threshold of "no answer" with the best F1, in place of the
            settings'. That is fair with questions held out from training, not with those that the
            model is to be judged by.
    """

    examples: Sequence[Example]
    windows: WindowSet
    settings: DecodingSettings
    runtime: Runtime
    chooses_threshold: bool = False

    def __call__(self, model: BertForQuestionAnswering) -> Evaluation:
        """Answer all questions and score the answers."""
        runtime = self.runtime
        # What is measured is what will answer: a copy, made ready as infer.py makes it.
        own = model if is_prepacked(model) else copy.deepcopy(model)
        return self.of_ready(make_ready(own, runtime.device, runtime.dtype, int8=runtime.int8))

    def of_ready(self, ready: BertForQuestionAnswering) -> Evaluation:
        """The same of a model that was made ready, such as a ``QuestionAnswerer``'s."""
        runtime = self.runtime
        predictions: list[Prediction] = []
        loss_sum = 0.0
        blocks = list(_blocks(self.windows, len(self.examples)))
        for block in blocks[runtime.rank :: runtime.world_size]:
            results, losses = _run_block(
                ready, self.windows, block, self.settings, runtime, with_loss=True
            )
            loss_sum += losses
            predictions += _predictions(self.examples, self.windows, block, results, self.settings)
        return self._gathered(predictions, loss_sum)

    def _gathered(self, predictions: list[Prediction], loss_sum: float) -> Evaluation:
        parts = self.runtime.gather((predictions, loss_sum))
        by_id = {prediction.id: prediction for part, _ in parts for prediction in part}
        ordered = [by_id[example.id] for example in self.examples]
        loss = sum(part for _, part in parts) / max(1, len(self.windows))
        curve: Sequence[ThresholdPoint] = ()
        if self.chooses_threshold:
            curve = curve_of(self.examples, ordered)
            ordered = _at_threshold(ordered, best_point(curve).threshold)
        return Evaluation(ordered, loss, score(self.examples, ordered, self.settings), curve)


def score(
    examples: Sequence[Example], predictions: Sequence[Prediction], settings: DecodingSettings
) -> dict[str, float]:
    """EM and F1 of the predictions by the official rules, v2.0's where "" is an answer."""
    references = {example.id: example.answers or () for example in examples}
    texts = {prediction.id: prediction.text for prediction in predictions}
    if not settings.version_2_with_negative:
        return evaluate_v1(texts, references)
    odds = {p.id: p.null_odds for p in predictions if p.null_odds is not None}
    return evaluate_v2(texts, references, odds, {p.id: p.best_span for p in predictions})


def curve_of(
    examples: Sequence[Example], predictions: Sequence[Prediction]
) -> list[ThresholdPoint]:
    """EM and F1 at every threshold that makes a difference, in ascending order."""
    references = {example.id: example.answers or () for example in examples}
    odds = {p.id: p.null_odds for p in predictions if p.null_odds is not None}
    return threshold_curve(references, odds, {p.id: p.best_span for p in predictions})


def best_point(curve: Sequence[ThresholdPoint]) -> ThresholdPoint:
    """The point with the highest F1; of several the lowest threshold."""
    return max(curve, key=lambda point: point.f1)


def _at_threshold(predictions: Sequence[Prediction], threshold: float) -> list[Prediction]:
    """The predictions, "" where the null odds pass the threshold."""
    return [
        replace(p, text="" if p.null_odds is not None and p.null_odds > threshold else p.best_span)
        for p in predictions
    ]


PREDICTION_FILES = ("predictions.json", "nbest_predictions.json", "null_odds.json")


def write_predictions(
    folder: Path, predictions: Iterable[Prediction], settings: DecodingSettings
) -> tuple[list[Prediction], list[Path]]:
    """Write run_qa's files: predictions.json, nbest_predictions.json, for v2.0 null_odds.json.

    The n best of all questions are many times the rest, so they go into their file as they come,
    and are let go.

    Returns:
        The predictions without their n best, and the files written.

    Raises:
        UserError: the folder cannot be written.
    """
    kept: list[Prediction] = []

    def n_best() -> Iterator[tuple[str, Any]]:
        for prediction in predictions:
            kept.append(replace(prediction, answers=()))
            yield prediction.id, [_entry(answer) for answer in prediction.answers]

    contents: dict[str, Iterable[tuple[str, Any]]] = {
        "nbest_predictions.json": n_best(),  # first: it fills the list that the others read
        "predictions.json": ((p.id, p.text) for p in kept),
    }
    if settings.version_2_with_negative:
        contents["null_odds.json"] = ((p.id, p.null_odds) for p in kept)
    for name, entries in contents.items():
        write_json_map(folder / name, entries)
    return kept, [folder / name for name in contents]


def _entry(answer: Answer) -> dict[str, object]:
    return {
        "text": answer.text,
        "probability": answer.probability,
        "start_logit": answer.start_logit,
        "end_logit": answer.end_logit,
        "start": answer.start,
        "end": answer.end,
    }


# --- windows through the model -------------------------------------------------------------------


@dataclass(frozen=True)
class _Block:
    """Examples and their windows, as two ranges."""

    examples: range
    windows: range


# A span of a context: score, start and end in code points, start logit, end logit, probability
# among all spans of its window, and later of its question. There are twenty to a question: plain
# tuples of numbers cost Python's garbage collector nothing.
_Span = tuple[float, int, int, float, float, float]

# An Answer out of its six fields in order, without the detour that a named tuple's own call takes.
_AnswerFields = tuple[str, int, int, float, float, float]
_answer: Callable[[_AnswerFields], Answer] = partial(tuple.__new__, Answer)


@dataclass
class _WindowResult:
    """The spans of one window, best first.

    Attributes:
        null: the two scores of [CLS].
        log_total: what the probabilities are normalised by, see ``WindowSpans``.
    """

    spans: list[_Span]
    null: tuple[float, float]
    log_total: float


def _blocks(windows: WindowSet, num_examples: int) -> Iterator[_Block]:
    """Examples in order, as many at a time as have about ``_BLOCK`` windows."""
    owner = windows.example
    first_example, first_window = 0, 0
    while first_example < num_examples:
        last_window = min(first_window + _BLOCK, len(windows))
        last_example = int(owner[last_window - 1]) + 1
        last_window = int(torch.searchsorted(owner, last_example))
        yield _Block(range(first_example, last_example), range(first_window, last_window))
        first_example, first_window = last_example, last_window


def _run_block(
    model: BertForQuestionAnswering,
    windows: WindowSet,
    block: _Block,
    settings: DecodingSettings,
    runtime: Runtime,
    with_loss: bool,
) -> tuple[list[_WindowResult], float]:
    """The results of the block's windows, in their order, and the sum of their losses."""

    @torch.inference_mode()
    def run(chosen: Tensor) -> tuple[Tensor, BertOutput, float]:
        tokens = collate(windows, chosen)
        with runtime.autocast():
            output = model(tokens.to(runtime.device))
        loss = _loss_sum(windows, chosen, output, tokens.lengths) if with_loss else 0.0
        return chosen, output, loss

    results: dict[int, _WindowResult] = {}
    undecoded: list[tuple[Tensor, BertOutput]] = []
    tokens_undecoded = 0
    loss_sum = 0.0
    first = block.windows.start
    lengths = windows.lengths[first : block.windows.stop]
    batches = (batch + first for batch in token_budget_batches(lengths, runtime.tokens_per_batch))
    for chosen, output, loss in runtime.map_batches(run, batches):
        loss_sum += loss
        undecoded.append((chosen, output))
        tokens_undecoded += len(output.start_logits)
        if tokens_undecoded >= _DECODED_TOGETHER:
            results |= _decode(windows, undecoded, settings)
            undecoded, tokens_undecoded = [], 0
    if undecoded:
        results |= _decode(windows, undecoded, settings)
    return [results[window] for window in block.windows], loss_sum


def _loss_sum(
    windows: WindowSet, chosen: Tensor, output: BertOutput, lengths: Sequence[int]
) -> float:
    """The training objective's sum over the chosen windows."""
    device = output.start_logits.device
    labels = (windows.start_position[chosen], windows.end_position[chosen])
    on_device = (label.long().to(device) for label in labels)
    return float(window_losses(output, lengths, *on_device).sum())


@torch.inference_mode()
def _decode(
    windows: WindowSet, outputs: Sequence[tuple[Tensor, BertOutput]], settings: DecodingSettings
) -> dict[int, _WindowResult]:
    """The results of some windows, given the indices and the scores of each batch of them."""
    chosen = torch.cat([indices for indices, _ in outputs])
    start_logits = torch.cat([output.start_logits for _, output in outputs])
    end_logits = torch.cat([output.end_logits for _, output in outputs])
    if not (start_logits + end_logits).isfinite().all():
        raise UserError(
            "the model gives scores that are not finite, so its weights are unusable, or too "
            "large for the precision: take another model, or --precision fp32"
        )
    if start_logits.device.type == "mps":  # it has no float64, which the sums need
        start_logits, end_logits = start_logits.cpu(), end_logits.cpu()
    spans = DECODERS[settings.decoder](
        start_logits,
        end_logits,
        windows.lengths[chosen].tolist(),
        windows.context_starts[chosen].tolist(),
        settings.n_best_size,
        settings.max_answer_length,
    )
    return dict(zip(chosen.tolist(), _window_results(windows, chosen, spans), strict=True))


def _window_results(windows: WindowSet, chosen: Tensor, spans: WindowSpans) -> list[_WindowResult]:
    """Spans of tokens to spans of characters, window by window."""
    owner = chosen[spans.window.cpu()]
    row = windows.contexts.bounds[windows.context_of[windows.example[owner]]] + windows.first[owner]
    start = windows.contexts.starts[row + spans.start.cpu()].tolist()
    end = windows.contexts.ends[row + spans.end.cpu()].tolist()
    start_logit, end_logit = spans.start_logit.tolist(), spans.end_logit.tolist()
    scores = spans.start_logit + spans.end_logit
    weights = (scores - spans.log_total[spans.window]).double().exp().tolist()
    rows = list(zip(scores.tolist(), start, end, start_logit, end_logit, weights, strict=True))
    bounds = torch.searchsorted(spans.window.cpu(), torch.arange(len(chosen) + 1)).tolist()
    nulls = zip(spans.null_start_logit.tolist(), spans.null_end_logit.tolist(), strict=True)
    totals = spans.log_total.tolist()
    return [
        _WindowResult(rows[bounds[i] : bounds[i + 1]], null, total)
        for i, (null, total) in enumerate(zip(nulls, totals, strict=True))
    ]


# --- windows to answers --------------------------------------------------------------------------


def _predictions(
    examples: Sequence[Example],
    windows: WindowSet,
    block: _Block,
    results: Sequence[_WindowResult],
    settings: DecodingSettings,
) -> Iterator[Prediction]:
    """One prediction for each example of the block."""
    owners = windows.example[block.windows.start : block.windows.stop]
    bounds = torch.searchsorted(
        owners, torch.arange(block.examples.start, block.examples.stop + 1, dtype=torch.int32)
    ).tolist()
    for i, number in enumerate(block.examples):
        yield _prediction(examples[number], results[bounds[i] : bounds[i + 1]], settings)


def _prediction(
    example: Example, results: Sequence[_WindowResult], settings: DecodingSettings
) -> Prediction:
    """Join the windows of one question."""
    null = min((result.null for result in results), key=sum)
    context = example.context
    spans = results[0].spans if len(results) == 1 else _of_question(results)
    if has_joins(context):
        spans = [_whole(context, span) for span in spans]
    # The spans of one window are in order. Two are alike where several tokens are one character.
    if len(results) > 1 or len({span[1:3] for span in spans}) < len(spans):
        spans = _merged(spans, settings)
    if settings.version_2_with_negative or not spans:
        spans = _with_null(spans, results, null, settings)
    if settings.decoder == "top20":
        spans = _among_themselves(spans)
    answers = tuple(
        [
            _answer((context[start:end], start, end, start_logit, end_logit, weight))
            for _, start, end, start_logit, end_logit, weight in spans
        ]
    )
    best = next((answer for answer in answers if answer.text), None)
    best_span = best.text if best else ""
    if not settings.version_2_with_negative:
        return Prediction(example.id, best_span, answers, best_span, None)
    odds = sum(null) - best.score if best else _NO_SPAN_ODDS
    text = "" if odds > settings.null_score_diff_threshold else best_span
    return Prediction(example.id, text, answers, best_span, odds)


def _of_question(results: Sequence[_WindowResult]) -> list[_Span]:
    """The spans of all windows, with probabilities among all spans of the question."""
    total = _log_sum([result.log_total for result in results])
    spans: list[_Span] = []
    for result in results:
        share = math.exp(result.log_total - total)
        spans += [(*span[:5], span[5] * share) for span in result.spans]
    return spans


def _log_sum(totals: Sequence[float]) -> float:
    """log of the sum of the exponentials; -inf if all are."""
    highest = max(totals)
    if highest == -math.inf:
        return highest
    return highest + math.log(sum(math.exp(total - highest) for total in totals))


def _whole(context: str, span: _Span) -> _Span:
    """The span without half a written character at its ends."""
    score, start, end, start_logit, end_logit, weight = span
    start, end = snap_to_graphemes(context, start, end)
    return (score, start, end, start_logit, end_logit, weight)


def _merged(spans: list[_Span], settings: DecodingSettings) -> list[_Span]:
    """The n best of all windows of a question.

    The exact decoder counts the same characters once, at their best score: two windows share a
    span, or the tokens are parts of one written character. Equal scores stand earliest start
    first, then shortest. run_qa keeps all, in the order they were found.
    """
    if settings.decoder == "top20":
        return sorted(spans, key=_worst_last)[: settings.n_best_size]
    spans = sorted(spans, key=lambda span: (-span[0], span[1], span[2]))
    distinct: dict[tuple[int, int], _Span] = {}
    for span in spans:
        distinct.setdefault((span[1], span[2]), span)
        if len(distinct) == settings.n_best_size:
            break
    return list(distinct.values())


def _worst_last(span: _Span) -> float:
    return -span[0]


def _with_null(
    spans: list[_Span],
    results: Sequence[_WindowResult],
    null: tuple[float, float],
    settings: DecodingSettings,
) -> list[_Span]:
    """Put "no answer" in its place among the spans; after a span of the same score."""
    of_spans, of_null = _log_sum([result.log_total for result in results]), sum(null)
    total = _log_sum([of_spans, of_null])
    share = math.exp(of_spans - total)
    entry = (of_null, 0, 0, *null, math.exp(of_null - total))
    answers = [(*span[:5], span[5] * share) for span in spans]
    answers = sorted([*answers, entry], key=_worst_last)
    # run_qa counts "no answer" as one of the n best, if it is. One span always stays.
    if settings.decoder == "top20" and len(answers) > settings.n_best_size > 1:
        return answers if answers[-1] is entry else answers[:-1]
    return answers


def _among_themselves(spans: list[_Span]) -> list[_Span]:
    """The spans, best first, with probabilities among these alone, as run_qa has them."""
    best = spans[0][0]
    weights = [math.exp(score - best) for score, *_ in spans]
    total = sum(weights)
    return [(*span[:5], weight / total) for span, weight in zip(spans, weights, strict=True)]
