"""Prepare a fine-tuned model for publishing: weights in half precision, and a model card.

bertqa release RUN --output_dir weights/NAME --encoder TEXT --data TEXT --eval_file FILE

The card, README.md, has the run's command, settings, versions, commit, machine, hours and curves,
and EM and F1 of the released file with 95 % intervals, measured with the run's windows. For a
folder without a run, it has only EM and F1.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from bertqa.commands.flags import Parser


def parse_flags(arguments: Sequence[str], prog: str | None = None) -> argparse.Namespace:
    """Parse the flags of ``bertqa release``."""
    # fmt: off
    parser = Parser(__doc__ or "", prog)
    add = parser.group("data")
    add("source", type=Path, metavar="RUN_OR_FOLDER",
        help="output folder of bertqa train, or another folder with a fine-tuned model")
    add("--encoder", required=True, metavar="TEXT",
        help="for the card: the pretrained encoder and its license")
    add("--data", required=True, metavar="TEXT",
        help="for the card: the training data and their license")
    add("--eval_file", type=Path, required=True, nargs="+", metavar="FILE",
        help="files of questions with gold answers to evaluate the released model; without "
        "unanswerable questions in a file, every answer is a span")
    add = parser.group("output")
    add("--output_dir", type=Path, required=True, metavar="DIR", help="new folder for the model")
    # fmt: on
    return parser.parse(arguments)


def main(flags: argparse.Namespace) -> None:
    """Release the model, and print its EM and F1."""
    from bertqa.report.card import release  # late: --help needs no torch

    reports = release(
        flags.source, flags.output_dir, encoder=flags.encoder, data=flags.data,
        eval_files=flags.eval_file,
    )  # fmt: skip
    for each in reports:
        print(f"{each.name}: EM {each.every.exact_match:.2f}, F1 {each.every.f1:.2f}")
    print(f"wrote {flags.output_dir}")
