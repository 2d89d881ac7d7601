"""Fine-tune BERT for extractive question answering.

python train.py                                  bert-base-uncased on SQuAD, 3 epochs
python train.py --train_file my.json --validation_file dev.json --output_dir runs/mine
python train.py --resume ...                     go on where a run was stopped
torchrun --nproc_per_node=2 train.py ...         the same on several processes
python train.py --check ...                      what is wrong with the data, without training
"""

import argparse
import math
import os
import random
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path

from bertqa.answering.answerer import check_window_fits
from bertqa.audit.findings import Audit, audit
from bertqa.audit.page import save_page
from bertqa.audit.repair import COPY_ENDINGS, repair, save_examples
from bertqa.audit.text import audit_text, changes_text, save_json
from bertqa.commands.flags import (
    Parser,
    add_decoding_flags,
    add_model_flags,
    add_window_flags,
    decoding_settings,
    window_settings,
)
from bertqa.data.labels import Outcome
from bertqa.data.squad import Example
from bertqa.data.text import visible
from bertqa.data.tokenization import BertTokenizer
from bertqa.data.windows import label_text, make_windows
from bertqa.errors import UserError
from bertqa.files import check_new_file
from bertqa.model.config import load_config
from bertqa.model.folders import is_checkpoint
from bertqa.model.names import find_folder
from bertqa.report.run_report import RunReport
from bertqa.runtime import start_runtime, stop_runtime
from bertqa.settings import (
    SCHEDULES,
    DataSettings,
    DecodingSettings,
    TrainingSettings,
    WindowSettings,
)
from bertqa.training.job import load_data, read_data, train

DEFAULTS = TrainingSettings()


def parse_flags(arguments: Sequence[str]) -> argparse.Namespace:
    """The flags; their names are run_qa's."""
    # fmt: off
    parser = Parser(__doc__ or "")
    add_model_flags(parser, default="bert-base-uncased")
    add = parser.add_argument
    add(
        "--dataset",
        metavar="NAME",
        help="data set of the hub, name or name:config (default: squad)",
    )
    add("--train_file", type=Path, metavar="FILE", help="SQuAD JSON, JSON lines, CSV, parquet")
    add("--validation_file", type=Path, metavar="FILE", help="the same forms")
    add("--validation_split_percentage", type=int, metavar="N",
        help="hold out N per cent of the training articles and evaluate on their questions")
    add("--max_train_samples", type=int, metavar="N", help="train on the first N examples")
    add("--max_eval_samples", type=int, metavar="N", help="evaluate on the first N examples")
    add("--show", type=int, metavar="N", help="print N random training examples and stop")
    add("--check", action="store_true",
        help="find every fault of the data, and stop; the other flags may stay; exit code 0: "
        "train.py takes the data, 1: it refuses them, 2: they cannot be read")
    add("--repair", type=Path, metavar="FILE",
        help="with --check: write the training data, repaired where that needs no guess, as .json "
        "(run_qa's flat form) or .jsonl; the exit code is then that of the copy")
    add("--report", type=Path, metavar="FILE",
        help="with --check: write all that was found, as .html or .json")
    add("--output_dir", type=Path, default=Path("runs/bertqa"), metavar="DIR",
        help="new folder for the model, the log and the checkpoints (default: %(default)s)")
    add("--resume", action="store_true", help="go on with the run in --output_dir")
    add("--num_train_epochs", type=float, default=DEFAULTS.num_train_epochs, metavar="N",
        help="passes over the training windows (default: %(default)s)")
    add("--max_steps", type=int, metavar="N", help="optimiser steps, in place of the epochs")
    add("--learning_rate", type=float, default=DEFAULTS.learning_rate, metavar="X",
        help="its peak (default: %(default)s)")
    add("--lr_scheduler_type", default=DEFAULTS.lr_scheduler_type, choices=SCHEDULES,
        help="after the peak it falls to 0 in a line, or stays (default: %(default)s)")
    add("--warmup_ratio", type=float, default=DEFAULTS.warmup_ratio, metavar="X",
        help="share of the steps in which the rate rises to its peak (default: %(default)s)")
    add("--weight_decay", type=float, default=DEFAULTS.weight_decay, metavar="X",
        help="on weights, not on biases and LayerNorm (default: %(default)s)")
    add("--adam_epsilon", type=float, default=DEFAULTS.adam_epsilon, metavar="X",
        help="AdamW's (default: %(default)s)")
    add("--max_grad_norm", type=float, default=DEFAULTS.max_grad_norm, metavar="X",
        help="clip gradients to this norm, 0 for never; the loss is start plus end as in the "
        "paper, run_qa takes the mean of the two: its 1.0 is 2.0 here (default: %(default)s)")
    add("--dropout", type=float, metavar="X",
        help="rate of all dropout (default: the checkpoint's own, in BERT 0.1)")
    add("--layerwise_lr_decay", type=float, default=DEFAULTS.layerwise_lr_decay, metavar="X",
        help="learning rate of each layer, by that of the layer above (default: %(default)s)")
    add("--freeze_word_embeddings", action="store_true",
        help="do not train the vectors of the vocabulary; keeps rare words at high learning rates")
    add("--per_device_train_batch_size", type=int, default=DEFAULTS.per_device_train_batch_size,
        metavar="N", help="windows that one process takes at once (default: %(default)s)")
    add("--gradient_accumulation_steps", type=int, default=DEFAULTS.gradient_accumulation_steps,
        metavar="N", help="batches for one optimiser step (default: %(default)s)")
    add("--seed", type=int, default=DEFAULTS.seed, metavar="N",
        help="of the order of windows, dropout and fresh S and E (default: %(default)s)")
    add("--logging_steps", type=int, default=DEFAULTS.logging_steps, metavar="N",
        help="a line in log.jsonl every N steps (default: %(default)s)")
    add("--eval_steps", type=int, metavar="N", help="evaluate every N steps (default: each epoch)")
    add("--save_steps", type=int, default=DEFAULTS.save_steps, metavar="N",
        help="a checkpoint to resume from every N steps (default: %(default)s)")
    add("--save_total_limit", type=int, default=DEFAULTS.save_total_limit, metavar="N",
        help="checkpoints to keep (default: %(default)s)")
    add_window_flags(parser)
    add_decoding_flags(parser)
    # fmt: on
    return parser.parse(arguments)


def main(flags: argparse.Namespace) -> int:
    """Check, show or train; the exit code."""
    settings = TrainingSettings(**{name: getattr(flags, name) for name in asdict(DEFAULTS)})
    windows, decoding = window_settings(flags), decoding_settings(flags)
    data = data_settings(flags)
    check_flags(flags)
    if flags.check:
        return check(flags, data, windows)
    if flags.show:
        show(flags, data, windows, decoding)
        return 0
    runtime = start_runtime(flags.device, flags.precision)
    try:
        train(
            flags.model, data, flags.output_dir,
            settings=settings, windows=windows, decoding=decoding, runtime=runtime,
            choose_threshold=flags.null_score_diff_threshold is None, resume=flags.resume,
            allow_bin=flags.allow_bin, observer=RunReport(flags.output_dir), say=say,
        )  # fmt: skip
    finally:
        stop_runtime()
    if runtime.is_main:
        say(f"saved in {flags.output_dir}; ask it: python infer.py --model {flags.output_dir}")
    return 0


def say(what: object) -> None:
    """Print at once, also into a pipe."""
    print(what, flush=True)


def data_settings(flags: argparse.Namespace) -> DataSettings:
    """The flags that name the data as settings.

    Raises:
        UserError: they contradict each other or ask for nothing.
    """
    return DataSettings(
        **{field.name: getattr(flags, field.name) for field in fields(DataSettings)}
    )


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
    if flags.repair and flags.report and flags.repair.absolute() == flags.report.absolute():
        raise UserError(f"--repair and --report both name {flags.repair}: name two files")
    if flags.repair:
        check_new_file(flags.repair, "--repair", COPY_ENDINGS)
    if flags.report:
        check_new_file(flags.report, "--report", (".html", ".json"))


def check(flags: argparse.Namespace, data: DataSettings, cutting: WindowSettings) -> int:
    """Say what is wrong with the data, write what was asked for, and give the exit code."""
    if os.environ.get("RANK", "0") != "0":  # of several processes one is enough
        return 0
    parts = read_data(data)
    folder = find_folder(flags.model, allow_bin=flags.allow_bin)
    if is_checkpoint(folder):  # a tokenizer alone would do
        check_window_fits(load_config(folder)[0], cutting)
    tokenizer = BertTokenizer.load(folder)
    negative = bool(flags.version_2_with_negative)

    def audited(source: str, examples: list[Example]) -> Audit:
        return audit(examples, tokenizer, cutting, source=source, version_2_with_negative=negative)

    audits = [audited(*part) for part in parts]
    judged = audits
    for found in audits:
        print(audit_text(found) + "\n", flush=True)
    changes = None
    if flags.repair:
        repaired = repair(parts[0][1], tokenizer)
        changes = repaired.changes
        copy = audited(str(flags.repair), repaired.examples)
        save_examples(flags.repair, repaired.examples)
        print(f"{changes_text(changes)}\n\n{audit_text(copy)}\n")
        judged = [copy, *audits[1:]]
        audits = [audits[0], copy, *audits[1:]]
    if flags.report:
        save = save_page if flags.report.suffix == ".html" else save_json
        save(flags.report, audits, changes)
    written = [str(path) for path in (flags.repair, flags.report) if path]
    if written:
        print(f"wrote {', '.join(written)}")
    return int(any(found.refused for found in judged))


def show(
    flags: argparse.Namespace,
    data: DataSettings,
    cutting: WindowSettings,
    decoding: DecodingSettings,
) -> None:
    """Print random examples with their windows and labels."""
    tokenizer = BertTokenizer.load(find_folder(flags.model, allow_bin=flags.allow_bin))
    negative = decoding.version_2_with_negative
    examples, _ = load_data(data, version_2_with_negative=negative)
    chosen = random.Random(flags.seed).sample(examples, min(flags.show, len(examples)))
    windows = make_windows(chosen, tokenizer, cutting)
    for i, example in enumerate(chosen):
        for name, text in (
            ("id", example.id), ("question", example.question), ("context", example.context),
        ):  # fmt: skip
            lines = map(visible, text.split("\n"))  # its own lines, but nothing that hides
            print(f"{name:<10}{chr(10).join(lines)}")
        for text, start in zip(example.answers or (), example.answer_starts, strict=True):
            print(f"answer    {text!r} at {start}")
        outcome = Outcome(int(windows.outcome[i]))
        print(f"label     {outcome.name.lower().replace('_', ' ')}")
        first, last = windows.of_examples(i, i + 1)
        for number_of, window in enumerate(range(first, last), start=1):
            shown = windows[window]
            text = label_text(windows, window, example.context)
            print(
                f"window    {number_of} of {last - first}: {len(shown.input_ids)} tokens, label "
                f"{shown.start_position}..{shown.end_position} = {text!r}"
            )
            print(f"          {visible(' '.join(tokenizer.tokens(shown.input_ids)))}")
        print()
