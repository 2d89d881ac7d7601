"""Processes that run a command, with an optional accident."""

import multiprocessing
import os
import resource
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed import TCPStore

from bertqa.answering import blocks, parquet_file
from bertqa.commands.flags import run_script
from bertqa.training import loop

PATIENCE = 600  # seconds after which a process is considered to hang; the machine may be busy


def child(
    flags: list[str], output: str, *, killed_at_sync: int = 0, killed_at_step: int = 0,
    calls_later: int = 0, file_size: int = 0, environment: dict[str, str] | None = None,
    number: int = signal.SIGKILL, command: str = "train", block: int = blocks.ROWS_PER_BLOCK,
) -> None:  # fmt: skip
    """Run a command in this process, with an accident; infer uses blocks of ``block`` rows."""
    os.environ.update(environment or {})
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    with Path(output).open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    if file_size:
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_size, file_size))
    blocks.ROWS_PER_BLOCK = parquet_file.ROWS_PER_BLOCK = block
    count_down(os, "fsync", killed_at_sync)
    count_down(loop, "set_learning_rate", killed_at_step, calls_later, number)
    module = import_module(f"bertqa.commands.{command}")
    code = run_script(module.main, module.parse_flags(flags))
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def count_down(
    module: object, name: str, calls: int, calls_later: int = 0, number: int = signal.SIGKILL
) -> None:
    """Signal this process in a function's n-th call, or ``calls_later`` calls of any later.

    Counts calls, not seconds, so that it does not depend on the machine's speed. 0 means never.
    """
    real, left, later = getattr(module, name), [calls], [calls_later]

    def kill() -> None:
        os.kill(os.getpid(), number)

    def count_any(*event: object) -> None:
        later[0] -= 1
        if later[0] == 0:
            kill()

    def counted(*arguments: object) -> object:
        left[0] -= 1
        if left[0] == 0 and calls_later:
            sys.setprofile(count_any)
        elif left[0] == 0:
            kill()
        return real(*arguments)

    setattr(module, name, counted)


def start(
    server: multiprocessing.context.BaseContext, flags: list[str], output: Path, **accident: Any
) -> BaseProcess:
    """Start a command; see ``child`` for the accidents."""
    process = server.Process(target=child, args=(flags, str(output)), kwargs=accident)
    process.start()
    return process


def ended(process: BaseProcess, output: Path) -> tuple[int, str]:
    """Wait for a process; return its exit code and output."""
    process.join(PATIENCE)
    if process.is_alive():
        process.kill()
        pytest.fail(f"the process hangs; its output: {output.read_text()}")
    return process.exitcode or 0, output.read_text()


@contextmanager
def meeting(processes: int = 2) -> Iterator[list[dict[str, str]]]:
    """Yield the environments of processes that form a group, as with torchrun."""
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    shared = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(store.port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "WORLD_SIZE": str(processes),
    }
    yield [shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(processes)]
    del store  # closes it
