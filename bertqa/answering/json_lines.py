"""JSON lines in, JSON lines out: any number of questions in constant memory, stopped and resumed.

A line with a question becomes a line of predictions.jsonl, in the order of the input; any other
line becomes, if it is to be skipped, a line of rejects.jsonl. Both say from which line they come:
that is how a run which was killed knows where to go on, and how nothing vanishes.

What a block of questions gave is written at once, first the rejects, then the answers. So all that
precedes the last whole answer is complete, and what comes after it is done again.
"""

import json
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, replace
from hashlib import blake2b
from itertools import islice
from pathlib import Path
from typing import Any

from bertqa.answering.answerer import QuestionAnswerer
from bertqa.answering.answers import Prediction, answer_entries
from bertqa.answering.metrics import normalize_answer, question_scores
from bertqa.data.readers import Line, iter_json_lines
from bertqa.data.rows import remarks
from bertqa.data.text import other_offsets
from bertqa.data.windows import make_windows
from bertqa.errors import UserError, shown
from bertqa.files import read_json_object, said_plainly, write_json
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
    last = _cut_to_whole(source, folder, settings) if resume else 0
    answered = rejected = 0
    lines = iter_json_lines(source, with_negative=qa.decoding.version_2_with_negative)
    with Interrupts() as interrupts:
        for name in (PREDICTIONS, REJECTS):
            _append(folder / name, (), "ab" if last else "wb")
        write_json(folder / SETTINGS, settings)  # once no answers of other settings are left
        while block := list(islice(lines, _BLOCK)):
            if block[-1].number <= last:
                continue
            # The block is asked as a whole also where a part of it is done: the last digits of a
            # score depend on what goes through the model with it.
            given = [pair for pair in _answered(qa, block) if pair[0].number > last]
            faulty = [line for line, prediction in given if prediction is None]
            stop = faulty[0] if faulty and not skip_bad else None
            if stop:
                given = [pair for pair in given if pair[0].number < stop.number]
            else:
                _append(folder / REJECTS, map(_reject, faulty))
            answers = [(line, prediction) for line, prediction in given if prediction]
            entries = (_entry(line, found, top_k, all_offsets) for line, found in answers)
            _append(folder / PREDICTIONS, entries)
            if stop:
                raise UserError(
                    f"{stop.fault}; the lines before it are answered in {folder / PREDICTIONS}: "
                    "go on with --resume, or with --skip_bad as well"
                )
            progress(len(given))
            answered, rejected = answered + len(answers), rejected + len(faulty)
            if interrupts.number:
                raise Stopped(
                    f"stopped after line {block[-1].number} of {source}; go on with --resume",
                    interrupts.number,
                )
    return answered, rejected


def _answered(
    qa: QuestionAnswerer, block: Sequence[Line]
) -> Iterator[tuple[Line, Prediction | None]]:
    """The lines in order, each with its answers; None for a line that cannot be answered."""
    try:
        predictions = list(qa.answer(line.example for line in block if line.example))
    except UserError:  # a question too long for its window: whose?
        block = [_tried(qa, line) for line in block]
        predictions = list(qa.answer(line.example for line in block if line.example))
    left = iter(predictions)
    return ((line, next(left) if line.example else None) for line in block)


def _tried(qa: QuestionAnswerer, line: Line) -> Line:
    """The line; without its example, if no windows can be made of that."""
    if line.example:
        try:
            make_windows([line.example], qa.tokenizer, qa.windows)
        except UserError as error:
            return replace(line, example=None, fault=f"line {line.number}: {error}")
    return line


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


def _reject(line: Line) -> dict[str, Any]:
    """What rejects.jsonl says of a line."""
    raw = line.raw.decode("utf-8", "backslashreplace").rstrip("\r\n")
    return {"line": line.number, "fault": line.fault, "raw": raw}


def _digest(line: Line) -> str:
    """By what a line of the input is known again, also where it has no id of its own."""
    return blake2b(line.raw.strip(), digest_size=8).hexdigest()


def _append(path: Path, entries: Iterable[dict[str, Any]], mode: str = "ab") -> None:
    """Add lines to a file; they are on the disk when it returns."""
    with said_plainly(path, "written"), path.open(mode) as file:
        for entry in entries:
            text = json.dumps(entry, ensure_ascii=False) + "\n"
            file.write(text.encode("utf-8", "backslashreplace"))
        file.flush()
        os.fsync(file.fileno())


def _cut_to_whole(source: Path, folder: Path, settings: dict[str, Any]) -> int:
    """Drop what an earlier run left half done; the number of the last line that it answered.

    Raises:
        UserError: it had other settings or another input.
    """
    answers, rejects = folder / PREDICTIONS, folder / REJECTS
    if not (folder / SETTINGS).exists():
        if next(_whole_lines(answers), None):
            raise UserError(
                f"--resume: {folder} has answers but no {SETTINGS} that says what they were made "
                "with: name another --output_dir"
            )
        return 0
    before = read_json_object(folder / SETTINGS)
    for key, value in settings.items():
        if before.get(key) != value:
            raise UserError(
                f"--resume: {folder} was begun with {key} {shown(before.get(key))}, now it is "
                f"{shown(value)}: pass the same, or another --output_dir"
            )
    newest = deque(_whole_lines(answers), maxlen=1)
    if not newest:
        return 0
    size, last = newest[0]
    number: int = last["line"]
    line = next((line for line in iter_json_lines(source) if line.number == number), None)
    if line is None or _digest(line) != last["digest"]:
        raise UserError(
            f"--resume: line {number} of {source} is not the question {shown(last['id'])} with "
            f"which {answers} ends: pass the file that it was begun with"
        )
    done = (end for end, entry in _whole_lines(rejects) if entry["line"] < number)
    for path, kept in ((answers, size), (rejects, max(done, default=0))):
        with said_plainly(path, "written"), path.open("ab") as file:
            file.truncate(kept)
    return number


def _whole_lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The entries of a file of ours, each with the offset at which its line ends.

    Raises:
        UserError: a line is none of ours.
    """
    if not path.exists():
        return
    keys = {"id", "digest"} if path.name == PREDICTIONS else set()
    end = 0
    with said_plainly(path, "read"), path.open("rb") as file:
        for number, raw in enumerate(file, start=1):
            if not raw.endswith(b"\n"):
                return  # the run was killed in the middle of it
            end += len(raw)
            try:
                entry = json.loads(raw)
                is_ours = type(entry["line"]) is int and keys <= entry.keys()
            except (ValueError, KeyError, TypeError, RecursionError):
                is_ours = False
            if not is_ours:
                raise UserError(
                    f"{path}, line {number} is not one that bertqa infer writes: restore the "
                    "file, or name another --output_dir"
                )
            yield end, entry


def score_lines(
    source: Path, folder: Path, *, v2: bool, say: Callable[[str], object] = lambda line: None
) -> dict[str, float] | None:
    """EM and F1 of the answers in a folder by the official rules, in per cent, read line by line.

    Args:
        say: is told, in one line, of ids that were made up and of questions without gold.

    Returns:
        As ``score`` names them, without the ``best_*`` of v2.0, for which all questions would have
        to be held at once; None if no question has gold answers.
    """
    sums: dict[str, list[float]] = {}
    answered = made_up = without_gold = 0
    unread: dict[str, None] = {}
    answers = (entry for _, entry in _whole_lines(folder / PREDICTIONS))
    given = next(answers, None)
    for line in iter_json_lines(source):
        if given is None or line.number != given["line"]:
            continue  # rejected
        assert line.example  # else it was not answered
        golds = line.example.answers
        answered += 1
        made_up += line.example.id == f"line {line.number}"
        unread |= dict.fromkeys(line.unread)
        if golds is None or (not golds and not v2):
            without_gold += 1
        else:
            scores = question_scores({"": given["answer"]}, {"": golds}, v2=v2)[""]
            kind = "HasAns_" if any(map(normalize_answer, golds)) else "NoAns_"
            for prefix in ("", kind) if v2 else ("",):
                before = sums.get(prefix, [0.0, 0.0, 0.0])
                sums[prefix] = [x + y for x, y in zip(before, (*scores, 1.0), strict=True)]
        given = next(answers, None)
    if remark := remarks(str(source), answered, made_up, without_gold, unread):
        say(remark)
    exact = "exact" if v2 else "exact_match"
    figures: dict[str, float] = {}
    for prefix, (em, f1, total) in sums.items():
        figures |= {f"{prefix}{exact}": 100 * em / total, f"{prefix}f1": 100 * f1 / total}
        figures[f"{prefix}total"] = total
    if figures and without_gold:
        figures["without_gold"] = float(without_gold)
    return figures or None
