"""Reading of documents: a folder of texts, one text, or JSON lines."""

import codecs
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bertqa.errors import UserError, reason, shown
from bertqa.files import os_errors_as_user_errors, parse_json

SUFFIXES = (".txt", ".md", ".markdown")
LINES = (".jsonl", ".ndjson")
LARGEST_TEXT = 2**26  # bytes; 50 times a long novel


def iter_documents(path: Path) -> Iterator[dict[str, Any]]:
    """Read documents one by one, in the order of file names or lines.

    Args:
        path: a folder, whose .txt, .md and .markdown files are read recursively; such a file; or
            JSON lines, each an object with "text" and optionally "id".

    Yields:
        "id" (by default the file name relative to the folder, or the line number), "text", and
        other keys of a line.

    Raises:
        UserError: there is no document, or one cannot be read.
    """
    if not path.exists():
        raise UserError(
            f"--documents {path}: must be an existing folder or file, got none: check the path"
        )
    if not (path.is_dir() or path.is_file()):
        raise UserError(
            f"--documents {path}: must be a folder or file, got a pipe or device, which cannot be "
            "read twice: write the documents to a file"
        )
    in_lines = path.is_file() and path.suffix.lower() in LINES
    documents = _json_lines(path) if in_lines else _texts(path)
    first = next(documents, None)
    if first is None:
        raise UserError(
            f"--documents {path}: must contain documents, got none: pass a folder with "
            f"{', '.join(SUFFIXES)} files, or JSON lines"
        )
    yield first
    yield from documents


def read_text(path: Path, what: str) -> str:
    """Read a UTF-8 file; line ends are kept, since offsets count them.

    Args:
        path: the file.
        what: the flag and the file, for messages.

    Raises:
        UserError: it cannot be read, is too large, or is not UTF-8.
    """
    try:
        with path.open("rb") as file:
            content = file.read(LARGEST_TEXT + 1)  # a device such as /dev/zero is infinite
        if len(content) > LARGEST_TEXT:
            raise UserError(
                f"{what}: must have at most {LARGEST_TEXT >> 20} MiB, got more: pass a text file, "
                "or split it"
            )
        return content.decode("utf-8")
    except OSError as error:
        raise UserError(f"{what}: must be readable ({error.strerror}): check the path") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{what}: must be UTF-8: convert it") from error


def _texts(path: Path) -> Iterator[dict[str, Any]]:
    if path.is_dir():
        files = sorted(p for p in path.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
    else:
        files = [path]
        if path.suffix.lower() not in SUFFIXES:
            raise UserError(
                f"--documents {path}: must be a folder, JSON lines ({', '.join(LINES)}) or a text "
                f"({', '.join(SUFFIXES)}): rename or convert it"
            )
    for file in files:
        text = read_text(file, f"--documents {file}").removeprefix("\ufeff")
        yield {"id": str(file.relative_to(path)) if file != path else file.name, "text": text}


def _json_lines(path: Path) -> Iterator[dict[str, Any]]:
    with os_errors_as_user_errors(path, "read"), path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                line = line.removeprefix(codecs.BOM_UTF8 if number == 1 else b"")
                yield _document(line, number, f"--documents {path}, line {number}")


def _document(line: bytes, number: int, location: str) -> dict[str, Any]:
    try:
        entry = parse_json(line)
    except ValueError as error:
        raise UserError(f"{location}: must be JSON ({reason(error)}): correct it") from error
    if not isinstance(entry, dict) or not isinstance(entry.get("text"), str):
        raise UserError(
            f'{location}: must be an object with a string "text", got {shown(entry)}: correct it'
        )
    return entry | ({"id": number} if entry.get("id") is None else {})
