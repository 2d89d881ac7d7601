"""Cold start to the first answer, as whole processes.

The floor is a process that imports torch and reads the weights: no program that answers with
torch is faster. The files are in the page cache, since every process has run once before.
"""

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.data import PEER_HINT, add_model_flag, add_peer_flag, model_folder
from benchmarks.harness import (
    ROOT,
    Contender,
    Measured,
    command_line,
    measure,
    parser,
    publish,
    ratio_text,
    table,
)

OURS, FLOOR, PACKAGE = "infer.py --question", "import torch, read the weights", "import bertqa"
PIPELINE = "transformers 4.57 pipeline"

_QUESTION = "Who built the bridge?"
_CONTEXT = "The bridge over the river was built by Ada, an engineer, in three years."
_READ_WEIGHTS = "import sys, torch, safetensors.torch as s; s.load_file(sys.argv[1])"


def contenders(flags: argparse.Namespace, model: Path) -> list[Contender]:
    """The floor, ours, the bare import, the peer."""
    ask = [
        str(ROOT / "infer.py"), "--model", str(model), "--question", _QUESTION,
        "--context", _CONTEXT, "--json",
    ]  # fmt: skip
    commands = {
        FLOOR: [sys.executable, "-c", _READ_WEIGHTS, str(model / "model.safetensors")],
        OURS: [sys.executable, *ask],
        PACKAGE: [sys.executable, "-c", "import bertqa"],
    }
    if flags.peer_python is None:
        print(PEER_HINT, file=sys.stderr)
    else:
        script = str(ROOT / "benchmarks" / "peer_pipeline.py")
        python = str(flags.peer_python)
        commands[PIPELINE] = [python, script, str(model), "--ask", _QUESTION, _CONTEXT]
    return [
        Contender(
            name,
            "benchmarks.processes:process_task",
            {"command": command, "prints": "answer" if name in (OURS, PIPELINE) else ""},
        )
        for name, command in commands.items()
    ]


def ends_as_it_should(
    name: str, result: dict[str, list[Any]], reference: dict[str, list[Any]]
) -> str:
    """Refuse a row that is there to answer and did not."""
    if name in (OURS, PIPELINE) and not result.get("answers"):
        return "gave no answer"
    return ""


def rows_of(measured: Sequence[Measured]) -> list[list[str]]:
    """The table's rows, each beside the floor."""
    floor = measured[0]
    rows = []
    for row in measured:
        if row.failure:
            rows.append([row.contender.name, row.failure, "", ""])
            continue
        ratio = "" if row is floor else ratio_text(floor.ratios(row))
        rows.append([row.contender.name, f"{row.median:.2f}", ratio, f"{row.peak_mib:.0f}"])
    return rows


def main() -> None:
    """Measure and print."""
    flags_parser = parser(__doc__)
    flags_parser.set_defaults(rounds=9)
    add_model_flag(flags_parser)
    add_peer_flag(flags_parser)
    flags = flags_parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows = contenders(flags, model_folder(flags.model, Path(folder)))
        measured = measure(
            rows, rounds=flags.rounds, threads=flags.threads, compare=ends_as_it_should
        )
    header = ["whole process", "seconds", "times the floor's", "peak MiB"]
    text = table(header, rows_of(measured))
    text += f"\n\n{flags.threads} threads, {flags.rounds} rounds."
    publish("startup", command_line("benchmarks.startup", flags_parser, flags), text, flags.page)


if __name__ == "__main__":
    main()
