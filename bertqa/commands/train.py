"""Fine-tune BERT for extractive question answering.

bertqa train                                       bert-base-uncased on SQuAD, 3 epochs
bertqa train --train_file my.json --validation_file dev.json --output_dir runs/mine
bertqa train --resume ...                          continue a run where it was stopped
torchrun --nproc_per_node=2 -m bertqa train ...    the same on several processes
bertqa train --check ...                           bertqa check: validate the data
"""

import argparse
import math
import random
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TypeVar

from bertqa.answering.answerer import check_window_fits, load_for_training
from bertqa.answering.evaluation import Evaluator
from bertqa.commands import check
from bertqa.commands.flags import (
    Parser,
    add_decoding_flags,
    add_model_flags,
    add_window_flags,
    overrides,
)
from bertqa.commands.threshold import has_both_kinds
from bertqa.commands.training_data import ENCODER, add_data_flags, check_data_flags, load_data
from bertqa.data.labels import (
    LabelledWindows,
    Outcome,
    label_report,
    label_text,
    make_labelled_windows,
)
from bertqa.data.squad import Example
from bertqa.data.text import visible
from bertqa.data.tokenization import BertTokenizer
from bertqa.data.window_cache import cached_windows, data_fingerprint, default_cache_dir
from bertqa.errors import UserError
from bertqa.model.names import find_folder
from bertqa.runtime import Runtime, start_runtime, stop_runtime
from bertqa.settings import SCHEDULES, DecodingSettings, TrainingSettings, WindowSettings
from bertqa.training.loop import Run
from bertqa.training.run_folder import RunFolder, check_free, evaluation_table

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
    """Data, model, run; the exit code."""
    settings = TrainingSettings(**{name: getattr(flags, name) for name in asdict(DEFAULTS)})
    cutting, decoding = overrides(flags).windows(), overrides(flags).decoding()
    check_flags(flags)
    if flags.check:
        return check.main(flags)
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
    check_data_flags(flags)
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
    check.check_output_flags(flags)


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

    def cut(examples: list[Example]) -> LabelledWindows:
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
    run = Run(model, tokenizer, windows, evaluator, settings, runtime, folder, ids)
    run.start(flags.resume)
    if runtime.is_main:
        folder.keep_labels(labels)
        folder.keep_decoding(decoding, cutting)
    say(
        runtime,
        f"{run.total_steps} steps of {run.windows_per_step} windows on {runtime.device} in "
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


def show(flags: argparse.Namespace, cutting: WindowSettings) -> None:
    """Print random examples with their windows and labels."""
    tokenizer = BertTokenizer.load(find_folder(flags.model, allow_bin=flags.allow_bin))
    examples, _ = load_data(flags)
    chosen = random.Random(flags.seed).sample(examples, min(flags.show, len(examples)))
    windows = make_labelled_windows(chosen, tokenizer, cutting)
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
            label = "{}..{}".format(*windows.label_of(window))
            print(
                f"window    {number_of} of {last - first}: {len(shown.input_ids)} tokens, label "
                f"{label} = {text!r}"
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
