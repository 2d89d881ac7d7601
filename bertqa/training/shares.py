"""Data parallelism over the cores of a CPU, within one process.

    split      (N,) windows    -> S shares with about as many tokens each
    backward   S shares        -> S lists of gradients, each computed by a thread with its own cores
    add        S gradients     -> the model's gradients, summed in the order of the shares

Cores that split every matrix product of a batch wait for each other after each product. Cores with
windows of their own wait once per batch. All threads use one model: except for the first share,
``torch.autograd.grad`` returns gradients instead of adding them to those of the parameters.
"""

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn

from bertqa.model import bert
from bertqa.model.bert import BertForQuestionAnswering
from bertqa.model.kernels import dropout_generator, is_plain
from bertqa.runtime import Runtime

Result = TypeVar("Result")
_SMALLEST_SHARE = 4  # windows: with fewer, the matrix products become inefficient


def split(model: BertForQuestionAnswering, lengths: Tensor, runtime: Runtime) -> list[Tensor]:
    """Split a batch into shares for the cores; one share where that is not faster or not safe.

    Args:
        model: the model in training.
        lengths: tokens of each window, ``(N,)``.
        runtime: device of the run.

    Returns:
        Indices into the batch, in ascending order within each share.
    """
    on_cpu = runtime.device.type == "cpu"
    count = min(torch.get_num_threads(), len(lengths) // _SMALLEST_SHARE) if on_cpu else 1
    if count <= 1 or not _is_thread_safe(model):
        return [torch.arange(len(lengths))]
    shares: list[list[int]] = [[] for _ in range(count)]
    tokens = [0] * count
    for window in lengths.argsort(descending=True, stable=True).tolist():
        lightest = tokens.index(min(tokens))
        shares[lightest].append(window)
        tokens[lightest] += int(lengths[window])
    return [torch.tensor(sorted(share)) for share in shares]


def _is_thread_safe(model: nn.Module) -> bool:
    """Return whether a model has only modules of bert.py, and no hooks.

    Others may keep state between calls, or draw dropout from torch's generator, which all threads
    share: a step would then depend on their timing.
    """
    layers = (nn.Linear, nn.Embedding, nn.LayerNorm)
    return all(
        type(module) is nn.ModuleList  # has no forward
        or (
            (type(module) in layers or type(module).__module__ == bert.__name__)
            and is_plain(module, type(module))
        )
        for module in model.modules()
    ) and not any(p._backward_hooks or p._post_accumulate_grad_hooks for p in model.parameters())


def backward(
    model: BertForQuestionAnswering,
    loss_of: Callable[[Tensor], tuple[Tensor, Result]],
    shares: Sequence[Tensor],
    runtime: Runtime,
) -> list[Result]:
    """Add the gradients of all shares' losses to the model's.

    With several shares, each has a random number generator for dropout, seeded from torch's.

    Args:
        model: the model in training.
        loss_of: computes the loss of a share, ``()``, and a result; called by several threads.
        shares: as returned by ``split``.
        runtime: device of the run.

    Returns:
        The results, in the order of the shares.
    """
    if len(shares) == 1:
        loss, result = loss_of(shares[0])
        loss.backward()
        return [result]
    parameters = [p for p in model.parameters() if p.requires_grad]
    seeds = torch.randint(2**62, (len(shares),)).tolist()

    def work(number: int) -> tuple[Result, Sequence[Tensor | None]]:
        with dropout_generator(torch.Generator().manual_seed(seeds[number])):
            loss, result = loss_of(shares[number])
        if number:
            return result, torch.autograd.grad(loss, parameters, allow_unused=True)
        loss.backward()  # the first share's gradients go directly to the parameters
        return result, [None] * len(parameters)

    results = []
    for result, gradients in runtime.map_in_threads(work, range(len(shares)), len(shares)):
        results.append(result)
        for parameter, gradient in zip(parameters, gradients, strict=True):
            if parameter.grad is None:
                parameter.grad = gradient
            elif gradient is not None:
                parameter.grad.add_(gradient)
    return results
