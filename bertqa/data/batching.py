"""Batches of windows: random ones for training, ones with a token budget for inference.

T  tokens in the batch      N  windows in the batch      W  windows in the set
"""

import hashlib
from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from bertqa.data.labels import LabelledWindows
from bertqa.data.windows import WindowSet
from bertqa.model.packing import PackedBatch


class TrainingBatch(NamedTuple):
    """A packed batch with the labels of its windows, ``(N,)`` int64 each."""

    tokens: PackedBatch
    start_positions: Tensor
    end_positions: Tensor

    def to(self, device: torch.device) -> "TrainingBatch":
        """Return the batch on ``device``."""
        return TrainingBatch(
            self.tokens.to(device), self.start_positions.to(device), self.end_positions.to(device)
        )


def collate(windows: WindowSet, chosen: Tensor) -> PackedBatch:
    """Pack the chosen windows, ``(N,)`` indices into the set.

    The position of a token in its window determines whether it is [CLS], a question token, [SEP] or
    a context token.
    """
    lengths = windows.lengths[chosen]  # (N,), as the next five
    example = windows.example[chosen]
    context = windows.context_of[example]
    first_question_row = windows.questions.bounds[example]
    first_context_row = windows.contexts.bounds[context] + windows.first[chosen]
    context_start = windows.context_starts[chosen]

    window = torch.arange(len(chosen)).repeat_interleave(lengths)  # (T,), as the next four
    position = torch.arange(len(window)) - (lengths.cumsum(0) - lengths)[window]
    in_context = position - context_start[window]
    is_context = (in_context >= 0) & (position < lengths[window] - 1)
    is_question = (position >= 1) & (in_context < -1)

    input_ids = torch.full_like(position, windows.sep_id)  # (T,)
    input_ids[position == 0] = windows.cls_id
    # Rows of the token tables: (question tokens,) and (context tokens,).
    question_rows = (first_question_row[window] + position - 1)[is_question]
    input_ids[is_question] = windows.questions.ids[question_rows].long()
    context_rows = (first_context_row[window] + in_context)[is_context]
    input_ids[is_context] = windows.contexts.ids[context_rows].long()
    return PackedBatch(input_ids, (in_context >= 0).long(), position, tuple(lengths.tolist()))


def training_batch(windows: LabelledWindows, chosen: Tensor) -> TrainingBatch:
    """Pack the chosen windows, ``(N,)`` indices into the set, with their labels."""
    return TrainingBatch(
        collate(windows, chosen),
        windows.start_position[chosen].long(),
        windows.end_position[chosen].long(),
    )


def steps_per_epoch(num_windows: int, batch_size: int) -> int:
    """Return the number of batches that use every window once; the last may be smaller."""
    return -(-num_windows // batch_size)


def step_windows(num_windows: int, batch_size: int, seed: int, step: int) -> Tensor:
    """Return the windows of optimizer step ``step``, counted from 0, over all ranks.

    Each epoch is a new random order of all windows. The order depends only on seed and epoch, so a
    run that is resumed, or uses another number of processes, has the same batches.

    Returns:
        ``(batch_size,)`` indices; fewer in the last step of an epoch.
    """
    epoch, number = divmod(step, steps_per_epoch(num_windows, batch_size))
    return _epoch_order(num_windows, seed, epoch)[number * batch_size : (number + 1) * batch_size]


@lru_cache(maxsize=1)
def _epoch_order(num_windows: int, seed: int, epoch: int) -> Tensor:
    """Return a random order of all windows; the last one is cached."""
    generator = torch.Generator().manual_seed(mix_seed(seed, epoch))
    return torch.randperm(num_windows, generator=generator)


def mix_seed(*numbers: int) -> int:
    """Hash several numbers into one seed, so that seed 1, epoch 2 is not seed 2, epoch 1."""
    digest = hashlib.blake2b(repr(numbers).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def token_budget_batches(lengths: Tensor, budget: int) -> Iterator[Tensor]:
    """Yield batches of window indices with at most ``budget`` tokens, longest windows first.

    Windows of similar length share a batch, so that rectangular tensors (the loss, the decoder's
    tables) have little padding. Memory peaks in the first batch, not an hour later.
    """
    order = lengths.argsort(descending=True, stable=True)
    totals = lengths[order].tolist()
    batch_first, tokens = 0, 0
    for i, length in enumerate(totals):
        if tokens + length > budget and i > batch_first:
            yield order[batch_first:i]
            batch_first, tokens = i, 0
        tokens += length
    if len(order):
        yield order[batch_first:]
