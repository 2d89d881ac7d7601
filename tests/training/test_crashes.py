"""train.py loses nothing if it is killed, the disk is full, or another process dies."""

import json
import random
import re
import signal
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from bertqa.model.checkpoint import load_checkpoint
from tests.helpers import STORIES, write_checkpoint
from tests.training.processes import ended, meeting, start
from tests.training.runs import log_of

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs fork and POSIX signals")

KILLS = 12
STEPS, EVERY = 75, 3
CALLS = 35_000  # approximate function calls of three steps and a checkpoint
TINY = {"hidden_size": 24, "intermediate_size": 29, "num_hidden_layers": 2}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("crashes")


def run_to_end(server, flags: list[str], output: Path) -> str:
    """Run train.py to its end; return its output."""
    code, words = ended(start(server, flags, output), output)
    assert code == 0, words
    return words


def resumed_at(output: str) -> int:
    """Return the step from which a run reports to continue."""
    (line,) = re.findall(r", from step (\d+)$", output, re.MULTILINE)
    return int(line)


def flags_of(checkpoint: Path, folder: Path, *more: object) -> list[str]:
    # fmt: off
    flags = [
        "--model", checkpoint, "--train_file", STORIES, "--output_dir", folder,
        "--max_train_samples", 20, "--max_seq_length", 96, "--doc_stride", 16,
        "--max_query_length", 24, "--device", "cpu", "--precision", "fp32", "--resume", *more,
    ]
    # fmt: on
    return [str(flag) for flag in flags]


def assert_all_whole(folder: Path) -> None:
    """Check that all checkpoints and the best model are complete."""
    for path in folder.glob("checkpoints/step-*"):
        load_checkpoint(path)
        load_file(path / "optimizer.safetensors")
        json.loads((path / "progress.json").read_text())
    if (folder / "model.safetensors").exists():
        load_checkpoint(folder)


def outcome(folder: Path) -> tuple[bytes, bytes, list[dict[str, float]]]:
    """Return the last weights, the best ones, and the log without times."""
    last = max(folder.glob("checkpoints/step-*"))
    weights = [(path / "model.safetensors").read_bytes() for path in (last, folder)]
    return weights[0], weights[1], log_of(folder)


@pytest.fixture(scope="module")
def checkpoint(home: Path) -> Path:
    """A checkpoint with dropout, whose masks a resumed run must reproduce."""
    return write_checkpoint(home / "tiny", **TINY)


RUN = (
    "--max_steps", STEPS, "--save_steps", EVERY, "--save_total_limit", 2, "--logging_steps", 7,
    "--per_device_train_batch_size", 4, "--learning_rate", 1e-3, "--validation_file", STORIES,
    "--max_eval_samples", 4, "--eval_steps", 25,
)  # fmt: skip


@pytest.fixture(scope="module")
def whole(server, home: Path, checkpoint: Path) -> Path:
    """The folder of an uninterrupted run."""
    folder = home / "whole"
    run_to_end(server, flags_of(checkpoint, folder, *RUN), home / "whole.txt")
    return folder


def test_a_run_killed_at_any_time_has_the_same_result(
    server, home: Path, checkpoint: Path, whole: Path
) -> None:
    """Half of the kills are during the writing of a file, the others anywhere."""
    folder, output, draw = home / "killed", home / "killed.txt", random.Random(0)
    flags = flags_of(checkpoint, folder, *RUN)
    kills = halves = 0
    while kills < KILLS:
        if kills % 2:
            process = start(server, flags, output, killed_at_sync=draw.randint(1, 10))
        else:
            step, later = draw.randint(1, 5), draw.randint(1, CALLS)
            process = start(server, flags, output, killed_at_step=step, calls_later=later)
        code, words = ended(process, output)
        assert code == -signal.SIGKILL, f"it ended after {kills} kills: {words}"
        kills += 1
        halves += any(folder.glob("checkpoints/.*.partial"))
        assert_all_whole(folder)
    assert halves >= KILLS // 6  # partial checkpoints
    assert resumed_at(run_to_end(server, flags, output)) > EVERY  # it had made progress before
    assert outcome(folder) == outcome(whole)
    assert not any(folder.rglob("*.partial"))


def test_a_full_disk_leaves_the_last_checkpoint(
    server, home: Path, checkpoint: Path, whole: Path
) -> None:
    """A limit of the file size makes a write fail in the middle of a file, as a full disk does."""
    folder, output = home / "full", home / "full.txt"
    flags = flags_of(checkpoint, folder, *RUN)
    code, words = ended(start(server, flags, output, killed_at_step=8), output)
    assert code == -signal.SIGKILL, words
    before = sorted(path.name for path in folder.glob("checkpoints/*"))
    assert before == ["step-00000003", "step-00000006"]
    code, words = ended(start(server, flags, output, file_size=20_000), output)
    assert code == 2, words
    errors = [line for line in words.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and "step-00000009" in errors[0], words
    assert "cannot be written" in errors[0] and "File too large" in errors[0]
    assert "step-00000006 by the same command with --resume" in errors[0]
    assert "Traceback" not in words
    assert sorted(path.name for path in folder.glob("checkpoints/*")) == before
    assert_all_whole(folder)
    assert resumed_at(run_to_end(server, flags, output)) == 6
    assert outcome(folder) == outcome(whole)


@pytest.mark.parametrize("kind", ["plain", "averaged and distilled"])
def test_a_signal_to_one_process_stops_both_after_the_same_step(
    server, home: Path, checkpoint: Path, kind: str
) -> None:
    """Only the second is signalled, in step 5; the first saves, and a resumed run is identical."""
    run = ("--max_steps", 12, "--save_steps", 3, "--logging_steps", 1, "--learning_rate", 1e-3)
    if kind != "plain":
        teacher = write_checkpoint(home / "teacher", seed=3, hidden_size=32)
        run += ("--ema_decay", 0.4, "--gradient_accumulation_steps", 2, "--teacher", teacher)
    folders = home / f"signalled {kind}", home / f"unsignalled {kind}"
    output = [home / "signalled0.txt", home / "signalled1.txt"]

    def both(folder: Path, step: int = 0) -> list[tuple[int, str]]:
        flags = flags_of(checkpoint, folder, *run, "--per_device_train_batch_size", 4)
        with meeting() as environments:
            processes = [
                start(server, flags, output[rank], environment=environments[rank],
                      killed_at_step=step * rank, number=signal.SIGTERM)
                for rank in (0, 1)
            ]  # fmt: skip
            return [ended(process, words) for process, words in zip(processes, output, strict=True)]

    (code, words), (other_code, _) = both(folders[0], step=5)
    assert code == other_code == 128 + signal.SIGTERM, words
    assert "stopped by SIGTERM after step 5 of 12, saved" in words
    assert max(folders[0].glob("checkpoints/*")).name == "step-00000005"
    for folder in folders:
        assert [code for code, _ in both(folder)] == [0, 0]
    assert outcome(folders[0]) == outcome(folders[1])


def test_a_process_that_dies_ends_the_others_and_fewer_can_continue(server, home: Path) -> None:
    still = write_checkpoint(
        home / "still", hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, **TINY
    )
    run = ("--max_steps", 12, "--save_steps", 3, "--logging_steps", 1, "--learning_rate", 1e-3)
    run += ("--adam_epsilon", 1e-4)  # a smaller one amplifies rounding errors of zero gradients
    folders = home / "two", home / "one"
    flags = [
        flags_of(still, folders[0], *run, "--per_device_train_batch_size", 4),
        flags_of(still, folders[1], *run, "--per_device_train_batch_size", 8),
    ]
    output = [home / "rank0.txt", home / "rank1.txt"]
    with meeting() as environments:
        processes = [
            start(server, flags[0], output[rank], environment=environments[rank],
                  killed_at_step=8 * rank)
            for rank in (0, 1)
        ]  # fmt: skip
        assert ended(processes[1], output[1])[0] == -signal.SIGKILL
        code, words = ended(processes[0], output[0])  # before the timeout of torch.distributed
    assert code == 2, words
    errors = [line for line in words.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and "another process" in errors[0] and "--resume" in errors[0], words

    continued = flags_of(still, folders[0], *run, "--per_device_train_batch_size", 8)
    assert resumed_at(run_to_end(server, continued, output[0])) == 6
    run_to_end(server, flags[1], output[1])
    ours, theirs = (load_file(folder / "model.safetensors") for folder in folders)
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name], value, rtol=0, atol=1e-5)
