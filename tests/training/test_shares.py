"""Each core trains on windows of its own: the same step, whatever the number of cores."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bertqa.model.kernels import dropout_generator, keep_mask
from bertqa.runtime import Runtime
from bertqa.training import shares
from bertqa.training.loop import TrainingLoop
from bertqa.training.optim import make_optimizer
from tests.training.runs import BF16, CPU, FP32, SETTINGS, make_loop, same, weights_of

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
    model: Any = nn.ModuleList()
    return [s.tolist() for s in shares.split(model, torch.tensor(lengths), Runtime(device))]


def test_shares_have_about_as_many_tokens_each(cores: int) -> None:
    lengths = [384, 50, 60, 70, 80, 90, 384, 100, 110, 120, 130, 384, 140, 150]
    found = shares_of(lengths)
    assert len(found) == cores
    assert sorted(window for share in found for window in share) == list(range(len(lengths)))
    assert all(share == sorted(share) for share in found)
    tokens = [sum(lengths[window] for window in share) for share in found]
    assert max(tokens) - min(tokens) <= min(lengths)


@pytest.mark.usefixtures("cores")
def test_a_small_batch_and_that_of_a_gpu_stay_whole() -> None:
    assert shares_of([5] * 7) == [list(range(7))]
    assert len(shares_of([5] * 8)) == 2
    assert shares_of([5] * 100, torch.device("cuda")) == [list(range(100))]


def test_one_core_takes_the_whole_batch(one_core: None) -> None:
    assert shares_of([5] * 100) == [list(range(100))]


@pytest.fixture
def threads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of threads of each call of ``Runtime.map_in_threads``."""
    found: list[int] = []
    map_in_threads = Runtime.map_in_threads

    def counted(runtime: Runtime, work: Any, items: Any, threads: int) -> Iterator[Any]:
        found.append(threads)
        return map_in_threads(runtime, work, items, threads)

    monkeypatch.setattr(Runtime, "map_in_threads", counted)
    return found


def run_of(loop: TrainingLoop) -> tuple[list[float], list[int], dict[str, Tensor]]:
    steps = list(loop.steps())
    return [float(step.loss) for step in steps], [s.tokens for s in steps], weights_of(loop)


@pytest.mark.parametrize("frozen", [False, True])
def test_several_cores_do_the_steps_of_one(
    still_checkpoint: Path, cores: int, threads: list[int], frozen: bool
) -> None:
    """Without dropout, up to rounding."""
    settings = replace(EIGHT, freeze_word_embeddings=frozen)
    found, found_tokens, found_weights = run_of(make_loop(still_checkpoint, settings))
    assert set(threads) == {2}
    torch.set_num_threads(1)
    losses, tokens, weights = run_of(make_loop(still_checkpoint, settings))
    assert found == pytest.approx(losses, rel=1e-5)
    assert found_tokens == tokens
    torch.testing.assert_close(found_weights, weights, rtol=0, atol=1e-5)


@pytest.mark.parametrize("runtime", [FP32, BF16], ids=lambda runtime: runtime.precision)
def test_a_step_depends_on_the_seed_and_its_number_alone(
    checkpoint: Path, teachers: tuple[Path, Path], cores: int, runtime: Runtime
) -> None:
    """With dropout too: a resumed run is identical, bit for bit."""
    whole, resumed = (make_loop(checkpoint, EIGHT, runtime, teachers) for _ in range(2))
    expected = [float(step.loss) for step in whole.steps()]
    found = [float(step.loss) for step in islice(resumed.steps(), 2)]
    torch.manual_seed(99)
    found += [float(step.loss) for step in resumed.steps(2)]
    assert found == expected
    assert same(weights_of(resumed), weights_of(whole))


def test_threads_do_not_share_converted_weights() -> None:
    """torch's cache of them is one for all threads, and hands out parts of another's graph."""
    with BF16.autocast():
        assert torch.is_autocast_enabled("cpu") and not torch.is_autocast_cache_enabled()


class LowRank(nn.Module):
    """A linear layer with LoRA, whose dropout draws from torch's generator."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.linear, self.dropout = linear, nn.Dropout(0.3)
        self.down = nn.Linear(linear.in_features, 4, bias=False)
        self.up = nn.Linear(4, linear.out_features, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        low: Tensor = self.linear(x) + self.up(self.down(self.dropout(x)))
        return low


def replace_a_layer(loop: TrainingLoop) -> None:
    attention = loop.model.layers[0].attention
    attention.query = LowRank(attention.query)
    loop.optimizer = make_optimizer(loop.model, 0.0, 1e-4)


def hook_a_parameter(loop: TrainingLoop) -> None:
    loop.model.head.weight.register_post_accumulate_grad_hook(lambda parameter: None)


@pytest.mark.usefixtures("cores")
@pytest.mark.parametrize(
    "change",
    [
        replace_a_layer,
        hook_a_parameter,
        lambda loop: loop.model.head.weight.register_hook(torch.clone),
        lambda loop: loop.model.layers[0].register_forward_hook(lambda *arguments: None),
        lambda loop: vars(loop.model.head).update(forward=loop.model.head.forward),
    ],
)
def test_a_model_that_was_changed_is_trained_in_one_thread(
    checkpoint: Path, threads: list[int], change: Callable[[TrainingLoop], None]
) -> None:
    """Its modules need not be thread-safe, and may draw from torch's generator."""
    settings, unchanged = replace(EIGHT, max_steps=2), make_loop(checkpoint, EIGHT)
    next(unchanged.steps())
    assert threads
    threads.clear()
    changed = make_loop(checkpoint, settings)
    change(changed)
    list(changed.steps())
    assert not threads


@pytest.mark.usefixtures("cores")
def test_a_module_may_be_changed_between_steps(still_checkpoint: Path) -> None:
    """Hooks see all windows; a parameter unfrozen later gets the gradients of all windows."""
    loop, windows = make_loop(still_checkpoint, EIGHT), []
    steps = loop.steps()
    next(steps)
    hook = loop.model.register_forward_hook(lambda _, given, __: windows.extend(given[0].lengths))
    next(steps)
    hook.remove()
    assert len(windows) == len(loop.plan.windows_of(1))
    found = []
    for count in (1, 2):
        loop = make_loop(still_checkpoint, EIGHT)
        torch.set_num_threads(count)
        weight, steps = loop.model.layers[0].feed_forward.up.weight, loop.steps()
        weight.requires_grad_(False)
        next(steps)
        before = weight.clone()
        weight.requires_grad_(True)
        next(steps)
        found.append(weight.detach() - before)
    torch.testing.assert_close(*found, rtol=0, atol=1e-5)
    assert found[0].any()


@pytest.mark.usefixtures("cores")
def test_each_share_draws_dropout_of_its_own(checkpoint: Path) -> None:
    model = make_loop(checkpoint).model

    def draw(seed: int) -> list[Tensor]:
        torch.manual_seed(seed)

        def loss_of(share: Tensor) -> tuple[Tensor, Tensor]:
            return model.head.bias.sum(), keep_mask((100,), 0.5)[0]

        return shares.backward(model, loss_of, [torch.tensor([0])] * 2, FP32)

    first, second = draw(1)
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


@pytest.mark.usefixtures("cores")
def test_an_error_in_one_share_is_raised(checkpoint: Path) -> None:
    model = make_loop(checkpoint).model

    def fail(share: Tensor) -> tuple[Tensor, None]:
        if share.tolist() == [1]:
            raise ValueError("share 1")
        return model.head.bias.sum(), None

    with pytest.raises(ValueError, match="share 1"):
        shares.backward(model, fail, [torch.tensor([0]), torch.tensor([1])], FP32)
