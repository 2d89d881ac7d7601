"""Read every accepted input into ``Example``s, or into ``Row``s that say what is wrong with each.

What is accepted, formats.py says.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Any

from bertqa.data.entries import Entries, Entry, flat_rows
from bertqa.data.formats import entries_of, hub_entries
from bertqa.data.rows import id_key, listed, row_example, shared_texts, unread_keys
from bertqa.data.squad import Example, check_examples
from bertqa.errors import UserError, counted

_Say = Callable[[str], object]


@dataclass(frozen=True, slots=True)
class Row:
    """A row of a file.

    Attributes:
        number: the line of JSON lines, from 1, blank ones included; of other forms the row, from 0.
        location: the same as a message says it, with the name of the file.
        raw: the bytes of a line; of other forms what the parser of the file has made of the row.
        example: what it holds; None if it is no question that can be asked.
        fault: the sentence that says why not; "" where it is one.
        made_up: its id is none that the file gives.
        unread: keys of the row that mean nothing here.
    """

    number: int
    location: str
    raw: Any
    example: Example | None
    fault: str = ""
    made_up: bool = False
    unread: tuple[str, ...] = ()

    @property
    def unit(self) -> str:
        """What ``number`` counts: "line" of JSON lines, "row" of other forms."""
        return "line" if isinstance(self.raw, bytes) else "row"


@dataclass
class Lacks:
    """What the questions of a file do not give, and what of them is not read."""

    source: str
    questions: int = 0
    made_up: int = 0
    without_gold: int = 0
    unread: dict[str, None] = field(default_factory=dict)

    def count(self, row: Row) -> None:
        """Take note of a row, if it is a question."""
        if row.example:
            self.questions += 1
            self.made_up += row.made_up
            self.without_gold += row.example.answers is None
            self.unread |= dict.fromkeys(row.unread)

    def tell(self, say: _Say) -> None:
        """Say it in one line, if it is anything, and name what was not used."""
        parts = [f"{self.source}: {counted(self.questions, 'question')}"]
        if self.made_up:
            parts.append(f"{self.made_up:,} without an id, so that it is made of the row's number")
        if self.without_gold:
            parts.append(
                f"{self.without_gold:,} without gold answers, so that EM and F1 leave them out"
            )
        if self.unread:
            parts.append(f"keys that are not read: {listed(self.unread)}")
        if len(parts) > 1:
            say("; ".join(parts))


def iter_rows(path: Path, *, one_by_one: bool = False) -> Iterator[Row]:
    """The rows of a file, faulty ones included; of JSON lines and parquet in constant memory.

    Args:
        one_by_one: a line or row with more than one question is a faulty one, and an id that is
            made up tells the line or row.

    Raises:
        UserError: the file cannot be opened or read, or is of no accepted form.
    """
    entries = entries_of(path)
    flat = chain.from_iterable(map(_alone, entries)) if one_by_one else flat_rows(entries)
    yield from map(_usable, _rows(flat, one_by_one))


def _usable(row: Row) -> Row:
    """The row, a faulty one if nothing can be asked about it."""
    try:
        if row.example:
            check_examples([row.example], row.location)
    except UserError as error:
        return replace(row, example=None, fault=str(error))
    return row


def read_rows(path: Path, *, say: _Say = lambda line: None) -> list[Row]:
    """All rows of a file, faulty ones included; ``say`` is that of ``read_examples``.

    Raises:
        UserError: the file cannot be opened or read, or is of no accepted form.
    """
    return _together(list(iter_rows(path)), str(path), say)


def read_hub_rows(name: str, split: str, *, say: _Say = lambda line: None) -> list[Row]:
    """The same of one split of a data set; see ``load_hub_dataset``."""
    rows, location = hub_entries(name, split)
    return _together([_usable(row) for row in _rows(flat_rows(rows))], location, say)


def read_examples(
    path: Path, *, say: _Say = lambda line: None, keep_faulty: bool = False
) -> list[Example]:
    """All examples of a file of any accepted form; equal texts are one object.

    Whether a run can use what the examples hold is for ``check_examples`` and ``check_answers``.

    Args:
        say: is told, in one line, of ids that had to be made up, of questions without gold, and of
            keys that are not read.
        keep_faulty: take a row of which something cannot be read as an example with a ``fault``.

    Raises:
        UserError: the file cannot be read, or is of no accepted form; the first fault is named.
    """
    return _examples(entries_of(path), str(path), say, keep_faulty)


def load_hub_dataset(
    name: str, split: str, *, say: _Say = lambda line: None, keep_faulty: bool = False
) -> list[Example]:
    """The examples of one split of a data set of the Hugging Face hub, or of a local folder.

    ``name`` is "squad", "squad_v2" or any set with columns that rows.py knows; "name:config" names
    one of its configurations. ``say`` and ``keep_faulty`` are those of ``read_examples``.

    Raises:
        UserError: the name, the configuration or the split is unknown or not available offline,
            a column is missing, or a row is none.
    """
    rows, location = hub_entries(name, split)
    return _examples(rows, location, say, keep_faulty)


def _alone(entry: Entry) -> list[Entry]:
    """The row of a line; a fault in place of several."""
    rows = list(flat_rows(iter([entry])))
    if len(rows) == 1:
        return rows
    many = f"{entry.location} has {counted(len(rows), 'question')}, but must have one"
    return [entry._replace(value=UserError(f"{many}; write a line for each"))]


def _rows(entries: Iterable[Entry], one_by_one: bool = False) -> Iterator[Row]:
    for index, (location, row, raw, line, unread) in enumerate(entries):
        try:
            if isinstance(row, UserError):
                raise row
            alone = f"line {line}" if line else f"row {index}"
            example = row_example(row, alone if one_by_one else str(index), location)
        except UserError as error:
            yield Row(line or index, location, raw, None, str(error))
        else:
            made_up = id_key(row) is None
            unread += unread_keys(row)
            yield Row(line or index, location, raw, example, "", made_up, unread)


def _together(rows: list[Row], source: str, say: _Say) -> list[Row]:
    """The rows of one file, an id made up for which is no other row's own."""
    counts = Counter(row.example.id for row in rows if row.example)
    for index, row in enumerate(rows):
        if row.made_up and row.example and counts[row.example.id] > 1:
            name = f"row {row.example.id}"
            while name in counts:
                name = f"row {name}"
            rows[index] = replace(row, example=replace(row.example, id=name))
    lacks = Lacks(source)
    for row in rows:
        lacks.count(row)
    lacks.tell(say)
    return rows


def _examples(entries: Entries, source: str, say: _Say, keep_faulty: bool) -> list[Example]:
    share, rows = shared_texts(), []
    for row in _rows(flat_rows(entries)):
        if row.fault and not keep_faulty:
            raise UserError(row.fault)
        example = share(row.example) if row.example else None
        rows.append(replace(row, raw=None, example=example))
    return [row.example or _faulty(row) for row in _together(rows, source, say)]


def _faulty(row: Row) -> Example:
    fault = row.fault.removeprefix(row.location).lstrip(": ")
    return Example(row.location, "", "", fault=fault)
