"""All that can be seen of one answer: what the page of ``bertqa explain`` shows.

The answer is the one that ``bertqa infer`` gives. What is behind it (scores by layer, attention,
the effect of each head, the part of each token) is computed in float32, for the one window that
holds the answer; where a text has several windows, the others have their best span in a table.

L  tokens of the window      H  attention heads
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import pairwise

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
from bertqa.data.batching import collate
from bertqa.data.graphemes import snap_to_graphemes
from bertqa.data.tokenization import BertTokenizer
from bertqa.data.windows import Window, WindowSet, make_windows
from bertqa.errors import UserError
from bertqa.explain.attribution import (
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
    windows = windows or usual_windows(model.config)
    decoding = replace(decoding or DecodingSettings(), score_threshold=0.0)
    check_window_fits(model.config, windows)
    model.eval()
    cut = make_windows(examples, tokenizer, windows)
    if prediction is None:
        runtime = Runtime(next(model.parameters()).device)
        (prediction,) = predict(model, examples, cut, decoding, runtime)
    text = _Text(context, cut, decoding, *_scores(model, cut))
    candidates = tuple(map(text.find, prediction.answers))
    chosen = next(i for i, c in enumerate(candidates) if c.answer.text == prediction.text)
    answer = candidates[chosen]
    batch = _batch(model, cut, answer.window)
    layer_logits, attentions = _read_layers(model, batch)
    return Explanation(
        question=question,
        context=context,
        model_name=model_name,
        answered_in=answered_in,
        decoding=decoding,
        prediction=prediction,
        candidates=candidates,
        chosen=chosen,
        best_spans=tuple(text.best_of_windows()),
        null_scores=tuple(text.null_scores),
        tokens=tuple(tokenizer.tokens(text.windows[answer.window].input_ids)),
        offsets=tuple(text.windows[answer.window].offsets),
        layer_logits=layer_logits,
        layers=tuple(text.readings(answer, layer_logits)),
        inside=_look_inside(model, tokenizer, batch, answer, attentions, steps, progress),
    )


@torch.no_grad()
def _read_layers(model: BertForQuestionAnswering, batch: PackedBatch) -> tuple[Tensor, Tensor]:
    """What S and E read after the embeddings and each layer, and the attention, of one window.

    Returns:
        ``(layers + 1, 2, L)`` and ``(layers, H, L, L)``, on the CPU.
    """
    states, attentions = hidden_state_names(model), attention_names(model)
    with record(model, [*states, *attentions]) as seen:
        model(batch)
    lens = [torch.stack(pair) for pair in logit_lens(model, [seen[name] for name in states])]
    return torch.stack(lens).cpu(), torch.stack([seen[name][0] for name in attentions]).cpu()


def _look_inside(
    model: BertForQuestionAnswering,
    tokenizer: BertTokenizer,
    batch: PackedBatch,
    answer: Candidate,
    attentions: Tensor,
    steps: int,
    progress: Progress | None,
) -> Inside:
    """The effects of the heads, the layers and the tokens of a window on its answer."""
    first, last = answer.first, answer.last
    baseline = without_words(batch, tokenizer.mask_id, (tokenizer.cls_id, tokenizer.sep_id))
    parts = partial(integrated_gradients, model, batch, baseline, steps=steps, progress=progress)
    return Inside(
        attentions=attentions,
        head_effects=head_effects(model, batch, first, last, progress),
        layer_effects=layer_effects(model, batch, first, last, progress),
        start_parts=parts(first),
        end_parts=parts(last, of_end=True),
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


def _batch(model: BertForQuestionAnswering, windows: WindowSet, number: int) -> PackedBatch:
    """One window, where the model is."""
    return collate(windows, torch.tensor([number])).to(next(model.parameters()).device)


@torch.no_grad()
def _scores(
    model: BertForQuestionAnswering, windows: WindowSet
) -> tuple[list[Tensor], list[Tensor]]:
    """S.T_i and E.T_i of every window, on the CPU."""
    outputs = [model(_batch(model, windows, number)) for number in range(len(windows))]
    starts, ends = zip(*((start.cpu(), end.cpu()) for start, end in outputs), strict=True)
    return list(starts), list(ends)


@dataclass(frozen=True)
class _Text:
    """The windows of a context and the scores of their tokens: where its answers stand.

    Attributes:
        starts, ends: of each window S.T_i and E.T_i, ``(L,)``.
    """

    context: str
    cut: WindowSet
    decoding: DecodingSettings
    starts: list[Tensor]
    ends: list[Tensor]

    @cached_property
    def windows(self) -> list[Window]:
        """Each window, spelled out."""
        return [self.cut[number] for number in range(len(self.cut))]

    @cached_property
    def null_scores(self) -> list[float]:
        """Of each window S.T_CLS + E.T_CLS."""
        pairs = zip(self.starts, self.ends, strict=True)
        return [float(start[0] + end[0]) for start, end in pairs]

    def find(self, answer: Answer) -> Candidate:
        """The tokens that cover the answer; of several (windows overlap) those with its scores.

        The answer may come from a model in another precision, whose scores are a little different:
        where two windows have the span with nearly the same scores, the other may be found.
        """
        if not answer.text:
            return Candidate(answer, self.null_scores.index(min(self.null_scores)), 0, 0)

        def distance(place: tuple[int, int, int]) -> float:
            number, first, last = place
            start_gap = float(self.starts[number][first]) - answer.start_logit
            return abs(start_gap) + abs(float(self.ends[number][last]) - answer.end_logit)

        return Candidate(answer, *min(self._places(answer), key=distance))

    def _places(self, answer: Answer) -> Iterator[tuple[int, int, int]]:
        """Window, first and last token of every run of tokens that covers an answer."""
        for number, window in enumerate(self.windows):
            spans = [(i, offset) for i, offset in enumerate(window.offsets) if offset]
            if not spans or answer.end <= spans[0][1][0] or spans[-1][1][1] <= answer.start:
                continue  # most windows of a long text
            firsts = [i for i, offset in spans if self._slice(*offset)[0] == answer.start]
            lasts = [j for j, offset in spans if self._slice(*offset)[1] == answer.end]
            yield from ((number, i, j) for i in firsts for j in lasts if i <= j)

    def _slice(self, start: int, end: int) -> tuple[int, int]:
        """The characters of some tokens, no grapheme cluster cut in two."""
        return snap_to_graphemes(self.context, start, end)

    def best_of_windows(self) -> Iterator[Candidate | None]:
        """The best span of each window, with its probability among the spans of all windows."""
        starts, ends, numbers = torch.cat(self.starts), torch.cat(self.ends), range(len(self.cut))
        whole = self._search(window_scores(self.cut, torch.tensor(numbers), starts, ends))
        total = whole.log_total
        if self.decoding.version_2_with_negative:
            null_score = whole.null_start_logit.double() + whole.null_end_logit.double()
            total = total.logaddexp(null_score / self.decoding.temperature)
        spans = self._search_each(starts, ends, numbers)
        return self._candidates(spans, numbers, total.tolist() * len(numbers))

    def readings(self, answer: Candidate, layer_logits: Tensor) -> Iterator[LayerReading]:
        """What S and E say after each layer, ``(layers + 1, 2, L)``."""
        numbers = [answer.window] * len(layer_logits)
        starts, ends = layer_logits.unbind(dim=1)
        spans = self._search_each(starts.flatten(), ends.flatten(), numbers)
        bests = self._candidates(spans, numbers, spans.log_total.tolist())
        for best, start, end in zip(bests, starts, ends, strict=True):
            yield LayerReading(
                best,
                float(start.softmax(dim=0)[answer.first]),
                float(end.softmax(dim=0)[answer.last]),
                int((start >= start[answer.first]).sum()),
                int((end >= end[answer.last]).sum()),
            )

    def _search_each(self, starts: Tensor, ends: Tensor, numbers: Sequence[int]) -> BestSpans:
        """The best spans of windows one by one, by scores that are concatenated."""
        chosen = torch.tensor(numbers)
        sizes = (self.cut.lengths[chosen].tolist(), self.cut.context_starts[chosen].tolist())
        return self._search(WindowScores.of_batch(starts, ends, *sizes))

    def _search(self, scores: WindowScores) -> BestSpans:
        wanted = self.decoding
        decode = DECODERS[wanted.decoder]
        return decode(scores, wanted.n_best_size, wanted.max_answer_length, wanted.temperature)

    def _candidates(
        self, spans: BestSpans, numbers: Sequence[int], log_totals: Sequence[float]
    ) -> Iterator[Candidate | None]:
        """The best span that ``_search_each`` found in each window; None where it found none.

        Args:
            log_totals: for each what its probability is normalised by.
        """
        rows = torch.searchsorted(spans.question, torch.arange(len(numbers) + 1)).tolist()
        for (row, beyond), number, log_total in zip(
            pairwise(rows), numbers, log_totals, strict=True
        ):
            if row == beyond:
                yield None
                continue
            place, offsets = int(self.cut.context_starts[number]), self.windows[number].offsets
            first, last = place + int(spans.start[row]), place + int(spans.end[row])
            start, end = self._slice(offsets[first][0], offsets[last][1])  # type: ignore[index]
            logits = float(spans.start_logit[row]), float(spans.end_logit[row])
            probability = math.exp(sum(logits) / self.decoding.temperature - log_total)
            answer = Answer(self.context[start:end], start, end, *logits, probability)
            yield Candidate(answer, number, first, last)
