"""This BERT beside transformers' on any checkpoint: each number on the way, and the answers.

bertqa verify MODEL

Both sides read the folder by their own code, in float32 on the CPU, without dropout. Theirs takes
the windows one by one (attn_implementation="eager"), ours as packed batches of several, with both
of its implementations of attention: the reference in bert.py and the fused one in kernels.py. The
table has a row for each quantity: the largest difference, as a share of the largest magnitude in
the tensor, its bound, and, where the bound is passed, at which layer or parameter and on which
question first. Layers are counted from 0, as in the names of checkpoints.

The bound is 5e-5, some hundred times the rounding of one float32 operation (6e-8). Numbers that
were summed in another order are up to 3e-6 apart after 6 layers, and farther after 24; a wrong
constant, a transposed axis or the other GELU is 2e-4 and more. Gradients go through twice as many
layers and sum over all tokens, so for them it is ten times that. Token ids, weights and answers
must be the same; of answers, two whose scores are equal within the bound count as such. Their
tokenizer has its default settings; a question is left out if a text says [SEP] or the like, which
they take for the token.

The labels of the loss are drawn at random. The right ones would leave a model that knows the
answers with gradients of nothing but rounding.

Exit code 0: equal within the bounds; 1: something differs; 2: bad input.
"""

import argparse
import math
from collections.abc import Sequence
from pathlib import Path

from bertqa.commands.flags import Parser, add_model_flags, add_window_flags, overrides
from bertqa.errors import UserError
from bertqa.files import check_new_file, write_text

BOUND = 5e-5


def parse_flags(arguments: Sequence[str], prog: str | None = None) -> argparse.Namespace:
    """Parse the flags of ``bertqa verify``."""
    # fmt: off
    parser = Parser(__doc__ or "", prog)
    note = "; one without S and E gets random ones, the same for both sides"
    add_model_flags(parser, note=note, computes=False)
    add_window_flags(parser)
    add = parser.group("data")
    add("--input", type=Path, metavar="FILE",
        help="questions to compare on (default: five that come with this command, one of them "
        "about a text longer than a window, and one about the tokens that the folder adds, if any)")
    add("--max_samples", type=int, default=32, metavar="N",
        help="the first of them (default: %(default)s)")
    add = parser.group("output")
    add("--bound", type=float, default=BOUND, metavar="X",
        help="largest relative difference of a forward pass; ten times that of gradients "
        "(default: %(default)s)")
    add("--markdown", type=Path, metavar="FILE", help="write the report in Markdown")
    # fmt: on
    return parser.parse(arguments)


def main(flags: argparse.Namespace) -> int:
    """Compare, print, and write the report if that was asked for; the exit code."""
    check_flags(flags)
    from bertqa.explain.verification import compare_checkpoint  # late: --help needs no torch

    found = compare_checkpoint(
        flags.model, flags.input, max_samples=flags.max_samples, overrides=overrides(flags),
        bound=flags.bound, revision=flags.revision, allow_bin=flags.allow_bin,
    )  # fmt: skip
    print(found.report(), end="")
    if flags.markdown:
        write_text(flags.markdown, f"# Beside transformers\n\n{found.report()}")
    return 0 if found.is_equal else 1


def check_flags(flags: argparse.Namespace) -> None:
    """Refuse before the work what would be refused after it."""
    if not (math.isfinite(flags.bound) and flags.bound > 0):
        raise UserError(
            f"--bound {flags.bound} is no bound: give a number above 0, such as {BOUND}"
        )
    if flags.max_samples < 1:
        raise UserError(f"--max_samples {flags.max_samples} leaves no question: give 1 or more")
    if flags.markdown:
        check_new_file(flags.markdown, "--markdown")
    overrides(flags).check()
