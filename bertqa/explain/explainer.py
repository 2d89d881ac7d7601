"""All that can be seen of one answer: what the page of ``bertqa explain`` shows.

The answer is the one that ``bertqa infer`` gives. What is behind it (scores by layer, attention,
the effect of each head, the part of each token) is computed in float32, for the one window that
holds the answer; where a text has several windows, the others have their best span in a table.

L  tokens of the window      H  attention heads
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor
from tqdm import tqdm

from bertqa.answering.answerer import (
    NOTHING_ASKED,
    QuestionAnswerer,
    asked,
    check_window_fits,
    usual_windows,
)
from bertqa.answering.answers import Answer, Prediction
from bertqa.answering.decoding import BestSpans, WindowScores
from bertqa.answering.evaluation import DECODERS, predict, window_scores
from bertqa.data.batching import collate, token_budget_batches
from bertqa.data.graphemes import snap_to_graphemes
from bertqa.data.tokenization import BertTokenizer
from bertqa.data.windows import Window, WindowSet, make_windows
from bertqa.errors import UserError
from bertqa.explain.attribution import (
    Attribution,
    Progress,
    head_effects,
    integrated_gradients,
    layer_effects,
    without_words,
)
from bertqa.explain.explanation import Candidate, Explanation, Inside, LayerReading
from bertqa.explain.hooks import attention_names, hidden_state_names, logit_lens, record
from bertqa.model.bert import BertForQuestionAnswering
from bertqa.model.checkpoint import load_checkpoint
from bertqa.model.cpu_inference import is_prepacked
from bertqa.model.hub import commit_of
from bertqa.model.packing import PackedBatch
from bertqa.runtime import Runtime
from bertqa.settings import DecodingSettings, Overrides, WindowSettings

STEPS = 64  # of the integral of the attributions
_TOKENS = 4096  # of a batch, when all windows are read again


def explain(
    model: BertForQuestionAnswering,
    tokenizer: BertTokenizer,
    question: str,
    context: str,
    *,
    windows: WindowSettings | None = None,
    decoding: DecodingSettings | None = None,
    prediction: Prediction | None = None,
    model_name: str = "",
    answered_in: str = "fp32",
    steps: int = STEPS,
    progress: Progress | None = None,
) -> Explanation:
    """Answer a question and look at what the answer is made of.

    Args:
        model: in float32 and not prepacked, as ``load_checkpoint(folder)[0]`` is.
        windows, decoding: how the context is cut and spans become answers; None takes what
            ``QuestionAnswerer`` takes.
        prediction: the answer, if another form of the same model has found it already, with these
            settings; ``answered_in`` is the precision of that one.
        steps: of the integral of the attributions: more are more exact.
        progress: is told how many of the ``passes`` were done.

    Raises:
        UserError: an empty question or context, a question or windows that are too long, or a
            prepacked model, which has no gradients.
    """
    if is_prepacked(model) or next(model.parameters()).dtype is not torch.float32:
        raise UserError(
            "explain: this model is made ready for answering, prepacked or in half precision; "
            "give the one that bertqa.model.checkpoint.load_checkpoint returns"
        )
    examples = asked(question, context)
    windows, decoding = windows or usual_windows(model.config), decoding or DecodingSettings()
    check_window_fits(model.config, windows)
    model.eval()
    cut = make_windows(examples, tokenizer, windows)
    if prediction is None:
        runtime = Runtime(next(model.parameters()).device)
        (prediction,) = predict(model, examples, cut, decoding, runtime)
    scores = _scores(model, cut)
    finder = _Finder(context, [cut[number] for number in range(len(cut))], scores)
    candidates = tuple(finder.find(answer) for answer in prediction.answers)
    chosen = next(i for i, c in enumerate(candidates) if c.answer.text == prediction.text)
    answer = candidates[chosen]
    window = finder.windows[answer.window]
    batch = _batch(model, cut, [answer.window])
    with torch.no_grad():
        with record(model, [*hidden_state_names(model), *attention_names(model)]) as seen:
            output = model(batch)
        lens = logit_lens(model, [seen[name] for name in hidden_state_names(model)])
    layer_logits = torch.stack([torch.stack(pair) for pair in lens]).cpu()
    attentions = torch.stack([seen[name][0] for name in attention_names(model)]).cpu()
    return Explanation(
        question=question,
        context=context,
        model_name=model_name,
        answered_in=answered_in,
        decoding=decoding,
        max_seq_length=windows.max_seq_length,
        prediction=prediction,
        candidates=candidates,
        chosen=chosen,
        window=answer.window,
        best_spans=tuple(_best_spans(finder, cut, scores, decoding)),
        null_scores=tuple(float(start[0] + end[0]) for start, end in scores),
        tokens=tuple(tokenizer.tokens(window.input_ids)),
        offsets=tuple(window.offsets),
        start_logits=output.start_logits.cpu(),
        end_logits=output.end_logits.cpu(),
        layer_logits=layer_logits,
        layers=tuple(_reading(finder, answer, pair, decoding) for pair in layer_logits),
        inside=_look_inside(model, tokenizer, batch, answer, attentions, steps, progress),
    )


def _look_inside(
    model: BertForQuestionAnswering,
    tokenizer: BertTokenizer,
    batch: PackedBatch,
    answer: Candidate,
    attentions: Tensor,
    steps: int,
    progress: Progress | None,
) -> Inside:
    """What the heads, the layers and the tokens of a window are worth to its answer."""
    first, last = answer.first, answer.last
    baseline = without_words(batch, tokenizer.mask_id, (tokenizer.cls_id, tokenizer.sep_id))
    return Inside(
        attentions=attentions,
        head_effects=head_effects(model, batch, first, last, progress),
        layer_effects=layer_effects(model, batch, first, last, progress),
        start_parts=_parts(model, batch, baseline, first, False, steps, progress),
        end_parts=_parts(model, batch, baseline, last, True, steps, progress),
        replacement=tokenizer.tokens([tokenizer.mask_id])[0],
        steps=steps,
    )


def explain_checkpoint(
    name: str,
    question: str,
    context: str,
    *,
    top_k: int = 1,
    overrides: Overrides = NOTHING_ASKED,
    device: str = "auto",
    precision: str = "auto",
    revision: str | None = None,
    allow_bin: bool = False,
) -> Explanation:
    """Answer as ``bertqa infer`` does, in any precision, and explain the answer in float32.

    Args:
        name: checkpoint folder or name.
        top_k: answers that are wanted at least.

    Raises:
        UserError: the checkpoint or the question cannot be used.
    """
    qa = QuestionAnswerer.from_pretrained(
        name, overrides=overrides, device=device, precision=precision, revision=revision,
        allow_bin=allow_bin,
    )  # fmt: skip
    qa.decoding = replace(qa.decoding, n_best_size=max(top_k, qa.decoding.n_best_size))
    (prediction,) = qa.answer(asked(question, context))
    windows, decoding, tokenizer, runtime = qa.windows, qa.decoding, qa.tokenizer, qa.runtime
    folder = qa.folder
    del qa  # its layers are prepacked and give no gradients; there is to be room for the others
    assert folder is not None  # it was loaded from one
    model = load_checkpoint(folder, allow_bin=allow_bin)[0].to(runtime.device)
    with tqdm(total=passes(model), unit="pass", disable=None, desc="explaining") as bar:
        return explain(
            model, tokenizer, question, context, windows=windows, decoding=decoding,
            prediction=prediction, model_name=name if commit_of(folder) else folder.resolve().name,
            answered_in=runtime.precision, progress=bar.update,
        )  # fmt: skip


def passes(model: BertForQuestionAnswering, steps: int = STEPS) -> int:
    """Of how many passes through the model ``progress`` is told."""
    layers, heads = model.config.num_hidden_layers, model.config.num_attention_heads
    return layers * heads + layers + 2 * steps


def _parts(
    model: BertForQuestionAnswering,
    batch: PackedBatch,
    baseline: PackedBatch,
    place: int,
    of_end: bool,
    steps: int,
    progress: Progress | None,
) -> Attribution:
    found = integrated_gradients(
        model, batch, baseline, place, of_end=of_end, steps=steps, progress=progress
    )
    return Attribution(found.tokens.detach().cpu(), found.score, found.baseline)


def _batch(
    model: BertForQuestionAnswering, windows: WindowSet, numbers: Sequence[int]
) -> PackedBatch:
    """Some windows, where the model is."""
    return collate(windows, torch.tensor(numbers)).to(next(model.parameters()).device)


@torch.no_grad()
def _scores(model: BertForQuestionAnswering, windows: WindowSet) -> list[tuple[Tensor, Tensor]]:
    """S.T_i and E.T_i of every window, on the CPU."""
    found: dict[int, tuple[Tensor, Tensor]] = {}
    for chosen in token_budget_batches(windows.lengths, _TOKENS):
        batch = _batch(model, windows, chosen.tolist())
        output = model(batch)
        starts, ends = (
            scores.cpu().split(list(batch.lengths))
            for scores in (output.start_logits, output.end_logits)
        )
        found |= dict(zip(chosen.tolist(), zip(starts, ends, strict=True), strict=True))
    return [found[number] for number in range(len(windows))]


class _Finder:
    """From an answer, which is a slice of the context, to the tokens that it was made of."""

    def __init__(
        self, context: str, windows: Sequence[Window], scores: Sequence[tuple[Tensor, Tensor]]
    ) -> None:
        self.context, self.windows, self.scores = context, windows, scores

    def find(self, answer: Answer) -> Candidate:
        """The tokens that cover the answer; of several (windows overlap) those with its scores.

        The answer may come from a model in another precision, whose scores are a little different:
        where two windows have the span with nearly the same scores, the other may be found.
        """
        if not answer.text:
            nulls = [float(start[0] + end[0]) for start, end in self.scores]
            return Candidate(answer, nulls.index(min(nulls)), 0, 0)
        found = [
            (abs(start_gap) + abs(end_gap), number, first, last)
            for number, (start, end) in enumerate(self.scores)
            for first, last in self._places(number, answer)
            for start_gap in [float(start[first]) - answer.start_logit]
            for end_gap in [float(end[last]) - answer.end_logit]
        ]
        _, number, first, last = min(found)
        return Candidate(answer, number, first, last)

    def _places(self, number: int, answer: Answer) -> Iterator[tuple[int, int]]:
        spans = [offset for offset in self.windows[number].offsets if offset]
        if not spans or answer.end <= spans[0][0] or spans[-1][1] <= answer.start:
            return  # most windows of a long text
        offsets = list(enumerate(self.windows[number].offsets))
        lasts = [j for j, offset in offsets if offset and self._slice(*offset)[1] == answer.end]
        for i, offset in offsets:
            if offset and self._slice(*offset)[0] == answer.start:
                yield from ((i, j) for j in lasts if j >= i)

    def _slice(self, start: int, end: int) -> tuple[int, int]:
        """The characters of some tokens, none of them cut in two."""
        return snap_to_graphemes(self.context, start, end)

    def candidate(self, number: int, spans: BestSpans, log_total: float) -> Candidate | None:
        """The best of the spans that were found in one window.

        Args:
            log_total: what its probability is normalised by.
        """
        if not len(spans.start):
            return None
        offsets = self.windows[number].offsets
        place = next(i for i, offset in enumerate(offsets) if offset)
        first, last = place + int(spans.start[0]), place + int(spans.end[0])
        start, end = self._slice(offsets[first][0], offsets[last][1])  # type: ignore[index]
        start_logit, end_logit = float(spans.start_logit[0]), float(spans.end_logit[0])
        probability = math.exp(start_logit + end_logit - log_total)
        text = self.context[start:end]
        answer = Answer(text, start, end, start_logit, end_logit, probability)
        return Candidate(answer, number, first, last)


def _spans(window: Window, start: Tensor, end: Tensor, decoding: DecodingSettings) -> BestSpans:
    """The best spans of one window."""
    length = len(window.input_ids)
    place = next((i for i, offset in enumerate(window.offsets) if offset), length - 1)
    scores = WindowScores.of_batch(start, end, [length], [place])
    return DECODERS[decoding.decoder](scores, decoding.n_best_size, decoding.max_answer_length)


def _best_spans(
    finder: _Finder,
    cut: WindowSet,
    scores: Sequence[tuple[Tensor, Tensor]],
    decoding: DecodingSettings,
) -> list[Candidate | None]:
    """The best span of each window, with its probability among the spans of the whole context."""
    logits = (torch.cat(columns) for columns in zip(*scores, strict=True))
    whole = window_scores(cut, torch.arange(len(cut)), *logits)
    spans = DECODERS[decoding.decoder](whole, decoding.n_best_size, decoding.max_answer_length)
    total = spans.log_total
    if decoding.version_2_with_negative:
        total = total.logaddexp(spans.null_start_logit.double() + spans.null_end_logit.double())
    found = [_spans(w, *pair, decoding) for w, pair in zip(finder.windows, scores, strict=True)]
    return [finder.candidate(number, spans, float(total)) for number, spans in enumerate(found)]


def _reading(
    finder: _Finder, answer: Candidate, logits: Tensor, decoding: DecodingSettings
) -> LayerReading:
    """What S and E say after one layer, ``logits`` of ``(2, L)``."""
    start, end = logits
    spans = _spans(finder.windows[answer.window], start, end, decoding)
    return LayerReading(
        finder.candidate(answer.window, spans, float(spans.log_total[0])),
        float(start.softmax(dim=0)[answer.first]),
        float(end.softmax(dim=0)[answer.last]),
        int((start >= start[answer.first]).sum()),
        int((end >= end[answer.last]).sum()),
    )
