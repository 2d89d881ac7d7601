"""Safe reading of tensors from untrusted checkpoint files.

No code in a file is run, a file cannot make another file be opened, and the sizes it declares are
compared with its length before memory is allocated. Tensors are read on request, so one of a wrong
shape is never read.
"""

import pickletools
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from bertqa.errors import UserError, flag, reason, shown
from bertqa.files import (
    BIN_FILE,
    INDEX_FILE,
    WEIGHTS_FILE,
    check_regular,
    os_errors_as_user_errors,
    parse_json,
    path_exists,
    read_json_object,
)

# dtypes of weights, as safetensors and torch name them.
FLOATS = {
    "F16", "BF16", "F32", "F64",
    "torch.float16", "torch.bfloat16", "torch.float32", "torch.float64",
}  # fmt: skip

_LARGEST_HEADER = 1 << 22  # bytes; 100 times that of BERT-large
_LARGEST_PICKLE = 1 << 20  # bytes without the tensors' data; 10 times that of BERT-large
# The functions that torch.save uses for the tensors of a model.
_KNOWN_GLOBALS = {
    "collections OrderedDict", "torch._utils _rebuild_tensor", "torch._utils _rebuild_tensor_v2",
    "torch._utils _rebuild_parameter", "torch.storage UntypedStorage",
    *(
        f"torch {kind}Storage"
        for kind in (
            "Float", "Half", "BFloat16", "Double", "Long", "Int", "Short", "Char", "Byte", "Bool",
            "ComplexFloat",
        )
    ),
}  # fmt: skip
_OTHER_GLOBALS = {"STACK_GLOBAL", "INST", "OBJ", "EXT1", "EXT2", "EXT4"}  # also load functions
_DEEPEST_PICKLE = 16  # levels of nesting; a state dictionary has five
_ZIP = b"PK\x03\x04"  # the first bytes of torch's zip format; the legacy format has others


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a file, not read yet.

    Attributes:
        file: the file that holds it.
        shape, dtype: as the file declares them; see ``FLOATS``.
        read: function that loads the tensor. Raises UserError if it is unreadable.
    """

    file: Path
    shape: tuple[int, ...]
    dtype: str
    read: Callable[[], Tensor]


Tensors = dict[str, StoredTensor]


def open_weights(folder: Path, allow_bin: bool) -> tuple[Path, Tensors]:
    """Open the weights of a folder; return the file and its tensors.

    Links are followed, because the hub's cache consists of them; their targets are read only as
    weights. ``allow_bin`` permits a pickle if there is no other file.

    Raises:
        UserError: there are no weights, or they are corrupt; the message names the file.
    """
    if path_exists(folder / WEIGHTS_FILE):
        return folder / WEIGHTS_FILE, open_safetensors(folder / WEIGHTS_FILE)
    if path_exists(folder / INDEX_FILE):
        return folder / INDEX_FILE, _open_shards(folder / INDEX_FILE)
    if path_exists(folder / BIN_FILE):
        if allow_bin:
            return folder / BIN_FILE, _open_bin(folder / BIN_FILE)
        raise UserError(
            f"{folder / BIN_FILE}: must be safetensors, got a pickle, which may contain more than "
            f"weights: pass {flag('allow_bin')} if you trust its source"
        )
    raise UserError(f"{folder}: must contain {WEIGHTS_FILE}, got no weights: copy it there")


# --- safetensors ---------------------------------------------------------------------------------


def open_safetensors(path: Path) -> Tensors:
    """Open a safetensors file; return its tensors.

    Raises:
        UserError: the file is missing or corrupt.
    """
    check_regular(path)
    with os_errors_as_user_errors(path, "read"):
        try:
            _check_header(path)
            file = safe_open(path, framework="pt")
            return {name: _stored(path, file, name) for name in file.keys()}  # noqa: SIM118
        except (SafetensorError, ValueError) as error:
            raise UserError(
                f"{path} must be intact, got a corrupt file ({reason(error)}): copy it again"
            ) from error


def _check_header(path: Path) -> None:
    """Check the header of a safetensors file beyond what the library checks.

    Raises:
        ValueError: it is huge, or repeats a name.
    """
    length = path.stat().st_size
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        if length < 8 or size > min(_LARGEST_HEADER, length - 8):
            raise ValueError(f"header of {size} bytes in a file of {length}")
        parse_json(file.read(size))


def _stored(path: Path, file: Any, name: str) -> StoredTensor:
    entry = file.get_slice(name)
    return StoredTensor(
        path, tuple(entry.get_shape()), entry.get_dtype(), partial(_read, path, file, name)
    )


def _read(path: Path, file: Any, name: str) -> Tensor:
    try:
        tensor: Tensor = file.get_tensor(name)
    except Exception as error:  # the library and torch raise many types for unsupported formats
        raise UserError(
            f"{path}: {shown(name)} must be readable ({reason(error)}): copy the file again"
        ) from error
    return tensor


def _open_shards(index: Path) -> Tensors:
    """Open the shards of an index; return each tensor from the shard that the index lists."""
    weight_map = read_json_object(index).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(v, str) for v in weight_map.values()):
        raise UserError(f"{index}: weight_map must map tensors to files: copy the file again")
    shards = sorted(set(weight_map.values()))
    for shard in shards:  # check all before opening any
        if not _is_plain(shard):
            raise UserError(
                f"{index}: shards must be plain file names ending in .safetensors, got "
                f"{shown(shard)}: use a checkpoint from another source"
            )
    held: dict[tuple[str, str], StoredTensor] = {}
    for shard in shards:
        tensors = open_safetensors(index.parent / shard)
        held.update({(name, shard): tensor for name, tensor in tensors.items()})
    for name, shard in sorted(set(weight_map.items()) ^ set(held)):
        verb = "lacks" if weight_map.get(name) == shard else "holds"
        raise UserError(
            f"{index}: must match the shards, got {shard}, which {verb} {shown(name)}: copy the "
            "folder again"
        )
    return {name: tensor for (name, _), tensor in held.items()}


def _is_plain(shard: str) -> bool:
    """Return whether a name is a printable file name in the same folder."""
    is_name = Path(shard).name == shard and shard.isprintable() and "\\" not in shard
    return is_name and shard.endswith(".safetensors") and len(shard) < 256


# --- pytorch_model.bin ---------------------------------------------------------------------------


def _open_bin(path: Path) -> Tensors:
    """Open a pytorch_model.bin; return its tensors. The unpickler builds only tensors."""
    check_regular(path)
    with os_errors_as_user_errors(path, "read"), path.open("rb") as file:
        is_zip = file.read(len(_ZIP)) == _ZIP  # many BERT files have the legacy format
    try:
        (_check_zip if is_zip else _check_legacy)(path)
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)
    except Exception as error:  # torch raises many types for a corrupt or unsafe pickle
        raise UserError(
            f"{path}: must contain only tensors ({reason(error)}): use model.safetensors"
        ) from error
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise UserError(f"{path}: must be a dictionary of tensors: use model.safetensors")
    remaining = 2 * path.stat().st_size  # twice: the pretraining head shares the word embeddings
    for name, tensor in state.items():
        if not isinstance(name, str) or not _is_plain_tensor(tensor):
            raise UserError(
                f"{path}: {shown(name)} must be a plain dense tensor: use model.safetensors"
            )
        remaining -= tensor.numel() * tensor.element_size()
        if remaining < 0:  # a tensor with stride 0 repeats one number
            raise UserError(
                f"{path}: {shown(name)} must not be larger than the file: use model.safetensors"
            )
    return {
        name: StoredTensor(path, tuple(tensor.shape), str(tensor.dtype), tensor.detach)
        for name, tensor in state.items()
    }


def _check_zip(path: Path) -> None:
    """Check that all parts of a zip are stored uncompressed, as torch writes them.

    Raises:
        ValueError: a part is compressed, or a pickle fails ``_check_pickle``.
    """
    with zipfile.ZipFile(path) as archive:
        for part in archive.infolist():
            if part.compress_type != zipfile.ZIP_STORED or part.file_size != part.compress_size:
                raise ValueError(f"{shown(part.filename)} is compressed")
            if part.filename.endswith(".pkl"):
                with archive.open(part) as file:
                    _check_pickle(file)


def _check_legacy(path: Path) -> None:
    """Check each of the five pickles at the start of the legacy format."""
    with path.open("rb") as file:
        for _ in range(5):
            _check_pickle(file)


@dataclass
class _Made:
    """Object made by an instruction of a pickle: its depth and number of parts."""

    depth: int = 1
    parts: int = 1


def _check_pickle(file: IO[bytes]) -> None:
    """Check that a pickle cannot exhaust time or memory, without running it.

    A hundred bytes of nested tuples, each holding the next one twice, have a billion parts, and
    hashing visits every one. So the depth and the number of parts of each object are tracked. Only
    functions that state dictionaries need are allowed: torch's own list has some that fill memory.

    Raises:
        ValueError: it is too large, nested too deeply, or needs another function.
    """
    stack: list[_Made] = []
    marks: list[int] = []
    memo: dict[object, _Made] = {}
    for code, argument, offset in pickletools.genops(file):
        if (offset or 0) > _LARGEST_PICKLE:
            raise ValueError(f"pickle of more than {_LARGEST_PICKLE} bytes")
        if code.name == "GLOBAL" and argument not in _KNOWN_GLOBALS:
            raise ValueError(f"{shown(argument)} is not needed for tensors")
        if code.name in _OTHER_GLOBALS:
            raise ValueError(f"{code.name} is not an instruction that torch writes")
        if code.name == "MARK":
            marks.append(len(stack))
        elif "PUT" in code.name or code.name == "MEMOIZE":
            memo[len(memo) if argument is None else argument] = stack[-1]
        elif "GET" in code.name:
            stack.append(memo[argument])
        else:
            before, mark = code.stack_before, pickletools.markobject
            first = marks.pop() - before.index(mark) if mark in before else len(stack) - len(before)
            taken, stack[first:] = stack[first:], []
            # These instructions modify an object that other objects may refer to.
            grows = code.name in ("APPEND", "APPENDS", "SETITEM", "SETITEMS", "BUILD")
            made = taken.pop(0) if grows else _Made(0)
            made.depth = max(made.depth, 1 + max((inner.depth for inner in taken), default=0))
            made.parts += sum(inner.parts for inner in taken)
            if made.depth > _DEEPEST_PICKLE:
                raise ValueError("nested too deeply")
            if made.parts > _LARGEST_PICKLE:
                raise ValueError(f"more than {_LARGEST_PICKLE} parts")
            stack += [made] * len(code.stack_after)


def _is_plain_tensor(tensor: Tensor) -> bool:
    """Return whether a tensor is dense, on the CPU and of a plain type."""
    return (
        type(tensor) in (Tensor, torch.nn.Parameter)
        and tensor.layout is torch.strided
        and tensor.device.type == "cpu"
        and not tensor.is_quantized
        and not tensor.is_nested
    )
