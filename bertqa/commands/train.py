"""Fine-tune BERT for extractive question answering.

bertqa train                                       bert-base-uncased on SQuAD, 3 epochs
bertqa train --train_file my.json --validation_file dev.json --output_dir runs/mine
bertqa train --resume ...                          continue a run where it was stopped
torchrun --nproc_per_node=2 -m bertqa train ...    the same on several processes
bertqa train --check ...                           bertqa check: validate the data
"""

import argparse
import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from bertqa.commands import check
from bertqa.commands.data_flags import ENCODER, add_data_flags, data_settings
from bertqa.commands.flags import (
    Parser,
    add_decoding_flags,
    add_model_flags,
    add_window_flags,
    overrides,
)
from bertqa.errors import UserError
from bertqa.settings import SCHEDULES, TrainingSettings

DEFAULTS = TrainingSettings()


def parse_flags(arguments: Sequence[str], prog: str | None = None) -> argparse.Namespace:
    """Parse the flags; their names are run_qa's."""
    parser = Parser(__doc__ or "", prog)
    add_data_flags(parser)
    add_sample_flags(parser)
    add_model_flags(parser, default=ENCODER)
    add_optimisation_flags(parser)
    add_window_flags(parser)
    add_decoding_flags(parser)
    add_output_flags(parser)
    check.add_check_flags(parser, "with --check: ")
    return parser.parse(arguments)


def add_sample_flags(parser: Parser) -> None:
    """How much of the data is read, and whether it is only looked at."""
    # fmt: off
    add = parser.group("data")
    add("--max_train_samples", type=int, metavar="N", help="train on the first N examples")
    add("--max_eval_samples", type=int, metavar="N", help="evaluate on the first N examples")
    add("--show", type=int, metavar="N", help="print N random training examples and exit")
    add("--check", action="store_true",
        help="validate the data and exit, as bertqa check does; the other flags are ignored")
    # fmt: on


def add_optimisation_flags(parser: Parser) -> None:
    """The fields of ``TrainingSettings`` but for those of ``add_output_flags``."""
    # fmt: off
    add = parser.group("optimisation")
    add("--num_train_epochs", type=float, default=DEFAULTS.num_train_epochs, metavar="N",
        help="passes over the training windows (default: %(default)s)")
    add("--max_steps", type=int, metavar="N", help="optimiser steps; overrides the epochs")
    add("--learning_rate", type=float, default=DEFAULTS.learning_rate, metavar="X",
        help="peak learning rate (default: %(default)s)")
    add("--lr_scheduler_type", default=DEFAULTS.lr_scheduler_type, choices=SCHEDULES,
        help="after the peak: linear decay to 0, or constant (default: %(default)s)")
    add("--warmup_ratio", type=float, default=DEFAULTS.warmup_ratio, metavar="X",
        help="fraction of steps for linear warmup (default: %(default)s)")
    add("--weight_decay", type=float, default=DEFAULTS.weight_decay, metavar="X",
        help="AdamW's, on weights, not on biases and LayerNorm (default: %(default)s)")
    add("--adam_epsilon", type=float, default=DEFAULTS.adam_epsilon, metavar="X",
        help="AdamW's epsilon (default: %(default)s)")
    add("--max_grad_norm", type=float, default=DEFAULTS.max_grad_norm, metavar="X",
        help="clip gradients to this norm, 0 for never; the loss is start plus end as in the "
        "paper, run_qa takes the mean of the two: its 1.0 is 2.0 here (default: %(default)s)")
    add("--dropout", type=float, metavar="X",
        help="all dropout rates (default: the checkpoint's own, in BERT 0.1)")
    add("--layerwise_lr_decay", type=float, default=DEFAULTS.layerwise_lr_decay, metavar="X",
        help="learning rate of each layer relative to the layer above (default: %(default)s)")
    add("--freeze_word_embeddings", action="store_true",
        help="do not train the word embeddings; protects rare words at high learning rates")
    add("--per_device_train_batch_size", type=int, default=DEFAULTS.per_device_train_batch_size,
        metavar="N", help="batch size per process, in windows (default: %(default)s)")
    add("--gradient_accumulation_steps", type=int, default=DEFAULTS.gradient_accumulation_steps,
        metavar="N", help="batches for one optimiser step (default: %(default)s)")
    add("--seed", type=int, default=DEFAULTS.seed, metavar="N",
        help="of the order of windows, dropout and newly drawn S and E (default: %(default)s)")
    # fmt: on


def add_output_flags(parser: Parser) -> None:
    """Where the run is kept, and how often it logs, evaluates and saves."""
    # fmt: off
    add = parser.group("output")
    add("--output_dir", type=Path, default=Path("runs/bertqa"), metavar="DIR",
        help="new folder for the model, the log and the checkpoints (default: %(default)s)")
    add("--resume", action="store_true", help="continue the run in --output_dir")
    add("--logging_steps", type=int, default=DEFAULTS.logging_steps, metavar="N",
        help="a line in log.jsonl every N steps (default: %(default)s)")
    add("--eval_steps", type=int, metavar="N", help="evaluate every N steps (default: each epoch)")
    add("--save_steps", type=int, default=DEFAULTS.save_steps, metavar="N",
        help="a checkpoint to resume from every N steps (default: %(default)s)")
    add("--save_total_limit", type=int, default=DEFAULTS.save_total_limit, metavar="N",
        help="checkpoints to keep (default: %(default)s)")
    # fmt: on


def main(flags: argparse.Namespace) -> int:
    """Check, show or train; the exit code."""
    settings = TrainingSettings(**{name: getattr(flags, name) for name in asdict(DEFAULTS)})
    windows, decoding = overrides(flags).windows(), overrides(flags).decoding()
    data = data_settings(flags)
    check_flags(flags)
    if flags.check:
        return check.main(flags)
    if flags.show:
        from bertqa.commands.train_show import show  # late: --help needs no torch

        show(flags, data, windows, decoding)
        return 0
    from bertqa.commands.train_work import run  # late: --help needs no torch

    run(flags, data, settings, windows, decoding)
    return 0


def check_flags(flags: argparse.Namespace) -> None:
    """Refuse flags that contradict each other or ask for nothing."""
    threshold = flags.null_score_diff_threshold
    if threshold is not None and not math.isfinite(threshold):
        raise UserError(
            f"--null_score_diff_threshold {threshold} cannot be kept with the model: give a finite "
            "number"
        )
    if flags.show is not None and flags.show < 1:
        raise UserError(f"--show {flags.show} asks for no example: give 1 or more")
    if flags.check and flags.show:
        raise UserError("--check and --show exclude each other: pass one")
    for name in ("repair", "report"):
        if getattr(flags, name) and not flags.check:
            raise UserError(f"--{name} {getattr(flags, name)} needs --check beside it: pass both")
    check.check_output_flags(flags)
