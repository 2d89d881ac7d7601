"""Documents to be searched for answers: a folder of texts, one text, or JSON lines."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bertqa.errors import UserError, reason, shown
from bertqa.files import parse_json, said_plainly

SUFFIXES = (".txt", ".md", ".markdown")
LINES = (".jsonl", ".ndjson")
LARGEST_TEXT = 2**26  # bytes of a text that is read; a long novel has a fiftieth of that


def iter_documents(path: Path) -> Iterator[dict[str, Any]]:
    """Read documents one after the other, in the order of their names or lines.

    Args:
        path: a folder, of which all .txt, .md and .markdown files are read, those of its folders
            too; such a file; or JSON lines, each an object with "text" and perhaps "id".

    Yields:
        "id", the name of the file within the folder or the number of the line if it has none,
        "text", and what else a line holds.

    Raises:
        UserError: there is no document, or one cannot be read.
    """
    documents = _json_lines(path) if path.suffix.lower() in LINES else _texts(path)
    first = next(documents, None)
    if first is None:
        raise UserError(
            f"--documents {path}: must hold documents, got none: name a folder with "
            f"{', '.join(SUFFIXES)} files, or JSON lines"
        )
    yield first
    yield from documents


def read_text(path: Path, what: str) -> str:
    """The text of a UTF-8 file, as it is: line ends stay, since offsets count them.

    Args:
        what: the flag and the file, for messages.

    Raises:
        UserError: it cannot be read, is too large, or is not UTF-8.
    """
    try:
        with path.open("rb") as file:
            content = file.read(LARGEST_TEXT + 1)  # a device such as /dev/zero has no end
        if len(content) > LARGEST_TEXT:
            raise UserError(
                f"{what} holds more than {LARGEST_TEXT >> 20} MiB: name a text, or cut it into "
                "several"
            )
        return content.decode("utf-8")
    except OSError as error:
        raise UserError(f"{what} cannot be read: {error.strerror}; check the path") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{what} is not UTF-8: convert it") from error


def _texts(path: Path) -> Iterator[dict[str, Any]]:
    if path.is_dir():
        files = sorted(p for p in path.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
    else:
        files = [path]
        if path.exists() and not path.is_file():
            raise UserError(
                f"--documents {path}: must be a folder or a file, since documents are read twice, "
                "got a pipe or a device: write it to a file"
            )
        if path.is_file() and path.suffix.lower() not in SUFFIXES:
            raise UserError(
                f"--documents {path}: must be a folder, JSON lines ({', '.join(LINES)}) or a text "
                f"({', '.join(SUFFIXES)}): rename or convert it"
            )
    for file in files:
        text = read_text(file, f"--documents {file}").removeprefix("\ufeff")
        yield {"id": str(file.relative_to(path)) if file != path else file.name, "text": text}


def _json_lines(path: Path) -> Iterator[dict[str, Any]]:
    if not path.is_file():  # a pipe could not be read a second time
        raise UserError(f"--documents {path}: must be a file that exists: check the path")
    with said_plainly(path, "read"), path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                yield _document(line, number, f"--documents {path}, line {number}")


def _document(line: bytes, number: int, where: str) -> dict[str, Any]:
    try:
        entry = parse_json(line)
    except ValueError as error:
        raise UserError(f"{where}: must be JSON, but {reason(error)}: correct it") from error
    if not isinstance(entry, dict) or not isinstance(entry.get("text"), str):
        raise UserError(
            f'{where}: must be an object with the key "text", a text, got {shown(entry)}: '
            "correct it"
        )
    return {"id": number} | entry
