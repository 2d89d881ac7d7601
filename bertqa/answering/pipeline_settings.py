"""Parsing of the arguments of ``pipeline`` and of its calls into plain values.

The names are those of transformers 4.57. Arguments that do not apply to a BERT in PyTorch are
rejected here, before a model is loaded.
"""

import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from typing import Any

import torch

from bertqa.errors import SPELLING, UserError, did_you_mean, shown
from bertqa.fields import probability, true_or_false, whole_number
from bertqa.settings import SPECIAL_TOKENS, WindowSettings

TASK = "question-answering"
SCORES = ("bertqa", "transformers")
_WITHOUT_EFFECT = {"padding", "num_workers"}
_WITHOUT_EFFECT_ON_LOADING = {"attn_implementation", "low_cpu_mem_usage", "use_safetensors"}
_DTYPES = {
    "float32": "fp32", "float": "fp32", "bfloat16": "bf16", "float16": "fp16", "half": "fp16",
}  # fmt: skip
_OLD_NAMES = {"use_auth_token": "token"}
# Flags in messages -> keywords of the pipeline, where they differ.
_KEYWORDS = {
    "max_seq_length": "max_seq_len",
    "max_query_length": "max_question_len",
    "precision auto": "dtype auto",
    "precision fp16": "dtype float16",
    "precision fp32": "dtype float32",
    "allow_bin": "allow_bin=True",
}


@dataclass(frozen=True)
class CallSettings:
    """The parameters of a call as plain values, with transformers' names.

    Attributes:
        top_k: number of answers.
        max_answer_len: maximum tokens of an answer.
        max_seq_len, doc_stride: tokens of a window, and of the overlap of two.
        max_question_len: truncate longer questions; None rejects questions that do not fit.
        handle_impossible_answer: allow "" as an answer.
        align_to_words: extend answers to whole words.
        score_threshold: answer "" if the answer's score, 0 to 1, is below this.
        batch_size: questions of a generator that are read before the first answer.
    """

    top_k: int = 1
    max_answer_len: int = 15
    max_seq_len: int | None = None
    doc_stride: int | None = None
    max_question_len: int | None = None
    handle_impossible_answer: bool = False
    align_to_words: bool = True
    score_threshold: float = 0.0
    batch_size: int = 1

    def changed(self, given: Mapping[str, Any]) -> "CallSettings":
        """Return settings with the given values; None keeps a value.

        Raises:
            UserError: an unknown name, or a value out of range.
        """
        given = dict(given)
        if (topk := given.pop("topk", None)) is not None:
            warnings.warn("topk is deprecated, pass top_k", UserWarning, stacklevel=3)
            given["top_k"] = topk if given.get("top_k") is None else given["top_k"]
        check_names(given, call_names())
        wanted = {k: v for k, v in given.items() if k not in _WITHOUT_EFFECT and v is not None}
        return replace(self, **{name: _value(name, value) for name, value in wanted.items()})

    @property
    def has_default_windows(self) -> bool:
        """Whether no setting of the windows is given."""
        return self.max_seq_len is self.doc_stride is self.max_question_len is None

    def windows(self, longest: int) -> WindowSettings:
        """Return the settings of the windows, by default of min(384, longest) tokens.

        Raises:
            UserError: the overlap leaves no room for a question.
        """
        size = self.max_seq_len or min(384, longest)
        stride = min(size // 2, 128) if self.doc_stride is None else self.doc_stride
        if size - stride < SPECIAL_TOKENS + 2:
            raise UserError(
                f"max_seq_len must be larger than doc_stride by at least {SPECIAL_TOKENS + 2}, got "
                f"{size} and {stride}"
            )
        return WindowSettings(size, stride, self.max_question_len)


def call_names() -> set[str]:
    """Return the names of the parameters of a call."""
    return {each.name for each in fields(CallSettings)} | _WITHOUT_EFFECT | {"topk"}


def _value(name: str, value: Any) -> Any:
    """Check and convert the value of a parameter."""
    if name in ("handle_impossible_answer", "align_to_words"):
        return true_or_false(name, value)
    if name == "score_threshold":
        return probability(name, value)
    return whole_number(name, value, 0 if name == "doc_stride" else 1)


def check_names(given: Iterable[str], known: Iterable[str]) -> None:
    """Check that keywords are known.

    Raises:
        UserError: one is not.
    """
    for name in given:
        if name not in known:
            near = did_you_mean(_OLD_NAMES.get(name, name), known)
            cure = "correct it" if near else f"drop it, or pass {_listed(known)}"
            raise UserError(f"{name}: must be a parameter of this pipeline{near}: {cure}")


def _listed(names: Iterable[str]) -> str:
    *others, last = sorted(names)
    return f"{', '.join(others)} or {last}"


# --- construction --------------------------------------------------------------------------------


@dataclass(frozen=True)
class LoadSettings:
    """Device and precision of the model, with the names of ``local_runtime``."""

    device: str
    precision: str


def load_settings(
    scores: str, device: Any, dtype: Any, device_map: Any, model_kwargs: Mapping[str, Any] | None
) -> LoadSettings:
    """Parse device and precision.

    Args:
        scores: with "transformers", the default dtype is float32.

    Raises:
        UserError: an unknown value or name, or contradicting values.
    """
    if scores not in SCORES:
        raise UserError(f"scores must be {_listed(SCORES)}, got {shown(scores)}")
    if not isinstance(model_kwargs, Mapping | None):
        raise UserError(f"model_kwargs must be a dictionary, got {shown(model_kwargs)}")
    further = dict(model_kwargs or {})
    own = {"dtype", "torch_dtype", "device_map"}
    check_names(further, own | _WITHOUT_EFFECT_ON_LOADING)
    dtype = only_given("dtype", dtype, further.get("dtype"), further.get("torch_dtype"))
    device_map = only_given("device_map", device_map, further.get("device_map"))
    if isinstance(device_map, Mapping) and len(device_map) == 1:
        (device_map,) = device_map.values()
    device = only_given("device and device_map", device, device_map)
    return LoadSettings(_device(device), _precision(dtype, scores))


def only_given(name: str, *values: Any) -> Any:
    """Return the value that is not None; None if there is none.

    Raises:
        UserError: two values differ.
    """
    given = [value for value in values if value is not None]
    if any(value != given[0] for value in given):
        raise UserError(f"{name}: must be given once, got {' and '.join(map(shown, given))}")
    return given[0] if given else None


def _device(device: Any) -> str:
    """Return the name of a device given by number (as in transformers), name or object."""
    if isinstance(device, int) and not isinstance(device, bool):
        if device < 0:
            return "cpu"
        if torch.cuda.is_available():
            return f"cuda:{device}"
        return "mps" if torch.backends.mps.is_available() else "cpu"
    if device is None or isinstance(device, str | torch.device):
        return str(device or "auto")
    raise UserError(f"device must be a number, a name or a torch.device, got {shown(device)}")


def _precision(dtype: Any, scores: str) -> str:
    if dtype is None or dtype == "auto":
        return "fp32" if scores == "transformers" else "auto"
    name = str(dtype).removeprefix("torch.")
    if name not in _DTYPES:
        raise UserError(f"dtype must be auto, float32, bfloat16 or float16, got {shown(dtype)}")
    return _DTYPES[name]


def check_unsupported_arguments(
    task: Any, framework: Any, use_fast: Any, others: Mapping[str, Any]
) -> None:
    """Check that no arguments are given that do not apply to BERT.

    Raises:
        UserError: another task, TensorFlow, a slow tokenizer, or a component that BERT lacks.
    """
    if task not in (None, TASK):
        raise UserError(f'task must be "{TASK}", got {shown(task)}')
    if framework not in (None, "pt"):
        raise UserError(
            f'framework must be "pt", got {shown(framework)}: pass a PyTorch checkpoint '
            "in safetensors"
        )
    if not use_fast:
        raise UserError(f"use_fast must be True, got {shown(use_fast)}: tokenizers are always fast")
    for name, value in others.items():
        if value is not None:
            raise UserError(
                f"{name} must be None, got {shown(value)}: BERT has only a model and a tokenizer"
            )


@contextmanager
def keyword_names() -> Iterator[None]:
    """Context in which error messages name settings by keywords instead of flags."""
    before = SPELLING.set(lambda name: _KEYWORDS.get(name, name))
    try:
        yield
    finally:
        SPELLING.reset(before)
