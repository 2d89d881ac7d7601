"""Data parallelism over the cores of a CPU, within one process.

    split      (N,) windows    -> S shares with about as many tokens each
    backward   one share each  -> gradients of S replicas, each on its own cores
    add        S gradients     -> the model's gradients, summed in the order of the shares

Cores that split every matrix product of a batch wait for each other after each product. Cores with
windows of their own wait once per batch. The replicas share the model's weights, so the optimizer
updates all of them at once; each has its own gradients.
"""

from collections.abc import Callable, Sequence
from copy import deepcopy
from typing import TypeVar

import torch
from torch import Tensor, nn

from bertqa.model.bert import BertForQuestionAnswering
from bertqa.model.kernels import dropout_generator
from bertqa.runtime import Runtime

Result = TypeVar("Result")
_SMALLEST_SHARE = 4  # windows: with fewer, the matrix products become inefficient


class Replicas:
    """A model and its replicas.

    Args:
        model: the model in training, on the runtime's device.
    """

    def __init__(self, model: BertForQuestionAnswering, runtime: Runtime) -> None:
        self.models, self.runtime = [model], runtime

    def split(self, lengths: Tensor) -> list[Tensor]:
        """Split a batch into shares for the cores; one share where that is not faster.

        Args:
            lengths: tokens of each window, ``(N,)``.

        Returns:
            Indices into the batch, in ascending order within each share.
        """
        on_cpu = self.runtime.device.type == "cpu"
        count = min(torch.get_num_threads(), len(lengths) // _SMALLEST_SHARE) if on_cpu else 1
        if count <= 1:
            return [torch.arange(len(lengths))]
        shares: list[list[int]] = [[] for _ in range(count)]
        tokens = [0] * count
        for window in lengths.argsort(descending=True, stable=True).tolist():
            lightest = tokens.index(min(tokens))
            shares[lightest].append(window)
            tokens[lightest] += int(lengths[window])
        return [torch.tensor(sorted(share)) for share in shares]

    def map(
        self,
        work: Callable[[BertForQuestionAnswering, Tensor], Result],
        shares: Sequence[Tensor],
    ) -> list[Result]:
        """Return ``work(replica, share)`` of each share; all at once, in the order of the shares.

        With several shares, each has a random number generator for dropout, seeded from torch's.
        """
        if len(shares) == 1:
            return [work(self.models[0], shares[0])]
        while len(self.models) < len(shares):
            self.models.append(_replica(self.models[0]))
        seeds = torch.randint(2**62, (len(shares),)).tolist()

        def work_on(number: int) -> Result:
            with dropout_generator(torch.Generator().manual_seed(seeds[number])):
                return work(self.models[number], shares[number])

        return list(self.runtime.map_in_threads(work_on, range(len(shares)), len(shares)))

    @torch.no_grad()
    def add_gradients(self) -> None:
        """Add the replicas' gradients to the model's, and clear them."""
        model, *replicas = self.models
        for replica in replicas:
            for ours, theirs in zip(model.parameters(), replica.parameters(), strict=True):
                if theirs.grad is not None:
                    ours.grad = theirs.grad if ours.grad is None else ours.grad.add_(theirs.grad)
                    theirs.grad = None


def _replica(model: BertForQuestionAnswering) -> BertForQuestionAnswering:
    """Copy the modules, with the same weights and separate gradients."""
    shared = {id(p): nn.Parameter(p.data, p.requires_grad) for p in model.parameters()}
    return deepcopy(model, shared)
