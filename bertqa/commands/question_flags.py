"""Flags of a question and its text, and the model that answers."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from bertqa.commands.flags import Parser, overrides
from bertqa.data.documents import read_text
from bertqa.errors import UserError

if TYPE_CHECKING:
    from bertqa.answering.answerer import QuestionAnswerer  # late: for type checkers only


def add_question_flags(parser: Parser) -> None:
    """Add the flags of one question and its text."""
    add = parser.group("question")
    add("--question", metavar="TEXT", help="the question")
    add("--context", metavar="TEXT", help="the text to search for the answer")
    add("--context_file", type=Path, metavar="FILE", help="the same, from a UTF-8 text file")


def add_top_k_flag(parser: Parser) -> None:
    """Add --top_k."""
    parser.group("output")(
        "--top_k", type=int, default=1, metavar="N", help="answers to return (default: %(default)s)"
    )


def check_question_flags(flags: argparse.Namespace) -> None:
    """Check that there is one text at most, one for a question, and a valid --top_k.

    Raises:
        UserError: flags contradict each other, or a value is out of range.
    """
    if flags.context is not None and flags.context_file:
        raise UserError("--context and --context_file exclude each other: pass one")
    if flags.question is not None and not has_context(flags):
        raise UserError("--question requires a text: add --context or --context_file")
    check_top_k(flags)


def check_top_k(flags: argparse.Namespace) -> None:
    """Check that --top_k is at least 1.

    Raises:
        UserError: it is lower.
    """
    if flags.top_k < 1:
        raise UserError(f"--top_k must be at least 1, got {flags.top_k}")


def has_context(flags: argparse.Namespace) -> bool:
    """Return whether a text is given."""
    return flags.context is not None or flags.context_file is not None


def load_answerer(flags: argparse.Namespace, device: str | None = None) -> "QuestionAnswerer":
    """Load the model, with the settings of its decoding.json and of the flags.

    Args:
        device: overrides --device.

    Raises:
        UserError: the model is not available, or the settings are invalid.
    """
    from bertqa.answering.answerer import QuestionAnswerer  # late: --help needs no torch

    return QuestionAnswerer.from_pretrained(
        flags.model, overrides=overrides(flags), device=device or flags.device,
        precision=flags.precision,
        revision=flags.revision, allow_bin=flags.allow_bin,
    )  # fmt: skip


def read_context(flags: argparse.Namespace) -> str:
    """Return the text of --context or --context_file."""
    if flags.context_file is None:
        return str(flags.context)
    from bertqa.data.text import is_blank  # late: --help needs no tokenizers

    name = f"--context_file {flags.context_file}"
    text = read_text(flags.context_file, name)
    if is_blank(text):
        raise UserError(f"{name}: must have a visible character, got none: pass another file")
    # A byte order mark is not text, but byte offsets of the file include it.
    return text if flags.all_offsets else text.removeprefix("\ufeff")
