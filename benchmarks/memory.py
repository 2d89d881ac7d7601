"""Peak memory of infer.py over a file, and over a file of ten times as many questions.

Logits, windows and batches are let go block by block, so what grows with the file should be the
file itself and the answers, not the model's results. The table has the sizes of both beside it.
"""

import argparse
from pathlib import Path
from typing import Any

from benchmarks.data import add_model_flag, first_questions, squad_file
from benchmarks.harness import Contender, Measured, measure, parser, positive, run, table
from benchmarks.models import model_folder
from benchmarks.processes import infer


def complete(row: Contender, result: dict[str, list[Any]], reference: dict[str, list[Any]]) -> str:
    """Refuse a row that has not answered each of its questions."""
    return "" if len(result["answers"]) == int(row.name) else "lost answers"


def line_of(row: Measured, base: Measured, folder: Path) -> list[str]:
    """One row of the table; the ratio is to the run over the base's questions."""
    if row.failure:
        return [row.name, row.failure, *[""] * 4]
    read = (folder / f"{row.name}.json").stat().st_size / 2**20
    written = sum(file.stat().st_size for file in (folder / row.name).iterdir()) / 2**20
    ratio = "" if base.failure else f"{row.peak_mib / base.peak_mib:.2f}"
    sizes = [f"{read:.2f}", f"{written:.1f}", f"{row.peak_mib:.0f}"]
    return [row.name, *sizes, ratio, f"{row.median:.1f}"]


def work(flags: argparse.Namespace, folder: Path) -> str:
    """The table."""
    model = model_folder(flags.model, folder)
    source = squad_file("dev", flags.data, folder)
    rows = []
    for count in (1, flags.questions, 10 * flags.questions):
        asked = first_questions(source, folder / f"{count}.json", count)
        rows.append(infer(str(count), model, asked, folder / str(count)))
    measured = measure(
        rows, rounds=flags.rounds, threads=flags.threads, compare=complete, warm_up=False
    )
    header = ["questions", "input MiB", "output MiB", "peak MiB", "ratio", "seconds"]
    text = table(header, [line_of(row, measured[1], folder) for row in measured])
    return f"{text}\n\n{flags.threads} threads; {flags.rounds} rounds, the largest peak of them."


def main() -> None:
    """Measure and print."""
    flags_parser = parser(__doc__)
    flags_parser.set_defaults(rounds=1)
    add_model_flag(flags_parser)
    flags_parser.add_argument(
        "--questions", type=positive, default=1000, help="of the first (1000)"
    )
    run(flags_parser, work, "memory")


if __name__ == "__main__":
    main()
