"""Fine-tune BERT for extractive question answering.

bertqa train                                       bert-base-uncased on SQuAD, 3 epochs
bertqa train --train_file my.json --validation_file dev.json --output_dir runs/mine
bertqa train --resume --output_dir runs/mine       continue a stopped run
torchrun --nproc_per_node=2 -m bertqa train ...    the same on several processes
bertqa train --check ...                           bertqa check: validate the data
"""

import argparse
import math
from collections.abc import Sequence
from dataclasses import fields
from functools import partial
from pathlib import Path

from bertqa.commands import check
from bertqa.commands.flags import (
    Parser,
    add_decoding_flags,
    add_model_flags,
    add_settings_flags,
    add_window_flags,
    overrides,
    settings_from_flags,
)
from bertqa.errors import UserError
from bertqa.files import read_json_object
from bertqa.settings import ENCODER, DataSettings, TrainingSettings

# The fields of ``TrainingSettings`` that do not change what is learned.
OUTPUT_SETTINGS = ("logging_steps", "eval_steps", "save_steps", "save_total_limit")
DISTILLATION_SETTINGS = ("distillation_temperature", "distillation_weight")
DECODING_SETTINGS = ("unanswerable_share",)


def parse_flags(arguments: Sequence[str], prog: str | None = None) -> argparse.Namespace:
    """Parse the flags, which have run_qa's names."""
    parser = Parser(__doc__ or "", prog)
    # fmt: off
    add_settings_flags(parser, "data", DataSettings)
    add = parser.group("data")
    add("--show", type=int, metavar="N", help="print N random training examples and exit")
    add("--check", action="store_true",
        help="validate the data and exit, as bertqa check does; training flags are ignored")
    add_model_flags(parser, ENCODER, offer_int8=False)
    others = OUTPUT_SETTINGS + DISTILLATION_SETTINGS + DECODING_SETTINGS
    recipe = [f.name for f in fields(TrainingSettings) if f.name not in others]
    add_settings_flags(parser, "optimization", TrainingSettings, *recipe)
    add = parser.group("distillation")
    add("--teacher", nargs="+", action="extend", default=[], metavar="MODEL",
        help="fine-tuned models of any size to distill from, with the tokenizer of --model")
    add_settings_flags(parser, "distillation", TrainingSettings, *DISTILLATION_SETTINGS)
    add_window_flags(parser)
    add_decoding_flags(parser)
    add_settings_flags(parser, "decoding", TrainingSettings, *DECODING_SETTINGS)
    add = parser.group("output")
    add("--output_dir", type=Path, default=Path("runs/bertqa"), metavar="DIR",
        help="new folder for the model, log and checkpoints (default: %(default)s)")
    add("--resume", action="store_true",
        help="continue the run in --output_dir, or start it if there is none; without flags other "
        "than --output_dir, with the flags of its first call")
    add_settings_flags(parser, "output", TrainingSettings, *OUTPUT_SETTINGS)
    check.add_check_flags(parser, "with --check: ")
    # fmt: on
    return parser.parse(arguments)


def resumed(flags: argparse.Namespace) -> argparse.Namespace:
    """Return the flags of a run's first call for a --resume without flags other than --output_dir.

    Raises:
        UserError: another program began the run.
    """
    bare = ["--resume", "--output_dir", str(flags.output_dir)]
    run = flags.output_dir / "run.json"
    if flags != parse_flags(bare) or not run.exists():
        return flags
    return parse_flags([*flags_of_run(run), *bare])


def flags_of_run(run: Path) -> list[str]:
    """Return the flags of the ``bertqa train`` that began a run, from its run.json.

    Raises:
        UserError: another program began the run.
    """
    match read_json_object(run).get("command"):
        case [str(program), *words] if all(isinstance(word, str) for word in words):
            if words[:1] == ["train"]:
                return words[1:]
            if Path(program).name == "train.py":
                return words
    raise UserError(
        f"--resume: {run} must have the command of a bertqa train, got another program's: pass the "
        "flags of the run, or resume it with that program"
    )


def main(flags: argparse.Namespace) -> int:
    """Check, show or train, and return the exit code."""
    flags = resumed(flags)
    settings = settings_from_flags(flags, TrainingSettings)
    windows, decoding = overrides(flags).windows(), overrides(flags).decoding()
    data = settings_from_flags(flags, DataSettings)
    check_flags(flags)
    if flags.check:
        return check.main(flags)
    if flags.show:
        from bertqa.commands.train_show import show  # late: --help needs no torch

        show(flags, data, windows, decoding)
        return 0
    from bertqa.report.training_page import RunReport  # late: --help needs no torch
    from bertqa.runtime import start_runtime, stop_runtime  # late: as above
    from bertqa.training.job import train  # late: as above

    say = partial(print, flush=True)  # no buffering in a pipe
    runtime = start_runtime(flags.device, flags.precision)
    try:
        train(
            flags.model, data, flags.output_dir,
            settings=settings, windows=windows, decoding=decoding, runtime=runtime,
            choose_threshold=flags.null_score_diff_threshold is None, resume=flags.resume,
            revision=flags.revision, allow_bin=flags.allow_bin, teachers=flags.teacher,
            observer=RunReport(flags.output_dir), say=say,
        )  # fmt: skip
    finally:
        stop_runtime()
    if runtime.is_main:
        say(f"saved in {flags.output_dir}; ask it: bertqa infer --model {flags.output_dir}")
    return 0


def check_flags(flags: argparse.Namespace) -> None:
    """Check the flags before the work.

    Raises:
        UserError: flags contradict each other or have no effect, or a value is out of range.
    """
    threshold = flags.null_score_diff_threshold
    if threshold is not None and not math.isfinite(threshold):
        raise UserError(
            f"--null_score_diff_threshold must be finite to be saved with the model, got "
            f"{threshold}"
        )
    share = flags.unanswerable_share
    if share != TrainingSettings.unanswerable_share and not flags.version_2_with_negative:
        raise UserError(
            f"--unanswerable_share {share} requires --version_2_with_negative: pass both or neither"
        )
    if flags.show is not None and flags.show < 1:
        raise UserError(f"--show must be at least 1, got {flags.show}")
    if flags.check and flags.show:
        raise UserError("--check and --show exclude each other: pass one")
    for name in ("repair", "report"):
        if getattr(flags, name) and not flags.check:
            raise UserError(f"--{name} {getattr(flags, name)} requires --check: pass both")
    check.check_output_flags(flags)
