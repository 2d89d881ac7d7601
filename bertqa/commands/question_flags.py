"""A question, the text that it is about, and the model that is asked."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from bertqa.commands.flags import Parser, overrides
from bertqa.data.documents import read_text
from bertqa.errors import UserError

if TYPE_CHECKING:
    from bertqa.answering.answerer import QuestionAnswerer  # late: for type checkers alone


def add_question_flags(parser: Parser) -> None:
    """One question, and its text."""
    add = parser.group("question")
    add("--question", metavar="TEXT", help="the question")
    add("--context", metavar="TEXT", help="the text that holds the answer")
    add("--context_file", type=Path, metavar="FILE", help="the same, from a UTF-8 text file")


def add_top_k_flag(parser: Parser) -> None:
    """How many answers are shown."""
    parser.group("output")(
        "--top_k", type=int, default=1, metavar="N", help="answers to show (default: %(default)s)"
    )


def check_question_flags(flags: argparse.Namespace) -> None:
    """Refuse two texts, a question without any, and no answer at all."""
    if flags.context is not None and flags.context_file:
        raise UserError("--context and --context_file exclude each other: pass one")
    if flags.question is not None and not has_context(flags):
        raise UserError("--question needs a text to look in: add --context or --context_file")
    check_top_k(flags)


def check_top_k(flags: argparse.Namespace) -> None:
    """Refuse to show no answer."""
    if flags.top_k < 1:
        raise UserError(f"--top_k must be at least 1, got {flags.top_k}")


def has_context(flags: argparse.Namespace) -> bool:
    """Whether a text is given."""
    return flags.context is not None or flags.context_file is not None


def load_answerer(flags: argparse.Namespace, device: str | None = None) -> "QuestionAnswerer":
    """The model that the flags name, asked as its decoding.json and the flags say.

    Args:
        device: in place of --device.

    Raises:
        UserError: it is not available, or cannot be asked so.
    """
    from bertqa.answering.answerer import QuestionAnswerer  # late: --help needs no torch

    return QuestionAnswerer.from_pretrained(
        flags.model, overrides=overrides(flags), device=device or flags.device,
        precision=flags.precision,
        revision=flags.revision, allow_bin=flags.allow_bin,
    )  # fmt: skip


def read_context(flags: argparse.Namespace) -> str:
    """The text of --context or --context_file."""
    if flags.context_file is None:
        return str(flags.context)
    text = read_text(flags.context_file, f"--context_file {flags.context_file}")
    # A byte order mark is no text; where places are told in bytes as well, it counts.
    return text if flags.all_offsets else text.removeprefix("\ufeff")
