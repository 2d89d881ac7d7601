"""Each core trains on windows of its own: the same step, whatever the number of cores."""

from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest
import torch

from bertqa.model.kernels import dropout_generator, keep_mask
from bertqa.runtime import Runtime
from bertqa.settings import TrainingSettings
from bertqa.training.replicas import Replicas
from tests.training.runs import CPU, FP32, SETTINGS, load, make_loop, same, weights_of

EIGHT = replace(SETTINGS, per_device_train_batch_size=8, gradient_accumulation_steps=2)


@pytest.fixture(params=[2, 3], ids="{}_cores".format)
def cores(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.fixture
def one_core() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def shares_of(lengths: list[int], device: torch.device = CPU) -> list[list[int]]:
    replicas = Replicas(torch.nn.Module(), Runtime(device))  # type: ignore[arg-type]
    return [share.tolist() for share in replicas.split(torch.tensor(lengths))]


def test_shares_have_about_as_many_tokens_each(cores: int) -> None:
    lengths = [384, 50, 60, 70, 80, 90, 384, 100, 110, 120, 130, 384, 140, 150]
    shares = shares_of(lengths)
    assert len(shares) == cores
    assert sorted(window for share in shares for window in share) == list(range(len(lengths)))
    assert all(share == sorted(share) for share in shares)
    tokens = [sum(lengths[window] for window in share) for share in shares]
    assert max(tokens) - min(tokens) <= min(lengths)


@pytest.mark.usefixtures("cores")
def test_a_small_batch_and_that_of_a_gpu_stay_whole() -> None:
    assert shares_of([5] * 7) == [list(range(7))]
    assert len(shares_of([5] * 8)) == 2
    assert shares_of([5] * 100, torch.device("cuda")) == [list(range(100))]


def test_one_core_takes_the_whole_batch(one_core: None) -> None:
    assert shares_of([5] * 100) == [list(range(100))]


def run_of(checkpoint: Path, settings: TrainingSettings, threads: int) -> tuple[object, ...]:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        loop = make_loop(checkpoint, settings)
        steps = list(loop.steps())
    finally:
        torch.set_num_threads(before)
    return [float(step.loss) for step in steps], [s.tokens for s in steps], weights_of(loop), loop


def test_several_cores_do_the_steps_of_one(still_checkpoint: Path) -> None:
    """Without dropout, but for rounding."""
    losses, tokens, weights, one = run_of(still_checkpoint, EIGHT, 1)
    found, found_tokens, found_weights, two = run_of(still_checkpoint, EIGHT, 2)
    assert [len(loop.replicas.models) for loop in (one, two)] == [1, 2]  # type: ignore[attr-defined]
    assert found == pytest.approx(losses, rel=1e-5)
    assert found_tokens == tokens
    torch.testing.assert_close(found_weights, weights, rtol=0, atol=1e-5)


def test_a_step_depends_on_the_seed_and_its_number_alone(checkpoint: Path, cores: int) -> None:
    """With dropout too: a run that goes on later is the same run, bit for bit."""
    whole, resumed = make_loop(checkpoint, EIGHT), make_loop(checkpoint, EIGHT)
    expected = [float(step.loss) for step in whole.steps()]
    found = [float(step.loss) for step in islice(resumed.steps(), 2)]
    torch.manual_seed(99)
    found += [float(step.loss) for step in resumed.steps(2)]
    assert found == expected
    assert same(weights_of(resumed), weights_of(whole))


def test_replicas_share_the_weights_and_keep_no_gradients(checkpoint: Path, cores: int) -> None:
    loop = make_loop(checkpoint, EIGHT)
    list(loop.steps())
    model, *replicas = loop.replicas.models
    assert len(replicas) == min(cores, 2) - 1
    for replica in replicas:
        for ours, theirs in zip(model.parameters(), replica.parameters(), strict=True):
            assert ours is not theirs and ours.data_ptr() == theirs.data_ptr()
            assert theirs.grad is None


def test_each_share_draws_dropout_of_its_own(checkpoint: Path, cores: int) -> None:
    def draw(seed: int) -> list[torch.Tensor]:
        torch.manual_seed(seed)
        replicas = Replicas(load(checkpoint), FP32)
        shares = [torch.tensor([0])] * cores
        return replicas.map(lambda model, share: keep_mask((100,), 0.5)[0], shares)

    first, second, *_ = draw(1)
    assert not torch.equal(first, second)
    assert all(map(torch.equal, draw(1), draw(1)))
    assert not torch.equal(draw(2)[0], first)


def test_the_generator_holds_in_its_block_alone() -> None:
    def draw() -> torch.Tensor:
        return keep_mask((100,), 0.5)[0]

    torch.manual_seed(3)
    expected = draw()
    torch.manual_seed(3)
    with dropout_generator(torch.Generator().manual_seed(4)):
        assert not torch.equal(draw(), expected)
    assert torch.equal(draw(), expected)


def test_an_error_in_one_share_is_raised(checkpoint: Path, cores: int) -> None:
    def fail(model: object, share: torch.Tensor) -> None:
        if share.tolist() == [1]:
            raise ValueError("share 1")

    with pytest.raises(ValueError, match="share 1"):
        Replicas(load(checkpoint), FP32).map(fail, [torch.tensor([0]), torch.tensor([1])])
