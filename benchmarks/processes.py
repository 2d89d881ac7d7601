"""Tasks that are whole processes: everything counts, from the start of the interpreter on."""

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
    "the rows of transformers 4.57, the last with this code, are left out; for them: python3 -m "
    'venv DIR && DIR/bin/pip install torch "transformers==4.57.*" datasets, then --peer_python '
    "DIR/bin/python"
)


class ProcessTask:
    """A command, started anew in each round.

    Args:
        command: program and arguments.
        answers: the JSON file that it writes, a map from id to answer; None if it prints JSON
            with one answer, or nothing that is looked at.
    """

    def __init__(self, command: Sequence[str], answers: str | None = None) -> None:
        self.command, self.answers = command, answers
        self._peak = 0.0

    def work(self) -> str:
        """Run the command to its end; what it printed.

        Raises:
            RuntimeError: it ended with another code than 0.
        """
        with tempfile.TemporaryFile("w+") as output, tempfile.TemporaryFile("w+") as errors:
            process = subprocess.Popen(
                self.command, stdin=subprocess.DEVNULL, stdout=output, stderr=errors
            )
            # wait4 gives the memory of this process alone; Popen.wait would not.
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
            self._peak = max(self._peak, in_mib(usage.ru_maxrss))
            if process.returncode:
                errors.seek(0)
                reason = errors.read().strip().splitlines()[-1:] or ["no message"]
                raise RuntimeError(
                    f"{self.command[0]} ended with code {process.returncode}: {reason[0]}"
                )
            output.seek(0)
            return output.read()

    def result(self) -> dict[str, list[Any]]:
        """The answers of one run, in order of their ids."""
        printed = self.work()
        if self.answers is None:
            return {"answers": [json.loads(printed)["answer"]] if printed else []}
        by_id = json.loads(Path(self.answers).read_text(encoding="utf-8"))
        return {"answers": [by_id[name] for name in sorted(by_id)]}

    def peak_mib(self) -> float:
        """The most memory that the command held in any round."""
        return self._peak


def process(name: str, command: Sequence[str], answers: Path | None = None) -> Contender:
    """The contender that runs a command."""
    arguments = {"command": list(command), "answers": str(answers) if answers else None}
    return Contender(name, "benchmarks.processes:ProcessTask", arguments)


def infer(name: str, model: Path, asked: Path, output: Path, *options: str) -> Contender:
    """The contender that is infer.py over a file."""
    command = [
        sys.executable, str(ROOT / "infer.py"), "--model", str(model), "--input", str(asked),
        "--output_dir", str(output), "--overwrite_output_dir", *options,
    ]  # fmt: skip
    return process(name, command, output / "predictions.json")


def has_peer(python: Path | None) -> bool:
    """Whether --peer_python was given; says what to do for it if not."""
    if python is None:
        say(_PEER_HINT)
    return python is not None
