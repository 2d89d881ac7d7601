"""The data of ``bertqa train`` and ``bertqa check``: what the flags name, as examples."""

import argparse
from pathlib import Path

from bertqa.commands.flags import Parser
from bertqa.data.readers import load_hub_dataset, read_examples
from bertqa.data.squad import (
    Example,
    check_answers,
    check_examples,
    check_version,
    split_by_article,
)
from bertqa.errors import UserError

ENCODER = "bert-base-uncased"  # the model that is trained by default


def add_data_flags(parser: Parser) -> None:
    """Which questions to train on, and which to evaluate on."""
    add = parser.group("data")
    # fmt: off
    add("--dataset", metavar="NAME",
        help="data set of the hub, name or name:config (default: squad)")
    add("--train_file", type=Path, metavar="FILE", help="SQuAD JSON, JSON lines, CSV, parquet")
    add("--validation_file", type=Path, metavar="FILE", help="the same formats")
    add("--validation_split_percentage", type=int, metavar="N",
        help="hold out N per cent of the training articles and evaluate on their questions")
    # fmt: on


def check_data_flags(flags: argparse.Namespace) -> None:
    """Refuse flags that contradict each other."""
    if flags.dataset and (flags.train_file or flags.validation_file):
        raise UserError("--dataset and --train_file/--validation_file exclude each other: pass one")
    if flags.validation_file and not flags.train_file:
        raise UserError(
            f"--validation_file {flags.validation_file} needs a --train_file beside it: pass both"
        )
    percentage = flags.validation_split_percentage
    if percentage is not None and flags.validation_file:
        raise UserError(
            "--validation_file and --validation_split_percentage exclude each other: pass one"
        )
    if percentage is not None and not 1 <= percentage <= 50:
        raise UserError(
            f"--validation_split_percentage {percentage} is not possible: give 1 to 50 per cent"
        )


def load_data(flags: argparse.Namespace) -> tuple[list[Example], list[Example]]:
    """Training and validation examples, checked; the second is empty where there are none."""
    percentage = flags.validation_split_percentage
    parts = read_data(flags)
    limits = (flags.max_train_samples, flags.max_eval_samples)
    for source, examples in parts:
        try:
            check_examples(examples, source)
            check_answers(examples, source)
        except UserError as error:
            hint = "; bertqa check finds all faults" if examples else ""
            raise UserError(f"{error}{hint}") from error
        check_version(examples, source, flags.version_2_with_negative)
    train = parts[0][1]
    validation = parts[1][1] if len(parts) > 1 else []
    if percentage:
        train, validation = split_by_article(train, percentage)
    return train[: limits[0]], validation[: limits[1]]


def read_data(flags: argparse.Namespace) -> list[tuple[str, list[Example]]]:
    """The training data, then those to evaluate on, if any, each with its name; not yet checked."""
    if flags.train_file:
        paths = [path for path in (flags.train_file, flags.validation_file) if path]
        return [(str(path), read_examples(path)) for path in paths]
    name = flags.dataset or "squad"
    splits = ("train",) if flags.validation_split_percentage else ("train", "validation")
    return [(f"{name}, {split}", load_hub_dataset(name, split)) for split in splits]
