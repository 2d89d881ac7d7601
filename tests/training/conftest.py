"""Fixtures of the tests of training."""

import json
import multiprocessing
from collections.abc import Iterator
from pathlib import Path

import datasets
import pytest
import torch

from bertqa.runtime import Runtime
from bertqa.training.run import Run
from tests.helpers import write_checkpoint
from tests.training.runs import make_run, trained


@pytest.fixture(scope="package", autouse=True)
def nothing_outside(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Use temporary caches, and one thread: runs are identical for the same number of threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
        for variable in ("WORLD_SIZE", "RANK", "LOCAL_RANK"):
            patch.delenv(variable, raising=False)
        yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="package")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_checkpoint(tmp_path_factory.mktemp("checkpoint") / "tiny")
    dropout = json.loads((folder / "config.json").read_text())
    assert dropout["hidden_dropout_prob"] == dropout["attention_probs_dropout_prob"] == 0.1
    return folder


@pytest.fixture(scope="package")
def still_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same checkpoint without dropout."""
    return write_checkpoint(
        tmp_path_factory.mktemp("checkpoint") / "still",
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )


@pytest.fixture(scope="package")
def teachers(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two models of other sizes, whose configs have dropout, which teachers must not use."""
    folder = tmp_path_factory.mktemp("teachers")
    large = write_checkpoint(folder / "large", seed=3, hidden_size=44, num_hidden_layers=4)
    return large, write_checkpoint(folder / "small", seed=4, hidden_size=20, num_hidden_layers=1)


@pytest.fixture(scope="package")
def whole_run(tmp_path_factory: pytest.TempPathFactory, checkpoint: Path) -> Run:
    """A run of twelve steps that was never stopped."""
    return trained(make_run(tmp_path_factory.mktemp("runs") / "whole", checkpoint))


@pytest.fixture
def one_of_two(monkeypatch: pytest.MonkeyPatch) -> None:
    """One process of two, without communication."""
    monkeypatch.setattr(Runtime, "wait_for_all", lambda runtime: None)
    monkeypatch.setattr(Runtime, "gather", lambda runtime, value: [value])
    monkeypatch.setattr(Runtime, "sum_over_ranks", lambda runtime, tensors: None)
    monkeypatch.setattr(Runtime, "max_over_ranks", lambda runtime, number: number)


@pytest.fixture(scope="package")
def server(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[multiprocessing.context.BaseContext]:
    """A fork server with everything imported, so that processes start quickly."""
    home = tmp_path_factory.mktemp("processes")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_DATASETS_CACHE", str(home / "datasets"))
        patch.setenv("HF_HOME", str(home / "hf"))
        patch.setenv("HF_HUB_OFFLINE", "1")
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(
            ["tests.training.processes", "bertqa.commands.train", "bertqa.training.job"]
        )
        yield context
