"""The work of ``bertqa verify``: load both sides, compare, print and write the report."""

import argparse

from bertqa.commands.flags import overrides
from bertqa.data.readers import read_examples
from bertqa.data.squad import Example, check_examples
from bertqa.explain.differences import Differences
from bertqa.explain.verification import SAMPLES, compare_checkpoint
from bertqa.files import write_text
from bertqa.runtime import limit_onednn_cache


def verify(flags: argparse.Namespace) -> int:
    """Compare, print the report, write it if that was asked for; the exit code."""
    examples = read_questions(flags)
    limit_onednn_cache()
    facts, found = compare_checkpoint(
        flags.model, examples, overrides=overrides(flags), bound=flags.bound,
        revision=flags.revision, allow_bin=flags.allow_bin,
        questions_from=str(flags.input or "this command"),
    )  # fmt: skip
    print("\n".join([*facts, "", found.as_text(), "", verdict(found)]))
    if flags.markdown:
        title = "# Beside transformers"
        parts = [title, "\n".join(f"- {line}" for line in facts), found.as_markdown()]
        write_text(flags.markdown, "\n\n".join([*parts, f"**{verdict(found)}**"]) + "\n")
    return 1 if found.failed else 0


def read_questions(flags: argparse.Namespace) -> list[Example]:
    """The questions of --input, or those that come with the comparison."""
    if not flags.input:
        return list(SAMPLES)[: flags.max_samples]
    examples = read_examples(flags.input)
    check_examples(examples, str(flags.input))
    return examples[: flags.max_samples]


def verdict(found: Differences) -> str:
    """One sentence."""
    if not found.failed:
        return f"equal: all {len(found.rows)} rows are within their bounds"
    names = [f"{row.quantity} {row.layer}".strip() for row in found.failed]
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"NOT equal: {len(names)} of {len(found.rows)} rows FAILED: {', '.join(names[:3])}{more}"
