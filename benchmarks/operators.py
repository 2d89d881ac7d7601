"""Where the time goes: the operators of a forward pass, or of a training step, by their own time.

A forward pass is profiled on one core, since map_batches gives each core a batch of its own; a
training step on all. The profiler itself takes time, so the shares are what to read.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.forward import bertqa
from benchmarks.harness import run, table
from benchmarks.inference import model_parser
from benchmarks.models import checkpoint, window_source
from benchmarks.training import OurSteps

ROWS = 12  # operators shown; the others are one row
STEPS = 4  # of training that are profiled, after as many that are not
BATCH_SIZE = 16


def operators(work: Callable[[], object]) -> list[tuple[str, float]]:
    """Each operator and its share of the time in all, in per cent, largest first."""
    with profile(activities=[ProfilerActivity.CPU]) as found:
        work()
    times = [(event.key, event.self_cpu_time_total) for event in found.key_averages()]
    total = sum(time for _, time in times)
    return sorted(((key, 100 * time / total) for key, time in times), key=lambda row: -row[1])


def job(flags: argparse.Namespace, folder: Path) -> Callable[[], object]:
    """What is profiled, warm."""
    if flags.training and flags.precision == "int8":
        raise SystemExit("--training has no --precision int8: pass fp32 or bf16")
    model = str(checkpoint(flags.size, folder))
    if flags.training:
        torch.set_num_threads(flags.threads)
        source = window_source("train", 2 * STEPS * BATCH_SIZE, flags.data, folder)
        steps = OurSteps(model, source, flags.precision, BATCH_SIZE, STEPS)
        steps.work()
        return steps.work
    torch.set_num_threads(1)
    source = window_source("dev", flags.windows, flags.data, folder)
    forward = bertqa(model, source, flags.precision, one=False)
    forward.work()
    return forward.work


def work(flags: argparse.Namespace, folder: Path) -> str:
    """The table of the profile."""
    shares = operators(job(flags, flags.folder or folder))
    rows = [[name, f"{share:.1f}"] for name, share in shares[:ROWS]]
    rows.append(["all others", f"{sum(share for _, share in shares[ROWS:]):.1f}"])
    return table(["operator", "% of the time"], rows)


def main() -> None:
    """Profile and print."""
    flags_parser = model_parser(__doc__)
    add = flags_parser.add_argument
    add("--precision", choices=("fp32", "bf16", "int8"), default="bf16", help="(bf16)")
    add("--training", action="store_true", help="training steps of 16 windows")
    add("--windows", type=int, default=48, help="of the forward pass, about (48)")
    run(flags_parser, work, lambda f: f"profile {'training' if f.training else f.precision}")


if __name__ == "__main__":
    main()
