"""Benchmark harness: contenders take turns in each round, each in a separate process.

The speed of a shared machine varies from minute to minute, so absolute times mean little. Every
contender runs once per round, and results are ratios of two contenders within a round: the median
over the rounds, and the range.

A contender is a function ``module:function`` that prepares a ``Task``. Separate processes isolate
thread pools, allocators and peak memory. Idle workers wait for a line on stdin.

Only the standard library and bertqa.errors are imported, so that a worker which starts processes
stays small: on Linux the peak memory of a process includes that of its parent when it was started.
"""

import argparse
import importlib
import json
import os
import platform
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from bertqa.errors import counted

ROOT = Path(__file__).resolve().parent.parent


class Task(Protocol):
    """The work of a contender in each round."""

    def work(self) -> object:
        """Do the work that is timed."""

    def result(self) -> dict[str, list[Any]]:
        """Return named values, which are compared with the reference before a row is timed.

        A task whose work is done by other processes also has ``peak_mib()``, their peak memory.
        """


@dataclass(frozen=True)
class Contender:
    """A row of a table.

    Attributes:
        name: label of the row.
        factory: ``module:function``; called with ``arguments`` in the worker, returns a Task.
        arguments: plain values, sent as JSON.
        precision: of its matrix products, which selects the tolerance and the peak GEMM throughput.
        is_gemm: whether it only measures matrix products and has no logits.
    """

    name: str
    factory: str
    arguments: dict[str, Any] = field(default_factory=dict)
    precision: str = ""
    is_gemm: bool = False


# Compares the result of a contender with the reference: (contender, result, reference) -> reason
# for rejecting the row, or "".
Comparison = Callable[[Contender, dict[str, list[Any]], dict[str, list[Any]]], str]


@dataclass
class Measured:
    """Measurements of one contender.

    Attributes:
        seconds: time of each round.
        peak_mib: peak memory of the worker.
        failure: reason why there are no rounds, or "".
    """

    contender: Contender
    seconds: list[float] = field(default_factory=list)
    peak_mib: float = 0.0
    failure: str = ""

    @property
    def name(self) -> str:
        """Name of the contender."""
        return self.contender.name

    @property
    def median(self) -> float:
        """Median time of a round in seconds."""
        return statistics.median(self.seconds)

    def ratios(self, other: "Measured") -> list[float]:
        """Return the speed relative to ``other`` in each round."""
        return [theirs / ours for ours, theirs in zip(self.seconds, other.seconds, strict=True)]

    def ratio_text(self, other: "Measured") -> str:
        """Format the ratios; "" for itself, or if one has no rounds."""
        if self is other or self.failure or other.failure:
            return ""
        return ratio_text(self.ratios(other))


class Worker:
    """The process of one contender."""

    def __init__(self, contender: Contender, threads: int) -> None:
        pinned = dict.fromkeys(
            ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "RAYON_NUM_THREADS"), str(threads)
        )
        environment = {
            **os.environ, "PYTHONPATH": str(ROOT), "TOKENIZERS_PARALLELISM": "true", **pinned
        }  # fmt: skip
        self.process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.harness", contender.factory],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=environment,
        )  # fmt: skip
        self.ask(json.dumps({"arguments": contender.arguments, "threads": threads}))

    def ask(self, line: str) -> dict[str, Any]:
        """Send a line and wait for the answer."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        if not answer:
            raise RuntimeError(f"the worker stopped with code {self.process.wait()}")
        parsed: dict[str, Any] = json.loads(answer)
        if "failure" in parsed:
            raise RuntimeError(parsed["failure"])
        return parsed

    def close(self) -> None:
        """Kill the process."""
        self.process.kill()
        self.process.wait()


def measure(
    contenders: Sequence[Contender],
    *,
    rounds: int,
    threads: int,
    compare: Comparison,
    warm_up: bool = True,
) -> list[Measured]:
    """Run all contenders in turn for a warmup round and ``rounds`` measured rounds.

    The first contender is the reference. Contenders whose result ``compare`` rejects are not timed,
    and their row has the reason. ``warm_up=False`` omits the warmup round: for whole processes,
    which ``result`` has already run once.
    """
    measured = [Measured(contender) for contender in contenders]
    workers: dict[str, Worker] = {}
    reference: dict[str, list[Any]] = {}
    try:
        for row in measured:
            name = row.name
            try:
                workers[name] = Worker(row.contender, threads)
                result = workers[name].ask("result")["result"]
                reference = reference or result
                row.failure = compare(row.contender, result, reference)
                if warm_up and not row.failure:
                    workers[name].ask("work")
            except (RuntimeError, BrokenPipeError) as error:
                row.failure = str(error).strip().splitlines()[-1]
            say(f"{name}: {row.failure or 'ready'}")
            if row is measured[0] and row.failure:
                raise SystemExit(f"{name}, the reference for all others: {row.failure}")
        for number in range(rounds):
            for row in measured:
                if row.failure:
                    continue
                try:
                    answer = workers[row.name].ask("work")
                except (RuntimeError, BrokenPipeError) as error:
                    row.seconds, row.failure = [], str(error).strip().splitlines()[-1]
                    continue
                row.seconds.append(answer["seconds"])
                row.peak_mib = answer["peak_mib"]
            say(f"round {number + 1} of {rounds}")
    finally:
        for worker in workers.values():
            worker.close()
    return measured


def serve(factory: str) -> None:
    """Run as a worker: execute each line of stdin and answer with a line of JSON."""
    answers = os.fdopen(os.dup(1), "w")  # output of libraries goes to stderr
    os.dup2(2, 1)

    def answer(**values: Any) -> None:
        answers.write(json.dumps(values) + "\n")
        answers.flush()

    try:
        start = json.loads(sys.stdin.readline())
        module, function = factory.split(":")
        make = getattr(importlib.import_module(module), function)
        if "torch" in sys.modules:  # workers that start processes do not import it
            sys.modules["torch"].set_num_threads(start["threads"])
        task: Task = make(**start["arguments"])
        answer()
        for line in sys.stdin:
            if line.strip() == "result":
                answer(result=task.result())
            else:
                started = time.perf_counter()
                task.work()
                seconds = time.perf_counter() - started
                answer(seconds=seconds, peak_mib=getattr(task, "peak_mib", peak_mib)())
    except Exception as error:
        answer(failure=f"{type(error).__name__}: {error}")
        raise


def peak_mib() -> float:
    """Return the peak memory so far in MiB: allocated by torch on a GPU, else resident."""
    torch = sys.modules.get("torch")
    if torch and torch.cuda.is_available():
        return float(torch.cuda.max_memory_allocated() / 2**20)
    status = Path("/proc/self/status")
    if status.exists():  # on Linux getrusage includes the peak of the parent
        found = re.search(r"VmHWM:\s*(\d+) kB", status.read_text())
        if found:
            return int(found[1]) / 2**10
    return in_mib(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)


def in_mib(maxrss: int) -> float:
    """Convert ``ru_maxrss`` to MiB; its unit is bytes on macOS, KiB elsewhere."""
    return maxrss / 2**20 if sys.platform == "darwin" else maxrss / 2**10


# --- output --------------------------------------------------------------------------------------


def say(line: str) -> None:
    """Print progress to stderr, separate from the table."""
    print(line, file=sys.stderr, flush=True)


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table with text in the first column and numbers in the others."""
    lines = [list(header), ["---"] + ["---:"] * (len(header) - 1), *map(list, rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def ratio_text(ratios: Sequence[float]) -> str:
    """Return the median and, of several rounds, in brackets the smallest and the largest ratio."""
    spread = f" ({min(ratios):.2f}–{max(ratios):.2f})" if len(ratios) > 1 else ""
    return f"{statistics.median(ratios):.2f}{spread}"


def conditions(flags: argparse.Namespace) -> str:
    """Return the numbers of threads and rounds, for the text below a table."""
    return f"{counted(flags.threads, 'thread')}, {counted(flags.rounds, 'round')}"


def machine() -> str:
    """Return one line with the processor, GPU and versions."""
    import torch

    from bertqa.training.provenance import processor

    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    return (
        f"{processor(torch.device('cpu'))}, {device}; Python {platform.python_version()}, "
        f"torch {torch.__version__}"
    )


def plain_parser(description: str | None) -> argparse.ArgumentParser:
    """Return a parser with the flags of all benchmarks, --page and --data."""
    flags = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = flags.add_argument
    add("--page", type=existing("file"), help="page on which to replace the table")
    add("--data", type=existing("folder"), help="with dev-v1.1.json and train-v1.1.json, or .gz")
    return flags


def parser(description: str | None) -> argparse.ArgumentParser:
    """Return a parser with the flags of benchmarks with rounds."""
    flags = plain_parser(description)
    flags.add_argument("--rounds", type=positive, default=7, help="number of measured rounds (7)")
    flags.add_argument(
        "--threads", type=threads, default=os.cpu_count(), help="threads per contender (all cores)"
    )
    return flags


def existing(kind: str) -> Callable[[str], Path]:
    """Return an argparse type for an existing "file" or "folder"."""

    def find(text: str) -> Path:
        if not (Path(text).is_file() if kind == "file" else Path(text).is_dir()):
            raise argparse.ArgumentTypeError(f"must be an existing {kind}, got {text}")
        return Path(text)

    return find


def threads(text: str) -> int:
    """Parse a number of threads, at most the number of cores."""
    number, cores = positive(text), os.cpu_count() or 1
    if number > cores:
        raise argparse.ArgumentTypeError(
            f"must be at most {cores}, the number of cores, got {text}"
        )
    return number


def positive(text: str) -> int:
    """Parse an integer that must be at least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {text!r}")
    return int(text)


def command_line(
    module: str, flags_parser: argparse.ArgumentParser, flags: argparse.Namespace
) -> str:
    """Return the command as shown on a page, with PATH for the paths of this machine."""
    words = ["python", "-m", module]
    for name, value in vars(flags).items():
        if name == "page" or value == flags_parser.get_default(name):
            continue
        shown = [] if value is True else value if isinstance(value, list) else [value]
        texts = ["PATH" if isinstance(each, Path) else str(each) for each in shown]
        words += [f"--{name}", *texts]
    return " ".join(words)


def run(
    flags_parser: argparse.ArgumentParser,
    work: Callable[[argparse.Namespace, Path], str],
    name_of: str | Callable[[argparse.Namespace], str],
) -> None:
    """Run a benchmark: parse its flags, measure in a temporary folder, publish the table.

    Args:
        work: measures; takes the flags and the folder, returns the table.
        name_of: name of the table on its page, or a function of the flags that returns it.

    Raises:
        SystemExit: a flag is invalid, or the page has no markers for the table; both are checked
            before measuring.
    """
    flags = flags_parser.parse_args()
    name = name_of if isinstance(name_of, str) else name_of(flags)
    if flags.page:
        split_page(flags.page, name)
    with tempfile.TemporaryDirectory() as folder:
        text = work(flags, Path(folder))
    print(text)
    if flags.page:
        # The name of a module run with -m is only in __spec__.
        module = sys.modules[work.__module__]
        of_module = module.__spec__.name if module.__spec__ else work.__module__
        publish(name, command_line(of_module, flags_parser, flags), text, flags.page)


def split_page(page: Path, name: str) -> tuple[str, str]:
    """Return the page before and after the table of that name, including its markers.

    Raises:
        SystemExit: the page does not have the markers.
    """
    begin, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
    head, mark, rest = page.read_text(encoding="utf-8").partition(begin)
    _, end_mark, tail = rest.partition(end)
    if not (mark and end_mark):
        raise SystemExit(f"--page: {page} must contain {begin} and {end}")
    return head + mark, end_mark + tail


def publish(name: str, command: str, text: str, page: Path) -> None:
    """Replace the table of that name on a page, with its command above.

    Raises:
        SystemExit: the page does not have the markers.
    """
    head, tail = split_page(page, name)
    block = f"\n```bash\n{command}\n```\n\n{text}\n\n{machine()}\n"
    page.write_text(head + block + tail, encoding="utf-8")


if __name__ == "__main__":
    serve(sys.argv[1])
