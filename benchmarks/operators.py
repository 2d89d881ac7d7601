"""Profile of operators in a forward pass or a training step by self time.

The forward pass is profiled on one core, since map_batches runs one batch per core; a training step
on all cores. The profiler has overhead, so only the shares are reported.
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

ROWS = 12  # operators in the table; the others share one row
STEPS = 4  # profiled training steps, after as many warmup steps
BATCH_SIZE = 16


def operators(work: Callable[[], object]) -> list[tuple[str, float]]:
    """Return the operators with their share of the total time in percent, largest first."""
    with profile(activities=[ProfilerActivity.CPU]) as found:
        work()
    times = [(event.key, event.self_cpu_time_total) for event in found.key_averages()]
    total = sum(time for _, time in times)
    return sorted(((key, 100 * time / total) for key, time in times), key=lambda row: -row[1])


def job(flags: argparse.Namespace, folder: Path) -> Callable[[], object]:
    """Return the function to profile, after a warmup."""
    if flags.training and flags.precision == "int8":
        raise SystemExit("--precision: must be fp32 or bf16 with --training, got int8")
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
    """Profile; return the table."""
    shares = operators(job(flags, flags.folder or folder))
    rows = [[name, f"{share:.1f}"] for name, share in shares[:ROWS]]
    rows.append(["all others", f"{sum(share for _, share in shares[ROWS:]):.1f}"])
    return table(["operator", "% of the time"], rows)


def main() -> None:
    """Profile and print."""
    flags_parser = model_parser(__doc__)
    add = flags_parser.add_argument
    add("--precision", choices=("fp32", "bf16", "int8"), default="bf16", help="precision (bf16)")
    add("--training", action="store_true", help="profile training steps of 16 windows")
    add("--windows", type=int, default=48, help="approximate windows of a forward pass (48)")
    run(flags_parser, work, lambda f: f"profile {'training' if f.training else f.precision}")


if __name__ == "__main__":
    main()
