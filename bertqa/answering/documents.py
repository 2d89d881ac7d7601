"""Answers to a question from many documents, with comparable scores.

All documents count as one long text: the score of an answer is its probability among all spans of
all documents and "no answer". The null score is the minimum over the documents, as over the windows
of one text: "no answer" wins only if it wins in every document.

Documents are streamed; only the best answers so far are kept in memory.
"""

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count, islice
from typing import Any, Literal, TypedDict

from bertqa.answering.answers import Answer, Prediction
from bertqa.data.graphemes import snap_to_graphemes
from bertqa.data.squad import Example
from bertqa.data.text import is_blank
from bertqa.errors import UserError, shown
from bertqa.fields import probability, whole_number
from bertqa.settings import DecodingSettings

_DOCUMENTS_PER_BLOCK = 64  # documents per pass through the model
_SPANS = 20  # n-best spans per document and requested answer in the first search
_SMALLEST = 1e-300  # smallest probability with full precision
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+|(?<=[.!?][\"')\]])\s+|(?<=[。！？])|\n\s*\n")

Predict = Callable[[Sequence[Example], DecodingSettings], Iterable[Prediction]]


@dataclass(frozen=True)
class Document:
    """A text with an id.

    Attributes:
        number: index of the document, from 0; distinguishes documents with the same id.
        id: its "id", or its number if it has none.
        metadata: the other entries of its dictionary.
    """

    number: int
    id: Any
    text: str
    metadata: dict[str, Any]


class ReadEntry(TypedDict):
    """One answer from a set of documents.

    Attributes:
        score: probability among all spans of all documents, and "no answer" if it is allowed.
        start, end: offsets in the document's text, in code points; both 0 for "no answer".
        answer: ``text[start:end]``; "" for "no answer".
        document, number, metadata: id, index from 0, and other entries of the document; None, None
            and {} for "no answer".
        snippet: the answer and the text around it.
        snippet_start, snippet_end: offsets of the answer in the snippet.
    """

    score: float
    start: int
    end: int
    answer: str
    document: Any
    number: int | None
    metadata: dict[str, Any]
    snippet: str
    snippet_start: int
    snippet_end: int


@dataclass(frozen=True)
class ReadSettings:
    """Settings of answers from many documents.

    Attributes:
        top_k: maximum number of answers, over all documents.
        top_k_per_document: maximum number of answers of one document; None for no limit.
        max_overlap: maximum overlap of two answers of a document, as a fraction of the characters
            of the shorter one.
        score_threshold: answers with a lower score are dropped.
        context_window: characters of a snippet on either side of the answer, or "sentence".

    Raises:
        UserError: a value is out of range.
    """

    top_k: int = 5
    top_k_per_document: int | None = None
    max_overlap: float = 0.0
    score_threshold: float = 0.0
    context_window: int | Literal["sentence"] = 150

    def __post_init__(self) -> None:
        whole_number("top_k", self.top_k)
        if self.top_k_per_document is not None:
            whole_number("top_k_per_document", self.top_k_per_document)
        for name in ("max_overlap", "score_threshold"):
            probability(name, getattr(self, name))
        if self.context_window != "sentence":
            whole_number('context_window, if not "sentence",', self.context_window, 0)

    @property
    def most_of_one(self) -> int:
        """Maximum number of answers of one document in the result."""
        return min(self.top_k, self.top_k_per_document or self.top_k)


def read_documents(
    questions: Sequence[str],
    documents: Iterable[str | Mapping[str, Any]],
    predict: Predict,
    decoding: DecodingSettings,
    settings: ReadSettings,
) -> list[list[ReadEntry]]:
    """Answer each question from all documents.

    Args:
        predict: answers examples; a text that several of them share is tokenized once.
        decoding: whether "no answer" is allowed, its threshold, and the score threshold below which
            it comes first.

    Returns:
        For each question its best answers, best first.

    Raises:
        UserError: a document has no text, or ``documents`` is a single document.
    """
    if isinstance(documents, str | bytes | Mapping) or not isinstance(documents, Iterable):
        raise UserError(f"documents: must be a list of documents, got {shown(documents)}")
    found = [_Found(decoding, settings) for _ in questions]
    stream = (d for d in map(as_document, count(), documents) if not is_blank(d.text))
    while block := list(islice(stream, _DOCUMENTS_PER_BLOCK)):
        asked = [(which, document) for which in range(len(questions)) for document in block]
        spans = _SPANS * settings.most_of_one
        while asked:
            examples = [Example("", questions[which], document.text) for which, document in asked]
            wanted = replace(
                decoding, n_best_size=spans, decoder="exact", version_2_with_negative=True
            )
            predictions = predict(examples, wanted)
            # Spans that overlap better ones are dropped; if too few are left, search for more.
            asked = [
                (which, document)
                for (which, document), prediction in zip(asked, predictions, strict=True)
                if not found[which].add(document, prediction, spans)
            ]
            spans *= 8
    return [each.entries() for each in found]


def as_document(number: int, given: str | Mapping[str, Any]) -> Document:
    """Make a document from a text, or from a dictionary with "text".

    Raises:
        UserError: ``given`` is neither.
    """
    entries: Mapping[str, Any] = {"text": given} if isinstance(given, str) else given
    if not isinstance(entries, Mapping) or not isinstance(entries.get("text"), str):
        raise UserError(
            f'document {number}: must be a text or a dictionary with the key "text", got '
            f"{shown(given)}"
        )
    rest = {key: value for key, value in entries.items() if key not in ("id", "text")}
    name = entries.get("id")
    return Document(number, number if name is None else name, entries["text"], rest)


class _Found:
    """The best answers to a question in the documents so far."""

    def __init__(self, decoding: DecodingSettings, settings: ReadSettings) -> None:
        self.decoding, self.settings = decoding, settings
        self.best: list[tuple[Answer, float, Document]] = []  # with the log of its weight
        self.log_total = -math.inf  # of the sum of exp(score / temperature) over all spans
        self.null_score = math.inf

    def add(self, document: Document, prediction: Prediction, asked: int) -> bool:
        """Add the answers of a document.

        Returns False, and adds nothing, if spans beyond the ``asked`` best might be needed.
        """
        null = next(answer for answer in prediction.answers if not answer.text)
        spans = [answer for answer in prediction.answers if answer is not null]
        kept = _separate(spans, self.settings.most_of_one, self.settings.max_overlap)
        bar = self.best[-1][0].score if len(self.best) == self.settings.top_k else -math.inf
        may_lack = len(kept) < self.settings.most_of_one and prediction.spans_found >= asked
        if may_lack and spans[-1].score > bar:
            return False
        total = _log_add(prediction.log_total, null.score / self.decoding.temperature)
        weighed = [(answer, self._log_weight(answer, total), document) for answer in kept]
        ranked = sorted(self.best + weighed, key=lambda entry: -entry[0].score)
        self.best = ranked[: self.settings.top_k]
        self.log_total = _log_add(self.log_total, prediction.log_total)
        self.null_score = min(self.null_score, null.score)
        return True

    def _log_weight(self, answer: Answer, total: float) -> float:
        """Return log(probability) + total, where ``total`` is the log of the document's sum."""
        if answer.probability < _SMALLEST:  # it underflows if the null score is far higher
            return answer.score / self.decoding.temperature
        return math.log(answer.probability) + total

    def entries(self) -> list[ReadEntry]:
        """Return the answers, best first, with "no answer" if it is allowed."""
        total, rank = self.log_total, None
        null_weight = self.null_score / self.decoding.temperature
        if self.decoding.version_2_with_negative and self.null_score < math.inf:
            total = _log_add(total, null_weight)
            best = self.best[0][0].score if self.best else -math.inf
            wins = self.null_score - best > self.decoding.null_score_diff_threshold
            better = sum(answer.score >= self.null_score for answer, _, _ in self.best)
            rank = 0 if wins else max(1, better)
        entries = [
            _entry(answer, math.exp(weight - total), document, self.settings.context_window)
            for answer, weight, document in self.best
        ]
        unsure = bool(entries) and entries[0]["score"] < self.decoding.score_threshold
        if rank is not None:
            entries.insert(0 if unsure else rank, _no_answer(math.exp(null_weight - total)))
        elif unsure:
            entries.insert(0, _no_answer(0.0))
        likely = (e for e in entries if e["score"] >= self.settings.score_threshold)
        return list(islice(likely, self.settings.top_k))


def _log_add(first: float, second: float) -> float:
    """Compute log(exp(first) + exp(second))."""
    larger, smaller = max(first, second), min(first, second)
    return larger if smaller == -math.inf else larger + math.log1p(math.exp(smaller - larger))


def _separate(answers: Iterable[Answer], most: int, max_overlap: float) -> list[Answer]:
    """Return the best answers that overlap better ones by at most ``max_overlap``."""
    kept: list[Answer] = []
    for answer in answers:
        if all(_overlap(answer, better) <= max_overlap for better in kept):
            kept.append(answer)
            if len(kept) == most:
                break
    return kept


def _overlap(one: Answer, other: Answer) -> float:
    """Return the overlap as a fraction of the shorter answer's characters."""
    both = min(one.end, other.end) - max(one.start, other.start)
    return max(0, both) / min(one.end - one.start, other.end - other.start)


def _entry(
    answer: Answer, score: float, document: Document, window: int | Literal["sentence"]
) -> ReadEntry:
    first, last = _around(document.text, answer.start, answer.end, window)
    return {
        "score": score, "start": answer.start, "end": answer.end, "answer": answer.text,
        "document": document.id, "number": document.number, "metadata": document.metadata,
        "snippet": document.text[first:last],
        "snippet_start": answer.start - first, "snippet_end": answer.end - first,
    }  # fmt: skip


def _no_answer(score: float) -> ReadEntry:
    return {
        "score": score, "start": 0, "end": 0, "answer": "",
        "document": None, "number": None, "metadata": {},
        "snippet": "", "snippet_start": 0, "snippet_end": 0,
    }  # fmt: skip


def _around(text: str, start: int, end: int, window: int | Literal["sentence"]) -> tuple[int, int]:
    """Return start and end of a snippet of whole sentences, or of characters in whole words."""
    if window == "sentence":
        ends = [match.end() for match in _SENTENCE_END.finditer(text, 0, start)]
        after = _SENTENCE_END.search(text, end)
        # The answer may be the end of its sentence.
        return (ends[-1] if ends else 0), (after.start() if after else len(text))
    first, last = snap_to_graphemes(text, max(0, start - window), min(len(text), end + window))
    if first > 0 and not text[first - 1].isspace():  # within a word: start after it
        blank = re.search(r"\s+", text[first:start])
        first = first + blank.end() if blank else first
    if last < len(text) and not text[last].isspace():
        words = re.search(r"\s+\S*$", text[end:last])
        last = end + words.start() if words else last
    return first, last
