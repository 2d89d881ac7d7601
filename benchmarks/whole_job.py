"""Whole processes from a SQuAD file to predictions.json.

bertqa runs infer.py; the peer is the question-answering pipeline of transformers 4.57 with its
defaults (384 tokens, overlap 128, answers of at most 15 tokens), with several batch sizes, in fp32
and in bf16, which is not its default.

The pipeline applies a softmax to each window before it compares windows, so it may choose another
window than the one with the highest score. A row is timed if its answers agree on questions with
one window; the table shows the agreement on all questions.
"""

import argparse
from collections.abc import Sequence
from itertools import compress
from pathlib import Path
from typing import Any

from benchmarks.data import add_model_flag, add_peer_flag, random_questions, squad_file
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
from benchmarks.processes import PIPELINE, has_peer, infer, process
from bertqa.data.readers import read_examples
from bertqa.data.tokenization import BertTokenizer
from bertqa.data.windows import make_windows
from bertqa.errors import counted
from bertqa.settings import WindowSettings

EXACT, DEFAULT, INTEGERS = "bertqa, fp32", "bertqa, default precision", "bertqa, int8"
# Minimum percentage of equal answers, in fp32 and in lower precision.
_ENOUGH, _ENOUGH_ROUNDED = 98.0, 85.0


class Agreement:
    """Compares the answers of each row with the reference and stores them.

    Args:
        single: whether each question, in order of ids, has one window.
    """

    def __init__(self, single: Sequence[bool]) -> None:
        self.single = single
        self.answers: dict[str, list[str]] = {}

    def __call__(
        self, row: Contender, result: dict[str, list[Any]], reference: dict[str, list[Any]]
    ) -> str:
        """Reject a row whose answers differ too often from bertqa in fp32."""
        self.answers[row.name] = result["answers"]
        ours = list(compress(reference["answers"], self.single))
        share = share_equal(ours, list(compress(result["answers"], self.single)))
        rounded = row.name in (DEFAULT, INTEGERS) or row.name.endswith("bf16")
        if share >= (_ENOUGH_ROUNDED if rounded else _ENOUGH):
            return ""
        return f"only {share:.1f} % of the answers from one window equal those of {EXACT}"

    def text(self, name: str, other: str) -> str:
        """Return the percentage of equal answers of two rows; "" if the other has none."""
        if other not in self.answers:
            return ""
        return f"{share_equal(self.answers[name], self.answers[other]):.1f}"


def share_equal(ours: Sequence[str], theirs: Sequence[str]) -> float:
    """Return the percentage of equal answers; 100 if there are none."""
    same = [a == b for a, b in zip(ours, theirs, strict=True)]
    return 100 * sum(same) / len(same) if same else 100.0


def one_window(asked: Path, model: Path) -> list[bool]:
    """Return whether each question of a file, in order of ids, has one window."""
    examples = sorted(read_examples(asked), key=lambda example: example.id)
    windows = make_windows(examples, BertTokenizer.load(model), WindowSettings())
    counts = windows.example.bincount(minlength=len(examples))
    return [count == 1 for count in counts.tolist()]


def contenders(
    flags: argparse.Namespace, model: Path, asked: Path, folder: Path
) -> list[Contender]:
    """Return ours in three precisions, then the peer with each batch size."""
    rows = []
    for name, precision in ((EXACT, "fp32"), (DEFAULT, "auto"), (INTEGERS, "int8")):
        options = ["--max_answer_length", "15", "--precision", precision]
        rows.append(infer(name, model, asked, folder / f"ours-{precision}", *options))
    if not has_peer(flags.peer_python):
        return rows
    for size in map(str, flags.batch_sizes):
        for precision in ("fp32", "bf16"):
            answers = folder / f"peer-{size}-{precision}.json"
            given = [str(path) for path in (model, asked, answers)]
            command = [str(flags.peer_python), PIPELINE, *given, size, precision]
            name = f"transformers 4.57 pipeline, batch_size {size}, {precision}"
            rows.append(process(name, command, answers))
    return rows


def line_of(
    row: Measured, measured: Sequence[Measured], agreement: Agreement, questions: int
) -> list[str]:
    """Return a row of the table, with the reason if it was rejected."""
    if row.failure:
        return [row.name, row.failure, *[""] * 7]
    return [
        row.name, f"{row.median:.1f}", f"{questions / row.median:.1f}",
        *(ours.ratio_text(row) for ours in measured[:3]),
        agreement.text(row.name, EXACT), agreement.text(row.name, DEFAULT), f"{row.peak_mib:.0f}",
    ]  # fmt: skip


def work(flags: argparse.Namespace, folder: Path) -> str:
    """Measure; return the table with its conditions."""
    model = model_folder(flags.model, folder)
    source = squad_file("dev", flags.data, folder)
    asked = random_questions(source, folder / "asked.json", flags.questions)
    agreement = Agreement(one_window(asked, model))
    rows = contenders(flags, model, asked, folder)
    measured = measure(
        rows, rounds=flags.rounds, threads=flags.threads, compare=agreement, warm_up=False
    )
    questions = len(agreement.single)
    header = [
        "whole process", "seconds", "questions/s", "bertqa fp32 / it", "bertqa (default) / it",
        "bertqa int8 / it",
        "% answers as bertqa fp32", "% as bertqa default", "peak MiB",
    ]  # fmt: skip
    text = table(header, [line_of(row, measured, agreement, questions) for row in measured])
    return f"{text}\n\n{counted(questions, 'question')}, {conditions(flags)}."


def main() -> None:
    """Measure and print."""
    flags_parser = parser(__doc__)
    flags_parser.set_defaults(rounds=3)
    add_model_flag(flags_parser)
    add_peer_flag(flags_parser)
    add = flags_parser.add_argument
    add("--questions", type=positive, default=1000, help="random questions of the dev set (1000)")
    add(
        "--batch_sizes", type=positive, nargs="+", default=[1, 8, 16],
        help="batch sizes of the peer (1 8 16)",
    )  # fmt: skip
    run(flags_parser, work, "whole job")


if __name__ == "__main__":
    main()
