"""Cold start to the first answer, in whole processes.

The floor is a process that imports torch and reads the weights, a lower bound for programs that use
torch. The files are in the page cache, since every process has run once before.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

from benchmarks.data import add_model_flag, add_peer_flag
from benchmarks.harness import ROOT, Contender, conditions, measure, parser, run, table
from benchmarks.models import model_folder
from benchmarks.processes import PIPELINE, has_peer, process

OURS, PEER = "infer.py --question", "transformers 4.57 pipeline"

_QUESTION = "Who built the bridge?"
_CONTEXT = "The bridge over the river was built by Ada, an engineer, in three years."
_READ_WEIGHTS = "import sys, torch, safetensors.torch as s; s.load_file(sys.argv[1])"


def contenders(flags: argparse.Namespace, model: Path) -> list[Contender]:
    """Return the floor, ours, the import only, and the peer."""
    python = sys.executable
    weights = str(model / "model.safetensors")
    asked = ["--question", _QUESTION, "--context", _CONTEXT, "--json"]
    rows = [
        process("import torch, read the weights", [python, "-c", _READ_WEIGHTS, weights]),
        process(OURS, [python, str(ROOT / "infer.py"), "--model", str(model), *asked]),
        process("import bertqa", [python, "-c", "import bertqa"]),
    ]
    if has_peer(flags.peer_python):
        ask = [str(flags.peer_python), PIPELINE, str(model), "--ask", _QUESTION, _CONTEXT]
        rows.append(process(PEER, ask))
    return rows


def answers(row: Contender, result: dict[str, list[Any]], reference: dict[str, list[Any]]) -> str:
    """Reject a row that should answer and did not."""
    return "no answer" if row.name in (OURS, PEER) and not any(result["answers"]) else ""


def work(flags: argparse.Namespace, folder: Path) -> str:
    """Measure; return the table, with ratios to the floor."""
    rows = contenders(flags, model_folder(flags.model, folder))
    measured = measure(rows, rounds=flags.rounds, threads=flags.threads, compare=answers)
    lines = [
        [row.name, row.failure, "", ""] if row.failure else
        [row.name, f"{row.median:.2f}", measured[0].ratio_text(row), f"{row.peak_mib:.0f}"]
        for row in measured
    ]  # fmt: skip
    header = ["whole process", "seconds", "times the floor's", "peak MiB"]
    return f"{table(header, lines)}\n\n{conditions(flags)}."


def main() -> None:
    """Measure and print."""
    flags_parser = parser(__doc__)
    flags_parser.set_defaults(rounds=9)
    add_model_flag(flags_parser)
    add_peer_flag(flags_parser)
    run(flags_parser, work, "startup")


if __name__ == "__main__":
    main()
