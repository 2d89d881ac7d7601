"""Peak memory of infer.py over JSON lines: a thousand of them, and a hundred thousand.

Each line is a question about a short text of its own, and becomes a line of the output. What could
grow is all that a program might keep of lines it is done with.
"""

import json
import random
import sys
import tempfile
from pathlib import Path

from benchmarks.data import add_model_flag, model_folder
from benchmarks.harness import ROOT, command_line, plain_parser, positive, publish, say, table
from benchmarks.processes import run

_NAMES = "Ada Ben Cleo Dora Emil Finn Gwen Hugo Iris Jack".split()
_THINGS = "quay mill bridge chapel lantern ferry school market tunnel tower".split()
_TOWNS = "Hask Orrin Velm Tarrow Quill Merle Sund Karre Loft Brenn".split()


def write_lines(path: Path, count: int) -> None:
    """Made-up questions, all different: their texts and their words come again, they do not."""
    draw = random.Random(count)
    with path.open("w", encoding="utf-8") as file:
        for number in range(count):
            name, thing, town = draw.choice(_NAMES), draw.choice(_THINGS), draw.choice(_TOWNS)
            context = f"In {number} {name} built the {thing} of {town}, and nobody else did."
            entry = {"question": f"Who built the {thing} of {town}?", "context": context}
            file.write(json.dumps(entry) + "\n")


def row(count: int, model: Path, folder: Path, base: float | None) -> tuple[list[str], float]:
    """A row of the table and the peak in MiB; the ratio is to ``base``."""
    write_lines(folder / f"{count}.jsonl", count)
    finished = run([
        sys.executable, str(ROOT / "infer.py"), "--model", str(model), "--input",
        str(folder / f"{count}.jsonl"), "--output_dir", str(folder / str(count)),
    ])  # fmt: skip
    output = folder / str(count) / "predictions.jsonl"
    with output.open("rb") as file:
        written = sum(1 for _ in file)
    if written != count:
        raise SystemExit(f"{count} lines went in, {written} came out")
    peak = finished.peak_mib
    sizes = [f"{(folder / f'{count}.jsonl').stat().st_size / 2**20:.1f}"]
    sizes += [f"{output.stat().st_size / 2**20:.1f}", f"{peak:.0f}"]
    ratio = f"{peak / base:.2f}" if base else "1.00"
    return [f"{count:,}", *sizes, ratio, f"{finished.seconds:.1f}"], peak


def main() -> None:
    """Measure and print."""
    flags_parser = plain_parser(__doc__)
    add_model_flag(flags_parser)
    flags_parser.add_argument("--lines", type=positive, default=1000, help="of the first (1000)")
    flags = flags_parser.parse_args()
    rows: list[list[str]] = []
    base = None
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = model_folder(flags.model, folder)
        for count in (flags.lines, 10 * flags.lines, 100 * flags.lines):
            cells, peak = row(count, model, folder, base)
            base = base or peak
            say(" ".join(cells))
            rows.append(cells)
    header = ["lines", "input MiB", "output MiB", "peak MiB", "ratio", "seconds"]
    command = command_line("benchmarks.lines", flags_parser, flags)
    publish("lines", command, table(header, rows), flags.page)


if __name__ == "__main__":
    main()
