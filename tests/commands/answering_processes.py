"""Processes of bertqa infer; as a script, two processes of torchrun, the second of which dies."""

import os
import sys
import time
from multiprocessing.context import BaseContext
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from bertqa.__main__ import main
from bertqa.answering import blocks
from bertqa.commands import infer, infer_rows  # noqa: F401 (imported before processes are forked)
from tests.training.processes import count_down, start


def start_infer(server: BaseContext, flags: list[str], log: Path, **accident: Any) -> BaseProcess:
    """Start infer.py; see ``processes.child`` for the accidents."""
    return start(server, flags, log, command="infer", **accident)


if __name__ == "__main__":
    if os.environ["RANK"] == "1":
        count_down(os, "fsync", 4)
    else:
        blocks.BlockAnswerer.__call__ = lambda *_: time.sleep(3600)
    blocks.ROWS_PER_BLOCK = 4
    sys.exit(main(["infer", *sys.argv[1:]]))
