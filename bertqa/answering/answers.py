"""Join the spans of a question's windows into its answers: slices of the context, best first.

n  answers kept, ``n_best_size``; scores are S.T_i + E.T_j in float32, as decoding.py gives them
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple, TypedDict

from bertqa.data.graphemes import has_joins, snap_to_graphemes
from bertqa.data.squad import Example
from bertqa.settings import DecodingSettings

# The null odds of a question whose context has no tokens, and so no span: the largest float32,
# beyond every threshold, and still a number, which JSON and the search for a threshold need.
NO_SPAN_ODDS = (2 - 2**-23) * 2.0**127


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


class AnswerEntry(TypedDict):
    """One answer as transformers' question-answering pipeline gave it.

    Attributes:
        score: the answer's probability, see ``Answer``.
        start, end: code points of the context: ``answer == context[start:end]``.
    """

    score: float
    start: int
    end: int
    answer: str


def answer_entries(prediction: Prediction, top_k: int) -> list[AnswerEntry]:
    """Give the answer that counts first, then the runners-up, ``top_k`` in all."""
    chosen = next(a for a in prediction.answers if a.text == prediction.text)
    others = [answer for answer in prediction.answers if answer is not chosen]
    return [
        {"score": a.probability, "start": a.start, "end": a.end, "answer": a.text}
        for a in [chosen, *others][:top_k]
    ]


# A span of a context: score, start and end in code points, start logit, end logit, probability
# among all spans of its window, and later of its question. There are twenty to a question: plain
# tuples of numbers cost Python's garbage collector nothing.
Span = tuple[float, int, int, float, float, float]

# An Answer out of its six fields in order, without the detour that a named tuple's own call takes.
_AnswerFields = tuple[str, int, int, float, float, float]
_answer: Callable[[_AnswerFields], Answer] = partial(tuple.__new__, Answer)


@dataclass
class WindowResult:
    """The spans of one window, best first.

    Attributes:
        null: the two scores of [CLS].
        log_total: what the probabilities are normalised by, see ``WindowSpans``.
    """

    spans: list[Span]
    null: tuple[float, float]
    log_total: float


def prediction_of(
    example: Example, results: Sequence[WindowResult], settings: DecodingSettings
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
    odds = sum(null) - best.score if best else NO_SPAN_ODDS
    text = "" if odds > settings.null_score_diff_threshold else best_span
    return Prediction(example.id, text, answers, best_span, odds)


def _of_question(results: Sequence[WindowResult]) -> list[Span]:
    """The spans of all windows, with probabilities among all spans of the question."""
    total = _log_sum([result.log_total for result in results])
    spans: list[Span] = []
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


def _whole(context: str, span: Span) -> Span:
    """The span without half a grapheme cluster at its ends."""
    score, start, end, start_logit, end_logit, weight = span
    start, end = snap_to_graphemes(context, start, end)
    return (score, start, end, start_logit, end_logit, weight)


def _merged(spans: list[Span], settings: DecodingSettings) -> list[Span]:
    """The n best of all windows of a question.

    The exact decoder counts the same characters once, at their best score: two windows share a
    span, or the tokens are parts of one grapheme cluster. Equal scores stand earliest start
    first, then shortest. run_qa keeps all, in the order they were found.
    """
    if settings.decoder == "top20":
        return sorted(spans, key=_worst_last)[: settings.n_best_size]
    spans = sorted(spans, key=lambda span: (-span[0], span[1], span[2]))
    distinct: dict[tuple[int, int], Span] = {}
    for span in spans:
        distinct.setdefault((span[1], span[2]), span)
        if len(distinct) == settings.n_best_size:
            break
    return list(distinct.values())


def _worst_last(span: Span) -> float:
    return -span[0]


def _with_null(
    spans: list[Span],
    results: Sequence[WindowResult],
    null: tuple[float, float],
    settings: DecodingSettings,
) -> list[Span]:
    """Put "no answer" among the spans by its score; after a span of the same score."""
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


def _among_themselves(spans: list[Span]) -> list[Span]:
    """The spans, best first, with probabilities among these alone, as run_qa has them."""
    best = spans[0][0]
    weights = [math.exp(score - best) for score, *_ in spans]
    total = sum(weights)
    return [(*span[:5], weight / total) for span, weight in zip(spans, weights, strict=True)]
