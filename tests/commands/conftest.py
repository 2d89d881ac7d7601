"""Fixtures of the tests of the commands."""

from collections.abc import Iterator
from pathlib import Path

import datasets
import pytest
import torch

from tests.commands.world import World, call
from tests.helpers import write_checkpoint


@pytest.fixture(scope="package", autouse=True)
def nothing_outside(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Use caches in a temporary folder, no network, and one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
        patch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        for variable in ("WORLD_SIZE", "RANK", "LOCAL_RANK"):
            patch.delenv(variable, raising=False)
        yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="package")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("checkpoint") / "tiny")


@pytest.fixture(scope="package")
def finished_run(tmp_path_factory: pytest.TempPathFactory, checkpoint: Path) -> Path:
    """Return the folder of a run of one step."""
    world = World(tmp_path_factory.mktemp("finished"), checkpoint)
    assert call("train", *world.train()) == 0
    return world.out


@pytest.fixture
def world(tmp_path: Path, checkpoint: Path) -> World:
    return World(tmp_path, checkpoint)
