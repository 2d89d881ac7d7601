"""The output folder of ``bertqa infer``: what is there already, the figures, and what is told."""

import argparse
import json
import sys
from collections.abc import Iterable
from pathlib import Path

from bertqa.errors import UserError
from bertqa.files import said_plainly, write_text

METRICS = "metrics.json"


def check_free(flags: argparse.Namespace, names: Iterable[str], resumable: bool = False) -> None:
    """Refuse to replace or remove what is there: the folder may be a model's, with its figures.

    Args:
        names: what would be written, besides the figures.
        resumable: --resume can go on with these.
    """
    names = list(names)
    existing = next((f for n in (*names, METRICS) if (f := flags.output_dir / n).exists()), None)
    if existing and not flags.overwrite_output_dir and not flags.resume:
        going_on = ", --resume to go on" if resumable and existing.name in names else ""
        raise UserError(
            f"{existing} is there already: name another --output_dir{going_on}, or pass "
            "--overwrite_output_dir"
        )
    if flags.resume and flags.overwrite_output_dir:
        raise UserError("--resume and --overwrite_output_dir exclude each other: pass one")


def make_folder(flags: argparse.Namespace) -> None:
    """Make --output_dir, before the work that is to go there."""
    with said_plainly(flags.output_dir, "made"):
        flags.output_dir.mkdir(parents=True, exist_ok=True)


def say(line: str) -> None:
    """Tell what is not the figures, apart from them."""
    print(line, file=sys.stderr)


def keep_metrics(flags: argparse.Namespace, metrics: dict[str, float]) -> list[Path]:
    """Write and print the figures, if there are any."""
    if metrics:
        print(json.dumps(metrics, indent=None if flags.json else 2))
    text = json.dumps(metrics, indent=2) + "\n" if metrics else ""
    return keep(flags.output_dir / METRICS, text)


def keep(path: Path, text: str) -> list[Path]:
    """Write a file, or where it would be empty drop that of other answers; the files, if any."""
    if text:
        write_text(path, text)
        return [path]
    with said_plainly(path, "removed"):
        path.unlink(missing_ok=True)
    return []
