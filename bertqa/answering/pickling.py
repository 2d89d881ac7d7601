"""Pickling of a question answerer as a few hundred bytes, without its weights.

Weights that oneDNN has prepacked cannot be copied, and workers on other machines have the model's
folder anyway. So an answerer is pickled as a recipe: the arguments of ``from_pretrained``, its
settings, and a digest of the model's files. The recipe is one string, so that two answerers of the
same model have the same fingerprint for ``datasets.Dataset.map``.
"""

import json
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from bertqa.data.tokenization import BertTokenizer
from bertqa.errors import UserError
from bertqa.files import (
    BIN_FILE,
    CONFIG_FILE,
    DECODING_FILE,
    OPTIONAL_FILES,
    TOKENIZER_FILES,
    os_errors_as_user_errors,
)
from bertqa.model.bert import BertForQuestionAnswering
from bertqa.model.kernels import INTEGERS
from bertqa.runtime import Runtime
from bertqa.settings import DecodingSettings, WindowSettings

AnyPickled = TypeVar("AnyPickled", bound="PickledAsRecipe")


@dataclass(frozen=True)
class Recipe:
    """The arguments that load an equal answerer.

    Attributes:
        name, revision, allow_bin, device, precision: arguments of ``from_pretrained``; for a
            folder, ``name`` is its absolute path.
        windows, decoding: settings of the answerer.
        digest: of the model's files, see ``CheckpointFiles.digest``.
    """

    name: str
    revision: str | None
    allow_bin: bool
    device: str
    precision: str
    windows: WindowSettings
    decoding: DecodingSettings
    digest: str

    def to_json(self) -> str:
        """Return the recipe as a string, equal for equal recipes."""
        return json.dumps(asdict(self), separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> "Recipe":
        """Make a recipe from the string of ``to_json``."""
        entries = json.loads(text)
        windows = WindowSettings(**entries.pop("windows"))
        decoding = DecodingSettings(**entries.pop("decoding"))
        return cls(windows=windows, decoding=decoding, **entries)

    def loaded_as(self, kind: type[AnyPickled]) -> AnyPickled:
        """Load the answerer, without checking the digest."""
        arguments = {key: value for key, value in vars(self).items() if key != "digest"}
        return kind.from_pretrained(arguments.pop("name"), **arguments)


def absolute_name(name: str | Path, folder: Path) -> str:
    """Return the name of a model, or the absolute path of its folder if it was named by a path.

    A relative path would fail in processes with another working directory.
    """
    return str(folder.absolute() if Path(name) == folder else name)


class CheckpointFiles:
    """The files of a checkpoint folder, to detect later changes.

    Args:
        folder: the checkpoint folder.

    Raises:
        UserError: a file cannot be read.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._stamps = self._stamped()
        self._settings = self.digest(weights=False)

    def _paths(self) -> list[Path]:
        names = (CONFIG_FILE, *TOKENIZER_FILES, *OPTIONAL_FILES, BIN_FILE)
        weights = (
            *self.folder.glob("*.safetensors"),
            *self.folder.glob("*.safetensors.index.json"),
        )
        named = (self.folder / name for name in names)
        return sorted({*weights, *(path for path in named if path.is_file())})

    def _stamped(self) -> list[tuple[str, int, int, int]]:
        with os_errors_as_user_errors(self.folder, "read"):
            stats = [(path.name, path.stat()) for path in self._paths()]
        return [(name, stat.st_size, stat.st_mtime_ns, stat.st_ino) for name, stat in stats]

    def unchanged(self) -> bool:
        """Return whether no file has been written, added or removed since."""
        return self._stamped() == self._stamps

    def may_be_same(self) -> bool:
        """Return whether the contents of all files but the weights are unchanged."""
        return self.digest(weights=False) == self._settings

    def digest(self, *, weights: bool = True, decoding: bool = True) -> str:
        """Compute the SHA-256 of the names and contents, as 64 hexadecimal digits.

        Args:
            weights, decoding: include the weights and decoding.json.
        """
        total = sha256()
        for path in self._paths():
            if not weights and path.suffix in (".safetensors", ".bin"):
                continue
            if not decoding and path.name == DECODING_FILE:
                continue
            with os_errors_as_user_errors(path, "read"), path.open("rb") as file:
                part = sha256()
                while block := file.read(1 << 20):
                    part.update(block)
            total.update(f"{path.name} {part.hexdigest()}\n".encode())
        return total.hexdigest()


class PickledAsRecipe:
    """Base of ``QuestionAnswerer``, pickled and copied as the recipe that loads an equal one.

    Attributes:
        origin: recipe and files; None for a model made in memory, which cannot be pickled.
    """

    model: BertForQuestionAnswering
    tokenizer: BertTokenizer
    windows: WindowSettings
    decoding: DecodingSettings
    runtime: Runtime
    folder: Path | None
    origin: "Origin | None"

    @classmethod
    def from_pretrained(cls: type[AnyPickled], *args: Any, **options: Any) -> AnyPickled:
        """Load an answerer from the arguments of a recipe."""
        raise NotImplementedError

    def recipe(self) -> str:
        """Return the recipe that loads an equal answerer.

        Raises:
            UserError: the model was made in memory, or the model or its files were changed.
        """
        if self.origin is None:
            raise UserError(
                "an answerer must be loaded with from_pretrained to be pickled or copied, got a "
                "model made in memory: save it with save_model, and load it with from_pretrained"
            )
        return self.origin.recipe_of(self)

    def __reduce__(self) -> tuple[Any, ...]:
        return load_once, (type(self), self.recipe()), self._users_own() or None

    def __deepcopy__(self: AnyPickled, memo: dict[int, Any]) -> AnyPickled:
        copied = load(type(self), self.recipe())
        vars(copied).update(deepcopy(self._users_own(), memo))
        return copied

    def _users_own(self) -> dict[str, Any]:
        """Return the attributes that a recipe does not restore, which are pickled in addition."""
        made = PickledAsRecipe.__annotations__
        return {name: value for name, value in vars(self).items() if name not in made}


class Origin:
    """Recipe, files and initial state of a loaded answerer, to detect changes.

    Args:
        recipe: without digest, which ``recipe_of`` fills in.
        files: their state before loading.
        answerer: as loaded.
    """

    def __init__(self, recipe: Recipe, files: CheckpointFiles, answerer: PickledAsRecipe) -> None:
        self.recipe, self.files = recipe, files
        self._parts = answerer.tokenizer, answerer.runtime
        self._state = _model_state(answerer.model)

    def has_model_of(self, answerer: PickledAsRecipe) -> bool:
        """Return whether the answerer has the loaded model, unchanged."""
        return _model_state(answerer.model) == self._state

    def has_made(self, answerer: PickledAsRecipe) -> bool:
        """Return whether the answerer has the loaded model, tokenizer and runtime, unchanged."""
        tokenizer, runtime = self._parts
        same = answerer.tokenizer is tokenizer and answerer.runtime is runtime
        return same and self.has_model_of(answerer)

    def recipe_of(self, answerer: PickledAsRecipe) -> str:
        """Return the recipe with the answerer's current settings.

        Raises:
            UserError: the answerer or the files were changed.
        """
        folder = self.files.folder
        if not self.has_made(answerer):
            raise UserError(
                f"the model of {folder} must be unchanged since loading to be pickled or copied, "
                "got a model that was changed in memory: save it with save_model, and load that"
            )
        if not (self.files.unchanged() or self._is_in_the_files(answerer)):
            raise UserError(
                f"the files of {folder} must be unchanged since loading for the model to be "
                "pickled or copied, got changed files: load it again"
            )
        recipe = replace(self.recipe, windows=answerer.windows, decoding=answerer.decoding)
        return replace(recipe, digest=self.files.digest()).to_json()

    def _is_in_the_files(self, answerer: PickledAsRecipe) -> bool:
        """Load files that were modified, as by touch, and return whether the model is the same."""
        if not self.files.may_be_same():
            return False
        recipe = replace(self.recipe, name=str(self.files.folder), revision=None)
        try:
            fresh = recipe.loaded_as(type(answerer))
        except UserError:  # the files are not a valid model any more
            return False
        same = has_same_numbers(fresh.model, answerer.model)
        if same and fresh.origin:
            self.files = fresh.origin.files
        return same


_loaded: dict[tuple[type, str], PickledAsRecipe] = {}  # the answerer loaded last


def load_once(kind: type[AnyPickled], recipe: str) -> AnyPickled:
    """Load the answerer of a recipe; reuse the last model, as pools send it with each task."""
    kept = _loaded.get((kind, recipe))
    if kept is None or kept.origin is None or not kept.origin.has_made(kept):
        kept = load(kind, recipe)
        _loaded.clear()
        _loaded[kind, recipe] = kept
    another = kind.__new__(kind)
    vars(another).update(vars(kept))
    return another


def load(kind: type[AnyPickled], text: str) -> AnyPickled:
    """Load the answerer of a recipe.

    Raises:
        UserError: the model is missing, or is not the one that was pickled.
    """
    recipe = Recipe.from_json(text)
    answerer = recipe.loaded_as(kind)
    if answerer.origin is None or answerer.origin.files.digest() != recipe.digest:
        raise UserError(
            f"{answerer.folder} must contain the model that was pickled as {recipe.name!r}, got "
            "other files: copy that model here, or pickle it again"
        )
    return answerer


def _model_state(model: nn.Module) -> list[object]:
    """Return a state that differs if a model's modules, hooks or tensors are changed in memory.

    Tensors are compared by the sum of their bits, since writing to ``tensor.data`` leaves no trace;
    prepacked tensors, which cannot be written to, by identity.
    """
    return [entry for name, module in model.named_modules() for entry in _state_of(name, module)]


def _state_of(name: str, module: nn.Module) -> Iterator[object]:
    own = vars(module)
    hooks = [key for key, value in own.items() if key.endswith("_hooks") and value]
    yield name, type(module), id(module), module.training, "forward" in own, hooks
    for key, value in _tensors(module):
        yield key, id(value), value._version, _bits(value)


def _tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors of a module itself: parameters, buffers and attributes."""
    own = vars(module)
    for held in (own, own["_parameters"], own["_buffers"]):
        yield from ((key, value) for key, value in held.items() if isinstance(value, Tensor))


def has_same_numbers(one: nn.Module, other: nn.Module) -> bool:
    """Return whether two models have equal tensors, bit for bit, including prepacked ones."""
    ones, others = ([t for m in model.modules() for _, t in _tensors(m)] for model in (one, other))
    pairs = zip(ones, others, strict=False)
    return len(ones) == len(others) and all(torch.equal(_plain(a), _plain(b)) for a, b in pairs)


def _plain(tensor: Tensor) -> Tensor:
    return tensor if tensor.layout is torch.strided else tensor.to_dense()


@torch.inference_mode()
def _bits(tensor: Tensor) -> int | None:
    """Sum a tensor's bits as integers of up to 8 bytes; None if it is prepacked."""
    if tensor.layout is not torch.strided:
        return None
    size = tensor.element_size()
    whole = tensor.is_contiguous() and tensor.nbytes % 8 == tensor.storage_offset() * size % 8 == 0
    return int(tensor.detach().flatten().view(INTEGERS[8 if whole else size]).sum())
