"""Training is training: train.py beside transformers' Trainer, from the same encoder and examples.

Both fine-tune on the first examples of SQuAD's training set, with dropout on, once for each seed,
and answer the same questions of the dev set. A run differs from the next by its seed: by the order
of the windows and by what dropout zeroes. What is to be shown is that ours and theirs differ no
more than that, and it says the less, the more the seeds differ: after one epoch at 3e-4 without
warm-up they ended between F1 25 and 51. Hence two epochs at 2e-4, with warm-up.

Theirs is the code of transformers' question-answering notebook: datasets.map with its labelling (an
answer of one token at the end of a window, or one with blanks at its ends, is labelled beside the
mark), every window padded to 384, softmax of the loss over the padding as well, its loss halved;
their numbers are doubled here. Both models are asked by infer.py's own decoder, so that only the
training differs.
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
LAST = 20  # steps at the end that the final loss is the mean of
MAX_LENGTH, STRIDE = 384, 128  # of the peer's windows; ours have them by default

Result = tuple[float, float, float]  # final loss, EM, F1


def ours(model: Path, train: Path, dev: Path, seed: int, flags: argparse.Namespace) -> Result:
    """What train.py does."""
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
    """transformers' Trainer, fed as the notebook feeds it."""
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
    """The windows of a batch of rows with their labels, as the notebook makes them."""
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
    """First and last token of the answer; (0, 0), which is [CLS], if the window lacks it."""
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
    """EM and F1 of a model, by our own decoder."""
    examples = read_examples(dev)
    qa = QuestionAnswerer.from_pretrained(folder)
    figures = score(examples, list(qa.answer(examples)), qa.decoding)
    return figures["exact_match"], figures["f1"]


def rows_of(name: str, results: Sequence[Result], seeds: Sequence[int]) -> list[list[str]]:
    """A row for each seed, and one of the mean with the standard deviation."""
    rows = [
        [name, str(seed), *(f"{number:.3f}" for number in result)]
        for seed, result in zip(seeds, results, strict=True)
    ]
    columns = list(zip(*results, strict=True))
    means = [f"{statistics.fmean(c):.3f} ± {statistics.stdev(c):.3f}" for c in columns]
    return [*rows, [name, "mean", *means]]


def verdict(of_ours: Sequence[Result], of_theirs: Sequence[Result]) -> str:
    """How far the means are apart, and Welch's t of that: apart, by the error of the seeds."""
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
    """Train all; the table."""
    if flags.seeds < 2:
        raise SystemExit(f"--seeds {flags.seeds} has no spread: give 2 or more")
    if not 0 <= flags.warmup_ratio < 1:
        raise SystemExit(f"--warmup_ratio {flags.warmup_ratio} is no share: give 0 to below 1")
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
    """Train all, print the table."""
    flags_parser = plain_parser(__doc__)
    add_model_flag(flags_parser)
    add = flags_parser.add_argument
    add("--folder", type=Path, help="where the encoder is made, and found the next time")
    add("--examples", type=positive, default=2000, help="to train on (2000)")
    add("--questions", type=positive, default=1000, help="to ask (1000)")
    add("--seeds", type=positive, default=3, help="runs of each (3)")
    add("--epochs", type=float, default=2.0, help="of each run (2)")
    add("--learning_rate", type=float, default=2e-4, help="its peak (2e-4)")
    add("--warmup_ratio", type=float, default=0.1, help="share of the steps up to it (0.1)")
    add("--precision", choices=("fp32", "bf16"), default="fp32", help="of both (fp32)")
    run(flags_parser, work, "equal training")


if __name__ == "__main__":
    main()
