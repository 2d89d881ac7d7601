"""The rows of a file before the model is asked: which of them are questions that it can answer."""

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

_AT_ONCE = 256  # questions that are tokenised together


def checked(rows: Iterable[Row], qa: QuestionAnswerer) -> Iterator[Row]:
    """The rows, streamed; those that this model cannot be asked are faulty ones now.

    No windows can be made of their question, or it has no answer, which its settings do not allow.
    """
    stream = iter(rows)
    while block := [_allowed(row, qa) for row in islice(stream, _AT_ONCE)]:
        yield from _fitting(block, qa)


def _fitting(rows: Sequence[Row], qa: QuestionAnswerer) -> Iterator[Row]:
    """The rows, those of which no windows can be made faulty ones."""
    questions = [row.example.question if row.example else "" for row in rows]
    lengths = qa.tokenizer.encode(questions).lengths.tolist()
    for row, length in zip(rows, lengths, strict=True):
        # Only then does it depend on the context, which is long to tokenise.
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
    """Why no windows can be made of a row; "" if they can."""
    try:
        assert row.example is not None
        make_windows([row.example], qa.tokenizer, qa.windows)
    except UserError as error:
        return str(error)
    return ""


def _faulty(row: Row, fault: str) -> Row:
    return replace(row, example=None, fault=f"{row.location}: {fault}")


def unique(rows: Iterable[Row]) -> Iterator[Row]:
    """The rows; those with the id of one before them are faulty ones now."""
    known: set[str] = set()
    for row in rows:
        if row.example and row.example.id in known:
            name = shown(row.example.id)
            row = _faulty(row, f"the id {name} is that of an earlier question; give it its own")
        elif row.example:
            known.add(row.example.id)
        yield row


def refuse_faulty(
    rows: Iterable[Row], cure: str = "correct the file, or pass --skip_bad to leave such rows out"
) -> None:
    """Read rows to the end, to see that each can be asked.

    Args:
        cure: what to do, for the message.

    Raises:
        UserError: one cannot; the first is named, all are counted.
    """
    faulty = (row.fault for row in rows if row.fault)
    if first := next(faulty, ""):
        more = sum(1 for _ in faulty)
        others = f" ({counted(more, 'more faulty row')})" if more else ""
        raise UserError(f"{first}{others}; nothing was asked: {cure}")


def reject_entry(row: Row) -> dict[str, Any]:
    """What rejects.jsonl says of a row; bytes are a line of JSON lines, as it stands there."""
    if isinstance(row.raw, bytes):
        raw = row.raw.decode("utf-8", "backslashreplace").rstrip("\r\n")
    else:
        raw = json.dumps(row.raw, ensure_ascii=False, default=str)
    return {row.unit: row.number, "fault": row.fault, "raw": raw}
