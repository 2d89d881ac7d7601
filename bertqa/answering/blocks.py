"""Blocks of a file of questions, each answered as a whole by one process.

The rows of a block depend only on the file. The last digits of a score depend on the batches of its
question, which are made within the block: so they do not depend on the number of processes, nor on
resuming.
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from hashlib import blake2b
from itertools import islice
from pathlib import Path
from typing import Any

from bertqa.answering.answerer import QuestionAnswerer
from bertqa.answering.answers import Prediction, answer_entries
from bertqa.answering.rows import reject_entry
from bertqa.data.readers import Row, iter_rows
from bertqa.data.text import other_offsets

ROWS_PER_BLOCK = 256  # rows answered and written together


@dataclass(frozen=True)
class RowBlock:
    """Consecutive rows of a file; ``number`` counts the blocks from 0."""

    number: int
    rows: list[Row]

    def ends_after(self, last: int) -> bool:
        """Return whether the block has rows after row number ``last``."""
        return self.rows[-1].number > last


def iter_blocks(source: Path) -> Iterator[RowBlock]:
    """Yield the blocks of a file, in constant memory.

    Raises:
        UserError: the file cannot be opened or read.
    """
    rows, number = iter_rows(source, one_by_one=True), 0
    while block := list(islice(rows, ROWS_PER_BLOCK)):
        yield RowBlock(number, block)
        number += 1


@dataclass(frozen=True)
class BlockAnswerer:
    """Callable that turns rows into output entries.

    Attributes:
        top_k: answers for each question; above 1, entries have a list "answers".
        all_offsets: also give offsets in UTF-16 units and UTF-8 bytes.
    """

    qa: QuestionAnswerer
    top_k: int
    all_offsets: bool

    def __call__(self, rows: Iterable[Row]) -> list[dict[str, Any]]:
        """Return an entry for each row, in order; that of an invalid row has a "fault"."""
        rows = list(rows)
        found = self.qa.answer(row.example for row in rows if row.example)
        return [self._entry(row, next(found)) if row.example else reject_entry(row) for row in rows]

    def _entry(self, row: Row, prediction: Prediction) -> dict[str, Any]:
        assert row.example is not None
        found: list[dict[str, Any]] = [
            {**entry} for entry in answer_entries(prediction, self.top_k)
        ]
        if self.all_offsets:
            for answer in found:
                answer |= other_offsets(row.example.context, answer["start"], answer["end"])
        entry = {row.unit: row.number, "id": prediction.id, "digest": digest(row)} | found[0]
        if prediction.null_odds is not None:
            entry |= {"null_odds": prediction.null_odds, "best_span": prediction.best_span}
        return entry | ({"answers": found} if self.top_k > 1 else {})


def digest(row: Row) -> str:
    """Return a hash that identifies a row of the input, even without an id."""
    is_line = isinstance(row.raw, bytes)
    raw = row.raw.strip() if is_line else json.dumps(row.raw, default=str).encode()
    return blake2b(raw, digest_size=8).hexdigest()
