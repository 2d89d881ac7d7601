"""Forward passes, without reading, tokenising and decoding: windows a second, ours and peers'.

transformers is measured as its example scripts run it (windows in their order, padded to 384
tokens) and at its best (windows sorted by length, padded to the longest of a batch); of batch sizes
the best counts. onnxruntime and OpenVINO take each window alone at its own length or sorted
batches, whichever is faster. bertqa and
OpenVINO put several batches on the cores at once, as they do where they are used; the others share
the cores for each batch. With --one every call has one window: what a single question waits.
On a GPU bertqa in bf16 is measured beside transformers there.
"""

import argparse
import statistics
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.forward import prepare_onnx
from benchmarks.harness import (
    Contender,
    Measured,
    command_line,
    measure,
    parser,
    positive,
    publish,
    ratio_text,
    say,
    table,
)
from benchmarks.models import (
    SIZES,
    checkpoint,
    device,
    forward_flops,
    roof_flops,
    window_source,
    windows_of,
)
from benchmarks.speed_table import Agreement, Amount, Row, speed_table
from bertqa.runtime import Runtime, select_precision

OURS = ("bertqa bf16", "bertqa int8")  # the rows that the others are compared with
ONE_LENGTHS = (128, 384)  # tokens of a window, with --one
ONE_CALLS = 8  # windows of a round, with --one

TOLERANCE = {"fp32": 1e-4, "bf16": 0.06, "int8": 0.4}  # see Agreement


# --- rows ----------------------------------------------------------------------------------------


def rows_of(model: Path, source: dict[str, Any], one: bool, native_bf16: bool) -> list[Row]:
    """The reference first, then the peers, then ours; bf16 only where it is native."""
    shared = {"model": str(model), "source": source}
    on_gpu = torch.cuda.is_available()
    rows = list(_transformers(shared, one, on_gpu))
    if not on_gpu:
        for peer in ("onnxruntime", "openvino"):
            for precision in ("fp32", "int8" if peer == "onnxruntime" else "bf16"):
                given = {**shared, "precision": precision, "one": one}
                rows.append(_row(f"{peer} {precision}", peer, precision, given))
    for precision in ("bf16",) if on_gpu else ("fp32", "bf16", "int8"):
        given = {**shared, "precision": precision, "one": one}
        rows.append(_row(f"bertqa {precision}", "ours", precision, given))
    return [row for row in rows if native_bf16 or row.precision != "bf16"]


def _transformers(shared: dict[str, Any], one: bool, on_gpu: bool) -> Iterator[Row]:
    """Its rows: eager and sdpa, fp32 and bf16, padded and sorted; on a GPU the likely best."""
    ways = ["one"] if one else ["padded", "sorted"]
    for way in ways:
        for precision in ("fp32", "bf16"):
            for attention in ("eager", "sdpa"):
                first = (way, precision, attention) == (ways[0], "fp32", "eager")
                if not on_gpu or first or (precision, attention) == ("bf16", "sdpa"):
                    yield _transformers_row(shared, attention, precision, way)
    yield _transformers_row(shared, "sdpa", "bf16", ways[-1], compile=True)


def _transformers_row(
    shared: dict[str, Any], attention: str, precision: str, way: str, compile: bool = False
) -> Row:
    words = ["transformers", attention, precision]
    words += [way] * (way != "one") + ["compiled"] * compile
    given = {
        **shared, "attention": attention, "precision": precision, "batches": way,
        "compile": compile,
    }  # fmt: skip
    return _row(" ".join(words), "transformers", precision, given)


def _row(name: str, function: str, precision: str, arguments: dict[str, Any]) -> Row:
    return Row(Contender(name, f"benchmarks.forward:{function}", arguments), precision)


def roof_rows(size: str, tokens: int, precisions: Sequence[str]) -> list[Row]:
    """One roof for each precision."""
    factory = "benchmarks.models:roof"
    return [
        Row(
            Contender(
                f"roof: matrix products in {precision}", factory,
                {"size": size, "precision": precision, "tokens": tokens},
            ),
            precision, is_roof=True,
        )
        for precision in precisions
    ]  # fmt: skip


# --- both tables ---------------------------------------------------------------------------------


def throughput(flags: argparse.Namespace, model: Path, folder: Path, native: bool) -> str:
    """Windows a second, in whatever batches are best."""
    source = window_source("dev", flags.windows, flags.data, folder)
    rows = rows_of(model, source, one=False, native_bf16=native)
    precisions = [p for p in TOLERANCE if p in {row.precision for row in rows}]
    tokens = Runtime(device()).tokens_per_batch
    rows += roof_rows(flags.size, tokens, precisions)
    agreement = Agreement(rows, TOLERANCE)
    measured = _measured(flags, rows, agreement)
    lengths = windows_of(str(model), **source).lengths
    amount = Amount(len(lengths), int(lengths.sum()), forward_flops(SIZES[flags.size], lengths))
    text = speed_table(
        rows, measured, [amount] * flags.rounds, agreement, _compared(rows),
        roof_flops(flags.size, tokens), flags.peak,
    )  # fmt: skip
    return (
        f"{text}\n\n{amount.windows} windows of {amount.tokens / amount.windows:.0f} tokens on "
        f"average, {flags.threads} threads, {flags.rounds} rounds. {agreement.text()}"
    )


def latency(flags: argparse.Namespace, model: Path, native: bool) -> str:
    """Milliseconds that one window takes, called alone."""
    columns: list[list[Measured]] = []
    for length in ONE_LENGTHS:
        rows = rows_of(model, {"lengths": [length] * ONE_CALLS}, one=True, native_bf16=native)
        agreement = Agreement(rows, TOLERANCE)
        columns.append(_measured(flags, rows, agreement))
    compared = _compared(rows)
    header = ["contender"]
    for length in ONE_LENGTHS:
        header += [f"{length} tokens, ms", *(f"{name} / it" for name in compared)]
    lines = []
    for pair in zip(*columns, strict=True):
        line = [pair[0].contender.name]
        for found, column in zip(pair, columns, strict=True):
            line += _latency_cells(found, [_named(column, name) for name in compared])
        lines.append(line)
    return (
        f"{table(header, lines)}\n\nEach call has one window; {ONE_CALLS} calls in a round, "
        f"{flags.threads} threads, {flags.rounds} rounds. {agreement.text()}"
    )


def _latency_cells(found: Measured, ours: Sequence[Measured]) -> list[str]:
    """Milliseconds of a window, and how many times as fast each of ours was."""
    if found.failure:
        return [found.failure, *[""] * len(ours)]
    ratios = ["" if o is found or o.failure else ratio_text(o.ratios(found)) for o in ours]
    return [f"{1000 * statistics.median(found.seconds) / ONE_CALLS:.1f}", *ratios]


def _named(measured: Sequence[Measured], name: str) -> Measured:
    return next(found for found in measured if found.contender.name == name)


def _compared(rows: Sequence[Row]) -> list[str]:
    """The rows of ours that the others are compared with: bf16 and int8, or fp32 without them."""
    names = [row.contender.name for row in rows]
    return [name for name in (*OURS, "bertqa fp32") if name in names][:2]


def _measured(
    flags: argparse.Namespace, rows: Sequence[Row], agreement: Agreement
) -> list[Measured]:
    contenders = [row.contender for row in rows]
    return measure(contenders, rounds=flags.rounds, threads=flags.threads, compare=agreement)


# --- the command ---------------------------------------------------------------------------------


def model_parser(description: str | None) -> argparse.ArgumentParser:
    """The flags of the benchmarks of the model alone."""
    flags = parser(description)
    flags.add_argument("--size", choices=SIZES, default="minilm", help="of the model (minilm)")
    flags.add_argument(
        "--folder", type=Path, help="where checkpoints are kept for the next time (nowhere)"
    )
    flags.add_argument("--peak", type=float, help="bf16 TFLOP/s of the device, on paper")
    return flags


def has_native_bf16() -> bool:
    """Whether the processor multiplies bf16; where it does not, nobody would ask for it."""
    return select_precision("auto", device()) is torch.bfloat16


def main() -> None:
    """Measure and print."""
    flags_parser = model_parser(__doc__)
    flags_parser.add_argument("--windows", type=positive, default=256, help="about so many (256)")
    flags_parser.add_argument("--one", action="store_true", help="one window at a time")
    flags = flags_parser.parse_args()
    native = has_native_bf16()
    with tempfile.TemporaryDirectory() as temporary:
        folder = flags.folder or Path(temporary)
        model = checkpoint(flags.size, folder)
        if not torch.cuda.is_available():
            try:
                prepare_onnx(model, ("plain", "fp32", "int8"))
            except Exception as error:  # their rows will say the same
                say(f"no ONNX: {error}")
        text = latency(flags, model, native) if flags.one else (
            throughput(flags, model, folder, native)
        )  # fmt: skip
    if not native:
        text += " Rows in bf16 are left out: this processor has no instructions for it."
    name = f"inference {flags.size}" + " one" * flags.one + " gpu" * torch.cuda.is_available()
    command = command_line("benchmarks.inference", flags_parser, flags)
    publish(name, command, text, flags.page)


if __name__ == "__main__":
    main()
