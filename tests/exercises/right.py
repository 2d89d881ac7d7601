"""Right solutions of the exercises, from bertqa's functions if it has them."""

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from bertqa.answering.decoding import WindowScores, exact_spans
from bertqa.answering.metrics import f1
from bertqa.data import windows
from bertqa.data.labels import answer_tokens
from bertqa.data.squad import Example
from bertqa.data.tokenization import TokenTable
from bertqa.model.bert import AttentionProbabilities, BertOutput, Dropout, window_losses
from bertqa.model.names import checkpoint_name
from bertqa.training.optim import learning_rate

__all__ = ["checkpoint_name", "f1", "learning_rate"]


def attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    probabilities: Tensor = AttentionProbabilities()(query, key)
    return probabilities @ value


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    return F.layer_norm(x, (len(weight),), weight, bias, eps)


def dropout(x: Tensor, rate: float) -> Tensor:
    dropped: Tensor = Dropout(rate).train()(x)
    return dropped


def span_loss(
    start_logits: Tensor, end_logits: Tensor, lengths: list[int], start: Tensor, end: Tensor
) -> Tensor:
    return window_losses(BertOutput(start_logits, end_logits), lengths, start, end).mean()


def label_positions(
    offsets: Sequence[tuple[int, int]], answer_start: int, answer: str
) -> tuple[int, int] | None:
    starts, ends = torch.tensor(offsets, dtype=torch.int32).T
    table = TokenTable(torch.zeros_like(starts), starts, ends, torch.tensor([0, len(offsets)]))
    example = Example("1", "?", "", (answer,), (answer_start,))
    first, last = (int(token) for token in answer_tokens([example], table, torch.tensor([0])))
    return (first, last) if first <= last else None


def sliding_windows(length: int, capacity: int, doc_stride: int) -> list[tuple[int, int]]:
    _, first, count = windows._cut(torch.tensor([length]), torch.tensor([capacity]), doc_stride)
    return list(zip(first.tolist(), count.tolist(), strict=True))


def best_span(start: Tensor, end: Tensor, max_answer_length: int) -> tuple[int, int]:
    # The window is [CLS] context [SEP].
    framed = (F.pad(logits, (1, 1), value=-math.inf) for logits in (start, end))
    scores = WindowScores.of_batch(*framed, lengths=[len(start) + 2], context_starts=[1])
    best = exact_spans(scores, 1, max_answer_length)
    return int(best.start), int(best.end)


def adamw_step(
    parameter: Tensor, gradient: Tensor, mean: Tensor, square: Tensor, step: int, rate: float,
    weight_decay: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    mean = mean.lerp(gradient, 1 - 0.9)
    square = square.lerp(gradient**2, 1 - 0.999)
    direction = mean / (1 - 0.9**step) / ((square / (1 - 0.999**step)).sqrt() + 1e-8)
    return parameter * (1 - rate * weight_decay) - rate * direction, mean, square


def integrated_gradients(
    function: Callable[[Tensor], Tensor], x: Tensor, baseline: Tensor, steps: int
) -> Tensor:
    middles = (torch.arange(steps) + 0.5) / steps
    points = (baseline + middles[:, None] * (x - baseline)).requires_grad_()
    (gradients,) = torch.autograd.grad(function(points).sum(), points)
    return (x - baseline) * gradients.mean(dim=0)
