"""Processes that train or answer: started in a moment, with an accident if one is asked for."""

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

PATIENCE = 600  # seconds until a process hangs, also where the machine has much else to do


def child(
    flags: list[str], said: str, *, killed_at_sync: int = 0, killed_at_step: int = 0,
    calls_later: int = 0, file_size: int = 0, environment: dict[str, str] | None = None,
    number: int = signal.SIGKILL, command: str = "train", block: int = blocks.BLOCK,
) -> None:  # fmt: skip
    """A command in a process of its own, with its accident; infer in blocks of so many rows."""
    os.environ.update(environment or {})
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    with Path(said).open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    if file_size:
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_size, file_size))
    blocks.BLOCK = parquet_file.BLOCK = block
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
    """Signal this process in a function's n-th call, or so many calls of any function later.

    Calls and not seconds, so that a fast machine gets no further than a slow one. 0 is never.
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
    server: multiprocessing.context.BaseContext, flags: list[str], said: Path, **accident: Any
) -> BaseProcess:
    """Start a command; see ``child`` for the accidents."""
    process = server.Process(target=child, args=(flags, str(said)), kwargs=accident)
    process.start()
    return process


def ended(process: BaseProcess, said: Path) -> tuple[int, str]:
    """The exit code and the last words of a process."""
    process.join(PATIENCE)
    if process.is_alive():
        process.kill()
        pytest.fail(f"it hangs; it said: {said.read_text()}")
    return process.exitcode or 0, said.read_text()


@contextmanager
def meeting(processes: int = 2) -> Iterator[list[dict[str, str]]]:
    """The environments of processes that meet as torchrun arranges it: at a port that is taken
    before they start.
    """
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    place = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(store.port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "WORLD_SIZE": str(processes),
    }
    yield [place | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(processes)]
    del store  # which closes it
