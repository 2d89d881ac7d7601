"""train.py and infer.py as a user meets them: what they write, ask, show and refuse."""

import gzip
import json
import math
import os
import re
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from safetensors.torch import load_file, save_file

from bertqa.commands import check, infer, infer_file, infer_questions, train
from bertqa.commands.flags import Parser, run_script
from bertqa.commands.question_flags import read_context
from bertqa.data.readers import read_examples
from bertqa.data.squad import split_by_article
from bertqa.errors import UserError
from bertqa.training.run_folder import RunFolder
from tests.helpers import STORIES, STORIES_V2, write_checkpoint

ROOT = Path(__file__).parents[2]
SCRIPTS = {"train": train, "infer": infer}
COMMANDS = SCRIPTS | {"check": check}

CONTEXT = "Ada built the quay in 1642. Ben swept it."
ROW = {
    "id": "first",
    "question": "Who built it?",
    "context": CONTEXT,
    "answers": {"text": ["Ada"], "answer_start": [0]},
}
WINDOWS = ["--max_seq_length", "64", "--doc_stride", "16"]
HERE = ["--device", "cpu", "--precision", "fp32"]


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("scripts") / "tiny")


@pytest.fixture(scope="module", autouse=True)
def nothing_outside(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Caches go into a temporary folder, nothing is fetched, and one thread does the work."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
        patch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        for variable in ("WORLD_SIZE", "RANK", "LOCAL_RANK"):
            patch.delenv(variable, raising=False)
        yield
    torch.set_num_threads(threads)


def call(script: str, *arguments: object) -> int:
    """Run a command in this process; its exit code."""
    module = COMMANDS[script]
    try:
        return run_script(module.main, module.parse_flags([str(a) for a in arguments]))
    except SystemExit as end:  # as argparse ends for a flag that it does not know
        return int(end.code or 0)


def environment(home: Path) -> dict[str, str]:
    return os.environ | {
        "HF_HOME": str(home / "hf"),
        "HF_DATASETS_CACHE": str(home / "datasets"),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
    }


def run(script: str, home: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run a script as its own process, without a terminal."""
    return subprocess.run(
        [sys.executable, f"{script}.py", *map(str, arguments)],
        cwd=ROOT, env=environment(home), stdin=subprocess.DEVNULL, capture_output=True,
        encoding="utf-8", check=False,
    )  # fmt: skip


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def without_speed(log: Path) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    clock = {"tokens_per_second", "seconds"}
    return [{k: v for k, v in line.items() if k not in clock} for line in lines]


# --- from training to answers --------------------------------------------------------------------

# fmt: off
STORY_WINDOWS = ["--max_seq_length", 96, "--doc_stride", 16, "--max_query_length", 24]
STORY_RUN = [
    "--train_file", STORIES, "--validation_file", STORIES, "--max_train_samples", 5,
    "--max_eval_samples", 4, *STORY_WINDOWS, *HERE, "--max_steps", 8, "--save_steps", 3,
    "--eval_steps", 4, "--logging_steps", 2, "--learning_rate", 5e-3,
]
# fmt: on


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the processes of this file keep their caches."""
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def trained(
    tmp_path_factory: pytest.TempPathFactory, checkpoint: Path, home: Path
) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """The folder of a run of train.py, and what the process said."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    return folder, run("train", home, "--model", checkpoint, "--output_dir", folder, *STORY_RUN)


def test_train_says_what_it_does(trained: Any, checkpoint: Path, home: Path) -> None:
    folder, result = trained
    assert result.returncode == 0, result.stderr
    assert "Traceback" not in result.stderr
    lines = result.stdout.splitlines()
    assert lines[0] == f"{checkpoint}/model.safetensors: 55 tensors loaded"
    assert "training: 45 windows of 5 examples, 5 answers labelled exactly" in lines
    assert any(line.startswith("validation: 36 windows of 4 examples,") for line in lines)
    assert "8 steps of 16 windows on cpu in torch.float32, from step 0" in lines
    assert [line.split()[1] for line in lines[-3:-1]] == ["4", "8"]  # the table of evaluations
    assert lines[-1] == f"saved in {folder}; ask it: bertqa infer --model {folder}"
    assert sorted(path.name for path in folder.iterdir()) == [
        "checkpoints", "config.json", "evaluations", "labels.json", "log.jsonl", "metrics.json",
        "model.safetensors", "nbest_predictions.json", "predictions.json", "report.html",
        "run.json", "tokenizer.json", "tokenizer_config.json",
    ]  # fmt: skip


def test_infer_gives_the_answers_that_training_kept(
    trained: Any, tmp_path: Path, home: Path
) -> None:
    """The same model, file and windows: the same answers and figures, in another process."""
    folder, _ = trained
    rows = {"data": [vars_of(example) for example in read_examples(STORIES)[:4]]}
    (tmp_path / "four.json").write_text(json.dumps(rows), encoding="utf-8")
    out = tmp_path / "made" / "here"
    result = run(
        "infer", home, "--model", folder, "--input", tmp_path / "four.json", "--output-dir", out,
        *STORY_WINDOWS, *HERE,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    files = ["nbest_predictions.json", "predictions.json", "metrics.json"]
    assert result.stderr == f"wrote {', '.join(str(out / name) for name in files)}\n"
    assert json.loads(result.stdout) == read_json(out / "metrics.json")
    assert sorted(path.name for path in out.iterdir()) == sorted(files)
    assert read_json(out / "predictions.json") == read_json(folder / "predictions.json")
    metrics = read_json(out / "metrics.json")
    assert metrics == read_json(folder / "metrics.json")
    assert set(metrics) == {"exact_match", "f1", "total"}
    best = max(line["f1"] for line in without_speed(folder / "log.jsonl") if "f1" in line)
    assert metrics["f1"] == best


def vars_of(example: Any) -> dict[str, Any]:
    answers = {"text": list(example.answers), "answer_start": list(example.answer_starts)}
    return {
        "id": example.id,
        "question": example.question,
        "context": example.context,
        "answers": answers,
    }


def test_the_n_best_file(trained: Any) -> None:
    folder, _ = trained
    examples = {example.id: example for example in read_examples(STORIES)[:4]}
    predictions = read_json(folder / "predictions.json")
    n_best = read_json(folder / "nbest_predictions.json")
    assert list(predictions) == list(n_best) == list(examples)
    for id_, entries in n_best.items():
        assert len(entries) == 20
        for entry in entries:
            keys = ["text", "probability", "start_logit", "end_logit", "start", "end"]
            assert list(entry) == keys
            assert entry["text"] == examples[id_].context[entry["start"] : entry["end"]] != ""
            assert 0 < entry["probability"] < 1
        scores = [entry["start_logit"] + entry["end_logit"] for entry in entries]
        assert scores == sorted(scores, reverse=True)
        assert entries[0]["text"] == predictions[id_]


def test_v2_of_the_two_scripts(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    code = call(
        "train", "--model", checkpoint, "--train_file", STORIES_V2, "--validation_file",
        STORIES_V2, "--output_dir", folder, "--version-2-with-negative", *STORY_WINDOWS, *HERE,
        "--max_train_samples", 8, "--max_eval_samples", 8, "--max_steps", 2,
    )  # fmt: skip
    assert code == 0
    assert "unanswerable, labelled [CLS]: " in capsys.readouterr().out
    assert "HasAns_f1" in read_json(folder / "metrics.json")

    def answered(name: str, *more: object) -> dict[str, Any]:
        code = call(
            "infer", "--model", folder, "--input", STORIES_V2, "--output_dir", tmp_path / name,
            "--version_2_with_negative", "--json", "--max_seq_length", 384, *HERE, *more,
        )  # fmt: skip
        assert code == 0
        assert json.loads(capsys.readouterr().out) == read_json(tmp_path / name / "metrics.json")
        return {file.stem: read_json(file) for file in (tmp_path / name).iterdir()}

    files = answered("plain")
    assert set(files) == {"predictions", "nbest_predictions", "null_odds", "metrics"}
    examples = read_examples(STORIES_V2)
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

    # "" is everybody's answer below all odds, nobody's above; halfway it is that of half of them.
    middle = sorted(odds.values())[len(ids) // 2]
    for name, threshold in (("low", -1e9), ("half", middle), ("high", 1e9)):
        files = answered(name, "--null_score_diff_threshold", threshold)
        silent = {id_ for id_, text in files["predictions"].items() if text == ""}
        assert silent == {id_ for id_ in ids if odds[id_] > threshold}
        assert len(silent) == {"low": len(ids), "half": len(ids) // 2 - 1, "high": 0}[name]
        assert files["null_odds"] == odds
        assert files["metrics"]["best_f1"] == metrics["best_f1"]


def test_a_file_without_gold_is_answered_without_figures(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "q.csv").write_text(f'question,context\nWho?,"{CONTEXT}"\nWhat?,"{CONTEXT}"\n')
    flags = ["--model", checkpoint, "--input", tmp_path / "q.csv", "--output_dir", tmp_path / "o"]
    assert call("infer", *flags, *WINDOWS, *HERE) == 0
    assert capsys.readouterr().out == ""
    files = [path.name for path in (tmp_path / "o").iterdir()]
    assert sorted(files) == ["nbest_predictions.json", "predictions.json"]
    assert list(read_json(tmp_path / "o" / "predictions.json")) == ["0", "1"]


def test_predictions_are_replaced_only_if_that_is_said(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "q.json").write_text(json.dumps({"data": [ROW]}))
    (tmp_path / "o").mkdir()
    (tmp_path / "o" / "predictions.json").write_text("{}")
    flags = ["--model", checkpoint, "--input", tmp_path / "q.json", "--output_dir", tmp_path / "o"]
    assert call("infer", *flags, *WINDOWS, *HERE) == 2
    assert contents(tmp_path / "o") == {"predictions.json": b"{}"}
    assert call("infer", *flags, *WINDOWS, *HERE, "--overwrite-output-dir") == 0
    assert list(read_json(tmp_path / "o" / "predictions.json")) == ["first"]


# --- one question --------------------------------------------------------------------------------


def asked(capsys: pytest.CaptureFixture[str], checkpoint: Path, *flags: object) -> str:
    """What infer.py prints."""
    assert call("infer", "--model", checkpoint, *WINDOWS, *HERE, *flags) == 0
    out, err = capsys.readouterr()
    assert err == ""
    return out


LINE = re.compile(r" *(\d\.\d{4}) +(\d+)-(\d+)  (.+)")


def test_one_question(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--question", "Who built it?"]
    out = asked(capsys, checkpoint, *flags, "--context", CONTEXT, "--json")
    answer = json.loads(out)
    assert list(answer) == ["score", "start", "end", "answer"]
    assert answer["answer"] == CONTEXT[answer["start"] : answer["end"]] != ""

    line = LINE.fullmatch(asked(capsys, checkpoint, *flags, "--context", CONTEXT).rstrip("\n"))
    assert line
    score, start, end, text = line.groups()
    assert (int(start), int(end), text) == (answer["start"], answer["end"], answer["answer"])
    assert float(score) == pytest.approx(answer["score"], abs=1e-4)

    flags += ["--context", CONTEXT]
    three = json.loads(asked(capsys, checkpoint, *flags, "--json", "--top-k", 3))
    assert len(three) == 3
    assert three[0] == answer
    assert three[0]["score"] >= three[1]["score"] >= three[2]["score"]
    lines = asked(capsys, checkpoint, *flags, "--top_k=3").splitlines()
    assert [LINE.fullmatch(line)[4] for line in lines] == [entry["answer"] for entry in three]


def test_the_context_file_is_taken_as_it_is(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Offsets count its line ends, blanks and all, but not the mark that some editors put first."""
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
    # On a terminal an answer is one line all the same.
    assert len(asked(capsys, checkpoint, *flags[:-3], "--top_k", 20).splitlines()) == 20


def test_no_answer_is_said(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--question", "Who?", "--context", CONTEXT, "--version_2_with_negative"]
    out = asked(capsys, checkpoint, *flags, "--null_score_diff_threshold=-1e9")
    assert LINE.fullmatch(out.rstrip("\n")).groups()[1:] == ("0", "0", "(no answer)")
    out = asked(capsys, checkpoint, *flags, "--null_score_diff_threshold=-1e9", "--json")
    answer = json.loads(out)
    assert (answer["answer"], answer["start"], answer["end"]) == ("", 0, 0)


def test_json_lines_are_answered_line_by_line(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A bad line, then the same with --skip_bad and --resume."""
    lines = [json.dumps(ROW | {"id": name}) for name in ("a", "b")]
    (tmp_path / "in.jsonl").write_text(f"{lines[0]}\n{{}}\n{lines[1]}\n")
    flags = ["--model", checkpoint, *WINDOWS, *HERE, "--input", tmp_path / "in.jsonl"]
    flags += ["--output_dir", tmp_path / "out", "--top_k", 2, "--all_offsets"]
    assert call("infer", *flags) == 2
    assert "in.jsonl, line 2 " in capsys.readouterr().err
    assert call("infer", *flags, "--resume", "--skip_bad") == 0
    printed = capsys.readouterr()
    assert re.search(r"\b1 lines answered .*, 1 rejected$", printed.err, re.MULTILINE)
    metrics = json.loads(printed.out)
    assert read_json(tmp_path / "out" / "metrics.json") == metrics and metrics["total"] == 2
    text = (tmp_path / "out" / "predictions.jsonl").read_text()
    first, second = map(json.loads, text.splitlines())
    assert (first["id"], second["id"]) == ("a", "b")
    assert first["answer"] == second["answer"] == CONTEXT[first["start_byte"] : first["end_byte"]]
    assert len(first["answers"]) == 2
    (tmp_path / "in.jsonl").write_text(json.dumps({"question": "Who?", "context": CONTEXT}))
    assert call("infer", *flags, "--overwrite_output_dir") == 0
    assert not (tmp_path / "out" / "metrics.json").exists()  # those of other questions
    capsys.readouterr()
    asked_alone = asked(
        capsys, checkpoint, "--question", ROW["question"], "--context", CONTEXT, "--top_k", 2,
        "--json", "--all_offsets",
    )  # fmt: skip
    expected = [{**a, "score": pytest.approx(a["score"], rel=1e-4)} for a in first["answers"]]
    assert json.loads(asked_alone) == expected


# --- demo, terminal ------------------------------------------------------------------------------


def test_without_arguments_and_terminal_it_shows_the_demo(
    checkpoint: Path, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = run("infer", home, "--model", checkpoint, *HERE)
    assert (result.returncode, result.stderr) == (0, "")
    assert call("infer", "--model", checkpoint, *HERE, "--demo") == 0
    assert capsys.readouterr().out == result.stdout

    lines = result.stdout.splitlines()
    assert infer_questions.DEMO_CONTEXT in lines and infer_questions.DEMO_HISTORY in lines
    for question in infer_questions.DEMO_QUESTIONS:
        place = lines.index(question)
        start, end, text = LINE.fullmatch(lines[place + 1]).groups()[1:]
        assert infer_questions.DEMO_CONTEXT[int(start) : int(end)] == text
        assert not LINE.fullmatch(lines[place + 2])
    n_best = lines[lines.index(infer_questions.DEMO_HISTORY_QUESTION) + 1 :]
    assert len(n_best) == 5
    scores = [float(LINE.fullmatch(line)[1]) for line in n_best]
    assert scores == sorted(scores, reverse=True)


@pytest.mark.skipif(sys.platform == "win32", reason="no pseudo-terminals there")
def test_in_a_terminal_it_asks(
    checkpoint: Path, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """After the demo: a context of two lines, two questions, end of input."""
    import pty  # there is none on Windows

    ours, theirs = pty.openpty()
    command = [sys.executable, "infer.py", "--model", str(checkpoint), *HERE]
    process = subprocess.Popen(
        command, cwd=ROOT, env=environment(home) | {"TERM": "dumb"}, stdin=theirs, stdout=theirs,
        stderr=theirs,
    )  # fmt: skip
    os.close(theirs)
    said = ""
    questions = ["Who built it?", "Who swept it?"]
    try:
        for prompt, line in (
            ("text> ", CONTEXT[:14] + "\n"),
            ("text> ", CONTEXT[14:] + "\n"),
            ("text> ", "\n"),
            ("question> ", questions[0] + "\n"),
            ("question> ", "  \n"),  # nothing asked
            ("question> ", questions[1] + "\n"),
            ("question> ", "\x04"),
        ):
            said += heard(ours, until=prompt)
            os.write(ours, line.encode())
        said += heard(ours)
        assert process.wait(300) == 0
    finally:
        process.kill()
        os.close(ours)
    demo, _, own = said.partition("Paste a text")
    assert infer_questions.DEMO_HISTORY_QUESTION in demo
    answers = [line for line in own.splitlines() if LINE.fullmatch(line)]
    context = CONTEXT[:14] + "\n" + CONTEXT[14:]
    expected = "".join(
        asked(capsys, checkpoint, "--question", question, "--context", context)
        for question in questions
    )
    assert answers == expected.splitlines()


def heard(terminal: int, until: str | None = None) -> str:
    """What a process writes to its terminal, up to a prompt or to its end."""
    text, deadline = b"", time.monotonic() + 300
    while until is None or not text.endswith(until.encode()):
        left = deadline - time.monotonic()
        assert left > 0 and select.select([terminal], [], [], left)[0], text
        try:
            part = os.read(terminal, 4096)
        except OSError:  # how Linux says that the other end is closed
            part = b""
        if not part:
            assert until is None, text
            break
        text += part
    return text.decode()


# --- train.py: show, cache, resume ---------------------------------------------------------------


def test_a_part_of_the_training_articles_is_held_out(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--model", checkpoint, "--train_file", STORIES, "--output_dir", tmp_path / "o"]
    few = ["--max_steps", 1, "--max_train_samples", 3, "--max_eval_samples", 2]
    split = ["--validation_split_percentage", 20]
    assert call("train", *flags, *split, *few, *STORY_WINDOWS, *HERE) == 0
    train, held = split_by_article(read_examples(STORIES), 20)
    answered = json.loads((tmp_path / "o" / "predictions.json").read_text())
    assert list(answered) == [example.id for example in held[:2]]
    said = capsys.readouterr().out
    assert f"windows of {len(train[:3])} " in said and f"windows of {len(held[:2])} " in said


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
        assert f"question  {example.question}\ncontext   {example.context}\n" in block
        answers = re.findall(r"^answer +(.+) at (\d+)$", block, re.MULTILINE)
        gold = zip(example.answers, example.answer_starts, strict=True)
        assert answers == [(repr(text), str(start)) for text, start in gold]
        assert "\nlabel     exact\n" in block
        windows = re.findall(
            r"^window +(\d+) of (\d+): (\d+) tokens, label (\d+)\.\.(\d+) = (.+)\n +(.+)$",
            block, re.MULTILINE,
        )  # fmt: skip
        total = len(windows)
        assert [(int(n), int(of)) for n, of, *_ in windows] == [
            (i, total) for i in range(1, total + 1)
        ]
        labels = [label for *_, label, _ in windows]
        assert set(labels) <= {repr(""), repr(example.answers[0])}
        assert repr(example.answers[0]) in labels
        for _, _, length, start, end, label, tokens in windows:
            pieces = tokens.split(" ")
            assert len(pieces) == int(length) <= 96
            assert pieces[0] == "[CLS]" and pieces[-1] == "[SEP]"
            inside = pieces[int(start) : int(end) + 1]
            letters = "".join(piece.removeprefix("##") for piece in inside)
            word = "" if label == "''" else example.answers[0].lower().replace(" ", "")
            assert letters == (word or "[CLS]")
    assert shown() == out  # the same seed
    assert shown("--seed", 43) != out
    assert not (tmp_path / "o").exists()


FAULTY = [
    ROW,
    ROW | {"id": "moved", "question": "When?", "answers": {"text": ["1642"], "answer_start": [3]}},
    ROW | {"question": "Who swept it?", "answers": {"text": ["Ben "], "answer_start": [28]}},
]


def checked(checkpoint: Path, path: Path, *more: object) -> int:
    flags = ["--model", checkpoint, "--train_file", path, "--output_dir", path.parent / "out"]
    return call("train", *flags, *WINDOWS, "--check", *more)


def test_a_check_says_what_is_wrong_and_does_nothing_else(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    world = World(tmp_path, checkpoint)
    good, bad = world.rows("good.json", ROW), world.rows("bad.json", *FAULTY)
    before = contents(tmp_path)
    assert checked(checkpoint, good) == 0
    said, err = capsys.readouterr()
    assert f"{good}: 1 questions" in said and "nothing was found" in said and err == ""
    assert checked(checkpoint, bad) == 1
    assert f"{bad}: 3 questions" in (said := capsys.readouterr().out)
    assert {"duplicate id: 1", "misplaced: 1", "blanks: 1"} <= set(said.splitlines())
    assert checked(checkpoint, good, "--validation_file", bad) == 1
    said = capsys.readouterr().out
    assert f"{good}: 1 questions" in said and f"{bad}: 3 questions" in said
    assert contents(tmp_path) == before and not (tmp_path / "out").exists()


def test_the_command_checks_as_train_does(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = World(tmp_path, checkpoint).rows("bad.json", *FAULTY)
    flags = ["--model", checkpoint, "--train_file", bad, *WINDOWS]
    assert checked(checkpoint, bad, "--report", tmp_path / "of_train.json") == 1
    said = capsys.readouterr().out
    assert call("check", *flags, "--report", tmp_path / "of_check.json") == 1
    assert capsys.readouterr().out == said.replace("of_train", "of_check")
    assert (tmp_path / "of_train.json").read_bytes() == (tmp_path / "of_check.json").read_bytes()
    assert call("check", *flags, "--repair", tmp_path / "copy.json") == 0
    assert len(read_examples(tmp_path / "copy.json")) == 3
    for wrong, words in (
        (["--validation_split_percentage", 99], "give 1 to 50 per cent"),
        (["--repair", tmp_path / "copy.json"], "copy.json is there already"),
        (["--doc_stride", -1], "--doc_stride -1 is out of range"),
    ):
        capsys.readouterr()
        assert call("check", *flags, *wrong) == 2
        assert words in capsys.readouterr().err


def test_a_check_needs_no_weights_and_tells_v2_from_v1(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "tokenizer"
    folder.mkdir()
    for name in ("vocab.txt", "tokenizer_config.json"):
        shutil.copy(checkpoint / name, folder)
    world = World(tmp_path, checkpoint)
    path = world.rows("v2.json", ROW, ROW | {"id": "none", "question": "Why?", "answers": []})
    assert checked(folder, path) == 1
    assert "unanswerable: 1" in capsys.readouterr().out.splitlines()
    assert checked(folder, path, "--version_2_with_negative") == 0
    assert "nothing was found" in capsys.readouterr().out


@pytest.mark.parametrize("ending", [".json", ".jsonl"])
def test_a_mended_copy_can_be_trained_on(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], ending: str
) -> None:
    world = World(tmp_path, checkpoint)
    bad, copy = world.rows("bad.json", *FAULTY), tmp_path / "new" / f"repaired{ending}"
    before = bad.read_bytes()
    assert call("train", *world.train("--train_file", bad)) == 2
    assert "bertqa check finds all faults" in capsys.readouterr().err
    assert checked(checkpoint, bad, "--repair", copy) == 0  # the copy's code
    said = capsys.readouterr().out
    assert "repaired: 3\n  row 1, moved: the answer '1642' at 3 is now '1642' at 22" in said
    assert f"{copy}: 3 questions" in said and said.endswith(f"wrote {copy}\n")
    assert bad.read_bytes() == before
    rows = read_examples(copy)
    assert [(e.id, e.answers, e.answer_starts) for e in rows] == [
        ("first", ("Ada",), (0,)), ("moved", ("1642",), (22,)), ("first-2", ("Ben",), (28,)),
    ]  # fmt: skip
    assert call("train", *world.train("--train_file", copy)) == 0
    assert re.search(r"\b3 examples, 3 answers labelled exactly$", capsys.readouterr().out, re.M)


def test_what_cannot_be_mended_is_in_the_copy_too(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lost = ROW | {
        "id": "lost",
        "question": "Where?",
        "answers": {"text": ["Rye"], "answer_start": [0]},
    }
    bad = World(tmp_path, checkpoint).rows("bad.json", *FAULTY, lost)
    assert checked(checkpoint, bad, "--repair", tmp_path / "copy.json") == 1
    assert "bertqa train refuses it, for 1 of its questions" in capsys.readouterr().out
    assert read_examples(tmp_path / "copy.json")[3] == read_examples(bad)[3]


def test_the_reports_of_a_check(checkpoint: Path, tmp_path: Path) -> None:
    bad = World(tmp_path, checkpoint).rows("bad.json", *FAULTY)
    assert checked(checkpoint, bad, "--report", tmp_path / "r.html") == 1
    page = (tmp_path / "r.html").read_text(encoding="utf-8")
    assert page.startswith("<!DOCTYPE html>") and "What was repaired" not in page
    copy = ["--repair", tmp_path / "copy.json"]
    assert checked(checkpoint, bad, *copy, "--report", tmp_path / "r.json") == 0
    document = read_json(tmp_path / "r.json")
    assert [a["source"] for a in document["audits"]] == [str(bad), str(tmp_path / "copy.json")]
    assert [a["refused"] for a in document["audits"]] == [2, 0]
    assert [change["row"] for change in document["changes"]] == [1, 2, 2]


def test_of_several_processes_one_checks(
    checkpoint: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("RANK", "1")
    bad = World(tmp_path, checkpoint).rows("bad.json", *FAULTY)
    assert checked(checkpoint, bad) == 0
    assert capsys.readouterr().out == ""


@pytest.fixture
def heeding_signals() -> Iterator[None]:
    """As in a terminal, also where the suite itself runs in the background of a shell."""
    heeded = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}
    before = {number: signal.signal(number, handler) for number, handler in heeded.items()}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("heeding_signals")
@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["SIGINT", "SIGTERM"]
)
def test_an_interrupted_run_saves_itself_and_goes_on_in_another_process(
    checkpoint: Path,
    tmp_path: Path,
    trained: Any,
    home: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    number: int,
    code: int,
) -> None:
    append = RunFolder.append_log

    def interrupt(folder: RunFolder, line: dict[str, Any]) -> None:
        append(folder, line)
        if line["step"] == 6:
            os.kill(os.getpid(), number)

    flags = ["--model", checkpoint, "--output_dir", tmp_path / "run", *STORY_RUN]
    before = signal.getsignal(number)
    assert before is not signal.SIG_IGN
    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "append_log", interrupt)
        assert call("train", *flags) == code
    assert signal.getsignal(number) is before
    said = capsys.readouterr().err.splitlines()[-1]
    name = signal.Signals(number).name
    assert said == (
        f"stopped by {name} after step 6 of 8, which is saved: the same command with --resume "
        "goes on"
    )
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["step-00000006"]

    result = run("train", home, *flags, "--resume")
    assert result.returncode == 0, result.stderr
    assert (
        "8 steps of 16 windows on cpu in torch.float32, from step 6" in result.stdout.splitlines()
    )
    whole, _ = trained
    assert without_speed(tmp_path / "run" / "log.jsonl") == without_speed(whole / "log.jsonl")
    ours = load_file(tmp_path / "run" / "checkpoints" / "step-00000008" / "model.safetensors")
    theirs = load_file(whole / "checkpoints" / "step-00000008" / "model.safetensors")
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.usefixtures("heeding_signals")
def test_whoever_interrupts_twice_does_not_wait(
    checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    append = RunFolder.append_log

    def interrupt(folder: RunFolder, line: dict[str, Any]) -> None:
        append(folder, line)
        if line["step"] == 6:
            before = signal.getsignal(signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)
            for _ in range(500):  # until it is noted
                if signal.getsignal(signal.SIGINT) is not before:
                    break
                time.sleep(0.01)
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(5)  # whom the second one lets wait has not noticed it

    monkeypatch.setattr(RunFolder, "append_log", interrupt)
    flags = ["--model", checkpoint, "--output_dir", tmp_path / "run", *STORY_RUN]
    assert call("train", *flags) == 130
    assert capsys.readouterr().err.splitlines()[-1] == "interrupted"
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["step-00000004"]


@pytest.mark.usefixtures("heeding_signals")
def test_a_signal_that_was_ignored_from_the_start_stays_so(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    append = RunFolder.append_log

    def interrupt(folder: RunFolder, line: dict[str, Any]) -> None:
        append(folder, line)
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(RunFolder, "append_log", interrupt)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    flags = ["--model", checkpoint, "--output_dir", tmp_path / "run", *STORY_RUN]
    assert call("train", *flags) == 0


def test_a_headless_checkpoint_can_be_trained(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = World(tmp_path, checkpoint).tensors(without_head)
    world = World(tmp_path, checkpoint)
    assert call("train", *world.train("--model", folder)) == 0
    out = capsys.readouterr().out
    assert "newly initialised: qa_outputs.bias, qa_outputs.weight" in out
    assert call("infer", *world.ask("--model", world.out)) == 0


# --- bad input -----------------------------------------------------------------------------------


@dataclass
class World:
    """Where a mistake is made: a folder to write into, a good checkpoint, a finished run."""

    folder: Path
    good: Path
    finished: Path = Path()

    @property
    def out(self) -> Path:
        return self.folder / "out"

    def write(self, name: str, content: object) -> Path:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            text = content if isinstance(content, str) else json.dumps(content)
            path.write_text(text, encoding="utf-8")
        return path

    def rows(self, name: str, *rows: dict[str, Any]) -> Path:
        return self.write(name, {"data": list(rows)})

    def row(self, **changes: object) -> Path:
        return self.rows("rows.json", ROW | changes)

    def lines(self, *more: str) -> Path:
        return self.write("rows.jsonl", "\n".join([json.dumps(ROW), *more]))

    def checkpoint(self, name: str | None = None, content: object = None) -> Path:
        """A copy of the good checkpoint with one file replaced, or left out if None."""
        folder = self.folder / "broken"
        shutil.copytree(self.good, folder)
        if name and content is None:
            (folder / name).unlink()
        elif name:
            self.write(f"broken/{name}", content)
        return folder

    def config(self, **changes: object) -> Path:
        return self.checkpoint("config.json", read_json(self.good / "config.json") | changes)

    def tensors(self, change: Callable[[dict[str, torch.Tensor]], object]) -> Path:
        folder = self.checkpoint()
        rewrite(folder / "model.safetensors", change)
        return folder

    def pickle(self) -> Path:
        folder = self.checkpoint("pytorch_model.bin", "x")
        (folder / "model.safetensors").unlink()
        return folder

    def resumed(self, *arguments: object, change: Callable[[Path], object] | None = None) -> Any:
        """Flags that go on with a copy of the finished run, something in its folder changed."""
        shutil.copytree(self.finished, self.out)
        if change:
            change(self.out)
        return self.train("--resume", *arguments)

    def train(self, *arguments: object) -> list[object]:
        """Flags of a run of one step that works, and then these."""
        # fmt: off
        return [
            "--model", self.good, "--train_file", self.rows("good.json", ROW),
            "--output_dir", self.out, *WINDOWS, "--max_steps", 1, *HERE, *arguments,
        ]
        # fmt: on

    def ask(self, *arguments: object) -> list[object]:
        """Flags of a question that is answered, and then these."""
        question = ["--question", "Who?", "--context", CONTEXT]
        return ["--model", self.good, *question, *WINDOWS, *HERE, *arguments]

    def both(self, script: str, *arguments: object) -> list[object]:
        return self.train(*arguments) if script == "train" else self.ask(*arguments)

    def file(self, path: Path, *arguments: object) -> list[object]:
        """Flags that answer all questions of a file, and then these."""
        place = ["--input", path, "--output_dir", self.out]
        return ["--model", self.good, *place, *WINDOWS, *HERE, *arguments]


def rewrite(path: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


def without_head(tensors: dict[str, torch.Tensor]) -> None:
    del tensors["qa_outputs.weight"], tensors["qa_outputs.bias"]


LONG = "who " * 60

# Each: a name, how the file is made, and the words that must be in the sentence.
DATA: list[tuple[str, Callable[[World], Path], list[str]]] = [
    ("missing", lambda w: w.folder / "no.json", ["no.json does not exist"]),
    ("a folder", lambda w: w.folder, ["is a directory"]),
    ("empty", lambda w: w.write("e.json", ""), ["e.json is empty"]),
    ("of another kind", lambda w: w.write("d.docx", "x"), ["d.docx", "'.docx'", ".json"]),
    ("malformed", lambda w: w.write("m.json", '{"data": [\n{"id" 1}]}'), ["m.json, line 2"]),
    ("no data set", lambda w: w.write("n.json", {"rows": []}), ["n.json", "'rows'"]),
    ("not UTF-8", lambda w: w.write("u.jsonl", b'{"a": "\xff"}\n'), ["u.jsonl, line 1", "0xff"]),
    ("cut", lambda w: w.write("g.json.gz", gzip.compress(b"x" * 999)[:-9]), ["g.json.gz", "gzip"]),
    ("no parquet", lambda w: w.write("p.parquet", "x" * 99), ["p.parquet", "parquet"]),
    ("without rows", lambda w: w.rows("r.json"), ["r.json holds no examples"]),
    (
        "with other columns",
        lambda w: w.write("c.csv", "id,query,text\n1,a,b\n"),
        ["c.csv, line 1", "question and context", "'query'"],
    ),
    (
        "with a short row",
        lambda w: w.write("s.csv", "question,context\nonly one\n"),
        ["s.csv, line 2", "'only one'"],
    ),
    (
        "with a row that lacks its context",
        lambda w: w.write("l.jsonl", '{"question": "Who?"}\n'),
        ["l.jsonl, line 1", "context"],
    ),
    ("with a number to ask", lambda w: w.row(question=7), ["rows.json", "question is 7"]),
    ("with one id twice", lambda w: w.rows("i.json", ROW, ROW), ["i.json", "'first'", "2 times"]),
    ("with a blank question", lambda w: w.row(question=" \n"), ["rows.json", "'first'", "blank"]),
    (
        "with an empty context",
        lambda w: w.rows("k.json", ROW, ROW | {"id": "second", "context": "", "answers": []}),
        ["k.json", "'second'", "blank context"],
    ),
    (
        "of v2.0 without its flag",
        lambda w: w.row(answers=[]),
        ["rows.json", "1 questions without an answer", "--version_2_with_negative"],
    ),
    (
        "with a long question",
        lambda w: w.rows("t.json", ROW, ROW | {"id": "long", "question": LONG}),
        ["'long'", "60 tokens", "--max_seq_length 64", "--doc_stride 16", "--max_query_length"],
    ),
]
# Where the answers are needed.
LABELLED_DATA: list[tuple[str, Callable[[World], Path], list[str]]] = [
    (
        "with an answer that is not there",
        lambda w: w.row(answers={"text": ["Ada"], "answer_start": [3]}),
        ["rows.json", "'first'", "'Ada'", "answer_start 3"],
    ),
    (
        "with an answer before the text",
        lambda w: w.row(answers={"text": ["Ada"], "answer_start": [-41]}),
        ["rows.json", "'first'", "'Ada'", "answer_start -41"],
    ),
    (
        "with answers and starts that do not match",
        lambda w: w.row(answers={"text": ["Ada"], "answer_start": [0, 1]}),
        ["rows.json", "'first'", "1 and 2"],
    ),
    (
        "with a blank answer",
        lambda w: w.row(answers={"text": [" "], "answer_start": [3]}),
        ["rows.json", "'first'", "blank answer"],
    ),
    ("without answers", lambda w: w.row(answers=None), ["rows.json", "'first'", "no gold"]),
]

HUGE = 10**20
BOTH_FLAGS: list[tuple[list[object], list[str]]] = [
    (["--doc_stride", 60], ["--max_seq_length 64", "--doc_stride 60"]),
    (["--doc_stride", HUGE], ["--doc_stride", str(HUGE)]),
    (["--doc_stride", -1], ["--doc_stride -1"]),
    (["--max_seq_length", 3], ["--max_seq_length 3"]),
    (["--max_seq_length", 0], ["--max_seq_length 0"]),
    (["--max_seq_length", -5], ["--max_seq_length -5"]),
    (["--max_seq_length", 385], ["--max_seq_length 385", "384 positions"]),
    (["--max_seq_length", HUGE], ["--max_seq_length", str(HUGE)]),
    (["--max_seq_length", "long"], ["--max_seq_length", "'long'"]),
    (["--max_seq_length", 64.5], ["--max_seq_length", "'64.5'"]),
    (["--max_query_length", 0], ["--max_query_length 0"]),
    (["--n_best_size", 0], ["--n_best_size 0"]),
    (["--n_best_size"], ["--n_best_size", "expected one argument"]),
    (["--max_answer_length", -1], ["--max_answer_length -1"]),
    (["--max_answer_length", HUGE], ["--max_answer_length", str(HUGE)]),
    (["--null_score_diff_threshold", 1], ["--null_score_diff_threshold 1.0", "--version_2"]),
    (
        ["--version_2_with_negative", "--null_score_diff_threshold", "nan"],
        ["--null_score_diff_threshold nan"],
    ),
    (["--doc-stride", "x"], ["--doc_stride", "'x'"]),
    (["--decoder", "beam"], ["--decoder", "'beam'", "exact"]),
    (["--precision", "fp8"], ["--precision", "'fp8'", "bf16"]),
    (["--precision", "fp16"], ["--precision fp16"]),
    (["--device", "gpu"], ["--device gpu"]),
    (["--device", "cuda:99"], ["--device cuda:99"]),
    (["--device", "meta"], ["--device meta"]),
    (["--learning"], ["--learning"]),
    (["--max_seq", 64], ["--max_seq"]),  # no flag is guessed from its beginning
    (["stray"], ["stray"]),
    (["two\nlines"], ["two lines"]),
]
if not torch.cuda.is_available():
    BOTH_FLAGS.append((["--device", "cuda"], ["--device cuda", "on this machine"]))

TRAIN_FLAGS: list[tuple[list[object], list[str]]] = [
    (["--num_train_epochs", 0], ["--num_train_epochs 0.0"]),
    (["--num_train_epochs", -1], ["--num_train_epochs -1.0"]),
    (["--num_train_epochs", "inf"], ["--num_train_epochs inf"]),
    (["--max_steps", 0], ["--max_steps 0"]),
    (["--learning_rate", 0], ["--learning_rate 0.0"]),
    (["--learning_rate", "nan"], ["--learning_rate nan"]),
    (["--learning_rate", "fast"], ["--learning_rate", "'fast'"]),
    (["--warmup_ratio", 1], ["--warmup_ratio 1.0"]),
    (["--weight_decay", -0.1], ["--weight_decay -0.1"]),
    (["--adam_epsilon", 0], ["--adam_epsilon 0.0"]),
    (["--max_grad_norm", -1], ["--max_grad_norm -1.0"]),
    (["--per_device_train_batch_size", 0], ["--per_device_train_batch_size 0"]),
    (["--gradient_accumulation_steps", -1], ["--gradient_accumulation_steps -1"]),
    (["--seed", -1], ["--seed -1"]),
    (["--seed", 2**64], ["--seed", str(2**64)]),
    (["--seed", "x"], ["--seed", "'x'"]),
    (["--logging_steps", 0], ["--logging_steps 0"]),
    (["--eval_steps", 0], ["--eval_steps 0"]),
    (["--save_steps", 0], ["--save_steps 0"]),
    (["--save_total_limit", 0], ["--save_total_limit 0"]),
    (["--max_train_samples", 0], ["--max_train_samples 0"]),
    (["--max_eval_samples", -3], ["--max_eval_samples -3"]),
    (["--show", 0], ["--show 0"]),
    (["--show", "many"], ["--show", "'many'"]),
    (["--show", 1, "--max_seq_length", HUGE], ["--max_seq_length", str(HUGE)]),
    (["--dataset", "squad"], ["--dataset", "--train_file"]),
    (
        ["--version_2_with_negative", "--null_score_diff_threshold", "-inf"],
        ["--null_score_diff_threshold -inf", "finite"],
    ),
    (["--lr_scheduler_type", "cosine"], ["--lr_scheduler_type", "'cosine'"]),
    (["--dropout", 1], ["--dropout 1.0"]),
    (["--dropout", -0.1], ["--dropout -0.1"]),
    (["--validation_split_percentage", 0], ["--validation_split_percentage 0"]),
    (["--validation_split_percentage", 51], ["--validation_split_percentage 51"]),
    (["--validation_split_percentage", 10], ["--validation_split_percentage 10", "one article"]),
    (
        ["--validation_split_percentage", 10, "--validation_file", STORIES],
        ["--validation_file", "--validation_split_percentage"],
    ),
]

INFER_FLAGS: list[tuple[list[object], list[str]]] = [
    (["--top_k", 0], ["--top_k 0"]),
    (["--top_k", "all"], ["--top_k", "'all'"]),
    (["--demo"], ["--question and --demo"]),
    (["--input", "some.json", "--output_dir", "o"], ["--input and --question"]),
    (["--context_file", "some.txt"], ["--context and --context_file"]),
    (["--output_dir", "o"], ["--input and --output_dir"]),
    (["--question", ""], ["question is ''"]),
    (["--question", "\t"], [r"question is '\t'"]),
    (["--context", ""], ["context is ''"]),
    (["--context", "\n"], [r"context is '\n'"]),
    (["--question", LONG], ["60 tokens", "--max_seq_length 64"]),
    (["--resume"], ["--resume", "--input"]),
    (["--skip_bad"], ["--skip_bad", "--input"]),
    (["--all_offsets"], ["--all_offsets", "--json"]),
]

INFER_ALONE: list[tuple[str, Callable[[World], list[object]], list[str]]] = [
    ("question without context", lambda w: ["--question", "Who?"], ["--question", "--context"]),
    ("context without question", lambda w: ["--context", "x"], ["--context", "--question"]),
    ("demo with context", lambda w: ["--demo", "--context", "x"], ["--context", "--demo"]),
    ("input with demo", lambda w: [*w.file(w.row()), "--demo"], ["--input and --demo"]),
    (
        "input with context",
        lambda w: [*w.file(w.row()), "--context", "x"],
        ["--context", "--input"],
    ),
    ("input without output", lambda w: ["--input", w.row()], ["--input", "--output_dir"]),
    (
        "context file missing",
        lambda w: ["--question", "Who?", "--context_file", w.folder / "t.txt"],
        ["--context_file", "t.txt", "No such file"],
    ),
    (
        "context file a folder",
        lambda w: ["--question", "Who?", "--context_file", w.folder],
        ["--context_file", "directory"],
    ),
    (
        "context file not UTF-8",
        lambda w: ["--question", "Who?", "--context_file", w.write("l.txt", b"caf\xe9")],
        ["--context_file", "l.txt", "UTF-8"],
    ),
    (
        "context file empty",
        lambda w: [
            "--model", w.good, *WINDOWS, "--question", "Who?", "--context_file",
            w.write("0.txt", ""),
        ],
        ["context is ''"],
    ),
    (
        "predictions there",
        lambda w: w.file(w.row(), "--output_dir", w.write("o/predictions.json", "{}").parent),
        ["o/predictions.json is there", "--overwrite_output_dir"],
    ),
    (
        "predictions into a file",
        lambda w: w.file(w.row(), "--output_dir", w.write("a.txt", "years")),
        ["a.txt cannot be made"],
    ),
    (
        "answered lines there",
        lambda w: w.file(w.lines(), "--output_dir", w.write("o/predictions.jsonl", "").parent),
        ["o/predictions.jsonl is there", "--resume", "--overwrite_output_dir"],
    ),
    (
        "go on and overwrite",
        lambda w: w.file(w.lines(), "--resume", "--overwrite_output_dir"),
        ["--resume and --overwrite_output_dir"],
    ),
    (
        "go on with a whole file",
        lambda w: w.file(w.row(), "--resume"),
        ["--resume", "rows.json", ".jsonl"],
    ),
    (
        "lines missing",
        lambda w: w.file(w.folder / "none.jsonl"),
        ["none.jsonl does not exist"],
    ),
    (
        "several answers of a whole file",
        lambda w: w.file(w.row(), "--top_k", 2),
        ["--top_k 2", "--n_best_size"],
    ),
    (
        "model never fine-tuned",
        lambda w: w.ask("--model", w.tensors(without_head)),
        ["model.safetensors lacks qa_outputs.", "train it first"],
    ),
    (
        "pickle that is none",
        lambda w: w.ask("--allow_bin", "--model", w.pickle()),
        ["pytorch_model.bin cannot be read"],
    ),
]  # fmt: skip

CHECKPOINTS: list[tuple[str, Callable[[World], object], list[str]]] = [
    ("no such folder", lambda w: w.folder / "nothing", ["nothing", "no", "checkpoint folder"]),
    ("no such name", lambda w: "no-such-model-of-ours", ["'no-such-model-of-ours'", "weights"]),
    ("no name", lambda w: "", ["''"]),
    ("a file", lambda w: w.write("f.safetensors", "x"), ["f.safetensors"]),
    ("an empty folder", lambda w: w.write("e/x/y", "").parent, ["e/x/config.json is missing"]),
    ("no config", lambda w: w.checkpoint("config.json"), ["config.json is missing"]),
    ("half a config", lambda w: w.checkpoint("config.json", "{"), ["config.json is not valid"]),
    ("a list in config", lambda w: w.checkpoint("config.json", "[]"), ["config.json", "list"]),
    ("another model", lambda w: w.config(model_type="roberta"), ["config.json", "'roberta'"]),
    ("another GELU", lambda w: w.config(hidden_act="gelu_new"), ["hidden_act", "'gelu_new'"]),
    ("no heads", lambda w: w.config(num_attention_heads=0), ["num_attention_heads is 0"]),
    ("odd heads", lambda w: w.config(num_attention_heads=5), ["num_attention_heads 5"]),
    ("words for sizes", lambda w: w.config(hidden_size="big"), ["hidden_size is 'big'"]),
    ("wider", lambda w: w.config(intermediate_size=38), ["model.safetensors", "(38"]),
    ("deeper", lambda w: w.config(num_hidden_layers=4), ["model.safetensors lacks", "layer.3."]),
    ("flatter", lambda w: w.config(num_hidden_layers=2), ["model.safetensors", "layer.2."]),
    ("no weights", lambda w: w.checkpoint("model.safetensors"), ["broken holds no weights"]),
    (
        "cut weights",
        lambda w: w.checkpoint("model.safetensors", weights_of(w.good)[:-100]),
        ["model.safetensors is corrupt"],
    ),
    (
        "no weights in the file",
        lambda w: w.checkpoint("model.safetensors", b"\x00" * 100),
        ["model.safetensors is corrupt"],
    ),
    (
        "a missing tensor",
        lambda w: w.tensors(lambda t: t.pop("bert.embeddings.LayerNorm.bias")),
        ["model.safetensors lacks bert.embeddings.LayerNorm.bias"],
    ),
    (
        "a foreign tensor",
        lambda w: w.tensors(lambda t: t.update(extra=torch.ones(1))),
        ["model.safetensors holds", "extra"],
    ),
    (
        "numbers that are none",
        lambda w: w.tensors(lambda t: t["bert.embeddings.LayerNorm.bias"].fill_(torch.nan)),
        ["model.safetensors", "bert.embeddings.LayerNorm.bias", "not finite"],
    ),
    (
        "half a head",
        lambda w: w.tensors(lambda t: t.pop("qa_outputs.bias")),
        ["model.safetensors lacks qa_outputs.bias"],
    ),
    ("a pickle", lambda w: w.pickle(), ["pytorch_model.bin is a pickle", "--allow_bin"]),
    ("no tokenizer", lambda w: w.checkpoint("vocab.txt"), ["broken holds no tokenizer"]),
    ("no vocabulary", lambda w: w.checkpoint("vocab.txt", ""), ["vocab.txt", "'[UNK]'"]),
    (
        "no tokenizer in the file",
        lambda w: w.checkpoint("tokenizer.json", '{"a": 1}'),
        ["tokenizer.json is no tokenizer"],
    ),
    (
        "another's vocabulary",
        lambda w: w.checkpoint(
            "vocab.txt", (w.good / "vocab.txt").read_text(encoding="utf-8") + "one\nmore\n"
        ),
        ["vocab.txt has", "tokens", "broken has"],
    ),
    (
        "no settings in the file",
        lambda w: w.checkpoint("tokenizer_config.json", "do_lower_case"),
        ["tokenizer_config.json is not valid JSON"],
    ),
]

STEP = "checkpoints/step-00000001"
TRAIN_ALONE: list[tuple[str, Callable[[World], list[object]], list[str]]] = [
    (
        "a check of no file",
        lambda w: w.train("--check", "--train_file", w.folder / "no.json"),
        ["no.json does not exist"],
    ),
    (
        "a check of rows that are none",
        lambda w: w.train("--check", "--train_file", w.row(answers={"text": 3})),
        ["rows.json", "text is 3"],
    ),
    (
        "a check of an empty file",
        lambda w: w.train("--check", "--train_file", w.rows("r.json")),
        ["r.json holds no examples"],
    ),
    (
        "a check of long windows",
        lambda w: w.train("--check", "--max_seq_length", 385),
        ["--max_seq_length 385", "384 positions"],
    ),
    (
        "a check that shows",
        lambda w: w.train("--check", "--show", 1),
        ["--check and --show"],
    ),
    *(
        (
            f"{flag} {name}",
            lambda w, flag=flag, make=make, check=check: w.train(*check, flag, make(w)),
            [flag, *words],
        )
        for flag, ending in (("--repair", ".json"), ("--report", ".html"))
        for name, check, make, words in (
            ("unchecked", [], lambda w, e=ending: w.folder / f"f{e}", ["needs --check"]),
            (
                "of no ending",
                ["--check"],
                lambda w: w.folder / "f.txt",
                ["f.txt must end in", ending],
            ),
            (
                "that exists",
                ["--check"],
                lambda w, e=ending: w.write(f"f{e}", "mine"),
                [f"f{ending} is there already"],
            ),
            (
                "in a file",
                ["--check"],
                lambda w, e=ending: w.write("note", "mine") / f"f{e}",
                ["note is a file"],
            ),
        )
    ),
    (
        "a copy in the place of the data",
        lambda w: w.train("--check", "--repair", w.folder / "good.json"),
        ["good.json is there already"],
    ),
    (
        "a copy and a report in one",
        lambda w: w.train(
            "--check", "--repair", w.folder / "f.json", "--report", w.folder / "f.json"
        ),
        ["--repair and --report both name", "f.json"],
    ),
    (
        "validation file alone",
        lambda w: ["--model", w.good, "--validation_file", w.row()],
        ["--validation_file", "rows.json", "--train_file"],
    ),
    (
        "output folder not empty",
        lambda w: w.train("--output_dir", w.write("thesis/a.txt", "years").parent),
        ["--output_dir", "thesis is not empty"],
    ),
    (
        "output folder of a run",
        lambda w: w.resumed()[:-1],  # all but --resume
        ["--output_dir", "out holds a run", "--resume"],
    ),
    (
        "output folder a file",
        lambda w: w.train("--output_dir", w.write("a.txt", "years")),
        ["--output_dir", "a.txt is a file"],
    ),
    (
        "output folder below a file",
        lambda w: w.train("--output_dir", w.write("a.txt", "years") / "run"),
        ["a.txt/run"],
    ),
    (
        "resumed where no run is",
        lambda w: w.train("--resume", "--output_dir", w.write("thesis/a.txt", "years").parent),
        ["--output_dir", "thesis is not empty", "no run.json"],
    ),
    (
        "resumed with another rate",
        lambda w: w.resumed("--learning_rate", 1e-4),
        ["--resume", "out", "learning_rate 2e-05, not 0.0001"],
    ),
    (
        "resumed with more steps",
        lambda w: w.resumed("--max_steps", 2),
        ["--resume", "max_steps 1, not 2"],
    ),
    (
        "resumed with another precision",
        lambda w: w.resumed("--precision", "bf16"),
        ["--resume", "precision 'torch.float32', not 'torch.bfloat16'"],
    ),
    (
        "resumed with larger batches",
        lambda w: w.resumed("--gradient_accumulation_steps", 2),
        ["--resume", "windows_per_step 16, not 32"],
    ),
    (
        "resumed with other data",
        lambda w: w.resumed("--train_file", w.row(question="Who swept it?")),
        ["--resume", "began with other train questions than are read now"],
    ),
    (
        "resumed with other windows",
        lambda w: w.resumed("--doc_stride", 15),
        ["--resume", "has doc_stride 16, not 15"],
    ),
    (
        "resumed with a broken run.json",
        lambda w: w.resumed(change=lambda out: (out / "run.json").write_text("{")),
        ["run.json is not valid JSON"],
    ),
    (
        "resumed without moments",
        lambda w: w.resumed(change=lambda out: (out / STEP / "optimizer.safetensors").unlink()),
        [f"{STEP} is damaged", "optimizer.safetensors is missing", "remove it"],
    ),
    (
        "resumed with cut moments",
        lambda w: w.resumed(
            change=lambda out: (out / STEP / "optimizer.safetensors").write_bytes(b"{}")
        ),
        [f"{STEP} is damaged", "optimizer.safetensors is corrupt", "remove it"],
    ),
    (
        "resumed with a moment too few",
        lambda w: w.resumed(
            change=lambda out: rewrite(
                out / STEP / "optimizer.safetensors", lambda t: t.pop("head.bias.exp_avg")
            )
        ),
        [f"{STEP} is not whole"],
    ),
    (
        "resumed without weights",
        lambda w: w.resumed(change=lambda out: (out / STEP / "model.safetensors").unlink()),
        [f"{STEP} holds no weights"],
    ),
    (
        "resumed without progress",
        lambda w: w.resumed(change=lambda out: (out / STEP / "progress.json").unlink()),
        [f"{STEP} is damaged", "progress.json is missing", "remove it"],
    ),
    (
        "resumed with foreign progress",
        lambda w: w.resumed(
            change=lambda out: (out / STEP / "progress.json").write_text('{"epoch": 3}')
        ),
        [f"{STEP} is not whole"],
    ),
]


@dataclass
class Case:
    """A mistake: what is called, and the words that must be in the one line it says."""

    name: str
    script: str
    flags: Callable[[World], list[object]]
    words: list[str]


def cases() -> Iterator[Case]:
    for name, make, words in DATA:
        yield Case(f"input {name}", "infer", lambda w, make=make: w.file(make(w)), words)
    for flag in ("--train_file", "--validation_file"):
        for name, make, words in [*DATA, *LABELLED_DATA]:
            yield Case(
                f"{flag} {name}", "train", lambda w, f=flag, make=make: w.train(f, make(w)), words
            )
    for script in SCRIPTS:
        for extra, words in BOTH_FLAGS + (TRAIN_FLAGS if script == "train" else INFER_FLAGS):
            name = f"{script} {' '.join(str(flag)[:24] for flag in extra)}"
            yield Case(name, script, lambda w, s=script, e=extra: w.both(s, *e), words)
        for name, make, words in CHECKPOINTS:
            yield Case(
                f"{script} with {name}", script,
                lambda w, s=script, make=make: w.both(s, "--model", make(w)), words,
            )  # fmt: skip
        for name, flags, words in TRAIN_ALONE if script == "train" else INFER_ALONE:
            yield Case(f"{script} with {name}", script, flags, words)


CASES = list(cases())


def weights_of(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes()


def assert_one_sentence(err: str) -> None:
    """One line, without a progress bar or traceback, that is one sentence."""
    assert err.endswith("\n") and len(err.splitlines()) == 1, err
    assert "Traceback" not in err and "it/s" not in err, err
    assert not re.search(r"[.!?]\s+[A-Z]", err) and not err.rstrip("\n").endswith("."), err


@pytest.fixture(scope="module")
def finished_run(tmp_path_factory: pytest.TempPathFactory, checkpoint: Path) -> Path:
    """The folder of a run of one step."""
    world = World(tmp_path_factory.mktemp("finished"), checkpoint)
    assert call("train", *world.train()) == 0
    return world.out


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_a_mistake_is_one_sentence_and_nothing_is_touched(
    case: Case,
    checkpoint: Path,
    finished_run: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    flags = case.flags(World(tmp_path, checkpoint, finished_run))
    before = contents(tmp_path)
    capfd.readouterr()
    code = call(case.script, *flags)
    err = capfd.readouterr().err
    assert code == 2
    assert_one_sentence(err)
    assert [word for word in case.words if word not in err] == [], err
    assert contents(tmp_path) == before


def test_what_the_mistakes_start_from_is_right(
    checkpoint: Path, finished_run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Else a case could fail for another reason than its own."""
    world = World(tmp_path, checkpoint, finished_run)
    assert call("train", *world.train("--validation_file", world.row())) == 0
    assert call("infer", *world.ask("--model", world.checkpoint())) == 0
    shutil.rmtree(world.out)
    assert call("infer", *world.file(world.row())) == 0
    shutil.rmtree(world.out)
    assert call("train", *world.resumed()) == 0


@pytest.mark.parametrize(
    ("script", "flags", "words"),
    [
        ("train", ["--dataset", "nobody/nothing-of-this-name"], ["nobody/nothing-of-this-name"]),
        (
            "infer",
            ["--demo", "--model", "nobody/no-model"],
            ["nobody/no-model", "HF_HUB_OFFLINE"],
        ),
    ],
)
def test_a_mistake_in_a_process(
    tmp_path: Path, home: Path, script: str, flags: list[str], words: list[str]
) -> None:
    """Unknown names without a network; nothing else is on stderr, whatever the libraries log."""
    more = ["--output_dir", tmp_path / "out"] if script == "train" else []
    result = run(script, home, *flags, *more, *HERE)
    assert result.returncode == 2
    assert_one_sentence(result.stderr)
    assert result.stderr.startswith("error: ")
    assert [word for word in words if word not in result.stderr] == []
    assert result.stdout == ""
    assert not (tmp_path / "out").exists()


# --- the edge itself -----------------------------------------------------------------------------


def flags_of(*arguments: str) -> Any:
    return Parser("a test").parse(arguments)


def test_debug_shows_where_it_happened(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("infer", "--input", tmp_path / "no.json", "--output_dir", tmp_path, "--debug") == 2
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("Traceback")
    assert any("FileNotFoundError" in line for line in lines)  # the cause is there too
    assert lines[-1] == f"error: {tmp_path}/no.json does not exist; check the path"


def test_a_defect_of_ours_is_not_hidden() -> None:
    def broken(flags: Any) -> None:
        raise ValueError("an index out of range")

    with pytest.raises(ValueError, match="an index"):
        run_script(broken, flags_of())


def test_each_mistake_of_several_processes_is_said_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    failure = UserError("a.json is\nempty")

    def mistaken(flags: Any) -> None:
        raise failure

    for rank, is_said, said in (
        ("0", False, "error: a.json is empty\n"),
        ("1", False, "error in process 1: a.json is empty\n"),
        ("1", True, ""),
    ):
        failure.is_said = is_said
        monkeypatch.setenv("RANK", rank)
        assert run_script(mistaken, flags_of()) == 2
        assert capsys.readouterr().err == said


def test_a_reader_that_goes_away_is_no_error(home: Path) -> None:
    """As in ``infer.py --demo | head -1``, also where all output fits into the buffer."""
    code = (
        "import sys; from bertqa.commands.flags import Parser, run_script;"
        "sys.exit(run_script(lambda flags: print('x' * {}), Parser('').parse([])))"
    )
    for size in (10, 10**6):
        ours, theirs = os.pipe()
        os.close(ours)
        result = subprocess.run(
            [sys.executable, "-c", code.format(size)],
            cwd=ROOT, env=environment(home), stdout=theirs, stderr=subprocess.PIPE, check=False,
        )  # fmt: skip
        os.close(theirs)
        assert (result.returncode, result.stderr) == (1, b"")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--top-k", "3"], {"top_k": 3}),
        (["--top_k", "3"], {"top_k": 3}),
        (["--top-k=3"], {"top_k": 3}),
        (["--context-file=a-b_c.txt"], {"context_file": Path("a-b_c.txt")}),
        (["--context", "well-known_word"], {"context": "well-known_word"}),
        (["--question=--what-is it"], {"question": "--what-is it"}),
        (["--null-score-diff-threshold", "-1.5"], {"null_score_diff_threshold": -1.5}),
        (["--null_score_diff_threshold=-1e-3"], {"null_score_diff_threshold": -1e-3}),
        (["--version-2-with-negative"], {"version_2_with_negative": True}),
        (["--null-score-diff-threshold", "-1e-3"], {"null_score_diff_threshold": -0.001}),
        (["--null_score_diff_threshold", "-inf"], {"null_score_diff_threshold": -math.inf}),
        (["--max-seq_length", "12"], {"max_seq_length": 12}),
    ],
)
def test_flags_may_be_written_with_either(
    arguments: list[str], expected: dict[str, object]
) -> None:
    flags = vars(infer.parse_flags(arguments))
    untouched = vars(infer.parse_flags([]))
    assert flags == untouched | expected


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_flag_is_explained(script: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(script, "--help") == 0
    text = capsys.readouterr().out
    assert SCRIPTS[script].__doc__.splitlines()[0] in text
    flags = vars(SCRIPTS[script].parse_flags([]))
    for flag in flags:
        assert f"--{flag}" in text
    assert "overlap of two neighbouring windows" in text  # what doc_stride means
    assert math.isclose(flags.get("learning_rate", 2e-5), 2e-5)


@pytest.mark.parametrize(
    ("source", "file"),
    [
        (source, file)
        for source, own in (
            ("a.jsonl", ("predictions.jsonl", "rejects.jsonl", "settings.json")),
            ("a.json", ("predictions.json", "nbest_predictions.json", "null_odds.json")),
        )
        for file in (*own, "metrics.json")
    ],
)
def test_no_file_of_others_is_replaced_or_removed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], source: str, file: str
) -> None:
    """The output folder may be a model's, with figures of its own."""
    (tmp_path / file).write_text("mine")
    flags = ["--input", tmp_path / source, "--output_dir", tmp_path]
    with pytest.raises(UserError, match=f"{file} is there already: name another --output_dir"):
        infer_file.check_file_flags(infer.parse_flags(list(map(str, flags))), source.endswith("l"))
    assert {path.name for path in tmp_path.iterdir()} == {file}


def test_a_byte_order_mark_counts_where_bytes_are_told(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_bytes(b"\xef\xbb\xbfAda built it.")
    given = ["--question", "Who?", "--context_file", str(tmp_path / "text.txt"), "--json"]
    assert read_context(infer.parse_flags(given)) == "Ada built it."
    assert read_context(infer.parse_flags([*given, "--all_offsets"])) == "\ufeffAda built it."
