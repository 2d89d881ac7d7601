"""Every accepted input, read into ``Example``s.

Files, each but parquet also gzip-compressed (known by its first bytes):

    .json            SQuAD's nested form, v1.1 and v2.0: data -> paragraphs -> qas;
                     run_qa's flat form: {"data": [row, ...]}, a bare list of rows, or one row;
                     or rows as in .jsonl
    .jsonl .ndjson   one row, a JSON object, on each line
    .csv .tsv        a header, then rows; blank lines are skipped
    .parquet         rows, read by the datasets library

What a row is, rows.py says. In CSV ``answers`` is one of its forms as JSON or as the Python literal
that pandas writes, or two columns ``answer_text`` and ``answer_start`` hold one answer; an empty
cell is null.
"""

import ast
import csv
import glob
import gzip
import json
import logging
import os
import re
import stat
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from io import BufferedReader
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from bertqa.data.rows import (
    checked_list,
    checked_text,
    example_of,
    listed,
    require_keys,
    row_example,
    shared_texts,
    title_of,
    wrong_type,
)
from bertqa.data.squad import Example, check_examples
from bertqa.errors import UserError, reason, shown

# --- bytes -> text -> JSON -----------------------------------------------------------------------


@contextmanager
def _opened(path: Path) -> Iterator[BufferedReader]:
    """The file's bytes, uncompressed; whatever fails while they are read is a UserError."""
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            if stat.S_ISCHR(mode) or stat.S_ISBLK(mode):  # such as /dev/zero, which has no end
                raise UserError(f"{path}: must be a file or a pipe, got a device; check the path")
            # By content, not by name: browsers and copying tools unpack .gz without renaming.
            compressed = file.peek(2)[:2] == b"\x1f\x8b"
            stream: BufferedReader = file
            if compressed:
                stream = BufferedReader(gzip.GzipFile(fileobj=file))
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


class _Unread(NamedTuple):
    """A row as a reader finds it, not looked at yet: what is wrong with it stops no other row.

    Attributes:
        number: the line of JSON lines, from 1, blank ones included; else the row, from 0.
        location: the same as a message says it, with the name of the file.
        raw: the bytes of a line, or what the parser of the file has made of the row.
        read: makes its example, given the location; raises UserError if it is no question.
    """

    number: int
    location: str
    raw: Any
    read: Callable[[str], Example]


_Reader = Callable[[BufferedReader, str], Iterator[_Unread]]


def _json_lines(stream: Iterable[bytes], source: str) -> Iterator[_Unread]:
    rows = count()
    # Only \n parts lines, since U+2028 and such are text.
    for line, raw in enumerate(stream, start=1):
        if raw.decode("utf-8-sig", "replace").strip():
            read = partial(_line_example, raw, line, source, next(rows))
            yield _Unread(line, f"{source}, line {line}", raw, read)


def _line_example(raw: bytes, line: int, source: str, number: int, location: str) -> Example:
    return row_example(_parsed(_decoded(raw, line, source), line, source), number, location)


def _has_json_lines(text: str) -> bool:
    """Whether the first of several lines is an object by itself."""
    first, _, rest = text.lstrip().partition("\n")
    try:
        return bool(rest.strip()) and isinstance(json.loads(first), dict)
    except (ValueError, RecursionError):
        return False


def _json(stream: BufferedReader, source: str) -> Iterator[_Unread]:
    content = stream.read()
    text = _decoded(content, 1, source)
    if _has_json_lines(text):
        return _json_lines(content.split(b"\n"), source)
    return _document_rows(_parsed(text, 1, source), source)


def _document_rows(document: Any, source: str) -> Iterator[_Unread]:
    """The rows of a whole JSON document: nested, flat, or a single row."""
    if isinstance(document, list):
        return _flat_rows(document, f"{source}, ")
    if not isinstance(document, dict) or not document.keys() & {"data", "question", "context"}:
        found = listed(document) if isinstance(document, dict) else shown(document)
        raise UserError(
            f"{source} is JSON, but no data set (found: {found}); "
            'give {"data": [...]}, as SQuAD does, or rows with question and context'
        )
    if "data" not in document:
        return _flat_rows([document], f"{source}, ")
    entries = checked_list(document["data"], "data", source)
    if entries and isinstance(entries[0], dict) and "paragraphs" in entries[0]:
        return _nested_rows(entries, source)
    return _flat_rows(entries, f"{source}, data")


def _flat_rows(rows: Iterable[Any], prefix: str) -> Iterator[_Unread]:
    for number, row in enumerate(rows):
        yield _Unread(number, f"{prefix}[{number}]", row, partial(row_example, row, number))


def _nested_rows(articles: list[Any], source: str) -> Iterator[_Unread]:
    numbers = count()
    for a, article in enumerate(articles):
        location = f"{source}, data[{a}]"
        require_keys(article, ["paragraphs"], location)
        for p, paragraph in enumerate(checked_list(article["paragraphs"], "paragraphs", location)):
            where = f"{location}.paragraphs[{p}]"
            require_keys(paragraph, ["qas"], where)
            for q, qa in enumerate(checked_list(paragraph["qas"], "qas", where)):
                number = next(numbers)
                read = partial(_qa_example, qa, number, paragraph, where, title_of(article))
                yield _Unread(number, f"{where}.qas[{q}]", qa, read)


def _qa_example(
    qa: Any, number: int, paragraph: dict[str, Any], where: str, title: str, location: str
) -> Example:
    require_keys(paragraph, ["context"], where)
    context = checked_text(paragraph["context"], "context", where)
    require_keys(qa, ["question"], location)
    return example_of(qa, number, context, location, title)


# --- CSV -> rows ---------------------------------------------------------------------------------

_BOOLEANS = {"": None, "true": True, "1": True, "false": False, "0": False}


class _WithoutCalls(ast.NodeTransformer):
    """Puts x for f(x): what pandas writes is ``array(['a'], dtype=object)`` or ``np.int64(3)``."""

    def visit_Call(self, node: ast.Call) -> ast.AST:
        return self.visit(node.args[0]) if node.args else node


def _answers_cell(cell: str, location: str) -> Any:
    """A cell of the column ``answers``: JSON or a Python literal; nothing in it is run."""
    if not cell.strip():
        return None
    try:
        return json.loads(cell)
    except (ValueError, RecursionError):
        pass
    try:
        return ast.literal_eval(_WithoutCalls().visit(ast.parse(cell.strip(), mode="eval")))
    except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError) as error:
        raise UserError(
            f"{location}: answers is {shown(cell)}, neither JSON nor a Python literal; "
            'write {"text": [...], "answer_start": [...]}'
        ) from error


def _single_answer(text: str, start: str, location: str) -> dict[str, list[Any]] | None:
    """The cells of the columns ``answer_text`` and ``answer_start``."""
    if not text and not start:
        return None
    # pandas writes a column of whole numbers as 12.0 once a cell of it is missing.
    number = re.fullmatch(r"(-?[0-9]{1,18})(\.0+)?", start)
    if start and not number:
        raise wrong_type(start, "answer_start", "a whole number", location)
    return {"text": [text], "answer_start": [int(number[1])] if number else []}


def _csv_row(cells: dict[str, str], location: str) -> dict[str, Any]:
    """The cells as the values a JSON row would have."""
    row: dict[str, Any] = {"question": cells["question"], "context": cells["context"]}
    row["id"] = cells.get("id") or None
    row["title"] = cells.get("title")
    impossible = cells.get("is_impossible", "")
    row["is_impossible"] = _BOOLEANS.get(impossible.lower(), impossible)
    if "answers" in cells:
        row["answers"] = _answers_cell(cells["answers"], location)
    elif "answer_text" in cells:
        row["answers"] = _single_answer(
            cells["answer_text"], cells.get("answer_start", ""), location
        )
    return row


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


def _csv(stream: BufferedReader, source: str, delimiter: str = ",") -> Iterator[_Unread]:
    lines = (_decoded(raw, line, source) for line, raw in enumerate(stream, start=1))
    records = _csv_records(lines, source, delimiter)
    location, header = next(records, (source, []))
    require_keys(dict.fromkeys(header), ["question", "context"], f"{location}: the header")
    repeated = [name for name, count in Counter(header).items() if name and count > 1]
    if repeated:
        raise UserError(f"{location}: the header has {shown(repeated[0])} twice; rename one")
    for number, (location, fields) in enumerate(records):
        read = partial(_csv_example, header, fields, number, delimiter)
        yield _Unread(number, location, fields, read)


def _csv_example(
    header: list[str], fields: list[str], number: int, delimiter: str, location: str
) -> Example:
    if len(fields) != len(header):
        raise UserError(
            f"{location} has {len(fields)} fields, but the header {len(header)} "
            f"(the first: {shown(fields[0])}); put quotes around fields that hold "
            f"{shown(delimiter)}, quotes or line ends"
        )
    return row_example(_csv_row(dict(zip(header, fields, strict=True)), location), number, location)


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


def _parquet(stream: BufferedReader, source: str) -> Iterator[_Unread]:
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
        read = partial(row_example, row, number)
        yield _Unread(number, f"{source}, row {number}", row, read)


def load_hub_dataset(name: str, split: str) -> list[Example]:
    """The examples of one split of a data set of the Hugging Face hub, or of a local folder.

    ``name`` is "squad", "squad_v2" or any set with the columns question, context and answers;
    "name:config" names one of its configurations.

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
    require_keys(dict.fromkeys(table.column_names), ["question", "context", "answers"], location)
    rows = enumerate(_table_rows(table))
    examples = (row_example(row, number, f"{location}, row {number}") for number, row in rows)
    return list(shared_texts(examples))


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
    """Whether a file is named as JSON lines, and so can be read line by line."""
    return _READERS.get(_ending(path)) is _json_lines


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
    """

    number: int
    location: str
    raw: Any
    example: Example | None
    fault: str = ""


def iter_rows(path: Path) -> Iterator[Row]:
    """The rows of a file, faulty ones included; of JSON lines one at a time, in constant memory.

    Raises:
        UserError: the file cannot be opened or read, or is of no accepted form.
    """
    with _opened(path) as stream:
        for number, location, raw, read in _reader(path)(stream, str(path)):
            try:
                example = read(location)
                check_examples([example], location)
                yield Row(number, location, raw, example)
            except UserError as error:
                yield Row(number, location, raw, None, str(error))


def read_examples(path: Path) -> list[Example]:
    """All examples of a file of any accepted form; equal texts are one object.

    Whether a run can use what the examples hold is for ``check_examples`` and ``check_answers``.

    Raises:
        UserError: the file cannot be read, or is of no accepted form; the first fault is named.
    """
    with _opened(path) as stream:
        rows = _reader(path)(stream, str(path))
        return list(shared_texts(row.read(row.location) for row in rows))
