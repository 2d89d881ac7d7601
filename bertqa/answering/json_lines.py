"""Answers to a file of any length, row by row in constant memory, with resuming.

A valid row of JSON lines or parquet becomes a line of predictions.jsonl, in the order of the input;
an invalid row, if skipped, becomes a line of rejects.jsonl (line_files.py). Lines are written block
by block (blocks.py). Several processes write part files first (parts.py), which the main process
joins.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from bertqa.answering.answerer import QuestionAnswerer
from bertqa.answering.blocks import BlockAnswerer, RowBlock, iter_blocks
from bertqa.answering.line_files import LineFiles, unit_of
from bertqa.answering.parts import PARTS, Parts, answer_parts
from bertqa.answering.rows import checked, refuse_faulty
from bertqa.data.readers import Row, iter_rows
from bertqa.errors import UserError
from bertqa.interrupts import Interrupts, Stopped
from bertqa.runtime import Runtime


def answer_lines(
    qa: QuestionAnswerer,
    source: Path,
    folder: Path,
    *,
    model: str,
    top_k: int = 1,
    all_offsets: bool = False,
    skip_bad: bool = False,
    resume: bool = False,
    runtime: Runtime | None = None,
    progress: Callable[[int], object] = lambda rows: None,
) -> tuple[int, int]:
    """Answer the questions of a JSON lines or parquet file into a folder.

    All rows that are left are checked before the first is answered; those of a pipe, which can be
    read only once, as they arrive. With ``skip_bad`` each block is checked before it is answered.

    Args:
        model: name of the model in settings.json; resuming requires the same name.
        top_k: answers for each question; above 1, lines have a list "answers".
        all_offsets: also give offsets in UTF-16 units and UTF-8 bytes.
        skip_bad: skip invalid rows.
        resume: continue after the last complete line of an earlier run, if any.
        runtime: rank and number of the processes that share the file (default: the model's).
        progress: called with the number of rows that this process answered, block by block.

    Returns:
        Numbers of answered and rejected rows; 0 and 0 in processes other than the main one.

    Raises:
        UserError: a row is invalid and not skipped, the earlier run had other settings, or a file
            cannot be read or written. Answers written before are kept.
        Stopped: by SIGINT or SIGTERM, after the current block; with several processes, at once.
    """
    settings = {  # all that a line of the output depends on, besides the input's rows
        "input": source.name,
        "model": model,
        "windows": asdict(qa.windows),
        "decoding": asdict(qa.decoding),
        "precision": qa.runtime.precision,
        "top_k": top_k,
        "all_offsets": all_offsets,
    }
    runtime, parts = runtime or qa.runtime, Parts(folder / PARTS)
    files = LineFiles(folder, unit_of(source))
    if runtime.world_size > 1 and source.is_fifo():
        raise UserError(
            f"{source}: must be a file with several processes, got a pipe: start one process, or "
            "pass a file"
        )
    answer = BlockAnswerer(qa, top_k, all_offsets)

    def begin() -> int:
        last, sizes = files.earlier_run(source, settings) if resume else (-1, (0, 0))
        if not source.is_fifo():
            left = (row for row in iter_rows(source, one_by_one=True) if row.number > last)
            if skip_bad:
                deque(left, maxlen=0)  # only read: a broken file raises UserError
            else:
                refuse_faulty(checked(left, qa))
        if resume:
            parts.check(source)
        else:
            parts.remove()
        files.begin(sizes, settings)
        return last

    last = runtime.on_main(begin)
    if runtime.world_size > 1:
        answer_parts(parts, answer, source, last, runtime, progress)
    if not runtime.is_main:
        return 0, 0
    counts = _append(answer, source, files, last, parts, skip_bad, progress)
    parts.remove()
    return counts


def _append(
    answer: BlockAnswerer,
    source: Path,
    files: LineFiles,
    last: int,
    parts: Parts,
    skip_bad: bool,
    progress: Callable[[int], object],
) -> tuple[int, int]:
    """Answer and write the rows after ``last``; see ``answer_lines``."""
    unit, answered, rejected = files.unit, 0, 0
    with Interrupts() as interrupts:
        for block in iter_blocks(source):
            if not block.ends_after(last):
                continue
            made, fault = parts.read(block.number), ""
            if not made:
                # Answer the whole block even if some of its rows are done: see blocks.py.
                rows, fault = _askable(block, answer.qa, last, skip_bad)
                made = answer(rows)
                progress(sum(row.number > last for row in rows))
            new = [entry for entry in made if entry[unit] > last]
            good, bad = files.append(new)
            answered, rejected = answered + good, rejected + bad
            if interrupts.number and new:
                raise Stopped(
                    f"stopped after {unit} {new[-1][unit]} of {source}: continue with --resume",
                    interrupts.number,
                )
            if fault:
                raise UserError(
                    f"{fault}; the lines before it are answered: pass --skip_bad to skip invalid "
                    "lines"
                )
    return answered, rejected


def _askable(
    block: RowBlock, qa: QuestionAnswerer, last: int, skip_bad: bool
) -> tuple[list[Row], str]:
    """Return the rows of a block up to the first invalid one that stops the run, and its fault."""
    rows = list(checked(block.rows, qa))
    for index, row in enumerate(rows):
        if row.fault and row.number > last and not skip_bad:
            return rows[:index], row.fault
    return rows, ""
