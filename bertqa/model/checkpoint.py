"""A checkpoint folder <-> a model, in the format that all BERT files in the world have.

Loading is strict: a tensor that is missing, unknown or of another shape is an error that names it,
and the report says what became of every tensor in the file.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from bertqa.errors import UserError, printable, reason, shown
from bertqa.files import (
    BIN_FILE,
    CONFIG_FILE,
    INDEX_FILE,
    WEIGHTS_FILE,
    is_there,
    write_file,
    write_json,
)
from bertqa.model.bert import BertForQuestionAnswering
from bertqa.model.config import BertConfig, config_entries, load_config, parse_config
from bertqa.model.cpu_inference import is_prepacked
from bertqa.model.names import checkpoint_name, checkpoint_names, todays_name
from bertqa.model.weights import FLOATS, StoredTensor, Tensors, open_safetensors, open_weights

# Parts of other BERT models: this one has no use for them, and the report names them.
_LEFT_OVER = ("bert.pooler.", "cls.", "classifier.", "bert.embeddings.token_type_ids")
_POSITION_IDS = "bert.embeddings.position_ids"
_INTEGERS = {"I64", "I32", "torch.int64", "torch.int32"}  # how position ids are stored

# No weight of a BERT is beyond what half precision holds. A flipped bit makes one of 1e38, with
# which the scores become NaN.
_LARGEST_WEIGHT = torch.finfo(torch.float16).max


@dataclass(frozen=True)
class LoadReport:
    """What became of every tensor of a checkpoint.

    Attributes:
        source: the file that was read.
        loaded: tensors that went into the model, by today's names in checkpoints.
        renamed: old spelling in the file -> today's spelling.
        left_over: those that this model does not have, by today's names.
        initialised: parameters of the model that the file lacks, drawn afresh.
        unknown_config_keys: keys of config.json that this package does not know.
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
            such = f"{printable(old)} -> {printable(new)}"
            lines.append(f"  renamed: {len(self.renamed)}, such as {such}")
        for title, names in (
            ("left over", self.left_over),
            ("newly initialised", self.initialised),
            ("config keys not understood", self.unknown_config_keys),
        ):
            if names:
                lines.append(f"  {title}: {', '.join(map(printable, names))}")
        return "\n".join(lines)


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
    _refuse_other_kinds(folder)
    config, unknown_keys = load_config(folder)
    source, tensors = open_weights(folder, allow_bin)
    return _build(config, tensors, source, unknown_keys, require_head)


# A file by which folders of other libraries are known, what they hold, and what makes a BERT of it.
_OTHER_KINDS = {
    "adapter_config.json": (
        "an adapter, such as LoRA's",
        "merge it into its base model with peft's merge_and_unload, and save that",
    ),
    "language_model_config.json": (
        "a model of FARM",
        "convert it with FARM's convert_to_transformers, and save that",
    ),
    "modules.json": (
        "a model of sentence-transformers",
        "name the folder of its Transformer module within it",
    ),
    "tf_model.h5": (
        "weights of TensorFlow",
        "load it in transformers 4 with from_tf=True, and save that",
    ),
    "bert_model.ckpt.index": (
        "a checkpoint of Google's BERT",
        "convert it to PyTorch with transformers 4",
    ),
}


def _refuse_other_kinds(folder: Path) -> None:
    """Name the library that a folder without BERT's weights comes from.

    Raises:
        UserError: it comes from one.
    """
    if any(is_there(folder / name) for name in (WEIGHTS_FILE, INDEX_FILE, BIN_FILE)):
        return
    for name, (kind, advice) in _OTHER_KINDS.items():
        if is_there(folder / name):
            raise UserError(
                f"{folder}: must hold {WEIGHTS_FILE} of a BERT, got {kind} ({name}): {advice}"
            )


def convert_model(theirs: Any) -> BertForQuestionAnswering:
    """Copy transformers' BertForQuestionAnswering, in float32 on the CPU; it stays as it was.

    Raises:
        UserError: it is another model, or a part of it is not BERT's.
    """
    source = f"the model ({type(theirs).__name__})"
    try:
        entries, state = dict(theirs.config.to_dict()), dict(theirs.state_dict())
    except (AttributeError, TypeError, ValueError) as error:
        raise UserError(
            f"{source}: must be transformers' BertForQuestionAnswering in PyTorch: pass one, or "
            "its folder or name"
        ) from error
    config, unknown_keys = parse_config(entries, source)
    tensors = {
        name: StoredTensor(Path(source), tuple(t.shape), str(t.dtype), t.detach().cpu().clone)
        for name, t in state.items()
    }
    return _build(config, tensors, Path(source), unknown_keys, require_head=True)[0]


def _build(
    config: BertConfig,
    tensors: Tensors,
    source: Path,
    unknown_keys: Sequence[str],
    require_head: bool,
) -> tuple[BertForQuestionAnswering, LoadReport]:
    """The model of a config with these tensors; each must belong to it."""
    renamed = _rename(tensors, source)
    # The config may ask for millions of layers; the model is built once the file has their names.
    initialised = _check_names(tensors, config.num_hidden_layers, source, require_head)
    model = _shapes_of(config)  # the numbers come from the file
    wanted = {checkpoint_name(name): p for name, p in model.named_parameters()}
    for name, parameter in wanted.items():
        if name not in initialised:
            _check_form(name, tensors[name], parameter.shape)
    fresh = torch.empty(2, config.hidden_size).normal_(std=config.initializer_range)
    head = {"qa_outputs.weight": fresh, "qa_outputs.bias": torch.zeros(2)}
    state = {
        name: _take(theirs, tensors[theirs]) if theirs not in initialised else head[theirs]
        for name, theirs in zip(dict(model.named_parameters()), wanted, strict=True)
    }
    left_over = tuple(sorted(set(tensors) - set(wanted)))
    if _POSITION_IDS in left_over:
        _check_position_ids(tensors[_POSITION_IDS], config.max_position_embeddings)
    model.load_state_dict(state, assign=True)
    loaded = tuple(sorted(set(wanted) - set(initialised)))
    report = LoadReport(source, loaded, renamed, left_over, initialised, tuple(unknown_keys))
    return model.eval(), report


class BadWeights(UserError):
    """A model holds weights that the loader would refuse; nothing of it has been written.

    Attributes:
        fault: which weights, and what is wrong with them.
    """

    def __init__(self, path: Path, fault: str) -> None:
        super().__init__(
            f"{path} is not written, since {fault}: train with a lower --learning_rate"
        )
        self.fault = fault


def check_saveable(model: BertForQuestionAnswering) -> None:
    """Refuse a model that is more, or other, than what its checkpoint would load as.

    A checkpoint holds the weights of the modules of bert.py, by their names. A wrapper, a subclass
    with the same weights, a parametrisation or a replaced ``forward`` computes something else with
    them. Hooks are allowed, though a checkpoint does not hold them, and so is a subclass of the
    whole model.

    Raises:
        ValueError: the model is prepacked: its weights no longer exist as such.
        UserError: the first module or weight that is not the one of bert.py.
    """
    if is_prepacked(model):
        raise ValueError("a prepacked model cannot be saved: load it without prepacking")
    for name, module in model.named_modules():
        if "forward" in vars(module):
            raise UserError(
                f"the model cannot be saved: the forward of {name or 'the model itself'} was "
                "replaced, which a checkpoint cannot hold: remove the replacement (del "
                "module.forward)"
            )
    wanted, found = _anatomy(_shapes_of(model.config)), _anatomy(model)
    for name in sorted(wanted.keys() | found.keys()):
        if wanted.get(name) != found.get(name):
            parts = wanted.get(name, "nothing"), found.get(name, "nothing")
            should, got = (getattr(part, "__name__", part) for part in parts)
            raise UserError(
                f"the model cannot be saved: {name} must be {should} by its config, got {got}, "
                "which a checkpoint cannot hold: merge its weights into the modules of bert.py"
            )


def _anatomy(model: nn.Module) -> dict[str, object]:
    """The type of each module of a model, and the shape of each parameter."""
    modules = dict(model.named_modules(remove_duplicate=False))
    anatomy: dict[str, object] = {name: type(module) for name, module in modules.items() if name}
    return anatomy | {name: tuple(p.shape) for name, p in model.named_parameters()}


def save_model(
    folder: Path, model: BertForQuestionAnswering, dtype: torch.dtype = torch.float32
) -> None:
    """Write config.json and model.safetensors so that transformers opens the folder.

    Each file is replaced whole; the weights come last.

    Raises:
        BadWeights: a weight is one that would not be loaded again.
        UserError: the folder cannot be written.
        ValueError, UserError: see ``check_saveable``.
    """
    check_saveable(model)
    tensors = {}
    for name, parameter in model.named_parameters():
        theirs, values = checkpoint_name(name), parameter.detach()
        if fault := _no_weights(values):
            raise BadWeights(folder / WEIGHTS_FILE, f"{theirs} {fault}")
        tensors[theirs] = values.to("cpu", dtype).contiguous()
    write_json(folder / CONFIG_FILE, config_entries(model.config))
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
    return {name: tensor.read() for name, tensor in open_safetensors(path).items()}


# --- names and shapes ----------------------------------------------------------------------------


def _shapes_of(config: BertConfig) -> BertForQuestionAnswering:
    """The model of a config without numbers."""
    with torch.device("meta"), _NothingDrawn():
        return BertForQuestionAnswering(config)


class _NothingDrawn(TorchFunctionMode):
    """Lets ``normal_`` and its like leave a tensor as it is.

    Drawing on the meta device has no effect and costs seconds: torch imports its compiler to
    work out the shape.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if getattr(func, "__name__", "") in ("normal_", "uniform_", "zero_", "fill_"):
            return args[0] if args else kwargs["tensor"]
        return func(*args, **(kwargs or {}))


def _rename(tensors: Tensors, source: Path) -> dict[str, str]:
    """Give every tensor today's name, in place; return old name -> new name."""
    renamed = {name: new for name in tensors if (new := todays_name(name)) != name}
    for old, new in renamed.items():
        if new in tensors:
            raise UserError(
                f"{source} holds {shown(new)} twice, also as {shown(old)}: remove one of them"
            )
        tensors[new] = tensors.pop(old)
    return renamed


def _check_names(
    tensors: Tensors, num_layers: int, source: Path, require_head: bool
) -> tuple[str, ...]:
    """Check that names and tensors match one to one; return the names to draw afresh."""
    # As many as could be there, and some more: the config may ask for millions of layers.
    wanted = set(islice(checkpoint_names(num_layers), len(tensors) + 1000))
    for name in sorted(set(tensors) - wanted):
        if not name.startswith((*_LEFT_OVER, _POSITION_IDS)):
            raise UserError(
                f"{source} holds {shown(name)}, which is no part of this BERT: take the "
                f"{CONFIG_FILE} that belongs to it, or another model if it is of another kind"
            )
    missing = sorted(wanted - set(tensors))
    head = [name for name in missing if name.startswith("qa_outputs.")]
    for name in sorted(set(missing) - set(head)):
        raise UserError(
            f"{source} lacks {name}: take the {CONFIG_FILE} that belongs to it, or copy the file "
            "again if it is not whole"
        )
    if head and (require_head or len(head) == 1):
        raise UserError(
            f"{source} lacks {head[0]}, so it cannot answer questions yet: train it first "
            "(train.py --model FOLDER), or take a checkpoint fine-tuned on SQuAD"
        )
    return tuple(head)


def _check_form(name: str, stored: StoredTensor, shape: torch.Size) -> None:
    """Check dtype and shape of a tensor before it is read."""
    if stored.dtype not in FLOATS:
        raise UserError(
            f"{stored.file}: {name} is stored as {stored.dtype}, but weights are floating-point "
            "numbers: take the checkpoint that was not quantised"
        )
    if stored.shape != tuple(shape):
        raise UserError(
            f"{stored.file}: {name} has shape {shown(stored.shape)}, but {CONFIG_FILE} asks for "
            f"{tuple(shape)}: take both from one checkpoint"
        )


def _take(name: str, stored: StoredTensor) -> Tensor:
    """One tensor in float32, with numbers in it."""
    try:
        tensor = stored.read().float()
    except (MemoryError, RuntimeError) as error:  # how torch reports that memory ran out
        raise UserError(
            f"{stored.file}: {name} does not fit in memory ({reason(error)}): take a smaller model"
        ) from error
    if fault := _no_weights(tensor):
        raise UserError(f"{stored.file}: {name} {fault}: it is unusable, copy it again")
    return tensor


def _no_weights(tensor: Tensor) -> str:
    """What is wrong with the numbers of a parameter; "" for nothing."""
    # One pass over the numbers; NaN is both the lowest and the highest of all.
    low, high = torch.aminmax(tensor)
    if low >= -_LARGEST_WEIGHT and high <= _LARGEST_WEIGHT:
        return ""
    return (
        f"holds numbers that are not finite, or beyond any weight's (from {low:.3g} to {high:.3g})"
    )


def _check_position_ids(stored: StoredTensor, positions: int) -> None:
    """Old checkpoints store 0, 1, 2, ...; anything else would be another model."""
    sound = math.prod(stored.shape) == positions and stored.dtype in FLOATS | _INTEGERS
    if not sound or not torch.equal(stored.read().flatten().long(), torch.arange(positions)):
        raise UserError(
            f"{stored.file}: {_POSITION_IDS} is not 0, 1, 2, ... up to the {positions} positions "
            f"of {CONFIG_FILE}: take another checkpoint"
        )
