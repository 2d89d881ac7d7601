"""``bertqa infer --input``: all questions of a file."""

import argparse
import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from tqdm import tqdm

from bertqa.answering.answerer import QuestionAnswerer
from bertqa.answering.answers import Prediction
from bertqa.answering.evaluation import PREDICTION_FILES, score, write_predictions
from bertqa.answering.json_lines import (
    LINE_FILES,
    PREDICTIONS,
    answer_lines,
    score_lines,
)
from bertqa.commands.question_flags import load_answerer
from bertqa.data.readers import is_json_lines, iter_json_lines, read_examples
from bertqa.data.squad import Example, check_examples, check_version
from bertqa.errors import UserError, counted
from bertqa.files import said_plainly, write_json

METRICS = "metrics.json"


def answer_file(flags: argparse.Namespace) -> None:
    """Answer all questions of --input and write the files into --output_dir."""
    in_lines = is_json_lines(flags.input)
    check_file_flags(flags, in_lines)
    if in_lines:
        answer_json_lines(flags)
    else:
        answer_whole_file(flags)


def check_file_flags(flags: argparse.Namespace, in_lines: bool) -> None:
    """Refuse what would overwrite, and flags that are for the other kind of file."""
    # All that would be replaced or removed: the folder may be a model's, with figures of its own.
    names = LINE_FILES if in_lines else PREDICTION_FILES
    existing = next((f for n in (*names, METRICS) if (f := flags.output_dir / n).exists()), None)
    if existing and not flags.overwrite_output_dir and not flags.resume:
        going_on = ", --resume to go on" if in_lines and existing.name in LINE_FILES else ""
        raise UserError(
            f"{existing} is there already: name another --output_dir{going_on}, or pass "
            "--overwrite_output_dir"
        )
    if flags.resume and flags.overwrite_output_dir:
        raise UserError("--resume and --overwrite_output_dir exclude each other: pass one")
    if in_lines:
        return
    for name in ("resume", "skip_bad", "all_offsets"):
        if getattr(flags, name):
            raise UserError(
                f"--{name} is for JSON lines, and --input {flags.input} is read whole: drop the "
                "flag, or write the questions as .jsonl"
            )
    if flags.top_k != 1:
        raise UserError(
            f"--top_k {flags.top_k} is for one question and for JSON lines: pass --n_best_size"
        )


def answer_json_lines(flags: argparse.Namespace) -> None:
    """A line of output for a line of input, however many there are."""
    first = next(iter_json_lines(flags.input), None)  # before the model is read
    if first and first.fault and not (flags.skip_bad or flags.resume):
        raise UserError(f"{first.fault}; or pass --skip_bad")
    qa = load_answerer(flags)
    qa.decoding = replace(qa.decoding, n_best_size=max(flags.top_k, qa.decoding.n_best_size))
    with said_plainly(flags.output_dir, "made"):
        flags.output_dir.mkdir(parents=True, exist_ok=True)
    with tqdm(unit="line", disable=None) as bar:
        answered, rejected = answer_lines(
            qa, flags.input, flags.output_dir, model=flags.model, top_k=flags.top_k,
            all_offsets=flags.all_offsets, skip_bad=flags.skip_bad, resume=flags.resume,
            progress=bar.update,
        )  # fmt: skip
    v2 = qa.decoding.version_2_with_negative
    keep_metrics(flags, score_lines(flags.input, flags.output_dir, v2=v2, say=say))
    print(
        f"{counted(answered, 'line')} answered in {flags.output_dir / PREDICTIONS}, "
        f"{rejected} rejected",
        file=sys.stderr,
    )


def answer_whole_file(flags: argparse.Namespace) -> None:
    """run_qa's files."""
    examples = read_examples(flags.input, say=say)
    check_examples(examples, str(flags.input))
    has_gold = any(example.answers is not None for example in examples)
    qa = load_answerer(flags)
    if has_gold:
        check_version(examples, str(flags.input), qa.decoding.version_2_with_negative)
    with said_plainly(flags.output_dir, "made"):  # before the work that is to go there
        flags.output_dir.mkdir(parents=True, exist_ok=True)
    predictions, files = write_predictions(flags.output_dir, predict_all(qa, examples), qa.decoding)
    files += keep_metrics(flags, score(examples, predictions, qa.decoding) if has_gold else None)
    print(f"wrote {', '.join(str(file) for file in files)}", file=sys.stderr)


def keep_metrics(flags: argparse.Namespace, metrics: dict[str, float] | None) -> list[Path]:
    """Write and print the figures, or drop those of other answers; the file, if there is one."""
    path = flags.output_dir / METRICS
    if metrics is None:
        with said_plainly(path, "removed"):
            path.unlink(missing_ok=True)
        return []
    write_json(path, metrics)
    print(json.dumps(metrics, indent=None if flags.json else 2))
    return [path]


def say(line: str) -> None:
    """Tell what the questions lack, apart from the figures."""
    print(line, file=sys.stderr)


def predict_all(qa: QuestionAnswerer, examples: Sequence[Example]) -> Iterable[Prediction]:
    """The answers to all examples; where stderr is a terminal, with a progress bar."""
    return tqdm(qa.answer(examples), total=len(examples), unit="question", disable=None)
