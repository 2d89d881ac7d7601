"""Make a folder to publish of a fine-tuned model: weights in half precision, and a model card.

bertqa release RUN --output_dir weights/NAME --encoder TEXT --data TEXT --eval_file FILE

The card, README.md, is written from what the run left behind: its command, settings, versions,
commit and curves, and EM and F1 of the very file that is released, asked with the run's windows.
Of a folder that is no run's, the card has the figures alone.
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
    add("--encoder", required=True, metavar="TEXT", help="what was fine-tuned, and its licence")
    add("--data", required=True, metavar="TEXT", help="what it was trained on, and its licence")
    add("--eval_file", type=Path, required=True, metavar="FILE",
        help="questions to measure it on, with gold answers")
    add = parser.group("output")
    add("--output_dir", type=Path, required=True, metavar="DIR", help="new folder for the model")
    # fmt: on
    return parser.parse(arguments)


def main(flags: argparse.Namespace) -> None:
    """Release the model, and say how good it is."""
    from bertqa.report.card import release  # late: --help needs no torch

    exact_match, f1 = release(
        flags.source, flags.output_dir, encoder=flags.encoder, data=flags.data,
        eval_file=flags.eval_file,
    )  # fmt: skip
    print(f"EM {exact_match:.2f}, F1 {f1:.2f}: wrote {flags.output_dir}")
