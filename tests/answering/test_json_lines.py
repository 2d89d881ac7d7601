"""Answers to JSON lines: order, completeness, and resuming wherever a run was stopped."""

import gzip
import json
import os
import signal
import tracemalloc
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from threading import Thread
from types import SimpleNamespace
from typing import Any

import pytest

from bertqa import files as file_module
from bertqa.answering import blocks, json_lines
from bertqa.answering.answerer import QuestionAnswerer
from bertqa.answering.answers import Answer, Prediction
from bertqa.answering.evaluation import score
from bertqa.answering.json_lines import answer_lines
from bertqa.answering.line_files import score_lines
from bertqa.data.readers import Row, read_examples
from bertqa.data.squad import Example
from bertqa.errors import UserError
from bertqa.interrupts import Stopped
from bertqa.settings import DecodingSettings, WindowSettings
from tests.helpers import STORIES, STORIES_V2, write_checkpoint

SMALL = WindowSettings(96, doc_stride=16)
BAD = {
    "{broken": "must be JSON, got",
    '{"question": "Who?"}': "must have context",
    '{"question": "Who?", "context": " "}': "context with a visible",
    json.dumps({"question": "who " * 90, "context": "Ada."}): "got 90",
}


@pytest.fixture(scope="module")
def qa(tmp_path_factory: pytest.TempPathFactory) -> QuestionAnswerer:
    folder = write_checkpoint(tmp_path_factory.mktemp("lines") / "tiny")
    return QuestionAnswerer.from_pretrained(folder, windows=SMALL, device="cpu", precision="fp32")


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "ROWS_PER_BLOCK", 4)


def like(qa: QuestionAnswerer, answer: Callable[..., Any]) -> Any:
    """Return an answerer with another ``answer``."""
    return SimpleNamespace(**{**vars(qa), "answer": answer})


def row(example: Example) -> str:
    answers = {"text": example.answers, "answer_start": example.answer_starts}
    entry = {"id": example.id, "question": example.question, "context": example.context}
    return json.dumps(entry | {"answers": answers}, ensure_ascii=False)


def questions(count: int, source: Path = STORIES) -> list[Example]:
    return [replace(e, context=e.context[:300]) for e in read_examples(source)[:count]]


def write_lines(path: Path, lines: Iterable[str]) -> Path:
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def written(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def files(folder: Path) -> list[bytes]:
    """Return the bytes of the answers and of the rejects, if there are any."""
    rejects = folder / "rejects.jsonl"
    answers = (folder / "predictions.jsonl").read_bytes()
    return [answers, rejects.read_bytes() if rejects.exists() else b""]


@pytest.fixture
def ask(qa: QuestionAnswerer, tmp_path: Path) -> Callable[..., tuple[int, int]]:
    """Return ``answer_lines`` from in.jsonl into the folder out."""

    def call(answerer: Any = qa, model: str = "tiny", **options: Any) -> tuple[int, int]:
        return answer_lines(
            answerer, tmp_path / "in.jsonl", tmp_path / "out", model=model, **options
        )

    return call


def test_a_line_is_answered_like_a_single_question(ask, qa, tmp_path):
    examples = questions(10)
    write_lines(tmp_path / "in.jsonl", ["", *(f"{row(e)}\n" for e in examples)])
    assert ask() == (10, 0)
    entries = written(tmp_path / "out" / "predictions.jsonl")
    assert [entry.pop("line") for entry in entries] == list(range(2, 22, 2))
    assert [entry.pop("id") for entry in entries] == [e.id for e in examples]
    assert len({entry.pop("digest") for entry in entries}) == 10
    for entry, example in zip(entries, examples, strict=True):
        alone = qa(example.question, example.context)
        assert entry.pop("score") == pytest.approx(alone.pop("score"), rel=1e-4)
        assert entry == alone
        assert entry["answer"] == example.context[entry["start"] : entry["end"]]
    assert not (tmp_path / "out" / "rejects.jsonl").exists()


def test_top_k_and_all_offsets(ask, tmp_path):
    context = "🤗 Ada built the quay in 1642 — “Ben” swept it. 🙂"
    line = json.dumps({"question": "Who built it?", "context": context})
    write_lines(tmp_path / "in.jsonl", [line])
    ask(top_k=3, all_offsets=True)
    (entry,) = written(tmp_path / "out" / "predictions.jsonl")
    answers = entry["answers"]
    assert len(answers) == 3 and answers[0].items() <= entry.items()
    assert entry["id"] == "line 1"  # generated, and different from ids that are numbers
    for answer in answers:
        for coding, width, name in (("utf-16-le", 2, "utf16"), ("utf-8", 1, "byte")):
            start, end = answer[f"start_{name}"] * width, answer[f"end_{name}"] * width
            assert context.encode(coding)[start:end].decode(coding) == answer["answer"]


def test_answers_with_no_answer(qa, tmp_path):
    examples = questions(30, STORIES_V2)
    source = write_lines(tmp_path / "in.jsonl", map(row, examples))
    decoding = DecodingSettings(version_2_with_negative=True)
    v2 = QuestionAnswerer(qa.model, qa.tokenizer, SMALL, decoding, qa.runtime)
    middle = sorted(p.null_odds for p in v2.answer(examples))[15]
    v2.decoding = decoding = replace(decoding, null_score_diff_threshold=middle)
    answer_lines(v2, source, tmp_path, model="tiny")
    entries = written(tmp_path / "predictions.jsonl")
    assert {entry["answer"] == "" for entry in entries} == {True, False}
    for entry in entries:
        assert (entry["answer"] == "") == (entry["null_odds"] > middle)
        assert entry["answer"] in ("", entry["best_span"])
    figures = score_lines(source, tmp_path, v2=True)
    whole = score(examples, list(v2.answer(examples)), decoding)
    assert figures == pytest.approx({k: v for k, v in whole.items() if "best" not in k})
    assert figures["HasAns_total"] + figures["NoAns_total"] == figures["total"] == 30


# --- invalid lines -------------------------------------------------------------------------------


@pytest.mark.parametrize(("line", "words"), BAD.items(), ids=list(BAD.values()))
def test_an_invalid_line_of_a_file_is_reported_before_answering(ask, qa, tmp_path, line, words):
    good = list(map(row, questions(8)))
    write_lines(tmp_path / "in.jsonl", [*good[:6], line, *good[6:], "{}"])
    with pytest.raises(UserError, match=rf"line 7.*{words}.*1 more invalid row.*--skip_bad"):
        ask(like(qa, lambda examples: pytest.fail("asked")))
    assert not (tmp_path / "out").exists()


def test_a_broken_file_is_rejected_before_answering(qa, tmp_path):
    source = tmp_path / "in.jsonl.gz"
    source.write_bytes(gzip.compress("\n".join(map(row, questions(9))).encode())[:-9])
    asked = like(qa, lambda examples: pytest.fail("asked"))
    with pytest.raises(UserError, match="gzip"):
        answer_lines(asked, source, tmp_path / "out", model="tiny", skip_bad=True)
    assert not (tmp_path / "out").exists()


def test_only_rows_that_are_left_are_checked_and_those_skipped_once(ask, tmp_path, monkeypatch):
    checked: list[int] = []

    def recorded(rows: Iterable[Row], qa: QuestionAnswerer) -> Iterator[Row]:
        for each in real(rows, qa):
            checked.append(each.number)
            yield each

    real = json_lines.checked
    monkeypatch.setattr(json_lines, "checked", recorded)
    good, source = list(map(row, questions(8))), tmp_path / "in.jsonl"
    for number, options, expected in (
        (2, {"skip_bad": True}, [1, 2]),
        (6, {"resume": True, "skip_bad": True}, [1, 2, 3, 4, 5, 6]),  # the first block again
        (8, {"resume": True}, [7, 8, 5, 6, 7, 8]),
    ):
        write_lines(source, good[:number])
        ask(**options)
        assert checked == expected
        checked.clear()


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
@pytest.mark.parametrize("before", [0, 2, 4])
def test_an_invalid_line_in_a_pipe_stops_the_run_and_keeps_the_answers(ask, tmp_path, before):
    """A pipe cannot be read twice. A file with corrected lines resumes the run."""
    examples = questions(8)
    good, source = list(map(row, examples)), tmp_path / "in.jsonl"
    os.mkfifo(source)
    lines = [*good[:before], list(BAD)[3], *good[before:]]
    writer = Thread(target=write_lines, args=(source, lines), daemon=True)
    writer.start()
    with pytest.raises(UserError, match=f"line {before + 1}.*got 90.*before it are answered"):
        ask()
    writer.join()
    answers = tmp_path / "out" / "predictions.jsonl"
    assert [entry["id"] for entry in written(answers)] == [e.id for e in examples[:before]]
    with pytest.raises(UserError, match=r"--resume: .* got the pipe .*in\.jsonl"):
        ask(resume=True)
    source.unlink()
    write_lines(source, [*good[:before], good[0], *good[before:]])
    assert ask(resume=True) == (9 - before, 0)
    resumed = [{**entry, "score": pytest.approx(entry["score"])} for entry in written(answers)]
    ask()
    assert written(answers) == resumed


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_several_processes_cannot_share_a_pipe(ask, qa, tmp_path):
    os.mkfifo(tmp_path / "in.jsonl")
    for rank in (0, 1):
        with pytest.raises(UserError, match=r"in\.jsonl: must be a file .*, got a pipe"):
            ask(runtime=replace(qa.runtime, rank=rank, world_size=2))


def test_skip_bad_writes_invalid_lines_to_rejects(ask, qa, tmp_path):
    examples = questions(9)
    mixed = [*map(row, examples[:2]), *BAD, *map(row, examples[2:])]
    source = write_lines(tmp_path / "in.jsonl", mixed)
    assert ask(skip_bad=True) == (9, len(BAD))
    answers = written(tmp_path / "out" / "predictions.jsonl")
    rejects = written(tmp_path / "out" / "rejects.jsonl")
    numbers = [entry["line"] for entry in [*answers, *rejects]]
    assert sorted(numbers) == list(range(1, len(mixed) + 1))  # each line occurs once
    for entry in rejects:
        assert entry["raw"] == mixed[entry["line"] - 1]
        assert BAD[entry["raw"]] in entry["fault"] and f"line {entry['line']}" in entry["fault"]
    for part in (answers, rejects):
        assert all(a["line"] < b["line"] for a, b in pairwise(part))
    whole = score(examples, list(qa.answer(examples)), qa.decoding)
    assert score_lines(source, tmp_path / "out", v2=False) == pytest.approx(whole)


def test_a_long_question_is_valid_with_a_short_context(ask, qa, tmp_path):
    """A single window needs no overlap."""
    question = "who " * (qa.windows.longest_question + 9)
    rows = [{"question": question, "context": text} for text in ("Ada.", "Ada. " * 5)]
    write_lines(tmp_path / "in.jsonl", map(json.dumps, rows))
    with pytest.raises(UserError, match=r"line 2: .* got 85"):
        ask()
    assert ask(skip_bad=True) == (1, 1)
    (entry,) = written(tmp_path / "out" / "predictions.jsonl")
    assert entry["line"] == 1 and entry["answer"] == qa(question, "Ada.")["answer"]


def test_questions_without_gold_do_not_count(ask, tmp_path):
    """The metrics are those of the other questions, as in ``score``."""
    examples, without = questions(5), '{"question": "Who?", "context": "Ada."}'
    source, folder, messages = tmp_path / "in.jsonl", tmp_path / "out", []
    write_lines(source, map(row, examples))
    ask()
    alone = score_lines(source, folder, v2=False, say=messages.append)
    assert alone and messages == []
    write_lines(source, [without, *map(row, examples)])
    ask()
    found = score_lines(source, folder, v2=False, say=messages.append)
    assert found == alone | {"without_gold": 1} and found["total"] == 5
    (message,) = messages
    assert "6 questions; 1 without an id, " in message and "; 1 without gold answers, " in message
    predictions = [
        SimpleNamespace(id=entry["id"], text=entry["answer"], null_odds=None, best_span="")
        for entry in written(folder / "predictions.jsonl")
    ]
    whole = [Example("line 1", "Who?", "Ada."), *examples]
    assert score(whole, predictions, DecodingSettings()) == found
    write_lines(source, [without])
    ask()
    assert score_lines(source, folder, v2=False) == {}


def test_no_answer_requires_its_flag(ask, qa, tmp_path):
    lines = [row(replace(e, answers=(), answer_starts=())) for e in questions(2)]
    write_lines(tmp_path / "in.jsonl", [row(questions(1)[0]), *lines])
    with pytest.raises(
        UserError,
        match=r"line 2: must have an answer to every question, got 1 without: pass --version",
    ):
        ask()
    assert ask(skip_bad=True) == (1, 2)
    decoding = DecodingSettings(version_2_with_negative=True)
    v2 = QuestionAnswerer(qa.model, qa.tokenizer, SMALL, decoding, qa.runtime)
    assert ask(v2) == (3, 0)


# --- resuming ------------------------------------------------------------------------------------


@pytest.fixture
def finished(ask, tmp_path) -> list[bytes]:
    """Answer in.jsonl and return the contents of the two files."""
    good = list(map(row, questions(10)))
    write_lines(tmp_path / "in.jsonl", [*list(BAD)[:2], *good[:6], list(BAD)[3], *good[6:]])
    ask(skip_bad=True)
    return files(tmp_path / "out")


def test_a_run_killed_anywhere_resumes_to_the_same_bytes(ask, finished, tmp_path):
    """Rejects are written first, so they may be incomplete if the answers are."""
    answers, rejects = finished
    line = answers.index(b"\n")
    sizes = [0, 1, line, line + 1, len(answers) // 3, len(answers) // 2, len(answers) - 1]
    for size in [*sizes, len(answers)]:
        for held in (rejects, rejects[:-7]) if size < len(answers) // 2 else (rejects,):
            (tmp_path / "out" / "predictions.jsonl").write_bytes(answers[:size])
            (tmp_path / "out" / "rejects.jsonl").write_bytes(held)
            ask(resume=True, skip_bad=True)
            assert files(tmp_path / "out") == finished, size


def test_a_signal_stops_the_run_after_its_block(ask, qa, finished, tmp_path):
    asked = []

    def answer(examples: Iterable[Example]) -> Iterator[Prediction]:
        asked.append(1)
        if len(asked) == 1:  # a second signal would act at once
            os.kill(os.getpid(), signal.SIGTERM)
        return qa.answer(examples)

    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with pytest.raises(Stopped, match=r"after line 4 .*--resume") as stop:
            ask(like(qa, answer), skip_bad=True)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert stop.value.exit_code == 143
    assert len(written(tmp_path / "out" / "predictions.jsonl")) == 2
    assert ask(resume=True, skip_bad=True) == (8, 1)
    assert files(tmp_path / "out") == finished


def test_resuming_with_other_settings_or_input_is_rejected(ask, qa, finished, tmp_path):
    windows = WindowSettings(48, doc_stride=16)
    other = QuestionAnswerer(qa.model, qa.tokenizer, windows, qa.decoding, qa.runtime)
    for key, changed in (
        ("top_k", {"top_k": 2}), ("windows", {"answerer": other}), ("model", {"model": "another"}),
    ):  # fmt: skip
        with pytest.raises(UserError, match=f"--resume: {key} must be .*, got"):
            ask(resume=True, **changed)
    without_id = [json.dumps({"question": f"{n}?", "context": "Ada."}) for n in range(20)]
    for lines in (map(row, questions(10)), map(row, questions(30)[10:]), without_id):
        write_lines(tmp_path / "in.jsonl", lines)  # too short, or with another question
        with pytest.raises(UserError, match=r"line 13 of .*in.jsonl must be the question"):
            ask(resume=True)
    assert files(tmp_path / "out") == finished


def test_foreign_files_are_kept(ask, finished, tmp_path):
    answers = tmp_path / "out" / "predictions.jsonl"
    answers.write_text('{"line": 1, "id": "a", "digest": ""}\nmine\n')
    with pytest.raises(UserError, match=r"predictions.jsonl, line 2: must be a line"):
        ask(resume=True)
    (tmp_path / "out" / "settings.json").unlink()
    answers.write_text('{"line": 1, "id": "a", "digest": ""}\n')
    with pytest.raises(UserError, match=r"must contain the settings.json"):
        ask(resume=True)
    assert answers.read_text() == '{"line": 1, "id": "a", "digest": ""}\n'


def test_a_full_disk_leaves_complete_answers(ask, finished, tmp_path, monkeypatch):
    """The disk is full during the second block."""
    real = file_module._dumps

    def dumps(entry: dict[str, Any]) -> str:
        if entry.get("line") == 6:
            raise OSError(28, "No space left on device")
        return real(entry)

    monkeypatch.setattr(file_module, "_dumps", dumps)
    with pytest.raises(UserError, match=r"predictions.jsonl cannot be written: No space left"):
        ask(skip_bad=True)
    monkeypatch.setattr(file_module, "_dumps", real)
    assert 0 < len(files(tmp_path / "out")[0]) < len(finished[0])
    ask(resume=True, skip_bad=True)
    assert files(tmp_path / "out") == finished


# --- any number of lines -------------------------------------------------------------------------


def test_memory_does_not_grow_with_the_lines(qa, tmp_path, monkeypatch):
    """With an answerer that does nothing, to measure reading and writing only."""

    def answer(examples: Iterable[Example]) -> Iterator[Prediction]:
        for example in examples:
            found = Answer("Ada", 0, 3, 0.0, 0.0, 1.0)
            yield Prediction(example.id, "Ada", (found, found), "Ada", None)

    monkeypatch.setattr(blocks, "ROWS_PER_BLOCK", 64)
    idle = like(qa, answer)
    peaks = []
    for count in (500, 5000):
        folder = tmp_path / str(count)
        folder.mkdir()
        rows = (
            json.dumps({"question": f"{n}?", "context": f"Ada {n} " * 50, "answers": ["Ada"]})
            for n in range(count)
        )
        source = write_lines(tmp_path / f"{count}.jsonl", rows)
        tracemalloc.start()
        try:
            answer_lines(idle, source, folder, model="idle")
            assert answer_lines(idle, source, folder, model="idle", resume=True) == (0, 0)
            assert score_lines(source, folder, v2=False)["total"] == count
            peaks.append(tracemalloc.get_traced_memory()[1])
        finally:
            tracemalloc.stop()
    assert peaks[1] < 1.1 * peaks[0]
