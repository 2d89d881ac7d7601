"""Every accepted input, read into ``Example``s.

Files, each but parquet also gzip-compressed (known by its first bytes):

    .json            {"data": [entry, ...]}, a list of entries, one entry, or lines as in .jsonl
    .jsonl .ndjson   an entry, a JSON object, on each line; MRQA's header is skipped
    .csv .tsv        a header, then rows; blank lines are skipped
    .parquet         rows, read by the datasets library

An entry is a row (run_qa's flat form), a paragraph {"context", "qas": [row, ...]}
(simpletransformers, MRQA, KorQuAD 2), or an article {"title", "paragraphs": [paragraph, ...]}
(SQuAD v1.1 and v2.0).
What a row is, rows.py says; what stands in the cells of a CSV file, csv_cells.py.
"""

import csv
import glob
import gzip
import io
import json
import logging
import os
import stat
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from bertqa.data.csv_cells import csv_row
from bertqa.data.rows import (
    checked_list,
    checked_text,
    id_key,
    listed,
    remarks,
    require_keys,
    row_example,
    shared_texts,
    unread_keys,
)
from bertqa.data.squad import Example, check_examples, check_version
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


def _parsed(text: str, line: int, source: str) -> Any:
    """The JSON value of a text that begins at this line of the source."""
    text = text.rstrip()  # what is cut off ends on its own line, not on the next one
    try:
        return json.loads(text)
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
    except ValueError as error:  # A number of thousands of digits.
        raise UserError(f"{source}, line {line}: unreadable JSON ({error}); correct it") from error


# --- text -> rows, a function for each form ------------------------------------------------------

# Of a row, or of what rows are nested in: where it stands, and what is there, not yet checked.
_Rows = Iterator[tuple[str, Any]]
_Reader = Callable[[io.BufferedReader, str], _Rows]


def _json_lines(stream: Iterable[bytes], source: str) -> _Rows:
    # Only \n parts lines, since U+2028 and such are text.
    for line, raw in enumerate(stream, start=1):
        text = _decoded(raw, line, source)
        if text.strip():
            yield f"{source}, line {line}", _parsed(text, line, source)


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
        return _entries(checked_list(document["data"], "data", source), f"{source}, data")
    return _entries([document], f"{source}, ")


def _entries(entries: list[Any], prefix: str) -> _Rows:
    return ((f"{prefix}[{number}]", entry) for number, entry in enumerate(entries))


# --- articles, paragraphs -> rows ----------------------------------------------------------------


def _flat(entries: _Rows) -> _Rows:
    """The rows of any entries: an article has paragraphs, a paragraph questions, a row neither."""
    for location, entry in entries:
        keys = entry.keys() if isinstance(entry, dict) and "question" not in entry else set()
        if "paragraphs" in keys:
            paragraphs = checked_list(entry["paragraphs"], "paragraphs", location)
            for where, paragraph in _entries(paragraphs, f"{location}.paragraphs"):
                yield from _paragraph_rows(paragraph, where, entry.get("title"))
        elif "qas" in keys:
            yield from _paragraph_rows(entry, location, entry.get("title"))
        elif keys != {"header"}:  # MRQA's first line
            yield location, entry


def _paragraph_rows(paragraph: Any, location: str, title: Any) -> _Rows:
    """A paragraph's questions, each with the context and the title."""
    require_keys(paragraph, ["context", "qas"], location)
    context = checked_text(paragraph["context"], "context", location)
    for where, qa in _entries(checked_list(paragraph["qas"], "qas", location), f"{location}.qas"):
        require_keys(qa, [], where)
        yield where, {**qa, "context": context, "title": title}


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


def _csv(stream: io.BufferedReader, source: str, delimiter: str = ",") -> _Rows:
    lines = (_decoded(raw, line, source) for line, raw in enumerate(stream, start=1))
    records = _csv_records(lines, source, delimiter)
    location, header = next(records, (source, []))
    require_keys(dict.fromkeys(header), ["question", "context"], f"{location}: the header")
    repeated = [name for name, count in Counter(header).items() if name and count > 1]
    if repeated:
        raise UserError(f"{location}: the header has {shown(repeated[0])} twice; rename one")
    for location, fields in records:
        if len(fields) != len(header):
            raise UserError(
                f"{location} has {counted(len(fields), 'field')}, but the header {len(header)} "
                f"(the first: {shown(fields[0])}); put quotes around fields that hold "
                f"{shown(delimiter)}, quotes or line ends"
            )
        yield location, csv_row(dict(zip(header, fields, strict=True)), location)


# --- the datasets library -> rows ----------------------------------------------------------------


def _table_rows(table: Any) -> Iterator[dict[str, Any]]:
    """The rows of a Dataset or IterableDataset."""
    # As Arrow tables: several times as fast as row by row, and no image or audio is decoded.
    for batch in table.with_format("arrow").iter(batch_size=1000):
        yield from batch.to_pylist()


@contextmanager
def _unlogged(library: str) -> Iterator[None]:
    """Keep a library from logging an error that it also raises."""
    logger = logging.getLogger(library)
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)


def _parquet(stream: io.BufferedReader, source: str) -> _Rows:
    if source.lower().endswith(".gz"):
        raise UserError(f"{source}: parquet is not read through gzip; unpack it with gunzip")
    # Here and not above: the import takes seconds, and no other form needs it.
    from datasets import load_dataset  # late: takes seconds, for parquet and the hub only

    # The name is taken as a pattern unless escaped.
    options = {"data_files": glob.escape(source), "split": "train", "streaming": True}
    try:
        # Streaming writes no second copy of the data, only a lock, for which any folder will do.
        with TemporaryDirectory() as cache, _unlogged("datasets"):
            rows = list(_table_rows(load_dataset("parquet", cache_dir=cache, **options)))
    except Exception as error:  # The library's errors have no common class.
        raise UserError(
            f"{source} is not readable as parquet ({reason(error)}); write it again"
        ) from error
    for number, row in enumerate(rows):
        yield f"{source}, row {number}", row


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
        UserError: the name, the configuration or the split is unknown or not to be had offline,
            a column is missing, or a row is none.
    """
    # Here and not above: the import takes seconds, and those who give files need nothing of it.
    from datasets import load_dataset  # late: takes seconds, for parquet and the hub only

    path, _, config = name.partition(":")
    try:
        table = load_dataset(path, config or None, split=split)
    except Exception as error:  # The library's errors have no common class.
        raise UserError(
            f"split {shown(split)} of the data set {shown(name)} cannot be loaded "
            f"({reason(error)}); check both names, or pass --train_file/--validation_file "
            "instead when offline"
        ) from error
    location = f"data set {shown(name)}, split {shown(split)}"
    rows = ((f"{location}, row {number}", row) for number, row in enumerate(_table_rows(table)))
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


def is_json_lines(path: Path) -> bool:
    """Whether a file is named as JSON lines with a row on each, and so can be read one by one."""
    return _READERS.get(_ending(path)) is _json_lines and not _nests(path)


def _nests(path: Path) -> bool:
    """Whether the first line of a file is a header or a paragraph, as in MRQA; no pipe is read."""
    if not path.is_file():
        return False
    try:
        with _opened(path) as stream:
            _, entry = next(_json_lines(stream, str(path)), ("", None))
    except UserError:  # is told where the lines are read
        return False
    return isinstance(entry, dict) and not entry.keys().isdisjoint(("header", "paragraphs", "qas"))


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
class Line:
    """A line of a JSON lines file that is not blank.

    Attributes:
        number: counted from 1, blank lines included.
        raw: as it stands in the file.
        example: what it holds; None if it is no question that can be asked.
        fault: the sentence that says why not; "" where it is one.
        unread: keys of the row that mean nothing here.
    """

    number: int
    raw: bytes
    example: Example | None
    fault: str = ""
    unread: tuple[str, ...] = ()


def iter_json_lines(path: Path, *, with_negative: bool = True) -> Iterator[Line]:
    """The lines of a JSON lines file, one at a time and in constant memory, faulty ones included.

    Args:
        with_negative: False makes a question that has no answer a faulty line.

    Raises:
        UserError: the file cannot be opened or read.
    """
    with _opened(path) as stream:
        for number, raw in enumerate(stream, start=1):
            if raw.strip():
                yield _line(raw, number, str(path), with_negative)


def _line(raw: bytes, number: int, source: str, with_negative: bool) -> Line:
    location = f"{source}, line {number}"
    try:
        text = _decoded(raw, number, source)
        rows = list(_flat(iter([(location, _parsed(text, number, source))])))
        if len(rows) != 1:
            raise UserError(
                f"{location} has {len(rows)} questions, but must have one; write a line for each"
            )
        example = row_example(rows[0][1], f"line {number}", location)
        check_examples([example], location)
        check_version([example], location, with_negative)
    except UserError as error:
        return Line(number, raw, None, str(error))
    return Line(number, raw, example, unread=unread_keys(rows[0][1]))


def read_examples(
    path: Path, *, say: _Say = lambda line: None, keep_faulty: bool = False
) -> list[Example]:
    """All examples of a file of any accepted form; equal texts are one object.

    Whether a run can use what the examples hold is for ``check_examples`` and ``check_answers``.

    Args:
        say: is told, in one line, of ids that had to be made up and of questions without gold.
        keep_faulty: take a row of which something cannot be read as an example with a ``fault``.

    Raises:
        UserError: the file cannot be read, or is of no accepted form; the first fault is named.
    """
    with _opened(path) as stream:
        return _examples(_reader(path)(stream, str(path)), str(path), say, keep_faulty)


def _keep_apart(examples: list[Example], made_up: Sequence[int]) -> None:
    """Change the ids made up, each its row's number, that are another row's own."""
    counts = Counter(example.id for example in examples) if made_up else {}
    for number in made_up:
        name = str(number)
        if counts[name] > 1:
            while name in counts:
                name = f"row {name}"
            examples[number] = replace(examples[number], id=name)


def _examples(entries: _Rows, source: str, say: _Say, keep_faulty: bool) -> list[Example]:
    made_up: list[int] = []
    unread: dict[str, None] = {}

    def example(number: int, location: str, row: Any) -> Example:
        try:
            found = row_example(row, str(number), location)
        except UserError as error:
            if not keep_faulty:
                raise
            return Example(location, "", "", fault=str(error).removeprefix(location).lstrip(": "))
        if id_key(row) is None:
            made_up.append(number)
        unread.update(dict.fromkeys(unread_keys(row)))
        return found

    rows = enumerate(_flat(entries))
    examples = list(shared_texts(example(number, *entry) for number, entry in rows))
    _keep_apart(examples, made_up)
    without_gold = sum(example.answers is None and not example.fault for example in examples)
    if remark := remarks(source, len(examples), len(made_up), without_gold, unread):
        say(remark)
    return examples
