"""Batches: every window once per epoch, in random order; token budgets; packing."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bertqa.data.batching import (
    collate,
    mix_seed,
    step_windows,
    steps_per_epoch,
    token_budget_batches,
    training_batch,
)
from bertqa.data.labels import make_labelled_windows
from bertqa.data.readers import read_examples
from bertqa.data.squad import Example
from bertqa.settings import WindowSettings
from tests.helpers import STORIES, STORIES_V2, write_tokenizer


@pytest.fixture(scope="module")
def windows(tmp_path_factory):
    """Windows of stories and of empty texts."""
    tokenizer = write_tokenizer(tmp_path_factory.mktemp("words"))
    nothing = [Example("a", "", "the river"), Example("b", "who", "\u200b"), Example("c", "", "")]
    examples = read_examples(STORIES)[:40] + nothing + read_examples(STORIES_V2)[::7]
    return make_labelled_windows(examples, tokenizer, WindowSettings(150, 20))


def epoch_of(num_windows, batch_size, seed, epoch):
    """Return the batches of one epoch as lists."""
    steps = steps_per_epoch(num_windows, batch_size)
    return [
        step_windows(num_windows, batch_size, seed, epoch * steps + step).tolist()
        for step in range(steps)
    ]


def flat(batches):
    return [window for batch in batches for window in batch]


# --- random batches ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("num_windows", "batch_size", "sizes"),
    [
        (10, 3, [3, 3, 3, 1]),
        (12, 4, [4, 4, 4]),
        (5, 8, [5]),
        (1, 1, [1]),
        (3, 1, [1, 1, 1]),
    ],
)
def test_an_epoch_has_every_window_once(num_windows, batch_size, sizes):
    assert steps_per_epoch(num_windows, batch_size) == len(sizes)
    for epoch in range(3):
        batches = epoch_of(num_windows, batch_size, 1, epoch)
        assert [len(batch) for batch in batches] == sizes
        assert sorted(flat(batches)) == list(range(num_windows))


def test_the_order_depends_on_epoch_and_seed():
    orders = {
        (seed, epoch): tuple(flat(epoch_of(100, 16, seed, epoch)))
        for seed in range(4)
        for epoch in range(4)
    }
    assert len(set(orders.values())) == 16
    assert tuple(range(100)) not in orders.values()


def test_steps_are_the_same_in_any_order():
    # A resumed run, or one with another number of processes, computes them in another order.
    steps = list(range(3 * steps_per_epoch(50, 8)))
    expected = [step_windows(50, 8, 3, step).tolist() for step in steps]
    state = torch.get_rng_state()
    torch.manual_seed(99)  # torch's global generator does not matter either
    for step in [*reversed(steps), *steps[::5], steps[-1], steps[0]]:
        step_windows(50, 8, 4, step)  # another run in between
        step_windows(49, 8, 3, step)
        assert step_windows(50, 8, 3, step).tolist() == expected[step]
    torch.manual_seed(99)
    before = torch.get_rng_state()
    step_windows(77, 8, 3, 0)
    assert torch.equal(torch.get_rng_state(), before)  # and is not changed
    torch.set_rng_state(state)


def test_the_order_does_not_depend_on_the_batch_size():
    # So that a step can be split among any number of processes.
    assert flat(epoch_of(50, 8, 3, 1)) == flat(epoch_of(50, 13, 3, 1))


def test_orders_do_not_change_between_versions():
    # Otherwise a run of an older version would be resumed with other batches.
    assert mix_seed(42, 1) == 2316104898883309923
    order = torch.randperm(10, generator=torch.Generator().manual_seed(mix_seed(42, 1)))
    assert torch.equal(step_windows(10, 10, 42, 1), order)


def test_mixed_seeds_are_distinct():
    seeds = {mix_seed(a, b) for a in range(60) for b in range(60)}
    seeds |= {mix_seed(a) for a in range(60)} | {mix_seed(a, 1, 2) for a in range(60)}
    assert len(seeds) == 60 * 60 + 60 + 60
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert max(seeds) > 2**62
    assert mix_seed(1, 2) == mix_seed(1, 2) != mix_seed(2, 1)
    assert mix_seed(1, 23) != mix_seed(12, 3)
    torch.Generator().manual_seed(max(seeds))  # torch accepts all of them


# --- batches with a token budget -----------------------------------------------------------------


def check_budget(lengths, budget):
    batches = [batch.tolist() for batch in token_budget_batches(torch.tensor(lengths), budget)]
    assert all(batches)
    order = flat(batches)
    # Every window once, the longest first; ties in order.
    assert order == sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    totals = [sum(lengths[i] for i in batch) for batch in batches]
    for batch, total in zip(batches, totals, strict=True):
        assert total <= budget or len(batch) == 1
    # No batch has capacity for the next window.
    for total, following in zip(totals, batches[1:], strict=False):
        assert total + lengths[following[0]] > budget
    return batches


@settings(derandomize=True, max_examples=150)
@given(st.lists(st.integers(1, 50), max_size=30), st.integers(1, 120))
def test_budgets_are_kept(lengths, budget):
    check_budget(lengths, budget)


def test_budgets_by_hand():
    lengths = [3, 9, 4, 4, 2, 12, 1]
    assert check_budget(lengths, 10) == [[5], [1], [2, 3], [0, 4, 6]]  # 12 exceeds the budget
    assert check_budget(lengths, 1000) == [[5, 1, 2, 3, 0, 4, 6]]
    assert check_budget(lengths, 1) == [[i] for i in (5, 1, 2, 3, 0, 4, 6)]
    assert check_budget([], 10) == []
    assert check_budget([5, 5], 10) == [[0, 1]]


def test_budgets_of_real_windows(windows):
    batches = check_budget(windows.lengths.tolist(), 2000)
    assert len(batches) > 5
    for batch in batches:
        assert len(collate(windows, torch.tensor(batch)).input_ids) <= 2000


# --- packing -------------------------------------------------------------------------------------


def check_packing(windows, chosen):
    batch = collate(windows, torch.tensor(chosen, dtype=torch.int64))
    views = [windows[i] for i in chosen]
    assert batch.lengths == tuple(len(view.input_ids) for view in views)
    assert batch.input_ids.tolist() == flat(view.input_ids for view in views)
    assert batch.token_type_ids.tolist() == flat(view.token_type_ids for view in views)
    assert batch.position_ids.tolist() == flat(range(len(view.input_ids)) for view in views)
    for column in (batch.input_ids, batch.token_type_ids, batch.position_ids):
        assert column.dtype == torch.int64
    return batch


def test_a_packed_batch_contains_its_windows(windows):
    check_packing(windows, list(range(len(windows))))
    check_packing(windows, list(reversed(range(len(windows)))))
    check_packing(windows, [7, 7, 3])
    for i in range(len(windows)):
        check_packing(windows, [i])
    assert check_packing(windows, []).lengths == ()


def test_labels_match_their_windows(windows):
    chosen = torch.arange(len(windows)).flip(0)
    batch = training_batch(windows, chosen)
    labels = [windows.label_of(i) for i in chosen.tolist()]
    assert batch.start_positions.tolist() == [start for start, _ in labels]
    assert batch.end_positions.tolist() == [end for _, end in labels]
    assert batch.start_positions.dtype == batch.end_positions.dtype == torch.int64
    assert 0 < (batch.start_positions > 0).sum() < len(windows)
    expected = collate(windows, chosen)
    assert torch.equal(batch.tokens.input_ids, expected.input_ids)
    assert batch.tokens.lengths == expected.lengths
    moved = batch.to(torch.device("meta"))
    assert {moved.start_positions.device.type, moved.end_positions.device.type} == {"meta"}
    assert moved.tokens.input_ids.device.type == "meta"
    assert batch.tokens.input_ids.device.type == "cpu"
