"""JSON lines in, JSON lines out: any number of questions in constant memory, stopped and resumed.

A line with a question becomes a line of predictions.jsonl, in the order of the input; any other
line becomes, if it is to be skipped, a line of rejects.jsonl. Both say from which line they come:
that is how a run which was killed knows where to go on, and how nothing vanishes.

What a block of questions gave is written at once, first the rejects, then the answers. So all that
precedes the last whole answer is complete, and what comes after it is done again.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from hashlib import blake2b
from itertools import islice
from pathlib import Path
from typing import Any

from bertqa.answering.answerer import QuestionAnswerer
from bertqa.answering.answers import Prediction, answer_entries
from bertqa.answering.metrics import evaluate_pairs
from bertqa.answering.rows import checked, refuse_faulty, reject_entry
from bertqa.data.readers import Lacks, Row, iter_rows
from bertqa.data.text import other_offsets
from bertqa.errors import UserError, shown
from bertqa.files import append_json_lines, json_lines, read_json_object, write_json
from bertqa.interrupts import Interrupts, Stopped
from bertqa.settings import DecodingSettings

PREDICTIONS, REJECTS, SETTINGS = "predictions.jsonl", "rejects.jsonl", "settings.json"
LINE_FILES = (PREDICTIONS, REJECTS, SETTINGS)

_BLOCK = 256  # questions that are answered and written together


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
    progress: Callable[[int], object] = lambda lines: None,
) -> tuple[int, int]:
    """Answer the questions of a JSON lines file into a folder.

    A file is checked from end to end before its first question is asked; a pipe, which can be read
    only once, as its lines come.

    Args:
        model: what the settings call it; a run is resumed with the same model only.
        top_k: answers to each question; more than one are in a list, "answers".
        all_offsets: offsets also in UTF-16 units and UTF-8 bytes.
        skip_bad: go on after a line that cannot be answered.
        resume: go on after the last whole line of an earlier run, if there was one.
        progress: told how many lines have been written, block by block.

    Returns:
        The lines that this run answered, and those that it rejected.

    Raises:
        UserError: a line cannot be answered and is not to be skipped, the earlier run was another,
            or a file cannot be read or written. What was answered before stays.
        Stopped: by SIGINT or SIGTERM, after the block that was being answered.
    """
    settings = {  # all that a line of the output depends on, but for the input's lines
        "input": source.name,
        "model": model,
        "windows": asdict(qa.windows),
        "decoding": asdict(qa.decoding),
        "precision": qa.runtime.precision,
        "top_k": top_k,
        "all_offsets": all_offsets,
    }
    last, sizes = _earlier_run(source, folder, settings) if resume else (0, (0, 0))
    if not source.is_fifo():
        rows = checked(iter_rows(source, one_by_one=True), qa)
        refuse_faulty(row for row in rows if row.number > last and not skip_bad)
    for name, size in zip((PREDICTIONS, REJECTS), sizes, strict=True):
        append_json_lines(folder / name, (), size)
    write_json(folder / SETTINGS, settings)  # once no answers of other settings are left
    answered = rejected = 0
    with Interrupts() as interrupts:
        for given in _answered(qa, source, last, skip_bad):
            bad = [row for row, prediction in given if not prediction]
            good = (_entry(row, found, top_k, all_offsets) for row, found in given if found)
            append_json_lines(folder / REJECTS, map(reject_entry, bad))
            append_json_lines(folder / PREDICTIONS, good)
            progress(len(given))
            answered, rejected = answered + len(given) - len(bad), rejected + len(bad)
            if interrupts.number:
                raise Stopped(
                    f"stopped after line {given[-1][0].number} of {source}; go on with --resume",
                    interrupts.number,
                )
    return answered, rejected


def _answered(
    qa: QuestionAnswerer, source: Path, last: int, skip_bad: bool
) -> Iterator[list[tuple[Row, Prediction | None]]]:
    """Block by block, the lines after ``last`` with their predictions; None for a faulty line."""
    rows = checked(iter_rows(source, one_by_one=True), qa)
    while block := list(islice(rows, _BLOCK)):
        if block[-1].number <= last:
            continue
        stop = next((r for r in block if r.fault and r.number > last and not skip_bad), None)
        if stop:
            block = block[: block.index(stop)]
        # The block is asked as a whole also where a part of it is done: the last digits of a
        # score depend on what goes through the model with it.
        found = qa.answer(row.example for row in block if row.example)
        pairs = [(row, next(found) if row.example else None) for row in block]
        if given := [pair for pair in pairs if pair[0].number > last]:
            yield given
        if stop:
            raise UserError(
                f"{stop.fault}; the lines before it are answered: pass --skip_bad to leave such "
                "lines out"
            )


def _entry(row: Row, prediction: Prediction, top_k: int, all_offsets: bool) -> dict[str, Any]:
    """What predictions.jsonl says of a line."""
    assert row.example is not None
    found: list[dict[str, Any]] = [{**entry} for entry in answer_entries(prediction, top_k)]
    if all_offsets:
        for answer in found:
            answer |= other_offsets(row.example.context, answer["start"], answer["end"])
    entry = {"line": row.number, "id": prediction.id, "digest": _digest(row)} | found[0]
    if prediction.null_odds is not None:
        entry |= {"null_odds": prediction.null_odds, "best_span": prediction.best_span}
    return entry | ({"answers": found} if top_k > 1 else {})


def _digest(row: Row) -> str:
    """By what a line of the input is known again, also where it has no id of its own."""
    return blake2b(row.raw.strip(), digest_size=8).hexdigest()


def _earlier_run(
    source: Path, folder: Path, settings: dict[str, Any]
) -> tuple[int, tuple[int, int]]:
    """The last line that an earlier run answered, and the sizes of what is whole of its files.

    Raises:
        UserError: it had other settings or another input, or that is a pipe.
    """
    if source.is_fifo():
        raise UserError(f"--resume: {source} is a pipe, which is read once: pass a file")
    newest = deque(json_lines(folder / PREDICTIONS, "line", "id", "digest"), maxlen=1)
    if (folder / SETTINGS).exists():
        before = read_json_object(folder / SETTINGS)
        if isinstance(before.get("decoding"), dict):  # what is new did not change answers before
            before["decoding"] = asdict(DecodingSettings()) | before["decoding"]
        for key, value in settings.items():
            if before.get(key) != value:
                raise UserError(
                    f"--resume: {folder} was begun with {key} {shown(before.get(key))}, now it is "
                    f"{shown(value)}: pass the same, or another --output_dir"
                )
    elif newest:
        raise UserError(
            f"--resume: {folder} has answers but no {SETTINGS} that says what they were made "
            "with: name another --output_dir"
        )
    if not newest:
        return 0, (0, 0)
    size, last = newest[0]
    number: int = last["line"]
    row = next((row for row in iter_rows(source, one_by_one=True) if row.number == number), None)
    if row is None or _digest(row) != last["digest"]:
        raise UserError(
            f"--resume: line {number} of {source} is not the question {shown(last['id'])} with "
            f"which {folder / PREDICTIONS} ends: pass the file that it was begun with"
        )
    done = (end for end, entry in json_lines(folder / REJECTS, "line") if entry["line"] < number)
    return number, (size, max(done, default=0))


def score_lines(
    source: Path, folder: Path, *, v2: bool, say: Callable[[str], object] = lambda line: None
) -> dict[str, float]:
    """The figures of the answers in a folder, as ``evaluate_pairs`` gives them, line by line.

    ``say`` is told, in one line, of ids that were made up and of questions without gold.
    """
    rows, lacks = iter_rows(source, one_by_one=True), Lacks(str(source))

    def golds(line: int) -> Sequence[str] | None:
        row = next(row for row in rows if row.number == line)
        lacks.count(row)
        return row.example.answers if row.example else None

    entries = (entry for _, entry in json_lines(folder / PREDICTIONS, "line", "id", "digest"))
    pairs = ((entry["answer"], golds(entry["line"])) for entry in entries)
    figures = evaluate_pairs(pairs, v2=v2)
    lacks.tell(say)
    return figures
