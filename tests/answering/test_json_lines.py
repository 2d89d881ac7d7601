"""Questions on JSON lines: answered in order, whole, and resumed wherever the run was stopped."""

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
from bertqa.answering import blocks
from bertqa.answering.answerer import QuestionAnswerer
from bertqa.answering.answers import Answer, Prediction
from bertqa.answering.evaluation import score
from bertqa.answering.json_lines import answer_lines
from bertqa.answering.line_files import score_lines
from bertqa.data.readers import read_examples
from bertqa.data.squad import Example
from bertqa.errors import UserError
from bertqa.interrupts import Stopped
from bertqa.settings import DecodingSettings, WindowSettings
from tests.helpers import STORIES, STORIES_V2, write_checkpoint

SMALL = WindowSettings(96, doc_stride=16)
BAD = {
    "{broken": "malformed JSON",
    '{"question": "Who?"}': "must have context",
    '{"question": "Who?", "context": " "}': "blank context",
    json.dumps({"question": "who " * 90, "context": "Ada."}): "got 90",
}


@pytest.fixture(scope="module")
def qa(tmp_path_factory: pytest.TempPathFactory) -> QuestionAnswerer:
    folder = write_checkpoint(tmp_path_factory.mktemp("lines") / "tiny")
    return QuestionAnswerer.from_pretrained(folder, windows=SMALL, device="cpu", precision="fp32")


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "BLOCK", 4)


def like(qa: QuestionAnswerer, answer: Callable[..., Any]) -> Any:
    """An answerer that answers otherwise."""
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
    return [(folder / name).read_bytes() for name in ("predictions.jsonl", "rejects.jsonl")]


@pytest.fixture
def ask(qa: QuestionAnswerer, tmp_path: Path) -> Callable[..., tuple[int, int]]:
    """``answer_lines`` on in.jsonl into the folder out."""
    (tmp_path / "out").mkdir()

    def call(answerer: Any = qa, model: str = "tiny", **options: Any) -> tuple[int, int]:
        return answer_lines(
            answerer, tmp_path / "in.jsonl", tmp_path / "out", model=model, **options
        )

    return call


def test_a_line_is_answered_as_a_question_is(ask, qa, tmp_path):
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
    assert (tmp_path / "out" / "rejects.jsonl").read_text() == ""


def test_more_answers_and_other_offsets(ask, tmp_path):
    context = "🤗 Ada built the quay in 1642 — “Ben” swept it. 🙂"
    line = json.dumps({"question": "Who built it?", "context": context})
    write_lines(tmp_path / "in.jsonl", [line])
    ask(top_k=3, all_offsets=True)
    (entry,) = written(tmp_path / "out" / "predictions.jsonl")
    answers = entry["answers"]
    assert len(answers) == 3 and answers[0].items() <= entry.items()
    assert entry["id"] == "line 1"  # made up: no other line's, which might be any number
    for answer in answers:
        for coding, width, name in (("utf-16-le", 2, "utf16"), ("utf-8", 1, "byte")):
            start, end = answer[f"start_{name}"] * width, answer[f"end_{name}"] * width
            assert context.encode(coding)[start:end].decode(coding) == answer["answer"]


def test_where_no_answer_is_one(qa, tmp_path):
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


# --- bad lines -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("line", "words"), BAD.items(), ids=list(BAD.values()))
def test_a_bad_line_of_a_file_is_told_before_a_question_is_asked(ask, qa, tmp_path, line, words):
    good = list(map(row, questions(8)))
    write_lines(tmp_path / "in.jsonl", [*good[:6], line, *good[6:], "{}"])
    with pytest.raises(UserError, match=rf"line 7.*{words}.*1 more faulty row.*--skip_bad"):
        ask(like(qa, lambda examples: pytest.fail("asked")))
    assert not any((tmp_path / "out").iterdir())


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
@pytest.mark.parametrize("before", [0, 2, 4])
def test_a_bad_line_in_a_pipe_ends_the_run_and_nothing_is_lost(ask, tmp_path, before):
    """It cannot be read twice. The file of the corrected lines goes on."""
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
    with pytest.raises(UserError, match=r"--resume: .*in\.jsonl is a pipe"):
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
        with pytest.raises(UserError, match=r"in\.jsonl is a pipe, which one process can read"):
            ask(runtime=replace(qa.runtime, rank=rank, world_size=2))


def test_bad_lines_are_kept_aside_if_told_so(ask, qa, tmp_path):
    examples = questions(9)
    mixed = [*map(row, examples[:2]), *BAD, *map(row, examples[2:])]
    source = write_lines(tmp_path / "in.jsonl", mixed)
    assert ask(skip_bad=True) == (9, len(BAD))
    answers = written(tmp_path / "out" / "predictions.jsonl")
    rejects = written(tmp_path / "out" / "rejects.jsonl")
    numbers = [entry["line"] for entry in [*answers, *rejects]]
    assert sorted(numbers) == list(range(1, len(mixed) + 1))  # none vanishes, none comes twice
    for entry in rejects:
        assert entry["raw"] == mixed[entry["line"] - 1]
        assert BAD[entry["raw"]] in entry["fault"] and f"line {entry['line']}" in entry["fault"]
    for part in (answers, rejects):
        assert all(a["line"] < b["line"] for a, b in pairwise(part))
    whole = score(examples, list(qa.answer(examples)), qa.decoding)
    assert score_lines(source, tmp_path / "out", v2=False) == pytest.approx(whole)


def test_whether_a_long_question_can_be_asked_is_up_to_its_context(ask, qa, tmp_path):
    """One window needs no overlap. It is told before a question is asked, and by the model."""
    question = "who " * (qa.windows.longest_question + 9)
    rows = [{"question": question, "context": text} for text in ("Ada.", "Ada. " * 5)]
    write_lines(tmp_path / "in.jsonl", map(json.dumps, rows))
    with pytest.raises(UserError, match=r"line 2: .* got 85"):
        ask()
    assert ask(skip_bad=True) == (1, 1)
    (entry,) = written(tmp_path / "out" / "predictions.jsonl")
    assert entry["line"] == 1 and entry["answer"] == qa(question, "Ada.")["answer"]


def test_questions_without_gold_do_not_count(ask, tmp_path):
    """The others give the figures that they give alone; as ``score`` has them of a whole file."""
    examples, without = questions(5), '{"question": "Who?", "context": "Ada."}'
    source, folder, said = tmp_path / "in.jsonl", tmp_path / "out", []
    write_lines(source, map(row, examples))
    ask()
    alone = score_lines(source, folder, v2=False, say=said.append)
    assert alone and said == []
    write_lines(source, [without, *map(row, examples)])
    ask()
    found = score_lines(source, folder, v2=False, say=said.append)
    assert found == alone | {"without_gold": 1} and found["total"] == 5
    assert "6 questions; 1 without an id, " in said[0] and "; 1 without gold answers, " in said[0]
    predictions = [
        SimpleNamespace(id=entry["id"], text=entry["answer"], null_odds=None, best_span="")
        for entry in written(folder / "predictions.jsonl")
    ]
    whole = [Example("line 1", "Who?", "Ada."), *examples]
    assert score(whole, predictions, DecodingSettings()) == found
    write_lines(source, [without])
    ask()
    assert score_lines(source, folder, v2=False) == {}


def test_no_answer_needs_its_flag_as_in_a_whole_file(ask, qa, tmp_path):
    lines = [row(replace(e, answers=(), answer_starts=())) for e in questions(2)]
    write_lines(tmp_path / "in.jsonl", [row(questions(1)[0]), *lines])
    with pytest.raises(UserError, match=r"line 2 has 1 unanswerable question: pass --version"):
        ask()
    assert ask(skip_bad=True) == (1, 2)
    decoding = DecodingSettings(version_2_with_negative=True)
    v2 = QuestionAnswerer(qa.model, qa.tokenizer, SMALL, decoding, qa.runtime)
    assert ask(v2) == (3, 0)


# --- resuming ------------------------------------------------------------------------------------


@pytest.fixture
def finished(ask, tmp_path) -> list[bytes]:
    """What the two files hold once in.jsonl is answered."""
    good = list(map(row, questions(10)))
    write_lines(tmp_path / "in.jsonl", [*list(BAD)[:2], *good[:6], list(BAD)[3], *good[6:]])
    ask(skip_bad=True)
    return files(tmp_path / "out")


def test_killed_anywhere_it_goes_on_to_the_same_bytes(ask, finished, tmp_path):
    """Rejects are written first: whatever is there of the answers, theirs may be whole or not."""
    answers, rejects = finished
    line = answers.index(b"\n")
    sizes = [0, 1, line, line + 1, len(answers) // 3, len(answers) // 2, len(answers) - 1]
    for size in [*sizes, len(answers)]:
        for held in (rejects, rejects[:-7]) if size < len(answers) // 2 else (rejects,):
            (tmp_path / "out" / "predictions.jsonl").write_bytes(answers[:size])
            (tmp_path / "out" / "rejects.jsonl").write_bytes(held)
            ask(resume=True, skip_bad=True)
            assert files(tmp_path / "out") == finished, size


def test_a_signal_ends_it_after_its_block(ask, qa, finished, tmp_path):
    asked = []

    def answer(examples: Iterable[Example]) -> Iterator[Prediction]:
        asked.append(1)
        if len(asked) == 1:  # a second signal would act at once
            os.kill(os.getpid(), signal.SIGTERM)
        return qa.answer(examples)

    heeded = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with pytest.raises(Stopped, match=r"after line 4 .*--resume") as stop:
            ask(like(qa, answer), skip_bad=True)
    finally:
        signal.signal(signal.SIGTERM, heeded)
    assert stop.value.exit_code == 143
    assert len(written(tmp_path / "out" / "predictions.jsonl")) == 2
    assert ask(resume=True, skip_bad=True) == (8, 1)
    assert files(tmp_path / "out") == finished


def test_going_on_with_something_else_is_refused(ask, qa, finished, tmp_path):
    windows = WindowSettings(48, doc_stride=16)
    other = QuestionAnswerer(qa.model, qa.tokenizer, windows, qa.decoding, qa.runtime)
    for key, changed in (
        ("top_k", {"top_k": 2}), ("windows", {"answerer": other}), ("model", {"model": "another"}),
    ):  # fmt: skip
        with pytest.raises(UserError, match=f"begun with {key} "):
            ask(resume=True, **changed)
    without_id = [json.dumps({"question": f"{n}?", "context": "Ada."}) for n in range(20)]
    for lines in (map(row, questions(10)), map(row, questions(30)[10:]), without_id):
        write_lines(tmp_path / "in.jsonl", lines)  # too short, or with another question there
        with pytest.raises(UserError, match=r"line 13 of .*in.jsonl is not the question"):
            ask(resume=True)
    assert files(tmp_path / "out") == finished


def test_a_file_that_it_did_not_write_is_left_alone(ask, finished, tmp_path):
    answers = tmp_path / "out" / "predictions.jsonl"
    answers.write_text('{"line": 1, "id": "a", "digest": ""}\nmine\n')
    with pytest.raises(UserError, match=r"predictions.jsonl, line 2: must be a line"):
        ask(resume=True)
    (tmp_path / "out" / "settings.json").unlink()
    answers.write_text('{"line": 1, "id": "a", "digest": ""}\n')
    with pytest.raises(UserError, match=r"no settings.json"):
        ask(resume=True)
    assert answers.read_text() == '{"line": 1, "id": "a", "digest": ""}\n'


def test_a_disk_that_is_full_leaves_whole_answers(ask, finished, tmp_path, monkeypatch):
    """The second block finds no room for the whole of its answers."""
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
    """With an answerer that does nothing, so that what is left is the reading and writing."""

    def answer(examples: Iterable[Example]) -> Iterator[Prediction]:
        for example in examples:
            found = Answer("Ada", 0, 3, 0.0, 0.0, 1.0)
            yield Prediction(example.id, "Ada", (found, found), "Ada", None)

    monkeypatch.setattr(blocks, "BLOCK", 64)
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
