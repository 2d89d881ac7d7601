"""Time and peak memory of inference as the work grows, one process per row.

Columns: the size, the seconds of the whole process, the seconds per unit beyond the smallest size
of the table (constant if the time is linear in the size), and the peak memory.

    questions      lines of a JSON-lines file
    context        characters of one context
    n_best_size    of 200 questions
    processes      torchrun with one thread each, on as many questions
    model          minilm, base and large, on 20 questions; no units
"""

import argparse
import json
import sys
from collections.abc import Sequence
from itertools import cycle, islice
from pathlib import Path
from typing import Any

from benchmarks.data import add_model_flag, first_questions, read_pairs, squad_file
from benchmarks.harness import (
    ROOT,
    Contender,
    Measured,
    conditions,
    measure,
    parser,
    positive,
    run,
    table,
)
from benchmarks.models import SIZES, checkpoint, model_folder
from benchmarks.processes import ProcessTask

CHARACTERS = (1_000, 10_000, 100_000, 1_000_000, 2_000_000)
N_BEST = (1, 10, 100, 1_000)
_TORCHRUN = ("-m", "torch.distributed.run", "--standalone")


def json_lines(source: Path, target: Path, count: int) -> Path:
    """Write ``count`` questions of a SQuAD file as JSON lines, repeated if it has fewer."""
    with target.open("w", encoding="utf-8") as file:
        for number, (context, entry) in enumerate(islice(cycle(read_pairs(source)), count)):
            row = {"id": str(number), "question": entry["question"], "context": context}
            file.write(json.dumps(row) + "\n")
    return target


def context(source: Path, target: Path, characters: int) -> Path:
    """Write the contexts of a SQuAD file one after the other, cut to a number of characters."""
    text = ""
    for paragraph, _ in cycle(read_pairs(source)):
        if len(text) >= characters:
            break
        text += paragraph + "\n\n"
    target.write_text(text[:characters], encoding="utf-8")
    return target


class Uncompared(ProcessTask):
    """A command whose output is not compared; it only runs when it is timed."""

    def result(self) -> dict[str, list[Any]]:
        """Return no values."""
        return {}


def infer(name: str, model: Path, *flags: str, launcher: Sequence[str] = ()) -> Contender:
    """Return the contender that runs infer.py with these flags."""
    command = [sys.executable, *launcher, str(ROOT / "infer.py"), "--model", str(model), *flags]
    return Contender(name, "benchmarks.growth:Uncompared", {"command": command})


def rows(flags: argparse.Namespace, folder: Path) -> dict[str, list[Contender]]:
    """Return the contenders of each table, from the smallest size to the largest."""
    model, source = model_folder(flags.model, folder), squad_file("dev", flags.data, folder)

    def of_file(
        name: str, asked: Path, *options: str, model: Path = model, launcher: Sequence[str] = ()
    ) -> Contender:
        output = ("--output_dir", str(folder / "answers"), "--overwrite_output_dir")
        return infer(name, model, "--input", str(asked), *output, *options, launcher=launcher)

    def of_context(size: int) -> Contender:
        text = context(source, folder / f"{size}.txt", size)
        ask = ("--question", "Who built the bridge?", "--context_file", str(text))
        return infer(f"{size:,}", model, *ask)

    counts = [10**power for power in range(1, 7) if 10**power <= flags.questions]
    files = [json_lines(source, folder / f"{count}.jsonl", count) for count in counts]
    sizes = list(SIZES) if "model" in flags.tables else []  # the checkpoint of large is 1.3 GB
    few = first_questions(source, folder / "few.json", 20)
    some = first_questions(source, folder / "some.json", 200)
    return {
        "questions": [of_file(f"{n:,}", file) for n, file in zip(counts, files, strict=True)],
        "context": [of_context(size) for size in CHARACTERS if size <= flags.characters],
        "n_best_size": [of_file(f"{n:,}", some, "--n_best_size", str(n)) for n in N_BEST],
        "processes": [
            of_file(str(n), files[-1], launcher=(*_TORCHRUN, f"--nproc_per_node={n}"))
            for n in (1, 2)
        ],
        "model": [of_file(size, few, model=checkpoint(size, folder)) for size in sizes],
    }


def line_of(row: Measured, smallest: Measured) -> list[str]:
    """Return a row of a table; its name is the size if it is a number."""
    if row.failure:
        return [row.name, row.failure, "", ""]
    per_unit = ""
    if row is not smallest and not smallest.failure and row.name[0].isdigit():
        units = int(row.name.replace(",", "")) - int(smallest.name.replace(",", ""))
        per_unit = f"{(row.median - smallest.median) / units:.2g}"
    return [row.name, f"{row.median:.2f}", per_unit, f"{row.peak_mib:.0f}"]


def work(flags: argparse.Namespace, folder: Path) -> str:
    """Measure; return the tables."""
    parts = []
    contenders_of = rows(flags, folder)
    for name in flags.tables:
        contenders = contenders_of[name]
        # torchrun starts the processes itself, one thread each.
        threads = 1 if name == "processes" else flags.threads
        measured = measure(
            contenders, rounds=flags.rounds, threads=threads,
            compare=lambda *_: "", warm_up=False,
        )  # fmt: skip
        header = [name, "seconds", "seconds per unit", "peak MiB"]
        lines = [line_of(row, measured[0]) for row in measured]
        if name == "processes":  # the launcher's memory is not that of its processes
            lines = [[*line[:2], "", ""] for line in lines]
        parts.append(table(header, lines))
    return "\n\n".join([*parts, f"{conditions(flags)}; seconds are medians."])


def main() -> None:
    """Measure and print."""
    flags_parser = parser(__doc__)
    flags_parser.set_defaults(rounds=1)
    add_model_flag(flags_parser)
    flags_parser.add_argument(
        "--questions", type=positive, default=10_000, help="largest number of questions (10000)"
    )
    flags_parser.add_argument(
        "--characters", type=positive, default=CHARACTERS[-1], help="longest context (2000000)"
    )
    names = ("questions", "context", "n_best_size", "processes", "model")
    flags_parser.add_argument(
        "--tables", nargs="+", choices=names, default=names, help="which tables (all)"
    )
    run(flags_parser, work, "growth")


if __name__ == "__main__":
    main()
