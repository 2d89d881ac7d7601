"""Loading and saving of checkpoints in the format of transformers.

Loading is strict: a missing or unknown tensor, or one of another shape, is an error that names it.
``LoadReport`` lists how every tensor in the file was handled.
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
    path_exists,
    write_file,
    write_json,
)
from bertqa.model.bert import BertForQuestionAnswering
from bertqa.model.config import BertConfig, config_entries, load_config, parse_config
from bertqa.model.cpu_inference import is_prepacked
from bertqa.model.names import checkpoint_name, checkpoint_names, current_name
from bertqa.model.weights import FLOATS, StoredTensor, Tensors, open_safetensors, open_weights

# Parts of other BERT models, which are ignored and listed in the report.
_LEFT_OVER = ("bert.pooler.", "cls.", "classifier.", "bert.embeddings.token_type_ids")
_POSITION_IDS = "bert.embeddings.position_ids"
_INTEGERS = {"I64", "I32", "torch.int64", "torch.int32"}  # how position ids are stored

# A BERT's weights fit in half precision. A flipped bit can give 1e38, and then NaN scores.
_LARGEST_WEIGHT = torch.finfo(torch.float16).max


@dataclass(frozen=True)
class LoadReport:
    """How every tensor of a checkpoint was handled.

    Attributes:
        source: the file that was read.
        loaded: tensors loaded into the model, by their current names in checkpoints.
        renamed: old name in the file -> current name, of loaded and ignored tensors.
        left_over: ignored tensors, by their current names.
        initialized: parameters missing in the file, randomly initialized.
        unknown_config_keys: unknown keys of config.json.
    """

    source: Path
    loaded: tuple[str, ...]
    renamed: Mapping[str, str]
    left_over: tuple[str, ...]
    initialized: tuple[str, ...]
    unknown_config_keys: tuple[str, ...]

    def __str__(self) -> str:
        lines = [f"{self.source}: {len(self.loaded)} tensors loaded"]
        loaded = set(self.loaded)
        renamed = [(old, new) for old, new in self.renamed.items() if new in loaded]
        if renamed:
            example = " -> ".join(map(printable, renamed[0]))
            lines.append(f"  renamed: {len(renamed)} of these, such as {example}")
        for title, names in (
            ("left over", self.left_over),
            ("newly initialized", self.initialized),
            ("unknown config keys", self.unknown_config_keys),
        ):
            if names:
                lines.append(f"  {title}: {', '.join(map(printable, names))}")
        return "\n".join(lines)


def load_checkpoint(
    folder: Path, *, allow_bin: bool = False, require_head: bool = True
) -> tuple[BertForQuestionAnswering, LoadReport]:
    """Load a model from a checkpoint folder, in float32 on the CPU; also return a report.

    Args:
        folder: config.json with model.safetensors, shards and their index, or pytorch_model.bin.
        allow_bin: allow pytorch_model.bin, which is a pickle (only tensors are unpickled).
        require_head: reject a checkpoint without S and E. If False, missing S and E are initialized
            with torch's random number generator, for training.

    Raises:
        UserError: a file is missing, corrupt or of another model; the message names the file and
            the key.
    """
    _check_library(folder)
    config, unknown_keys = load_config(folder)
    source, tensors = open_weights(folder, allow_bin)
    return _build(config, tensors, source, unknown_keys, require_head)


# A file typical of another library -> what the folder contains, and how to convert it to a BERT.
_OTHER_KINDS = {
    "adapter_config.json": (
        "an adapter, such as LoRA's",
        "merge it into its base model with peft's merge_and_unload, and save that",
    ),
    "language_model_config.json": (
        "a FARM model",
        "convert it with FARM's convert_to_transformers, and save that",
    ),
    "modules.json": (
        "a sentence-transformers model",
        "pass the folder of its Transformer module",
    ),
    "tf_model.h5": (
        "TensorFlow weights",
        "load it in transformers 4 with from_tf=True, and save that",
    ),
    "bert_model.ckpt.index": (
        "a checkpoint of Google's BERT code",
        "convert it to PyTorch with transformers 4",
    ),
}


def _check_library(folder: Path) -> None:
    """Check that a folder is not one of another library.

    Raises:
        UserError: the folder has no BERT weights, but a file of another library.
    """
    if any(path_exists(folder / name) for name in (WEIGHTS_FILE, INDEX_FILE, BIN_FILE)):
        return
    for name, (kind, advice) in _OTHER_KINDS.items():
        if path_exists(folder / name):
            raise UserError(
                f"{folder}: must contain a BERT's {WEIGHTS_FILE}, got {kind} ({name}): {advice}"
            )


def convert_model(theirs: Any) -> BertForQuestionAnswering:
    """Copy transformers' BertForQuestionAnswering to float32 on the CPU.

    Raises:
        UserError: it is another model, or contains a part that BERT does not have.
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
    """Build the model of a config from these tensors; each must belong to it."""
    renamed = _rename(tensors, source)
    # A corrupt config may declare millions of layers, so check the names before building the model.
    initialized = _check_names(tensors, config.num_hidden_layers, source, require_head)
    model = _meta_model(config)
    expected = {checkpoint_name(name): p for name, p in model.named_parameters()}
    for name, parameter in expected.items():
        if name not in initialized:
            _check_dtype_and_shape(name, tensors[name], parameter.shape)
    # Loading a fine-tuned model must not advance torch's generator.
    head = _fresh_head(config) if initialized else {}
    state = {
        name: _read_weights(theirs, tensors[theirs]) if theirs not in initialized else head[theirs]
        for name, theirs in zip(dict(model.named_parameters()), expected, strict=True)
    }
    left_over = tuple(sorted(set(tensors) - set(expected)))
    if _POSITION_IDS in left_over:
        _check_position_ids(tensors[_POSITION_IDS], config.max_position_embeddings)
    model.load_state_dict(state, assign=True)
    loaded = tuple(sorted(set(expected) - set(initialized)))
    report = LoadReport(source, loaded, renamed, left_over, initialized, tuple(unknown_keys))
    return model.eval(), report


def _fresh_head(config: BertConfig) -> dict[str, Tensor]:
    """Initialize S and E from torch's generator, by name."""
    weight = torch.empty(2, config.hidden_size).normal_(std=config.initializer_range)
    return {"qa_outputs.weight": weight, "qa_outputs.bias": torch.zeros(2)}


class BadWeights(UserError):
    """The model has weights that the loader would reject; no file has been written.

    Attributes:
        fault: which weights, and what is wrong with them.
    """

    def __init__(self, path: Path, fault: str) -> None:
        super().__init__(f"{path}: not written, since {fault}: train with a lower --learning_rate")
        self.fault = fault


def check_saveable(model: BertForQuestionAnswering) -> None:
    """Check that loading the model's checkpoint would give the same model.

    A checkpoint has the weights of the modules of bert.py, by name. A wrapper, a subclass with the
    same weights, a parametrization or a replaced ``forward`` computes something else with them.
    Hooks are allowed, although they are not saved, and so is a subclass of the whole model.

    Raises:
        ValueError: the model is prepacked: its original weights no longer exist.
        UserError: a module or weight differs from bert.py; the message names the first.
    """
    if is_prepacked(model):
        raise ValueError("cannot save a prepacked model: load it without prepacking")
    for name, module in model.named_modules():
        if "forward" in vars(module):
            raise UserError(
                f"cannot save the model: the forward of {name or 'the model itself'} must be that "
                "of bert.py, got a replacement: remove it (del module.forward)"
            )
    expected, found = _structure(_meta_model(model.config)), _structure(model)
    for name in sorted(expected.keys() | found.keys()):
        if expected.get(name) != found.get(name):
            parts = expected.get(name, "nothing"), found.get(name, "nothing")
            should, got = (getattr(part, "__name__", part) for part in parts)
            raise UserError(
                f"cannot save the model: {name} must be {should}, got {got}: merge its weights "
                "into the modules of bert.py"
            )


def _structure(model: nn.Module) -> dict[str, object]:
    """Return the type of each module of a model, and the shape of each parameter."""
    modules = dict(model.named_modules(remove_duplicate=False))
    structure: dict[str, object] = {name: type(module) for name, module in modules.items() if name}
    return structure | {name: tuple(p.shape) for name, p in model.named_parameters()}


def save_model(
    folder: Path, model: BertForQuestionAnswering, dtype: torch.dtype = torch.float32
) -> None:
    """Write config.json and model.safetensors, which transformers can load.

    Each file is replaced atomically; the weights are written last.

    Raises:
        BadWeights: the loader would reject a weight.
        UserError: the folder cannot be written.
        ValueError, UserError: see ``check_saveable``.
    """
    check_saveable(model)
    tensors = {}
    for name, parameter in model.named_parameters():
        theirs, values = checkpoint_name(name), parameter.detach()
        if fault := _find_fault(values):
            raise BadWeights(folder / WEIGHTS_FILE, f"{theirs} {fault}")
        tensors[theirs] = values.to("cpu", dtype).contiguous()
    write_json(folder / CONFIG_FILE, config_entries(model.config))
    write_tensors(folder / WEIGHTS_FILE, tensors)


def write_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    """Write a safetensors file atomically."""

    def write(file: Path) -> None:
        try:
            save_file(tensors, file, metadata={"format": "pt"})
        except SafetensorError as error:  # how safetensors reports a full disk
            raise OSError(0, str(error)) from error

    write_file(path, write)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read all tensors of a safetensors file.

    Raises:
        UserError: the file is missing or corrupt.
    """
    return {name: tensor.read() for name, tensor in open_safetensors(path).items()}


# --- names and shapes ----------------------------------------------------------------------------


def _meta_model(config: BertConfig) -> BertForQuestionAnswering:
    """Build the model of a config on the meta device."""
    with torch.device("meta"), _SkipInit():
        return BertForQuestionAnswering(config)


class _SkipInit(TorchFunctionMode):
    """Context in which ``normal_`` and similar functions do nothing.

    On the meta device they have no effect, but take seconds: torch imports its compiler to infer
    the shape.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if getattr(func, "__name__", "") in ("normal_", "uniform_", "zero_", "fill_"):
            return args[0] if args else kwargs["tensor"]
        return func(*args, **(kwargs or {}))


def _rename(tensors: Tensors, source: Path) -> dict[str, str]:
    """Rename tensors to their current names, in place; return old name -> new name."""
    renamed = {name: new for name in tensors if (new := current_name(name)) != name}
    for old, new in renamed.items():
        if new in tensors:
            raise UserError(
                f"{source}: tensor names must be unique, got {shown(new)} also as {shown(old)}: "
                "remove one of them"
            )
        tensors[new] = tensors.pop(old)
    return renamed


def _check_names(
    tensors: Tensors, num_layers: int, source: Path, require_head: bool
) -> tuple[str, ...]:
    """Check that names and tensors match one to one; return the names to initialize."""
    # Read only as many names as the file may contain: the config may declare millions of layers.
    expected = set(islice(checkpoint_names(num_layers), len(tensors) + 1000))
    for name in sorted(set(tensors) - expected):
        if not name.startswith((*_LEFT_OVER, _POSITION_IDS)):
            raise UserError(
                f"{source}: must contain only tensors of a BERT, got {shown(name)}: use its own "
                f"{CONFIG_FILE}, or choose another model"
            )
    missing = sorted(expected - set(tensors))
    head = [name for name in missing if name.startswith("qa_outputs.")]
    for name in sorted(set(missing) - set(head)):
        raise UserError(
            f"{source}: must contain {name}: use its own {CONFIG_FILE}, or copy the file again if "
            "it is incomplete"
        )
    if head and (require_head or len(head) == 1):
        raise UserError(
            f"{source}: must contain {head[0]} to answer questions: train it first (train.py "
            "--model FOLDER), or choose a checkpoint fine-tuned on SQuAD"
        )
    return tuple(head)


def _check_dtype_and_shape(name: str, stored: StoredTensor, shape: torch.Size) -> None:
    """Check dtype and shape of a tensor before it is read."""
    if stored.dtype not in FLOATS:
        raise UserError(
            f"{stored.file}: {name} must be floating point, got {stored.dtype}: use the checkpoint "
            "that is not quantized"
        )
    if stored.shape != tuple(shape):
        raise UserError(
            f"{stored.file}: {name} must have shape {tuple(shape)} according to {CONFIG_FILE}, got "
            f"{shown(stored.shape)}: use both files of the same checkpoint"
        )


def _read_weights(name: str, stored: StoredTensor) -> Tensor:
    """Read a tensor in float32 and check its values."""
    try:
        tensor = stored.read().float()
    except (MemoryError, RuntimeError) as error:  # how torch reports that memory ran out
        raise UserError(
            f"{stored.file}: {name} must fit in memory ({reason(error)}): use a smaller model"
        ) from error
    if fault := _find_fault(tensor):
        raise UserError(f"{stored.file}: {name} {fault}: copy the file again")
    return tensor


def _find_fault(tensor: Tensor) -> str:
    """Describe the invalid values of a parameter; "" if there are none."""
    # One pass over the values. If one of them is NaN, both low and high are NaN.
    low, high = torch.aminmax(tensor)
    if low >= -_LARGEST_WEIGHT and high <= _LARGEST_WEIGHT:
        return ""
    return f"must be finite and in the range of float16, got values from {low:.3g} to {high:.3g}"


def _check_position_ids(stored: StoredTensor, positions: int) -> None:
    """Check the position ids of old checkpoints: always 0, 1, 2, ..."""
    valid = math.prod(stored.shape) == positions and stored.dtype in FLOATS | _INTEGERS
    if not valid or not torch.equal(stored.read().flatten().long(), torch.arange(positions)):
        raise UserError(
            f"{stored.file}: {_POSITION_IDS} must be 0, 1, 2, ... up to the {positions} positions "
            f"of {CONFIG_FILE}: choose another checkpoint"
        )
