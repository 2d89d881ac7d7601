"""Compare bertqa's BERT with transformers' on a checkpoint: activations, gradients and answers.

bertqa verify MODEL

Both load the folder with their own code and compute in float32 on the CPU, without dropout.
transformers takes the windows one by one (attn_implementation="eager"), bertqa in packed batches,
with both implementations of attention: the reference in bert.py and the fused one in kernels.py.
The table has a row per quantity: the largest difference relative to the largest magnitude in the
tensor, its bound, and, if the bound is exceeded, the first layer or parameter and question.
Layers are counted from 0, as in checkpoints.

The bound is 5e-5, several hundred times the rounding of one float32 operation (6e-8). Another
order of summation changes results by up to 3e-6 after 6 layers, and more after 24; a wrong
constant, a transposed axis or the other GELU changes them by 2e-4 or more. Gradients pass twice as
many layers and sum over all tokens, so their bound is ten times larger. Token ids, weights and
answers must be equal; two answers whose scores tie within the bound count as equal. transformers'
tokenizer has its default settings; questions are skipped if a text contains a special token such as
[SEP], which transformers would parse.

The loss uses random labels: on gold labels, gradients of a good model are mostly rounding errors.

Exit code 0: equal within the bounds; 1: something differs; 2: invalid input.
"""

import argparse
import math
from collections.abc import Sequence
from pathlib import Path

from bertqa.commands.flags import Parser, add_model_flags, add_window_flags, overrides
from bertqa.errors import UserError
from bertqa.files import check_output_file, write_text

BOUND = 5e-5


def parse_flags(arguments: Sequence[str], prog: str | None = None) -> argparse.Namespace:
    """Parse the flags of ``bertqa verify``."""
    # fmt: off
    parser = Parser(__doc__ or "", prog)
    note = "; missing S and E are initialized at random, equally for both"
    add_model_flags(parser, note=note, computes=False)
    add_window_flags(parser)
    add = parser.group("data")
    add("--input", type=Path, metavar="FILE",
        help="questions to compare on (default: five built-in ones, of which one has a text longer "
        "than a window, and one about the folder's added tokens, if any)")
    add("--max_samples", type=int, default=32, metavar="N",
        help="use the first N questions (default: %(default)s)")
    add = parser.group("output")
    add("--bound", type=float, default=BOUND, metavar="X",
        help="maximum relative difference of a forward pass; for gradients ten times as much "
        "(default: %(default)s)")
    add("--markdown", type=Path, metavar="FILE", help="write the report to a Markdown file")
    # fmt: on
    return parser.parse(arguments)


def main(flags: argparse.Namespace) -> int:
    """Compare, print, write the report if --markdown is given, and return the exit code."""
    check_flags(flags)
    from bertqa.explain.verification import compare_checkpoint  # late: --help needs no torch

    found = compare_checkpoint(
        flags.model, flags.input, max_samples=flags.max_samples, overrides=overrides(flags),
        bound=flags.bound, revision=flags.revision, allow_bin=flags.allow_bin,
    )  # fmt: skip
    print(found.report(), end="")
    if flags.markdown:
        write_text(flags.markdown, f"# Comparison with transformers\n\n{found.report()}")
    return 0 if found.is_equal else 1


def check_flags(flags: argparse.Namespace) -> None:
    """Check the flags before the work.

    Raises:
        UserError: a value is out of range, or --markdown cannot be written.
    """
    if not (math.isfinite(flags.bound) and flags.bound > 0):
        raise UserError(f"--bound must be finite and above 0, got {flags.bound}")
    if flags.max_samples < 1:
        raise UserError(f"--max_samples must be at least 1, got {flags.max_samples}")
    if flags.markdown:
        check_output_file(flags.markdown, "--markdown")
    overrides(flags).check()
