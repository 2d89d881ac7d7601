"""Ablate every head and every layer, and measure EM and F1 without it.

bertqa ablate MODEL DATA

answers the questions of DATA as bertqa infer does: with the whole model, with each layer skipped,
and with each head masked or averaged (see hooks.py). It prints the layers and heads by the F1 lost
without them, largest first, and writes to --output_dir

    ablation.json        all figures
    ablation.svg         F1 lost: a heat map of layers x heads, and bars of whole layers

EM and F1 of few questions are coarse. "Loss" is the training loss: the negative log-likelihood of
the gold span's start and end, averaged over the windows. It also shows answers that only became
less probable, and breaks ties of F1. Heads can replace each other: the effect of two is not the sum
of their effects (Michel et al., "Are Sixteen Heads Really Better than One?", 2019).
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from bertqa.commands.flags import (
    Parser,
    add_decoding_flags,
    add_model_flags,
    add_window_flags,
    overrides,
)
from bertqa.errors import UserError

FIGURES = "ablation.json"
PICTURE = "ablation.svg"


def parse_flags(arguments: Sequence[str], prog: str | None = None) -> argparse.Namespace:
    """Parse the flags of ``bertqa ablate``."""
    # fmt: off
    parser = Parser(__doc__ or "", prog)
    add_model_flags(parser)
    parser.group("model")("--how", choices=("mask", "mean"), default="mask",
        help="replace a head's output by zeros (mask) or by its mean over the window (mean) "
        "(default: %(default)s)")
    add = parser.group("data")
    add("data", type=Path, metavar="DATA",
        help="questions with gold answers: SQuAD JSON, JSON lines, CSV or parquet")
    add("--max_samples", type=int, default=200, metavar="N",
        help="use the first N questions, each once per head and layer (default: %(default)s)")
    add_window_flags(parser)
    add_decoding_flags(parser, always_answer_flag=True)
    add = parser.group("output")
    add("--show", type=int, default=20, metavar="N",
        help="heads to print; ablation.json has all (default: %(default)s)")
    add("--output_dir", type=Path, default=Path("runs/ablation"), metavar="DIR",
        help="folder for the files (default: %(default)s)")
    add("--overwrite_output_dir", action="store_true",
        help="overwrite the files of an earlier ablation")
    # fmt: on
    return parser.parse(arguments)


def main(flags: argparse.Namespace) -> None:
    """Measure, rank and print."""
    check_flags(flags)
    from bertqa.explain.ablation import ablate  # late: --help needs no torch

    files = [flags.output_dir / name for name in (FIGURES, PICTURE)]
    found = ablate(
        flags.model, flags.data, *files, how=flags.how, max_samples=flags.max_samples,
        overrides=overrides(flags), device=flags.device, precision=flags.precision,
        revision=flags.revision, allow_bin=flags.allow_bin,
        say=lambda text: print(text, file=sys.stderr),
    )  # fmt: skip
    print(found.report(flags.show))
    print(f"wrote {', '.join(map(str, files))}", file=sys.stderr)


def check_flags(flags: argparse.Namespace) -> None:
    """Check the flags before the work.

    Raises:
        UserError: a value is out of range, or a file exists already.
    """
    for name in ("max_samples", "show"):
        if getattr(flags, name) < 1:
            raise UserError(f"--{name} must be at least 1, got {getattr(flags, name)}")
    existing = [n for n in (FIGURES, PICTURE) if (flags.output_dir / n).exists()]
    if existing and not flags.overwrite_output_dir:
        raise UserError(
            f"--output_dir: must not contain {existing[0]} yet, got {flags.output_dir}: name "
            "another, or pass --overwrite_output_dir"
        )
    overrides(flags).check()
