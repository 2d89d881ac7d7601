"""The flags of ``bertqa train`` and ``bertqa check`` that name the data."""

import argparse
from dataclasses import fields
from pathlib import Path

from bertqa.commands.flags import Parser
from bertqa.settings import DataSettings

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


def data_settings(flags: argparse.Namespace) -> DataSettings:
    """The flags that name the data, as settings.

    Raises:
        UserError: they contradict each other or ask for nothing.
    """
    given = {field.name: getattr(flags, field.name, None) for field in fields(DataSettings)}
    return DataSettings(**given)
