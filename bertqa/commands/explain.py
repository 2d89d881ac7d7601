"""Explain one answer, as an HTML page or in the terminal.

bertqa explain --question "Who?" --context "Ada did."                 in the terminal
bertqa explain --question "Who?" --context_file text.txt answer.html  as a page

The page shows the probabilities of start and end, the best spans, the predictions of S and E after
each layer, the attention of every head, the score lost without each head, and the attribution of
each token. It needs neither network nor scripts.
"""

import argparse
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from bertqa.commands.flags import (
    Parser,
    add_decoding_flags,
    add_model_flags,
    add_settings_flags,
    add_window_flags,
    overrides,
)
from bertqa.commands.question_flags import (
    add_question_flags,
    add_top_k_flag,
    check_question_flags,
    read_context,
)
from bertqa.errors import UserError
from bertqa.files import check_output_file, write_text
from bertqa.model.hub import SHIPPED_MODEL
from bertqa.settings import DecodingSettings

TERMINAL = Path("-")  # print instead of writing a file
PAGE_ENDINGS = (".html", ".htm")


def parse_flags(arguments: Sequence[str], prog: str | None = None) -> argparse.Namespace:
    """Parse the flags, a subset of those of ``bertqa infer``."""
    parser = Parser(__doc__ or "", prog)
    add_question_flags(parser)
    add_model_flags(parser, SHIPPED_MODEL)
    add_window_flags(parser)
    add_decoding_flags(parser, always_answer_flag=True)
    add_settings_flags(parser, "decoding", DecodingSettings, "temperature")
    add_top_k_flag(parser)
    add = parser.group("output")
    add(
        "page", type=Path, nargs="?", default=TERMINAL, metavar="FILE",
        help="HTML page to write, such as answer.html (default: print a short version)",
    )  # fmt: skip
    add(
        "--overwrite", "--overwrite_output_dir", action="store_true",
        help="overwrite FILE if it exists",
    )  # fmt: skip
    parser.set_defaults(json=False, all_offsets=False)  # read by infer_questions.py
    return parser.parse(arguments)


def main(flags: argparse.Namespace) -> None:
    """Answer, explain, and print or write the explanation."""
    if flags.question is None:
        raise UserError("--question is required: add it, and --context or --context_file")
    check_question_flags(flags)
    file = page_file(flags.page)
    if file:
        check_output_file(file, "", PAGE_ENDINGS, flags.overwrite, "--overwrite")
    overrides(flags).check()
    context = read_context(flags)
    explain_one(flags, context, file)


def explain_one(flags: argparse.Namespace, context: str, file: Path | None) -> None:
    """Answer --question; print the explanation, or write it to ``file`` and print the answers."""
    from bertqa.answering.answerer import as_pipeline  # late: --help needs no torch
    from bertqa.commands.infer_questions import print_found  # late: --help needs no torch
    from bertqa.explain.explainer import explain_checkpoint  # late: --help needs no torch
    from bertqa.explain.page import page  # late: --help needs no torch
    from bertqa.explain.terminal import has_colors, render  # late: --help needs no torch

    found = explain_checkpoint(
        flags.model, flags.question, context, top_k=flags.top_k, overrides=overrides(flags),
        device=flags.device, precision=flags.precision, revision=flags.revision,
        allow_bin=flags.allow_bin,
    )  # fmt: skip
    if file is None:
        width = shutil.get_terminal_size().columns
        print(render(found, width, flags.top_k, color=has_colors()), end="")
        return
    print_found(flags, context, as_pipeline(found.answered, flags.top_k))
    write_text(file, page(found))
    print(f"wrote {file}", file=sys.stderr)


def page_file(given: Path) -> Path | None:
    """Return the file of an explanation; None for the terminal."""
    return None if given == TERMINAL else given
