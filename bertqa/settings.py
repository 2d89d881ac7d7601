"""Settings and their defaults: windows, decoding, data, training.

commands/flags.py makes a flag of each field, with its help, metavar, choices and allowed values.
This module does not import torch, so that ``--help`` is fast.
"""

from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from bertqa.errors import UserError, flag, shown
from bertqa.fields import (
    ABOVE_0,
    BELOW_1,
    FROM_0,
    FROM_1,
    NOT_NAN,
    PER_CENT,
    PROBABILITY,
    SHARE,
    TEMPERATURE,
    UP_TO_1,
    Settings,
    setting,
)

ENCODER = "bert-base-uncased"  # the default of bertqa train --model
SPECIAL_TOKENS = 3  # [CLS] question [SEP] context [SEP]
DECODERS = ("exact", "top20")
SCHEDULES = ("linear", "cosine", "constant", "constant_with_warmup")
PRECISIONS = ("fp32", "bf16", "fp16")
COPY_ENDINGS = (".json", ".jsonl")  # of a repaired dataset
INT8 = "int8"  # 8-bit integer linear layers, for inference on the CPU


def check_precision(precision: Any) -> None:
    """Check the name of a precision.

    Raises:
        UserError: it is unknown.
    """
    known = ("auto", *PRECISIONS, INT8)
    if precision not in known:
        raise UserError(f"precision must be one of {', '.join(known)}, got {shown(precision)}")


@dataclass(frozen=True)
class WindowSettings(Settings):
    """How contexts are cut into overlapping windows (sliding window)."""

    max_seq_length: int = setting(
        384, "maximum window length: question, context and special tokens", "TOKENS"
    )
    doc_stride: int = setting(
        128,
        "overlap of neighboring sliding windows, as in run_qa; in Google's script, it is the "
        "stride from one window to the next",
        "TOKENS",
        FROM_0,
    )
    max_query_length: int | None = setting(
        None,
        "truncate longer questions, as Google's script does at 64 (default: a question that does "
        "not fit is an error)",
        "TOKENS",
        FROM_1,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.longest_question < 1:
            raise UserError(
                f"{flag('max_seq_length')} must exceed {flag('doc_stride')} by at least "
                f"{SPECIAL_TOKENS + 2}, got {self.max_seq_length} and {self.doc_stride}"
            )

    @property
    def longest_question(self) -> int:
        """Maximum question tokens such that each window advances by at least one token."""
        return self.max_seq_length - SPECIAL_TOKENS - self.doc_stride - 1


@dataclass(frozen=True)
class DecodingSettings(Settings):
    """How answers are chosen among spans; the names are run_qa's."""

    n_best_size: int = setting(20, "n-best answers kept per question", "N", FROM_1)
    max_answer_length: int = setting(30, "maximum answer length", "TOKENS", FROM_1)
    decoder: str = setting(
        "exact",
        "exact: search all spans; top20: run_qa's search, the n_best_size (20) best starts times "
        "the n_best_size best ends",
        choices=DECODERS,
    )
    version_2_with_negative: bool = setting(
        False, 'some questions have no answer, as in SQuAD v2.0; predict "" for these'
    )
    null_score_diff_threshold: float = setting(
        0.0,
        'with --version_2_with_negative: answer "" if the null score exceeds the best span\'s '
        "score by more than this (default: chosen on held-out questions or read from the model's "
        "decoding.json, else 0)",
        "X",
        NOT_NAN,
    )
    temperature: float = setting(
        1.0,
        "divide the scores by this before the softmax; changes probabilities only (default: from "
        "the model's decoding.json, else 1)",
        "T",
        TEMPERATURE,
    )
    score_threshold: float = setting(
        0.0,
        'answer "" if the probability of the answer is below this; bertqa calibrate prints how '
        "many answers remain, and how many of them are correct",
        "P",
        PROBABILITY,
    )


@dataclass(frozen=True)
class Overrides:
    """Overrides of a model's decoding.json and of the defaults.

    The fields are those of ``WindowSettings`` and ``DecodingSettings``; None overrides nothing.
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
        """Return a model's window settings, or the defaults, with the overrides.

        Raises:
            UserError: the result is invalid.
        """
        return replace(stored or WindowSettings(), **self._given(WindowSettings))

    def decoding(self, stored: DecodingSettings | None = None) -> DecodingSettings:
        """Return a model's decoding settings, or the defaults, with the overrides.

        Raises:
            UserError: a value is out of range, or a threshold is given without "no answer".
        """
        settings = replace(stored or DecodingSettings(), **self._given(DecodingSettings))
        threshold = self.null_score_diff_threshold
        if threshold is not None and not settings.version_2_with_negative:
            raise UserError(
                f"--null_score_diff_threshold {threshold} requires --version_2_with_negative: pass "
                "both or neither"
            )
        return settings

    def check(self) -> None:
        """Check the overrides before a model is loaded.

        Raises:
            UserError: as ``windows`` and ``decoding`` do. The model may predict "no answer", so a
                threshold without ``version_2_with_negative`` is accepted, unless that is False.
        """
        self.windows()
        self.decoding(DecodingSettings(version_2_with_negative=True))

    def _given(self, kind: type) -> dict[str, Any]:
        names = [each.name for each in fields(kind)]
        return {name: value for name in names if (value := getattr(self, name)) is not None}


@dataclass(frozen=True)
class DataSettings(Settings):
    """Training and validation data."""

    dataset: str | None = setting(
        None,
        "dataset on the hub with the splits train and validation: name or name:config (default: "
        "squad)",
        "NAME",
    )
    train_file: Path | None = setting(  # noqa: RUF009
        None, "training data: SQuAD JSON, JSON lines, CSV or parquet", "FILE"
    )
    validation_file: Path | None = setting(  # noqa: RUF009
        None, "validation data, in the same formats", "FILE"
    )
    validation_split_percentage: int | None = setting(
        None,
        "hold out N percent of the training articles and evaluate on their questions",
        "N",
        PER_CENT,
    )
    max_train_samples: int | None = setting(None, "train on the first N examples", "N", FROM_1)
    max_eval_samples: int | None = setting(None, "evaluate on the first N examples", "N", FROM_1)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.dataset and (self.train_file or self.validation_file):
            raise UserError(
                "--dataset and --train_file/--validation_file exclude each other: pass one"
            )
        if self.validation_file and not self.train_file:
            raise UserError(
                f"--validation_file {self.validation_file} requires --train_file: pass both"
            )
        if self.validation_split_percentage is not None and self.validation_file:
            raise UserError(
                "--validation_file and --validation_split_percentage exclude each other: pass one"
            )


@dataclass(frozen=True)
class TrainingSettings(Settings):
    """How to train; run_qa's names, and defaults of transformers' question answering notebook."""

    num_train_epochs: float = setting(3.0, "training epochs; may be a fraction", "N", ABOVE_0)
    max_steps: int | None = setting(
        None, "optimizer steps; overrides --num_train_epochs", "N", FROM_1
    )
    learning_rate: float = setting(2e-5, "peak learning rate", "X", ABOVE_0)
    warmup_ratio: float = setting(
        0.0, "fraction of steps for linear warmup, if --warmup_steps is 0", "X", BELOW_1
    )
    warmup_steps: int = setting(
        0, "steps of linear warmup; above 0, overrides --warmup_ratio", "N", FROM_0
    )
    lr_scheduler_type: str = setting(
        "linear",
        "learning rate schedule after the warmup: linear decay to 0, cosine decay to 0, or "
        "constant; constant has no warmup, constant_with_warmup has",
        choices=SCHEDULES,
    )
    weight_decay: float = setting(
        0.01, "AdamW's weight decay, not applied to biases and LayerNorm", "X", FROM_0
    )
    adam_epsilon: float = setting(1e-8, "AdamW's epsilon", "X", ABOVE_0)
    max_grad_norm: float = setting(
        2.0,
        "gradient clipping: maximum norm, 0 for no clipping; the loss is the sum of start and end "
        "as in the paper, where run_qa takes their mean: 2.0 here is 1.0 there",
        "X",
        FROM_0,
    )
    dropout: float | None = setting(
        None,
        "dropout rate of hidden states and attention probabilities (default: from the "
        "checkpoint's config.json, 0.1 in BERT)",
        "X",
        BELOW_1,
    )
    # S and E train at the full rate, the last layer at rate x decay, each lower layer at decay
    # times the rate of the layer above it.
    layerwise_lr_decay: float = setting(
        1.0, "learning rate of each layer relative to the layer above", "X", UP_TO_1
    )
    # After a single gradient of a rare word, however small, Adam moves each element by about 30
    # times the learning rate (0.1 / 0.001 ** 0.5, over ten steps); at rates far above BERT's 2e-5
    # that moves such words far from their pretrained embeddings.
    freeze_word_embeddings: bool = setting(
        False, "do not train the word embeddings; protects rare words at high learning rates"
    )
    ema_decay: float = setting(
        0.0,
        "evaluate and save an exponential moving average of the weights with this decay, such as "
        "0.999; 0 for no average",
        "X",
        BELOW_1,
    )
    distillation_temperature: float = setting(
        2.0, "with --teacher: softmax temperature of teachers and student", "X", ABOVE_0
    )
    distillation_weight: float = setting(
        0.9, "with --teacher: weight of the distillation loss", "X", UP_TO_1
    )
    per_device_train_batch_size: int = setting(
        16, "batch size per process, in windows", "N", FROM_1
    )
    gradient_accumulation_steps: int = setting(1, "batches per optimizer step", "N", FROM_1)
    seed: int = setting(
        42, "random seed of shuffling, dropout and newly initialized S and E", "N", FROM_0
    )
    logging_steps: int = setting(10, "write a line to log.jsonl every N steps", "N", FROM_1)
    eval_steps: int | None = setting(
        None, "evaluate every N steps (default: each epoch)", "N", FROM_1
    )
    early_stopping_patience: int | None = setting(
        None,
        "stop after N consecutive evaluations without a better F1 (default: never)",
        "N",
        FROM_1,
    )
    unanswerable_share: float = setting(
        0.5,
        'fraction of unanswerable questions for which to choose the "no answer" threshold, by '
        "weighting the held-out questions; one half in the dev set of SQuAD v2.0, one third in its "
        "training set",
        "S",
        SHARE,
    )
    save_steps: int = setting(500, "save a checkpoint to resume from every N steps", "N", FROM_1)
    save_total_limit: int = setting(1, "checkpoints to keep", "N", FROM_1)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.lr_scheduler_type == "constant" and (self.warmup_steps or self.warmup_ratio):
            raise UserError(
                "--lr_scheduler_type constant requires no warmup, got --warmup_steps "
                f"{self.warmup_steps} and --warmup_ratio {self.warmup_ratio}: pass "
                "constant_with_warmup, or 0 for both"
            )

    def windows_per_step(self, world_size: int) -> int:
        """Return the total batch size of an optimizer step, in windows."""
        return self.per_device_train_batch_size * self.gradient_accumulation_steps * world_size
