"""Peak memory of infer.py over a file, and over a file of ten times as many questions.

Logits, windows and batches are let go block by block, so what grows with the file should be the
file itself and the answers, not the model's results. The table has the sizes of both beside it.
"""

import sys
import tempfile
from pathlib import Path

from benchmarks.data import add_model_flag, first_questions, model_folder, squad_file
from benchmarks.harness import (
    ROOT,
    Contender,
    Measured,
    command_line,
    measure,
    parser,
    positive,
    publish,
    table,
)


def contender(source: Path, model: Path, questions: int, folder: Path) -> Contender:
    """infer.py over the first questions of a file."""
    asked = first_questions(source, folder / f"{questions}.json", questions)
    output = folder / str(questions)
    command = [
        sys.executable, str(ROOT / "infer.py"), "--model", str(model), "--input", str(asked),
        "--output_dir", str(output), "--overwrite_output_dir",
    ]  # fmt: skip
    arguments = {"command": command, "answers": str(output / "predictions.json")}
    return Contender(str(questions), "benchmarks.processes:process_task", arguments)


def row_of(row: Measured, base: Measured, folder: Path) -> list[str]:
    """One row of the table; the ratio is to the run over the base's questions."""
    name = row.contender.name
    if row.failure:
        return [name, row.failure, *[""] * 4]
    read = (folder / f"{name}.json").stat().st_size / 2**20
    written = sum(file.stat().st_size for file in (folder / name).iterdir()) / 2**20
    ratio = "" if base.failure else f"{row.peak_mib / base.peak_mib:.2f}"
    sizes = [f"{read:.2f}", f"{written:.1f}", f"{row.peak_mib:.0f}"]
    return [name, *sizes, ratio, f"{row.median:.1f}"]


def main() -> None:
    """Measure and print."""
    flags_parser = parser(__doc__)
    flags_parser.set_defaults(rounds=1)
    add_model_flag(flags_parser)
    flags_parser.add_argument(
        "--questions", type=positive, default=1000, help="of the first (1000)"
    )
    flags = flags_parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = model_folder(flags.model, folder)
        source = squad_file("dev", flags.data, folder)
        counts = (1, flags.questions, 10 * flags.questions)
        measured = measure(
            [contender(source, model, count, folder) for count in counts],
            rounds=flags.rounds,
            threads=flags.threads,
            compare=lambda name, result, _: "" if len(result["answers"]) == int(name) else "lost",
            warm_up=False,
        )
        rows = [row_of(row, measured[1], folder) for row in measured]
    header = ["questions", "input MiB", "output MiB", "peak MiB", "ratio", "seconds"]
    text = table(header, rows)
    text += f"\n\n{flags.threads} threads; {flags.rounds} rounds, the largest peak of them."
    publish("memory", command_line("benchmarks.memory", flags_parser, flags), text, flags.page)


if __name__ == "__main__":
    main()
