"""Reading JSON, and writing that happens whole or not at all."""

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bertqa.errors import UserError


@contextmanager
def said_plainly(path: Path, act: str) -> Iterator[None]:
    """Turn the operating system's refusal (disk full, no permission) into one sentence."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise UserError(
            f"{path} cannot be {act}: {reason}; free or choose another place"
        ) from error


def check_new_file(path: Path, flag: str, endings: Sequence[str]) -> None:
    """See, before the work that is to go there, that a file can be written.

    Args:
        flag: what named it, for the message.
        endings: those it may have.

    Raises:
        UserError: it has another ending, is there already, or its folder cannot be written to.
    """
    if path.suffix not in endings:
        raise UserError(f"{flag} {path} must end in {' or '.join(endings)}: rename it")
    if os.path.lexists(path):
        raise UserError(f"{flag} {path} is there already: name a new file")
    folder = next(parent for parent in path.absolute().parents if os.path.lexists(parent))
    if not folder.is_dir():
        raise UserError(f"{flag} {path} cannot be written: {folder} is a file, name a folder")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise UserError(
            f"{flag} {path} cannot be written: {folder} is closed to you, choose another place"
        )


def read_json_object(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        UserError: no such file, not JSON, or no object at its top.
    """
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"{path} is missing: the folder is not whole, copy it again") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not valid JSON ({error}): copy it again") from error
    if not isinstance(entries, dict):
        raise UserError(f"{path} holds no JSON object but a {type(entries).__name__}")
    return entries


def write_file(path: Path, write: Callable[[Path], object]) -> None:
    """Let ``write`` fill a file beside ``path``, then put it in the place of ``path`` at once.

    A reader, or a run resumed after a crash, sees the old file or the new one, never half of one.

    Raises:
        UserError: it cannot be written; what was at ``path`` stands.
    """
    partial = path.with_name(f".{path.name}.partial")
    with said_plainly(path, "written"):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write(partial)
            partial.chmod(0o666 & ~_umask())  # safetensors makes files for their owner alone
            _sync(partial)
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file, whole or not at all; text stays readable text, not escapes."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def write_json_map(path: Path, entries: Iterable[tuple[str, Any]]) -> None:
    """Write a JSON object entry by entry, whole or not at all.

    Of a value that is a list each element has a line of its own. ``entries`` may be a generator:
    what was written is let go.
    """

    def lines() -> Iterator[str]:
        separator = "{\n  "
        for key, value in entries:
            shown = _dumps(value)
            if isinstance(value, list) and value:
                shown = "[\n    " + ",\n    ".join(map(_dumps, value)) + "\n  ]"
            yield f"{separator}{_dumps(key)}: {shown}"
            separator = ",\n  "
        yield "{}\n" if separator.startswith("{") else "\n}\n"

    def write(partial: Path) -> None:
        with partial.open("wb") as file:
            file.writelines(line.encode("utf-8", "backslashreplace") for line in lines())

    write_file(path, write)


def _dumps(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 text file, whole or not at all."""
    # A lone surrogate, which UTF-8 cannot hold, goes out as its escape.
    write_file(path, lambda partial: partial.write_bytes(text.encode("utf-8", "backslashreplace")))


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A folder to fill; it stands at ``path`` once the block has ended without an exception.

    Raises:
        UserError: it cannot be written; nothing is left at ``path``.
    """
    with said_plainly(path, "written"):
        path.parent.mkdir(parents=True, exist_ok=True)
        # A name of its own: a process number comes again, in containers at each start.
        name = tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".partial", dir=path.parent)
        partial = Path(name)
        try:
            partial.chmod(0o777 & ~_umask())  # mkdtemp makes folders for their owner alone
            yield partial
            for file in partial.iterdir():
                _sync(file)
            partial.rename(path)
            _sync(path.parent)
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def _umask() -> int:
    """Which rights new files do not get; asking means setting it for a moment."""
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _sync(path: Path) -> None:
    """Wait until the disk has it: a rename may otherwise outlive the bytes it names."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
