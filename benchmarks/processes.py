"""Tasks that are whole processes: everything counts, from the start of the interpreter on.

Only what comes with Python is imported, so that the worker stays small: on Linux the peak of a
process counts what its parent held when it was started.
"""

import json
import os
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.harness import in_mib


class Finished(NamedTuple):
    """A process that has ended well: what it printed, how long it ran, most memory it held."""

    output: str
    seconds: float
    peak_mib: float


def run(command: Sequence[str]) -> Finished:
    """Run a command to its end.

    Raises:
        RuntimeError: it ended with another code than 0.
    """
    with tempfile.TemporaryFile("w+") as output, tempfile.TemporaryFile("w+") as errors:
        started = time.perf_counter()
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=errors)
        # wait4 gives the memory of this process alone; Popen.wait would not.
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - started
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            errors.seek(0)
            reason = errors.read().strip().splitlines()[-1:] or ["no message"]
            raise RuntimeError(f"{command[0]} ended with code {process.returncode}: {reason[0]}")
        output.seek(0)
        return Finished(output.read(), seconds, in_mib(usage.ru_maxrss))


class ProcessTask:
    """A command, started anew in each round.

    Attributes:
        command: program and arguments.
        answers: the JSON file that it writes, a map from id to answer; None if it writes none.
        prints: "answer" if it prints JSON with that key; "seconds" if it prints the seconds that
            count, of a part of its work; "" if what it prints is not looked at.
    """

    def __init__(self, command: Sequence[str], answers: str | None, prints: str) -> None:
        self.command = command
        self.answers = answers
        self.prints = prints
        self._peak = 0.0

    def work(self) -> float | None:
        """Run the command."""
        finished = run(self.command)
        self._peak = max(self._peak, finished.peak_mib)
        return float(finished.output) if self.prints == "seconds" else None

    def result(self) -> dict[str, list[Any]]:
        """The answers of one run, in order of their ids."""
        finished = run(self.command)
        if self.answers is not None:
            by_id = json.loads(Path(self.answers).read_text(encoding="utf-8"))
            return {"answers": [by_id[name] for name in sorted(by_id)]}
        if self.prints == "answer":
            return {"answers": [json.loads(finished.output)["answer"]]}
        return {}

    def peak_mib(self) -> float:
        """The most memory that the command held in any round."""
        return self._peak


def process_task(
    command: Sequence[str], answers: str | None = None, prints: str = ""
) -> ProcessTask:
    """The factory that a contender names."""
    return ProcessTask(command, answers, prints)


def share_equal(ours: Sequence[str], theirs: Sequence[str]) -> float:
    """Per cent of the answers that are the same string."""
    same = sum(a == b for a, b in zip(ours, theirs, strict=True))
    return 100 * same / max(1, len(ours))
