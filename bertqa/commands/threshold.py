"""Choose the threshold of the null score, above which the answer is "no answer".

bertqa threshold MODEL FILE

answers the questions of FILE, on which the model was not trained, chooses the threshold with the
best F1 (tau in Devlin et al. 2019, section 4.3) and saves it with the model. The best threshold
depends on the fraction of unanswerable questions: those of FILE are weighted so that it is
--unanswerable_share, by default half, as in the dev set of SQuAD v2.0.
It writes into the model's folder

    decoding.json        "no answer" turned on, the threshold, and the windows and share for which
                         it was chosen; bertqa infer reads it
    threshold.json       the curve: threshold, EM and F1 in each row
    threshold.svg        the curve as a picture

The temperature in decoding.json stays, since the threshold changes no score. calibration.json and
calibration.svg, which measure the answers at the old threshold, are removed: run bertqa calibrate
again.

bertqa train does the same with the questions that --validation_split_percentage holds out. Metrics
on the questions that chose the threshold are too optimistic.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from bertqa.commands.flags import (
    Parser,
    add_model_flags,
    add_settings_flags,
    add_window_flags,
    overrides,
)
from bertqa.settings import TrainingSettings


def parse_flags(arguments: Sequence[str], prog: str | None = None) -> argparse.Namespace:
    """Parse the flags of ``bertqa threshold``."""
    parser = Parser(__doc__ or "", prog)
    add_model_flags(parser)
    parser.group("data")(
        "file", type=Path, metavar="FILE",
        help="answerable and unanswerable questions with gold answers, as in SQuAD v2.0",
    )  # fmt: skip
    add_window_flags(parser)
    add_settings_flags(parser, "decoding", TrainingSettings, "unanswerable_share")
    return parser.parse(arguments)


def main(flags: argparse.Namespace) -> None:
    """Choose the threshold, save and print it."""
    overrides(flags).check()
    share = TrainingSettings(unanswerable_share=flags.unanswerable_share).unanswerable_share
    from bertqa.report.threshold import choose_threshold  # late: --help needs no torch

    best, kept, removed = choose_threshold(
        flags.model, flags.file, unanswerable_share=share, overrides=overrides(flags),
        device=flags.device, precision=flags.precision, revision=flags.revision,
        allow_bin=flags.allow_bin,
    )  # fmt: skip
    print(
        f"threshold {best.threshold:.4f}: EM {best.exact:.2f}, F1 {best.f1:.2f} on {flags.file}, "
        f"weighted to {100 * share:g} % unanswerable questions; saved in {kept}"
    )
    if removed:
        names = " and ".join(path.name for path in removed)
        print(f"removed {names}, measured with the old settings: run bertqa calibrate again")
