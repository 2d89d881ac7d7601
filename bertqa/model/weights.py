"""The tensors in the files of a checkpoint folder, whoever made them.

A file is untrusted. No code runs from it, it cannot name another file to open, and the sizes that
it declares are compared with its length before memory is allocated. A tensor is read on request, so
that one of a wrong shape is never read.
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

from bertqa.errors import UserError, reason, shown
from bertqa.files import (
    BIN_FILE,
    INDEX_FILE,
    WEIGHTS_FILE,
    check_regular,
    is_there,
    parse_json,
    read_json_object,
)

# Number formats of weights, as safetensors and torch call them.
FLOATS = {
    "F16", "BF16", "F32", "F64",
    "torch.float16", "torch.bfloat16", "torch.float32", "torch.float64",
}  # fmt: skip

_LARGEST_HEADER = 1 << 22  # bytes; that of BERT-large has a hundredth of it
_LARGEST_PICKLE = 1 << 20  # bytes without the numbers; that of BERT-large has a tenth of it
# By these, and by no others, torch.save writes the tensors of a model.
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
_OTHER_GLOBALS = {"STACK_GLOBAL", "INST", "OBJ", "EXT1", "EXT2", "EXT4"}  # ways to the same
_DEEPEST_PICKLE = 16  # objects inside each other; a state dictionary has five
_ZIP = b"PK\x03\x04"  # by which torch tells its newer format from the older


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a file, not read yet.

    Attributes:
        file: where.
        shape, dtype: as the file declares them; see ``FLOATS``.
        read: loads the tensor. Raises UserError if it is unreadable.
    """

    file: Path
    shape: tuple[int, ...]
    dtype: str
    read: Callable[[], Tensor]


Tensors = dict[str, StoredTensor]


def open_weights(folder: Path, allow_bin: bool) -> tuple[Path, Tensors]:
    """The file with the weights of a folder, and its tensors.

    Links are followed, as the hub's cache is made of them, and what they lead to is read as
    weights and as nothing else. ``allow_bin`` admits a pickle, where there is nothing else.

    Raises:
        UserError: there are no weights, or they are corrupt; the sentence names the file.
    """
    if is_there(folder / WEIGHTS_FILE):
        return folder / WEIGHTS_FILE, open_safetensors(folder / WEIGHTS_FILE)
    if is_there(folder / INDEX_FILE):
        return folder / INDEX_FILE, _open_shards(folder / INDEX_FILE)
    if is_there(folder / BIN_FILE):
        if allow_bin:
            return folder / BIN_FILE, _open_bin(folder / BIN_FILE)
        raise UserError(
            f"{folder / BIN_FILE} is a pickle, which may hold more than weights: pass "
            "--allow_bin if you trust where it comes from"
        )
    raise UserError(f"{folder} holds no weights: put {WEIGHTS_FILE} there")


# --- safetensors ---------------------------------------------------------------------------------


def open_safetensors(path: Path) -> Tensors:
    """The tensors of one safetensors file.

    Raises:
        UserError: it is missing, or corrupt.
    """
    check_regular(path)
    try:
        _check_header(path)
        file = safe_open(path, framework="pt")
        return {name: _stored(path, file, name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"{path} is corrupt ({reason(error)}): copy it again") from error


def _check_header(path: Path) -> None:
    """Raise ValueError for what the library would take: a huge header, and a name twice in it."""
    length = path.stat().st_size
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        if length < 8 or size > min(_LARGEST_HEADER, length - 8):
            raise ValueError(f"a header of {size} bytes in a file of {length}")
        parse_json(file.read(size))


def _stored(path: Path, file: Any, name: str) -> StoredTensor:
    entry = file.get_slice(name)
    return StoredTensor(
        path, tuple(entry.get_shape()), entry.get_dtype(), partial(_read, path, file, name)
    )


def _read(path: Path, file: Any, name: str) -> Tensor:
    try:
        tensor: Tensor = file.get_tensor(name)
    except Exception as error:  # the library and torch raise many kinds for formats they lack
        raise UserError(
            f"{path}: {shown(name)} cannot be read ({reason(error)}): copy it again"
        ) from error
    return tensor


def _open_shards(index: Path) -> Tensors:
    """The tensors of the shards that an index names, each from the shard that it names for it."""
    weight_map = read_json_object(index).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(v, str) for v in weight_map.values()):
        raise UserError(f"{index} has no weight_map from tensors to files: copy it again")
    shards = sorted(set(weight_map.values()))
    for shard in shards:  # all of them before one is opened
        if not _is_plain(shard):
            raise UserError(
                f"{index} names the shard {shown(shard)}, which is no plain file name ending in "
                ".safetensors: take the checkpoint from elsewhere"
            )
    held: dict[tuple[str, str], StoredTensor] = {}
    for shard in shards:
        tensors = open_safetensors(index.parent / shard)
        held.update({(name, shard): tensor for name, tensor in tensors.items()})
    for name, shard in sorted(set(weight_map.items()) ^ set(held)):
        verb = "lacks" if weight_map.get(name) == shard else "holds"
        raise UserError(
            f"{index} does not fit: {shard} {verb} {shown(name)}: copy the folder again"
        )
    return {name: tensor for (name, _), tensor in held.items()}


def _is_plain(shard: str) -> bool:
    """Whether a name can only mean a file beside the one that has it, and one that is shown."""
    is_name = Path(shard).name == shard and shard.isprintable() and "\\" not in shard
    return is_name and shard.endswith(".safetensors") and len(shard) < 256


# --- pytorch_model.bin ---------------------------------------------------------------------------


def _open_bin(path: Path) -> Tensors:
    """The tensors of a pytorch_model.bin; the unpickler builds tensors and nothing else."""
    check_regular(path)
    try:
        with path.open("rb") as file:
            is_zip = file.read(len(_ZIP)) == _ZIP  # many BERT files are of the older format
        (_check_zip if is_zip else _check_legacy)(path)
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)
    except Exception as error:  # torch raises many kinds for a corrupt or unsafe pickle
        raise UserError(
            f"{path} cannot be read as tensors alone ({reason(error)}): take model.safetensors"
        ) from error
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise UserError(
            f"{path} holds something else than a dictionary of tensors: take model.safetensors"
        )
    room = 2 * path.stat().st_size  # twice: the pretraining head shares the word embeddings
    for name, tensor in state.items():
        if not isinstance(name, str) or not _is_plain_tensor(tensor):
            raise UserError(
                f"{path}: {shown(name)} is no tensor of plain numbers: take model.safetensors"
            )
        room -= tensor.numel() * tensor.element_size()
        if room < 0:  # one number, seen as if it were many
            raise UserError(
                f"{path}: {shown(name)} has more numbers than the file: take model.safetensors"
            )
    return {
        name: StoredTensor(path, tuple(tensor.shape), str(tensor.dtype), tensor.detach)
        for name, tensor in state.items()
    }


def _check_zip(path: Path) -> None:
    """Raise ValueError unless all parts of a zip are stored uncompressed, as torch writes them."""
    with zipfile.ZipFile(path) as archive:
        for part in archive.infolist():
            if part.compress_type != zipfile.ZIP_STORED or part.file_size != part.compress_size:
                raise ValueError(f"{shown(part.filename)} in it is compressed")
            if part.filename.endswith(".pkl"):
                with archive.open(part) as file:
                    _check_pickle(file)


def _check_legacy(path: Path) -> None:
    """Raise ValueError where one of the five pickles that the older format begins with is odd."""
    with path.open("rb") as file:
        for _ in range(5):
            _check_pickle(file)


@dataclass
class _Made:
    """What an instruction of a pickle made: how deep it is, and of how many parts."""

    depth: int = 1
    parts: int = 1


def _check_pickle(file: IO[bytes]) -> None:
    """Raise ValueError for a pickle that would take time or memory without end; runs nothing.

    A tuple of one tuple twice, of which there is one twice, and so on, is a hundred bytes and has
    a billion parts, of which a dictionary looks at each. So the depth and the parts of what each
    instruction makes are followed. Of functions only those are let through that state dictionaries
    are made by: torch's own list also has some that fill memory.
    """
    stack: list[_Made] = []
    marks: list[int] = []
    memo: dict[object, _Made] = {}
    for code, argument, place in pickletools.genops(file):
        if (place or 0) > _LARGEST_PICKLE:
            raise ValueError(f"a pickle in it has more than {_LARGEST_PICKLE} bytes")
        if code.name == "GLOBAL" and argument not in _KNOWN_GLOBALS:
            raise ValueError(f"{shown(argument)} in it is nothing that tensors are made by")
        if code.name in _OTHER_GLOBALS:
            raise ValueError(f"{code.name} in it is nothing that torch writes")
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
            # What grows stays itself, wherever else it is referred to.
            grows = code.name in ("APPEND", "APPENDS", "SETITEM", "SETITEMS", "BUILD")
            made = taken.pop(0) if grows else _Made(0)
            made.depth = max(made.depth, 1 + max((inner.depth for inner in taken), default=0))
            made.parts += sum(inner.parts for inner in taken)
            if made.depth > _DEEPEST_PICKLE:
                raise ValueError("nested too deeply")
            if made.parts > _LARGEST_PICKLE:
                raise ValueError(f"it has more than {_LARGEST_PICKLE} parts")
            stack += [made] * len(code.stack_after)


def _is_plain_tensor(tensor: Tensor) -> bool:
    """Whether a tensor is rows of numbers in memory; a pickle may ask for many other kinds."""
    return (
        type(tensor) in (Tensor, torch.nn.Parameter)
        and tensor.layout is torch.strided
        and tensor.device.type == "cpu"
        and not tensor.is_quantized
        and not tensor.is_nested
    )
