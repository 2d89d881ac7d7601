"""The names of files, reading JSON, and writing that happens whole or not at all."""

import json
import os
import shutil
import stat
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bertqa.errors import UserError, reason, shown

# The files of a checkpoint folder.
CONFIG_FILE = "config.json"
TOKENIZER_FILES = ("tokenizer.json", "vocab.txt")  # one of them is enough
DECODING_FILE = "decoding.json"  # ours: whether "no answer" is one, and from which score on
OPTIONAL_FILES = (
    "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", DECODING_FILE,
)  # fmt: skip
WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
BIN_FILE = "pytorch_model.bin"

LARGEST = 1 << 24  # bytes of a JSON file that is read here; the largest known have a tenth of it
_DEEPEST = 64  # levels of JSON; what is read may be written again, by a recursive function


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


def check_new_file(path: Path, flag: str, endings: Sequence[str] = ()) -> None:
    """See, before the work that is to go there, that a file can be written.

    Args:
        flag: what named it, for the message.
        endings: those it may have; none for any.

    Raises:
        UserError: it has another ending, is there already, or its folder cannot be written to.
    """
    if endings and path.suffix not in endings:
        raise UserError(f"{flag} {path} must end in {' or '.join(endings)}: rename it")
    if os.path.lexists(path):
        raise UserError(f"{flag} {path} is there already: name a new file")
    folder = next(parent for parent in path.absolute().parents if os.path.lexists(parent))
    if not folder.is_dir():
        raise UserError(f"{flag} {path} cannot be written: {folder} is a file, name a folder")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise UserError(
            f"{flag} {path} cannot be written: no write permission for {folder}, choose another "
            "place"
        )


def is_there(path: Path) -> bool:
    """Whether its folder has such an entry, be it a link that leads nowhere."""
    return path.is_symlink() or path.exists()


def check_regular(path: Path) -> None:
    """See that there is a file of that name, be it through links.

    Opening a pipe would wait for ever, and reading a device would never end.

    Raises:
        UserError: there is none, or something that is no file.
    """
    try:
        mode = path.stat().st_mode
    except FileNotFoundError as error:
        raise UserError(f"{path} is missing: the folder is not whole, copy it again") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}; check the path") from error
    if not stat.S_ISREG(mode):
        kind = "a folder" if stat.S_ISDIR(mode) else "a pipe or device"
        raise UserError(f"{path} cannot be read: it is {kind}, not a file; put the file there")


def read_whole(path: Path, largest: int = LARGEST) -> bytes:
    """The bytes of a file that has no more than ``largest`` of them.

    Raises:
        UserError: there is no such file, it is larger, or cannot be read.
    """
    check_regular(path)
    try:
        with path.open("rb") as file:
            content = file.read(largest + 1)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}; check its rights") from error
    if len(content) > largest:
        raise UserError(
            f"{path} has more than {largest} bytes, as no file of that name needs: copy it again"
        )
    return content


def parse_json(content: bytes, *, unique: bool = True) -> Any:
    """What UTF-8 JSON says, where it says one thing only.

    Args:
        unique: refuse a key that an object has twice, of which another reader might take the
            other one. It makes work for Python's garbage collector, at each entry.

    Raises:
        ValueError: it is no JSON, an object has a key twice, or it is nested too deeply.
    """
    try:
        hook = _without_twins if unique else None
        value = json.loads(content.decode("utf-8"), object_pairs_hook=hook)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    level = _containers([value])
    for _ in range(_DEEPEST):
        level = [inner for outer in level for inner in _containers(outer)]
    if level:
        raise ValueError("nested too deeply")
    return value


def _without_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    entries = dict(pairs)
    if len(entries) < len(pairs):
        counts = Counter(key for key, _ in pairs)
        twin = next(key for key, count in counts.items() if count > 1)
        raise ValueError(f"the key {shown(twin)} stands there twice")
    return entries


def _containers(value: dict[str, Any] | list[Any]) -> list[Any]:
    """The lists and objects that a list or an object holds."""
    values = value.values() if isinstance(value, dict) else value
    return [inner for inner in values if type(inner) in (dict, list)]


def read_json_object(path: Path, largest: int = LARGEST) -> dict[str, Any]:
    """The object in a JSON file of no more than ``largest`` bytes.

    Raises:
        UserError: no such file, too large, not JSON, or no object at its top.
    """
    content = read_whole(path, largest)
    try:
        entries = parse_json(content)
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON ({reason(error)}): copy it again") from error
    if not isinstance(entries, dict):
        kind = type(entries).__name__
        raise UserError(f"{path} holds no JSON object but a {kind}: copy it again")
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
            # In a folder of a stranger's it may be a link to a file of the user's, or a pipe.
            partial.unlink(missing_ok=True)
            write(partial)
            partial.chmod(0o666 & ~_umask())  # safetensors makes files for their owner alone
            _sync(partial)
            partial.replace(path)
            _sync(path.parent)
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


def append_json_lines(
    path: Path, entries: Iterable[Mapping[str, Any]], size: int | None = None
) -> None:
    """Add lines to a file, of which ``size`` bytes stay; they are on the disk when it returns.

    Raises:
        UserError: it cannot be written; the lines before stand, and perhaps a part of the new ones.
    """
    with said_plainly(path, "written"), path.open("ab") as file:
        if size is not None:
            file.truncate(size)
        for entry in entries:
            file.write((_dumps(entry) + "\n").encode("utf-8", "backslashreplace"))
        file.flush()
        os.fsync(file.fileno())


def json_lines(path: Path, *keys: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """The objects in a file of our own, each with the offset at which its line ends.

    Half a line, with which a run that was killed may end, is left out; a file that is not there has
    no lines.

    Raises:
        UserError: a line is no object with these keys, or the file cannot be read.
    """
    if not path.exists():
        return
    end = 0
    with said_plainly(path, "read"), path.open("rb") as file:
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
                    f"{path}, line {number} is not one that bertqa writes: restore the file, or "
                    "name another folder"
                )
            yield end, entry


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
            for entry in (*partial.iterdir(), partial):
                _sync(entry)
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
