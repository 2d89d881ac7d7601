"""Reading of files and hub datasets into entries.

File formats, all except parquet also gzip-compressed (detected by the first bytes):

    .json            {"data": [entry, ...]}, a list of entries, one entry, or lines as in .jsonl
    .jsonl .ndjson   an entry, a JSON object, on each line; MRQA's header is skipped
    .csv .tsv        a header, then rows, with the header's delimiter; blank lines are skipped
    .parquet         rows

entries.py defines entries, csv_cells.py the cells of CSV files.
"""

import csv
import gzip
import io
import json
import logging
import os
import stat
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

from bertqa.data.csv_cells import csv_row
from bertqa.data.entries import Entries, Entry, document_entries, value_or_fault
from bertqa.data.rows import require_keys
from bertqa.errors import UserError, counted, reason, shown
from bertqa.files import unique_keys

_NEEDED = ["question", "context"]  # in the header of a CSV file
_Reader = Callable[[io.BufferedReader, str], Entries]


@contextmanager
def _opened(path: Path) -> Iterator[io.BufferedReader]:
    """Context that opens a file, decompressed; turns errors while reading into UserErrors."""
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            if stat.S_ISCHR(mode) or stat.S_ISBLK(mode):  # such as /dev/zero, which is infinite
                raise UserError(f"{path}: must be a file or a pipe, got a device: check the path")
            # By content, not by name: browsers and copying tools decompress .gz without renaming.
            compressed = file.peek(2)[:2] == b"\x1f\x8b"
            stream: io.BufferedReader = file
            if compressed:
                stream = io.BufferedReader(gzip.GzipFile(fileobj=file))
            if not stream.peek(1):
                raise UserError(
                    f"{path}: must contain rows, got an empty file: download or write it again"
                )
            yield stream
    except FileNotFoundError as error:
        raise UserError(f"{path}: must be an existing file, got none: check the path") from error
    except IsADirectoryError as error:
        raise UserError(f"{path}: must be a file, got a directory: pass a file in it") from error
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UserError(f"{path}: must be intact gzip ({error}): download it again") from error
    except OSError as error:
        raise UserError(
            f"{path}: must be readable ({error.strerror or error}): check the path"
        ) from error


def _decoded(raw: bytes, line: int, source: str) -> str:
    """Decode UTF-8 bytes that begin at this line of the source; drop a BOM in the first line."""
    try:
        return raw.decode("utf-8-sig" if line == 1 else "utf-8")
    except UnicodeDecodeError as error:
        line += error.object.count(b"\n", 0, error.start)
        byte = error.object[error.start]
        raise UserError(
            f"{source}, line {line}: must be UTF-8, got byte 0x{byte:02x}: save the file as UTF-8"
        ) from error


def _parsed(text: str, line: int, source: str) -> Any:
    """Parse the JSON of a text that begins at this line of the source."""
    text = text.rstrip()  # so that an error at the end of truncated JSON has the right line
    try:
        return json.loads(text, object_pairs_hook=unique_keys)
    except json.JSONDecodeError as error:
        line += error.lineno - 1
        near = shown(text[error.pos : error.pos + 20])
        raise UserError(
            f"{source}, line {line}, column {error.colno}: must be JSON, got {near} "
            f"({error.msg}): correct it or download the file again"
        ) from error
    except RecursionError as error:
        raise UserError(
            f"{source}, line {line}: must be a dataset, got JSON nested too deeply: correct it"
        ) from error
    except ValueError as error:  # a repeated key, or a number of thousands of digits
        raise UserError(
            f"{source}, line {line}: must be valid JSON ({error}): correct it"
        ) from error


def _json_lines(stream: Iterable[bytes], source: str) -> Entries:
    def value(raw: bytes, line: int) -> Any:
        return _parsed(_decoded(raw, line, source), line, source)

    is_blank = True
    # Only \n separates lines: U+2028 and such are text.
    for line, raw in enumerate(stream, start=1):
        if raw.decode("utf-8-sig", "replace").strip():
            is_blank = False
            yield Entry(f"{source}, line {line}", value_or_fault(value, raw, line), raw, line)
    if is_blank:
        raise UserError(f"{source}: must contain rows, got only blank lines: write it again")


def _has_json_lines(text: str) -> bool:
    """Return whether there are several lines and the first is a JSON object."""
    first, _, rest = text.lstrip().partition("\n")
    try:
        return bool(rest.strip()) and isinstance(json.loads(first), dict)
    except (ValueError, RecursionError):
        return False


def _json(stream: io.BufferedReader, source: str) -> Entries:
    content = stream.read()
    text = _decoded(content, 1, source)
    if _has_json_lines(text):
        return _json_lines(content.split(b"\n"), source)
    return document_entries(_parsed(text, 1, source), source)


def _csv_records(lines: Iterable[str], source: str, delimiter: str) -> Iterator[tuple[str, list]]:
    """Yield location and fields of each record that is not blank."""
    # strict: otherwise an unclosed quote swallows the rest of the file.
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    # Contexts may exceed the default of 131,072. The limit is global to the process.
    csv.field_size_limit(2**31 - 1)
    line = 1
    try:
        for fields in reader:
            if fields:
                yield f"{source}, line {line}", fields
            line = reader.line_num + 1
    except csv.Error as error:
        raise UserError(
            f"{source}, line {line}: must be valid CSV ({error}): correct the quotes or line ends"
        ) from error


def _separated(lines: Iterator[str], usual: str) -> tuple[Iterator[str], str]:
    """Return the lines and their delimiter: Excel uses the list separator of the locale."""
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
    except csv.Error:  # raised again when the records are read
        return []


def _csv(stream: io.BufferedReader, source: str, delimiter: str = ",") -> Entries:
    decoded = (_decoded(raw, line, source) for line, raw in enumerate(stream, start=1))
    lines, delimiter = _separated(decoded, delimiter)
    records = _csv_records(lines, source, delimiter)
    location, header = next(records, (source, []))
    require_keys(dict.fromkeys(header), _NEEDED, f"{location}: the header")
    repeated = [name for name, count in Counter(header).items() if name and count > 1]
    if repeated:
        raise UserError(
            f"{location}: names in the header must be unique, got {shown(repeated[0])} twice: "
            "rename one"
        )
    for location, fields in records:
        row = value_or_fault(_csv_row, header, fields, delimiter, location)
        yield Entry(location, row, fields)


def _csv_row(header: list[str], fields: list[str], delimiter: str, location: str) -> dict[str, Any]:
    if len(fields) != len(header):
        raise UserError(
            f"{location}: must have {counted(len(header), 'field')} as the header, got "
            f"{len(fields)} (the first is {shown(fields[0])}): put quotes around fields that "
            f"contain {shown(delimiter)}, quotes or line ends"
        )
    return csv_row(dict(zip(header, fields, strict=True)), location)


def _table_rows(batches: Iterable[Any], source: str) -> Entries:
    """Yield the rows of Arrow tables, converted in batches, which is several times faster."""
    rows = chain.from_iterable(batch.to_pylist() for batch in batches)
    return (Entry(f"{source}, row {number}", row, row) for number, row in enumerate(rows))


def _parquet(stream: io.BufferedReader, source: str) -> Entries:
    if source.lower().endswith(".gz"):
        raise UserError(f"{source}: parquet must not be compressed: decompress it with gunzip")
    from pyarrow import parquet  # late: for parquet only

    try:
        yield from _table_rows(parquet.ParquetFile(stream).iter_batches(batch_size=100), source)
    except Exception as error:  # the library's errors have no common class
        raise UserError(f"{source}: must be parquet ({reason(error)}): write it again") from error


def hub_entries(name: str, split: str) -> tuple[Entries, str]:
    """Return the rows of one split of a dataset, and its location for messages."""
    from datasets import load_dataset  # late: takes seconds, for the hub only

    path, _, config = name.partition(":")
    client = logging.getLogger("huggingface_hub")  # it logs a warning for each attempt
    level = client.level
    client.setLevel(logging.ERROR)
    try:
        table = load_dataset(path, config or None, split=split)
    except Exception as error:  # the library's errors have no common class
        raise UserError(
            f"--dataset {name!r}, split {split!r}: must be available "
            f"({reason(error)}): check both names and the network, or pass a file instead of "
            "--dataset"
        ) from error
    finally:
        client.setLevel(level)
    location = f"dataset {shown(name)}, split {shown(split)}"
    # As Arrow tables, so that images and audio are not decoded.
    return _table_rows(table.with_format("arrow").iter(batch_size=1000), location), location


_READERS: dict[str, _Reader] = {
    ".json": _json,
    ".jsonl": _json_lines,
    ".ndjson": _json_lines,
    ".csv": _csv,
    ".tsv": partial(_csv, delimiter="\t"),
    ".parquet": _parquet,
}


def entries_of(path: Path) -> Entries:
    """Yield the entries of a file of any supported format; JSON lines and parquet are streamed.

    Raises:
        UserError: the file cannot be opened or read, or its format is not supported.
    """
    with _opened(path) as stream:
        yield from _reader(path)(stream, str(path))


def has_row_each(path: Path) -> bool:
    """Return whether a file is JSON lines or parquet by its name, with one question in each row.

    Such a file can be streamed.
    """
    return _READERS.get(_ending(path)) in (_json_lines, _parquet) and not _nests(path)


def is_parquet(path: Path) -> bool:
    """Return whether a file is parquet by its name."""
    return _READERS.get(_ending(path)) is _parquet


def _nests(path: Path) -> bool:
    """Return whether a file's first row is a header or a paragraph, as in MRQA; False for pipes."""
    if not path.is_file():
        return False
    try:
        entry = next((found.value for found in entries_of(path)), None)
    except UserError:  # raised again when the rows are read
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
            f"{path}: must end in one of {', '.join(_READERS)} (all except .parquet also with .gz),"
            f" got {shown(ending)}: rename or convert it"
        )
    return _READERS[ending]
