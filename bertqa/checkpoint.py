"""A checkpoint folder <-> a model, in the format that all BERT files in the world have.

The table below is the Rosetta stone between the names of model.py and those of the files; it is
used both ways. Loading is strict: a tensor that is missing, unknown or of another shape is an
error that names it, and the report says what became of every tensor in the file.
"""

import math
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.overrides import TorchFunctionMode

from bertqa.config import config_entries, load_config
from bertqa.errors import UserError
from bertqa.files import read_json_object, write_file, write_json
from bertqa.folders import BIN_FILE, INDEX_FILE, WEIGHTS_FILE
from bertqa.model import BertForQuestionAnswering
from bertqa.packed import is_packed

# Ours and theirs, module by module; "{}" is the number of the layer.
NAMES = {
    "embeddings.word": "bert.embeddings.word_embeddings",
    "embeddings.position": "bert.embeddings.position_embeddings",
    "embeddings.token_type": "bert.embeddings.token_type_embeddings",
    "embeddings.norm": "bert.embeddings.LayerNorm",
    "layers.{}.attention.query": "bert.encoder.layer.{}.attention.self.query",
    "layers.{}.attention.key": "bert.encoder.layer.{}.attention.self.key",
    "layers.{}.attention.value": "bert.encoder.layer.{}.attention.self.value",
    "layers.{}.attention.output": "bert.encoder.layer.{}.attention.output.dense",
    "layers.{}.attention_norm": "bert.encoder.layer.{}.attention.output.LayerNorm",
    "layers.{}.feed_forward.up": "bert.encoder.layer.{}.intermediate.dense",
    "layers.{}.feed_forward.down": "bert.encoder.layer.{}.output.dense",
    "layers.{}.feed_forward_norm": "bert.encoder.layer.{}.output.LayerNorm",
    "head": "qa_outputs",  # row 0 is S, row 1 is E
}

# Parts of other BERT models: this one has no use for them, and the report names them.
_LEFT_OVER = ("bert.pooler.", "cls.", "classifier.", "bert.embeddings.token_type_ids")
_POSITION_IDS = "bert.embeddings.position_ids"


@dataclass(frozen=True)
class LoadReport:
    """What became of every tensor of a checkpoint.

    Attributes:
        source: the file that was read.
        loaded: tensors that went into the model, by today's names in checkpoints.
        renamed: old spelling in the file -> today's spelling.
        left_over: those that this model has no place for, by today's names.
        initialised: parameters of the model that the file lacks, drawn afresh.
        unknown_config_keys: keys of config.json that nobody here understands.
    """

    source: Path
    loaded: tuple[str, ...]
    renamed: Mapping[str, str]
    left_over: tuple[str, ...]
    initialised: tuple[str, ...]
    unknown_config_keys: tuple[str, ...]

    def __str__(self) -> str:
        lines = [f"{self.source}: {len(self.loaded)} tensors loaded"]
        if self.renamed:
            old, new = next(iter(self.renamed.items()))
            lines.append(f"  renamed: {len(self.renamed)}, such as {old} -> {new}")
        for title, names in (
            ("left over", self.left_over),
            ("newly initialised", self.initialised),
            ("config keys not understood", self.unknown_config_keys),
        ):
            if names:
                lines.append(f"  {title}: {', '.join(names)}")
        return "\n".join(lines)


def checkpoint_name(name: str) -> str:
    """The name in a checkpoint file of a parameter of ``BertForQuestionAnswering``."""
    module, _, leaf = name.rpartition(".")
    parts = module.split(".")
    if parts[0] == "layers":
        return f"{NAMES['.'.join(['layers', '{}', *parts[2:]])].format(parts[1])}.{leaf}"
    return f"{NAMES[module]}.{leaf}"


def load_checkpoint(
    folder: Path, *, allow_bin: bool = False, require_head: bool = True
) -> tuple[BertForQuestionAnswering, LoadReport]:
    """The model in a checkpoint folder, in float32 on the CPU, and what was loaded.

    Args:
        folder: config.json beside model.safetensors, or shards with their index, or
            pytorch_model.bin.
        allow_bin: read pytorch_model.bin, which is a pickle (only tensors are unpickled).
        require_head: refuse a checkpoint without S and E. Without it they are drawn afresh, from
            torch's random numbers, for training.

    Raises:
        UserError: a file is missing, corrupt or foreign; the sentence names the file and the key.
    """
    config, unknown_keys = load_config(folder)
    source, tensors = _read_tensors(folder, allow_bin)
    renamed = _rename(tensors, source)
    with torch.device("meta"), _NothingDrawn():  # shapes only: the numbers come from the file
        model = BertForQuestionAnswering(config)
    wanted = {checkpoint_name(name): p for name, p in model.named_parameters()}
    initialised = _check_names(tensors, wanted, source, require_head)
    fresh = torch.empty(2, config.hidden_size).normal_(std=config.initializer_range)
    head = {"qa_outputs.weight": fresh, "qa_outputs.bias": torch.zeros(2)}
    state = {
        name: _take(tensors, checkpoint_name(name), parameter.shape, source)
        if checkpoint_name(name) not in initialised
        else head[checkpoint_name(name)]
        for name, parameter in model.named_parameters()
    }
    left_over = tuple(sorted(set(tensors) - set(wanted)))
    if _POSITION_IDS in left_over:
        _check_position_ids(tensors[_POSITION_IDS](), source)
    model.load_state_dict(state, assign=True)
    loaded = tuple(sorted(set(wanted) - set(initialised)))
    report = LoadReport(source, loaded, renamed, left_over, initialised, tuple(unknown_keys))
    return model.eval(), report


def save_model(
    folder: Path, model: BertForQuestionAnswering, dtype: torch.dtype = torch.float32
) -> None:
    """Write config.json and model.safetensors so that transformers opens the folder.

    Each file is replaced whole; the weights come last.

    Raises:
        UserError: the folder cannot be written.
        ValueError: the model is packed: its weights are no longer there as such.
    """
    if is_packed(model):
        raise ValueError("a packed model cannot be saved: load it without packing")
    tensors = {
        checkpoint_name(name): parameter.detach().to("cpu", dtype).contiguous()
        for name, parameter in model.named_parameters()
    }
    write_json(folder / "config.json", config_entries(model.config))
    write_tensors(folder / WEIGHTS_FILE, tensors)


def write_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    """Write a safetensors file, whole or not at all."""

    def write(file: Path) -> None:
        try:
            save_file(tensors, file, metadata={"format": "pt"})
        except SafetensorError as error:  # how safetensors reports a full disk
            raise OSError(0, str(error)) from error

    write_file(path, write)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a safetensors file.

    Raises:
        UserError: it is missing or corrupt.
    """
    return {name: load() for name, load in _open_safetensors(path).items()}


# --- reading the files ---------------------------------------------------------------------------

_Tensors = dict[str, Callable[[], Tensor]]  # name -> how to get it


def _read_tensors(folder: Path, allow_bin: bool) -> tuple[Path, _Tensors]:
    """The file with the weights of a folder, and its tensors."""
    if (folder / WEIGHTS_FILE).exists():
        return folder / WEIGHTS_FILE, _open_safetensors(folder / WEIGHTS_FILE)
    if (folder / INDEX_FILE).exists():
        return folder / INDEX_FILE, _open_shards(folder / INDEX_FILE)
    if (folder / BIN_FILE).exists():
        if allow_bin:
            return folder / BIN_FILE, _open_bin(folder / BIN_FILE)
        raise UserError(
            f"{folder / BIN_FILE} is a pickle, which may hold more than weights: pass "
            "--allow_bin if you trust where it comes from"
        )
    raise UserError(f"{folder} holds no weights: put {WEIGHTS_FILE} there")


def _open_safetensors(path: Path) -> _Tensors:
    """The tensors of one safetensors file, read when asked for."""
    try:
        file = safe_open(path, framework="pt")
    except FileNotFoundError as error:
        raise UserError(f"{path} is missing: copy the whole checkpoint folder again") from error
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} is corrupt ({error}): copy it again") from error
    return {name: partial(file.get_tensor, name) for name in file.keys()}  # noqa: SIM118


def _open_shards(index: Path) -> _Tensors:
    """The tensors of the shards that an index names, each from the shard that it names for it."""
    weight_map = read_json_object(index).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(v, str) for v in weight_map.values()):
        raise UserError(f"{index} has no weight_map from tensors to files: copy it again")
    tensors: dict[tuple[str, str], Callable[[], Tensor]] = {}
    for shard in sorted(set(weight_map.values())):
        plain = Path(shard).name == shard and shard.isprintable() and "\\" not in shard
        if not plain or not shard.endswith(".safetensors"):
            raise UserError(f"{index} names the shard {shard!r}, which is no plain file name")
        held = _open_safetensors(index.parent / shard)
        tensors.update({(name, shard): load for name, load in held.items()})
    for name, shard in sorted(set(weight_map.items()) ^ set(tensors)):
        verb = "lacks" if weight_map.get(name) == shard else "holds"
        raise UserError(f"{index} does not fit: {shard} {verb} {name!r}: copy the folder again")
    return {name: load for (name, _), load in tensors.items()}


def _open_bin(path: Path) -> _Tensors:
    """The tensors of a pytorch_model.bin; the unpickler builds tensors and nothing else."""
    try:
        mapped = zipfile.is_zipfile(path)  # torch's older format, of many BERT files, is no zip
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except Exception as error:  # torch raises many kinds for a corrupt or unsafe pickle
        reason = " ".join(str(error).split()).split(". ")[0] or type(error).__name__
        raise UserError(f"{path} cannot be read as tensors alone ({reason})") from error
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise UserError(f"{path} holds something else than a dictionary of tensors")
    return {str(name): tensor.detach for name, tensor in state.items()}


# --- names and shapes ----------------------------------------------------------------------------


def _today(name: str) -> str:
    """Today's spelling of a name: TensorFlow's gamma and beta, and names without ``bert.``."""
    if name.startswith(("embeddings.", "encoder.", "pooler.")):
        name = f"bert.{name}"
    name = name.replace("LayerNorm.gamma", "LayerNorm.weight")
    return name.replace("LayerNorm.beta", "LayerNorm.bias")


class _NothingDrawn(TorchFunctionMode):
    """Lets ``normal_`` and its like leave a tensor as it is.

    Drawing on the meta device gives no number and costs seconds: torch imports its compiler to
    work out the shape.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if getattr(func, "__name__", "") in ("normal_", "uniform_", "zero_", "fill_"):
            return args[0] if args else kwargs["tensor"]
        return func(*args, **(kwargs or {}))


def _rename(tensors: _Tensors, source: Path) -> dict[str, str]:
    """Give every tensor today's name, in place; what was renamed."""
    renamed = {name: _today(name) for name in tensors if _today(name) != name}
    for old, new in renamed.items():
        if new in tensors:
            raise UserError(f"{source} holds {new!r} twice, also as {old!r}: remove one of them")
        tensors[new] = tensors.pop(old)
    return renamed


def _check_names(
    tensors: _Tensors, wanted: Mapping[str, Any], source: Path, require_head: bool
) -> tuple[str, ...]:
    """Every name has its place and every place its tensor; the names to draw afresh."""
    for name in sorted(set(tensors) - set(wanted)):
        if not name.startswith((*_LEFT_OVER, _POSITION_IDS)):
            raise UserError(
                f"{source} holds {name!r}, which is no part of this BERT: the config and the "
                "weights do not belong together, or it is another kind of model"
            )
    missing = sorted(set(wanted) - set(tensors))
    head = [name for name in missing if name.startswith("qa_outputs.")]
    for name in sorted(set(missing) - set(head)):
        raise UserError(
            f"{source} lacks {name}: the config and the weights do not belong together, or the "
            "file is not whole"
        )
    if head and (require_head or len(head) == 1):
        raise UserError(
            f"{source} lacks {head[0]}, so it cannot answer questions yet: train it first "
            "(train.py --model FOLDER), or take a checkpoint fine-tuned on SQuAD"
        )
    return tuple(head)


def _take(tensors: _Tensors, name: str, shape: torch.Size, source: Path) -> Tensor:
    """One tensor in float32, of the right shape, with numbers in it."""
    try:
        tensor = tensors[name]()
    except (SafetensorError, OSError) as error:
        raise UserError(f"{source}: {name} is corrupt ({error}): copy it again") from error
    if not tensor.is_floating_point():
        raise UserError(
            f"{source}: {name} is stored as {tensor.dtype}, but weights are floating-point "
            "numbers: take the checkpoint that was not quantised"
        )
    if tensor.shape != shape:
        raise UserError(
            f"{source}: {name} has shape {tuple(tensor.shape)}, but config.json asks for "
            f"{tuple(shape)}: the two do not belong together"
        )
    tensor = tensor.float()
    # The sum is finite exactly where all its terms are, up to overflow, which is a fault as well.
    if not math.isfinite(tensor.sum().item()):
        raise UserError(f"{source}: {name} holds numbers that are not finite: it is unusable")
    return tensor


def _check_position_ids(tensor: Tensor, source: Path) -> None:
    """Old checkpoints store 0, 1, 2, ...; anything else would be another model."""
    if not torch.equal(tensor.flatten().long(), torch.arange(tensor.numel())):
        raise UserError(f"{source}: {_POSITION_IDS} is not 0, 1, 2, ...: take another checkpoint")
