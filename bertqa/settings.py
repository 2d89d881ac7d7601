"""What a user can set, with the defaults: windows, decoding, data, training.

A field says of itself what its flag shows: help, metavar, choices and which values are allowed.
commands/flags.py makes the flags of them. No module of torch is imported here, so that ``--help``
costs none of its seconds.
"""

import math
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from numbers import Real
from pathlib import Path
from typing import Any, get_args

from bertqa.errors import UserError, shown

ENCODER = "bert-base-uncased"  # the model that is trained by default
SPECIAL_TOKENS = 3  # [CLS] question [SEP] context [SEP]
DECODERS = ("exact", "top20")
SCHEDULES = ("linear", "cosine", "constant", "constant_with_warmup")
PRECISIONS = ("fp32", "bf16", "fp16")
INT8 = "int8"  # for answering on the CPU: the linear layers are in integers

# Which values a field may have: in words, and a test.
_Allowed = tuple[str, Callable[[Any], bool]]
_FROM_1: _Allowed = ("1 or more", lambda value: 1 <= value < math.inf)
_FROM_0: _Allowed = ("0 or more", lambda value: 0 <= value < math.inf)
_ABOVE_0: _Allowed = ("a number above 0", lambda value: 0 < value < math.inf)
_BELOW_1: _Allowed = ("0 or more, below 1", lambda value: 0 <= value < 1)
_UP_TO_1: _Allowed = ("a number above 0, and at most 1", lambda value: 0 < value <= 1)
_ANYTHING: _Allowed = ("anything", lambda value: True)
_TEMPERATURE: _Allowed = ("0.01 to 100", lambda value: 0.01 <= value <= 100)
_PROBABILITY: _Allowed = ("0 to 1", lambda value: 0 <= value <= 1)
_SHARE: _Allowed = ("a number above 0, below 1", lambda value: 0 < value < 1)
_PER_CENT: _Allowed = ("1 to 50 per cent", lambda value: 1 <= value <= 50)


def _setting(
    default: Any,
    help: str,
    metavar: str | None = None,
    allowed: _Allowed | None = None,
    choices: Sequence[str] | None = None,
) -> Any:
    """A field of settings.

    Args:
        help: what the field is, in the words of ``--help``, which adds the default where the help
            does not speak of one.
        allowed: which values it may have; None is always allowed.
    """
    if choices:
        allowed = " or ".join(choices), choices.__contains__
    about = {"help": help, "metavar": metavar, "choices": choices, "allowed": allowed}
    return field(default=default, metadata=about)


def _is_whole(value: Any) -> bool:
    """Whether a value is a whole number, of Python or numpy."""
    try:
        return not isinstance(value, bool) and operator.index(value) is not None
    except TypeError:
        return False


def whole_number(name: str, value: Any, lowest: int = 1) -> int:
    """A parameter that counts something, as an int.

    Raises:
        UserError: it is no whole number, or a lower one.
    """
    if not _is_whole(value) or value < lowest:
        raise UserError(f"{name} must be a whole number of at least {lowest}, got {shown(value)}")
    if value >= 2**63:  # whole numbers end here for torch
        raise UserError(f"{name} must be less than 2**63, got {shown(value)}")
    return operator.index(value)


def check_kind(name: str, value: Any, kind: type) -> None:
    """Refuse a parameter that is not of its class, such as a dictionary in place of settings.

    Raises:
        UserError: it is not.
    """
    if not isinstance(value, kind):
        raise UserError(f"{name} must be of the class {kind.__name__}, got {shown(value)}")


def check_precision(precision: Any) -> None:
    """Refuse the name of a precision that there is not.

    Raises:
        UserError: it is none.
    """
    known = ("auto", *PRECISIONS, INT8)
    if precision not in known:
        raise UserError(f"precision must be one of {', '.join(known)}, got {shown(precision)}")


def true_or_false(name: str, value: Any) -> bool:
    """A parameter that is on or off.

    Raises:
        UserError: it is something else, such as a number.
    """
    if not isinstance(value, bool):
        raise UserError(f"{name} must be True or False, got {shown(value)}")
    return value


def probability(name: str, value: Any) -> float:
    """A parameter from 0 to 1, as a float.

    Raises:
        UserError: it is no number, or one outside of that.
    """
    if isinstance(value, bool) or not isinstance(value, Real) or not 0 <= float(value) <= 1:
        raise UserError(f"{name} must be a number from 0 to 1, got {shown(value)}")
    return float(value)


# What a field takes by its type. Flags have it always; in Python anything may be given.
_KINDS: dict[Any, _Allowed] = {
    int: ("a whole number", _is_whole),
    float: ("a number", lambda value: isinstance(value, Real) and not isinstance(value, bool)),
    bool: ("True or False", lambda value: isinstance(value, bool)),
}


class _Settings:
    """Checks the values of a dataclass's fields, each by itself."""

    def __post_init__(self) -> None:
        for each in fields(self):  # type: ignore[arg-type]
            value, allowed = getattr(self, each.name), each.metadata["allowed"]
            if value is None:
                continue
            needed, is_kind = _KINDS.get((*get_args(each.type), each.type)[0], _ANYTHING)
            if not is_kind(value):
                raise UserError(f"{each.name} must be {needed}, got {shown(value)}")
            if allowed and not allowed[1](value):
                raise UserError(f"--{each.name} {value} is out of range: give {allowed[0]}")


@dataclass(frozen=True)
class WindowSettings(_Settings):
    """How contexts are cut."""

    max_seq_length: int = _setting(
        384, "longest window: question, context and special tokens", "TOKENS"
    )
    doc_stride: int = _setting(
        128,
        "overlap of two neighbouring windows, as in run_qa; in Google's script the same word means "
        "the step from window to window",
        "TOKENS",
        _FROM_0,
    )
    max_query_length: int | None = _setting(
        None,
        "cut longer questions, as Google's script does with 64 (default: refuse those that do not "
        "fit)",
        "TOKENS",
        _FROM_1,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.longest_question < 1:
            raise UserError(
                f"--max_seq_length {self.max_seq_length} with --doc_stride {self.doc_stride} "
                "leaves no room for a question: give a window longer than the overlap by at least "
                f"{SPECIAL_TOKENS + 2} tokens"
            )

    @property
    def longest_question(self) -> int:
        """Most tokens a question may have, so that each window goes on by at least one token."""
        return self.max_seq_length - SPECIAL_TOKENS - self.doc_stride - 1


@dataclass(frozen=True)
class DecodingSettings(_Settings):
    """How spans become answers; the names are run_qa's."""

    n_best_size: int = _setting(20, "answers kept for each question", "N", _FROM_1)
    max_answer_length: int = _setting(30, "longest answer", "TOKENS", _FROM_1)
    decoder: str = _setting(
        "exact",
        "exact: all spans; top20: run_qa's search, the n_best_size (20) best starts with as many "
        "best ends",
        choices=DECODERS,
    )
    version_2_with_negative: bool = _setting(
        False, 'some questions have no answer, as in SQuAD v2.0; their answer is ""'
    )
    null_score_diff_threshold: float = _setting(
        0.0,
        'with --version_2_with_negative: answer "" if the null score exceeds the best span\'s by '
        "more than this (default: what a held-out part or the model's decoding.json says, else 0)",
        "X",
    )
    temperature: float = _setting(
        1.0,
        "divide scores by this before they become probabilities; it changes nothing else (default: "
        "what the model's decoding.json says, else 1)",
        "T",
        _TEMPERATURE,
    )
    score_threshold: float = _setting(
        0.0,
        'answer "" where the probability of the answer is below this; bertqa calibrate tells how '
        "many answers are left then, and how many of them are right",
        "P",
        _PROBABILITY,
    )


@dataclass(frozen=True)
class Overrides:
    """What is asked for in place of what a model's decoding.json and the defaults say.

    The fields are those of ``WindowSettings`` and ``DecodingSettings``; None asks for nothing.
    """

    max_seq_length: int | None = None
    doc_stride: int | None = None
    max_query_length: int | None = None
    n_best_size: int | None = None
    max_answer_length: int | None = None
    decoder: str | None = None
    version_2_with_negative: bool | None = None
    null_score_diff_threshold: float | None = None
    temperature: float | None = None
    score_threshold: float | None = None

    def windows(self, stored: WindowSettings | None = None) -> WindowSettings:
        """The windows of a model, or the default ones, with what is asked for.

        Raises:
            UserError: no window can be like that.
        """
        return replace(stored or WindowSettings(), **self._given(WindowSettings))

    def decoding(self, stored: DecodingSettings | None = None) -> DecodingSettings:
        """The decoding of a model, or the default one, with what is asked for.

        Raises:
            UserError: a value is out of range, or a threshold is given without "no answer".
        """
        settings = replace(stored or DecodingSettings(), **self._given(DecodingSettings))
        threshold = self.null_score_diff_threshold
        if threshold is not None and math.isnan(threshold):
            raise UserError(f"--null_score_diff_threshold {threshold} is no number: give one")
        if threshold is not None and not settings.version_2_with_negative:
            raise UserError(
                f"--null_score_diff_threshold {threshold} decides nothing without "
                "--version_2_with_negative: pass both or neither"
            )
        return settings

    def check(self) -> None:
        """Refuse what no model can be asked for, before one is looked for.

        Raises:
            UserError: as ``windows`` and ``decoding`` do. Whether a model knows "no answer" is not
                known yet, so a threshold alone passes, unless "no answer" is ruled out.
        """
        self.windows()
        self.decoding(DecodingSettings(version_2_with_negative=True))

    def _given(self, kind: type) -> dict[str, Any]:
        names = [each.name for each in fields(kind)]
        return {name: value for name in names if (value := getattr(self, name)) is not None}


@dataclass(frozen=True)
class DataSettings(_Settings):
    """Which questions to train on, and which to evaluate on."""

    dataset: str | None = _setting(
        None,
        "data set of the hub with the splits train and validation, name or name:config (default: "
        "squad)",
        "NAME",
    )
    train_file: Path | None = _setting(  # noqa: RUF009
        None, "SQuAD JSON, JSON lines, CSV, parquet", "FILE"
    )
    validation_file: Path | None = _setting(None, "the same formats", "FILE")  # noqa: RUF009
    validation_split_percentage: int | None = _setting(
        None,
        "hold out N per cent of the training articles and evaluate on their questions",
        "N",
        _PER_CENT,
    )
    max_train_samples: int | None = _setting(None, "train on the first N examples", "N", _FROM_1)
    max_eval_samples: int | None = _setting(None, "evaluate on the first N examples", "N", _FROM_1)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.dataset and (self.train_file or self.validation_file):
            raise UserError(
                "--dataset and --train_file/--validation_file exclude each other: pass one"
            )
        if self.validation_file and not self.train_file:
            raise UserError(
                f"--validation_file {self.validation_file} needs a --train_file beside it: pass "
                "both"
            )
        if self.validation_split_percentage is not None and self.validation_file:
            raise UserError(
                "--validation_file and --validation_split_percentage exclude each other: pass one"
            )


@dataclass(frozen=True)
class TrainingSettings(_Settings):
    """How to train: run_qa's names, the defaults of transformers' question-answering notebook."""

    num_train_epochs: float = _setting(
        3.0, "passes over the training windows; may be a fraction", "N", _ABOVE_0
    )
    max_steps: int | None = _setting(None, "optimiser steps; overrides the epochs", "N", _FROM_1)
    learning_rate: float = _setting(2e-5, "peak learning rate", "X", _ABOVE_0)
    warmup_ratio: float = _setting(0.0, "fraction of steps for linear warmup", "X", _BELOW_1)
    warmup_steps: int = _setting(
        0, "steps of linear warmup; above 0, overrides --warmup_ratio", "N", _FROM_0
    )
    lr_scheduler_type: str = _setting(
        "linear",
        "after the warmup: linear decay to 0, half a cosine to 0, or constant; constant has no "
        "warmup, constant_with_warmup has",
        choices=SCHEDULES,
    )
    weight_decay: float = _setting(
        0.01, "AdamW's, on weights, not on biases and LayerNorm", "X", _FROM_0
    )
    adam_epsilon: float = _setting(1e-8, "AdamW's epsilon", "X", _ABOVE_0)
    max_grad_norm: float = _setting(
        2.0,
        "clip gradients to this norm, 0 for never; the loss is start plus end as in the paper, "
        "run_qa takes the mean of the two: its 1.0 is 2.0 here",
        "X",
        _FROM_0,
    )
    dropout: float | None = _setting(
        None,
        "all dropout rates, of hidden numbers and of attention's probabilities (default: the "
        "checkpoint's own, in BERT 0.1)",
        "X",
        _BELOW_1,
    )
    # S and E learn at the full rate, the last layer at that times this, the embeddings slowest.
    layerwise_lr_decay: float = _setting(
        1.0, "learning rate of each layer relative to the layer above", "X", _UP_TO_1
    )
    # For a rare word's lone gradient, however small, Adam moves each number by about 30 times the
    # learning rate (0.1 / 0.001 ** 0.5, ten steps long); at rates far above BERT's 2e-5 that takes
    # words a long way from where pre-training put them.
    freeze_word_embeddings: bool = _setting(
        False, "do not train the word embeddings; protects rare words at high learning rates"
    )
    ema_decay: float = _setting(
        0.0,
        "evaluate and keep an exponential moving average of the weights with this decay, such as "
        "0.999; 0 for none",
        "X",
        _BELOW_1,
    )
    distillation_temperature: float = _setting(
        2.0, "with --teacher: temperature of the softmax of teachers and model", "X", _ABOVE_0
    )
    distillation_weight: float = _setting(
        0.9, "with --teacher: weight of the teachers' part of the loss", "X", _UP_TO_1
    )
    per_device_train_batch_size: int = _setting(
        16, "batch size per process, in windows", "N", _FROM_1
    )
    gradient_accumulation_steps: int = _setting(1, "batches for one optimiser step", "N", _FROM_1)
    seed: int = _setting(
        42, "of the order of windows, dropout and newly drawn S and E", "N", _FROM_0
    )
    logging_steps: int = _setting(10, "a line in log.jsonl every N steps", "N", _FROM_1)
    eval_steps: int | None = _setting(
        None, "evaluate every N steps (default: each epoch)", "N", _FROM_1
    )
    early_stopping_patience: int | None = _setting(
        None,
        "end the run after N evaluations in a row without a better F1 (default: never)",
        "N",
        _FROM_1,
    )
    unanswerable_share: float = _setting(
        0.5,
        'choose the threshold of "no answer" for data in which this share of the questions has no '
        "answer, by weighting the held-out ones; in the dev set of SQuAD v2.0 it is one half, in "
        "its training set one third",
        "S",
        _SHARE,
    )
    save_steps: int = _setting(500, "a checkpoint to resume from every N steps", "N", _FROM_1)
    save_total_limit: int = _setting(1, "checkpoints to keep", "N", _FROM_1)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.lr_scheduler_type == "constant" and (self.warmup_steps or self.warmup_ratio):
            raise UserError(
                "--lr_scheduler_type constant has no warmup, got --warmup_steps "
                f"{self.warmup_steps} and --warmup_ratio {self.warmup_ratio}: pass "
                "constant_with_warmup, or 0 for both"
            )

    def windows_per_step(self, world_size: int) -> int:
        """Windows that one optimiser step sees, over all processes."""
        return self.per_device_train_batch_size * self.gradient_accumulation_steps * world_size
