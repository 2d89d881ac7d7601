"""Comparison of training with bertqa and with transformers' Trainer.

Both fine-tune the same encoder on the first examples of SQuAD's training set with dropout, once per
seed, and are evaluated on the same questions of the dev set. Runs differ by their seed, which
determines the order of the windows and the dropout masks. The difference between bertqa and Trainer
should not exceed the variation between seeds. This variation must be small: after one epoch with a
learning rate of 3e-4 without warmup F1 was between 25 and 51. The defaults are therefore two epochs
with 2e-4 and warmup.

The Trainer runs the code of transformers' question-answering notebook: datasets.map with its labels
(wrong for an answer of one token at the end of a window, or with leading or trailing whitespace),
padding to 384 tokens, a softmax that includes the padding, and half of our loss, which is doubled
here. Both models are evaluated with bertqa's decoder, so that only the training differs.
"""

import argparse
import json
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.data import add_model_flag, first_questions, squad_file
from benchmarks.harness import plain_parser, positive, run, say, table
from benchmarks.models import model_folder
from bertqa.answering.answerer import QuestionAnswerer
from bertqa.answering.evaluation import score
from bertqa.data.readers import read_examples
from bertqa.runtime import local_runtime
from bertqa.settings import DataSettings, TrainingSettings
from bertqa.training.job import train as train_ours

BATCH = 16
LAST = 20  # the final loss is the mean over this number of steps
MAX_LENGTH, STRIDE = 384, 128  # the peer's windows; equal to our defaults

Result = tuple[float, float, float]  # final loss, EM, F1


def ours(model: Path, train: Path, dev: Path, seed: int, flags: argparse.Namespace) -> Result:
    """Train with bertqa."""
    settings = TrainingSettings(
        num_train_epochs=flags.epochs, learning_rate=flags.learning_rate,
        warmup_ratio=flags.warmup_ratio, per_device_train_batch_size=BATCH, seed=seed,
        logging_steps=1,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "run"
        train_ours(
            str(model), DataSettings(train_file=train), folder, settings=settings,
            runtime=local_runtime(precision=flags.precision), say=lambda line: None,
        )  # fmt: skip
        log = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
        losses = [line["loss"] for line in log if "loss" in line]
        return (statistics.fmean(losses[-LAST:]), *answered(folder, dev))


def theirs(model: Path, train: Path, dev: Path, seed: int, flags: argparse.Namespace) -> Result:
    """Train with transformers' Trainer as in the notebook."""
    from datasets import Dataset
    from transformers import (
        AutoModelForQuestionAnswering,
        AutoTokenizer,
        Trainer,
        TrainingArguments,
        default_data_collator,
        set_seed,
    )

    tokenizer = AutoTokenizer.from_pretrained(model)
    rows = Dataset.from_list(
        [
            {"question": e.question, "context": e.context, "answers": e.answers or (),
             "starts": e.answer_starts}
            for e in read_examples(train)
        ]
    )  # fmt: skip
    windows = rows.map(
        lambda batch: labelled_windows(tokenizer, batch), batched=True,
        remove_columns=rows.column_names,
    )  # fmt: skip
    set_seed(seed)
    network = AutoModelForQuestionAnswering.from_pretrained(model)
    with tempfile.TemporaryDirectory() as name:
        arguments = TrainingArguments(
            output_dir=f"{name}/out", num_train_epochs=flags.epochs, seed=seed,
            learning_rate=flags.learning_rate, warmup_steps=flags.warmup_ratio,
            per_device_train_batch_size=BATCH, weight_decay=0.01, max_grad_norm=1.0,
            bf16=flags.precision == "bf16", use_cpu=True, logging_steps=1, save_strategy="no",
            report_to=[], disable_tqdm=True, dataloader_pin_memory=False,
        )  # fmt: skip
        trainer = Trainer(network, arguments, default_data_collator, windows)
        trainer.train()
        losses = [2 * entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
        folder = Path(name) / "model"
        trainer.save_model(str(folder))
        tokenizer.save_pretrained(folder)
        return (statistics.fmean(losses[-LAST:]), *answered(folder, dev))


def labelled_windows(tokenizer: Any, rows: dict[str, list[Any]]) -> Any:
    """Return the windows and labels of a batch of rows as in the notebook."""
    encoded = tokenizer(
        rows["question"], rows["context"], truncation="only_second", max_length=MAX_LENGTH,
        stride=STRIDE, return_overflowing_tokens=True, return_offsets_mapping=True,
        padding="max_length",
    )  # fmt: skip
    row_of = encoded.pop("overflow_to_sample_mapping")
    offsets = encoded.pop("offset_mapping")
    labels = [
        _label(encoded.sequence_ids(window), offsets[window], rows["answers"][i], rows["starts"][i])
        for window, i in enumerate(row_of)
    ]
    encoded["start_positions"] = [start for start, _ in labels]
    encoded["end_positions"] = [end for _, end in labels]
    return encoded


def _label(
    sides: Sequence[int | None], offsets: Sequence[tuple[int, int]], answers: Sequence[str],
    starts: Sequence[int],
) -> tuple[int, int]:  # fmt: skip
    """Return the first and last token of the answer; (0, 0), [CLS], if it is not in the window."""
    if not answers:
        return 0, 0
    begin, stop = starts[0], starts[0] + len(answers[0])
    first = sides.index(1)
    last = len(sides) - 1 - sides[::-1].index(1)
    if offsets[first][0] > begin or offsets[last][1] < stop:
        return 0, 0
    while first <= last and offsets[first][0] <= begin:
        first += 1
    while offsets[last][1] >= stop:
        last -= 1
    return first - 1, last + 1


def answered(folder: Path, dev: Path) -> tuple[float, float]:
    """Return EM and F1 of a model with bertqa's decoder."""
    examples = read_examples(dev)
    qa = QuestionAnswerer.from_pretrained(folder)
    figures = score(examples, list(qa.answer(examples)), qa.decoding)
    return figures["exact_match"], figures["f1"]


def rows_of(name: str, results: Sequence[Result], seeds: Sequence[int]) -> list[list[str]]:
    """Return a row per seed, and one with mean and standard deviation."""
    rows = [
        [name, str(seed), *(f"{number:.3f}" for number in result)]
        for seed, result in zip(seeds, results, strict=True)
    ]
    columns = list(zip(*results, strict=True))
    means = [f"{statistics.fmean(c):.3f} ± {statistics.stdev(c):.3f}" for c in columns]
    return [*rows, [name, "mean", *means]]


def verdict(of_ours: Sequence[Result], of_theirs: Sequence[Result]) -> str:
    """Return the differences of the means with Welch's t statistic."""
    lines = []
    for name, ours_column, theirs_column in zip(
        ("final loss", "EM", "F1"),
        zip(*of_ours, strict=True),
        zip(*of_theirs, strict=True),
        strict=True,
    ):
        apart = statistics.fmean(ours_column) - statistics.fmean(theirs_column)
        errors = [statistics.variance(c) / len(c) for c in (ours_column, theirs_column)]
        t = apart / max(sum(errors), 1e-12) ** 0.5
        lines.append(f"{name}: ours minus theirs {apart:+.3f}, t = {t:+.1f}")
    return "; ".join(lines) + "."


def work(flags: argparse.Namespace, folder: Path) -> str:
    """Train with both for all seeds; return the table."""
    if flags.seeds < 2:
        raise SystemExit(f"--seeds: must be at least 2, got {flags.seeds}")
    if not 0 <= flags.warmup_ratio < 1:
        raise SystemExit(f"--warmup_ratio: must be in [0, 1), got {flags.warmup_ratio}")
    model = flags.model or model_folder(None, flags.folder or folder)
    parts = {"train": flags.examples, "dev": flags.questions}
    train, dev = (
        first_questions(squad_file(split, flags.data, folder), folder / f"{split}.json", count)
        for split, count in parts.items()
    )
    seeds = range(1, flags.seeds + 1)
    results: dict[str, list[Result]] = {"bertqa": [], "Trainer": []}
    for seed in seeds:
        for kind, train_one in (("bertqa", ours), ("Trainer", theirs)):
            results[kind].append(train_one(model, train, dev, seed, flags))
            say(f"{kind}, seed {seed}: " + ", ".join(f"{x:.3f}" for x in results[kind][-1]))
    rows = [row for kind, found in results.items() for row in rows_of(kind, found, seeds)]
    text = table(["trained by", "seed", f"loss of the last {LAST} steps", "EM", "F1"], rows)
    return f"{text}\n\n{verdict(results['bertqa'], results['Trainer'])}"


def main() -> None:
    """Train and print the table."""
    flags_parser = plain_parser(__doc__)
    add_model_flag(flags_parser)
    add = flags_parser.add_argument
    add("--folder", type=Path, help="folder to keep the encoder for later runs")
    add("--examples", type=positive, default=2000, help="number of training examples (2000)")
    add("--questions", type=positive, default=1000, help="number of test questions (1000)")
    add("--seeds", type=positive, default=3, help="runs of each side (3)")
    add("--epochs", type=float, default=2.0, help="number of training epochs (2)")
    add("--learning_rate", type=float, default=2e-4, help="peak learning rate (2e-4)")
    add(
        "--warmup_ratio", type=float, default=0.1,
        help="fraction of steps for linear warmup (0.1)",
    )  # fmt: skip
    add("--precision", choices=("fp32", "bf16"), default="fp32", help="of both sides (fp32)")
    run(flags_parser, work, "equal training")


if __name__ == "__main__":
    main()
