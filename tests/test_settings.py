"""Invalid settings are rejected by the name of their flag."""

import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bertqa.errors import UserError
from bertqa.settings import DataSettings, DecodingSettings, TrainingSettings, WindowSettings

A, B = Path("a"), Path("b")
APART = "--validation_file and --validation_split_percentage exclude each other"
OUT_OF_RANGE: dict[type, dict[str, list[Any]]] = {
    TrainingSettings: {
        "num_train_epochs": [0.0, math.inf],
        "max_steps": [0],
        "learning_rate": [math.nan],
        "warmup_ratio": [1.0, -0.1, math.nan],
        "warmup_steps": [-1],
        "lr_scheduler_type": ["polynomial"],
        "weight_decay": [-0.01],
        "adam_epsilon": [0.0],
        "ema_decay": [1.0, -0.1, math.nan],
        "max_grad_norm": [-1.0],
        "distillation_temperature": [0.0],
        "distillation_weight": [0.0, 1.1],
        "per_device_train_batch_size": [0],
        "gradient_accumulation_steps": [-2],
        "seed": [-1],
        "logging_steps": [0],
        "eval_steps": [0],
        "early_stopping_patience": [0],
        "save_steps": [-5],
        "save_total_limit": [0],
        "unanswerable_share": [0.0, 1.0, math.nan],
    },
    DataSettings: {
        "validation_split_percentage": [0, 51],
        "max_train_samples": [0],
        "max_eval_samples": [-1],
    },
    DecodingSettings: {
        "n_best_size": [0],
        "max_answer_length": [0, -3],
        "decoder": ["beam", None],
        "null_score_diff_threshold": [math.nan],
        "temperature": [0.0, -1.0, math.nan, math.inf],
        "score_threshold": [-0.1, 1.1, math.nan],
    },
}


@pytest.mark.parametrize(
    ("kind", "name", "value"),
    [
        (kind, name, value)
        for kind, of_kind in OUT_OF_RANGE.items()
        for name, values in of_kind.items()
        for value in values
    ],
)
def test_a_value_out_of_range(kind: type, name: str, value: Any) -> None:
    with pytest.raises(UserError, match=f"--{name} must be .*, got {value}"):
        kind(**{name: value})


@pytest.mark.parametrize("warmup", [{"warmup_steps": 5}, {"warmup_ratio": 0.1}])
def test_a_constant_learning_rate_has_no_warmup(warmup: dict[str, Any]) -> None:
    """transformers ignores the warmup; here it is an error."""
    with pytest.raises(UserError, match=r"--lr_scheduler_type constant requires no warmup"):
        TrainingSettings(lr_scheduler_type="constant", **warmup)
    TrainingSettings(lr_scheduler_type="constant_with_warmup", **warmup)


@pytest.mark.parametrize(
    ("kind", "name", "value", "needed"),
    [
        (DecodingSettings, "n_best_size", "3", "a whole number"),
        (DecodingSettings, "max_answer_length", 2.5, "a whole number"),
        (DecodingSettings, "max_answer_length", True, "a whole number"),
        (DecodingSettings, "version_2_with_negative", "no", "True or False"),
        (DecodingSettings, "null_score_diff_threshold", "0.5", "a number"),
        (WindowSettings, "max_seq_length", "384", "a whole number"),
        (WindowSettings, "max_query_length", [64], "a whole number"),
        (WindowSettings, "max_seq_length", None, "a whole number"),
        (DecodingSettings, "version_2_with_negative", None, "True or False"),
        (TrainingSettings, "learning_rate", None, "a number"),
        (TrainingSettings, "learning_rate", "2e-5", "a number"),
    ],
)
def test_a_value_of_another_type(kind: type, name: str, value: Any, needed: str) -> None:
    with pytest.raises(UserError, match=f"^{name} must be {needed}, got {re.escape(repr(value))}"):
        kind(**{name: value})


def test_numbers_of_numpy_are_numbers() -> None:
    found = TrainingSettings(max_steps=np.int64(3), learning_rate=np.float32(0.5))
    assert (found.max_steps, found.learning_rate) == (3, 0.5)
    assert TrainingSettings(learning_rate=1).learning_rate == 1


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"dataset": "squad", "train_file": A}, "exclude each other"),
        ({"validation_file": B}, "--validation_file b requires --train_file"),
        ({"train_file": A, "validation_file": B, "validation_split_percentage": 5}, APART),
    ],
)
def test_data_that_exclude_each_other(given: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        DataSettings(**given)
