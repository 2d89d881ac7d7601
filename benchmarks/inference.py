"""Throughput and latency of the forward pass, without tokenization and decoding.

transformers is measured as its example scripts run it (windows in order, padding to 384 tokens) and
at its best (windows sorted by length, padding to the longest of a batch), with the best batch size.
onnxruntime and OpenVINO run single windows or sorted batches, whichever is faster. bertqa and
OpenVINO run several batches in parallel, one per core, as in production; the others use all cores
for each batch. With --one every call has one window, which gives the latency of a single question.
On a GPU, bertqa in bf16 is compared with transformers.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.forward import onnx_file
from benchmarks.harness import (
    Contender,
    Measured,
    conditions,
    measure,
    parser,
    positive,
    run,
    say,
    table,
)
from benchmarks.models import (
    SIZES,
    checkpoint,
    device,
    forward_flops,
    gemm_flops,
    window_source,
    windows_of,
)
from benchmarks.speed_table import Agreement, Amount, speed_table
from bertqa.runtime import Runtime, select_precision

OURS = ("bertqa bf16", "bertqa int8")  # the rows to which the others are compared
ONE_LENGTHS = (128, 384)  # tokens per window with --one
ONE_CALLS = 8  # windows per round with --one

TOLERANCE = {"fp32": 1e-4, "bf16": 0.06, "int8": 0.4}  # see Agreement


# --- rows ----------------------------------------------------------------------------------------


def rows_of(model: Path, source: dict[str, Any], one: bool, native_bf16: bool) -> list[Contender]:
    """Return the reference, then the peers, then ours; bf16 only if it is native."""
    shared = {"model": str(model), "source": source}
    on_gpu = torch.cuda.is_available()
    rows = _transformers(shared, one, on_gpu)
    names = ["bertqa bf16"]
    if not on_gpu:
        names = ["onnxruntime fp32", "onnxruntime int8", "openvino fp32", "openvino bf16"]
        names += [f"bertqa {precision}" for precision in TOLERANCE]
    for name in names:
        who, precision = name.split()
        given = {**shared, "precision": precision, "one": one}
        rows.append(Contender(name, f"benchmarks.forward:{who}", given, precision))
    return [row for row in rows if native_bf16 or row.precision != "bf16"]


def transformers_row(
    factory: str, shared: dict[str, Any], attention: str, precision: str, way: str, compile: bool
) -> Contender:
    """Return a row of transformers; ``way`` is the batching: "padded", "sorted", "one", ..."""
    words = ["transformers", attention, precision, *[way] * (way != "one")]
    words += ["compiled"] * compile
    given = {"attention": attention, "precision": precision, "way": way, "compile": compile}
    return Contender(" ".join(words), factory, {**shared, **given}, precision)


def _transformers(shared: dict[str, Any], one: bool, on_gpu: bool) -> list[Contender]:
    """Return rows for eager and sdpa, fp32 and bf16, padded and sorted; fewer on a GPU."""
    rows = [
        (attention, precision, way, False)
        for way in (["one"] if one else ["padded", "sorted"])
        for precision in ("fp32", "bf16")
        for attention in ("eager", "sdpa")
    ]
    if on_gpu:
        rows = rows[:1] + [row for row in rows if row[:2] == ("sdpa", "bf16")]
    rows.append((*rows[-1][:3], True))
    return [transformers_row("benchmarks.forward:transformers", shared, *row) for row in rows]


def gemm_rows(size: str, tokens: int, precisions: Sequence[str]) -> list[Contender]:
    """Return the contender of matrix products only for each precision."""
    return [
        Contender(
            f"peak GEMM: {precision}", "benchmarks.models:Gemm",
            {"size": size, "precision": precision, "tokens": tokens}, precision, is_gemm=True,
        )
        for precision in precisions
    ]  # fmt: skip


# --- tables --------------------------------------------------------------------------------------


def throughput(flags: argparse.Namespace, model: Path, folder: Path, native: bool) -> str:
    """Measure windows per second with the best batching."""
    source = window_source("dev", flags.windows, flags.data, folder)
    rows = rows_of(model, source, one=False, native_bf16=native)
    precisions = [p for p in TOLERANCE if p in {row.precision for row in rows}]
    tokens = Runtime(device()).tokens_per_batch
    rows += gemm_rows(flags.size, tokens, precisions)
    agreement = Agreement(TOLERANCE)
    measured = measure(rows, rounds=flags.rounds, threads=flags.threads, compare=agreement)
    lengths = windows_of(str(model), **source).lengths
    amount = Amount(len(lengths), int(lengths.sum()), forward_flops(SIZES[flags.size], lengths))
    text = speed_table(
        measured, [amount] * flags.rounds, agreement, _compared(rows),
        gemm_flops(flags.size, tokens), flags.peak,
    )  # fmt: skip
    return (
        f"{text}\n\n{amount.windows} windows of {amount.tokens / amount.windows:.0f} tokens on "
        f"average, {conditions(flags)}. {agreement.text()}"
    )


def latency(flags: argparse.Namespace, model: Path, native: bool) -> str:
    """Measure milliseconds per window with one window per call."""
    columns: list[list[Measured]] = []
    for length in ONE_LENGTHS:
        rows = rows_of(model, {"lengths": [length] * ONE_CALLS}, one=True, native_bf16=native)
        agreement = Agreement(TOLERANCE)
        columns.append(measure(rows, rounds=flags.rounds, threads=flags.threads, compare=agreement))
    compared = _compared(rows)
    header = ["contender"]
    for length in ONE_LENGTHS:
        header += [f"{length} tokens, ms", *(f"{name} / it" for name in compared)]
    lines = []
    for pair in zip(*columns, strict=True):
        line = [pair[0].name]
        for found, column in zip(pair, columns, strict=True):
            ours = [next(each for each in column if each.name == name) for name in compared]
            line.append(found.failure or f"{1000 * found.median / ONE_CALLS:.1f}")
            line += [each.ratio_text(found) for each in ours]
        lines.append(line)
    return (
        f"{table(header, lines)}\n\nEach call has one window; {ONE_CALLS} calls in a round, "
        f"{conditions(flags)}. {agreement.text()}"
    )


def _compared(rows: Sequence[Contender]) -> list[str]:
    """Return the rows of ours to which the others are compared: bf16 and int8, or fp32."""
    names = [row.name for row in rows]
    return [name for name in (*OURS, "bertqa fp32") if name in names][:2]


# --- the command ---------------------------------------------------------------------------------


def model_parser(description: str | None) -> argparse.ArgumentParser:
    """Return a parser with the flags of the benchmarks of the model only."""
    flags = parser(description)
    flags.add_argument("--size", choices=SIZES, default="minilm", help="model size (minilm)")
    flags.add_argument("--folder", type=Path, help="folder to keep checkpoints for later runs")
    flags.add_argument("--peak", type=float, help="nominal bf16 TFLOP/s of the device")
    return flags


def has_native_bf16() -> bool:
    """Return whether the processor has instructions for bf16."""
    return select_precision("auto", device()) is torch.bfloat16


def work(flags: argparse.Namespace, folder: Path) -> str:
    """Measure; return the table with its conditions."""
    native = has_native_bf16()
    folder = flags.folder or folder
    model = checkpoint(flags.size, folder)
    if not torch.cuda.is_available():
        try:
            for precision in ("plain", "fp32", "int8"):  # here, not in the peak of a worker
                onnx_file(model, precision)
        except Exception as error:  # their rows will have the same message
            say(f"no ONNX: {error}")
    if flags.one:
        return latency(flags, model, native) + bf16_note(native)
    return throughput(flags, model, folder, native) + bf16_note(native)


def bf16_note(native: bool) -> str:
    """Return a note on missing rows."""
    return "" if native else " Without rows in bf16: this processor has no instructions for it."


def main() -> None:
    """Measure and print."""
    flags_parser = model_parser(__doc__)
    flags_parser.add_argument(
        "--windows", type=positive, default=256, help="approximate number of windows (256)"
    )
    flags_parser.add_argument("--one", action="store_true", help="latency of one window")
    suffix = " gpu" * torch.cuda.is_available()
    run(flags_parser, work, lambda f: f"inference {f.size}" + " one" * f.one + suffix)


if __name__ == "__main__":
    main()
