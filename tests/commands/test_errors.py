"""User errors: one sentence and exit code 2, before anything is written.

There is a case for each kind of mistake; readers and settings have further tests.
"""

import gzip
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from bertqa.commands.flags import Parser, run_script
from bertqa.errors import UserError
from tests.commands.world import HERE, ROW, World, call, rewrite, run, without_head
from tests.helpers import contents, write_checkpoint

STEP = "checkpoints/step-00000001"
LONG = "who " * 60
MISPLACED = {"text": ["Ada"], "answer_start": [3]}
V2 = "--version_2_with_negative"

# A name, a command, its flags, and words of the message.
Case = tuple[str, str, Callable[[World], list[Any]], list[str]]


def infer_file(name: str, make: Callable[[World], Path], *words: str) -> Case:
    """Make a case of a file of questions."""
    return f"input: {name}", "infer", lambda w: w.file(make(w)), list(words)


def train_flags(*flags: object, words: list[str]) -> Case:
    """Make a case of flags of a training that succeeds without them."""
    return f"train {' '.join(map(str, flags))}", "train", lambda w: w.train(*flags), words


def infer_flags(*flags: object, words: list[str]) -> Case:
    """Make a case of flags of a question that is answered without them."""
    name = " ".join(str(flag).strip()[:30] for flag in flags)
    return f"infer {name}", "infer", lambda w: w.ask(*flags), words


def model(name: str, make: Callable[[World], object], *words: str) -> Case:
    """Make a case of a checkpoint folder."""
    return f"model: {name}", "infer", lambda w: w.ask("--model", make(w)), list(words)


def resumed(name: str, flags: list[object], *words: str) -> Case:
    """Make a case of a run resumed with other flags."""
    return f"resumed: {name}", "train", lambda w: w.resumed(*flags), ["--resume", *words]


def damaged(name: str, change: Callable[[Path], object], *words: str) -> Case:
    """Make a case of a run resumed from a damaged folder."""
    return f"resumed: {name}", "train", lambda w: w.resumed(change=change), list(words)


def teacher(name: str, make: Callable[[World], Path], *words: str) -> Case:
    """Make a case of a second teacher, after a good one."""
    flags = lambda w: w.train("--teacher", w.good, make(w))  # noqa: E731
    return f"teacher: {name}", "train", flags, list(words)


def swapped(path: Path) -> str:
    """Return a vocabulary with its last two words swapped."""
    words = path.read_text(encoding="utf-8").splitlines()
    words[-1], words[-2] = words[-2], words[-1]
    return "\n".join(words) + "\n"


def cut(path: Path) -> bytes:
    return path.read_bytes()[:-9]


CASES: list[Case] = [
    # The files of questions.
    infer_file("missing", lambda w: w.folder / "no.json", "no.json: must be an existing file"),
    infer_file("a folder", lambda w: w.folder, "got a directory"),
    infer_file("another kind", lambda w: w.write("d.docx", "x"), "d.docx", "'.docx'", ".json"),
    infer_file("malformed", lambda w: w.write("m.json", '{"data": [\n{"id" 1}]}'), "m.json, line"),
    infer_file("no UTF-8", lambda w: w.write("u.jsonl", b'{"a": "\xff"}\n'), "u.jsonl, line 1"),
    infer_file(
        "cut", lambda w: w.write("g.json.gz", gzip.compress(b"x" * 999)[:-9]), "g.json.gz", "gzip"
    ),
    infer_file("no parquet", lambda w: w.write("p.parquet", "x" * 99), "p.parquet"),
    infer_file("other columns", lambda w: w.write("c.csv", "id,query\n1,a\n"), "c.csv", "'query'"),
    infer_file("one id twice", lambda w: w.rows("i.json", ROW, ROW), "i.json", "'first'"),
    infer_file("v2.0 as v1.1", lambda w: w.row(answers=[]), "rows.json", V2),
    infer_file(
        "a long question", lambda w: w.row(question=LONG), "got 60", "--max_seq_length 64"
    ),
    (
        "validation file: a misplaced answer", "train",
        lambda w: w.train("--validation_file", w.row(answers=MISPLACED)),
        ["rows.json", "'first'", "answer_start 3"],
    ),
    (
        "train file: no answers", "train",
        lambda w: w.train("--train_file", w.row(answers=None)), ["rows.json", "'first'"],
    ),
    ("check: missing", "check", lambda w: ["--train_file", w.folder / "no.json"], ["no.json"]),
    # Values and combinations of flags.
    infer_flags("--doc_stride", 60, words=["--max_seq_length", "--doc_stride", "got 64 and 60"]),
    infer_flags("--max_seq_length", 385, words=["--max_seq_length", "384 positions", "got 385"]),
    infer_flags("--max_answer_length", 10**20, words=["--max_answer_length", str(10**20)]),
    infer_flags("--n_best_size", 0, words=["--n_best_size must be at least 1, got 0"]),
    infer_flags("--top_k", 0, words=["--top_k must be at least 1, got 0"]),
    infer_flags("--decoder", "beam", words=["--decoder", "'beam'", "exact"]),
    infer_flags("--null_score_diff_threshold", 1, words=["--null_score_diff_threshold 1.0", V2]),
    infer_flags(V2, "--null_score_diff_threshold", "nan", words=["--null_score_diff_threshold"]),
    infer_flags("--always_answer", V2, words=[f"--always_answer and {V2} exclude each other"]),
    infer_flags(
        "--always_answer", "--null_score_diff_threshold", 1,
        words=["--always_answer and --null_score_diff_threshold"],
    ),
    infer_flags("--always_answer", "--score_threshold", 0.5, words=["--score_threshold exclude"]),
    infer_flags("--score_threshold", 1.5, words=["--score_threshold must be in [0, 1], got 1.5"]),
    infer_flags("--explain", "--score_threshold", 0.5, words=["--explain and --score_threshold"]),
    infer_flags("--max_seq", 64, words=["--max_seq"]),  # flags cannot be abbreviated
    infer_flags("two\nlines", words=["two lines"]),
    infer_flags("--demo", words=["--question and --demo"]),
    infer_flags("--resume", words=["--resume", "--input"]),
    infer_flags("--context_file", "x.txt", words=["--context and --context_file"]),
    infer_flags("--question", "\t", words=[r"question must be", r"got '\t'"]),
    infer_flags("--context", "", words=["context must be", "got ''"]),
    ("a context alone", "infer", lambda w: ["--context", "x"], ["--context requires --question"]),
    (
        "a context file alone", "infer", lambda w: ["--context_file", w.write("x.txt", "x")],
        ["--context_file requires --question"],
    ),
    (
        "a blank context file", "infer",
        lambda w: ["--question", "Who?", "--context_file", w.write("x.txt", " \n")],
        ["--context_file", "x.txt: must have a visible character"],
    ),
    (
        "a file as output folder", "infer",
        lambda w: [*w.file(w.row()), "--output_dir", w.write("x.txt", "x")],
        ["--output_dir", "x.txt: must be a folder, got a file"],
    ),
    (
        "a context file and the demo", "infer", lambda w: ["--context_file", "x.txt", "--demo"],
        ["--context_file and --demo exclude each other"],
    ),
    ("input alone", "infer", lambda w: ["--input", w.row()], ["--input", "--output_dir"]),
    ("top_k of a file", "infer", lambda w: w.file(w.row(), "--top_k", 2), ["--top_k 2"]),
    ("go on with a set", "infer", lambda w: w.set("--resume"), ["--resume", "--dataset squad"]),
    ("offsets of a set", "infer", lambda w: w.set("--all_offsets"), ["--all_offsets"]),
    ("top_k of a set", "infer", lambda w: w.set("--top_k", 2), ["--top_k 2"]),
    ("a set and a file", "infer", lambda w: w.set("--input", "a.json"), ["--input and --dataset"]),
    ("a set alone", "infer", lambda w: w.set()[:2], ["--dataset and --output_dir"]),
    ("a split of a file", "infer", lambda w: w.file(w.row(), "--split", "test"), ["--split test"]),
    (
        "no such split", "infer", lambda w: w.set("--dataset", w.folder, "--split", "dev"),
        ["--dataset", "split 'dev': must be available"],
    ),
    infer_flags("--skip_bad", words=["--skip_bad", "--input"]),
    ("go on with a file", "infer", lambda w: w.file(w.row(), "--resume"), ["--resume", ".jsonl"]),
    train_flags("--learning_rate", "nan", words=["--learning_rate must be", "got nan"]),
    train_flags("--layerwise_lr_decay", 1.5, words=["--layerwise_lr_decay must be", "got 1.5"]),
    train_flags("--dropout", -0.1, words=["--dropout must be in [0, 1), got -0.1"]),
    train_flags(
        "--lr_scheduler_type", "constant", "--warmup_steps", 5,
        words=["--lr_scheduler_type constant", "--warmup_steps 5", "constant_with_warmup"],
    ),
    train_flags(
        "--early_stopping_patience", 2,
        words=["--early_stopping_patience 2", "--validation_file"],
    ),
    train_flags("--seed", 2**64, words=["--seed", str(2**64)]),
    train_flags("--show", 0, words=["--show", "got 0"]),
    train_flags("--check", "--show", 1, words=["--check and --show"]),
    train_flags("--repair", "a.json", words=["--repair", "--check"]),
    train_flags("--dataset", "squad", words=["--dataset", "--train_file"]),
    train_flags("--validation_split_percentage", 10, words=["requires several articles"]),
    # Teachers.
    train_flags("--distillation_weight", 0.5, words=["--distillation_weight 0.5", "--teacher"]),
    train_flags("--unanswerable_share", 0.3, words=["--unanswerable_share 0.3", "requires"]),
    train_flags("--teacher", "no-such-model", words=["--teacher: 'no-such-model'", "weights"]),
    teacher("never fine-tuned", lambda w: w.tensors(without_head), "model.safetensors", "train it"),
    teacher(
        "another vocabulary",
        lambda w: w.checkpoint("vocab.txt", swapped(w.good / "vocab.txt")),
        "--teacher", "broken", "tokenizer of --model", "vocab.txt",
    ),
    teacher(
        "other rules",
        lambda w: w.checkpoint("tokenizer_config.json", {"do_lower_case": False}),
        "--teacher", "broken", "tokenizer of --model",
    ),
    teacher(
        "too few positions",
        lambda w: write_checkpoint(w.folder / "short", max_position_embeddings=63),
        "--max_seq_length", "63 positions", "got 64", "--teacher", "short",
    ),
    # Device and precision.
    infer_flags("--precision", "fp8", words=["--precision", "'fp8'", "bf16"]),
    infer_flags("--precision", "fp16", words=["--precision fp16"]),
    infer_flags("--device", "gpu", words=["--device gpu"]),
    train_flags("--device", "cuda:99", words=["--device cuda:99"]),
    # Other files.
    (
        "context file: missing", "infer",
        lambda w: ["--question", "Who?", "--context_file", w.folder / "t.txt"], ["t.txt"],
    ),
    (
        "context file: no UTF-8", "infer",
        lambda w: ["--question", "Who?", "--context_file", w.write("l.txt", b"caf\xe9")],
        ["--context_file", "l.txt", "UTF-8"],
    ),
    *(
        (
            f"check: {flag} {name}", "check",
            lambda w, flag=flag, make=make: ["--train_file", w.row(), flag, make(w)], words,
        )
        for flag in ("--repair", "--report")
        for name, make, words in (
            ("of another kind", lambda w: w.folder / "f.txt", ["f.txt"]),
            ("that exists", lambda w: w.write("f.json", "mine"), ["f.json: must be a new file"]),
            ("below a file", lambda w: w.write("note", "mine") / "f.json", ["note must be"]),
        )
    ),
    (
        "check: one file for two", "check",
        lambda w: ["--train_file", w.row(), "--repair", "f.json", "--report", "f.json"],
        ["--repair and --report must name two files", "f.json"],
    ),
    # The output folder.
    (
        "output: not empty", "train",
        lambda w: w.train("--output_dir", w.write("thesis/a.txt", "years").parent),
        ["--output_dir", "thesis, which contains files"],
    ),
    ("output: a run", "train", lambda w: w.resumed()[:-1], ["contains a run", "--resume"]),
    (
        "output: below a file", "train",
        lambda w: w.train("--output_dir", w.write("a.txt", "years") / "run"), ["a.txt/run"],
    ),
    (
        "output: no run to go on with", "train",
        lambda w: w.train("--resume", "--output_dir", w.write("thesis/a.txt", "years").parent),
        ["--output_dir", "thesis, which contains files", "no run.json"],
    ),
    (
        "output: predictions are there", "infer",
        lambda w: w.file(w.row(), "--output_dir", w.write("o/predictions.json", "{}").parent),
        ["o/predictions.json already exists", "--overwrite_output_dir"],
    ),
    (
        "output: a file", "infer",
        lambda w: w.file(w.row(), "--output_dir", w.write("a.txt", "years")), ["a.txt"],
    ),
    # The model.
    model("no such folder", lambda w: w.folder / "nothing", "nothing", "checkpoint folder"),
    model("no such name", lambda w: "no-such-model", "'no-such-model'", "weights"),
    model("an empty folder", lambda w: w.write("e/x/y", "").parent, "e/x/config.json must exist"),
    model("half a config", lambda w: w.checkpoint("config.json", "{"), "config.json must be valid"),
    model("a foreign config", lambda w: w.config(model_type="roberta"), "config.json", "'roberta'"),
    model("odd heads", lambda w: w.config(num_attention_heads=5), "num_attention_heads (5)"),
    model("deeper", lambda w: w.config(num_hidden_layers=4), "model.safetensors", "layer.3."),
    model("no weights", lambda w: w.checkpoint("model.safetensors"), "broken: must contain"),
    model(
        "cut weights",
        lambda w: w.checkpoint("model.safetensors", cut(w.good / "model.safetensors")),
        "model.safetensors must be intact",
    ),
    model(
        "foreign tensors", lambda w: w.tensors(lambda t: t.update(extra=torch.ones(1))),
        "model.safetensors: must contain only", "extra",
    ),
    model(
        "not finite",
        lambda w: w.tensors(lambda t: t["bert.embeddings.LayerNorm.bias"].fill_(torch.nan)),
        "model.safetensors", "bert.embeddings.LayerNorm.bias must be finite",
    ),
    model("never fine-tuned", lambda w: w.tensors(without_head), "model.safetensors", "train it"),
    model("a pickle", lambda w: w.pickle(), "pytorch_model.bin", "got a pickle", "--allow_bin"),
    model("no tokenizer", lambda w: w.checkpoint("vocab.txt"), "broken: must contain"),
    model(
        "no tokenizer in the file", lambda w: w.checkpoint("tokenizer.json", '{"a": 1}'),
        "tokenizer.json: must be a tokenizer",
    ),
    # A resumed run.
    resumed("another rate", ["--learning_rate", 1e-4], "learning_rate must be 2e-05, got 0.0001"),
    resumed("another precision", ["--precision", "bf16"], "precision"),
    resumed("larger batches", ["--gradient_accumulation_steps", 2], "must be 16, got 32"),
    (
        "resumed: with a teacher", "train", lambda w: w.resumed("--teacher", w.good),
        ["--resume", "teachers must be the same"],
    ),
    resumed("other windows", ["--doc_stride", 15], "doc_stride must be 16, got 15"),
    (
        "resumed: other data", "train",
        lambda w: w.resumed("--train_file", w.row(question="Who swept it?")),
        ["--resume", "train questions must be the same"],
    ),
    damaged("no run.json", lambda out: (out / "run.json").write_text("{"), "run.json must be"),
    damaged("no weights", lambda out: (out / STEP / "model.safetensors").unlink(), STEP),
    damaged(
        "cut moments", lambda out: (out / STEP / "optimizer.safetensors").write_bytes(b"{}"),
        f"{STEP} is damaged", "optimizer.safetensors must be intact", "remove it",
    ),
    damaged(
        "a moment too few",
        lambda out: rewrite(out / STEP / "optimizer.safetensors", lambda t: t.popitem()),
        f"{STEP} is damaged (incomplete, or of another model)",
    ),
    damaged(
        "foreign progress", lambda out: (out / STEP / "progress.json").write_text('{"epoch": 3}'),
        f"{STEP} is damaged (incomplete, or of another model)",
    ),
]  # fmt: skip


def assert_one_sentence(err: str) -> None:
    """Check for one line of one sentence, without a progress bar or traceback."""
    assert err.endswith("\n") and len(err.splitlines()) == 1, err
    assert "Traceback" not in err and "it/s" not in err, err
    assert not re.search(r"[.!?]\s+[A-Z]", err) and not err.rstrip("\n").endswith("."), err


@pytest.mark.parametrize(
    ("command", "flags", "words"), [case[1:] for case in CASES], ids=[case[0] for case in CASES]
)
def test_a_mistake_is_reported_in_one_sentence_and_changes_no_file(
    command: str,
    flags: Callable[[World], list[Any]],
    words: list[str],
    checkpoint: Path,
    finished_run: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    arguments = flags(World(tmp_path, checkpoint, finished_run))
    before = contents(tmp_path)
    capfd.readouterr()
    assert call(command, *arguments) == 2
    err = capfd.readouterr().err
    assert_one_sentence(err)
    assert [word for word in words if word not in err] == [], err
    assert contents(tmp_path) == before


def test_the_calls_succeed_without_the_mistakes(
    checkpoint: Path, finished_run: Path, tmp_path: Path
) -> None:
    """Otherwise a case could fail for another reason."""
    world = World(tmp_path, checkpoint, finished_run)
    assert call("infer", *world.ask("--model", world.checkpoint())) == 0
    assert call("infer", *world.file(world.row())) == 0
    shutil.rmtree(world.out)
    assert call("train", *world.train("--validation_file", world.row())) == 0
    shutil.rmtree(world.out)
    assert call("train", *world.resumed()) == 0
    shutil.rmtree(world.out)
    assert call("train", *world.train("--teacher", world.good, "--distillation_weight", 0.5)) == 0


def test_a_mistake_in_a_separate_process(tmp_path: Path) -> None:
    """An unknown name without a network: stderr has one sentence, whatever the libraries log."""
    flags = ["--dataset", "nobody/nothing-of-this-name", "--output_dir", tmp_path / "out", *HERE]
    result = run(["train.py", *flags], tmp_path)
    assert (result.returncode, result.stdout) == (2, "")
    assert_one_sentence(result.stderr)
    assert result.stderr.startswith("error: ") and "nobody/nothing-of-this-name" in result.stderr
    assert not (tmp_path / "out").exists()


def flags_of(*arguments: str) -> Any:
    return Parser("a test").parse(arguments)


def test_debug_shows_the_traceback(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("infer", "--input", tmp_path / "no.json", "--output_dir", tmp_path, "--debug") == 2
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("Traceback")
    assert any("FileNotFoundError" in line for line in lines)  # the cause is there too
    assert lines[-1].startswith(f"error: {tmp_path}/no.json: must be an existing file")


def test_unexpected_exceptions_are_not_caught() -> None:
    def broken(flags: Any) -> None:
        raise ValueError("an index out of range")

    with pytest.raises(ValueError, match="an index"):
        run_script(broken, flags_of())


@pytest.mark.parametrize(
    ("rank", "is_printed_elsewhere", "message"),
    [
        ("0", False, "error: a.json is empty\n"),
        ("1", False, "error in process 1: a.json is empty\n"),
        ("1", True, ""),
    ],
)
def test_a_mistake_in_several_processes_is_reported_once(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    rank: str,
    is_printed_elsewhere: bool,
    message: str,
) -> None:
    failure = UserError("a.json is\nempty")
    failure.is_printed_elsewhere = is_printed_elsewhere

    def mistaken(flags: Any) -> None:
        raise failure

    monkeypatch.setenv("RANK", rank)
    assert run_script(mistaken, flags_of()) == 2
    assert capsys.readouterr().err == message


PRINTS = (
    "import sys; from bertqa.commands.flags import Parser, run_script;"
    "sys.exit(run_script(lambda flags: print('x' * {}), Parser('').parse([])))"
)


@pytest.mark.parametrize("size", [10, 10**6])
def test_a_closed_pipe_is_not_reported(tmp_path: Path, size: int) -> None:
    """As in ``infer.py --demo | head -1``, even if all output fits into the buffer."""
    ours, theirs = os.pipe()
    os.close(ours)
    result = run(["-c", PRINTS.format(size)], tmp_path, stdout=theirs)
    os.close(theirs)
    assert (result.returncode, result.stderr) == (1, "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_output_is_reported_in_one_sentence(tmp_path: Path) -> None:
    with Path("/dev/full").open("w") as full:
        result = run(["-c", PRINTS.format(10000)], tmp_path, stdout=full)
    assert result.returncode == 2
    assert_one_sentence(result.stderr)
    assert "cannot write standard output" in result.stderr
