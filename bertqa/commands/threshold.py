"""When to say that a text holds no answer: the null score's threshold, chosen and kept.

bertqa threshold MODEL FILE

asks the questions of FILE, which the model was not trained on, takes the threshold with the best
F1 (Devlin et al. 2019, section 4.3, choose tau so) and keeps it beside the model. The more of the
questions that a model is asked have no answer, the lower the best threshold is: FILE's are weighted
so that --unanswerable_share of them have none, by default half, as in the dev set of SQuAD v2.0.

    decoding.json        that there is "no answer", the threshold, the windows and the share that it
                         is for; bertqa infer obeys it
    threshold.json       the curve: a row of threshold, EM and F1 for each that makes a difference
    threshold.svg        its picture

The temperature in decoding.json stays, since the threshold changes no score. calibration.json and
calibration.svg, which judge the answers that are given, are removed: run bertqa calibrate again.

bertqa train does the same with the questions that --validation_split_percentage holds out. A
threshold chosen on the questions that a model is then judged by flatters it.
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
        help="questions with gold answers, some of them without any, as in SQuAD v2.0",
    )  # fmt: skip
    add_window_flags(parser)
    add_settings_flags(parser, "decoding", TrainingSettings, "unanswerable_share")
    return parser.parse(arguments)


def main(flags: argparse.Namespace) -> None:
    """Choose, keep, print."""
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
        f"weighted to {100 * share:g} % unanswerable questions; kept in {kept}"
    )
    if removed:
        names = " and ".join(path.name for path in removed)
        print(f"removed {names}, measured with the settings before: run bertqa calibrate again")
