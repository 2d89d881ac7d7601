"""Peak memory of inference on a file, on one ten times as large, and of single questions.

Windows, batches and logits are processed in blocks of constant memory, so the memory should only
grow by the size of the input and the answers, which the table shows too.

The second table is for a process that answers one question after the other with contexts of 20 to
380 tokens, like a server: with bertqa's limits of oneDNN's caches, and with oneDNN's defaults.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

from benchmarks.data import add_model_flag, first_questions, squad_file
from benchmarks.harness import (
    Contender,
    Measured,
    conditions,
    measure,
    parser,
    positive,
    run,
    table,
)
from benchmarks.models import model_folder
from benchmarks.processes import infer, process

_OWN_LIMITS = ["LRU_CACHE_CAPACITY=1024", "ONEDNN_PRIMITIVE_CACHE_CAPACITY=1024"]
_ASK_SINGLY = """
import random, sys
from bertqa import QuestionAnswerer

qa, draw = QuestionAnswerer.from_pretrained(sys.argv[1]), random.Random(1)
for _ in range(int(sys.argv[2])):
    words = draw.choices("the mill by old bridge was sold in year".split(), k=draw.randint(8, 368))
    qa("Who sold the mill?", " ".join(words))
"""


def complete(row: Contender, result: dict[str, list[Any]], reference: dict[str, list[Any]]) -> str:
    """Reject a row that has not answered all questions."""
    return "" if len(result["answers"]) == int(row.name) else "lost answers"


def line_of(row: Measured, base: Measured, folder: Path) -> list[str]:
    """Return a row of the table, with the ratio to ``base``."""
    if row.failure:
        return [row.name, row.failure, *[""] * 4]
    read = (folder / f"{row.name}.json").stat().st_size / 2**20
    written = sum(file.stat().st_size for file in (folder / row.name).iterdir()) / 2**20
    ratio = "" if base.failure else f"{row.peak_mib / base.peak_mib:.2f}"
    sizes = [f"{read:.2f}", f"{written:.1f}", f"{row.peak_mib:.0f}"]
    return [row.name, *sizes, ratio, f"{row.median:.1f}"]


def no_answer(row: Contender, result: dict[str, list[Any]], reference: object) -> str:
    """Accept all rows, which have no output to compare."""
    return ""


def singly(flags: argparse.Namespace, model: Path) -> str:
    """Return the table of single questions."""
    ask = [sys.executable, "-c", _ASK_SINGLY, str(model)]
    rows = [
        process("1", [*ask, "1"]),
        process(f"{flags.singly}", [*ask, str(flags.singly)]),
        process(
            f"{flags.singly}, oneDNN's own limits", ["env", *_OWN_LIMITS, *ask, str(flags.singly)]
        ),
    ]
    measured = measure(
        rows, rounds=flags.rounds, threads=flags.threads, compare=no_answer, warm_up=False
    )
    lines = [
        [row.name, row.failure, "", ""] if row.failure else
        [row.name, f"{row.peak_mib:.0f}", measured[1].ratio_text(row), f"{row.median:.1f}"]
        for row in measured
    ]  # fmt: skip
    return table(["single questions", "peak MiB", "time", "seconds"], lines)


def work(flags: argparse.Namespace, folder: Path) -> str:
    """Measure; return both tables."""
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
    text += f"\n\n{singly(flags, model)}"
    return f"{text}\n\n{conditions(flags)}; peaks are the largest of all rounds."


def main() -> None:
    """Measure and print."""
    flags_parser = parser(__doc__)
    flags_parser.set_defaults(rounds=1)
    add_model_flag(flags_parser)
    flags_parser.add_argument(
        "--questions", type=positive, default=1000, help="questions of the smaller file (1000)"
    )
    flags_parser.add_argument(
        "--singly", type=positive, default=1500, help="number of single questions (1500)"
    )
    run(flags_parser, work, "memory")


if __name__ == "__main__":
    main()
