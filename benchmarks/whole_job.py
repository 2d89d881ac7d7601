"""A SQuAD file to predictions.json in a cold process: everything counts, from its start on.

Ours is infer.py; the peer is the question-answering pipeline of transformers 4.57 with its own
defaults (384 tokens, 128 overlap, answers of 15 tokens at most), at several batch sizes and, what
its users have to ask for, in bf16 too.

The pipeline makes the scores of each window probabilities before it compares windows, so it may
choose another window than the highest score. Whether a row counts is decided on the questions
whose text fits into one window; the table shows the agreement on all.
"""

import argparse
import sys
import tempfile
from collections.abc import Sequence
from itertools import compress
from pathlib import Path
from typing import Any

from benchmarks.data import (
    PEER_HINT,
    add_model_flag,
    add_peer_flag,
    model_folder,
    random_questions,
    squad_file,
)
from benchmarks.harness import (
    ROOT,
    Contender,
    Measured,
    command_line,
    measure,
    parser,
    positive,
    publish,
    ratio_text,
    table,
)
from benchmarks.processes import share_equal
from bertqa.data.readers import read_examples
from bertqa.data.tokenization import BertTokenizer
from bertqa.data.windows import make_windows
from bertqa.settings import WindowSettings

EXACT, DEFAULT, INTEGERS = "bertqa, fp32", "bertqa, default precision", "bertqa, int8"
# Per cent of equal answers that a row must have, in fp32 and in lower precision.
_ENOUGH, _ENOUGH_ROUNDED = 98.0, 85.0


class Agreement:
    """Compares each row's answers with the reference's and remembers them all.

    Args:
        single: for each question, in order of the ids, whether it has one window.
    """

    def __init__(self, single: Sequence[bool]) -> None:
        self.single = single
        self.answers: dict[str, list[str]] = {}

    def __call__(
        self, name: str, result: dict[str, list[Any]], reference: dict[str, list[Any]]
    ) -> str:
        """Refuse a row that gives other answers than bertqa in fp32."""
        self.answers[name] = result["answers"]
        ours = list(compress(reference["answers"], self.single))
        share = share_equal(ours, list(compress(result["answers"], self.single)))
        rounded = name in (DEFAULT, INTEGERS) or name.endswith("bf16")
        if share >= (_ENOUGH_ROUNDED if rounded else _ENOUGH):
            return ""
        return f"only {share:.1f} % of the answers from one window are those of {EXACT}"

    def text(self, name: str, other: str) -> str:
        """Per cent of equal answers of two rows."""
        return f"{share_equal(self.answers[name], self.answers[other]):.1f}"


def one_window(asked: Path, model: Path) -> list[bool]:
    """Whether each question of a file has one window, in order of the ids."""
    examples = sorted(read_examples(asked), key=lambda example: example.id)
    windows = make_windows(examples, BertTokenizer.load(model), WindowSettings())
    counts = windows.example.bincount(minlength=len(examples))
    return [count == 1 for count in counts.tolist()]


def contenders(flags: argparse.Namespace, model: str, asked: str, folder: Path) -> list[Contender]:
    """Ours in three precisions, then the peer at each batch size."""
    rows = [
        _ours(name, ["--precision", precision], model, asked, folder / f"ours-{precision}")
        for name, precision in ((EXACT, "fp32"), (DEFAULT, "auto"), (INTEGERS, "int8"))
    ]
    if flags.peer_python is None:
        print(PEER_HINT, file=sys.stderr)
        return rows
    return rows + [
        _peer(flags.peer_python, size, precision, model, asked, folder)
        for size in flags.batch_sizes
        for precision in ("fp32", "bf16")
    ]


def _ours(name: str, options: Sequence[str], model: str, asked: str, output: Path) -> Contender:
    command = [
        sys.executable, str(ROOT / "infer.py"), "--model", model, "--input", asked,
        "--output_dir", str(output), "--overwrite_output_dir", "--max_answer_length", "15",
        *options,
    ]  # fmt: skip
    arguments = {"command": command, "answers": str(output / "predictions.json")}
    return Contender(name, "benchmarks.processes:process_task", arguments)


def _peer(
    python: Path, batch_size: int, precision: str, model: str, asked: str, folder: Path
) -> Contender:
    answers = folder / f"peer-{batch_size}-{precision}.json"
    script = str(ROOT / "benchmarks" / "peer_pipeline.py")
    command = [str(python), script, model, asked, str(answers), str(batch_size), precision]
    name = f"transformers 4.57 pipeline, batch_size {batch_size}, {precision}"
    arguments = {"command": command, "answers": str(answers)}
    return Contender(name, "benchmarks.processes:process_task", arguments)


def rows_of(measured: Sequence[Measured], agreement: Agreement, questions: int) -> list[list[str]]:
    """The table's rows; a row that was refused says why."""
    ours = measured[:3]
    rows = []
    for row in measured:
        name = row.contender.name
        if row.failure:
            rows.append([name, row.failure, *[""] * 7])
            continue
        ratios = ["" if row is o or o.failure else ratio_text(o.ratios(row)) for o in ours]
        rows.append([
            name, f"{row.median:.1f}", f"{questions / row.median:.1f}", *ratios,
            agreement.text(name, EXACT), agreement.text(name, DEFAULT), f"{row.peak_mib:.0f}",
        ])  # fmt: skip
    return rows


def main() -> None:
    """Measure and print."""
    flags_parser = parser(__doc__)
    flags_parser.set_defaults(rounds=3)
    add_model_flag(flags_parser)
    add_peer_flag(flags_parser)
    add = flags_parser.add_argument
    add("--questions", type=positive, default=1000, help="drawn from the dev set (1000)")
    add("--batch_sizes", type=positive, nargs="+", default=[1, 8, 16], help="of the peer (1 8 16)")
    flags = flags_parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = model_folder(flags.model, folder)
        source = squad_file("dev", flags.data, folder)
        asked = random_questions(source, folder / "asked.json", flags.questions)
        agreement = Agreement(one_window(asked, model))
        rows = contenders(flags, str(model), str(asked), folder)
        measured = measure(
            rows, rounds=flags.rounds, threads=flags.threads, compare=agreement, warm_up=False
        )
    questions = len(agreement.single)
    header = [
        "whole process", "seconds", "questions/s", "bertqa fp32 / it", "bertqa (default) / it",
        "bertqa int8 / it",
        "% answers as bertqa fp32", "% as bertqa default", "peak MiB",
    ]  # fmt: skip
    text = table(header, rows_of(measured, agreement, questions))
    text += f"\n\n{questions} questions, {flags.threads} threads, {flags.rounds} rounds."
    command = command_line("benchmarks.whole_job", flags_parser, flags)
    publish("whole job", command, text, flags.page)


if __name__ == "__main__":
    main()
