"""Typical wrong solutions of the exercises; each must fail its check."""

import string
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.exercises import right


def attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    return (query @ key.transpose(1, 2)).softmax(dim=-1) @ value  # without 1 / sqrt(K)


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    # std() divides by D - 1, and eps belongs under the root.
    return (x - x.mean(-1, keepdim=True)) / (x.std(-1, keepdim=True) + eps) * weight + bias


def dropout(x: Tensor, rate: float) -> Tensor:
    return x * (torch.rand_like(x) >= rate)  # not scaled up


def span_loss(
    start_logits: Tensor, end_logits: Tensor, lengths: list[int], start: Tensor, end: Tensor
) -> Tensor:
    # One softmax over the tokens of all windows.
    first = torch.tensor([0, *lengths[:-1]]).cumsum(0)
    start_loss = F.cross_entropy(start_logits.expand(len(lengths), -1), start + first)
    return start_loss + F.cross_entropy(end_logits.expand(len(lengths), -1), end + first)


def label_positions(
    offsets: Sequence[tuple[int, int]], answer_start: int, answer: str
) -> tuple[int, int] | None:
    # The widely copied search: the last token that starts at or before the answer.
    answer_end = answer_start + len(answer)
    first = max(i for i, (start, _) in enumerate(offsets) if start <= answer_start)
    return first, min(i for i, (_, end) in enumerate(offsets) if end >= answer_end)


def sliding_windows(length: int, capacity: int, doc_stride: int) -> list[tuple[int, int]]:
    # doc_stride used as the step.
    return [(i, min(capacity, length - i)) for i in range(0, max(1, length), max(1, doc_stride))]


def best_span(start: Tensor, end: Tensor, max_answer_length: int) -> tuple[int, int]:
    pairs = [  # the 20 best starts with the 20 best ends, as in run_qa
        (float(start[i] + end[j]), int(i), int(j))
        for i in start.topk(min(20, len(start))).indices
        for j in end.topk(min(20, len(end))).indices
        if i <= j < i + max_answer_length
    ]
    return max(pairs, default=(0.0, 0, 0))[1:]


def f1(prediction: str, gold: str) -> float:
    clean = str.maketrans("", "", string.punctuation)
    words = [set(text.lower().translate(clean).split()) - {"a", "an", "the"}
             for text in (prediction, gold)]  # fmt: skip
    shared = len(words[0] & words[1])  # sets forget how often a word occurs
    return 2 * shared / (len(words[0]) + len(words[1]))


def learning_rate(step: int, peak: float, total_steps: int, warmup_steps: int) -> float:
    if step < warmup_steps:
        return peak * step / warmup_steps
    return peak * (1 - step / total_steps)  # decays from step 0, so the rate drops after warmup


def adamw_step(
    parameter: Tensor, gradient: Tensor, mean: Tensor, square: Tensor, step: int, rate: float,
    weight_decay: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    # Adam with L2 regularisation: the weight decay enters the moments.
    return right.adamw_step(
        parameter, gradient + weight_decay * parameter, mean, square, step, rate, 0.0
    )


def checkpoint_name(name: str) -> str:
    swapped = {"attention_norm": "feed_forward_norm", "feed_forward_norm": "attention_norm"}
    return right.checkpoint_name(".".join(swapped.get(part, part) for part in name.split(".")))


def integrated_gradients(
    function: Callable[[Tensor], Tensor], x: Tensor, baseline: Tensor, steps: int
) -> Tensor:
    point = x.clone().requires_grad_()  # gradient times input, only at the end of the path
    (gradient,) = torch.autograd.grad(function(point[None]).sum(), point)
    return (x - baseline) * gradient
