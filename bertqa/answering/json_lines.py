"""A row in, a JSON line out: any number of questions in constant memory, stopped and resumed.

A row of JSON lines or parquet with a question becomes a line of predictions.jsonl, in the order of
the input; any other row becomes, if it is to be skipped, a line of rejects.jsonl (line_files.py).
They are written block by block (blocks.py). Several processes write part files first (parts.py),
which the main one puts together in the same way.
"""

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from bertqa.answering.answerer import QuestionAnswerer
from bertqa.answering.blocks import Block, BlockAnswerer, iter_blocks
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

    A file is checked from end to end before its first question is asked; a pipe, which can be read
    only once, as its lines come.

    Args:
        model: what the settings call it; a run is resumed with the same model only.
        top_k: answers to each question; more than one are in a list, "answers".
        all_offsets: offsets also in UTF-16 units and UTF-8 bytes.
        skip_bad: go on after a row that cannot be answered.
        resume: go on after the last whole line of an earlier run, if there was one.
        runtime: which of the processes that share the file this is; None is the only one.
        progress: told how many rows this process has answered, block by block.

    Returns:
        The rows that were answered, and those that were rejected; other processes than the main
        one, which are done before that, get 0 and 0.

    Raises:
        UserError: a row cannot be answered and is not to be skipped, the earlier run was another,
            or a file cannot be read or written. What was answered before stays.
        Stopped: by SIGINT or SIGTERM, after the block that was being answered; where several
            processes share the file, at once.
    """
    settings = {  # all that a line of the output depends on, but for the input's rows
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
            f"{source} is a pipe, which one process can read: start one, or pass a file"
        )
    answer = BlockAnswerer(qa, top_k, all_offsets)

    def begin() -> int:
        last, sizes = files.earlier_run(source, settings) if resume else (-1, (0, 0))
        if not source.is_fifo():
            rows = checked(iter_rows(source, one_by_one=True), qa)
            refuse_faulty(row for row in rows if row.number > last and not skip_bad)
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
    """Write what the blocks give from the row after ``last`` on; see ``answer_lines``."""
    unit, answered, rejected = files.unit, 0, 0
    with Interrupts() as interrupts:
        for block in iter_blocks(source):
            if not block.ends_after(last):
                continue
            made, fault = parts.read(block.number), ""
            if not made:
                # The block is asked as a whole also where a part of it is done: see blocks.py.
                rows, fault = _askable(block, answer.qa, last, skip_bad)
                made = answer(rows)
                progress(sum(row.number > last for row in rows))
            new = [entry for entry in made if entry[unit] > last]
            good, bad = files.append(new)
            answered, rejected = answered + good, rejected + bad
            if interrupts.number and new:
                raise Stopped(
                    f"stopped after {unit} {new[-1][unit]} of {source}; go on with --resume",
                    interrupts.number,
                )
            if fault:
                raise UserError(
                    f"{fault}; the lines before it are answered: pass --skip_bad to leave such "
                    "lines out"
                )
    return answered, rejected


def _askable(
    block: Block, qa: QuestionAnswerer, last: int, skip_bad: bool
) -> tuple[list[Row], str]:
    """The rows of a block up to the first that stops the run, and why that one does."""
    rows = list(checked(block.rows, qa))
    for index, row in enumerate(rows):
        if row.fault and row.number > last and not skip_bad:
            return rows[:index], row.fault
    return rows, ""
