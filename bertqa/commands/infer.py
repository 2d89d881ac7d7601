"""Answer questions about texts with a fine-tuned BERT.

bertqa infer                                                  a demo, then your questions
bertqa infer --question "Who?" --context "Ada did."           one question
bertqa infer --question "Who?" --context_file text.txt --top_k 5
bertqa infer --context_file text.txt                          questions from the terminal
bertqa infer --question "Who?" --documents notes --top_k 5    a folder of texts, or JSON lines
bertqa infer --question "Who?" --context "Ada did." --explain answer.html    bertqa explain
bertqa infer --input dev-v1.1.json --output_dir answers       a whole file, with EM and F1
bertqa infer --dataset squad --split validation --output_dir answers     a dataset on the hub
torchrun --nproc_per_node=2 -m bertqa infer --input many.jsonl --output_dir answers
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from bertqa.commands.explain import PAGE_ENDINGS, TERMINAL, explain_one, page_file
from bertqa.commands.flags import (
    Parser,
    add_decoding_flags,
    add_model_flags,
    add_settings_flags,
    add_window_flags,
    check_one_process,
    overrides,
)
from bertqa.commands.question_flags import (
    add_question_flags,
    add_top_k_flag,
    check_question_flags,
    check_top_k,
    has_context,
    read_context,
)
from bertqa.errors import UserError
from bertqa.files import check_output_file
from bertqa.model.hub import SHIPPED_MODEL
from bertqa.settings import DecodingSettings


def parse_flags(arguments: Sequence[str], prog: str | None = None) -> argparse.Namespace:
    """Parse the flags, which have run_qa's names where it has them."""
    # fmt: off
    parser = Parser(__doc__ or "", prog)
    add_question_flags(parser)
    parser.group("question")("--demo", action="store_true",
        help="answer four questions about two short texts, and exit")
    parser.group("question")("--documents", type=Path, metavar="PATH",
        help="search the .txt and .md files of a folder, or JSON lines with \"text\" and "
        'optionally "id", for the answer')
    add = parser.group("data")
    add("--input", type=Path, metavar="FILE",
        help="answer all questions of a file: SQuAD JSON, JSON lines, CSV or parquet")
    add("--dataset", metavar="NAME",
        help="answer all questions of a dataset on the hub: name or name:config")
    add("--split", metavar="NAME", help="with --dataset: the split (default: validation)")
    add("--resume", action="store_true",
        help="with --input of JSON lines or parquet: continue after the last answered row")
    add("--skip_bad", action="store_true",
        help="with --input or --dataset: write invalid rows to rejects.jsonl and answer the "
        "others (default: stop if any row is invalid)")
    add_model_flags(parser, SHIPPED_MODEL)
    add_window_flags(parser)
    add_decoding_flags(parser, always_answer_flag=True)
    add_settings_flags(parser, "decoding", DecodingSettings, "temperature", "score_threshold")
    add_top_k_flag(parser)
    add = parser.group("output")
    add("--json", action="store_true", help="print JSON")
    add("--all_offsets", action="store_true",
        help="in JSON: also give offsets in UTF-16 units and UTF-8 bytes")
    add("--explain", type=Path, nargs="?", const=TERMINAL, metavar="FILE",
        help="with --question: explain the answer in an HTML page, such as answer.html, or "
        "without FILE in the terminal; the same as bertqa explain")
    add("--output_dir", type=Path, metavar="DIR",
        help="with --input or --dataset: folder for the answers: predictions.jsonl for JSON lines, "
        "predictions.parquet for parquet, else run_qa's predictions.json, nbest_predictions.json "
        "and, with --version_2_with_negative, null_odds.json; with gold answers also "
        "metrics.json, and rejects.jsonl if --skip_bad rejects rows")
    add("--overwrite_output_dir", action="store_true",
        help="overwrite existing predictions in --output_dir, or the page of --explain")
    # fmt: on
    return parser.parse(arguments)


def main(flags: argparse.Namespace) -> None:
    """Answer what the flags ask for."""
    has_terminal = sys.stdin.isatty()
    check_flags(flags, has_terminal)
    if flags.input or flags.dataset:
        from bertqa.commands.infer_file import answer_file  # late: --help needs no torch

        answer_file(flags)
        return
    if flags.documents:
        from bertqa.commands.infer_documents import (  # late: --help needs no torch
            answer_from_documents,
        )

        answer_from_documents(flags)
        return
    context = read_context(flags) if has_context(flags) else None
    if context is not None and flags.explain is not None:
        explain_one(flags, context, page_file(flags.explain))
        return
    from bertqa.commands.infer_questions import (  # late: --help needs no torch
        answer_question,
        converse,
    )

    if context is not None and flags.question is not None:
        answer_question(flags, context)
    else:
        converse(flags, context, has_terminal and not flags.demo)


def check_flags(flags: argparse.Namespace, has_terminal: bool) -> None:
    """Check that flags do not contradict each other, and that each has an effect.

    Raises:
        UserError: they do not fit together, or a value is invalid.
    """
    sources = {
        "--input": flags.input, "--dataset": flags.dataset, "--question": flags.question,
        "--demo": flags.demo or None,
    }  # fmt: skip
    given = [flag for flag, value in sources.items() if value is not None]
    if len(given) > 1:
        raise UserError(f"{given[0]} and {given[1]} exclude each other: pass one")
    if flags.documents:
        check_documents_flags(flags)
    else:
        check_question_flags(flags)
    context = "--context" if flags.context is not None else "--context_file"
    if has_context(flags) and given and given[0] != "--question":
        raise UserError(f"{context} and {given[0]} exclude each other: pass one")
    if has_context(flags) and not given and not has_terminal:
        raise UserError(f"{context} requires --question if stdin is not a terminal: add --question")
    has_file = bool(flags.input or flags.dataset)
    if has_file != bool(flags.output_dir):
        name = "--dataset" if flags.dataset else "--input"
        raise UserError(f"{name} and --output_dir require each other: pass both or neither")
    for name in ("resume", "skip_bad"):
        if getattr(flags, name) and not has_file:
            raise UserError(f"--{name} requires --input: add --input, or drop --{name}")
    if flags.split is not None and not flags.dataset:
        raise UserError(f"--split {flags.split} requires --dataset: add --dataset, or drop --split")
    if not flags.input:
        check_one_process()
    if flags.all_offsets and not has_file and not flags.json:
        raise UserError(
            "--all_offsets requires --json, or --input of JSON lines or parquet: add one of them"
        )
    if flags.explain is not None:
        check_explain_flags(flags)
    overrides(flags).check()


def check_documents_flags(flags: argparse.Namespace) -> None:
    """Check that the other flags fit to --documents.

    Raises:
        UserError: a flag is missing, excluded or out of range.
    """
    if flags.question is None:
        raise UserError("--documents requires --question: add it")
    others = ("context", "context_file", "explain", "all_offsets")
    if given := [name for name in others if getattr(flags, name) not in (None, False)]:
        raise UserError(f"--documents and --{given[0]} exclude each other: pass one")
    check_top_k(flags)


def check_explain_flags(flags: argparse.Namespace) -> None:
    """Check that --explain has a question, and that its page can be written.

    Raises:
        UserError: a flag is missing or excluded, or the page cannot be written.
    """
    if flags.question is None:
        raise UserError("--explain requires --question and --context: add them, or drop --explain")
    if flags.score_threshold is not None:
        raise UserError("--explain and --score_threshold exclude each other: pass one")
    page = page_file(flags.explain)
    if page is None and flags.json:
        raise UserError(
            "--explain requires a file with --json: name one, such as answer.html, or drop --json"
        )
    if page:
        force, force_flag = flags.overwrite_output_dir, "--overwrite_output_dir"
        check_output_file(page, "--explain", PAGE_ENDINGS, force, force_flag)
