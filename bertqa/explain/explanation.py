"""The explanation of an answer as data: explainer.py computes it, the pages show it.

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

_MATRIX = 30  # the span matrix has at most so many rows and columns


@dataclass(frozen=True)
class Candidate:
    """A span that competed, or "no answer".

    Attributes:
        answer: its text, offsets in the context, two scores, and probability.
        window: index of its window, from 0.
        first, last: its first and last token in that window; both 0, [CLS], for "no answer".
    """

    answer: Answer
    window: int
    first: int
    last: int

    @property
    def tokens(self) -> range:
        """Its tokens; none for "no answer"."""
        return range(self.first, self.last + 1) if self.answer.text else range(0)


def answer_text(candidate: Candidate | None) -> str:
    """An answer on one line; also that there is none."""
    if candidate is None:
        return "(none)"
    return shortened(" ".join(candidate.answer.text.split())) or "(no answer)"


@dataclass(frozen=True)
class LayerReading:
    """The scores of S and E for the hidden states after one layer.

    Attributes:
        best: the best span by these scores, its probability among the spans of the window; None
            where the decoder finds none.
        start_probability, end_probability: P_start and P_end of the answer's two tokens.
        start_rank, end_rank: how many tokens of the window have a score at least as high; 1 is
            the highest.
    """

    best: Candidate | None
    start_probability: float
    end_probability: float
    start_rank: int
    end_rank: int


@dataclass(frozen=True)
class SpanMatrix:
    """The scores of all spans around the answer: a row for each start, a column for each end.

    Attributes:
        starts, ends: positions in the window.
        scores: ``(starts, ends)``, S.T_i + E.T_j; -inf where the span would end before it starts
            or have more tokens than the decoder allows.
    """

    starts: range
    ends: range
    scores: Tensor


@dataclass(frozen=True)
class Cell:
    """A piece of the context as it is shown: a word piece, or the text between two.

    Attributes:
        text: of the context.
        places: its tokens in the window; several for an accent or an emoji, none for a blank.
    """

    text: str
    places: range


@dataclass(frozen=True)
class Inside:
    """What the model computed on the window of the answer.

    Attributes:
        attentions: ``(layers, H, L, L)``, from the query token to the key token.
        head_effects: ``(layers, H)``, how much log-likelihood the answer loses without a head.
        layer_effects: ``(layers,)``, the same for a layer that is skipped.
        start_parts, end_parts: what each token adds to S.T_start and to E.T_end of the answer.
        replacement: the word piece that replaces every word in the attributions' baseline.
        steps: of the attributions' integral.
    """

    attentions: Tensor
    head_effects: Tensor
    layer_effects: Tensor
    start_parts: Attribution
    end_parts: Attribution
    replacement: str
    steps: int

    @property
    def strongest_head(self) -> tuple[int, int]:
        """Layer and head, both from 0, without which the answer loses most."""
        layer, head, _ = self.most_needed(1)[0]
        return layer, head

    def most_needed(self, count: int) -> list[tuple[int, int, float]]:
        """Layer, head and effect of the heads without which the answer loses most, most first."""
        order = self.head_effects.flatten().argsort(descending=True)[:count].tolist()
        places = (divmod(flat, self.head_effects.shape[1]) for flat in order)
        return [(layer, head, float(self.head_effects[layer, head])) for layer, head in places]

    @property
    def parts(self) -> Tensor:
        """``(L,)``, what each token adds to the score of the span, the sum of start and end."""
        return self.start_parts.tokens + self.end_parts.tokens


@dataclass(frozen=True)
class Explanation:
    """One answer and what it was made of; positions are those of the explained window.

    Attributes:
        question, context: what was asked.
        model_name: name to display.
        answered_in: the precision of ``prediction`` and ``candidates``; all else is in float32.
        decoding: how spans became answers.
        prediction: the answer as ``bertqa infer`` gives it.
        candidates: the n best, best first, "no answer" among them where that is an answer.
        chosen: which of them is the answer.
        best_spans: of each window its best span, in float32; None where it has none.
        null_scores: of each window S.T_CLS + E.T_CLS.
        tokens: the L word pieces of the window.
        offsets: for each the slice of the context it covers, None outside the context.
        layer_logits: ``(layers + 1, 2, L)``, S.T_i and E.T_i, read after the embeddings and each
            layer.
        layers: the scores of S and E after the embeddings and after each layer.
        inside: effects of heads and layers, and what each token adds.
    """

    question: str
    context: str
    model_name: str
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
        """The chosen one."""
        return self.candidates[self.chosen]

    @property
    def window(self) -> int:
        """The number of the window that is explained, from 0: that of the answer."""
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
        """Whether the answer was found in the precision of all other numbers."""
        return self.answered_in == "fp32"

    @property
    def explained_score(self) -> float:
        """S.T_start + E.T_end of the answer in float32."""
        start, end = self.logits
        return float(start[self.answer.first] + end[self.answer.last])

    @property
    def context_starts(self) -> range:
        """The tokens of the context."""
        first = self.question_places.stop + 1
        return range(first, len(self.tokens) - 1)

    @property
    def question_places(self) -> range:
        """The tokens of the question."""
        first = next((i for i, o in enumerate(self.offsets) if o), len(self.tokens) - 1)
        return range(1, first - 1)

    def part_of(self, place: int) -> str:
        """Whether a token is of the question, of the text, or of the frame around them."""
        if place in self.question_places:
            return "question"
        return "text" if place in self.context_starts else "frame"

    @property
    def window_start(self) -> int:
        """The character of the context at which the window's part of it begins."""
        places = self.context_starts
        return self.offsets[places.start][0] if places else 0  # type: ignore[index]

    def cells(self) -> Iterator[Cell]:
        """The context from the window's first token to its last, piece by piece."""
        places = self.context_starts
        at = self.window_start
        for group in _together(self.offsets, places):
            spans = [offset for i in group if (offset := self.offsets[i])]
            first = max(at, spans[0][0])
            # A mark that the tokenizer has dropped belongs to the character before it.
            last = snap_to_graphemes(self.context, first, max(at, *(end for _, end in spans)))[1]
            last = max(at, last)
            if first > at:
                yield Cell(self.context[at:first], range(0))
            yield Cell(self.context[first:last], group)
            at = last

    def span_matrix(self, reach: int = 4) -> SpanMatrix | None:
        """The spans around the answer, or around the window's best span where there is none.

        Args:
            reach: tokens before the start and after the end.
        """
        centre = self.answer if not self.is_null else self.best_spans[self.window]
        if centre is None:
            return None
        places, (start, end) = self.context_starts, self.logits
        first, last = max(places.start, centre.first - reach), centre.last + reach
        around = range(first, min(places.stop, last + 1))
        starts, ends = around[:_MATRIX], around[-_MATRIX:]
        i, j = torch.tensor(starts)[:, None], torch.tensor(ends)
        is_span = (i <= j) & (j < i + self.decoding.max_answer_length)
        return SpanMatrix(starts, ends, (start[i] + end[j]).where(is_span, -torch.inf))


def _together(offsets: Sequence[tuple[int, int] | None], places: range) -> Iterator[range]:
    """The tokens of the context in runs, those that share characters with the one before in one."""
    reached = -1
    begins: list[int] = []
    for place in places:
        start, end = offsets[place] or (0, 0)
        if start >= reached or not begins:
            begins.append(place)
        reached = max(reached, end)
    for first, beyond in pairwise([*begins, places.stop]):
        yield range(first, beyond)
