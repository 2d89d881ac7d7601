"""Agreement check and throughput table for the benchmarks of the model only."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.harness import Contender, Measured, table


@dataclass
class Amount:
    """Amount of work of one round, without padding.

    Attributes:
        windows, tokens: number of windows and tokens.
        flops: FLOPs of these.
    """

    windows: int
    tokens: int
    flops: float


class Agreement:
    """Compares the logits of each row with the reference and stores their differences.

    The difference is the root mean square over all tokens divided by the standard deviation of the
    reference's logits. Independent logits would have about 1.4.
    """

    def __init__(self, tolerance: dict[str, float]) -> None:
        self.tolerance = tolerance
        self.off: dict[str, float] = {}

    def __call__(
        self, row: Contender, result: dict[str, list[Any]], reference: dict[str, list[Any]]
    ) -> str:
        """Return the reason for rejecting a row, or ""."""
        if row.is_gemm:
            return ""
        squares: list[float] = []
        for key, expected in reference.items():
            if len(result[key]) != len(expected):
                return f"{len(result[key])} {key} scores instead of {len(expected)}"
            spread = statistics.pstdev(expected)
            pairs = zip(result[key], expected, strict=True)
            squares += [((a - b) / spread) ** 2 for a, b in pairs]
        self.off[row.name] = math.sqrt(statistics.fmean(squares))
        if self.off[row.name] <= self.tolerance[row.precision]:  # not so for NaN
            return ""
        return f"rejected: logits differ by {self.off[row.name]:.2g} standard deviations"

    def text(self) -> str:
        """Return a sentence with the tolerances."""
        limits = ", ".join(f"{name} {limit:g}" for name, limit in self.tolerance.items())
        return (
            "A row is timed only if its logits agree with the first row: the root mean square of "
            'the differences over all tokens ("off by"), divided by the standard deviation of the '
            f"logits, is at most {limits}."
        )


def speed_table(
    measured: Sequence[Measured],
    amounts: Sequence[Amount],
    agreement: Agreement,
    ours: Sequence[str],
    gemm_flops: float,
    peak: float | None = None,
) -> str:
    """Return the table of throughputs.

    Args:
        amounts: work of each round.
        ours: the rows to which all others are compared.
        gemm_flops: FLOPs of a round of a contender of matrix products only.
        peak: nominal TFLOP/s of the device, for an additional column.
    """
    gemm_rates = {
        found.contender.precision: [gemm_flops / seconds for seconds in found.seconds]
        for found in measured
        if found.contender.is_gemm
    }
    compared = {found.name: found for found in measured if found.name in ours}
    header = ["contender", "windows/s", "tokens/s", "GFLOP/s", "% of peak GEMM"]
    if peak is not None:
        header.append(f"% of {peak:g} TFLOP/s")
    header += [*(f"{name} / it" for name in ours), "off by", "peak MiB"]
    lines = []
    for found in measured:
        row, name = found.contender, found.name
        if found.failure:
            lines.append([name, found.failure, *[""] * (len(header) - 2)])
            continue
        flops = [gemm_flops if row.is_gemm else amount.flops for amount in amounts]
        rates = [f / seconds for f, seconds in zip(flops, found.seconds, strict=True)]
        line = [name, "", ""] if row.is_gemm else [name, *_throughputs(found, amounts)]
        line.append(f"{statistics.median(rates) / 1e9:,.0f}")
        line.append(_share(rates, gemm_rates.get(row.precision, [])))
        if peak is not None:
            line.append(f"{statistics.median(rates) / (peak * 1e10):.1f}")
        line += ["" if row.is_gemm else compared[name].ratio_text(found) for name in ours]
        line.append(f"{agreement.off[name]:.1g}" if name in agreement.off else "")
        lines.append([*line, f"{found.peak_mib:,.0f}"])
    return table(header, lines)


def _throughputs(found: Measured, amounts: Sequence[Amount]) -> list[str]:
    """Return the medians of windows and tokens per second."""
    rounds = list(zip(amounts, found.seconds, strict=True))
    windows = statistics.median(amount.windows / seconds for amount, seconds in rounds)
    tokens = statistics.median(amount.tokens / seconds for amount, seconds in rounds)
    return [f"{windows:,.1f}", f"{tokens:,.0f}"]


def _share(rates: Sequence[float], gemm_rates: Sequence[float]) -> str:
    """Return the median percentage of the peak in the same round; "" if it was not measured."""
    if not gemm_rates:
        return ""
    return f"{100 * statistics.median(a / b for a, b in zip(rates, gemm_rates, strict=True)):.0f}"
