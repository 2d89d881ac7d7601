"""Checks of the exercises, which raise AssertionError with input, expected and returned value.

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

from bertqa.model.checkpoint import load_checkpoint
from tests.helpers import their_model

Solution = Callable[..., Any]


def check(given: str, found: Any, expected: Any, rtol: float = 1e-5, atol: float = 1e-6) -> None:
    """Compare a result with the expected one, numbers up to a tolerance.

    Args:
        given: describes the input.
    """
    __tracebackhide__ = True  # pytest shows the line of the check instead
    if isinstance(expected, Tensor):
        expect(isinstance(found, Tensor), given, "a tensor", found)
        kinds = [f"a tensor of size {tuple(x.shape)}, {x.dtype}" for x in (expected, found)]
        expect(kinds[0] == kinds[1], given, *kinds)
        wrong = (~torch.isclose(found, expected, rtol, atol)).nonzero().tolist()
        if wrong:
            at = tuple(wrong[0])
            given = f"{given}, element {list(at)} of {tuple(expected.shape)}" if at else given
            expect(False, given, f"{expected[at]:.6g}", f"{found[at]:.6g}")
    else:
        is_number = isinstance(expected, float) and found is not None
        near = is_number and math.isclose(found, expected, rel_tol=rtol, abs_tol=1e-12)
        expect(near or found == expected, given, expected, found)


def expect(is_right: bool, given: str, expected: object, found: object) -> None:
    """Raise an AssertionError unless the result is right."""
    __tracebackhide__ = True
    assert is_right, f"{given}: expected {expected}, returned {found}"


def random(*shape: int, seed: int = 0) -> Tensor:
    """Return normally distributed numbers from a fixed seed."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def attention(solution: Solution) -> None:
    query, key, value = (random(2, 5, 8, seed=seed) for seed in range(3))
    expected = F.scaled_dot_product_attention(query, key, value)
    check("query, key and value of size (2, 5, 8)", solution(query, key, value), expected)


def layer_norm(solution: Solution) -> None:
    x, weight, bias = 3 * random(4, 6) + 1, random(6, seed=1), random(6, seed=2)
    for eps in (1e-12, 0.1):
        expected = F.layer_norm(x, (6,), weight, bias, eps)
        check(f"x of size (4, 6), eps {eps}", solution(x, weight, bias, eps), expected)


def dropout(solution: Solution) -> None:
    x = 1 + random(400, 500).abs()
    torch.manual_seed(0)
    first, second = solution(x, 0.1), solution(x, 0.1)
    kept = first != 0
    given = "x of size (400, 500), rate 0.1"
    check(f"{given}: elements that are not zero", first[kept], x[kept] / 0.9, rtol=1e-4, atol=0)
    rate = float(kept.double().mean())
    expect(abs(rate - 0.9) < 0.005, f"{given}: fraction that is not zero", 0.9, rate)
    for dim, of_each in enumerate(("column", "row")):
        low, high = (float(rate) for rate in kept.double().mean(dim=dim).aminmax())
        fractions = f"{given}: fraction that is not zero in each {of_each}"
        expect(0.75 < low <= high < 0.99, fractions, "0.75 to 0.99", f"{low:.3f} to {high:.3f}")
    is_new = not torch.equal(kept, second != 0)
    expect(is_new, f"{given}, second call", "another mask", "the same mask")
    check("x of size (400, 500), rate 0", solution(x, 0.0), x)


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
    given = f"lengths {lengths}, start {start.tolist()}, end {end.tolist()}"
    check(given, solution(start_logits, end_logits, lengths, start, end), sum(losses) / 2)


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
        check(f"answer {answer!r} at {start}", solution(offsets, start, answer), label)


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
        check("length {}, room {}, doc_stride {}".format(*arguments), found, windows)


def best_span(solution: Solution) -> None:
    for seed, longest in itertools.product(range(30), (1, 3, 40)):
        start, end = random(30, seed=seed), random(30, seed=seed + 100)
        spans = [(i, j) for i in range(30) for j in range(i, min(30, i + longest))]
        best = max(spans, key=lambda span: start[span[0]] + end[span[1]])
        given = f"random logits of 30 tokens, max_answer_length {longest}"
        check(given, tuple(solution(start, end, longest)), best)
    # The 20 best starts all come after the 20 best ends: none of their pairs is a span.
    start = torch.arange(60.0)
    given = "start logits i and end logits -j / 2 of 60 tokens, max_answer_length 1"
    check(given, tuple(solution(start, -start / 2, 1)), (59, 59))


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
        check(f"prediction {prediction!r}, gold {gold!r}", solution(prediction, gold), right)


def learning_rate(solution: Solution) -> None:
    right = [0.0, 0.25, 0.5, 0.75, 1.0, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6, 0.0]
    for step, share in enumerate(right):
        given = f"step {step}, peak 1e-4, total_steps 10, warmup_steps 4"
        check(given, solution(step, 1e-4, 10, 4), share * 1e-4)
    check("step 0, peak 1e-4, total_steps 10, warmup_steps 0", solution(0, 1e-4, 10, 0), 1e-4)


def adamw_step(solution: Solution) -> None:
    theirs = torch.nn.Parameter(random(7))
    optimizer = torch.optim.AdamW([theirs], lr=0.01, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.1)
    ours, mean, square = random(7), torch.zeros(7), torch.zeros(7)
    for step in range(1, 4):
        theirs.grad = random(7, seed=step)
        optimizer.step()
        ours, mean, square = solution(ours, random(7, seed=step), mean, square, step, 0.01, 0.1)
        check(f"7 parameters, step {step}: the new parameter", ours, theirs.detach())


def checkpoint_name(solution: Solution) -> None:
    with TemporaryDirectory() as folder:
        their_model().save_pretrained(folder)
        tensors = load_file(Path(folder, "model.safetensors"))
        right, _ = load_checkpoint(Path(folder))
    for name, parameter in right.named_parameters():
        names = [theirs for theirs, tensor in tensors.items() if torch.equal(tensor, parameter)]
        found = solution(name)
        expect(found in names, f"name {name!r}", " or ".join(names), found)


def integrated_gradients(solution: Solution) -> None:
    x, baseline = torch.tensor([2.0, -1.0, 3.0]), torch.tensor([0.5, 0.0, 1.0])
    given = f"x {x.tolist()}, baseline {baseline.tolist()}, 64 steps"
    found = solution(lambda v: (v**2).sum(dim=-1), x, baseline, 64)
    check(f"sum of squares, {given}", found, x**2 - baseline**2, rtol=1e-3, atol=1e-3)
    found = solution(lambda v: v[..., 0] * v[..., 1] * v[..., 2], x, baseline, 64)
    total = x.prod() - baseline.prod()
    check(f"sum of the contributions to a product, {given}", found.sum(), total, 1e-3, 1e-3)
