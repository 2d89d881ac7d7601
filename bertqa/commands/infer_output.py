"""Output folder of ``bertqa infer``: existing files, metrics and messages."""

import argparse
import json
import sys
from collections.abc import Iterable
from pathlib import Path

from bertqa.errors import UserError
from bertqa.files import os_errors_as_user_errors, write_text

METRICS = "metrics.json"


def check_outputs(flags: argparse.Namespace, names: Iterable[str], resumable: bool = False) -> None:
    """Check that no file exists that would be overwritten or removed.

    The folder may be a model's, with metrics.json of its training.

    Args:
        names: the files that would be written, besides metrics.json.
        resumable: --resume can continue these files.

    Raises:
        UserError: a file exists, without a flag that allows it, or --resume contradicts another.
    """
    names = list(names)
    existing = next((f for n in (*names, METRICS) if (f := flags.output_dir / n).exists()), None)
    if existing and not flags.overwrite_output_dir and not flags.resume:
        to_resume = ", pass --resume to continue" if resumable and existing.name in names else ""
        raise UserError(
            f"{existing} already exists: name another --output_dir{to_resume}, or pass "
            "--overwrite_output_dir"
        )
    if flags.resume and flags.overwrite_output_dir:
        raise UserError("--resume and --overwrite_output_dir exclude each other: pass one")


def say(line: str) -> None:
    """Print to stderr, which keeps stdout for the metrics."""
    print(line, file=sys.stderr)


def write_metrics(flags: argparse.Namespace, metrics: dict[str, float]) -> list[Path]:
    """Write and print the metrics, if there are any."""
    if metrics:
        print(json.dumps(metrics, indent=None if flags.json else 2))
    text = json.dumps(metrics, indent=2) + "\n" if metrics else ""
    return write_output(flags.output_dir / METRICS, text)


def write_output(path: Path, text: str) -> list[Path]:
    """Write a file and return its path in a list; without text, remove an old file."""
    if text:
        write_text(path, text)
        return [path]
    with os_errors_as_user_errors(path, "removed"):
        path.unlink(missing_ok=True)
    return []
