"""Benchmarks: turns, rejections, ratios, tables on pages. Times are not checked."""

import importlib
import re
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import all as every
from benchmarks import (
    equal_training,
    forward,
    growth,
    harness,
    inference,
    memory,
    models,
    operators,
    processes,
    same_answers,
    startup,
    training,
    whole_job,
)
from benchmarks.data import add_model_flag
from benchmarks.equal_training import verdict
from benchmarks.harness import (
    Contender,
    Measured,
    command_line,
    measure,
    parser,
    publish,
    ratio_text,
    table,
)
from benchmarks.models import SIZES
from benchmarks.same_answers import NOTHING, Found, cause
from bertqa.commands import infer
from bertqa.commands.flags import run_script
from bertqa.model.config import BertConfig
from tests.helpers import write_checkpoint


def contender(name: str, diary: Path, value: float = 1.0, make: str = "task") -> Contender:
    arguments = {"name": name, "diary": str(diary), "value": value}
    return Contender(name, f"tests.tasks:{make}", arguments)


def close(row: Contender, result: dict[str, list[Any]], reference: dict[str, list[Any]]) -> str:
    return "" if abs(result["value"][0] - reference["value"][0]) <= 0.1 else "far off"


def run(contenders: list[Contender]) -> list[Measured]:
    return measure(contenders, rounds=2, threads=1, compare=close)


def test_contenders_take_turns_and_failing_or_different_ones_are_not_timed(tmp_path):
    """The first round is a warmup; a rejected contender has a reason and does not stop others."""
    diary = tmp_path / "diary"
    given = [("right", 1.0, "task"), ("wrong", 1.2, "task"), ("close", 1.05, "task")]
    given += [("failing", 1.0, "failing"), ("doomed", 1.0, "doomed")]
    rows = run([contender(name, diary, value, make) for name, value, make in given])
    assert diary.read_text().split() == ["right", "close"] * 3
    assert [len(row.seconds) for row in rows] == [2, 0, 2, 0, 0]
    assert [row.failure for row in rows[:4]] == ["", "far off", "", "ValueError: no such model"]
    assert "stopped with code 3" in rows[4].failure
    assert all(row.peak_mib > 1 for row in rows if row.seconds)


def test_a_failing_reference_stops_the_benchmark(tmp_path):
    diary = tmp_path / "diary"
    with pytest.raises(SystemExit, match="no such model"):
        run([contender("lost", diary, make="failing"), contender("fine", diary)])
    assert not diary.exists()


def test_the_command_on_a_page_can_be_parsed_again(tmp_path):
    flags_parser = parser("")
    flags_parser.add_argument("--one", action="store_true")
    given = ["--one", "--rounds", "3", "--data", str(tmp_path)]
    flags = flags_parser.parse_args(given)
    shown = command_line("benchmarks.it", flags_parser, flags)
    assert shown == "python -m benchmarks.it --data PATH --rounds 3 --one"
    again = flags_parser.parse_args(shown.replace("PATH", str(tmp_path)).split()[3:])
    assert vars(again) == vars(flags)


def test_ratios_are_computed_within_a_round():
    ours, theirs = (Measured(Contender(name, "")) for name in ("ours", "theirs"))
    ours.seconds, theirs.seconds = [1.0, 10.0, 2.0], [2.0, 30.0, 2.0]
    assert ours.ratios(theirs) == [2.0, 3.0, 1.0]
    assert ratio_text(ours.ratios(theirs)) == "2.00 (1.00–3.00)"
    assert ours.median == 2.0
    assert ratio_text([2.0]) == "2.00"  # one round has no range


def test_the_conditions_of_a_table_agree_in_number():
    conditions = [harness.conditions(Namespace(threads=n, rounds=3 - n)) for n in (1, 2)]
    assert conditions == ["1 thread, 2 rounds", "2 threads, 1 round"]


def test_a_table_is_published_between_its_markers(tmp_path, monkeypatch):
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- x -->\nold\n<!-- end of x -->\n<!-- xy -->\n<!-- end of xy -->\n")
    text = table(["name", "s"], [["a", "1"]])
    publish("x", "python -m it", text, page)
    content = page.read_text()
    assert content.count("| a | 1 |") == 1 and "old" not in content
    assert content.startswith("before\n<!-- x -->\n```bash\npython -m it\n```\n\n| name | s |")
    assert content.endswith("<!-- end of x -->\n<!-- xy -->\n<!-- end of xy -->\n")
    monkeypatch.setattr(sys, "argv", ["it", "--page", str(page)])
    with pytest.raises(SystemExit, match="must contain <!-- z -->"):  # before measuring
        harness.run(parser(""), lambda flags, folder: pytest.fail("worked"), "z")


def test_every_table_has_markers_on_the_page():
    page = (Path(__file__).parent.parent / "docs" / "speed.md").read_text(encoding="utf-8")
    names = [
        "inference minilm", "inference minilm one", "inference base", "training minilm",
        "whole job", "startup", "memory", "growth",
        "inference base gpu",
        "inference large gpu", "training base batch 32 gpu", "training large batch 32 gpu",
        "training large batch 64 gpu", "profile bf16", "profile int8", "profile training",
    ]  # fmt: skip
    for name in names:
        assert page.count(f"<!-- {name} -->") == page.count(f"<!-- end of {name} -->") == 1


@pytest.mark.parametrize("on_gpu", [False, True])
def test_all_passes_valid_flags_to_each_benchmark(on_gpu, monkeypatch, tmp_path):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: on_gpu)
    (tmp_path / "page.md").touch()
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "config.json").touch()
    given = Namespace(
        data=tmp_path, model=tmp_path / "m", peer_python=tmp_path / "p", page=tmp_path / "page.md",
        peak=790.0,
    )  # fmt: skip
    found = list(every.commands(given, tmp_path / "f"))
    if on_gpu:
        assert found.pop()[1:] == ["-m", "pytest", "-m", "gpu"]
    assert len(found) == (5 if on_gpu else 11)
    for command in found:
        benchmark = importlib.import_module(command[2])
        taken: list[list[str]] = []

        def refuse(self, arguments=None, namespace=None, taken=taken):
            taken.append(self.parse_known_args(sys.argv[1:])[1])
            raise SystemExit

        monkeypatch.setattr(ArgumentParser, "parse_args", refuse)
        monkeypatch.setattr(sys, "argv", command[2:])
        with pytest.raises(SystemExit):
            benchmark.main()
        assert taken == [[]], command


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--threads", "99999"], "--threads: must be at most .* got 99999"),
        (["--rounds", "0"], "--rounds: must be at least 1, got '0'"),
        (["--data", "nowhere"], "--data: must be an existing folder, got nowhere"),
        (["--model", "nowhere"], "--model: must be a folder with config.json, got nowhere"),
        (["--page", "none.md"], "--page: must be an existing file, got none.md"),
    ],
)
def test_invalid_flags_exit_before_measuring(flags, message, capsys):
    with pytest.raises(SystemExit, match="2"):
        of_a_benchmark = parser("")
        add_model_flag(of_a_benchmark)
        of_a_benchmark.parse_args(flags)
    assert re.search(message, capsys.readouterr().err)


def test_causes_of_different_answers():
    context = "an e\u0301lan (oak)"
    elan, cut = Found("e\u0301lan", 3, 8, 9.0), Found("e", 3, 4, 9.0)
    assert cause(context, Found("e\u0301", 3, 5, 9.0), cut) == "characters"
    assert cause(context, elan, Found("oak", 10, 13, 9.0004)) == "tie"
    assert cause(context, Found("(oak)", 9, 14, 9.0), Found("oak", 10, 13, 9.0004)) == "tie"
    assert cause(context, elan, Found("oak", 10, 13, 8.8)) == "search"
    assert cause(context, elan, NOTHING) == "search"
    assert cause(context, elan, Found("oak", 10, 13, 9.2)) == "other"


def test_the_verdict_has_differences_and_t_statistics():
    ours = [(1.0, 50.0, 60.0), (2.0, 50.0, 61.0), (3.0, 50.0, 62.0)]
    theirs = [(loss + 2, em, f1) for loss, em, f1 in ours]
    text = verdict(ours, theirs)
    assert text.startswith("final loss: ours minus theirs -2.000, t = -2.4;")
    assert text.endswith("F1: ours minus theirs +0.000, t = +0.0.")


def test_no_file_has_the_name_of_a_standard_module():
    """The peer's script runs in this folder, where such a file would shadow the module."""
    names = {path.stem for path in (every.ROOT / "benchmarks").glob("*.py")}
    assert not names & sys.stdlib_module_names


# --- each benchmark, with tiny models ------------------------------------------------------------


class InThisProcess:
    """Replacement for the harness's worker processes, which take seconds to start."""

    def __init__(self, contender: Contender, threads: int) -> None:
        module, function = contender.factory.split(":")
        try:
            self.task = getattr(importlib.import_module(module), function)(**contender.arguments)
        except Exception as error:
            raise RuntimeError(f"{type(error).__name__}: {error}") from error

    def ask(self, line: str) -> dict[str, Any]:
        if line == "result":
            return {"result": self.task.result()}
        return {"seconds": 1.0, "peak_mib": self.work()}

    def work(self) -> float:
        self.task.work()
        return 1.0

    def close(self) -> None:
        pass


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Flags for a tiny model; without a compiler, which would be slowest."""
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    monkeypatch.setitem(SIZES, "base", BertConfig(intermediate_size=16, **sizes))
    monkeypatch.setattr(models, "GEMM_FLOPS", 1e6)
    monkeypatch.setattr(harness, "Worker", InThisProcess)
    monkeypatch.setattr(forward.shutil, "which", lambda name: None)
    return ["--size", "base", "--folder", str(tmp_path), "--threads", "1"]


@pytest.fixture
def model(tmp_path: Path) -> str:
    """A checkpoint with a tokenizer."""
    return str(write_checkpoint(tmp_path / "model", max_position_embeddings=384))


@pytest.fixture
def no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Call infer.py in this process."""

    started = processes.ProcessTask.work

    def work(task: processes.ProcessTask) -> str:
        _, script, *flags = task.command
        if Path(script).name != "infer.py":
            return started(task)
        with redirect_stdout(StringIO()) as printed:
            if run_script(infer.main, infer.parse_flags(flags)):
                raise RuntimeError("infer.py has failed")
        return printed.getvalue()

    monkeypatch.setattr(processes.ProcessTask, "work", work)
    monkeypatch.setenv("PYTHONPATH", str(harness.ROOT))
    monkeypatch.setattr(harness, "Worker", InThisProcess)


def printed_table(main: Callable[[], None], flags: list[str]) -> list[list[str]]:
    """Run a benchmark; return the rows that it prints, without the header."""
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(StringIO()) as printed:
        patch.setattr(sys, "argv", ["it", *flags])
        main()
    lines = [line for line in printed.getvalue().splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def test_the_table_of_the_forward_pass(tiny: list[str]) -> None:
    rows = printed_table(inference.main, [*tiny, "--rounds", "1", "--windows", "3"])
    by_name = {row[0]: row[1:] for row in rows}
    native = inference.has_native_bf16()
    for name in ("transformers eager fp32 padded", "transformers sdpa fp32 sorted", "bertqa fp32"):
        assert by_name[name][0] == "3.0", rows  # windows per second; not rejected
        assert float(by_name[name][-2]) < 1e-4, rows  # off by
    assert "peak GEMM: fp32" in by_name
    assert ("bertqa bf16" in by_name) == native


def test_the_table_of_latency(tiny: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inference, "ONE_LENGTHS", (12, 20))
    monkeypatch.setattr(inference, "ONE_CALLS", 2)
    rows = {
        row[0]: row[1:] for row in printed_table(inference.main, [*tiny, "--rounds", "1", "--one"])
    }
    assert {"transformers eager fp32", "transformers sdpa fp32", "bertqa fp32"} <= set(rows)
    ours = rows["bertqa fp32"]
    assert ours[0] == ours[len(ours) // 2] == "500.0", rows  # milliseconds per call


def test_the_table_of_training(tiny: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "has_native_bf16", lambda: False)  # half as many contenders
    flags = [*tiny, "--rounds", "1", "--batch_size", "2", "--steps", "2"]
    rows = printed_table(training.main, flags)
    peers = [
        f"transformers {attention} fp32 {width}"
        for width in ("padded", "longest")
        for attention in ("eager", "sdpa")
    ]
    assert [row[0] for row in rows][:5] == [*peers, "bertqa fp32"]
    assert [row[1] for row in rows] == ["4.0"] * 5 + [""], rows  # windows per second; none rejected


@pytest.mark.parametrize("flags", [["--training"], ["--windows", "2"]])
def test_the_table_of_operators(
    tiny: list[str], monkeypatch: pytest.MonkeyPatch, flags: list[str]
) -> None:
    monkeypatch.setattr(operators, "BATCH_SIZE", 2)
    monkeypatch.setattr(operators, "STEPS", 1)
    # Which operators of such a small step are the slowest is chance: show all of training's.
    monkeypatch.setattr(operators, "ROWS", 1000 if "--training" in flags else 5)
    threads = torch.get_num_threads()
    rows = printed_table(operators.main, [*tiny, *flags, "--precision", "fp32"])
    torch.set_num_threads(threads)
    assert len(rows) == 6 or "--training" in flags
    assert sum(float(share) for _, share in rows) == pytest.approx(100, abs=0.05 * len(rows))
    assert any("adamw" in name for name, _ in rows) == ("--training" in flags)


def test_the_table_of_whole_jobs(model: str, no_process: None) -> None:
    rows = printed_table(
        whole_job.main, ["--model", model, "--rounds", "1", "--questions", "3", "--threads", "1"]
    )
    assert [row[0] for row in rows] == [whole_job.EXACT, whole_job.DEFAULT, whole_job.INTEGERS]
    for row, share in zip(rows[:2], (6, 7), strict=True):  # some processors do not support int8
        assert row[1:3] == ["1.0", "3.0"] and row[share] == "100.0", rows


def test_the_table_of_memory(model: str, no_process: None) -> None:
    rows = printed_table(
        memory.main,
        ["--model", model, "--questions", "2", "--singly", "3", "--threads", "1"],
    )
    assert [row[0] for row in rows[:3]] == ["1", "2", "20"]
    assert all(float(row[2]) >= 0 and row[4] == "1.00" for row in rows[:3]), rows
    assert [row[0] for row in rows[-3:]] == ["1", "3", "3, oneDNN's own limits"], rows


def test_the_tables_of_growth(model: str, no_process: None) -> None:
    flags = ["--model", model, "--questions", "100", "--characters", "10000", "--threads", "1"]
    found = printed_table(growth.main, [*flags, "--tables", "questions", "context", "n_best_size"])
    rows = [row for row in found if row[0][0].isdigit()]
    sizes = ["10", "100", "1,000", "10,000", "1", "10", "100", "1,000"]
    assert [row[0] for row in rows] == sizes
    assert all(float(row[1]) > 0 for row in rows), rows
    assert [bool(row[2]) for row in rows[:5]] == [False, True, False, True, False], rows


class Once(InThisProcess):
    """The same, without running the task again for timing."""

    def work(self) -> float:
        return self.task.peak_mib()


def test_the_table_of_cold_starts(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(harness, "Worker", Once)
    rows = printed_table(startup.main, ["--model", model, "--rounds", "1"])
    assert [row[0] for row in rows] == [
        "import torch, read the weights", startup.OURS, "import bertqa",
    ]  # fmt: skip
    assert all(row[1] == "1.00" and float(row[3]) > 1 for row in rows), rows


def test_the_table_of_the_same_answers(model: str) -> None:
    rows = printed_table(same_answers.main, ["--model", model, "--questions", "3"])
    assert [row[0].split(",")[0] for row in rows] == ["transformers 5", *["bertqa"] * 4]
    assert all(row[3][0] in "0123" for row in rows[1:]), rows


def test_the_table_of_equal_training(model: str) -> None:
    flags = "--examples 4 --questions 2 --seeds 2 --epochs 1".split()
    rows = printed_table(equal_training.main, ["--model", model, *flags])
    assert [row[:2] for row in rows] == [
        [who, which] for who in ("bertqa", "Trainer") for which in ("1", "2", "mean")
    ]
    losses = [float(row[2]) for row in rows if row[1] != "mean"]
    assert losses == pytest.approx([losses[0]] * 4, rel=0.2)  # the same encoder, barely trained
