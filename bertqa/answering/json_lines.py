"""JSON lines in, JSON lines out: any number of questions in constant memory, stopped and resumed.

A line with a question becomes a line of predictions.jsonl, in the order of the input; a line that
is none becomes, if it is to be skipped, a line of rejects.jsonl. Both say from which line they
come: that is how a run which was killed knows where to go on, and how nothing vanishes.

What a block of questions gave is written at once, first the rejects, then the answers. So all that
stands before the last whole answer is complete, and what comes after it is done again.
"""

import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from hashlib import blake2b
from itertools import islice
from pathlib import Path
from typing import IO, Any, NamedTuple

from bertqa.answering.answerer import QuestionAnswerer
from bertqa.answering.answers import Prediction, answer_entries
from bertqa.answering.metrics import normalize_answer, question_scores
from bertqa.data.readers import Line, iter_json_lines
from bertqa.data.text import other_offsets
from bertqa.data.windows import make_windows
from bertqa.errors import UserError, shown
from bertqa.files import read_json_object, said_plainly, write_json
from bertqa.interrupts import Interrupts, Stopped

PREDICTIONS, REJECTS, SETTINGS = "predictions.jsonl", "rejects.jsonl", "settings.json"
LINE_FILES = (PREDICTIONS, REJECTS, SETTINGS)

_BLOCK = 256  # questions that are answered and written together


@dataclass(frozen=True)
class LineOutput:
    """What is written for a line.

    Attributes:
        top_k: answers to each question; more than one stand in a list, "answers".
        all_offsets: places also in UTF-16 units and UTF-8 bytes.
        skip_bad: go on after a line that cannot be answered.
    """

    top_k: int = 1
    all_offsets: bool = False
    skip_bad: bool = False


class Counts(NamedTuple):
    """Lines of the input, by what became of them in this run."""

    answered: int
    rejected: int


def answer_lines(
    qa: QuestionAnswerer,
    source: Path,
    folder: Path,
    output: LineOutput,
    *,
    model: str,
    resume: bool = False,
    progress: Callable[[int], object] = lambda lines: None,
) -> Counts:
    """Answer the questions of a JSON lines file into a folder.

    Args:
        model: what the settings call it; a run is gone on with by the same model only.
        resume: go on after the last whole line of an earlier run, if there was one.
        progress: told how many lines have been written, block by block.

    Raises:
        UserError: a line cannot be answered and is not to be skipped, the earlier run was another,
            or a file cannot be read or written. What was answered before stays.
        Stopped: by SIGINT or SIGTERM, after the block that was being answered.
    """
    settings = _settings(qa, source, output, model)
    last = _go_on(source, folder, settings) if resume else 0
    lines = iter_json_lines(source)
    counts = Counts(0, 0)
    with Interrupts() as interrupts, _Files(folder, fresh=not last) as files:
        write_json(folder / SETTINGS, settings)  # after what they are not of is gone
        while block := list(islice(lines, _BLOCK)):
            if block[-1].number <= last:
                continue
            # The block is asked as a whole also where a part of it is done: the last digits of a
            # score depend on what goes through the model with it.
            answers, faulty = _answered(qa, block)
            answers = [pair for pair in answers if pair[0].number > last]
            faulty = [line for line in faulty if line.number > last]
            if faulty and not output.skip_bad:
                answers = [pair for pair in answers if pair[0].number < faulty[0].number]
            else:
                files.write_rejects(faulty)
            files.write_answers(_entry(line, given, output) for line, given in answers)
            counts = Counts(counts.answered + len(answers), counts.rejected + len(faulty))
            progress(len(answers) + len(faulty))
            if faulty and not output.skip_bad:
                raise UserError(
                    f"{faulty[0].fault}; the lines before it are answered in "
                    f"{folder / PREDICTIONS}: go on with --resume, or with --skip_bad as well"
                )
            if interrupts.number:
                raise Stopped(
                    f"stopped after line {block[-1].number} of {source}; go on with --resume",
                    interrupts.number,
                )
    return counts


def _answered(
    qa: QuestionAnswerer, block: Sequence[Line]
) -> tuple[list[tuple[Line, Prediction]], list[Line]]:
    """The lines that could be answered with their answers, and those that could not."""
    asked = [line.example for line in block if line.example]
    try:
        predictions = list(qa.answer(asked))
    except UserError:  # a question too long for its window: whose?
        block = [_tried(qa, line) for line in block]
        predictions = list(qa.answer(line.example for line in block if line.example))
    good = [line for line in block if line.example]
    return list(zip(good, predictions, strict=True)), [line for line in block if not line.example]


def _tried(qa: QuestionAnswerer, line: Line) -> Line:
    """The line; without its example, if no windows can be made of that."""
    if line.example:
        try:
            make_windows([line.example], qa.tokenizer, qa.windows)
        except UserError as error:
            return replace(line, example=None, fault=f"line {line.number}: {error}")
    return line


def _entry(line: Line, prediction: Prediction, output: LineOutput) -> dict[str, Any]:
    """What predictions.jsonl says of a line."""
    assert line.example is not None
    found: list[dict[str, Any]] = [{**entry} for entry in answer_entries(prediction, output.top_k)]
    if output.all_offsets:
        for answer in found:
            answer |= other_offsets(line.example.context, answer["start"], answer["end"])
    entry = {"line": line.number, "id": prediction.id, "digest": _digest(line)} | found[0]
    if prediction.null_odds is not None:
        entry |= {"null_odds": prediction.null_odds, "best_span": prediction.best_span}
    return entry | ({"answers": found} if output.top_k > 1 else {})


def _digest(line: Line) -> str:
    """By what a line of the input is known again, also where it has no id of its own."""
    return blake2b(line.raw.strip(), digest_size=8).hexdigest()


# --- files ---------------------------------------------------------------------------------------


class _Files:
    """The two files, open to append to; every write is on the disk when it returns."""

    def __init__(self, folder: Path, *, fresh: bool) -> None:
        self._folder, self._mode = folder, "wb" if fresh else "ab"
        self._open = ExitStack()

    def __enter__(self) -> "_Files":
        with said_plainly(self._folder, "written"):
            self._answers, self._rejects = (
                self._open.enter_context((self._folder / name).open(self._mode))
                for name in (PREDICTIONS, REJECTS)
            )
        return self

    def __exit__(self, *error: object) -> None:
        with said_plainly(self._folder, "written"):
            self._open.close()

    def write_answers(self, entries: Iterable[dict[str, Any]]) -> None:
        """Append lines to predictions.jsonl."""
        with said_plainly(self._folder / PREDICTIONS, "written"):
            _append(self._answers, entries)

    def write_rejects(self, lines: Iterable[Line]) -> None:
        """Append to rejects.jsonl what could not be answered, and why."""
        entries = (
            {
                "line": line.number,
                "fault": line.fault,
                "raw": line.raw.decode("utf-8", "backslashreplace").rstrip("\r\n"),
            }
            for line in lines
        )
        with said_plainly(self._folder / REJECTS, "written"):
            _append(self._rejects, entries)


def _append(file: IO[bytes], entries: Iterable[dict[str, Any]]) -> None:
    file.writelines(
        f"{json.dumps(entry, ensure_ascii=False)}\n".encode("utf-8", "backslashreplace")
        for entry in entries
    )
    file.flush()
    os.fsync(file.fileno())


# --- going on ------------------------------------------------------------------------------------


def _settings(qa: QuestionAnswerer, source: Path, output: LineOutput, model: str) -> dict[str, Any]:
    """All that a line of the output depends on, but for the input's lines."""
    return {
        "input": source.name,
        "model": model,
        "windows": asdict(qa.windows),
        "decoding": asdict(qa.decoding),
        "precision": qa.runtime.precision,
        "top_k": output.top_k,
        "all_offsets": output.all_offsets,
    }


def _go_on(source: Path, folder: Path, settings: dict[str, Any]) -> int:
    """Drop what an earlier run left half done; the number of the last line that it answered.

    Raises:
        UserError: it had other settings or another input.
    """
    if not (folder / SETTINGS).exists():
        if next(_whole_lines(folder / PREDICTIONS), None):
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
    last, id_, digest, kept = 0, "", "", 0
    for end, entry in _whole_lines(folder / PREDICTIONS):
        last, id_, digest, kept = entry["line"], entry["id"], entry["digest"], end
    if not last:
        return 0
    _cut(folder / PREDICTIONS, kept)
    _cut(
        folder / REJECTS,
        max((end for end, e in _whole_lines(folder / REJECTS) if e["line"] < last), default=0),
    )
    there = next((line for line in iter_json_lines(source) if line.number == last), None)
    if there is None or _digest(there) != digest:
        raise UserError(
            f"--resume: line {last} of {source} is not the question {shown(id_)} with which "
            f"{folder / PREDICTIONS} ends: pass the file that it was begun with"
        )
    return last


def _whole_lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The entries of a file of ours, each with the place where its line ends.

    Raises:
        UserError: a line is none of ours.
    """
    if not path.exists():
        return
    end = 0
    with said_plainly(path, "read"), path.open("rb") as file:
        for number, raw in enumerate(file, start=1):
            if not raw.endswith(b"\n"):
                return  # the run was killed in the middle of it
            end += len(raw)
            try:
                entry = json.loads(raw)
                sound = type(entry["line"]) is int and (
                    path.name != PREDICTIONS or {"id", "digest"} <= entry.keys()
                )
            except (ValueError, KeyError, TypeError, RecursionError):
                sound = False
            if not sound:
                raise UserError(
                    f"{path}, line {number} is not one that bertqa infer writes: restore the "
                    "file, or name another --output_dir"
                )
            yield end, entry


def _cut(path: Path, size: int) -> None:
    """Drop what comes after the first ``size`` bytes."""
    with said_plainly(path, "written"):
        if path.exists():
            os.truncate(path, size)


# --- figures -------------------------------------------------------------------------------------


def score_lines(source: Path, folder: Path, *, v2: bool) -> dict[str, float] | None:
    """EM and F1 of the answers in a folder by the official rules, in per cent, read line by line.

    Returns:
        As ``evaluate_v1`` and ``evaluate_v2`` name them, without the latter's ``best_*``, for which
        all questions would have to be held at once; None if a question has no gold answer.
    """
    sums: dict[str, list[float]] = {}
    answers = (entry for _, entry in _whole_lines(folder / PREDICTIONS))
    given = next(answers, None)
    for line in iter_json_lines(source):
        if given is None or line.number != given["line"]:
            continue  # rejected
        golds = line.example.answers if line.example else None
        if golds is None or (not golds and not v2):
            return None
        scores = question_scores({"": given["answer"]}, {"": golds}, v2=v2)[""]
        kind = "HasAns_" if any(map(normalize_answer, golds)) else "NoAns_"
        for prefix in ("", kind) if v2 else ("",):
            before = sums.get(prefix, [0.0, 0.0, 0.0])
            sums[prefix] = [x + y for x, y in zip(before, (*scores, 1.0), strict=True)]
        given = next(answers, None)
    names = ("exact" if v2 else "exact_match", "f1")
    figures: dict[str, float] = {}
    for prefix, (*summed, total) in sums.items():
        figures |= {f"{prefix}{n}": 100 * x / total for n, x in zip(names, summed, strict=True)}
        figures[f"{prefix}total"] = total
    return figures or None
