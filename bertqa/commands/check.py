"""Validate a dataset, and repair what can be repaired without guessing.

bertqa check --train_file mine.json                           list all faults, with ids and text
bertqa check --train_file mine.json --report audit.html       write them to a page
bertqa check --train_file mine.json --repair repaired.json    write a repaired copy

This loads the tokenizer of --model but no weights, and takes as long as cutting the windows. Exit
code 0: bertqa train accepts the data (questionable labels may still be listed); 1: it rejects the
data; 2: the data cannot be read. With --repair, the exit code is that of the copy.
"""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from bertqa.commands.flags import (
    Parser,
    add_model_flags,
    add_settings_flags,
    add_window_flags,
    overrides,
    settings_from_flags,
)
from bertqa.errors import UserError
from bertqa.files import check_output_file
from bertqa.settings import COPY_ENDINGS, ENCODER, DataSettings, DecodingSettings

ENDINGS = {"repair": COPY_ENDINGS, "report": (".html", ".json")}  # by flag


def parse_flags(arguments: Sequence[str], prog: str | None = None) -> argparse.Namespace:
    """Parse the flags, a subset of those of ``bertqa train``."""
    parser = Parser(__doc__ or "", prog)
    add_settings_flags(
        parser, "data", DataSettings,
        "dataset", "train_file", "validation_file", "validation_split_percentage",
    )  # fmt: skip
    add_settings_flags(parser, "data", DecodingSettings, "version_2_with_negative")
    add_model_flags(parser, ENCODER, note="; only its tokenizer is loaded", computes=False)
    add_window_flags(parser)
    add_check_flags(parser)
    return parser.parse(arguments)


def add_check_flags(parser: Parser, condition: str = "") -> None:
    """Add the flags of the output files, with ``condition`` in front of their helps."""
    # fmt: off
    add = parser.group("output")
    add("--repair", type=Path, metavar="FILE",
        help=f"{condition}write the training data with all unambiguous repairs to .json "
        "(run_qa's flat format) or .jsonl; the exit code is then that of the copy")
    add("--report", type=Path, metavar="FILE",
        help=f"{condition}write all findings to .html or .json")
    # fmt: on


def main(flags: argparse.Namespace) -> int:
    """Check the flags, then the data, and return the exit code."""
    windows, data = overrides(flags).windows(), settings_from_flags(flags, DataSettings)
    check_output_flags(flags)
    if os.environ.get("RANK", "0") != "0":  # the main process checks for all
        return 0
    from bertqa.audit.check import check_data  # late: --help needs no torch

    is_accepted = check_data(
        data, flags.model, windows, version_2_with_negative=bool(flags.version_2_with_negative),
        revision=flags.revision, allow_bin=flags.allow_bin, repair_file=flags.repair,
        report_file=flags.report,
        say=lambda text: print(text, flush=True),
    )  # fmt: skip
    return 0 if is_accepted else 1


def check_output_flags(flags: argparse.Namespace) -> None:
    """Check that the output files can be written, before the work.

    Raises:
        UserError: one cannot, or both are the same file.
    """
    if flags.repair and flags.report and flags.repair.absolute() == flags.report.absolute():
        raise UserError(f"--repair and --report must name two files, got {flags.repair} for both")
    for flag, endings in ENDINGS.items():
        if path := getattr(flags, flag):
            check_output_file(path, f"--{flag}", endings)
