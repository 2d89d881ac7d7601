"""train.py and infer.py as a user runs them: files, prompts and output."""

import json
import math
import os
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from io import BytesIO, StringIO, TextIOWrapper
from pathlib import Path
from typing import Any

import pytest

from bertqa.answering.answerer import QuestionAnswerer
from bertqa.answering.decoding_file import write_decoding_file
from bertqa.commands import infer, infer_questions
from bertqa.commands.question_flags import read_context
from bertqa.data.readers import read_examples
from bertqa.data.squad import split_by_article
from bertqa.settings import DecodingSettings, WindowSettings
from bertqa.training.run_folder import RunFolder
from tests.commands.world import (
    CONTEXT,
    HERE,
    ROOT,
    ROW,
    WINDOWS,
    World,
    call,
    environment,
    read_json,
    without_head,
)
from tests.helpers import STORIES, STORIES_V2, contents, write_questions
from tests.training.runs import checkpoints_of, log_of

# --- from training to answers --------------------------------------------------------------------

# fmt: off
STORY_WINDOWS = ["--max_seq_length", 96, "--doc_stride", 16, "--max_query_length", 24]
STORY_RUN = [
    "--train_file", STORIES, "--validation_file", STORIES, "--max_train_samples", 5,
    "--max_eval_samples", 4, *STORY_WINDOWS, *HERE, "--max_steps", 8, "--save_steps", 3,
    "--per_device_train_batch_size", 4, "--eval_steps", 4, "--logging_steps", 2,
    "--learning_rate", 5e-3,
]
# fmt: on


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, checkpoint: Path) -> tuple[Path, list[str]]:
    """Return the folder of a run of train.py, and the printed lines."""
    folder, output = tmp_path_factory.mktemp("trained") / "run", StringIO()
    with redirect_stdout(output):
        assert call("train", "--model", checkpoint, "--output_dir", folder, *STORY_RUN) == 0
    return folder, output.getvalue().splitlines()


def test_train_prints_its_progress(trained: Any, checkpoint: Path) -> None:
    folder, lines = trained
    assert lines[0] == f"{checkpoint}/model.safetensors: 55 tensors loaded"
    assert "training: 45 windows of 5 examples, 5 answers labelled exactly" in lines
    assert any(line.startswith("validation: 36 windows of 4 examples,") for line in lines)
    assert "8 steps of 4 windows on cpu in torch.float32, from step 0" in lines
    table = lines[-5:-2]  # one header, and a line for each evaluation
    assert [line.split()[1] for line in table] == ["step", "4", "8"]
    assert sum("training loss" in line for line in lines) == 1
    assert lines[-2].startswith("probabilities are not calibrated: the validation data must")
    assert lines[-1] == f"saved in {folder}; ask it: bertqa infer --model {folder}"
    assert sorted(path.name for path in folder.iterdir()) == [
        "checkpoints", "config.json", "evaluations", "labels.json", "log.jsonl", "metrics.json",
        "model.safetensors", "nbest_predictions.json", "predictions.json", "report.html",
        "run.json", "tokenizer.json", "tokenizer_config.json",
    ]  # fmt: skip


def test_infer_gives_the_answers_of_training(
    trained: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same model, file and windows give the same answers and metrics."""
    folder, _ = trained
    asked = write_questions(tmp_path / "four.json", read_examples(STORIES)[:4])
    out = tmp_path / "made" / "here"
    flags = ["--model", folder, "--input", asked, "--output-dir", out]
    assert call("infer", *flags, *STORY_WINDOWS, *HERE) == 0
    result = capsys.readouterr()
    files = ["nbest_predictions.json", "predictions.json", "metrics.json"]
    assert result.err == f"wrote {', '.join(str(out / name) for name in files)}\n"
    assert json.loads(result.out) == read_json(out / "metrics.json")
    assert sorted(path.name for path in out.iterdir()) == sorted(files)
    assert read_json(out / "predictions.json") == read_json(folder / "predictions.json")
    metrics = read_json(out / "metrics.json")
    assert metrics == read_json(folder / "metrics.json")
    assert set(metrics) == {"exact_match", "f1", "total"}
    best = max(line["f1"] for line in log_of(folder) if "f1" in line)
    assert metrics["f1"] == best


def test_train_and_infer_with_version_2(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, examples = tmp_path / "run", read_examples(STORIES_V2)[:10]
    few = write_questions(tmp_path / "few.json", examples)
    code = call(
        "train", "--model", checkpoint, "--train_file", few, "--validation_file", few,
        "--output_dir", folder, "--version-2-with-negative", *STORY_WINDOWS, *HERE,
        "--max_steps", 2, "--per_device_train_batch_size", 4,
    )  # fmt: skip
    assert code == 0
    assert "unanswerable, labelled [CLS]: " in capsys.readouterr().out
    assert "HasAns_f1" in read_json(folder / "metrics.json")

    code = call(
        "infer", "--model", folder, "--input", few, "--output_dir", tmp_path / "out",
        "--version_2_with_negative", "--json", "--max_seq_length", 384, *HERE,
    )  # fmt: skip
    assert code == 0
    files = {file.stem: read_json(file) for file in (tmp_path / "out").iterdir()}
    assert json.loads(capsys.readouterr().out) == files["metrics"]
    assert set(files) == {"predictions", "nbest_predictions", "null_odds", "metrics"}
    ids = [example.id for example in examples]
    odds, texts = files["null_odds"], files["predictions"]
    assert list(odds) == list(texts) == ids
    assert all((texts[id_] == "") == (odds[id_] > 0) for id_ in ids)
    metrics = files["metrics"]
    assert set(metrics) == {
        "exact", "f1", "total", "HasAns_exact", "HasAns_f1", "HasAns_total", "NoAns_exact",
        "NoAns_f1", "NoAns_total", "best_exact", "best_exact_thresh", "best_f1", "best_f1_thresh",
    }  # fmt: skip
    assert metrics["total"] == len(ids)
    assert metrics["NoAns_total"] == sum(example.is_impossible for example in examples)


def test_a_file_without_gold_answers_has_no_metrics(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = f'question,context\nWho?,"{CONTEXT}"\nWhat?,"{CONTEXT}"\n'
    assert call("infer", *world.file(world.write("q.csv", lines))) == 0
    assert capsys.readouterr().out == ""
    files = {path.name for path in world.out.iterdir()}
    assert files == {"nbest_predictions.json", "predictions.json"}
    assert list(read_json(world.out / "predictions.json")) == ["0", "1"]


def test_predictions_are_overwritten_only_with_the_flag(world: World) -> None:
    kept = world.write("out/predictions.json", "{}")
    assert call("infer", *world.file(world.row())) == 2
    assert contents(world.out) == {"predictions.json": b"{}"}
    assert call("infer", *world.file(world.row(), "--overwrite-output-dir")) == 0
    assert list(read_json(kept)) == ["first"]


# --- one question --------------------------------------------------------------------------------


def asked(capsys: pytest.CaptureFixture[str], model: Path, *flags: object) -> str:
    """Run infer.py and return its output."""
    assert call("infer", "--model", model, *HERE, *WINDOWS, *flags) == 0
    out, err = capsys.readouterr()
    assert err == ""
    return out


LINE = re.compile(r" *(\d\.\d{4}) +(\d+)-(\d+)  (.+)")


def test_one_question(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--question", "Who built it?", "--context", CONTEXT]
    answer = json.loads(asked(capsys, checkpoint, *flags, "--json"))
    assert list(answer) == ["score", "start", "end", "answer"]
    assert answer["answer"] == CONTEXT[answer["start"] : answer["end"]] != ""

    (line,) = asked(capsys, checkpoint, *flags).splitlines()
    score, start, end, text = LINE.fullmatch(line).groups()
    assert (int(start), int(end), text) == (answer["start"], answer["end"], answer["answer"])
    assert float(score) == pytest.approx(answer["score"], abs=1e-4)

    three = json.loads(asked(capsys, checkpoint, *flags, "--json", "--top-k", 3))
    assert len(three) == 3 and three[0] == answer
    assert three[0]["score"] >= three[1]["score"] >= three[2]["score"]
    lines = asked(capsys, checkpoint, *flags, "--top_k=3").splitlines()
    assert [LINE.fullmatch(line)[4] for line in lines] == [entry["answer"] for entry in three]


def test_control_characters_of_a_context_are_escaped(
    checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    context = "Ada\x1b[2J built\u202e\n it."
    flags = ["--question", "Who?", "--context", context, "--top_k", 30]
    lines = asked(capsys, checkpoint, *flags).splitlines()
    assert "Ada\\x1b[2J built\\u202e it" in {line.split("  ")[-1] for line in lines}
    assert all(line.isprintable() for line in lines)


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_json_is_valid_in_any_encoding(
    encoding: str, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = "Zoë Łuk – 建"
    written = BytesIO()
    monkeypatch.setattr(sys, "stdout", TextIOWrapper(written, encoding=encoding))
    flags = ["--question", "Who?", "--context", context, "--json", "--top_k", "30"]
    assert call("infer", "--model", checkpoint, *HERE, *WINDOWS, *flags) == 0
    sys.stdout.flush()
    answers = json.loads(written.getvalue().decode(encoding))
    assert context in {answer["answer"] for answer in answers}


def test_the_context_file_is_read_unchanged(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Offsets count line breaks and spaces, but not a byte order mark."""
    text = "  Ada built\r\nthe quay.\r\n\r\nBen — swept\tit. \n"
    path = tmp_path / "text.txt"
    answers = []
    for mark in (b"", b"\xef\xbb\xbf"):
        path.write_bytes(mark + text.encode("utf-8"))
        flags = ["--question", "Who?", "--context-file", path, "--json", "--top_k", 20]
        answers.append(json.loads(asked(capsys, checkpoint, *flags)))
    assert answers[0] == answers[1]
    assert all(a["answer"] == text[a["start"] : a["end"]] for a in answers[0])
    assert any("\r\n" in a["answer"] for a in answers[0])
    # In a table, an answer is one line.
    assert len(asked(capsys, checkpoint, *flags[:-3], "--top_k", 20).splitlines()) == 20


def test_no_answer_is_printed(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--question", "Who?", "--context", CONTEXT, "--version_2_with_negative"]
    flags += ["--null_score_diff_threshold=-1e9"]
    line = LINE.fullmatch(asked(capsys, checkpoint, *flags).rstrip("\n"))
    assert line.groups()[1:] == ("0", "0", "(no answer)")
    answer = json.loads(asked(capsys, checkpoint, *flags, "--json"))
    assert (answer["answer"], answer["start"], answer["end"]) == ("", 0, 0)


def test_answers_below_the_score_threshold_become_no_answer(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--question", "Who?", "--context", CONTEXT, "--score_threshold"]
    assert LINE.fullmatch(asked(capsys, world.good, *flags, 0).rstrip("\n"))[4] != "(no answer)"
    line = LINE.fullmatch(asked(capsys, world.good, *flags, 1).rstrip("\n"))
    assert line.groups() == ("0.0000", "0", "0", "(no answer)")
    assert call("infer", *world.file(world.row(), "--score_threshold", 1)) == 0
    assert read_json(world.out / "predictions.json") == {"first": ""}
    assert read_json(world.out / "metrics.json")["exact_match"] == 0


@pytest.mark.parametrize("flag", ["--always_answer", "--no_version_2_with_negative"])
def test_always_answer_overrides_no_answer(
    world: World, capsys: pytest.CaptureFixture[str], flag: str
) -> None:
    folder = world.checkpoint()
    silent = DecodingSettings(version_2_with_negative=True, null_score_diff_threshold=-1e9)
    write_decoding_file(folder, silent, WindowSettings(64, 16))
    flags = ["--question", "Who?", "--context", CONTEXT, "--json"]
    assert json.loads(asked(capsys, folder, *flags))["answer"] == ""
    found = json.loads(asked(capsys, folder, *flags, flag))
    assert found == json.loads(asked(capsys, world.good, *flags))  # a model without "no answer"
    qa = QuestionAnswerer.from_pretrained(folder, device="cpu", precision="fp32")
    assert found == qa("Who?", CONTEXT, handle_impossible_answer=False)


# --- demo, terminal ------------------------------------------------------------------------------


def test_without_arguments_and_terminal_infer_shows_the_demo(
    checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    room = ["--max_seq_length", 384]  # for its long questions
    shown = asked(capsys, checkpoint, *room, "--demo")
    assert call("infer", "--model", checkpoint, *HERE, *WINDOWS, *room) == 0
    out, err = capsys.readouterr()
    assert out == shown and err.startswith("stdin is not a terminal and was not read")
    lines = shown.splitlines()
    assert infer_questions.DEMO_CONTEXT in lines and infer_questions.DEMO_HISTORY in lines
    for question in infer_questions.DEMO_QUESTIONS:
        index = lines.index(question)
        start, end, text = LINE.fullmatch(lines[index + 1]).groups()[1:]
        assert infer_questions.DEMO_CONTEXT[int(start) : int(end)] == text
        assert not LINE.fullmatch(lines[index + 2])
    n_best = lines[lines.index(infer_questions.DEMO_HISTORY_QUESTION) + 1 :]
    assert len(n_best) == 5
    scores = [float(LINE.fullmatch(line)[1]) for line in n_best]
    assert scores == sorted(scores, reverse=True)


@pytest.mark.skipif(sys.platform == "win32", reason="no pseudo-terminals there")
def test_in_a_terminal_infer_prompts_for_text_and_questions(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """After the demo: a context of two lines, two questions, end of input."""
    import pty  # not available on Windows

    ours, theirs = pty.openpty()
    command = [sys.executable, "infer.py", "--model", str(checkpoint), *HERE]
    process = subprocess.Popen(
        command, cwd=ROOT, env=environment(tmp_path) | {"TERM": "dumb"},
        stdin=theirs, stdout=theirs, stderr=theirs,
    )  # fmt: skip
    os.close(theirs)
    output = ""
    questions = ["Who built it?", "Who swept it?"]
    try:
        for prompt, line in (
            ("text> ", CONTEXT[:14] + "\n"),
            ("text> ", CONTEXT[14:] + "\n"),
            ("text> ", "\n"),
            ("question> ", questions[0] + "\n"),
            ("question> ", "  \n"),  # blank
            ("question> ", questions[1] + "\n"),
            ("question> ", "\x04"),
        ):
            output += read_terminal(ours, until=prompt)
            os.write(ours, line.encode())
        output += read_terminal(ours)
        assert process.wait(300) == 0
    finally:
        process.kill()
        os.close(ours)
    demo, _, own = output.partition("Paste a text")
    assert infer_questions.DEMO_HISTORY_QUESTION in demo
    answers = [line for line in own.splitlines() if LINE.fullmatch(line)]
    context = CONTEXT[:14] + "\n" + CONTEXT[14:]
    expected = "".join(
        asked(capsys, checkpoint, "--question", question, "--context", context)
        for question in questions
    )
    assert answers == expected.splitlines()


def read_terminal(terminal: int, until: str | None = None) -> str:
    """Read what a process writes to its terminal, up to a prompt or to its end."""
    text, deadline = b"", time.monotonic() + 300
    while until is None or not text.endswith(until.encode()):
        left = deadline - time.monotonic()
        assert left > 0 and select.select([terminal], [], [], left)[0], text
        try:
            part = os.read(terminal, 4096)
        except OSError:  # on Linux, the other end is closed
            part = b""
        if not part:
            assert until is None, text
            break
        text += part
    return text.decode()


# --- train.py: hold out, show, check, stop -------------------------------------------------------


def test_validation_split_percentage_holds_out_articles(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--model", checkpoint, "--train_file", STORIES, "--output_dir", tmp_path / "o"]
    few = ["--max_steps", 1, "--max_train_samples", 3, "--max_eval_samples", 2]
    split = ["--validation_split_percentage", 20]
    assert call("train", *flags, *split, *few, *STORY_WINDOWS, *HERE) == 0
    train, held = split_by_article(read_examples(STORIES), 20)
    answered = json.loads((tmp_path / "o" / "predictions.json").read_text())
    assert list(answered) == [example.id for example in held[:2]]
    output = capsys.readouterr().out
    assert f"windows of {len(train[:3])} " in output and f"windows of {len(held[:2])} " in output


def test_show_prints_examples_with_windows_and_labels(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def shown(*more: object) -> str:
        flags = ["--model", checkpoint, "--train_file", STORIES, "--output_dir", tmp_path / "o"]
        assert call("train", *flags, "--show", 3, *more, *STORY_WINDOWS, *HERE) == 0
        out, err = capsys.readouterr()
        assert err == ""
        return out

    out = shown()
    examples = {example.id: example for example in read_examples(STORIES)}
    blocks = re.split(r"^id +", out, flags=re.MULTILINE)[1:]
    assert len(blocks) == 3
    for block in blocks:
        example = examples[block.split("\n")[0]]
        assert example.question in block and example.context in block
        windows = re.findall(r"label (\d+)\.\.(\d+) = (.+)\n +(\[CLS\] .+ \[SEP\])$", block, re.M)
        assert {label for *_, label, _ in windows} <= {"''", repr(example.answers[0])}
        assert repr(example.answers[0]) in [label for *_, label, _ in windows]
        for start, end, label, tokens in windows:  # the tokens of a label make its text
            pieces = tokens.split(" ")[int(start) : int(end) + 1]
            word = "[CLS]" if label == "''" else example.answers[0].lower().replace(" ", "")
            assert "".join(piece.removeprefix("##") for piece in pieces) == word
    assert shown() == out  # the same seed
    assert shown("--seed", 43) != out
    assert not (tmp_path / "o").exists()


FAULTY = [
    ROW,
    ROW | {"id": "moved", "question": "When?", "answers": {"text": ["1642"], "answer_start": [3]}},
    ROW | {"question": "Who swept it?", "answers": {"text": ["Ben "], "answer_start": [28]}},
]


@pytest.fixture
def bad(world: World) -> Path:
    return world.rows("bad.json", *FAULTY)


def checked(world: World, path: Path, *more: object) -> int:
    return call("train", *world.train("--train_file", path, "--check", *more))


def test_check_prints_faults_and_writes_nothing(
    world: World, bad: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    good = world.rows("good.json", ROW)
    before = contents(world.folder)
    assert checked(world, good) == 0
    output, err = capsys.readouterr()
    assert f"{good}: 1 question\n" in output and "no findings" in output and err == ""
    assert checked(world, bad) == 1
    assert f"{bad}: 3 questions" in (output := capsys.readouterr().out)
    assert {"duplicate id: 1", "misplaced: 1", "blanks: 1"} <= set(output.splitlines())
    assert checked(world, good, "--validation_file", bad) == 1
    output = capsys.readouterr().out
    assert f"{good}: 1 question\n" in output and f"{bad}: 3 questions" in output
    monkeypatch.setenv("RANK", "1")  # only the main process checks
    assert checked(world, bad) == 0
    assert capsys.readouterr().out == ""
    assert contents(world.folder) == before


def test_bertqa_check_equals_train_check(
    world: World, bad: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags, folder = ["--model", world.good, "--train_file", bad, *WINDOWS], world.folder
    assert checked(world, bad, "--report", folder / "of_train.json") == 1
    output = capsys.readouterr().out
    assert call("check", *flags, "--report", folder / "of_check.json") == 1
    assert capsys.readouterr().out == output.replace("of_train", "of_check")
    assert (folder / "of_train.json").read_bytes() == (folder / "of_check.json").read_bytes()
    assert call("check", *flags, "--repair", folder / "copy.json") == 0
    assert len(read_examples(folder / "copy.json")) == 3
    for wrong, words in (
        (["--validation_split_percentage", 99], "from 1 to 50, got 99"),
        (["--repair", folder / "copy.json"], "copy.json: must be a new file"),
        (["--doc_stride", -1], "--doc_stride must be in [0, inf), got -1"),
    ):
        capsys.readouterr()
        assert call("check", *flags, *wrong) == 2
        assert words in capsys.readouterr().err


def test_check_needs_no_weights_and_distinguishes_v2_from_v1(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = ["--model", world.checkpoint("model.safetensors")]
    path = world.rows("v2.json", ROW, ROW | {"id": "none", "question": "Why?", "answers": []})
    assert checked(world, path, *folder) == 1
    assert "unanswerable: 1" in capsys.readouterr().out.splitlines()
    assert checked(world, path, *folder, "--version_2_with_negative") == 0
    assert "no findings" in capsys.readouterr().out


NO_ANSWER = [  # equivalent forms
    {"answers": []},
    {"answers": {"text": [""], "answer_start": [-1]}},
    {"answers": {"text": [""], "answer_start": [None]}},
    {"answers": [], "is_impossible": True},
]


@pytest.mark.parametrize("gold", NO_ANSWER, ids=str)
def test_every_command_treats_no_answer_alike(
    gold: dict[str, Any], world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    none = ROW | {"id": "none", "question": "Why?"} | gold
    for flag, code, cause in [([], 2, "unanswerable: 1"), (["--version_2_with_negative"], 0, "")]:
        path = world.rows("none.json", ROW, none)
        capsys.readouterr()
        assert checked(world, path, *flag) == code // 2
        assert cause in capsys.readouterr().out
        out = tmp_path / f"trained{code}"
        train = world.train("--train_file", path, "--output_dir", out, "--max_steps", 1, *flag)
        assert call("train", *train) == code
        answer = world.file(path, "--output_dir", tmp_path / f"out{code}", *flag)
        assert call("infer", *answer) == code
    assert read_json(tmp_path / "out0" / "metrics.json")["NoAns_total"] == 1
    skipped = world.rows("skipped.json", ROW, none | {"is_impossible": False})
    for flag in ([], ["--version_2_with_negative"]):
        assert call("train", *world.train("--train_file", skipped, *flag)) == 2
        assert "'none': must have gold answers" in capsys.readouterr().err
        assert checked(world, skipped, *flag) == 1
        assert "no answers given: 1" in capsys.readouterr().out
        answer = world.file(skipped, "--output_dir", tmp_path / f"skipped{len(flag)}", *flag)
        assert call("infer", *answer) == 0
        assert json.loads(capsys.readouterr().out)["without_gold"] == 1


def test_check_lists_unreadable_rows_and_repairs_others(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def rows(*golds: dict[str, Any]) -> Path:
        named = [ROW | {"question": f"{n}?", "id": str(n)} | g for n, g in enumerate(golds)]
        return world.rows("rows.json", *named)

    unreadable = [{"is_impossible": True}, {"answers": {"text": ["Ada"], "answer_start": ["0"]}}]
    flags = ["--repair", tmp_path / "copy.json"]
    assert checked(world, rows({}, *unreadable)) == 1
    output = capsys.readouterr().out
    assert "unreadable: 2" in output and "if is_impossible is true" in output
    assert "answer_start must be" in output and "got '0' (str)" in output
    assert checked(world, rows(*unreadable), *flags) == 2
    assert "--repair: all rows must be readable, got 2 that" in capsys.readouterr().err
    starts = [{"answers": {"text": ["1642"], "answer_start": [s]}} for s in (22.0, None, -1)]
    assert checked(world, rows(*starts), *flags) == 0
    assert {(e.answers, e.answer_starts) for e in read_examples(tmp_path / "copy.json")} == {
        (("1642",), (22,))
    }


def test_a_repaired_copy_can_be_trained_on(
    world: World, bad: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before, copy = bad.read_bytes(), world.folder / "new" / "repaired.jsonl"
    assert call("train", *world.train("--train_file", bad)) == 2
    assert "bertqa check lists all errors" in capsys.readouterr().err
    assert checked(world, bad, "--repair", copy) == 0  # the exit code is that of the copy
    output = capsys.readouterr().out
    assert "repaired: 3\n" in output and output.endswith(f"wrote {copy}\n")
    assert bad.read_bytes() == before
    assert [(e.id, e.answers, e.answer_starts) for e in read_examples(copy)] == [
        ("first", ("Ada",), (0,)), ("moved", ("1642",), (22,)), ("first-2", ("Ben",), (28,)),
    ]  # fmt: skip
    assert call("train", *world.train("--train_file", copy)) == 0
    # Rows that cannot be repaired are copied, too.
    lost = ROW | {"id": "lost", "answers": {"text": ["Rye"], "answer_start": [0]}}
    worse = world.rows("worse.json", *FAULTY, lost)
    assert checked(world, worse, "--repair", world.folder / "copy.json") == 1
    assert "bertqa train refuses it because of 1 question" in capsys.readouterr().out
    assert read_examples(world.folder / "copy.json")[3] == read_examples(worse)[3]


def test_check_writes_reports(world: World, bad: Path) -> None:
    page, report, copy = (world.folder / name for name in ("r.HTML", "r.json", "copy.JSON"))
    assert checked(world, bad, "--report", page) == 1
    text = page.read_text(encoding="utf-8")
    assert text.startswith("<!DOCTYPE html>") and "Repairs in the copy" not in text
    assert checked(world, bad, "--repair", copy, "--report", report) == 0
    document = read_json(report)
    assert [a["source"] for a in document["audits"]] == [str(bad), str(copy)]
    assert [a["refused"] for a in document["audits"]] == [2, 0]
    assert [change["row"] for change in document["changes"]] == [1, 2, 2]


@pytest.fixture
def after_log(
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Callable[[int, Callable[[], object]], None]]:
    """Return a function that arranges an action after a training has logged a step.

    Signals have their default handlers, even if the tests run in the background.
    """
    handlers = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    append = RunFolder.append_log

    def arrange(step: int, act: Callable[[], object]) -> None:
        def logged(folder: RunFolder, line: dict[str, Any]) -> None:
            append(folder, line)
            if line["step"] == step:
                act()

        monkeypatch.setattr(RunFolder, "append_log", logged)

    yield arrange
    for number, handler in before.items():
        signal.signal(number, handler)


def interrupt(number: int = signal.SIGINT) -> None:
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_saves_a_checkpoint_and_resumes(
    checkpoint: Path, tmp_path: Path, trained: Any, after_log: Any,
    capsys: pytest.CaptureFixture[str], number: signal.Signals,
) -> None:  # fmt: skip
    flags = ["--model", checkpoint, "--output_dir", tmp_path / "run", *STORY_RUN]
    before = signal.getsignal(number)
    after_log(6, lambda: interrupt(number))
    assert call("train", *flags) == 128 + number
    assert signal.getsignal(number) is before
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith(f"stopped by {number.name} after step 6 of 8") and "--resume" in last
    assert checkpoints_of(tmp_path / "run") == ["step-00000006"]

    assert call("train", *flags, "--resume") == 0
    output = capsys.readouterr().out.splitlines()
    assert "8 steps of 4 windows on cpu in torch.float32, from step 6" in output
    whole, _ = trained
    assert log_of(tmp_path / "run") == log_of(whole)
    last = Path("checkpoints") / "step-00000008" / "model.safetensors"
    assert (tmp_path / "run" / last).read_bytes() == (whole / last).read_bytes()


@pytest.mark.parametrize("program", [["train.py"], ["bertqa", "train"]])
def test_resume_alone_has_the_flags_of_the_first_call(
    checkpoint: Path, tmp_path: Path, trained: Any, after_log: Any,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], program: list[str],
) -> None:  # fmt: skip
    flags = ["--model", checkpoint, "--output_dir", tmp_path / "first", *STORY_RUN]
    monkeypatch.setattr(sys, "argv", [*program, *map(str, flags)])
    after_log(6, interrupt)
    assert call("train", *flags) == 130
    (tmp_path / "first").rename(tmp_path / "moved")
    bare = ["--resume", "--output_dir", tmp_path / "moved"]
    monkeypatch.setattr(sys, "argv", [*program, *map(str, bare)])
    for _ in range(2):  # the second finds it finished
        assert call("train", *bare) == 0
    assert ", from step 6" in capsys.readouterr().out
    assert log_of(tmp_path / "moved") == log_of(trained[0])


@pytest.mark.parametrize("command", [["mine.py", "--steps", "3"], [], ["train.py", 3], "train.py"])
def test_resume_alone_requires_a_run_of_bertqa_train(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], command: object
) -> None:
    (tmp_path / "run.json").write_text(json.dumps({"command": command}))
    assert call("train", "--resume", "--output_dir", tmp_path) == 2
    error = capsys.readouterr().err
    assert f"{tmp_path / 'run.json'} must have the command of a bertqa train" in error


def test_a_second_interrupt_stops_at_once(
    checkpoint: Path, tmp_path: Path, after_log: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    def twice() -> None:
        before = signal.getsignal(signal.SIGINT)
        interrupt()
        for _ in range(500):  # until the first signal is handled
            if signal.getsignal(signal.SIGINT) is not before:
                break
            time.sleep(0.01)
        interrupt()
        time.sleep(5)  # interrupted by the second signal

    after_log(6, twice)
    flags = ["--model", checkpoint, "--output_dir", tmp_path / "run", *STORY_RUN]
    assert call("train", *flags) == 130
    assert capsys.readouterr().err.splitlines()[-1] == "interrupted"
    assert checkpoints_of(tmp_path / "run") == ["step-00000004"]


def test_an_ignored_signal_stays_ignored(world: World, after_log: Any) -> None:
    after_log(1, interrupt)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    assert call("train", *world.train("--max_steps", 2, "--logging_steps", 1)) == 0


def test_a_checkpoint_without_head_can_be_trained(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call("train", *world.train("--model", world.tensors(without_head))) == 0
    out = capsys.readouterr().out
    assert "newly initialized: qa_outputs.bias, qa_outputs.weight" in out
    assert call("infer", *world.ask("--model", world.out)) == 0


# --- flags and files ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        *((given, {"top_k": 3}) for given in (["--top-k", "3"], ["--top_k", "3"], ["--top-k=3"])),
        (["--context-file=a-b_c.txt"], {"context_file": Path("a-b_c.txt")}),
        (["--context", "well-known_word"], {"context": "well-known_word"}),
        (["--question=--what-is it"], {"question": "--what-is it"}),
        (["--context", "--dry-run is a flag."], {"context": "--dry-run is a flag."}),
        (["--context", "--top-k is a flag."], {"context": "--top-k is a flag."}),
        (["--context=--top-k"], {"context": "--top-k"}),
        (["--null_score_diff_threshold=-1e-3"], {"null_score_diff_threshold": -1e-3}),
        (["--version-2-with-negative"], {"version_2_with_negative": True}),
        (["--null-score-diff-threshold", "-1e-3"], {"null_score_diff_threshold": -0.001}),
        (["--null_score_diff_threshold", "-inf"], {"null_score_diff_threshold": -math.inf}),
        (["--max-seq_length", "12"], {"max_seq_length": 12}),
    ],
)
def test_flags_can_be_written_with_hyphens_or_underscores(
    arguments: list[str], expected: dict[str, object]
) -> None:
    flags = vars(infer.parse_flags(arguments))
    untouched = vars(infer.parse_flags([]))
    assert flags == untouched | expected


def test_a_byte_order_mark_counts_in_byte_offsets(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_bytes(b"\xef\xbb\xbfAda built it.")
    given = ["--question", "Who?", "--context_file", str(tmp_path / "text.txt"), "--json"]
    assert read_context(infer.parse_flags(given)) == "Ada built it."
    assert read_context(infer.parse_flags([*given, "--all_offsets"])) == "\ufeffAda built it."
