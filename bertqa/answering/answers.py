"""Answers: slices of the context, made from the best spans of a question."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple, TypedDict

from bertqa.data.graphemes import joined_clusters, snap_to_graphemes
from bertqa.data.squad import Example
from bertqa.settings import DecodingSettings

# The null odds of a question whose context has no tokens: the largest float32, above every
# threshold, and finite as JSON and the search for a threshold require.
NO_SPAN_ODDS = (2 - 2**-23) * 2.0**127


class Answer(NamedTuple):
    """One answer to a question: ``text == context[start:end]``.

    Attributes:
        start, end: offsets in the context, in code points; both 0 for "no answer", whose text is
            "".
        start_logit, end_logit: S.T_start and E.T_end; their sum is the score.
        probability: softmax of score / temperature over all spans of the question, and "no answer"
            if it is allowed; summed over the spans of the same characters. With the top20 decoder,
            the softmax is over the n best only, as in run_qa.
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
    """The model's prediction for one question.

    Attributes:
        text: the answer; "" for no answer.
        answers: the n-best list, by the score of each answer's best span. Probabilities sum over
            all spans of an answer's characters, so they may not be in order where several tokens
            make a grapheme cluster. With version_2_with_negative, the list contains "". Without,
            if the best answer is below score_threshold, "" is the last, with the probability 0.
        best_span: text of the best answer that is not "".
        null_odds: null score minus the score of the best span; the largest float32 if there is no
            span; None without version_2_with_negative.
        log_total: log of the sum of exp(score / temperature) over all spans, -inf without spans.
            The top20 decoder sums over the spans that it finds.
        spans_found: spans that the decoder returned; spans of the same characters are one answer.
    """

    id: str
    text: str
    answers: tuple[Answer, ...]
    best_span: str
    null_odds: float | None
    log_total: float = field(default=-math.inf, compare=False)
    spans_found: int = field(default=0, compare=False)


class AnswerEntry(TypedDict):
    """One answer as transformers' question-answering pipeline returned it.

    Attributes:
        score: the answer's probability, see ``Answer``.
        start, end: offsets in code points: ``answer == context[start:end]``.
    """

    score: float
    start: int
    end: int
    answer: str


def answer_entries(prediction: Prediction, top_k: int) -> list[AnswerEntry]:
    """Return up to ``top_k`` answers: the predicted one first, then the others."""
    chosen = next(a for a in prediction.answers if a.text == prediction.text)
    others = [answer for answer in prediction.answers if answer is not chosen]
    return [
        {"score": a.probability, "start": a.start, "end": a.end, "answer": a.text}
        for a in [chosen, *others][:top_k]
    ]


# Makes an Answer from its six fields in order, faster than a named tuple's constructor.
_AnswerFields = tuple[str, int, int, float, float, float]
make_answer: Callable[[_AnswerFields], Answer] = partial(tuple.__new__, Answer)


def prediction_of(
    example: Example,
    spans: list[Answer],
    null: Answer,
    settings: DecodingSettings,
    log_total: float,
) -> Prediction:
    """Turn the best spans of a question into its prediction.

    Args:
        spans: the n best, best first; empty if the context has no tokens.
        null: "no answer", with the scores of [CLS].
        log_total: see ``Prediction``.
    """
    more = (log_total, len(spans))
    if joined_clusters(example.context):
        spans = [_whole_graphemes(example.context, span) for span in spans]
    if settings.decoder == "exact":
        spans = _distinct(spans)
    answers = spans
    if settings.version_2_with_negative or not spans:
        answers = _with_null(spans, null, settings)
    if settings.decoder == "top20":
        answers = _among_themselves(answers, settings.temperature)
    best_span = spans[0].text if spans else ""
    is_unsure = _is_unsure(answers, settings.score_threshold)
    if not settings.version_2_with_negative:
        if is_unsure:
            answers = [*answers, null._replace(probability=0.0)]
        text = "" if is_unsure else best_span
        return Prediction(example.id, text, tuple(answers), best_span, None, *more)
    odds = null.score - spans[0].score if spans else NO_SPAN_ODDS
    text = "" if odds > settings.null_score_diff_threshold else best_span
    text = "" if is_unsure else text
    return Prediction(example.id, text, tuple(answers), best_span, odds, *more)


def _is_unsure(answers: list[Answer], threshold: float) -> bool:
    """Return whether the best answer that is not "" has a probability below a threshold."""
    best = next((answer for answer in answers if answer.text), None)
    return best is not None and best.probability < threshold


def _whole_graphemes(context: str, span: Answer) -> Answer:
    """Extend a span to whole grapheme clusters."""
    start, end = snap_to_graphemes(context, span.start, span.end)
    return span._replace(text=context[start:end], start=start, end=end)


def _distinct(spans: list[Answer]) -> list[Answer]:
    """Keep the best of the spans of the same characters; its probability is their sum already."""
    if len({(span.start, span.end) for span in spans}) == len(spans):
        return spans
    kept: dict[tuple[int, int], Answer] = {}
    for span in sorted(spans, key=lambda span: (-span.score, span.start, span.end)):
        kept.setdefault((span.start, span.end), span)
    return list(kept.values())


def _with_null(spans: list[Answer], null: Answer, settings: DecodingSettings) -> list[Answer]:
    """Insert "no answer" by its score, after spans that tie with it."""
    rank = sum(span.score >= null.score for span in spans)
    answers = [*spans[:rank], null, *spans[rank:]]
    # run_qa counts "no answer" among the n best. At least one span always stays.
    if settings.decoder == "top20" and len(answers) > settings.n_best_size > 1:
        return answers if rank == len(spans) else answers[:-1]
    return answers


def _among_themselves(answers: list[Answer], temperature: float) -> list[Answer]:
    """Normalize the probabilities over these answers only, as run_qa does."""
    best = answers[0].score
    weights = [math.exp((answer.score - best) / temperature) for answer in answers]
    total = sum(weights)
    return [
        answer._replace(probability=weight / total)
        for answer, weight in zip(answers, weights, strict=True)
    ]
