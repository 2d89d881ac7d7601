"""Calibrate a model, so that 80 of 100 answers of probability 0.8 are correct.

bertqa calibrate MODEL FILE

answers the questions of FILE, on which the model was not trained, and fits one temperature, which
divides all scores before the softmax; no answer changes. The temperature minimizes the mean
negative log-likelihood of the gold answers over every other article of FILE. Its effect is measured
on the remaining articles: the expected calibration error (ECE) over 15 bins of equal counts, and,
for several values of bertqa infer's --score_threshold, the fraction of questions answered and the
accuracy of these answers. It writes into the model's folder

    decoding.json        with the temperature, which all commands apply to their probabilities
    calibration.json     all figures, including the bins
    calibration.svg      the reliability diagram

bertqa train does the same on its validation data at the end. With --measure_only, the model is
measured at its current temperature on all questions of FILE; nothing is fitted or written.
"""

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from bertqa.commands.flags import Parser, add_model_flags

if TYPE_CHECKING:
    from bertqa.answering.reliability import Reliability  # late: for type checkers only


def parse_flags(arguments: Sequence[str], prog: str | None = None) -> argparse.Namespace:
    """Parse the flags of ``bertqa calibrate``."""
    parser = Parser(__doc__ or "", prog)
    add_model_flags(parser)
    add = parser.group("data")
    add("file", type=Path, metavar="FILE", help="questions with gold answers, about many articles")
    add(
        "--measure_only", action="store_true",
        help="measure the model at its current temperature on all of FILE; write nothing",
    )  # fmt: skip
    return parser.parse(arguments)


def main(flags: argparse.Namespace) -> None:
    """Calibrate or measure, and print the figures."""
    from bertqa.answering.temperature import LIMIT, at_limit  # late: --help needs no torch
    from bertqa.report.calibration import (  # late: --help needs no torch
        calibrate_model,
        measure_model,
    )

    work = measure_model if flags.measure_only else calibrate_model
    found = work(
        flags.model, flags.file, device=flags.device, precision=flags.precision,
        revision=flags.revision, allow_bin=flags.allow_bin,
    )  # fmt: skip
    if isinstance(found, tuple):
        calibration, kept = found
        after = calibration.after
        print(
            f"temperature {after.temperature:.4f}, fitted on {calibration.fitted_on:,} questions "
            f"of {flags.file}; saved in {kept}"
        )
        if at_limit(after.temperature):
            print(LIMIT)
        print(f"on the {after.questions:,} questions about other articles:")
        print("\n".join(table([calibration.before, after])))
    else:
        print(f"on the {found.questions:,} questions of {flags.file}:")
        print("\n".join(table([found])))


def table(columns: Sequence["Reliability"]) -> Iterator[str]:
    """Yield the lines of a table: a column per temperature, then the effect of thresholds."""
    rows = {
        "temperature": [f"{column.temperature:.4f}" for column in columns],
        "negative log-likelihood": [
            "-" if column.loss is None else f"{column.loss:.4f}" for column in columns
        ],
        "ECE, any gold answer": [f"{column.ece:.4f}" for column in columns],
        "ECE, the first gold answer": [f"{column.ece_first_gold:.4f}" for column in columns],
        "ECE of perfect calibration": [f"{column.ece_by_chance:.4f}" for column in columns],
    }
    for name, figures in rows.items():
        yield f"{name:<28}" + "".join(f"{figure:>10}" for figure in figures)
    yield ""
    yield f"{'--score_threshold':<28}{'answered':>10}{'correct':>10}"
    for point in columns[-1].coverage:
        right = "-" if point.right is None else f"{100 * point.right:.1f} %"
        yield f"{point.threshold:<28}{100 * point.answered:>8.1f} %{right:>10}"
