"""Reading of all formats of formats.py into ``Example``s, or into ``Row``s with their faults."""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Any

from bertqa.data.entries import Entries, Entry, flat_rows
from bertqa.data.formats import entries_of, hub_entries
from bertqa.data.rows import id_key, ignored_keys, listed, row_example, shared_texts
from bertqa.data.squad import Example, check_examples
from bertqa.errors import Say, UserError, counted, ignore


@dataclass(frozen=True, slots=True)
class Row:
    """A row of a file.

    Attributes:
        number: in JSON lines the line, from 1, counting blank ones; in other formats the row, from
            0.
        location: location for messages, with the name of the file.
        raw: bytes of a line; in other formats the parsed row.
        example: the example; None if it cannot be used.
        fault: why it cannot be used; "" if it can.
        has_generated_id: whether its id was generated, since the file has none.
        ignored_keys: ignored keys of the row, its paragraph, article and document.
    """

    number: int
    location: str
    raw: Any
    example: Example | None
    fault: str = ""
    has_generated_id: bool = False
    ignored_keys: tuple[str, ...] = ()

    @property
    def unit(self) -> str:
        """What ``number`` counts: "line" in JSON lines, "row" in other formats."""
        return "line" if isinstance(self.raw, bytes) else "row"


@dataclass
class MissingValues:
    """Counts of missing ids and gold answers, and of ignored keys, in a file."""

    source: str
    questions: int = 0
    generated_ids: int = 0
    without_gold: int = 0
    ignored_keys: dict[str, None] = field(default_factory=dict)

    def count(self, row: Row) -> None:
        """Count a row, if it has an example."""
        if row.example:
            self.questions += 1
            self.generated_ids += row.has_generated_id
            self.without_gold += row.example.answers is None
            self.ignored_keys |= dict.fromkeys(row.ignored_keys)

    def report(self, say: Say) -> None:
        """Report the counts in one line, if any is not zero."""
        parts = [f"{self.source}: {counted(self.questions, 'question')}"]
        if self.generated_ids:
            parts.append(f"{self.generated_ids:,} without an id, numbered by row")
        if self.without_gold:
            parts.append(f"{self.without_gold:,} without gold answers, excluded from EM and F1")
        if self.ignored_keys:
            parts.append(f"ignored keys: {listed(self.ignored_keys)}")
        if len(parts) > 1:
            say("; ".join(parts))


def iter_rows(path: Path, *, one_by_one: bool = False) -> Iterator[Row]:
    """Yield the rows of a file, including faulty ones; JSON lines and parquet are streamed.

    Args:
        path: the file.
        one_by_one: treat a line or row with several questions as faulty, and generate ids from the
            line or row number.

    Raises:
        UserError: the file cannot be opened or read, or its format is not supported.
    """
    entries = entries_of(path)
    flat = chain.from_iterable(map(_single, entries)) if one_by_one else flat_rows(entries)
    yield from map(_usable, _rows(flat, one_by_one))


def _usable(row: Row) -> Row:
    """Return the row, marked as faulty if its example cannot be used."""
    try:
        if row.example:
            check_examples([row.example], row.location)
    except UserError as error:
        return replace(row, example=None, fault=str(error))
    return row


def read_rows(path: Path, *, say: Say = ignore) -> list[Row]:
    """Read all rows of a file, including faulty ones; ``say`` is as in ``read_examples``.

    Raises:
        UserError: the file cannot be opened or read, or its format is not supported.
    """
    return _with_unique_ids(list(iter_rows(path)), str(path), say)


def read_hub_rows(name: str, split: str, *, say: Say = ignore) -> list[Row]:
    """Read all rows of one split of a dataset, as ``read_rows``; see ``load_hub_dataset``."""
    rows, location = hub_entries(name, split)
    return _with_unique_ids([_usable(row) for row in _rows(flat_rows(rows))], location, say)


def read_examples(path: Path, *, say: Say = ignore, keep_faulty: bool = False) -> list[Example]:
    """Read all examples of a file of any supported format; equal texts share memory.

    ``check_examples`` and ``check_answers`` check their contents.

    Args:
        path: the file.
        say: called with one line that reports generated ids, missing gold answers and ignored keys.
        keep_faulty: return an unreadable row as an example with a ``fault``.

    Raises:
        UserError: the file or a row cannot be read, or the format is not supported.
    """
    return _examples(entries_of(path), str(path), say, keep_faulty)


def load_hub_dataset(
    name: str, split: str, *, say: Say = ignore, keep_faulty: bool = False
) -> list[Example]:
    """Load the examples of one split of a dataset of the Hugging Face hub or a local folder.

    ``name`` is "squad", "squad_v2" or any dataset with the columns of rows.py; "name:config"
    selects a configuration. ``say`` and ``keep_faulty`` are as in ``read_examples``.

    Raises:
        UserError: the name, the configuration or the split is unknown or not available offline,
            a column is missing, or a row is invalid.
    """
    rows, location = hub_entries(name, split)
    return _examples(rows, location, say, keep_faulty)


def _single(entry: Entry) -> list[Entry]:
    """Return the only row of a line; a fault if there are several."""
    rows = list(flat_rows(iter([entry])))
    if len(rows) == 1:
        return rows
    fault = f"{entry.location}: must have one question, got {len(rows)}: write a line for each"
    return [entry._replace(value=UserError(fault))]


def _rows(entries: Iterable[Entry], one_by_one: bool = False) -> Iterator[Row]:
    for index, (location, row, raw, line, ignored) in enumerate(entries):
        try:
            if isinstance(row, UserError):
                raise row
            numbered = f"line {line}" if line else f"row {index}"
            example = row_example(row, numbered if one_by_one else str(index), location)
        except UserError as error:
            yield Row(line or index, location, raw, None, str(error))
        else:
            is_generated = id_key(row) is None
            ignored += ignored_keys(row)
            yield Row(line or index, location, raw, example, "", is_generated, ignored)


def _with_unique_ids(rows: list[Row], source: str, say: Say) -> list[Row]:
    """Make generated ids unique among the rows of a file, and report what is missing."""
    counts = Counter(row.example.id for row in rows if row.example)
    for index, row in enumerate(rows):
        if row.has_generated_id and row.example and counts[row.example.id] > 1:
            name = f"row {row.example.id}"
            while name in counts:
                name = f"row {name}"
            rows[index] = replace(row, example=replace(row.example, id=name))
    missing = MissingValues(source)
    for row in rows:
        missing.count(row)
    missing.report(say)
    return rows


def _examples(entries: Entries, source: str, say: Say, keep_faulty: bool) -> list[Example]:
    share, rows = shared_texts(), []
    for row in _rows(flat_rows(entries)):
        if row.fault and not keep_faulty:
            raise UserError(row.fault)
        example = share(row.example) if row.example else None
        rows.append(replace(row, raw=None, example=example))
    return [row.example or _faulty(row) for row in _with_unique_ids(rows, source, say)]


def _faulty(row: Row) -> Example:
    fault = row.fault.removeprefix(row.location).lstrip(": ")
    return Example(row.location, "", "", fault=fault)
