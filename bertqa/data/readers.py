"""Every accepted input, read into ``Example``s.

Files, each but parquet also gzip-compressed (known by its first bytes):

    .json            {"data": [entry, ...]}, a list of entries, one entry, or lines as in .jsonl
    .jsonl .ndjson   an entry, a JSON object, on each line; MRQA's header is skipped
    .csv .tsv        a header, then rows, separated as the header shows; blank lines are skipped
    .parquet         rows

An entry is a row (run_qa's flat form), a paragraph {"context", "qas": [row, ...]}
(simpletransformers, MRQA, KorQuAD 2), or an article {"title", "paragraphs": [paragraph, ...]}
(SQuAD v1.1 and v2.0).
What a row is, rows.py says; what stands in the cells of a CSV file, csv_cells.py.
"""

import csv
import gzip
import io
import json
import os
import stat
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from bertqa.data.csv_cells import csv_row
from bertqa.data.rows import (
    checked_list,
    checked_text,
    id_key,
    listed,
    require_keys,
    row_example,
    shared_texts,
    unread_keys,
)
from bertqa.data.squad import Example, check_examples
from bertqa.errors import UserError, counted, reason, shown

_Say = Callable[[str], object]

# --- bytes -> text -> JSON -----------------------------------------------------------------------


@contextmanager
def _opened(path: Path) -> Iterator[io.BufferedReader]:
    """The file's bytes, uncompressed; whatever fails while they are read is a UserError."""
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            if stat.S_ISCHR(mode) or stat.S_ISBLK(mode):  # such as /dev/zero, which has no end
                raise UserError(f"{path}: must be a file or a pipe, got a device; check the path")
            # By content, not by name: browsers and copying tools unpack .gz without renaming.
            compressed = file.peek(2)[:2] == b"\x1f\x8b"
            stream: io.BufferedReader = file
            if compressed:
                stream = io.BufferedReader(gzip.GzipFile(fileobj=file))
            if not stream.peek(1):
                raise UserError(f"{path} is empty; fetch or write it again")
            yield stream
    except FileNotFoundError as error:
        raise UserError(f"{path} does not exist; check the path") from error
    except IsADirectoryError as error:
        raise UserError(f"{path} is a directory; name a file in it") from error
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UserError(f"{path} is damaged gzip ({error}); fetch or compress it again") from error
    except OSError as error:
        raise UserError(
            f"{path} cannot be read ({error.strerror or error}); check the path"
        ) from error


def _decoded(raw: bytes, line: int, source: str) -> str:
    """UTF-8 bytes that begin at this line of the source; at the first, a BOM is dropped."""
    try:
        return raw.decode("utf-8-sig" if line == 1 else "utf-8")
    except UnicodeDecodeError as error:
        line += error.object.count(b"\n", 0, error.start)
        byte = error.object[error.start]
        raise UserError(
            f"{source}, line {line}: byte 0x{byte:02x} is not UTF-8; save the file as UTF-8"
        ) from error


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object; of a key that is there twice, json would keep the last value in silence."""
    found = dict(pairs)
    if len(found) < len(pairs):
        ((key, count),) = Counter(key for key, _ in pairs).most_common(1)
        raise ValueError(f"an object has the key {shown(key)} {count} times")
    return found


def _parsed(text: str, line: int, source: str) -> Any:
    """The JSON value of a text that begins at this line of the source."""
    text = text.rstrip()  # what is cut off ends on its own line, not on the next one
    try:
        return json.loads(text, object_pairs_hook=_object)
    except json.JSONDecodeError as error:
        line += error.lineno - 1
        near = shown(text[error.pos : error.pos + 20])
        raise UserError(
            f"{source}, line {line}, column {error.colno}: malformed JSON ({error.msg}) "
            f"near {near}; correct it or fetch the file again"
        ) from error
    except RecursionError as error:
        raise UserError(
            f"{source}, line {line}: the JSON is nested too deeply; give a data set"
        ) from error
    except ValueError as error:  # a key twice, or a number of thousands of digits
        raise UserError(f"{source}, line {line}: unreadable JSON ({error}); correct it") from error


# --- text -> rows, a function for each form ------------------------------------------------------


class _Unread(NamedTuple):
    """A row, or what rows are nested in, as a reader finds it.

    Attributes:
        location: where it is, as a message says it, with the name of the file.
        row: what is there, not checked; the UserError in place of what cannot be one, so that it
            stops no other row.
        raw: the bytes of a line of JSON lines, or what the parser of the file has made of the row.
        line: that of JSON lines, from 1; else 0.
        unread: keys that mean nothing here, of what it is nested in.
    """

    location: str
    row: Any
    raw: Any
    line: int = 0
    unread: tuple[str, ...] = ()


_Rows = Iterator[_Unread]
_Reader = Callable[[io.BufferedReader, str], _Rows]


def _json_lines(stream: Iterable[bytes], source: str) -> _Rows:
    # Only \n parts lines, since U+2028 and such are text.
    for line, raw in enumerate(stream, start=1):
        if raw.decode("utf-8-sig", "replace").strip():
            entry: Any
            try:
                entry = _parsed(_decoded(raw, line, source), line, source)
            except UserError as error:
                entry = error
            yield _Unread(f"{source}, line {line}", entry, raw, line)


def _has_json_lines(text: str) -> bool:
    """Whether the first of several lines is an object by itself."""
    first, _, rest = text.lstrip().partition("\n")
    try:
        return bool(rest.strip()) and isinstance(json.loads(first), dict)
    except (ValueError, RecursionError):
        return False


def _json(stream: io.BufferedReader, source: str) -> _Rows:
    content = stream.read()
    text = _decoded(content, 1, source)
    if _has_json_lines(text):
        return _json_lines(content.split(b"\n"), source)
    return _document_rows(_parsed(text, 1, source), source)


_KNOWN = {"data", "paragraphs", "qas", "question", "context"}


def _document_rows(document: Any, source: str) -> _Rows:
    """The entries of a whole JSON document: rows, paragraphs or articles, or one of these."""
    if isinstance(document, list):
        return _entries(document, f"{source}, ")
    if not isinstance(document, dict) or not document.keys() & _KNOWN:
        found = listed(document) if isinstance(document, dict) else shown(document)
        raise UserError(
            f"{source} is JSON, but no data set (found: {found}); "
            'give {"data": [...]}, as SQuAD does, or rows with question and context'
        )
    if "data" in document:
        unread = _unread(document, "document", "data", "version")
        data = checked_list(document["data"], "data", source)
        return _entries(data, f"{source}, data", unread)
    return _entries([document], f"{source}, ")


def _entries(entries: Iterable[Any], prefix: str, unread: tuple[str, ...] = ()) -> _Rows:
    numbered = enumerate(entries)
    return (_Unread(f"{prefix}[{n}]", entry, entry, unread=unread) for n, entry in numbered)


def _unread(outer: dict[str, Any], name: str, *read: str) -> tuple[str, ...]:
    """The keys that mean nothing here, of what rows are nested in."""
    return tuple(f"{name}.{key}" for key in outer if key not in read)


# --- articles, paragraphs -> rows ----------------------------------------------------------------


def _flat(entries: _Rows) -> _Rows:
    """The rows of any entries: an article has paragraphs, a paragraph questions, a row neither."""
    for entry in entries:
        try:
            inner = _inner(entry)
        except UserError as error:
            yield entry._replace(row=error)
            continue
        if inner is None:
            yield entry
        else:
            yield from _flat(inner)


def _inner(entry: _Unread) -> _Rows | None:
    """What is nested in an article or a paragraph; None for a row."""
    value, location = entry.row, entry.location
    if not isinstance(value, dict) or "question" in value:
        return None
    if value.keys() == {"header"}:  # MRQA's first line
        return iter(())
    title = {"title": value.get("title")}
    if "paragraphs" in value:
        unread = _unread(value, "article", "title", "paragraphs")
        return _within(entry, "paragraphs", ["qas"], title, unread)
    if "qas" in value:
        unread = _unread(value, "paragraph", "title", "context", "qas")
        return _within(entry, "qas", [], _context(value, location) | title, unread)
    return None


def _context(paragraph: dict[str, Any], location: str) -> dict[str, Any]:
    """A paragraph's context, as its questions get it; the UserError in its place."""
    try:
        require_keys(paragraph, ["context"], location)
        return {"context": checked_text(paragraph["context"], "context", location)}
    except UserError as error:
        return {"context": error}


def _within(
    entry: _Unread, key: str, needed: list[str], more: dict[str, Any], unread: tuple[str, ...]
) -> _Rows:
    """The items of a list in an entry, with more keys, where these are not null."""
    fault = more.get("context")
    given = {name: value for name, value in more.items() if value is not None}

    def item(number: int, value: Any) -> _Unread:
        location = f"{entry.location}.{key}[{number}]"
        row: Any
        try:
            require_keys(value, needed, location)
            row = fault if isinstance(fault, UserError) else {**value, **given}
            if row is not fault and value.get("context") not in (None, row.get("context")):
                raise UserError(f"{location}: context must be its paragraph's; remove one of them")
        except UserError as error:
            row = error
        raw = entry.raw if entry.line else value
        return _Unread(location, row, raw, entry.line, entry.unread + unread)

    items = enumerate(checked_list(entry.row[key], key, entry.location))
    return (item(number, value) for number, value in items)


# --- CSV -> rows ----------------------------------------------------------------------------------


def _csv_records(lines: Iterable[str], source: str, delimiter: str) -> Iterator[tuple[str, list]]:
    """The location and the fields of each record that is not blank."""
    # strict: otherwise a quote that is never closed swallows the rest of the file.
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    # Contexts may exceed the default of 131,072. The csv module keeps it for the process.
    csv.field_size_limit(2**31 - 1)
    line = 1
    try:
        for fields in reader:
            if fields:
                yield f"{source}, line {line}", fields
            line = reader.line_num + 1
    except csv.Error as error:
        raise UserError(
            f"{source}, line {line}: malformed CSV ({error}); correct the quotes or line ends"
        ) from error


_NEEDED = ["question", "context"]


def _separated(lines: Iterator[str], usual: str) -> tuple[Iterator[str], str]:
    """The lines, and what separates their fields: Excel takes the list separator of the country."""
    read: list[str] = []
    for line in lines:
        read.append(line)
        if line.strip():
            break
    fitting = (m for m in (usual, *",;\t") if set(_NEEDED) <= set(_names(read[-1:], m)))
    return chain(read, lines), next(fitting, usual)


def _names(header: list[str], delimiter: str) -> list[str]:
    try:
        return next(csv.reader(header, delimiter=delimiter), [])
    except csv.Error:  # is told where the records are read
        return []


def _csv(stream: io.BufferedReader, source: str, delimiter: str = ",") -> _Rows:
    decoded = (_decoded(raw, line, source) for line, raw in enumerate(stream, start=1))
    lines, delimiter = _separated(decoded, delimiter)
    records = _csv_records(lines, source, delimiter)
    location, header = next(records, (source, []))
    require_keys(dict.fromkeys(header), _NEEDED, f"{location}: the header")
    repeated = [name for name, count in Counter(header).items() if name and count > 1]
    if repeated:
        raise UserError(f"{location}: the header has {shown(repeated[0])} twice; rename one")
    for location, fields in records:
        row: Any
        try:
            row = _csv_row(header, fields, delimiter, location)
        except UserError as error:
            row = error
        yield _Unread(location, row, fields)


def _csv_row(header: list[str], fields: list[str], delimiter: str, location: str) -> dict[str, Any]:
    if len(fields) != len(header):
        raise UserError(
            f"{location} has {counted(len(fields), 'field')}, but the header {len(header)} "
            f"(the first: {shown(fields[0])}); put quotes around fields that hold "
            f"{shown(delimiter)}, quotes or line ends"
        )
    return csv_row(dict(zip(header, fields, strict=True)), location)


# --- the datasets library -> rows ----------------------------------------------------------------


def _table_rows(table: Any) -> Iterator[dict[str, Any]]:
    """The rows of a Dataset or IterableDataset."""
    # As Arrow tables: several times as fast as row by row, and no image or audio is decoded.
    for batch in table.with_format("arrow").iter(batch_size=1000):
        yield from batch.to_pylist()


def _parquet(stream: io.BufferedReader, source: str) -> _Rows:
    if source.lower().endswith(".gz"):
        raise UserError(f"{source}: parquet is not read through gzip; unpack it with gunzip")
    from pyarrow import parquet  # late: for parquet only

    number = 0
    try:
        for batch in parquet.ParquetFile(stream).iter_batches(batch_size=100):
            for row in batch.to_pylist():
                yield _Unread(f"{source}, row {number}", row, row)
                number += 1
    except Exception as error:  # The library's errors have no common class.
        raise UserError(
            f"{source} is not readable as parquet ({reason(error)}); write it again"
        ) from error


def _hub_rows(name: str, split: str) -> tuple[_Rows, str]:
    """The rows of one split of a data set, and what messages call it."""
    from datasets import load_dataset  # late: takes seconds, for the hub only

    path, _, config = name.partition(":")
    try:
        table = load_dataset(path, config or None, split=split)
    except Exception as error:  # The library's errors have no common class.
        raise UserError(
            f"split {shown(split)} of the data set {shown(name)} cannot be loaded "
            f"({reason(error)}); check both names, or pass a file instead when offline: "
            "--train_file/--validation_file, of bertqa infer --input"
        ) from error
    location = f"data set {shown(name)}, split {shown(split)}"
    numbered = enumerate(_table_rows(table))
    return (_Unread(f"{location}, row {number}", row, row) for number, row in numbered), location


def load_hub_dataset(
    name: str,
    split: str,
    *,
    say: _Say = lambda line: None,
    keep_faulty: bool = False,
) -> list[Example]:
    """The examples of one split of a data set of the Hugging Face hub, or of a local folder.

    ``name`` is "squad", "squad_v2" or any set with columns that rows.py knows; "name:config" names
    one of its configurations. ``say`` and ``keep_faulty`` are those of ``read_examples``.

    Raises:
        UserError: the name, the configuration or the split is unknown or not available offline,
            a column is missing, or a row is none.
    """
    rows, location = _hub_rows(name, split)
    return _examples(rows, location, say, keep_faulty)


# --- reading a file ------------------------------------------------------------------------------

_READERS: dict[str, _Reader] = {
    ".json": _json,
    ".jsonl": _json_lines,
    ".ndjson": _json_lines,
    ".csv": _csv,
    ".tsv": partial(_csv, delimiter="\t"),
    ".parquet": _parquet,
}


def has_row_each(path: Path) -> bool:
    """Whether a file is named as JSON lines or parquet and has a question in each row.

    Such a file can be read one by one.
    """
    return _READERS.get(_ending(path)) in (_json_lines, _parquet) and not _nests(path)


def is_parquet(path: Path) -> bool:
    """Whether a file is named as parquet."""
    return _READERS.get(_ending(path)) is _parquet


def _nests(path: Path) -> bool:
    """Whether the first row of a file is a header or a paragraph, as in MRQA; no pipe is read."""
    if not path.is_file():
        return False
    try:
        with _opened(path) as stream:
            entry = next((found.row for found in _reader(path)(stream, str(path))), None)
    except UserError:  # is told where the rows are read
        return False
    if not isinstance(entry, dict) or "question" in entry:
        return False
    return not entry.keys().isdisjoint(("header", "paragraphs", "qas"))


def _ending(path: Path) -> str:
    return Path(path.name.lower().removesuffix(".gz")).suffix


def _reader(path: Path) -> _Reader:
    ending = _ending(path)
    if ending not in _READERS:
        raise UserError(
            f"{path} has the ending {shown(ending)}, which is not read; "
            f"give one of {', '.join(_READERS)} (all but .parquet also with .gz)"
        )
    return _READERS[ending]


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
    with _opened(path) as stream:
        entries = _reader(path)(stream, str(path))
        flat = chain.from_iterable(map(_alone, entries)) if one_by_one else _flat(entries)
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
    rows, location = _hub_rows(name, split)
    return _together([_usable(row) for row in _rows(_flat(rows))], location, say)


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
    with _opened(path) as stream:
        return _examples(_reader(path)(stream, str(path)), str(path), say, keep_faulty)


# --- rows -> examples ----------------------------------------------------------------------------


def _alone(entry: _Unread) -> list[_Unread]:
    """The row of a line; a fault in place of several."""
    rows = list(_flat(iter([entry])))
    if len(rows) == 1:
        return rows
    many = f"{entry.location} has {counted(len(rows), 'question')}, but must have one"
    return [entry._replace(row=UserError(f"{many}; write a line for each"))]


def _rows(entries: Iterable[_Unread], one_by_one: bool = False) -> Iterator[Row]:
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


def _examples(entries: _Rows, source: str, say: _Say, keep_faulty: bool) -> list[Example]:
    share, rows = shared_texts(), []
    for row in _rows(_flat(entries)):
        if row.fault and not keep_faulty:
            raise UserError(row.fault)
        example = share(row.example) if row.example else None
        rows.append(replace(row, raw=None, example=example))
    return [row.example or _faulty(row) for row in _together(rows, source, say)]


def _faulty(row: Row) -> Example:
    fault = row.fault.removeprefix(row.location).lstrip(": ")
    return Example(row.location, "", "", fault=fault)
