"""Throughput of optimizer steps: forward, loss, backward, gradient clipping, AdamW, dropout 0.1.

bertqa runs its training loop, including batching and learning rate schedule; batches of the peers
are made in advance. All use the same windows in the same order. The peers use the fused AdamW and
weights in float32 (bf16 is autocast), as transformers' Trainer does; "padded" is padding to 384
tokens, as in run_qa, "longest" to the longest window of the batch.
"""

import argparse
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.forward import ForwardTask, compiled, load_transformers, padded
from benchmarks.harness import Contender, conditions, measure, positive, run
from benchmarks.inference import (
    bf16_note,
    gemm_rows,
    has_native_bf16,
    model_parser,
    transformers_row,
)
from benchmarks.models import (
    DTYPES,
    LONGEST,
    SIZES,
    checkpoint,
    device,
    forward_flops,
    gemm_flops,
    synchronize,
    window_source,
    windows_of,
)
from benchmarks.speed_table import Agreement, Amount, speed_table
from bertqa.data.batching import collate, step_windows
from bertqa.data.labels import LabelledWindows
from bertqa.errors import counted
from bertqa.runtime import local_runtime
from bertqa.settings import TrainingSettings
from bertqa.training.checkpoints import load_for_training
from bertqa.training.loop import TrainingLoop

LEARNING_RATE = 2e-5
BATCH_SIZE = 16  # default number of windows per step
_ENOUGH = 10**6  # steps, more than are ever measured
TOLERANCE = {"fp32": 1e-4, "bf16": 0.06}  # of the logits before the first step, see Agreement


# --- contenders ----------------------------------------------------------------------------------


def first_scores(
    model: Any, windows: LabelledWindows, first: Tensor, batch: Callable[[Tensor], Any],
    output: Callable[[Any], Any],
) -> dict[str, list[float]]:  # fmt: skip
    """Compute the logits of the first step's windows, without dropout, in training precision.

    Args:
        first: indices of these windows.
        batch: makes an input of the model from window indices.
        output: the output of the model for such an input.
    """
    model.eval()

    def forward(batches: Sequence[Any]) -> list[tuple[Tensor, Tensor]]:
        outputs = [output(batch) for batch in batches]
        return [(each.start_logits, each.end_logits) for each in outputs]

    whole = [torch.arange(len(first))]
    task = ForwardTask(forward, lambda part: batch(first[part]), [whole], windows.lengths[first])
    return task.result()


class OurSteps:
    """Steps of bertqa's training loop."""

    def __init__(
        self, model: str, source: dict[str, Any], precision: str, batch_size: int, steps: int
    ) -> None:
        self.model, _, _ = load_for_training(model)
        settings = TrainingSettings(
            max_steps=_ENOUGH,
            learning_rate=LEARNING_RATE,
            lr_scheduler_type="constant_with_warmup",  # like the peers
            per_device_train_batch_size=batch_size,
        )
        self.windows = windows_of(model, **source)
        self.runtime = local_runtime(precision=precision)
        loop = TrainingLoop(self.model, self.windows, settings, self.runtime)
        self.first = batch_of_step(self.windows, batch_size, 0)
        self.steps, self._steps = steps, loop.steps()

    def work(self) -> None:
        """Run the next steps."""
        self.model.train()
        *_, last = islice(self._steps, self.steps)
        float(last.loss)  # synchronizes a GPU

    def result(self) -> dict[str, list[float]]:
        """Return ``first_scores``."""
        return first_scores(self.model, self.windows, self.first, self._batch, self._output)

    def _batch(self, chosen: Tensor) -> Any:
        return collate(self.windows, chosen).to(self.runtime.device)

    def _output(self, batch: Any) -> Any:
        with self.runtime.autocast():
            return self.model(batch)


class PeerSteps:
    """Steps with transformers' model and torch's AdamW."""

    def __init__(
        self, model: str, source: dict[str, Any], attention: str, precision: str, way: str,
        compile: bool, batch_size: int, steps: int, rounds: int,
    ) -> None:  # fmt: skip
        self.loaded = load_transformers(model, attention, "fp32")
        self.model = compiled(self.loaded) if compile else self.loaded
        self.optimizer = torch.optim.AdamW(
            self.loaded.parameters(), lr=LEARNING_RATE, weight_decay=0.01, fused=True
        )
        self.dtype, self.steps = DTYPES[precision], steps
        self.width = LONGEST if way == "padded" else 0
        self.windows = windows_of(model, **source)
        self.first = batch_of_step(self.windows, batch_size, 0)
        all_steps = range(steps * (rounds + 1))  # with the warmup round
        chosen = [batch_of_step(self.windows, batch_size, step) for step in all_steps]
        self.batches = iter([self._labelled(windows) for windows in chosen])

    def work(self) -> None:
        """Run the next steps."""
        self.model.train()
        for _ in range(self.steps):
            self._output(next(self.batches)).loss.backward()
            torch.nn.utils.clip_grad_norm_(self.loaded.parameters(), 1.0, foreach=True)
            self.optimizer.step()
            self.optimizer.zero_grad()
        synchronize()

    def result(self) -> dict[str, list[float]]:
        """Return ``first_scores``."""
        return first_scores(self.model, self.windows, self.first, self._batch, self._output)

    def _batch(self, chosen: Tensor) -> dict[str, Tensor]:
        inputs = padded(self.windows, chosen, self.width)
        return {name: values.to(device()) for name, values in inputs.items()}

    def _labelled(self, chosen: Tensor) -> dict[str, Tensor]:
        return {
            **self._batch(chosen),
            "start_positions": self.windows.start_position[chosen].long().to(device()),
            "end_positions": self.windows.end_position[chosen].long().to(device()),
        }

    def _output(self, batch: dict[str, Tensor]) -> Any:
        with torch.autocast(device().type, self.dtype, enabled=self.dtype is not torch.float32):
            return self.model(**batch)


# --- table ---------------------------------------------------------------------------------------


def batch_of_step(windows: LabelledWindows, batch_size: int, step: int) -> Tensor:
    """Return the windows of an optimizer step, as sampled by bertqa's loop."""
    return step_windows(len(windows), batch_size, TrainingSettings().seed, step)


def rows_of(
    model: Path, source: dict[str, Any], flags: argparse.Namespace, native_bf16: bool
) -> list[Contender]:
    """Return the reference, then the peers, then ours; bf16 only if it is native."""
    shared = {
        "model": str(model), "source": source, "batch_size": flags.batch_size,
        "steps": flags.steps,
    }  # fmt: skip
    precisions = ("fp32", "bf16") if native_bf16 else ("fp32",)
    peers = [
        (attention, precision, way, False)
        for way in ("padded", "longest")
        for precision in precisions
        for attention in ("eager", "sdpa")
    ]
    peers += [("sdpa", precisions[-1], "longest", True)] * torch.cuda.is_available()
    given = {**shared, "rounds": flags.rounds}
    rows = [transformers_row("benchmarks.training:PeerSteps", given, *peer) for peer in peers]
    for precision in precisions:
        given = {**shared, "precision": precision}
        factory = "benchmarks.training:OurSteps"
        rows.append(Contender(f"bertqa {precision}", factory, given, precision))
    return rows


def amounts_of(windows: LabelledWindows, flags: argparse.Namespace) -> list[Amount]:
    """Return the amount of work of each round after the warmup round."""
    amounts = []
    for number in range(1, flags.rounds + 1):
        steps = range(number * flags.steps, (number + 1) * flags.steps)
        chosen = torch.cat([batch_of_step(windows, flags.batch_size, step) for step in steps])
        lengths = windows.lengths[chosen]
        flops = 3 * forward_flops(SIZES[flags.size], lengths)
        amounts.append(Amount(len(chosen), int(lengths.sum()), flops))
    return amounts


def work(flags: argparse.Namespace, folder: Path) -> str:
    """Measure; return the table with its conditions."""
    native = has_native_bf16()
    folder = flags.folder or folder
    model = checkpoint(flags.size, folder)
    count = flags.batch_size * flags.steps * (flags.rounds + 1)
    source = window_source("train", count, flags.data, folder)
    amounts = amounts_of(windows_of(str(model), **source), flags)
    rows = rows_of(model, source, flags, native)
    tokens = round(sum(amount.tokens for amount in amounts) / (flags.steps * len(amounts)))
    rows += gemm_rows(flags.size, tokens, ("fp32", "bf16") if native else ("fp32",))
    agreement = Agreement(TOLERANCE)
    measured = measure(rows, rounds=flags.rounds, threads=flags.threads, compare=agreement)
    text = speed_table(
        measured, amounts, agreement, ["bertqa bf16" if native else "bertqa fp32"],
        gemm_flops(flags.size, tokens), flags.peak,
    )  # fmt: skip
    return (
        f"{text}\n\nBatches of {flags.batch_size} windows of SQuAD v1.1's training set, {tokens} "
        f"tokens on average; {counted(flags.steps, 'step')} in a round, {conditions(flags)}. "
        f"{agreement.text()}{bf16_note(native)}"
    )


def name_of(flags: argparse.Namespace) -> str:
    """Return the name of the table on its page."""
    batch = f" batch {flags.batch_size}" if flags.batch_size != BATCH_SIZE else ""
    return f"training {flags.size}{batch}" + " gpu" * torch.cuda.is_available()


def main() -> None:
    """Measure and print."""
    flags_parser = model_parser(__doc__)
    flags_parser.add_argument(
        "--batch_size", type=positive, default=BATCH_SIZE, help=f"windows per step ({BATCH_SIZE})"
    )
    flags_parser.add_argument("--steps", type=positive, default=2, help="steps per round (2)")
    run(flags_parser, work, name_of)


if __name__ == "__main__":
    main()
