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
from bertqa.answering.rows import checked_lines, refuse_faulty
from bertqa.data.readers import Line, iter_json_lines
from bertqa.data.rows import remarks
from bertqa.data.text import other_offsets
from bertqa.errors import UserError, shown
from bertqa.files import append_json_lines, json_lines, read_json_object, write_json
from bertqa.interrupts import Interrupts, Stopped

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
        lines = checked_lines(source, qa)
        refuse_faulty(line.fault for line in lines if line.number > last and not skip_bad)
    for name, size in zip((PREDICTIONS, REJECTS), sizes, strict=True):
        append_json_lines(folder / name, (), size)
    write_json(folder / SETTINGS, settings)  # once no answers of other settings are left
    answered = rejected = 0
    with Interrupts() as interrupts:
        for given in _answered(qa, source, last, skip_bad):
            bad = [line for line, prediction in given if not prediction]
            good = (_entry(line, found, top_k, all_offsets) for line, found in given if found)
            append_json_lines(folder / REJECTS, map(_reject, bad))
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
) -> Iterator[list[tuple[Line, Prediction | None]]]:
    """Block by block, the lines after ``last`` with their predictions; None for a faulty line."""
    lines = checked_lines(source, qa)
    while block := list(islice(lines, _BLOCK)):
        if block[-1].number <= last:
            continue
        stop = next((e for e in block if e.fault and e.number > last and not skip_bad), None)
        if stop:
            block = block[: block.index(stop)]
        # The block is asked as a whole also where a part of it is done: the last digits of a
        # score depend on what goes through the model with it.
        found = qa.answer(line.example for line in block if line.example)
        pairs = [(line, next(found) if line.example else None) for line in block]
        if given := [pair for pair in pairs if pair[0].number > last]:
            yield given
        if stop:
            raise UserError(
                f"{stop.fault}; the lines before it are answered: pass --skip_bad to leave such "
                "lines out"
            )


def _reject(line: Line) -> dict[str, Any]:
    """What rejects.jsonl says of a line."""
    raw = line.raw.decode("utf-8", "backslashreplace").rstrip("\r\n")
    return {"line": line.number, "fault": line.fault, "raw": raw}


def _entry(line: Line, prediction: Prediction, top_k: int, all_offsets: bool) -> dict[str, Any]:
    """What predictions.jsonl says of a line."""
    assert line.example is not None
    found: list[dict[str, Any]] = [{**entry} for entry in answer_entries(prediction, top_k)]
    if all_offsets:
        for answer in found:
            answer |= other_offsets(line.example.context, answer["start"], answer["end"])
    entry = {"line": line.number, "id": prediction.id, "digest": _digest(line)} | found[0]
    if prediction.null_odds is not None:
        entry |= {"null_odds": prediction.null_odds, "best_span": prediction.best_span}
    return entry | ({"answers": found} if top_k > 1 else {})


def _digest(line: Line) -> str:
    """By what a line of the input is known again, also where it has no id of its own."""
    return blake2b(line.raw.strip(), digest_size=8).hexdigest()


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
    line = next((line for line in iter_json_lines(source) if line.number == number), None)
    if line is None or _digest(line) != last["digest"]:
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
    lines = iter_json_lines(source)
    answered = made_up = without_gold = 0
    unread: dict[str, None] = {}

    def pairs() -> Iterator[tuple[str, Sequence[str]]]:
        nonlocal answered, made_up, without_gold
        for _, entry in json_lines(folder / PREDICTIONS, "line", "id", "digest"):
            line = next(line for line in lines if line.number == entry["line"])
            assert line.example  # else it was not answered
            answered += 1
            made_up += line.example.id == f"line {line.number}"
            unread.update(dict.fromkeys(line.unread))
            if line.example.answers or (v2 and line.example.answers is not None):
                yield entry["answer"], line.example.answers
            else:
                without_gold += 1

    figures = evaluate_pairs(pairs(), v2=v2)
    if remark := remarks(str(source), answered, made_up, without_gold, unread):
        say(remark)
    return figures | ({"without_gold": float(without_gold)} if figures and without_gold else {})
