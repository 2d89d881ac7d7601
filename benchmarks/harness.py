"""Contenders side by side: each in a process of its own, taking turns, round after round.

A machine that others share is fast in one minute and slow in the next, so seconds say little. Here
every contender runs once in each round, and what counts is the ratio of two contenders within a
round: the median over the rounds, and the spread.

A contender is a function ``module:function`` that prepares a ``Task``. A process for each keeps
the thread pools, the allocators and the peak memory of one peer away from the next. While one works
the others wait for a line on stdin.

Only what comes with Python is imported, so that a worker which starts processes stays small: on
Linux the peak of a process counts what its parent held when it was started.
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

ROOT = Path(__file__).resolve().parent.parent


class Task(Protocol):
    """What a contender does in each round."""

    def work(self) -> object:
        """The work that is timed."""

    def result(self) -> dict[str, list[Any]]:
        """Values by name that say what came out; compared with the reference before a row counts.

        A task whose work is done by other processes also has ``peak_mib()``, which says what those
        took.
        """


@dataclass(frozen=True)
class Contender:
    """One row of a table.

    Attributes:
        name: what the row is called.
        factory: ``module:function``; called with ``arguments`` in the worker, it gives a Task.
        arguments: plain values, sent as JSON.
        precision: of its matrix products, which says which tolerance and which roof are its own.
        is_roof: it computes no scores.
    """

    name: str
    factory: str
    arguments: dict[str, Any] = field(default_factory=dict)
    precision: str = ""
    is_roof: bool = False


# Compares a row's result with the reference's: the contender, its result, the reference. What it
# returns is why the row is refused; "" if it is not.
Comparison = Callable[[Contender, dict[str, list[Any]], dict[str, list[Any]]], str]


@dataclass
class Measured:
    """What the rounds gave for one contender.

    Attributes:
        seconds: of each round.
        peak_mib: largest resident memory of the worker.
        failure: why there are no rounds; "" if there are.
    """

    contender: Contender
    seconds: list[float] = field(default_factory=list)
    peak_mib: float = 0.0
    failure: str = ""

    @property
    def name(self) -> str:
        """Of the contender."""
        return self.contender.name

    @property
    def median(self) -> float:
        """Seconds of the median round."""
        return statistics.median(self.seconds)

    def ratios(self, other: "Measured") -> list[float]:
        """How many times as fast as ``other`` this was, round by round."""
        return [theirs / ours for ours, theirs in zip(self.seconds, other.seconds, strict=True)]

    def ratio_text(self, other: "Measured") -> str:
        """Their median, smallest and largest; "" for itself, or where one has no rounds."""
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
        """Send one line, wait for the answer."""
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
        """End the process."""
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
    """Run all contenders in turn, ``rounds`` times; one round more at first, which is not counted.

    The first contender is the reference: one whose result ``compare`` refuses beside the
    reference's is not timed, and its row says so. Without ``warm_up`` the round that is not counted
    is left out: for whole processes, which ``result`` has already run once.
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
                raise SystemExit(f"{name}, which all others are held against: {row.failure}")
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
    """Be a worker: read a line, do it, answer with a line of JSON."""
    answers = os.fdopen(os.dup(1), "w")  # what libraries print goes to stderr
    os.dup2(2, 1)

    def answer(**values: Any) -> None:
        answers.write(json.dumps(values) + "\n")
        answers.flush()

    try:
        start = json.loads(sys.stdin.readline())
        module, function = factory.split(":")
        make = getattr(importlib.import_module(module), function)
        if "torch" in sys.modules:  # a worker that starts processes does without
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
    """The largest memory so far in MiB: torch's of the GPU where there is one, else resident."""
    torch = sys.modules.get("torch")
    if torch and torch.cuda.is_available():
        return float(torch.cuda.max_memory_allocated() / 2**20)
    status = Path("/proc/self/status")
    if status.exists():  # what getrusage says begins, on Linux, at the peak of the parent
        found = re.search(r"VmHWM:\s*(\d+) kB", status.read_text())
        if found:
            return int(found[1]) / 2**10
    return in_mib(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)


def in_mib(maxrss: int) -> float:
    """``ru_maxrss`` in MiB: the kernel gives bytes on macOS, KiB elsewhere."""
    return maxrss / 2**20 if sys.platform == "darwin" else maxrss / 2**10


# --- what comes out ------------------------------------------------------------------------------


def say(line: str) -> None:
    """Progress, where it does not stand between the rows of a table."""
    print(line, file=sys.stderr, flush=True)


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; the first column is text, the others are figures."""
    lines = [list(header), ["---"] + ["---:"] * (len(header) - 1), *map(list, rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def ratio_text(ratios: Sequence[float]) -> str:
    """The median and, in brackets, the smallest and the largest."""
    return f"{statistics.median(ratios):.2f} ({min(ratios):.2f}–{max(ratios):.2f})"


def machine() -> str:
    """One line on the processor and the versions that matter."""
    import torch

    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [x for x in cpuinfo.read_text().splitlines() if x.startswith("model name")]
        model = names[0].split(":", 1)[1].strip() if names else model
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    return (
        f"{model}, {os.cpu_count()} cores, {device}; Python {platform.python_version()}, "
        f"torch {torch.__version__}"
    )


def plain_parser(description: str | None) -> argparse.ArgumentParser:
    """The flags of every benchmark, --page and --data."""
    flags = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = flags.add_argument
    add("--page", type=existing("file"), help="a page whose table of this name is replaced")
    add("--data", type=existing("folder"), help="with dev-v1.1.json and train-v1.1.json, or .gz")
    return flags


def parser(description: str | None) -> argparse.ArgumentParser:
    """The flags of the benchmarks that measure contenders in rounds."""
    flags = plain_parser(description)
    flags.add_argument("--rounds", type=positive, default=7, help="rounds that count (7)")
    flags.add_argument(
        "--threads", type=threads, default=os.cpu_count(), help="of each contender (all)"
    )
    return flags


def existing(kind: str) -> Callable[[str], Path]:
    """The type of a flag that names a "file" or a "folder", which is looked for before the work."""

    def find(text: str) -> Path:
        if not (Path(text).is_file() if kind == "file" else Path(text).is_dir()):
            raise argparse.ArgumentTypeError(f"{text} is no {kind}: give one that is there")
        return Path(text)

    return find


def threads(text: str) -> int:
    """As many threads as cores, at most: more would only wait for each other."""
    number, cores = positive(text), os.cpu_count() or 1
    if number > cores:
        raise argparse.ArgumentTypeError(f"{text} is more than the {cores} cores here: give less")
    return number


def positive(text: str) -> int:
    """A flag's number that must be 1 or more."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not possible: give 1 or more")
    return int(text)


def command_line(
    module: str, flags_parser: argparse.ArgumentParser, flags: argparse.Namespace
) -> str:
    """The command that was given, as a page shows it: a path, which is this machine's, as PATH."""
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
    """Be a benchmark: read its flags, measure in a folder that does not stay, publish the table.

    Args:
        work: measures; takes the flags and the folder, gives the table.
        name_of: what the table is called on its page, or what says that of the flags.

    Raises:
        SystemExit: a flag is wrong, or the page has no such markers, which is seen before the work.
    """
    flags = flags_parser.parse_args()
    name = name_of if isinstance(name_of, str) else name_of(flags)
    if flags.page:
        place_on(flags.page, name)
    with tempfile.TemporaryDirectory() as folder:
        text = work(flags, Path(folder))
    print(text)
    if flags.page:
        # What is run as a module has its name in __spec__ alone.
        module = sys.modules[work.__module__]
        of_module = module.__spec__.name if module.__spec__ else work.__module__
        publish(name, command_line(of_module, flags_parser, flags), text, flags.page)


def place_on(page: Path, name: str) -> tuple[str, str]:
    """What stands before and behind the table of that name on a page, its marks included.

    Raises:
        SystemExit: the page has no such marks.
    """
    begin, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
    head, mark, rest = page.read_text(encoding="utf-8").partition(begin)
    _, end_mark, tail = rest.partition(end)
    if not (mark and end_mark):
        raise SystemExit(f"{page} has no place for {name}: put {begin} and {end} there")
    return head + mark, end_mark + tail


def publish(name: str, command: str, text: str, page: Path) -> None:
    """Put a table into its place on a page, below the command that made it.

    Raises:
        SystemExit: the page has no such place.
    """
    head, tail = place_on(page, name)
    block = f"\n```bash\n{command}\n```\n\n{text}\n\n{machine()}\n"
    page.write_text(head + block + tail, encoding="utf-8")


if __name__ == "__main__":
    serve(sys.argv[1])
