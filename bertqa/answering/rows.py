"""Validation of the rows of a file, before the model answers them."""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any

from bertqa.answering.answerer import QuestionAnswerer
from bertqa.data.readers import Row
from bertqa.data.squad import check_version
from bertqa.data.windows import make_windows
from bertqa.errors import UserError, counted, shown

_QUESTIONS_PER_BLOCK = 256  # questions tokenized together


def checked(rows: Iterable[Row], qa: QuestionAnswerer) -> Iterator[Row]:
    """Yield the rows, with those marked as faulty that this model cannot answer.

    Their question does not fit into a window, or has no answer although the model's settings
    exclude "no answer".
    """
    stream = iter(rows)
    while block := [_allowed(row, qa) for row in islice(stream, _QUESTIONS_PER_BLOCK)]:
        yield from _fitting(block, qa)


def _fitting(rows: Sequence[Row], qa: QuestionAnswerer) -> Iterator[Row]:
    """Yield the rows, with those marked as faulty whose question does not fit into a window."""
    questions = [row.example.question if row.example else "" for row in rows]
    lengths = qa.tokenizer.encode(questions).lengths.tolist()
    for row, length in zip(rows, lengths, strict=True):
        # Only long questions depend on the context, which is slow to tokenize.
        fault = _window_fault(row, qa) if length > qa.windows.longest_question else ""
        yield _faulty(row, fault) if fault else row


def _allowed(row: Row, qa: QuestionAnswerer) -> Row:
    try:
        asked = [row.example] if row.example else []
        check_version(asked, row.location, qa.decoding.version_2_with_negative)
    except UserError as error:
        return replace(row, example=None, fault=str(error))
    return row


def _window_fault(row: Row, qa: QuestionAnswerer) -> str:
    """Return why no windows can be made of a row, or ""."""
    try:
        assert row.example is not None
        make_windows([row.example], qa.tokenizer, qa.windows)
    except UserError as error:
        return str(error)
    return ""


def _faulty(row: Row, fault: str) -> Row:
    return replace(row, example=None, fault=f"{row.location}: {fault}")


def unique(rows: Iterable[Row]) -> Iterator[Row]:
    """Yield the rows, with those marked as faulty whose id occurred before."""
    known: set[str] = set()
    for row in rows:
        if row.example and row.example.id in known:
            name = shown(row.example.id)
            row = _faulty(row, f"the id must be unique, got {name} a second time")
        elif row.example:
            known.add(row.example.id)
        yield row


def refuse_faulty(
    rows: Iterable[Row], cure: str = "correct the file, or pass --skip_bad to skip invalid rows"
) -> None:
    """Read rows to the end, and raise UserError if one is faulty.

    Args:
        cure: what to do, for the message.

    Raises:
        UserError: a row is faulty; the message has the first and the number of others.
    """
    faulty = (row.fault for row in rows if row.fault)
    if first := next(faulty, ""):
        more = sum(1 for _ in faulty)
        others = f" ({counted(more, 'more invalid row')})" if more else ""
        raise UserError(f"{first}{others}; nothing was answered: {cure}")


def reject_entry(row: Row) -> dict[str, Any]:
    """Return the entry of a row in rejects.jsonl; the bytes of a line are kept as they are."""
    if isinstance(row.raw, bytes):
        raw = row.raw.decode("utf-8", "backslashreplace").rstrip("\r\n")
    else:
        raw = json.dumps(row.raw, ensure_ascii=False, default=str)
    return {row.unit: row.number, "fault": row.fault, "raw": raw}
