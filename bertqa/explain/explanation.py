"""Data of an explanation, which explainer.py computes and page.py and terminal.py show.

L  tokens of the window      H  attention heads
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from bertqa.answering.answers import Answer, Prediction
from bertqa.data.graphemes import snap_to_graphemes
from bertqa.data.text import shortened
from bertqa.explain.attribution import Attribution
from bertqa.settings import DecodingSettings

_MATRIX = 30  # maximum rows and columns of the span matrix


@dataclass(frozen=True)
class Candidate:
    """A candidate span, or "no answer".

    Attributes:
        answer: text, offsets in the context, logits and probability.
        window: index of its window, from 0.
        first, last: first and last token in that window; both 0, [CLS], for "no answer".
    """

    answer: Answer
    window: int
    first: int
    last: int

    @property
    def tokens(self) -> range:
        """Positions of its tokens; empty for "no answer"."""
        return range(self.first, self.last + 1) if self.answer.text else range(0)


def answer_text(candidate: Candidate | None) -> str:
    """Return the answer on one line, or a note that there is none."""
    if candidate is None:
        return "(none)"
    return shortened(" ".join(candidate.answer.text.split())) or "(no answer)"


@dataclass(frozen=True)
class LayerReading:
    """Predictions of S and E from the hidden states after one layer (the logit lens).

    Attributes:
        best: the best span by these logits, with its probability among the spans of the window;
            None if the decoder finds none.
        start_probability, end_probability: P_start and P_end at the answer's start and end.
        start_rank, end_rank: number of tokens of the window with a logit at least as high; 1 is
            the highest.
    """

    best: Candidate | None
    start_probability: float
    end_probability: float
    start_rank: int
    end_rank: int


@dataclass(frozen=True)
class SpanMatrix:
    """Scores of all spans around the answer: a row per start, a column per end.

    Attributes:
        starts, ends: positions in the window.
        scores: ``(starts, ends)``, S.T_i + E.T_j; -inf for spans that would end before they start
            or exceed the maximum answer length.
    """

    starts: range
    ends: range
    scores: Tensor


@dataclass(frozen=True)
class Cell:
    """A displayed piece of the context: a word piece, or the text between two.

    Attributes:
        text: slice of the context.
        tokens: positions of its tokens in the window; several for an accent or an emoji, none for
            whitespace.
    """

    text: str
    tokens: range


@dataclass(frozen=True)
class Inside:
    """Attention, ablation effects and attributions in the answer's window.

    Attributes:
        attentions: attention probabilities ``(layers, H, L, L)``, from query token to key token.
        head_effects: ``(layers, H)``, decrease of the answer's log-likelihood without a head.
        layer_effects: ``(layers,)``, the same when a layer is skipped.
        start_attribution, end_attribution: contribution of each token to S.T_start and E.T_end of
            the answer.
        replacement: the word piece that replaces every word in the baseline of the attributions.
        steps: steps of integrated gradients.
    """

    attentions: Tensor
    head_effects: Tensor
    layer_effects: Tensor
    start_attribution: Attribution
    end_attribution: Attribution
    replacement: str
    steps: int

    @property
    def strongest_head(self) -> tuple[int, int]:
        """Layer and head, both from 0, with the largest effect."""
        layer, head, _ = self.most_needed(1)[0]
        return layer, head

    def most_needed(self, count: int) -> list[tuple[int, int, float]]:
        """Return layer, head and effect of the heads with the largest effects, largest first."""
        order = self.head_effects.flatten().argsort(descending=True)[:count].tolist()
        heads = (divmod(flat, self.head_effects.shape[1]) for flat in order)
        return [(layer, head, float(self.head_effects[layer, head])) for layer, head in heads]

    @property
    def attributions(self) -> Tensor:
        """``(L,)``, contribution of each token to the span score, the sum of start and end."""
        return self.start_attribution.tokens + self.end_attribution.tokens


@dataclass(frozen=True)
class Explanation:
    """An answer and how the model computed it; positions are those of the explained window.

    Attributes:
        question, context: the input.
        model_name: name to display.
        answered: the answer as ``bertqa infer`` gives it.
        answered_in: the precision of ``answered``.
        decoding: decoding settings.
        prediction: the same answer in float32; ``answered`` if float32 gives another one.
        candidates: the n-best list of ``prediction``, best first, including "no answer" if that is
            allowed.
        chosen: index of the answer in ``candidates``.
        best_spans: the best span of each window, in float32; None if it has none.
        null_scores: S.T_CLS + E.T_CLS of each window.
        tokens: the L word pieces of the window.
        offsets: the slice of the context that each covers, None outside the context.
        layer_logits: ``(layers + 1, 2, L)``, S.T_i and E.T_i after the embeddings and each layer.
        layers: predictions of S and E after the embeddings and each layer.
        inside: attention, effects of heads and layers, and token attributions.
    """

    question: str
    context: str
    model_name: str
    answered: Prediction
    answered_in: str
    decoding: DecodingSettings
    prediction: Prediction
    candidates: tuple[Candidate, ...]
    chosen: int
    best_spans: tuple[Candidate | None, ...]
    null_scores: tuple[float, ...]
    tokens: tuple[str, ...]
    offsets: tuple[tuple[int, int] | None, ...]
    layer_logits: Tensor
    layers: tuple[LayerReading, ...]
    inside: Inside

    @property
    def answer(self) -> Candidate:
        """The chosen candidate."""
        return self.candidates[self.chosen]

    @property
    def window(self) -> int:
        """Index of the explained window, which contains the answer, from 0."""
        return self.answer.window

    @property
    def logits(self) -> Tensor:
        """``(2, L)``, S.T_i and E.T_i."""
        return self.layer_logits[-1]

    @property
    def probabilities(self) -> Tensor:
        """``(2, L)``, P_start and P_end: the softmax over the tokens of the window."""
        return self.logits.softmax(dim=-1)

    @property
    def is_null(self) -> bool:
        """Whether the answer is "no answer"."""
        return not self.answer.answer.text

    @property
    def is_in_fp32(self) -> bool:
        """Whether the answer's scores are in float32, like all other numbers."""
        return self.answered_in == "fp32" or self.prediction is not self.answered

    @property
    def answered_score(self) -> float:
        """Score of the answer in the precision ``answered_in``."""
        return next(a.score for a in self.answered.answers if a.text == self.answered.text)

    @property
    def explained_score(self) -> float:
        """S.T_start + E.T_end of the answer in float32."""
        start, end = self.logits
        return float(start[self.answer.first] + end[self.answer.last])

    @property
    def context_tokens(self) -> range:
        """Positions of the context tokens."""
        first = self.question_tokens.stop + 1
        return range(first, len(self.tokens) - 1)

    @property
    def question_tokens(self) -> range:
        """Positions of the question tokens."""
        first = next((i for i, o in enumerate(self.offsets) if o), len(self.tokens) - 1)
        return range(1, first - 1)

    def part_of(self, position: int) -> str:
        """Return the segment of a token: "question", "context" or "special"."""
        if position in self.question_tokens:
            return "question"
        return "context" if position in self.context_tokens else "special"

    @property
    def window_start(self) -> int:
        """Offset of the first character of the context that is in the window."""
        tokens = self.context_tokens
        return self.offsets[tokens.start][0] if tokens else 0  # type: ignore[index]

    def cells(self) -> Iterator[Cell]:
        """Yield the context from the window's first token to its last in pieces."""
        at = self.window_start
        for group in _overlapping(self.offsets, self.context_tokens):
            spans = [offset for i in group if (offset := self.offsets[i])]
            first = max(at, spans[0][0])
            # A combining mark that the tokenizer dropped belongs to the character before it.
            last = snap_to_graphemes(self.context, first, max(at, *(end for _, end in spans)))[1]
            last = max(at, last)
            if first > at:
                yield Cell(self.context[at:first], range(0))
            yield Cell(self.context[first:last], group)
            at = last

    def span_matrix(self, reach: int = 4) -> SpanMatrix | None:
        """Return the scores of the spans around the answer, or around the window's best span.

        Args:
            reach: number of tokens before the start and after the end.
        """
        center = self.answer if not self.is_null else self.best_spans[self.window]
        if center is None:
            return None
        tokens, (start, end) = self.context_tokens, self.logits
        first, last = max(tokens.start, center.first - reach), center.last + reach
        around = range(first, min(tokens.stop, last + 1))
        starts, ends = around[:_MATRIX], around[-_MATRIX:]
        i, j = torch.tensor(starts)[:, None], torch.tensor(ends)
        is_span = (i <= j) & (j < i + self.decoding.max_answer_length)
        return SpanMatrix(starts, ends, (start[i] + end[j]).where(is_span, -torch.inf))


def _overlapping(offsets: Sequence[tuple[int, int] | None], tokens: range) -> Iterator[range]:
    """Yield groups of consecutive context tokens; tokens that share characters are in one group."""
    reached = -1
    begins: list[int] = []
    for i in tokens:
        start, end = offsets[i] or (0, 0)
        if start >= reached or not begins:
            begins.append(i)
        reached = max(reached, end)
    for first, beyond in pairwise([*begins, tokens.stop]):
        yield range(first, beyond)
