"""Settings that cannot be are refused by the name of their flag."""

import math
from pathlib import Path
from typing import Any

import pytest

from bertqa.errors import UserError
from bertqa.settings import DataSettings, DecodingSettings, TrainingSettings

A, B = Path("a"), Path("b")
APART = "--validation_file and --validation_split_percentage exclude each other"
OUT_OF_RANGE: dict[type, dict[str, list[Any]]] = {
    TrainingSettings: {
        "num_train_epochs": [0.0, math.inf],
        "max_steps": [0],
        "learning_rate": [math.nan],
        "warmup_ratio": [1.0, -0.1, math.nan],
        "lr_scheduler_type": ["cosine"],
        "weight_decay": [-0.01],
        "adam_epsilon": [0.0],
        "max_grad_norm": [-1.0],
        "per_device_train_batch_size": [0],
        "gradient_accumulation_steps": [-2],
        "seed": [-1],
        "logging_steps": [0],
        "eval_steps": [0],
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
        "decoder": ["beam"],
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
    with pytest.raises(UserError, match=f"--{name} {value} is out of range"):
        kind(**{name: value})


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"dataset": "squad", "train_file": A}, "exclude each other"),
        ({"validation_file": B}, "--validation_file b needs a --train_file"),
        ({"train_file": A, "validation_file": B, "validation_split_percentage": 5}, APART),
    ],
)
def test_data_that_exclude_each_other(given: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        DataSettings(**given)
