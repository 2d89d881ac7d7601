"""Calibrate a model: make the probability of an answer say how often such answers are right.

bertqa calibrate MODEL FILE

asks the questions of FILE, which the model was not trained on, and fits one temperature, which all
scores are divided by before they become probabilities; no answer changes. It is fitted on every
other article of FILE, by the lowest mean negative log-likelihood of the gold answers, and what it
changes is measured on the others: the expected calibration error (ECE) over 15 bins of as many
answers each, and, for some values of bertqa infer's --score_threshold, how many questions are still
answered and how many of these answers are right. Beside the model are then:

    decoding.json        with the temperature; whatever shows the probability of an answer obeys it
    calibration.json     all figures, those that are printed and the bins
    calibration.svg      the reliability diagram

bertqa train does the same at its end with its validation data. With --measure_only nothing is
fitted or written: the figures are those of the model as it is, on all questions of FILE.
"""

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from bertqa.commands.flags import Parser, add_model_flags

if TYPE_CHECKING:
    from bertqa.answering.reliability import Reliability  # late: for type checkers alone


def parse_flags(arguments: Sequence[str], prog: str | None = None) -> argparse.Namespace:
    """Parse the flags of ``bertqa calibrate``."""
    parser = Parser(__doc__ or "", prog)
    add_model_flags(parser)
    add = parser.group("data")
    add("file", type=Path, metavar="FILE", help="questions with gold answers, about many articles")
    add(
        "--measure_only", action="store_true",
        help="measure the model as it is on all of FILE, and write nothing",
    )  # fmt: skip
    return parser.parse(arguments)


def main(flags: argparse.Namespace) -> None:
    """Calibrate or measure, and print."""
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
            f"of {flags.file}; kept in {kept}"
        )
        if at_limit(after.temperature):
            print(LIMIT)
        print(f"on the {after.questions:,} questions about other articles:")
        print("\n".join(table([calibration.before, after])))
    else:
        print(f"on the {found.questions:,} questions of {flags.file}:")
        print("\n".join(table([found])))


def table(columns: Sequence["Reliability"]) -> Iterator[str]:
    """The figures of some temperatures in columns, then what thresholds do at the last one."""
    rows = {
        "temperature": [f"{column.temperature:.4f}" for column in columns],
        "negative log-likelihood": [
            "-" if column.loss is None else f"{column.loss:.4f}" for column in columns
        ],
        "ECE, any gold answer": [f"{column.ece:.4f}" for column in columns],
        "ECE, the first gold answer": [f"{column.ece_first_gold:.4f}" for column in columns],
    }
    for name, figures in rows.items():
        yield f"{name:<28}" + "".join(f"{figure:>10}" for figure in figures)
    yield ""
    yield f"{'--score_threshold':<28}{'answered':>10}{'right':>10}"
    for point in columns[-1].coverage:
        right = "-" if point.right is None else f"{100 * point.right:.1f} %"
        yield f"{point.threshold:<28}{100 * point.answered:>8.1f} %{right:>10}"
