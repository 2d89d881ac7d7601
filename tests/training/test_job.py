"""A complete training: by function and by train.py, in one or several processes."""

import json
import os
import shutil
import subprocess
import sys
import weakref
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from transformers import AutoModelForQuestionAnswering, AutoTokenizer

from bertqa import QuestionAnswerer
from bertqa.answering.decoding_file import update_temperature
from bertqa.commands import train
from bertqa.data.batching import collate
from bertqa.data.labels import make_labelled_windows
from bertqa.data.squad import data_fingerprint
from bertqa.errors import UserError
from bertqa.model.checkpoint import read_tensors
from bertqa.runtime import Runtime
from bertqa.settings import DataSettings, DecodingSettings, TrainingSettings, WindowSettings
from bertqa.training import job
from bertqa.training.loop import TrainingLoop
from bertqa.training.provenance import git_commit, processor
from bertqa.training.validation import make_evaluator
from tests.fuzz_checkpoints import read_files
from tests.helpers import STORIES, STORIES_V2, their_batch, unpadded, write_checkpoint
from tests.hub_server import HubServer, use_hub
from tests.training.processes import ended, meeting, start
from tests.training.runs import (
    CPU,
    EXAMPLES,
    FP32,
    ROOT,
    SETTINGS,
    TRAINING,
    WINDOWS,
    log_of,
    losses_of,
)


def test_the_function_equals_train_py(
    tmp_path: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    printed: list[object] = []
    data = DataSettings(
        train_file=STORIES, validation_file=STORIES, max_train_samples=4, max_eval_samples=3
    )
    settings = TrainingSettings(max_steps=2, per_device_train_batch_size=4, learning_rate=1e-3)
    progress = job.train(
        str(checkpoint), data, tmp_path / "called",
        settings=settings, windows=WINDOWS, runtime=FP32, say=printed.append,
    )  # fmt: skip
    assert progress.step == 2
    names = [str(line).partition(":")[0] for line in printed[1:3]]
    assert names == ["training", "validation"]
    assert str(printed[3]).startswith("2 steps of 4 windows on cpu in torch.float32, from step 0")
    assert capsys.readouterr().out.split()[:2] == ["epoch", "step"]  # the evaluations
    assert not (tmp_path / "called" / "report.html").exists()  # an observer writes it

    flags = train_flags(
        checkpoint, tmp_path / "commanded", "--validation_file", str(STORIES),
        "--max_train_samples", "4", "--max_eval_samples", "3", "--max_steps", "2",
        "--per_device_train_batch_size", "4", "--learning_rate", "1e-3",
    )  # fmt: skip
    assert train.main(train.parse_flags(flags)) == 0
    assert capsys.readouterr().out.startswith("\n".join(map(str, printed[:4])))
    called, commanded = (tmp_path / name for name in ("called", "commanded"))
    assert log_of(called) == log_of(commanded)
    for name in ("model.safetensors", "predictions.json", "labels.json"):
        assert (called / name).read_bytes() == (commanded / name).read_bytes()
    assert (commanded / "report.html").exists()


def test_the_optimizer_is_free_when_the_best_model_is_calibrated(
    tmp_path: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its moments and the trained weights need four times the memory of the model loaded then."""
    made: list[weakref.ref[Any]] = []
    alive: list[bool] = []
    init = TrainingLoop.__init__

    def seen(loop: TrainingLoop, model: Any, *arguments: Any) -> None:
        init(loop, model, *arguments)
        made.extend(weakref.ref(each) for each in (model, loop.optimizer))

    monkeypatch.setattr(TrainingLoop, "__init__", seen)
    monkeypatch.setattr(
        job, "calibrate_best", lambda *given: alive.extend(each() is not None for each in made)
    )
    data = DataSettings(
        train_file=STORIES, validation_file=STORIES, max_train_samples=4, max_eval_samples=3
    )
    settings = TrainingSettings(max_steps=1, per_device_train_batch_size=4)
    job.train(
        str(checkpoint), data, tmp_path / "run",
        settings=settings, windows=WINDOWS, runtime=FP32, say=lambda line: None,
    )  # fmt: skip
    assert alive == [False, False]


def test_early_stopping_is_reported(tmp_path: Path, checkpoint: Path) -> None:
    printed: list[object] = []
    data = DataSettings(
        train_file=STORIES, validation_file=STORIES, max_train_samples=4, max_eval_samples=3
    )
    for patience, last in ((2, 3), (2, 3), (3, 4)):  # resumed, it ends at once, or continues
        settings = TrainingSettings(
            max_steps=6, eval_steps=1, learning_rate=1e-9, early_stopping_patience=patience
        )
        job.train(
            str(checkpoint), data, tmp_path / "run",
            settings=settings, windows=WINDOWS, runtime=FP32, say=printed.append, resume=True,
        )  # fmt: skip
        reason = f"after step {last} of 6: F1 has not improved in {patience} evaluations"
        assert reason in str(printed[-2])
    assert (tmp_path / "run" / "model.safetensors").exists()


def test_a_run_of_an_older_version_chooses_its_threshold_without_weights(
    tmp_path: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shares: list[float | None] = []

    def kept(*given: Any) -> Any:
        shares.append(given[-2])
        return make_evaluator(*given)

    monkeypatch.setattr(job, "make_evaluator", kept)
    data = DataSettings(train_file=STORIES_V2, validation_split_percentage=50, max_train_samples=4)
    for _ in range(2):
        job.train(
            str(checkpoint), data, tmp_path / "run", settings=TrainingSettings(max_steps=1),
            windows=WINDOWS, decoding=DecodingSettings(version_2_with_negative=True),
            runtime=FP32, resume=True,
        )  # fmt: skip
        entries = json.loads((tmp_path / "run" / "run.json").read_text())
        entries["settings"].pop("unanswerable_share", None)
        (tmp_path / "run" / "run.json").write_text(json.dumps(entries))
    assert shares == [0.5, None]


def test_only_the_main_process_prints(tmp_path: Path, checkpoint: Path, one_of_two: None) -> None:
    printed: list[object] = []
    data = DataSettings(train_file=STORIES, max_train_samples=4)
    job.train(
        str(checkpoint), data, tmp_path / "run", settings=TrainingSettings(max_steps=1),
        windows=WINDOWS, runtime=Runtime(CPU, rank=1, world_size=2), say=printed.append,
    )  # fmt: skip
    assert printed == [] and not (tmp_path / "run").exists()


def train_flags(checkpoint: Path, folder: Path, *more: str) -> list[str]:
    # fmt: off
    return [
        "--model", str(checkpoint), "--train_file", str(STORIES), "--output_dir", str(folder),
        "--max_seq_length", "96", "--doc_stride", "16", "--max_query_length", "24",
        "--device", "cpu", "--precision", "fp32", *more,
    ]
    # fmt: on


def test_the_contents_of_run_json(
    tmp_path: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"
    flags = train_flags(
        checkpoint, folder, "--validation_file", str(STORIES), "--max_train_samples", "4",
        "--max_eval_samples", "3", "--max_steps", "2", "--learning_rate", "1e-3",
        "--gradient_accumulation_steps", "2", "--per_device_train_batch_size", "3",
        "--max_answer_length", "12", "--model", "org/bert", "--revision", "v1",
    )  # fmt: skip
    monkeypatch.setattr(sys, "argv", ["train.py", *flags])
    with HubServer() as hub:
        use_hub(monkeypatch, hub.url, tmp_path / "home")
        hub.branches["v1"] = hub.add("org/bert", read_files(checkpoint))
        hub.add("org/bert", {})
        train.main(train.parse_flags(flags))
    run = json.loads((folder / "run.json").read_text())
    settings = run.pop("settings")
    assert settings.pop("windows_per_step") == 6
    assert settings.pop("precision") == "torch.float32"
    assert settings.pop("model") == "org/bert"
    assert settings.pop("model_commit") == hub.branches["v1"]
    assert (settings.pop("teachers"), settings.pop("teacher_digests")) == ([], [])
    assert TrainingSettings(**settings) == TrainingSettings(
        max_steps=2, learning_rate=1e-3, gradient_accumulation_steps=2,
        per_device_train_batch_size=3,
    )  # fmt: skip
    data = run.pop("data")
    assert data["train"] == data_fingerprint(EXAMPLES[:4])
    assert data["validation"] == data_fingerprint(EXAMPLES[:3]) != data["train"]
    assert (data["labels"], data["added_tokens"]) == ("the first", 0)
    assert WindowSettings(**data["windows"]) == WINDOWS
    assert DecodingSettings(**data["decoding"]) == DecodingSettings(max_answer_length=12)
    versions = run.pop("versions")
    assert versions["torch"] == torch.__version__
    assert versions["datasets"] == datasets.__version__
    assert versions["python"] == ".".join(map(str, sys.version_info[:3]))
    assert None not in versions.values()
    assert run == {
        "git_commit": git_commit(),
        "command": ["train.py", *flags],
        "device": "cpu",
        "processor": processor(torch.device("cpu")),
        "threads": torch.get_num_threads(),
        "processes": 1,
    }


# --- the commit ----------------------------------------------------------------------------------


def git(folder: Path, *arguments: str) -> str:
    command = ["git", "-c", "user.name=a", "-c", "user.email=a@b.c", *arguments]
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
    return result.stdout.strip()


def source_tree(folder: Path, project: str = "bertqa") -> Path:
    """Make a source tree like this project's, without a repository; return its package."""
    package = folder / "bertqa"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("1")
    (folder / "pyproject.toml").write_text(f'[project]\nname = "{project}"\n')
    return package


def committed(folder: Path) -> str:
    """Commit everything in a folder to a new repository; return the commit."""
    git(folder, "init")
    git(folder, "add", "--force", ".")
    git(folder, "commit", "-m", "first")
    return git(folder, "rev-parse", "HEAD")


needs_git = pytest.mark.skipif(not shutil.which("git"), reason="git is not installed")


@needs_git
def test_the_commit_of_the_source_tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    package = source_tree(tmp_path)
    assert git_commit(package) is None  # no repository
    commit = committed(tmp_path)
    git(tmp_path, "tag", "-a", "v1", "-m", "a name must not hide the commit")
    assert git_commit(package) == commit
    (package / "__init__.py").write_text("2")
    assert git_commit(package) == f"{commit}-dirty"
    monkeypatch.setenv("PATH", str(tmp_path))
    assert git_commit(package) is None  # no git


@needs_git
def test_the_commit_of_another_project_is_not_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path))
    theirs = source_tree(tmp_path / "theirs", project="thesis")
    within = source_tree(tmp_path / "whole" / "third_party")
    beside = source_tree(tmp_path / "untracked")
    for folder in (tmp_path / "theirs", tmp_path / "whole"):
        committed(folder)
    git(tmp_path / "untracked", "init")
    git(tmp_path / "untracked", "commit", "--allow-empty", "-m", "first")
    assert [git_commit(package) for package in (theirs, within, beside)] == [None] * 3


@needs_git
def test_an_installed_copy_has_no_commit(tmp_path: Path) -> None:
    """In a virtual environment inside a user's repository, even if it is committed."""
    target = tmp_path / ".venv" / "lib" / "site-packages"
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "bertqa", target / "bertqa", ignore=ignored)
    (tmp_path / "pyproject.toml").write_text('[project]\nname = "thesis"\n')
    committed(tmp_path)
    code = "from bertqa.training import provenance as p; print(p.__file__, p.git_commit())"
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True,
        env=os.environ | {"PYTHONPATH": str(target)},
    )  # fmt: skip
    assert result.stdout.split() == [str(target / "bertqa/training/provenance.py"), "None"]


# --- the trained model ---------------------------------------------------------------------------


def test_transformers_and_the_answerer_load_the_trained_model(
    tmp_path: Path, checkpoint: Path
) -> None:
    folder = tmp_path / "run"
    flags = train_flags(checkpoint, folder, "--max_train_samples", "4", "--max_steps", "2")
    train.main(train.parse_flags(flags))
    theirs = AutoModelForQuestionAnswering.from_pretrained(folder).eval()
    their_tokenizer = AutoTokenizer.from_pretrained(folder)
    qa = QuestionAnswerer.from_pretrained(folder, device="cpu", precision="fp32")
    example = TRAINING[1]
    answer = qa(example.question, example.context)
    assert answer["answer"] == example.context[answer["start"] : answer["end"]] != ""

    windows = make_labelled_windows(TRAINING, qa.tokenizer, WindowSettings(384, 64))
    tokens = collate(windows, torch.arange(len(windows)))
    with torch.no_grad():
        ours = qa.model(tokens)
        rows = [windows[i] for i in range(len(windows))]
        batch = their_batch([w.input_ids for w in rows], [w.token_type_ids for w in rows])
        output = theirs(**batch)
    for name in ("start_logits", "end_logits"):
        expected = unpadded(getattr(output, name), tokens.lengths)
        torch.testing.assert_close(getattr(ours, name), expected, rtol=0, atol=1e-4)

    encoded = their_tokenizer(example.question, example.context)
    both = make_labelled_windows([example], qa.tokenizer, WindowSettings(10_000, 0))
    assert encoded["input_ids"] == both[0].input_ids
    assert encoded["token_type_ids"] == both[0].token_type_ids


# --- several processes ---------------------------------------------------------------------------


# Short windows, so that the processes share several blocks of the validation set. The last step of
# an epoch has one window instead of twelve, so that only one process has a window.
# fmt: off
SHARED_RUN = [
    "--validation_file", str(STORIES), "--max_train_samples", "1", "--max_eval_samples", "90",
    "--max_seq_length", "24", "--doc_stride", "0", "--max_query_length", "2",
    "--max_steps", "5", "--logging_steps", "1", "--learning_rate", "1e-3",
    "--eval_steps", "100", "--save_steps", "100", "--adam_epsilon", str(SETTINGS.adam_epsilon),
]
# fmt: on


@pytest.fixture(scope="module")
def one_process(tmp_path_factory: pytest.TempPathFactory, still_checkpoint: Path) -> Path:
    """The folder of a run of one process, twelve windows a step."""
    folder = tmp_path_factory.mktemp("one") / "run"
    flags = train_flags(
        still_checkpoint, folder, *SHARED_RUN, "--per_device_train_batch_size", "12"
    )
    train.main(train.parse_flags(flags))
    return folder


@pytest.mark.skipif(sys.platform == "win32", reason="needs fork")
@pytest.mark.parametrize(
    ("processes", "batch", "times"), [(2, 3, 2), (3, 4, 1)], ids=["two", "three"]
)
def test_several_processes_train_as_one_does(
    tmp_path: Path, still_checkpoint: Path, one_process: Path, server: Any,
    processes: int, batch: int, times: int,
) -> None:  # fmt: skip
    folder = tmp_path / "run"
    flags = train_flags(
        still_checkpoint, folder, *SHARED_RUN, "--per_device_train_batch_size", str(batch),
        "--gradient_accumulation_steps", str(times),
    )  # fmt: skip
    with meeting(processes) as environments:
        printed = [tmp_path / f"{rank}.txt" for rank in range(processes)]
        started = [
            start(server, flags, words, environment=environment)
            for words, environment in zip(printed, environments, strict=True)
        ]
        ends = [ended(process, words) for process, words in zip(started, printed, strict=True)]
    assert [code for code, _ in ends] == [0] * processes, ends
    outputs = [words for _, words in ends if "5 steps of 12 windows" in words]
    assert len(outputs) == 1 and "training: 25 windows" in outputs[0]  # only one process prints
    assert json.loads((folder / "run.json").read_text())["processes"] == processes
    assert losses_of(folder) == pytest.approx(losses_of(one_process), rel=0, abs=1e-5)
    theirs, ours = log_of(one_process)[-1], log_of(folder)[-1]
    assert ours["validation_loss"] == pytest.approx(theirs["validation_loss"], abs=1e-5)
    predictions = [json.loads((f / "predictions.json").read_text()) for f in (one_process, folder)]
    assert len(predictions[0]) == 90 and predictions[0].keys() == predictions[1].keys()
    same_texts = [predictions[0][id_] == predictions[1][id_] for id_ in predictions[0]]
    assert sum(same_texts) >= 85  # all except near-ties, which rounding may decide
    expected = read_tensors(one_process / "model.safetensors")
    weights = read_tensors(folder / "model.safetensors")
    assert weights.keys() == expected.keys()
    for name, value in weights.items():
        torch.testing.assert_close(value, expected[name], rtol=0, atol=1e-5)


@pytest.mark.skipif(sys.platform == "win32", reason="needs fork")
def test_several_processes_average_and_distil_as_one_does(
    tmp_path: Path, still_checkpoint: Path, teachers: tuple[Path, Path], server: Any
) -> None:
    def flags_of(folder: Path, batch: int, times: int) -> list[str]:
        return train_flags(
            still_checkpoint, folder, *SHARED_RUN, "--ema_decay", "0.3", "--teacher",
            *map(str, teachers), "--per_device_train_batch_size", str(batch),
            "--gradient_accumulation_steps", str(times),
        )  # fmt: skip

    one, two = tmp_path / "one", tmp_path / "two"
    train.main(train.parse_flags(flags_of(one, 12, 1)))
    with meeting() as environments:
        printed = [tmp_path / f"{rank}.txt" for rank in (0, 1)]
        started = [
            start(server, flags_of(two, 3, 2), words, environment=environment)
            for words, environment in zip(printed, environments, strict=True)
        ]
        ends = [ended(process, words) for process, words in zip(started, printed, strict=True)]
    assert [code for code, _ in ends] == [0, 0], ends
    assert losses_of(two) == pytest.approx(losses_of(one), rel=0, abs=1e-5)
    for file in ("model.safetensors", "checkpoints/step-00000005/ema.safetensors"):
        expected, weights = (read_tensors(folder / file) for folder in (one, two))
        assert weights.keys() == expected.keys()
        for name, value in weights.items():
            torch.testing.assert_close(value, expected[name], rtol=0, atol=1e-5)


def test_a_run_is_resumed_with_the_same_teachers(tmp_path: Path, checkpoint: Path) -> None:
    """Their folders may have moved; only their contents matter."""
    teacher = shutil.copytree(checkpoint, tmp_path / "teacher")
    data = DataSettings(train_file=STORIES, max_train_samples=4)

    def train_with(teachers: list[Path]) -> None:
        job.train(
            str(checkpoint), data, tmp_path / "run", settings=TrainingSettings(max_steps=1),
            windows=WINDOWS, runtime=FP32, say=str, resume=True, teachers=[*map(str, teachers)],
        )  # fmt: skip

    train_with([teacher])
    teacher = teacher.rename(tmp_path / "elsewhere")
    update_temperature(teacher, DecodingSettings(temperature=2.0), WINDOWS)  # its scores stay
    train_with([teacher])
    other = write_checkpoint(tmp_path / "other", seed=9)
    for teachers in ([other], [], [teacher, other]):
        with pytest.raises(UserError, match="teachers must be the same"):
            train_with(teachers)
