"""``bertqa infer --input`` and ``--dataset``: all questions of a file or a dataset."""

import argparse
import json

from tqdm import tqdm

from bertqa.answering.evaluation import PREDICTION_FILES, score, write_predictions
from bertqa.answering.line_files import REJECTS
from bertqa.answering.rows import checked, refuse_faulty, reject_entry, unique
from bertqa.commands.flags import check_one_process
from bertqa.commands.infer_output import check_outputs, say, write_metrics, write_output
from bertqa.commands.infer_rows import answer_rows
from bertqa.commands.question_flags import load_answerer
from bertqa.data.formats import has_row_each
from bertqa.data.readers import Row, read_hub_rows, read_rows
from bertqa.data.rows import shared_texts
from bertqa.errors import UserError, counted
from bertqa.files import output_folder


def answer_file(flags: argparse.Namespace) -> None:
    """Answer all questions of --input or --dataset and write the files to --output_dir."""
    if flags.input and has_row_each(flags.input):
        answer_rows(flags)
        return
    check_one_process()
    check_outputs(flags, (*PREDICTION_FILES, REJECTS))
    check_whole_flags(flags)
    answer_whole_file(flags)


def check_whole_flags(flags: argparse.Namespace) -> None:
    """Check that no flag is given that requires a file answered row by row.

    Raises:
        UserError: one is.
    """
    source = f"--input {flags.input}" if flags.input else f"--dataset {flags.dataset}"
    for name in ("resume", "all_offsets"):
        if getattr(flags, name):
            raise UserError(
                f"--{name} requires JSON lines or parquet, got {source}: drop the flag, or convert "
                "the questions to .jsonl, one per line"
            )
    if flags.top_k != 1:
        raise UserError(
            f"--top_k {flags.top_k} requires one question, JSON lines or parquet: pass "
            "--n_best_size"
        )


def read(flags: argparse.Namespace) -> list[Row]:
    """Return the rows of --input or --dataset."""
    if flags.dataset:
        return read_hub_rows(flags.dataset, flags.split or "validation", say=say)
    return read_rows(flags.input, say=say)


def answer_whole_file(flags: argparse.Namespace) -> None:
    """Write run_qa's files and the rejected rows."""
    given = unique(read(flags))
    qa = load_answerer(flags)
    rows = list(checked(given, qa))
    if not flags.skip_bad:
        refuse_faulty(rows)  # report all of them at once
    share = shared_texts()
    examples = [share(row.example) for row in rows if row.example]
    if not examples:
        refuse_faulty(rows, "every row is invalid, correct the file")
    rejects = [json.dumps(reject_entry(row), ensure_ascii=False) for row in rows if row.fault]
    del rows, given  # free the parsed file
    has_gold = any(example.answers is not None for example in examples)
    answers = tqdm(qa.answer(examples), total=len(examples), unit="question", disable=None)
    with output_folder(flags.output_dir):
        predictions, files = write_predictions(flags.output_dir, answers, qa.decoding)
    files += write_output(flags.output_dir / REJECTS, "".join(f"{reject}\n" for reject in rejects))
    files += write_metrics(flags, score(examples, predictions, qa.decoding) if has_gold else {})
    if rejects:
        say(f"{counted(len(rejects), 'row')} rejected")
    say(f"wrote {', '.join(str(file) for file in files)}")
