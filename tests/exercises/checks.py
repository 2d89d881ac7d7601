"""Checks of the exercises, which raise AssertionError if a solution is wrong.

Names, arguments and results of the solutions are those of docs/exercises.md. If possible, the
expected result comes from PyTorch or from arithmetic by hand, not from bertqa.
"""

import itertools
import math
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

from bertqa.model.bert import BertForQuestionAnswering
from bertqa.model.checkpoint import load_checkpoint
from bertqa.model.packing import PackedBatch
from tests.helpers import their_model

Solution = Callable[..., Any]
close = torch.testing.assert_close


def random(*shape: int, seed: int = 0) -> Tensor:
    """Return normally distributed numbers from a fixed seed."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def attention(solution: Solution) -> None:
    query, key, value = (random(2, 5, 8, seed=seed) for seed in range(3))
    close(solution(query, key, value), F.scaled_dot_product_attention(query, key, value))


def layer_norm(solution: Solution) -> None:
    x, weight, bias = 3 * random(4, 6) + 1, random(6, seed=1), random(6, seed=2)
    for eps in (1e-12, 0.1):
        close(solution(x, weight, bias, eps), F.layer_norm(x, (6,), weight, bias, eps))


def dropout(solution: Solution) -> None:
    x = 1 + random(400, 500).abs()
    torch.manual_seed(0)
    first, second = solution(x, 0.1), solution(x, 0.1)
    kept = first != 0
    close(first[kept], x[kept] / 0.9, rtol=1e-4, atol=0)
    assert abs(kept.double().mean() - 0.9) < 0.005, "one number in ten must be zero"
    for dim in (0, 1):
        rates = kept.double().mean(dim=dim)
        assert rates.min() > 0.75 and rates.max() < 0.99, "numbers must be dropped independently"
    assert not torch.equal(kept, second != 0), "each call must draw a new mask"
    close(solution(x, 0.0), x)


def span_loss(solution: Solution) -> None:
    lengths, start, end = [3, 5], torch.tensor([1, 0]), torch.tensor([2, 4])
    start_logits, end_logits = random(8), random(8, seed=1)
    losses = [
        F.cross_entropy(logits, label)
        for window, s, e in zip(range(2), start, end, strict=True)
        for logits, label in (
            (start_logits.split(lengths)[window], s),
            (end_logits.split(lengths)[window], e),
        )
    ]
    close(solution(start_logits, end_logits, lengths, start, end), sum(losses) / 2)


def label_positions(solution: Solution) -> None:
    context = "Ada  built café No. 1931 in Japanese style."
    #          0    5     11   17  20  24 27 36
    offsets = [(0, 3), (5, 10), (11, 15), (16, 18), (18, 19), (20, 24), (25, 27), (28, 36),
               (37, 42), (42, 43)]  # fmt: skip
    cases = [
        ("Ada", 0, (0, 0)),
        ("built café", 5, (1, 2)),
        ("1931", 20, (5, 5)),
        (" built ", 4, (1, 1)),  # blanks belong to no token
        ("Japan", 28, (7, 7)),  # inside a token: the token
        ("style.", 37, (8, 9)),  # the last token
        ("  ", 3, None),  # no token
    ]
    for answer, start, label in cases:
        assert context[start : start + len(answer)] == answer
        found = solution(offsets, start, answer)
        assert found == label, f"{answer!r}: must be {label}, got {found}"


def sliding_windows(solution: Solution) -> None:
    cases = [
        ((10, 10, 4), [(0, 10)]),
        ((11, 10, 4), [(0, 10), (6, 5)]),
        ((16, 10, 4), [(0, 10), (6, 10)]),  # the second window reaches the end: no third
        ((17, 10, 4), [(0, 10), (6, 10), (12, 5)]),
        ((7, 3, 0), [(0, 3), (3, 3), (6, 1)]),
        ((0, 3, 1), [(0, 0)]),
    ]
    for arguments, windows in cases:
        found = [tuple(window) for window in solution(*arguments)]
        assert found == windows, f"{arguments}: must be {windows}, got {found}"


def best_span(solution: Solution) -> None:
    for seed, longest in itertools.product(range(30), (1, 3, 40)):
        start, end = random(30, seed=seed), random(30, seed=seed + 100)
        spans = [(i, j) for i in range(30) for j in range(i, min(30, i + longest))]
        best = max(spans, key=lambda span: start[span[0]] + end[span[1]])
        assert tuple(solution(start, end, longest)) == best
    # The 20 best starts all come after the 20 best ends: none of their pairs is a span.
    start = torch.arange(60.0)
    assert tuple(solution(start, -start / 2, 1)) == (59, 59)


def f1(solution: Solution) -> None:
    cases = [
        ("The Orlo bridge", "orlo bridge", 1.0),
        ("Orlo bridge, Lund", "the Orlo bridge!", 0.8),
        ("Lund", "Orlo", 0.0),
        ("bora bora", "bora", 2 / 3),  # repeated words count repeatedly
        ("1931", "in 1931", 2 / 3),
        ("Pan-Am", "PanAm", 1.0),  # punctuation is removed before words are split
    ]
    for prediction, gold, right in cases:
        found = solution(prediction, gold)
        assert math.isclose(found, right), f"{prediction!r}, {gold!r}: must be {right}, got {found}"


def learning_rate(solution: Solution) -> None:
    rates = [solution(step, 1e-4, 10, 4) for step in range(11)]
    right = [0, 0.25, 0.5, 0.75, 1, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6, 0]
    close(torch.tensor(rates), torch.tensor(right) * 1e-4)
    assert solution(0, 1e-4, 10, 0) == 1e-4, "without warmup the first step has the peak"


def adamw_step(solution: Solution) -> None:
    theirs = torch.nn.Parameter(random(7))
    optimizer = torch.optim.AdamW([theirs], lr=0.01, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.1)
    ours, mean, square = random(7), torch.zeros(7), torch.zeros(7)
    for step in range(1, 4):
        theirs.grad = random(7, seed=step)
        optimizer.step()
        ours, mean, square = solution(ours, random(7, seed=step), mean, square, step, 0.01, 0.1)
        close(ours, theirs.detach())


def checkpoint_name(solution: Solution) -> None:
    with TemporaryDirectory() as folder:
        their_model().save_pretrained(folder)
        tensors = load_file(Path(folder, "model.safetensors"))
        right, _ = load_checkpoint(Path(folder))
    ours = BertForQuestionAnswering(right.config)
    ours.load_state_dict({name: tensors[solution(name)] for name in ours.state_dict()})
    batch = PackedBatch.from_windows([[5, 6, 7, 8]], [[0, 0, 1, 1]])
    with torch.no_grad():
        close(ours.eval()(batch), right.eval()(batch))


def integrated_gradients(solution: Solution) -> None:
    x, baseline = torch.tensor([2.0, -1.0, 3.0]), torch.tensor([0.5, 0.0, 1.0])
    found = solution(lambda v: (v**2).sum(dim=-1), x, baseline, 64)
    close(found, x**2 - baseline**2, rtol=1e-3, atol=1e-3)
    found = solution(lambda v: v[..., 0] * v[..., 1] * v[..., 2], x, baseline, 64)
    close(found.sum(), x.prod() - baseline.prod(), rtol=1e-3, atol=1e-3)
