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
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TypeVar

from bertqa.answering.answerer import check_window_fits
from bertqa.answering.evaluation import Evaluator
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
from bertqa.data.labels import Outcome, label_report
from bertqa.data.readers import load_hub_dataset, read_examples
from bertqa.data.squad import (
    Example,
    check_answers,
    check_examples,
    check_version,
    data_fingerprint,
    has_both_kinds,
    split_by_article,
)
from bertqa.data.text import visible
from bertqa.data.tokenization import BertTokenizer
from bertqa.data.window_cache import cached_windows, default_cache_dir
from bertqa.data.windows import WindowSet, label_text, make_windows
from bertqa.errors import UserError
from bertqa.files import check_new_file
from bertqa.model.config import load_config
from bertqa.model.folders import is_checkpoint
from bertqa.model.names import find_folder
from bertqa.report.run_report import RunReport
from bertqa.runtime import Runtime, start_runtime, stop_runtime
from bertqa.settings import SCHEDULES, DecodingSettings, TrainingSettings, WindowSettings
from bertqa.training.checkpoints import load_for_training
from bertqa.training.evaluations import evaluation_table
from bertqa.training.run import Run
from bertqa.training.run_folder import RunFolder, check_free

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
    """Data, model, run; the exit code."""
    settings = TrainingSettings(**{name: getattr(flags, name) for name in asdict(DEFAULTS)})
    cutting, decoding = window_settings(flags), decoding_settings(flags)
    check_flags(flags)
    if flags.check:
        return check(flags, cutting)
    if flags.show:
        show(flags, cutting)
        return 0
    runtime = start_runtime(flags.device, flags.precision)
    try:
        check_free(flags.output_dir, flags.resume)
        if flags.resume and not (flags.output_dir / "run.json").exists():
            say(runtime, f"--resume: {flags.output_dir} holds no run yet, so one begins there")
        train(flags, settings, cutting, decoding, runtime)
    finally:
        stop_runtime()
    return 0


def check_flags(flags: argparse.Namespace) -> None:
    """Refuse flags that contradict each other or ask for nothing."""
    if flags.dataset and (flags.train_file or flags.validation_file):
        raise UserError("--dataset and --train_file/--validation_file exclude each other: pass one")
    if flags.validation_file and not flags.train_file:
        raise UserError(
            f"--validation_file {flags.validation_file} needs a --train_file beside it: pass both"
        )
    percentage = flags.validation_split_percentage
    if percentage is not None and flags.validation_file:
        raise UserError(
            "--validation_file and --validation_split_percentage exclude each other: pass one"
        )
    if percentage is not None and not 1 <= percentage <= 50:
        raise UserError(
            f"--validation_split_percentage {percentage} is not possible: give 1 to 50 per cent"
        )
    threshold = flags.null_score_diff_threshold
    if threshold is not None and not math.isfinite(threshold):
        raise UserError(
            f"--null_score_diff_threshold {threshold} cannot be kept with the model: give a finite "
            "number"
        )
    for name in ("max_train_samples", "max_eval_samples", "show"):
        value = getattr(flags, name)
        if value is not None and value < 1:
            raise UserError(f"--{name} {value} asks for no example: give 1 or more")
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


def train(
    flags: argparse.Namespace,
    settings: TrainingSettings,
    cutting: WindowSettings,
    decoding: DecodingSettings,
    runtime: Runtime,
) -> None:
    """Make the windows, train, and say where the result is."""
    train_examples, validation_examples = main_first(runtime, lambda: load_data(flags))
    model, tokenizer, report = main_first(
        runtime, lambda: load_for_training(flags.model, seed=flags.seed, allow_bin=flags.allow_bin)
    )
    check_window_fits(model.config, cutting)
    say(runtime, report)

    def cut(examples: list[Example]) -> WindowSet:
        return main_first(
            runtime, lambda: cached_windows(examples, tokenizer, cutting, default_cache_dir())
        )

    windows, validation_windows = cut(train_examples), cut(validation_examples)
    labels = {
        "training": label_report(train_examples, windows.outcome, windows.cut_questions),
        "validation": label_report(
            validation_examples, validation_windows.outcome, validation_windows.cut_questions
        ),
    }
    say(runtime, f"training: {len(windows)} windows of {labels['training']}")
    evaluator = None
    chooses = chooses_threshold(flags, decoding, validation_examples, runtime)
    if validation_examples:
        say(runtime, f"validation: {len(validation_windows)} windows of {labels['validation']}")
        evaluator = Evaluator(
            validation_examples, validation_windows, decoding, runtime, chooses_threshold=chooses
        )

    fingerprints = {
        "train": data_fingerprint(train_examples),
        "validation": data_fingerprint(validation_examples),
    }
    description = describe(flags, settings, cutting, decoding, runtime, fingerprints)
    description["data"]["chooses_threshold"] = chooses
    folder = RunFolder(flags.output_dir, description)
    ids = [example.id for example in train_examples]
    report_writer = RunReport(flags.output_dir)
    run = Run(model, tokenizer, windows, evaluator, settings, runtime, folder, ids, report_writer)
    run.start(flags.resume)
    if runtime.is_main:
        folder.keep_labels(labels)
        folder.keep_decoding(decoding, cutting)
    plan = run.loop.plan
    say(
        runtime,
        f"{plan.total_steps} steps of {plan.windows_per_step} windows on {runtime.device} in "
        f"{runtime.dtype}, from step {run.progress.step}",
    )
    progress = run.train()
    say(runtime, evaluation_table(progress.evaluations))
    say(runtime, f"saved in {flags.output_dir}; ask it: python infer.py --model {flags.output_dir}")


def chooses_threshold(
    flags: argparse.Namespace,
    decoding: DecodingSettings,
    validation_examples: Sequence[Example],
    runtime: Runtime,
) -> bool:
    """Whether the evaluations choose from which null score on the answer is "no answer".

    Of questions that training never saw that may be learned.
    """
    wanted = bool(
        flags.validation_split_percentage
        and decoding.version_2_with_negative
        and flags.null_score_diff_threshold is None
    )
    if wanted and not has_both_kinds(validation_examples):
        say(runtime, "the held-out part cannot choose a threshold: it lacks one kind of question")
        return False
    return wanted


def say(runtime: Runtime, what: object) -> None:
    """Print, if this is the process that prints."""
    if runtime.is_main:
        print(what, flush=True)


def describe(
    flags: argparse.Namespace,
    settings: TrainingSettings,
    cutting: WindowSettings,
    decoding: DecodingSettings,
    runtime: Runtime,
    fingerprints: dict[str, str],
) -> dict[str, Any]:
    """What goes into run.json: all that decides the numbers, and what else they depend on."""
    decisive = {
        "windows_per_step": settings.windows_per_step(runtime.world_size),
        "precision": str(runtime.dtype),
        "model": flags.model,
    }
    data = {**fingerprints, "windows": asdict(cutting), "decoding": asdict(decoding)}
    return {"settings": asdict(settings) | decisive, "data": data, **surroundings(runtime)}


T = TypeVar("T")


def main_first(runtime: Runtime, make: Callable[[], T]) -> T:
    """Let the main process download or tokenise; the others find it done, or fail as it did."""
    value: T | None = None
    failure: UserError | None = None
    if runtime.is_main:
        try:
            value = make()
        except UserError as error:
            failure = error
    failure = runtime.gather(failure)[0]  # the others wait here
    if failure:
        failure.is_said = not runtime.is_main
        raise failure
    return value if value is not None else make()


def load_data(flags: argparse.Namespace) -> tuple[list[Example], list[Example]]:
    """Training and validation examples, checked; the second is empty where there are none."""
    percentage = flags.validation_split_percentage
    parts = read_data(flags)
    limits = (flags.max_train_samples, flags.max_eval_samples)
    for source, examples in parts:
        try:
            check_examples(examples, source)
            check_answers(examples, source)
        except UserError as error:
            hint = "; --check finds all faults" if examples else ""
            raise UserError(f"{error}{hint}") from error
        check_version(examples, source, flags.version_2_with_negative)
    train = parts[0][1]
    validation = parts[1][1] if len(parts) > 1 else []
    if percentage:
        train, validation = split_by_article(train, percentage)
    return train[: limits[0]], validation[: limits[1]]


def read_data(flags: argparse.Namespace) -> list[tuple[str, list[Example]]]:
    """The training data, then those to evaluate on, if any, each with its name; not yet checked."""
    if flags.train_file:
        paths = [path for path in (flags.train_file, flags.validation_file) if path]
        return [(str(path), read_examples(path)) for path in paths]
    name = flags.dataset or "squad"
    splits = ("train",) if flags.validation_split_percentage else ("train", "validation")
    return [(f"{name}, {split}", load_hub_dataset(name, split)) for split in splits]


def check(flags: argparse.Namespace, cutting: WindowSettings) -> int:
    """Say what is wrong with the data, write what was asked for, and give the exit code."""
    if os.environ.get("RANK", "0") != "0":  # of several processes one is enough
        return 0
    parts = read_data(flags)
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


def show(flags: argparse.Namespace, cutting: WindowSettings) -> None:
    """Print random examples with their windows and labels."""
    tokenizer = BertTokenizer.load(find_folder(flags.model, allow_bin=flags.allow_bin))
    examples, _ = load_data(flags)
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


def surroundings(runtime: Runtime) -> dict[str, Any]:
    """What else a run depends on: versions, commit, command line, device."""
    packages = ("torch", "tokenizers", "datasets", "safetensors", "huggingface_hub", "tqdm")
    return {
        "versions": {"python": sys.version.split()[0]} | {p: version_of(p) for p in packages},
        "git_commit": git_commit(),
        "command": sys.argv,
        "device": str(runtime.device),
        "processes": runtime.world_size,
    }


def version_of(package: str) -> str | None:
    """The installed version of a package."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def git_commit() -> str | None:
    """The commit of this source tree, marked if files differ from it; None outside git."""
    command = ["git", "describe", "--always", "--abbrev=40", "--dirty", "--exclude=*"]
    try:
        result = subprocess.run(
            command, cwd=Path(__file__).parent, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return result.stdout.strip()
