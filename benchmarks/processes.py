"""Tasks that are whole processes, timed from the start of the interpreter."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.harness import ROOT, Contender, in_mib, say

PIPELINE = str(ROOT / "benchmarks" / "peer_pipeline.py")
_PEER_HINT = (
    "without --peer_python, rows of transformers 4.57 are omitted; to include them: python3 -m "
    'venv DIR && DIR/bin/pip install torch "transformers==4.57.*" datasets, then --peer_python '
    "DIR/bin/python"
)


class ProcessTask:
    """A command that is started in each round.

    Args:
        command: program and arguments.
        answers: the JSON file that it writes, id -> answer; None if it prints JSON with one answer,
            or has no output to compare.
    """

    def __init__(self, command: Sequence[str], answers: str | None = None) -> None:
        self.command, self.answers = command, answers
        self._peak = 0.0

    def work(self) -> str:
        """Run the command; return its output.

        Raises:
            RuntimeError: its exit code is not 0.
        """
        with tempfile.TemporaryFile("w+") as output, tempfile.TemporaryFile("w+") as errors:
            process = subprocess.Popen(
                self.command, stdin=subprocess.DEVNULL, stdout=output, stderr=errors
            )
            # wait4 returns the peak memory of this process only.
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
            self._peak = max(self._peak, in_mib(usage.ru_maxrss))
            if process.returncode:
                errors.seek(0)
                reason = errors.read().strip().splitlines()[-1:] or ["no message"]
                raise RuntimeError(
                    f"{self.command[0]}: exit code {process.returncode}: {reason[0]}"
                )
            output.seek(0)
            return output.read()

    def result(self) -> dict[str, list[Any]]:
        """Run the command; return the answers in order of their ids."""
        printed = self.work()
        if self.answers is None:
            return {"answers": [json.loads(printed)["answer"]] if printed else []}
        by_id = json.loads(Path(self.answers).read_text(encoding="utf-8"))
        return {"answers": [by_id[name] for name in sorted(by_id)]}

    def peak_mib(self) -> float:
        """Return the peak memory of the command over all rounds."""
        return self._peak


def process(name: str, command: Sequence[str], answers: Path | None = None) -> Contender:
    """Return the contender that runs a command."""
    arguments = {"command": list(command), "answers": str(answers) if answers else None}
    return Contender(name, "benchmarks.processes:ProcessTask", arguments)


def infer(name: str, model: Path, asked: Path, output: Path, *options: str) -> Contender:
    """Return the contender that runs infer.py on a file."""
    command = [
        sys.executable, str(ROOT / "infer.py"), "--model", str(model), "--input", str(asked),
        "--output_dir", str(output), "--overwrite_output_dir", *options,
    ]  # fmt: skip
    return process(name, command, output / "predictions.json")


def has_peer(python: Path | None) -> bool:
    """Return whether --peer_python was given; print a hint if not."""
    if python is None:
        say(_PEER_HINT)
    return python is not None
