"""Packed batches: the windows of a batch laid end to end, without padding.

T  tokens in the batch      N  windows in the batch      L  tokens of one window

If SQuAD's windows were padded to 384 tokens, more than half of a batch would be padding. Here a
batch is one row of tokens, and the lengths of its windows define where each ends:

    input_ids       [CLS] who ? [SEP] ada . [SEP]   [CLS] why ? [SEP] because . [SEP]
    token_type_ids    0    0  0   0    1  1   1       0    0  0   0      1    1   1
    position_ids      0    1  2   3    4  5   6       0    1  2   3      4    5   6
    lengths           7                               7

No attention mask is needed. This layout is also called padding-free or varlen.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

import torch
from torch import Tensor


@dataclass(frozen=True)
class PackedBatch:
    """N windows as one row of T tokens.

    Attributes:
        input_ids: ``(T,)`` int64, rows of the word embedding.
        token_type_ids: ``(T,)`` int64, 0 up to the question's [SEP], 1 from the context on.
        position_ids: ``(T,)`` int64, position of each token in its own window.
        lengths: tokens of each of the N windows; their sum is T. Python integers, so that reading
            them needs no device synchronization.
    """

    input_ids: Tensor
    token_type_ids: Tensor
    position_ids: Tensor
    lengths: tuple[int, ...]

    def __post_init__(self) -> None:
        if sum(self.lengths) != len(self.input_ids) or min(self.lengths, default=1) < 1:
            raise ValueError(
                f"lengths must be positive and sum to {len(self.input_ids)} tokens, got "
                f"{self.lengths}"
            )

    @classmethod
    def from_windows(
        cls, input_ids: Sequence[Sequence[int]], token_type_ids: Sequence[Sequence[int]]
    ) -> "PackedBatch":
        """Pack N windows, given as N sequences of ids and of token types."""
        lengths = tuple(len(window) for window in input_ids)
        return cls(
            torch.tensor([token for window in input_ids for token in window]),
            torch.tensor([token_type for window in token_type_ids for token_type in window]),
            torch.tensor([position for length in lengths for position in range(length)]),
            lengths,
        )

    @cached_property
    def cumulative_lengths(self) -> Tensor:
        """The start of each window, and T: ``(N + 1,)`` int32 on the tokens' device."""
        bounds = list(accumulate(self.lengths, initial=0))
        return torch.tensor(bounds, dtype=torch.int32).to(self.input_ids.device, non_blocking=True)

    def to(self, device: torch.device) -> "PackedBatch":
        """Return the batch on ``device``."""
        if self.input_ids.device == device:
            return self
        return PackedBatch(
            self.input_ids.to(device, non_blocking=True),
            self.token_type_ids.to(device, non_blocking=True),
            self.position_ids.to(device, non_blocking=True),
            self.lengths,
        )


def pad_windows(values: Tensor, lengths: Sequence[int], fill: float) -> Tensor:
    """Pad per-token values to the longest window: ``(T,)`` to ``(N, longest L)``."""
    windows = values.split(list(lengths))
    return torch.nn.utils.rnn.pad_sequence(list(windows), batch_first=True, padding_value=fill)
