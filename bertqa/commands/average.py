"""The mean of several models' weights, as a model: often better than each, as fast as one.

bertqa average RUN RUN ... --output_dir DIR

Fine-tuned from one common start, models usually lie so near each other that the mean of their
weights is a model too, and what each has of its own by chance, the order of its batches or what
dropout zeroed, cancels out (Izmailov et al., "Averaging Weights Leads to Wider Optima and Better
Generalization", 2018; Wortsman et al., "Model soups", 2022). The folder can be asked, trained
further (``bertqa train --model DIR``) and released (``bertqa release``); average.json
says what it is the mean of.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from bertqa.commands.flags import Parser


def parse_flags(arguments: Sequence[str], prog: str | None = None) -> argparse.Namespace:
    """Parse the flags of ``bertqa average``."""
    parser = Parser(__doc__ or "", prog)
    parser.group("data")(
        "models", nargs="+", type=Path, metavar="RUN",
        help="output folders of bertqa train, or other folders with a fine-tuned model",
    )  # fmt: skip
    parser.group("output")(
        "--output_dir", type=Path, required=True, metavar="DIR", help="new folder for the mean"
    )
    return parser.parse(arguments)


def main(flags: argparse.Namespace) -> None:
    """Write the mean of the models."""
    from bertqa.report.average import write_mean  # late: --help needs no torch

    write_mean(flags.models, flags.output_dir)
    print(f"the mean of {len(flags.models)} models: wrote {flags.output_dir}")
