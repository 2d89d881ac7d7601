"""``bertqa infer --input``: all questions of a file."""

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path

from tqdm import tqdm

from bertqa.answering.evaluation import PREDICTION_FILES, score, write_predictions
from bertqa.answering.json_lines import (
    LINE_FILES,
    PREDICTIONS,
    REJECTS,
    answer_lines,
    score_lines,
)
from bertqa.answering.rows import checked, refuse_faulty, reject_entry, unique
from bertqa.commands.question_flags import load_answerer
from bertqa.data.readers import is_json_lines, read_rows
from bertqa.data.rows import shared_texts
from bertqa.errors import UserError, counted
from bertqa.files import said_plainly, write_text

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
    names = LINE_FILES if in_lines else (*PREDICTION_FILES, REJECTS)
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
    for name in ("resume", "all_offsets"):
        if getattr(flags, name):
            raise UserError(
                f"--{name} is for JSON lines, and --input {flags.input} is read whole: drop the "
                "flag, or write a question on each line of a .jsonl"
            )
    if flags.top_k != 1:
        raise UserError(
            f"--top_k {flags.top_k} is for one question and for JSON lines: pass --n_best_size"
        )


def answer_json_lines(flags: argparse.Namespace) -> None:
    """A line of output for a line of input, however many there are."""
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
    is_there = not flags.input.is_fifo()  # what came through a pipe cannot be read again
    v2 = qa.decoding.version_2_with_negative
    metrics = score_lines(flags.input, flags.output_dir, v2=v2, say=say) if is_there else {}
    keep_metrics(flags, metrics)
    place = flags.output_dir / PREDICTIONS
    others = f", {rejected:,} rejected" if rejected else ""
    say(f"{counted(answered, 'line')} answered in {place}{others}")


def answer_whole_file(flags: argparse.Namespace) -> None:
    """run_qa's files, and what was left out of them."""
    read = unique(read_rows(flags.input, say=say))
    qa = load_answerer(flags)
    rows = list(checked(read, qa))
    if not flags.skip_bad:
        refuse_faulty(rows)  # together, so that none is left to be told the next time
    share = shared_texts()
    examples = [share(row.example) for row in rows if row.example]
    if not examples:
        refuse_faulty(rows, "no row is without a fault, correct the file")
    rejects = [json.dumps(reject_entry(row), ensure_ascii=False) for row in rows if row.fault]
    del rows, read  # they hold the file as it was parsed
    has_gold = any(example.answers is not None for example in examples)
    with said_plainly(flags.output_dir, "made"):  # before the work that is to go there
        flags.output_dir.mkdir(parents=True, exist_ok=True)
    answers = tqdm(qa.answer(examples), total=len(examples), unit="question", disable=None)
    predictions, files = write_predictions(flags.output_dir, answers, qa.decoding)
    files += keep(flags.output_dir / REJECTS, "".join(f"{reject}\n" for reject in rejects))
    files += keep_metrics(flags, score(examples, predictions, qa.decoding) if has_gold else {})
    if rejects:
        say(f"{counted(len(rejects), 'row')} rejected")
    say(f"wrote {', '.join(str(file) for file in files)}")


def say(line: str) -> None:
    """Tell what is not the figures, apart from them."""
    print(line, file=sys.stderr)


def keep_metrics(flags: argparse.Namespace, metrics: dict[str, float]) -> list[Path]:
    """Write and print the figures, if there are any."""
    if metrics:
        print(json.dumps(metrics, indent=None if flags.json else 2))
    text = json.dumps(metrics, indent=2) + "\n" if metrics else ""
    return keep(flags.output_dir / METRICS, text)


def keep(path: Path, text: str) -> list[Path]:
    """Write a file, or where it would be empty drop that of other answers; the files, if any."""
    if text:
        write_text(path, text)
        return [path]
    with said_plainly(path, "removed"):
        path.unlink(missing_ok=True)
    return []
