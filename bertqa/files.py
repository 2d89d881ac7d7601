"""Names of files, reading of JSON, and atomic writing."""

import errno
import json
import os
import shutil
import stat
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from bertqa.errors import UserError, reason, shown

# The files of a checkpoint folder.
CONFIG_FILE = "config.json"
TOKENIZER_FILE = "tokenizer.json"
TOKENIZER_CONFIG_FILE = "tokenizer_config.json"
TOKENIZER_FILES = (TOKENIZER_FILE, "vocab.txt")  # one of them is required
DECODING_FILE = "decoding.json"  # bertqa's window and decoding settings of a model
OPTIONAL_FILES = (
    TOKENIZER_CONFIG_FILE, "special_tokens_map.json", "added_tokens.json", DECODING_FILE,
)  # fmt: skip
WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
BIN_FILE = "pytorch_model.bin"

LARGEST = 1 << 24  # bytes of a JSON file; 10 times the largest known
_ADVICE = {
    errno.EACCES: "check its permissions or ",
    errno.EDQUOT: "free space or ",
    errno.ENOSPC: "free space or ",
}
_DEEPEST = 64  # levels of nesting in JSON; recursive functions may write it again


@contextmanager
def os_errors_as_user_errors(path: Path, act: str) -> Iterator[None]:
    """Turn errors of the operating system (disk full, no permission) into a UserError."""
    try:
        yield
    except OSError as error:
        cause, advice = error.strerror or str(error), _ADVICE.get(error.errno or 0, "")
        raise UserError(f"{path} cannot be {act}: {cause}: {advice}choose another path") from error


def check_output_file(
    path: Path, flag: str, endings: Sequence[str] = (), force: bool = False, force_flag: str = ""
) -> None:
    """Check that a file can be written by ``write_file``, before computing its contents.

    Args:
        path: the file.
        flag: the flag that named it, for messages; "" for a positional argument.
        endings: allowed suffixes in lower case; empty for any.
        force: accept an existing file.
        force_flag: the flag for that, "" if there is none.

    Raises:
        UserError: it is a folder, has another suffix, exists, or cannot be written.
    """
    name = f"{flag} {path}".strip()
    if path.is_dir():
        raise UserError(f"{name}: must be a file, got a folder: name a file in it")
    if endings and path.suffix.lower() not in endings:
        needed = f"must end in {' or '.join(endings)}, got {shown(path.suffix)}"
        raise UserError(f"{name}: {needed}: rename it")
    if os.path.lexists(path) and not force:
        advice = "choose another name" + f", or pass {force_flag}" * bool(force_flag)
        raise UserError(f"{name}: must be a new file, got an existing one: {advice}")
    folder = next(parent for parent in path.absolute().parents if os.path.lexists(parent))
    if not folder.is_dir():
        raise UserError(f"{name}: {folder} must be a folder, got a file: choose another path")
    for existing in (folder, path):
        if existing.exists() and not os.access(existing, os.W_OK):
            raise UserError(f"{name}: no write permission for {existing}: choose another path")


def path_exists(path: Path) -> bool:
    """Return whether a path exists, also as a broken link."""
    return os.path.lexists(path)  # unlike Path.exists, never raises PermissionError


def check_regular(path: Path) -> None:
    """Check that a path is a regular file or a link to one.

    Opening a pipe could block for ever, and reading a device might not end.

    Raises:
        UserError: it is missing, or not a file.
    """
    with os_errors_as_user_errors(path, "read"):
        try:
            mode = path.stat().st_mode
        except FileNotFoundError as error:
            raise UserError(f"{path} must exist: copy the incomplete folder again") from error
    if not stat.S_ISREG(mode):
        kind = "a folder" if stat.S_ISDIR(mode) else "a pipe or device"
        raise UserError(f"{path} must be a file, got {kind}: replace it by the file")


def read_whole(path: Path, largest: int = LARGEST) -> bytes:
    """Read a file of at most ``largest`` bytes.

    Raises:
        UserError: it is missing, larger, or cannot be read.
    """
    check_regular(path)
    with os_errors_as_user_errors(path, "read"), path.open("rb") as file:
        content = file.read(largest + 1)
    if len(content) > largest:
        raise UserError(f"{path} must have at most {largest} bytes, got more: copy it again")
    return content


def parse_json(content: bytes, *, unique: bool = True) -> Any:
    """Parse UTF-8 JSON strictly.

    Args:
        content: the JSON.
        unique: reject repeated keys, for which readers differ in the value they use. It is slower,
            since it makes work for Python's garbage collector.

    Raises:
        ValueError: it is not valid JSON, repeats a key, or is nested too deeply.
    """
    try:
        hook = unique_keys if unique else None
        value = json.loads(content.decode("utf-8"), object_pairs_hook=hook)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    level = _containers([value])
    for _ in range(_DEEPEST):
        level = [inner for outer in level for inner in _containers(outer)]
    if level:
        raise ValueError("nested too deeply")
    return value


def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Make a JSON object, as ``object_pairs_hook`` of ``json.loads``.

    Raises:
        ValueError: a key is repeated; json would silently keep the last value.
    """
    entries = dict(pairs)
    if len(entries) < len(pairs):
        ((key, count),) = Counter(key for key, _ in pairs).most_common(1)
        raise ValueError(f"repeated key {shown(key)}, {count} times in one object")
    return entries


def _containers(value: dict[str, Any] | list[Any]) -> list[Any]:
    """Return the lists and objects in a list or an object."""
    values = value.values() if isinstance(value, dict) else value
    return [inner for inner in values if type(inner) in (dict, list)]


def read_json_object(path: Path, largest: int = LARGEST) -> dict[str, Any]:
    """Read a JSON file of at most ``largest`` bytes that contains an object.

    Raises:
        UserError: the file is missing, too large, not JSON, or not an object.
    """
    content = read_whole(path, largest)
    try:
        entries = parse_json(content)
    except ValueError as error:
        raise UserError(f"{path} must be valid JSON ({reason(error)}): copy it again") from error
    if not isinstance(entries, dict):
        kind = type(entries).__name__
        raise UserError(f"{path} must be a JSON object, got {kind}: copy it again")
    return entries


def write_file(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file atomically: call ``write`` with a temporary path, then rename it to ``path``.

    A reader, or a run resumed after a crash, sees the old file or the new one, never a part.

    Raises:
        UserError: it cannot be written; an existing file is unchanged.
    """
    partial = path.with_name(f".{path.name}.partial")
    with os_errors_as_user_errors(path, "written"):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            # In an untrusted folder it may be a link to a user's file, or a pipe.
            partial.unlink(missing_ok=True)
            write(partial)
            partial.chmod(0o666 & ~_umask())  # safetensors only gives the owner permissions
            _sync(partial)
            partial.replace(path)
            _sync(path.parent)
        finally:
            partial.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file atomically, without escaping non-ASCII text."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def write_json_map(path: Path, entries: Iterable[tuple[str, Any]]) -> None:
    """Write a JSON object entry by entry, atomically and in constant memory.

    Each element of a list has its own line.
    """

    def lines() -> Iterator[str]:
        separator = "{\n  "
        for key, value in entries:
            text = _dumps(value)
            if isinstance(value, list) and value:
                text = "[\n    " + ",\n    ".join(map(_dumps, value)) + "\n  ]"
            yield f"{separator}{_dumps(key)}: {text}"
            separator = ",\n  "
        yield "{}\n" if separator.startswith("{") else "\n}\n"

    def write(partial: Path) -> None:
        with partial.open("wb") as file:
            file.writelines(line.encode("utf-8", "backslashreplace") for line in lines())

    write_file(path, write)


def _dumps(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def append_json_lines(
    path: Path, entries: Iterable[Mapping[str, Any]], size: int | None = None
) -> None:
    """Truncate a file to ``size`` bytes, append lines, and sync it to the disk.

    Raises:
        UserError: it cannot be written; previous lines, and perhaps some new ones, are kept.
    """
    with os_errors_as_user_errors(path, "written"), path.open("ab") as file:
        if size is not None:
            file.truncate(size)
        for entry in entries:
            file.write((_dumps(entry) + "\n").encode("utf-8", "backslashreplace"))
        file.flush()
        os.fsync(file.fileno())


def json_lines(path: Path, *keys: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the objects in a file written by bertqa, each with the offset of the end of its line.

    An incomplete last line, left by a killed run, is skipped; a missing file has no lines.

    Raises:
        UserError: a line is not an object with these keys, or the file cannot be read.
    """
    if not path.exists():
        return
    end = 0
    with os_errors_as_user_errors(path, "read"), path.open("rb") as file:
        for number, raw in enumerate(file, start=1):
            if not raw.endswith(b"\n"):
                return
            end += len(raw)
            try:
                entry = json.loads(raw)
            except (ValueError, RecursionError):
                entry = None
            if not isinstance(entry, dict) or not entry.keys() >= set(keys):
                raise UserError(
                    f"{path}, line {number}: must be a line written by bertqa: restore the file, "
                    "or choose another folder"
                )
            yield end, entry


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 text file atomically."""
    # A lone surrogate, which UTF-8 cannot encode, is escaped.
    write_file(path, lambda partial: partial.write_bytes(text.encode("utf-8", "backslashreplace")))


@contextmanager
def output_folder(path: Path) -> Iterator[None]:
    """Context that creates the folder of --output_dir, and removes it again if it is left empty.

    Raises:
        UserError: it is a file, or cannot be created.
    """
    if path.exists() and not path.is_dir():
        raise UserError(f"--output_dir {path}: must be a folder, got a file: choose another name")
    created = [folder for folder in (path, *path.parents) if not folder.exists()]
    with os_errors_as_user_errors(path, "created"):
        path.mkdir(parents=True, exist_ok=True)
    try:
        yield
    finally:
        with suppress(OSError):  # not empty, or removed by the user
            for folder in created:
                folder.rmdir()


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Context that yields a temporary folder, renamed to ``path`` if no exception occurs.

    Raises:
        UserError: it cannot be written; nothing is left at ``path``.
    """
    with os_errors_as_user_errors(path, "written"):
        path.parent.mkdir(parents=True, exist_ok=True)
        # A random name: process ids recur, in containers at each start.
        name = tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".partial", dir=path.parent)
        partial = Path(name)
        try:
            partial.chmod(0o777 & ~_umask())  # mkdtemp only gives the owner permissions
            yield partial
            for entry in (*partial.iterdir(), partial):
                _sync(entry)
            partial.rename(path)
            _sync(path.parent)
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def _umask() -> int:
    """Return the umask; reading it requires setting it for a moment."""
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _sync(path: Path) -> None:
    """Sync a path to the disk, so that a crash cannot keep a rename but lose the data."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
