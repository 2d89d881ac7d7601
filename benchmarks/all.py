"""All speed benchmarks for this machine, with an update of the tables on a page.

On a GPU: training and inference in the sizes of bert-base and bert-large, and the tests that need a
GPU. On a CPU: the benchmarks of docs/speed.md, in about an hour on two cores. No other programs
should run at the same time.
"""

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch

from benchmarks.data import add_model_flag, add_peer_flag
from benchmarks.harness import ROOT, plain_parser, say

# Arguments after "python -m benchmarks." without the paths; see ``commands``.
_ON_CPU = (
    "inference --windows 96 --rounds 5",
    "inference --one --rounds 9",
    "inference --size base --windows 32 --rounds 3",
    "training --rounds 3 --steps 1",
    "whole_job --questions 1000 --batch_sizes 1 8 --rounds 1",
    "startup --rounds 9",
    "memory",
    "growth",
    "operators",
    "operators --precision int8",
    "operators --training",
)
_ON_GPU = (
    "inference --size base --windows 2048",
    "inference --size large --windows 2048",
    "training --size base --batch_size 32 --steps 8",
    "training --size large --batch_size 32 --steps 4",
    "training --size large --batch_size 64 --steps 4",
)
_MODEL_ONLY = ("inference", "training", "operators")  # these make checkpoints in --folder
_WITH_PEER = ("whole_job", "startup")


def commands(flags: argparse.Namespace, folder: Path) -> Iterator[list[str]]:
    """Yield the commands for this machine, with the paths that each accepts."""
    on_gpu = torch.cuda.is_available()
    for line in _ON_GPU if on_gpu else _ON_CPU:
        name, *rest = line.split()
        command = [sys.executable, "-m", f"benchmarks.{name}", *rest]
        if flags.data:
            command += ["--data", str(flags.data.resolve())]
        if flags.page:
            command += ["--page", str(flags.page.resolve())]
        if name in _MODEL_ONLY:
            command += ["--folder", str(folder)]
            if on_gpu and flags.peak:
                command += ["--peak", str(flags.peak)]
        elif flags.model:
            command += ["--model", str(flags.model.resolve())]
        if name in _WITH_PEER and flags.peer_python:
            command += ["--peer_python", str(flags.peer_python.absolute())]
        yield command
    if on_gpu:
        yield [sys.executable, "-m", "pytest", "-m", "gpu"]


def main() -> None:
    """Run all commands, also after a failure.

    Raises:
        SystemExit: with code 1, if any failed.
    """
    flags_parser = plain_parser(__doc__)
    add_model_flag(flags_parser)
    add_peer_flag(flags_parser)
    flags_parser.add_argument("--peak", type=float, help="nominal bf16 TFLOP/s of the GPU")
    flags = flags_parser.parse_args()
    failed = []
    with tempfile.TemporaryDirectory() as name:
        for command in commands(flags, Path(name)):
            say(" ".join(command[1:]))
            if subprocess.run(command, cwd=ROOT).returncode:
                failed.append(command[2])
    if failed:
        raise SystemExit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
