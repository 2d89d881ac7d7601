"""What a user can set, with the defaults: windows, decoding, data, training.

No module of torch is imported here, so that ``--help`` costs none of its seconds.
"""

import math
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from bertqa.errors import UserError

SPECIAL_TOKENS = 3  # [CLS] question [SEP] context [SEP]
DECODERS = ("exact", "top20")
SCHEDULES = ("linear", "constant_with_warmup")
PRECISIONS = ("fp32", "bf16", "fp16")
INT8 = "int8"  # for answering on the CPU: the linear layers are in integers


@dataclass(frozen=True)
class WindowSettings:
    """How contexts are cut.

    Attributes:
        max_seq_length: most tokens of a window, the special ones included.
        doc_stride: context tokens that two neighbouring windows share.
        max_query_length: questions are cut to this many tokens, as Google's script does with 64;
            None refuses a question that is too long instead.
    """

    max_seq_length: int = 384
    doc_stride: int = 128
    max_query_length: int | None = None

    def __post_init__(self) -> None:
        if self.doc_stride < 0:
            raise UserError(f"--doc_stride {self.doc_stride} is negative: give 0 or more tokens")
        if self.max_query_length is not None and self.max_query_length < 1:
            raise UserError(
                f"--max_query_length {self.max_query_length} leaves no question: give 1 or more"
            )
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
class DecodingSettings:
    """How spans become answers; the names are run_qa's.

    Attributes:
        n_best_size: answers kept for each question.
        max_answer_length: most tokens of an answer.
        decoder: "exact", or "top20" for run_qa's search.
        version_2_with_negative: "" is an answer too, where the scores of [CLS] say so.
        null_score_diff_threshold: the answer is "" if the null score passes the best span's by
            more than this.
    """

    n_best_size: int = 20
    max_answer_length: int = 30
    decoder: str = "exact"
    version_2_with_negative: bool = False
    null_score_diff_threshold: float = 0.0

    def __post_init__(self) -> None:
        for name in ("n_best_size", "max_answer_length"):
            if getattr(self, name) < 1:
                raise UserError(f"--{name} {getattr(self, name)} leaves no answer: give 1 or more")
        if self.decoder not in DECODERS:
            raise UserError(f"--decoder {self.decoder} is unknown: pass exact or top20")


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
        names = [field.name for field in fields(kind)]
        return {name: value for name in names if (value := getattr(self, name)) is not None}


@dataclass(frozen=True)
class DataSettings:
    """Which questions to train on, and which to evaluate on; without any, SQuAD v1.1 of the hub.

    Attributes:
        dataset: of the hub, name or name:config, with the splits train and validation.
        train_file, validation_file: files of any form that readers.py knows, in its place.
        validation_split_percentage: hold out so many per cent of the training articles, and
            evaluate on their questions.
        max_train_samples, max_eval_samples: take the first so many; None takes all.
    """

    dataset: str | None = None
    train_file: Path | None = None
    validation_file: Path | None = None
    validation_split_percentage: int | None = None
    max_train_samples: int | None = None
    max_eval_samples: int | None = None

    def __post_init__(self) -> None:
        if self.dataset and (self.train_file or self.validation_file):
            raise UserError(
                "--dataset and --train_file/--validation_file exclude each other: pass one"
            )
        if self.validation_file and not self.train_file:
            raise UserError(
                f"--validation_file {self.validation_file} needs a --train_file beside it: pass "
                "both"
            )
        percentage = self.validation_split_percentage
        if percentage is not None and self.validation_file:
            raise UserError(
                "--validation_file and --validation_split_percentage exclude each other: pass one"
            )
        if percentage is not None and not 1 <= percentage <= 50:
            raise UserError(
                f"--validation_split_percentage {percentage} is not possible: give 1 to 50 per cent"
            )
        for name in ("max_train_samples", "max_eval_samples"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"--{name} {value} asks for no example: give 1 or more")


@dataclass(frozen=True)
class TrainingSettings:
    """How to train: run_qa's names, the defaults of transformers' question-answering notebook.

    Attributes:
        num_train_epochs: passes over the windows; may be a fraction.
        max_steps: optimiser steps; if not None it overrides the epochs.
        learning_rate: its peak.
        warmup_ratio: share of the steps in which the rate rises to its peak.
        lr_scheduler_type: what it does then, "linear" or "constant_with_warmup".
        weight_decay: AdamW's, on weights; biases and LayerNorm have none.
        adam_epsilon: AdamW's.
        max_grad_norm: gradients are scaled down to this norm. The loss is the sum of the start's
            and the end's, twice that of run_qa: its 1.0 is 2.0 here. 0 switches clipping off.
        dropout: rate of all dropout, of hidden numbers and of attention's probabilities; None
            keeps the checkpoint's two, in BERT 0.1.
        layerwise_lr_decay: each layer learns at the rate of the one above times this, the last
            one at that of S and E times this, the embeddings slowest; 1 is the same for all.
        freeze_word_embeddings: leave the vectors of the vocabulary as they are. For a
            rare word's lone gradient, however small, Adam moves each number by about 30 times the
            learning rate (0.1 / 0.001 ** 0.5, ten steps long); at rates far above BERT's 2e-5 that
            takes words a long way from where pre-training put them.
        per_device_train_batch_size: windows that one process takes at once.
        gradient_accumulation_steps: times that it does so for one optimiser step.
        seed: of the order of windows and of dropout.
        logging_steps, eval_steps, save_steps: log, evaluate, save every so many steps;
            eval_steps None evaluates after each epoch.
        save_total_limit: checkpoints kept to resume from.
    """

    num_train_epochs: float = 3.0
    max_steps: int | None = None
    learning_rate: float = 2e-5
    warmup_ratio: float = 0.0
    lr_scheduler_type: str = "linear"
    weight_decay: float = 0.01
    adam_epsilon: float = 1e-8
    max_grad_norm: float = 2.0
    dropout: float | None = None
    layerwise_lr_decay: float = 1.0
    freeze_word_embeddings: bool = False
    per_device_train_batch_size: int = 16
    gradient_accumulation_steps: int = 1
    seed: int = 42
    logging_steps: int = 10
    eval_steps: int | None = None
    save_steps: int = 500
    save_total_limit: int = 1

    def __post_init__(self) -> None:
        positive = (
            "num_train_epochs", "max_steps", "learning_rate", "adam_epsilon",
            "per_device_train_batch_size", "gradient_accumulation_steps", "logging_steps",
            "eval_steps", "save_steps", "save_total_limit",
        )  # fmt: skip
        for name in positive:
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise UserError(f"--{name} {value} is not possible: give a number above 0")
        for name in ("weight_decay", "max_grad_norm", "seed"):
            if not 0 <= getattr(self, name) < math.inf:
                raise UserError(f"--{name} {getattr(self, name)} is not possible: give 0 or more")
        if not 0 <= self.warmup_ratio < 1:
            raise UserError(
                f"--warmup_ratio {self.warmup_ratio} is not a share of the steps: give 0 or more, "
                "below 1"
            )
        if self.lr_scheduler_type not in SCHEDULES:
            raise UserError(
                f"--lr_scheduler_type {self.lr_scheduler_type} is unknown: pass "
                f"{' or '.join(SCHEDULES)}"
            )
        if not 0 < self.layerwise_lr_decay <= 1:
            raise UserError(
                f"--layerwise_lr_decay {self.layerwise_lr_decay} is not possible: give a number "
                "above 0, and at most 1"
            )
        if self.dropout is not None and not 0 <= self.dropout < 1:
            raise UserError(f"--dropout {self.dropout} is no rate: give 0 or more, below 1")

    def windows_per_step(self, world_size: int) -> int:
        """Windows that one optimiser step sees, over all processes."""
        return self.per_device_train_batch_size * self.gradient_accumulation_steps * world_size
