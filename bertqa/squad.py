"""Every accepted input, read into one list of ``Example``s.

Files, each but parquet also gzip-compressed (known by its first bytes):

    .json            SQuAD's nested form, v1.1 and v2.0: data -> paragraphs -> qas;
                     run_qa's flat form: {"data": [row, ...]}, a bare list of rows, or one row;
                     or rows as in .jsonl
    .jsonl .ndjson   one row, a JSON object, on each line
    .csv .tsv        a header, then rows; blank lines are skipped
    .parquet         rows, read by the datasets library

A row has ``question`` and ``context``, and may have ``id`` (else the row's number, from 0),
``answers`` and ``is_impossible``. ``answers`` is {"text": [...], "answer_start": [...]}, a list of
{"text", "answer_start"}, a list of strings, or null. In CSV it is one of these as JSON or as the
Python literal that pandas writes, or two columns ``answer_text`` and ``answer_start`` hold one
answer; an empty cell is null. Other keys and columns (title, plausible_answers) are ignored.

Texts are kept as they are, but for the blanks at the start of a question.
"""

import ast
import csv
import glob
import gzip
import json
import re
import reprlib
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from io import BufferedReader
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from bertqa.errors import UserError


@dataclass(frozen=True, slots=True)
class Example:
    """One question about one context.

    ``answers`` is None where no gold was given, and () where the question is known to have no
    answer (SQuAD v2.0). ``answer_starts`` are code points of the context, parallel to ``answers``;
    () where the file gives none.
    """

    id: str
    question: str
    context: str
    answers: tuple[str, ...] | None = None
    answer_starts: tuple[int, ...] = ()

    @property
    def is_impossible(self) -> bool:
        """Whether the gold says that the context holds no answer."""
        return self.answers == ()


# --- values from files: checked, never converted by guess ----------------------------------------

_repr = reprlib.Repr()
_repr.maxstring = _repr.maxother = 60
_SURROGATE = re.compile("[\ud800-\udfff]")


def _short(value: Any) -> str:
    """The value on one line, long ones with their middle cut out."""
    return _repr.repr(value)


def _wrong_type(value: Any, key: str, needed: str, place: str) -> UserError:
    kind = type(value).__name__
    return UserError(
        f"{place}: {key} is {_short(value)} ({kind}), but must be {needed}; correct it"
    )


def _require(row: Any, keys: Sequence[str], place: str) -> None:
    """Raise unless the row is an object that has these keys."""
    if not isinstance(row, dict):
        found = f"{_short(row)} ({type(row).__name__})"
        needed = f"an object with {' and '.join(keys)}"
        raise UserError(f"{place} is {found}, but must be {needed}; correct it")
    missing = [key for key in keys if key not in row]
    if missing:
        raise UserError(
            f"{place} lacks {' and '.join(missing)} (found: {_listed(row)}); add or rename it"
        )


def _listed(names: Iterable[str]) -> str:
    shown = [_short(name) for name in names]
    if len(shown) > 10:
        shown[10:] = [f"{len(shown) - 10} more"]
    return ", ".join(shown) or "nothing"


def _text(value: Any, key: str, place: str) -> str:
    if not isinstance(value, str):
        raise _wrong_type(value, key, "a string", place)
    # JSON can hold half of a surrogate pair ("\ud83d"): no text, and tokenizers refuse it.
    if not value.isascii() and _SURROGATE.search(value):
        raise UserError(f"{place}: {key} holds half a surrogate pair, {_short(value)}; remove it")
    return value


def _list(value: Any, key: str, place: str) -> list[Any]:
    if not isinstance(value, list):
        raise _wrong_type(value, key, "a list", place)
    return value


def _whole(value: Any, key: str, place: str) -> int:
    # Not isinstance: True is an int.
    if type(value) is not int:
        raise _wrong_type(value, key, "a whole number", place)
    return value


# --- one row -> Example --------------------------------------------------------------------------

_Gold = tuple[tuple[str, ...] | None, tuple[int, ...]]


def _texts_and_starts(value: Any, place: str) -> tuple[list[Any], list[Any]]:
    """The two lists of any accepted form of ``answers``, their items not yet checked."""
    if isinstance(value, dict):
        _require(value, ["text"], f"{place}: answers")
        starts = value.get("answer_start")
        texts = _list(value["text"], "text", place)
        return texts, [] if starts is None else _list(starts, "answer_start", place)
    answers = _list(value, "answers", place)
    if not any(isinstance(answer, dict) for answer in answers):
        return answers, []
    for answer in answers:
        _require(answer, ["text"], f"{place}: an answer")
    starts = [answer["answer_start"] for answer in answers if "answer_start" in answer]
    return [answer["text"] for answer in answers], starts


def _answers(value: Any, place: str) -> _Gold:
    if value is None:
        return None, ()
    texts, starts = _texts_and_starts(value, place)
    return (
        tuple(_text(text, "an answer", place) for text in texts),
        tuple(_whole(start, "answer_start", place) for start in starts),
    )


def _gold(row: dict[str, Any], place: str) -> _Gold:
    """``answers`` and ``is_impossible`` taken together."""
    answers, starts = _answers(row.get("answers"), place)
    impossible = row.get("is_impossible")
    if impossible is None:
        return answers, starts
    if not isinstance(impossible, bool):
        raise _wrong_type(impossible, "is_impossible", "true or false", place)
    if not impossible:
        # An answer is said to exist but is not given, as in test sets and unfinished annotations.
        return answers or None, starts
    if answers:
        raise UserError(
            f"{place}: is_impossible is true, but there is an answer, {_short(answers[0])}; "
            "remove one of the two"
        )
    return (), ()


def _identifier(value: Any, number: int, place: str) -> str:
    if value is None:
        return str(number)
    if type(value) is int:
        return str(value)
    if not isinstance(value, str):
        raise _wrong_type(value, "id", "a string or a whole number", place)
    return _text(value, "id", place)


def _example(row: dict[str, Any], number: int, context: str, place: str) -> Example:
    answers, starts = _gold(row, place)
    return Example(
        id=_identifier(row.get("id"), number, place),
        # As the scripts of SQuAD do: blanks before a question, found in its files, mean nothing.
        question=_text(row["question"], "question", place).lstrip(),
        context=context,
        answers=answers,
        answer_starts=starts,
    )


def _row_example(row: Any, number: int, place: str) -> Example:
    _require(row, ["question", "context"], place)
    return _example(row, number, _text(row["context"], "context", place), place)


def _share(examples: Iterable[Example], remembered: int | None) -> Iterator[Example]:
    """The same examples, with one copy of each text among the ``remembered`` last distinct ones.

    Rows repeat their context for each of its questions: in SQuAD almost five times.
    """
    # A cached identity returns the first of equal strings, and so frees the later ones.
    first_copy = lru_cache(remembered)(lambda text: text)
    for example in examples:
        question, context = first_copy(example.question), first_copy(example.context)
        yield Example(example.id, question, context, example.answers, example.answer_starts)


# --- bytes -> text -> JSON -----------------------------------------------------------------------


@contextmanager
def _opened(path: Path) -> Iterator[BufferedReader]:
    """The file's bytes, uncompressed; whatever fails while they are read is a UserError."""
    try:
        with path.open("rb") as file:
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


def _lines(stream: Iterable[bytes], source: str) -> Iterator[str]:
    """Lines with their ends, one at a time; only \\n parts them, since U+2028 and such are text."""
    for line, raw in enumerate(stream, start=1):
        yield _decoded(raw, line, source)


def _parsed(text: str, line: int, source: str) -> Any:
    """The JSON value of a text that begins at this line of the source."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        line += error.lineno - 1
        near = _short(text[error.pos : error.pos + 20])
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


# --- text -> Examples, a function for each form --------------------------------------------------

_Reader = Callable[[BufferedReader, str], Iterator[Example]]


def _line_examples(lines: Iterable[str], source: str) -> Iterator[Example]:
    number = 0
    for line, text in enumerate(lines, start=1):
        if text.strip():
            row = _parsed(text, line, source)
            yield _row_example(row, number, f"{source}, line {line}")
            number += 1


def _json_lines(stream: BufferedReader, source: str) -> Iterator[Example]:
    return _line_examples(_lines(stream, source), source)


def _is_json_lines(text: str) -> bool:
    """Whether the first of several lines is an object by itself."""
    first, _, rest = text.lstrip().partition("\n")
    try:
        return bool(rest.strip()) and isinstance(json.loads(first), dict)
    except (ValueError, RecursionError):
        return False


def _json(stream: BufferedReader, source: str) -> Iterator[Example]:
    text = _decoded(stream.read(), 1, source)
    if _is_json_lines(text):
        return _line_examples(text.split("\n"), source)
    return _document_examples(_parsed(text, 1, source), source)


def _document_examples(document: Any, source: str) -> Iterator[Example]:
    """The examples of a whole JSON document: nested, flat, or a single row."""
    if isinstance(document, list):
        return _flat_examples(document, f"{source}, ")
    if not isinstance(document, dict) or not document.keys() & {"data", "question", "context"}:
        found = _listed(document) if isinstance(document, dict) else _short(document)
        raise UserError(
            f"{source} is JSON, but no data set (found: {found}); "
            'give {"data": [...]}, as SQuAD does, or rows with question and context'
        )
    if "data" not in document:
        return _flat_examples([document], f"{source}, ")
    entries = _list(document["data"], "data", source)
    if entries and isinstance(entries[0], dict) and "paragraphs" in entries[0]:
        return _nested_examples(entries, source)
    return _flat_examples(entries, f"{source}, data")


def _flat_examples(rows: list[Any], prefix: str) -> Iterator[Example]:
    for number, row in enumerate(rows):
        yield _row_example(row, number, f"{prefix}[{number}]")


def _nested_examples(articles: list[Any], source: str) -> Iterator[Example]:
    number = 0
    for a, article in enumerate(articles):
        place = f"{source}, data[{a}]"
        _require(article, ["paragraphs"], place)
        for p, paragraph in enumerate(_list(article["paragraphs"], "paragraphs", place)):
            for example in _paragraph_examples(paragraph, number, f"{place}.paragraphs[{p}]"):
                yield example
                number += 1


def _paragraph_examples(paragraph: Any, number: int, place: str) -> Iterator[Example]:
    """The examples of one paragraph; the first is the file's question ``number``."""
    _require(paragraph, ["context", "qas"], place)
    context = _text(paragraph["context"], "context", place)
    for q, qa in enumerate(_list(paragraph["qas"], "qas", place)):
        _require(qa, ["question"], f"{place}.qas[{q}]")
        yield _example(qa, number + q, context, f"{place}.qas[{q}]")


# --- CSV -> Examples -----------------------------------------------------------------------------

_BOOLEANS = {"": None, "true": True, "1": True, "false": False, "0": False}


class _WithoutCalls(ast.NodeTransformer):
    """Puts x for f(x): what pandas writes is ``array(['a'], dtype=object)`` or ``np.int64(3)``."""

    def visit_Call(self, node: ast.Call) -> ast.AST:
        return self.visit(node.args[0]) if node.args else node


def _answers_cell(cell: str, place: str) -> Any:
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
            f"{place}: answers is {_short(cell)}, neither JSON nor a Python literal; "
            'write {"text": [...], "answer_start": [...]}'
        ) from error


def _single_answer(text: str, start: str, place: str) -> dict[str, list[Any]] | None:
    """The cells of the columns ``answer_text`` and ``answer_start``."""
    if not text and not start:
        return None
    # pandas writes a column of whole numbers as 12.0 once a cell of it is missing.
    number = re.fullmatch(r"(-?[0-9]{1,18})(\.0+)?", start)
    if start and not number:
        raise _wrong_type(start, "answer_start", "a whole number", place)
    return {"text": [text], "answer_start": [int(number[1])] if number else []}


def _csv_row(cells: dict[str, str], place: str) -> dict[str, Any]:
    """The cells as the values a JSON row would have."""
    row: dict[str, Any] = {"question": cells["question"], "context": cells["context"]}
    row["id"] = cells.get("id") or None
    impossible = cells.get("is_impossible", "")
    row["is_impossible"] = _BOOLEANS.get(impossible.lower(), impossible)
    if "answers" in cells:
        row["answers"] = _answers_cell(cells["answers"], place)
    elif "answer_text" in cells:
        row["answers"] = _single_answer(cells["answer_text"], cells.get("answer_start", ""), place)
    return row


def _csv_records(lines: Iterable[str], source: str, delimiter: str) -> Iterator[tuple[str, list]]:
    """The place and the fields of each record that is not blank."""
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


def _csv(stream: BufferedReader, source: str, delimiter: str = ",") -> Iterator[Example]:
    records = _csv_records(_lines(stream, source), source, delimiter)
    place, header = next(records, (source, []))
    _require(dict.fromkeys(header), ["question", "context"], f"{place}: the header")
    repeated = [name for name, count in Counter(header).items() if name and count > 1]
    if repeated:
        raise UserError(f"{place}: the header has {_short(repeated[0])} twice; rename one")
    for number, (place, fields) in enumerate(records):
        if len(fields) != len(header):
            raise UserError(
                f"{place} has {len(fields)} fields, but the header {len(header)} "
                f"(the first: {_short(fields[0])}); put quotes around fields that hold "
                f"{_short(delimiter)}, quotes or line ends"
            )
        row = _csv_row(dict(zip(header, fields, strict=True)), place)
        yield _row_example(row, number, place)


def _tsv(stream: BufferedReader, source: str) -> Iterator[Example]:
    return _csv(stream, source, delimiter="\t")


# --- the datasets library -> Examples ------------------------------------------------------------


def _reason(error: Exception) -> str:
    """Another library's message as a part of one sentence."""
    words = " ".join(str(error).split()).split(". ")[0] or type(error).__name__
    return (words if len(words) <= 200 else words[:200] + "...").rstrip(".")


def _table_rows(table: Any) -> Iterator[dict[str, Any]]:
    """The rows of a Dataset or IterableDataset."""
    # As Arrow tables: several times as fast as row by row, and no image or audio is decoded.
    for batch in table.with_format("arrow").iter(batch_size=1000):
        yield from batch.to_pylist()


def _parquet(stream: BufferedReader, source: str) -> Iterator[Example]:
    if source.lower().endswith(".gz"):
        raise UserError(f"{source}: parquet is not read through gzip; unpack it with gunzip")
    # Here and not above: the import takes seconds, and no other form needs it.
    from datasets import load_dataset

    # The name is taken as a pattern unless escaped.
    options = {"data_files": glob.escape(source), "split": "train", "streaming": True}
    try:
        # Streaming writes no second copy of the data, only a lock, for which any place will do.
        with TemporaryDirectory() as cache:
            rows = list(_table_rows(load_dataset("parquet", cache_dir=cache, **options)))
    except Exception as error:  # The library's errors have no common class.
        raise UserError(
            f"{source} is not readable as parquet ({_reason(error)}); write it again"
        ) from error
    for number, row in enumerate(rows):
        yield _row_example(row, number, f"{source}, row {number}")


def load_hub_dataset(name: str, split: str) -> list[Example]:
    """The examples of one split of a data set of the Hugging Face hub, or of a local folder.

    ``name`` is "squad", "squad_v2" or any set with the columns question, context and answers;
    "name:config" names one of its configurations.

    Raises:
        UserError: the name, the configuration or the split is unknown or not to be had offline,
            a column is missing, or a row is none.
    """
    # Here and not above: the import takes seconds, and those who give files need nothing of it.
    from datasets import load_dataset

    path, _, config = name.partition(":")
    try:
        table = load_dataset(path, config or None, split=split)
    except Exception as error:  # The library's errors have no common class.
        raise UserError(
            f"split {_short(split)} of the data set {_short(name)} cannot be loaded "
            f"({_reason(error)}); check both names, or pass --train_file/--validation_file "
            "instead when offline"
        ) from error
    place = f"data set {_short(name)}, split {_short(split)}"
    _require(dict.fromkeys(table.column_names), ["question", "context", "answers"], place)
    rows = enumerate(_table_rows(table))
    examples = (_row_example(row, number, f"{place}, row {number}") for number, row in rows)
    return list(_share(examples, remembered=None))


# --- reading a file ------------------------------------------------------------------------------

_READERS: dict[str, _Reader] = {
    ".json": _json,
    ".jsonl": _json_lines,
    ".ndjson": _json_lines,
    ".csv": _csv,
    ".tsv": _tsv,
    ".parquet": _parquet,
}


def _reader(path: Path) -> _Reader:
    ending = Path(path.name.lower().removesuffix(".gz")).suffix
    if ending not in _READERS:
        raise UserError(
            f"{path} has the ending {_short(ending)}, which is not read; "
            f"give one of {', '.join(_READERS)} (all but .parquet also with .gz)"
        )
    return _READERS[ending]


def iter_json_lines(path: Path) -> Iterator[Example]:
    """The examples of a JSON lines file, one at a time and in constant memory.

    Raises:
        UserError: the file cannot be opened or read, or a line, once reached, is no row.
    """
    with _opened(path) as stream:
        yield from _share(_json_lines(stream, str(path)), remembered=64)


def read_examples(path: Path) -> list[Example]:
    """All examples of a file of any accepted form; equal texts are one object.

    Whether a run can use what the examples hold is for ``check_examples`` and ``check_answers``.

    Raises:
        UserError: the file cannot be read, or is of no accepted form; the first fault is named.
    """
    with _opened(path) as stream:
        return list(_share(_reader(path)(stream, str(path)), remembered=None))


# --- what a form cannot show ---------------------------------------------------------------------


def check_examples(examples: Sequence[Example], source: str) -> None:
    """Refuse what no run can use.

    Raises:
        UserError: there is no example, an id is repeated, or a question or context is blank.
    """
    if not examples:
        raise UserError(f"{source} holds no examples; give at least one question")
    if len({example.id for example in examples}) < len(examples):
        counts = Counter(example.id for example in examples)
        repeated = [name for name, count in counts.items() if count > 1]
        raise UserError(
            f"{source}: the id {_short(repeated[0])} stands {counts[repeated[0]]} times "
            f"({len(repeated)} repeated ids in all); give each question its own"
        )
    for key in ("question", "context"):
        blank = [example for example in examples if not getattr(example, key).strip()]
        if blank:
            raise _fault(blank, f"has a blank {key}", "fill it in or remove the question", source)


def _fault(faulty: Sequence[Example], fault: str, cure: str, source: str) -> UserError:
    """An error that shows the first of the faulty examples and counts them."""
    return UserError(
        f"{source}: question {_short(faulty[0].id)} {fault} ({len(faulty)} such in all); {cure}"
    )


def _misplaced(example: Example) -> Iterator[tuple[str, int, str]]:
    """The text, start and what stands there instead, of each answer that is not at its start."""
    for text, start in zip(example.answers or (), example.answer_starts, strict=True):
        # A negative start would count from the end.
        found = example.context[start : start + len(text)] if start >= 0 else ""
        if found != text:
            yield text, start, found


def check_answers(examples: Sequence[Example], source: str) -> None:
    """Refuse what training and validation cannot use; unanswerable questions pass.

    Raises:
        UserError: gold or starts are missing, an answer is blank, or stands not at its start.
    """
    without = [example for example in examples if example.answers is None]
    if without:
        cure = "add them, or an empty list if there is no answer"
        raise _fault(without, "has no gold answers", cure, source)
    uneven = [e for e in examples if len(e.answers or ()) != len(e.answer_starts)]
    if uneven:
        counts = f"{len(uneven[0].answers or ())} and {len(uneven[0].answer_starts)}"
        fault = f"has answer texts and answer_starts in different numbers, {counts}"
        raise _fault(uneven, fault, "give one answer_start for each text", source)
    blank = [e for e in examples if not all(map(str.strip, e.answers or ()))]
    if blank:
        cure = "give an empty list if there is no answer"
        raise _fault(blank, "has a blank answer text", cure, source)
    misplaced = [example for example in examples if any(_misplaced(example))]
    if misplaced:
        text, start, found = next(_misplaced(misplaced[0]))
        fault = f"has the answer {_short(text)}, but its context has {_short(found)} "
        fault += f"at answer_start {start}"
        raise _fault(misplaced, fault, "count the code points before it, from 0", source)
