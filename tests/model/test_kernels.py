"""The fused implementations of kernels.py equal the reference in bert.py."""

import math
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from bertqa.model import kernels
from bertqa.model.bert import BertForQuestionAnswering, Dropout, SelfAttention, window_losses
from bertqa.model.config import BertConfig
from bertqa.model.kernels import choose_attention, cpu_attention, dropout, flash_attention, linears
from bertqa.model.packing import PackedBatch
from tests.helpers import LENGTHS, TINY, our_batch, random_windows

assert_close = partial(torch.testing.assert_close, rtol=1e-5, atol=1e-6)
exactly = partial(torch.testing.assert_close, rtol=0, atol=0)


def dropout_multiplier(x: Tensor, rate: float) -> Tensor:
    """Return the factors that dropout applies to a tensor like ``x``."""
    return dropout(torch.ones(x.shape, dtype=x.dtype), rate)


# --- dropout -------------------------------------------------------------------------------------


@pytest.fixture
def every_number(monkeypatch) -> Tensor:
    """A tensor for which the "random" words are all 2**16 sixteen-bit numbers, once each."""

    def each_once(words: Tensor, *bounds: object, generator: object) -> Tensor:
        numbers = torch.arange(-(2**15), 2**15).to(torch.int16)
        return words.copy_(numbers.view(torch.int64))

    monkeypatch.setattr(Tensor, "random_", each_once)
    return torch.zeros(2**16, dtype=torch.float64)


RATES = [0.1, 0.5, 0.9, 1 / 3, 0.001, 0.0, 1e-7, 2**-16, 1 - 2**-16, 1 - 1e-7]


@pytest.mark.parametrize("rate", RATES)
def test_fraction_of_dropped_numbers(every_number, rate):
    """The threshold is exact to half a step of 2**-16, and the expectation is 1."""
    multiplier = dropout_multiplier(every_number, rate)
    dropped = (multiplier == 0).sum().item()
    assert dropped == min(round(rate * 2**16), 2**16 - 1)
    assert abs(dropped / 2**16 - rate) <= 2**-16
    scale = 2**16 / (2**16 - dropped)
    assert multiplier.unique().tolist() == sorted({0.0, scale} if dropped else {scale})
    assert multiplier.mean().item() == pytest.approx(1, rel=1e-12)


@pytest.mark.parametrize("rate", [0.1, 0.5])
def test_neighbors_are_independent(rate):
    """Each random word gives four numbers: they have equal rates and no correlation."""
    torch.manual_seed(1)
    number = 2**20
    dropped = (dropout_multiplier(torch.empty(number), rate) == 0).double()
    lanes = dropped.view(-1, 4)
    spread = math.sqrt(rate * (1 - rate))
    assert (lanes.mean(0) - rate).abs().max() < 5 * spread / math.sqrt(number / 4)
    centered = (dropped - rate) / spread
    for lag in (*range(1, 13), 64, 1024):
        correlation = (centered[lag:] * centered[:-lag]).mean().item()
        assert abs(correlation) < 5 / math.sqrt(number - lag), lag
    within = (centered.view(-1, 4).T @ centered.view(-1, 4)) / (number / 4)
    assert (within - torch.eye(4)).abs().max() < 0.02


def test_dropout_depends_on_the_seed():
    def draw(seed: int) -> Tensor:
        torch.manual_seed(seed)
        return torch.stack([dropout_multiplier(torch.empty(50, 7), 0.5) for _ in range(2)])

    exactly(draw(3), draw(3))
    assert not torch.equal(draw(3), draw(4))
    assert not torch.equal(*draw(3))


@pytest.mark.parametrize(
    "shape", [(0,), (), (1,), (2,), (3,), (5,), (3, 5, 7), (4, 9, 9), (1, 1, 1), (2, 0, 3)]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_shape_and_dtype(shape, dtype):
    torch.manual_seed(0)
    multiplier = dropout_multiplier(torch.empty(shape, dtype=dtype), 0.5)
    assert multiplier.shape == shape and multiplier.dtype == dtype
    assert set(multiplier.flatten().tolist()) <= {0.0, 2.0}


def test_every_element_of_an_odd_size_is_random():
    """No element is kept, or dropped, in every draw."""
    torch.manual_seed(0)
    draws = torch.stack([dropout_multiplier(torch.empty(3, 7), 0.5) for _ in range(60)])
    assert (draws.amin(0) == 0).all() and (draws.amax(0) == 2).all()


def test_dropout_of_a_view():
    """A transposed tensor gets a mask of its shape."""
    torch.manual_seed(0)
    transposed = dropout(torch.ones(7, 50).T, 0.5)
    torch.manual_seed(0)
    exactly(transposed, dropout(torch.ones(50, 7), 0.5))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype):
    """The mask is that of float32; the scale is rounded to the dtype."""
    found = []
    for each in (dtype, torch.float32):
        torch.manual_seed(0)
        found.append(dropout_multiplier(torch.empty(4001, dtype=each), 0.1))
    half, full = found
    exactly(half, full.to(dtype))
    assert 0 < (half == 0).sum() < 800


def test_dropout_multiplies_value_and_gradient():
    x = torch.randn(6, 11, generator=torch.Generator().manual_seed(0), requires_grad=True)
    torch.manual_seed(2)
    out = dropout(x, 0.3)
    torch.manual_seed(2)
    multiplier = dropout_multiplier(x, 0.3)
    exactly(out, x * multiplier)
    [gradient] = torch.autograd.grad(out.sum(), x)
    exactly(gradient, multiplier)
    assert not multiplier.requires_grad
    assert 0 < (multiplier == 0).sum() < 40


def test_dropout_module_acts_in_training_only():
    x = torch.ones(1000)
    module = Dropout(0.5)
    torch.manual_seed(0)
    assert set(module(x).tolist()) == {0.0, 2.0}
    assert module.eval()(x) is x
    assert Dropout(0.0)(x) is x


# --- attention on the CPU ------------------------------------------------------------------------

SHAPES = {
    "usual": (LENGTHS, 4, 9),
    "one head": ((7, 2), 1, 5),
    "heads of one number": ((4, 11), 3, 1),
    "windows of one token": ((1,) * 40, 2, 3),
    "one window": ((13,), 4, 8),
}


def lay(lengths: tuple[int, ...]) -> PackedBatch:
    return our_batch(*random_windows(lengths))


def draw(lengths: tuple[int, ...], heads: int, size: int, dtype: torch.dtype, seed: int = 0):
    """Return query, key and value, as in the model parts of one matrix, and the batch."""
    generator = torch.Generator().manual_seed(seed)
    whole = torch.randn(sum(lengths), 3 * heads * size, generator=generator, dtype=torch.float64)
    whole = whole.mul_(1.5).to(dtype).requires_grad_()
    parts = [x.view(-1, heads, size) for x in whole.split(heads * size, dim=-1)]
    return whole, parts, lay(lengths)


def both_implementations(lengths, heads, size, dtype, rate, seed=7):
    """Compute value and gradient of fused and reference implementation, with the same masks."""
    results = []
    for implementation in (cpu_attention, reference):
        whole, parts, batch = draw(lengths, heads, size, dtype)
        torch.manual_seed(seed)
        out = implementation(*parts, batch, rate)
        weight = torch.randn(out.shape, generator=torch.Generator().manual_seed(9)).to(dtype)
        # A gradient that is not contiguous, as after a transpose.
        weight = weight.transpose(0, 2).contiguous().transpose(0, 2)
        [gradient] = torch.autograd.grad(out, whole, weight)
        results.append((out.detach(), gradient))
    return results


def self_attention(rate: float) -> SelfAttention:
    with torch.random.fork_rng([]):  # initializing linear layers must not change dropout's seed
        return SelfAttention(BertConfig(**TINY | {"attention_probs_dropout_prob": rate}))


def reference(query: Tensor, key: Tensor, value: Tensor, batch: PackedBatch, rate: float) -> Tensor:
    return self_attention(rate).reference(query, key, value, batch.lengths)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("rate", [0.0, 0.1, 0.7])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["fp32", "fp64"])
def test_cpu_attention(shape, rate, dtype):
    (fused, fused_gradient), (plain, plain_gradient) = both_implementations(
        *SHAPES[shape], dtype, rate
    )
    tight = 1e-12 if dtype is torch.float64 else 6e-6
    assert_close(fused, plain, rtol=tight * 3, atol=tight)
    assert_close(fused_gradient, plain_gradient, rtol=tight * 3, atol=tight)
    assert fused.dtype == dtype and fused.abs().max() > 0.1


def test_cpu_attention_in_bf16():
    exact, _ = both_implementations(LENGTHS, 4, 9, torch.float64, 0.1)
    half, _ = both_implementations(LENGTHS, 4, 9, torch.bfloat16, 0.1)
    for found, expected in zip(half, exact, strict=True):
        assert found.dtype == torch.bfloat16
        assert ((found.double() - expected).norm() / expected.norm()).item() < 0.02


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["fp32", "fp64"])
@pytest.mark.parametrize("size", [30.0, -30.0], ids=["too large", "too small"])
def test_scores_with_overflowing_exponentials(dtype, size):
    """If all scores of a row are far from 0, softmax and gradients are still right."""
    lengths, heads, number = (6, 9, 4), 2, 16
    batch = lay(lengths)
    generator = torch.Generator().manual_seed(0)
    parts = torch.randn(3, 19, heads, number, generator=generator)
    parts[0, 7], parts[1, 6:15] = size, abs(size) + 0.1 * parts[1, 6:15]
    found = []
    for implementation in (cpu_attention, reference):
        query, key, value = leaves = [x.to(dtype).requires_grad_() for x in parts]
        torch.manual_seed(3)
        out = implementation(query, key, value, batch, 0.3)
        found.append((out, *torch.autograd.grad(out.float().square().sum(), leaves)))
    assert ((parts[0, 7, 0] @ parts[1, 6:15, 0].T) / 4).abs().min() > 100
    for fused, plain in zip(*found, strict=True):
        assert fused.isfinite().all()
        # In float32 a score near 900 has a relative error of 1e-4.
        bound = 1e-4 if dtype is torch.float32 else 1e-12
        assert (fused - plain).norm() <= bound * plain.norm()


@pytest.mark.parametrize("rate", [0.0, 0.4])
@pytest.mark.parametrize("implementation", [cpu_attention, reference], ids=["fused", "reference"])
def test_gradient_equals_finite_differences(implementation, rate):
    _, parts, batch = draw((3, 1, 4), 2, 3, torch.float64, seed=4)

    def run(*parts: Tensor) -> Tensor:
        torch.manual_seed(1)  # the same masks each time
        return implementation(*parts, batch, rate)

    torch.autograd.gradcheck(run, [x.detach().requires_grad_() for x in parts])


def test_backward_twice_gives_the_same():
    """The first backward pass overwrites no saved tensor."""
    whole, parts, batch = draw(LENGTHS, 4, 9, torch.float32)
    loss = cpu_attention(*parts, batch, 0.2).square().sum()
    first, second = (torch.autograd.grad(loss, whole, retain_graph=True)[0] for _ in range(2))
    exactly(first, second)


# --- the reference itself ------------------------------------------------------------------------


def test_reference_attention_by_hand():
    """softmax(Q K^T / sqrt(K)) V in plain Python."""
    lengths = (2, 4, 1)
    _, (query, key, value), _ = draw(lengths, 2, 3, torch.float64)
    module = self_attention(rate=0.0)
    probabilities: list[Tensor] = []
    module.probabilities.register_forward_hook(lambda _, args, out: probabilities.append(out))
    attn_output = module.reference(query, key, value, lengths)
    first = 0
    for window, length in enumerate(lengths):
        tokens = range(first, first + length)
        for head in range(2):
            q, k, v = (x[:, head].tolist() for x in (query, key, value))
            for i in tokens:
                scores = [
                    sum(a * b for a, b in zip(q[i], k[j], strict=True)) / math.sqrt(3)
                    for j in tokens
                ]
                total = sum(map(math.exp, scores))
                weights = [math.exp(score) / total for score in scores]
                found = probabilities[window][head, i - first].tolist()
                assert found == pytest.approx(weights)
                expected = [
                    sum(w * v[j][d] for w, j in zip(weights, tokens, strict=True)) for d in range(3)
                ]
                assert attn_output[i, head].tolist() == pytest.approx(expected)
        first += length


def test_dropout_of_the_probabilities_is_not_in_place():
    _, parts, batch = draw(LENGTHS, 4, 9, torch.float32)
    found = []
    for rate in (0.0, 0.5):
        module, probabilities, dropped = self_attention(rate), [], []
        for name, kept in (("probabilities", probabilities), ("dropout", dropped)):
            module.get_submodule(name).register_forward_hook(
                lambda _, args, out, kept=kept: kept.append(out.clone())
            )
        found.append((module.reference(*parts, batch.lengths), probabilities, dropped))
    (without, plain, same), (attn_output, kept, dropped) = found
    exactly(kept, plain)
    exactly(same, plain)
    for before, after in zip(kept, dropped, strict=True):
        assert ((after == 0) | torch.isclose(after, 2 * before)).all()
    assert (attn_output - without).abs().max() > 0.1


# --- several linear layers at once ---------------------------------------------------------------


@pytest.mark.parametrize("widths", [(36, 36, 36), (5, 1, 12), (7,)])
def test_linears(widths):
    torch.manual_seed(0)
    layers = [nn.Linear(11, width) for width in widths]
    x = torch.randn(9, 11, requires_grad=True)
    inputs = [x, *(p for layer in layers for p in layer.parameters())]
    together, apart = linears(x, layers), [layer(x) for layer in layers]
    assert [out.shape for out in together] == [(9, width) for width in widths]
    for a, b in zip(together, apart, strict=True):
        assert_close(a, b)
    ours, theirs = (
        torch.autograd.grad(sum(out.square().sum() for out in outs), inputs)
        for outs in (together, apart)
    )
    for a, b in zip(ours, theirs, strict=True):
        assert_close(a, b, rtol=1e-5, atol=1e-5)


# --- which implementation runs -------------------------------------------------------------------


def test_only_cpu_tensors_use_the_cpu_implementation():
    for dtype in (torch.float32, torch.bfloat16):
        assert choose_attention(*torch.empty(3, 3, 2, 8, dtype=dtype)) is cpu_attention
    assert choose_attention(*torch.empty(3, 3, 2, 8, device="meta")) is None


@pytest.mark.parametrize(
    ("dtype", "head_size", "capability", "implementation"),
    [
        (torch.bfloat16, 64, (8, 0), flash_attention),
        (torch.float16, 32, (9, 0), flash_attention),
        (torch.bfloat16, 256, (8, 6), flash_attention),
        (torch.bfloat16, 8, (12, 0), flash_attention),
        (torch.float32, 64, (9, 0), None),  # FlashAttention has no float32
        (torch.bfloat16, 64, (7, 5), None),  # and requires Ampere
        (torch.bfloat16, 9, (9, 0), None),
        (torch.bfloat16, 264, (9, 0), None),
    ],
)
def test_cuda_tensors(monkeypatch, dtype, head_size, capability, implementation):
    """The choice for CUDA tensors, tested with mocks that need no GPU."""
    built = torch.backends.cuda
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(built, "is_flash_attention_available", lambda: True)
    query = SimpleNamespace(device=torch.device("cuda", 0), dtype=dtype, shape=(3, 2, head_size))
    assert choose_attention(query, query, query) is implementation
    monkeypatch.setattr(built, "is_flash_attention_available", lambda: False)
    assert choose_attention(query, query, query) is None


# --- on a GPU ------------------------------------------------------------------------------------


def gpu(test):
    """Mark a test that needs a CUDA device."""
    available = torch.cuda.is_available()
    return pytest.mark.gpu(pytest.mark.skipif(not available, reason="needs a CUDA device")(test))


@pytest.fixture
def ampere():
    """Skip the test on GPUs before Ampere."""
    if torch.cuda.get_device_capability() < (8, 0):
        pytest.skip("FlashAttention needs Ampere or later")


def draw_on_gpu(heads: int = 4, size: int = 32):
    """Return the tensors of ``draw`` in bf16 on the GPU."""
    whole, _, batch = draw(LENGTHS, heads, size, torch.bfloat16)
    whole = whole.detach().cuda().requires_grad_()
    parts = [x.view(-1, heads, size) for x in whole.split(heads * size, dim=-1)]
    return whole, parts, batch.to(torch.device("cuda"))


def apart(a: Tensor, b: Tensor) -> float:
    """Return the distance of two tensors, relative to the second."""
    return ((a.double() - b.double()).norm() / b.double().norm()).item()


@gpu
@pytest.mark.usefixtures("ampere")
def test_flash_attention_equals_the_reference():
    whole, parts, batch = draw_on_gpu()
    exact = [x.double() for x in parts]
    fused, plain = flash_attention(*parts, batch, 0.0), reference(*exact, batch, 0.0)
    assert fused.shape == plain.shape and fused.dtype == torch.bfloat16
    assert apart(fused, plain) < 0.01
    weight = torch.randn_like(fused)
    [fused_gradient] = torch.autograd.grad(fused, whole, weight)
    [plain_gradient] = torch.autograd.grad(plain, whole, weight.double())
    assert apart(fused_gradient, plain_gradient) < 0.02


@gpu
@pytest.mark.usefixtures("ampere")
def test_flash_attention_drops_without_bias():
    """The mean over many masks approaches the result without dropout, in value and gradient."""
    whole, parts, batch = draw_on_gpu()
    torch.manual_seed(0)
    weight = torch.randn_like(parts[2])

    def run(rate: float) -> tuple[Tensor, Tensor]:
        out = flash_attention(*parts, batch, rate)
        [gradient] = torch.autograd.grad(out, whole, weight)
        return out.detach().double(), gradient.double()

    without = run(0.0)
    draws = [run(0.2) for _ in range(400)]
    assert apart(draws[0][0], draws[1][0]) > 0.05
    for part in range(2):
        mean = torch.stack([draw[part] for draw in draws]).mean(0)
        single = apart(draws[0][part], without[part])
        assert single > 0.05
        # The error of a mean of 400 is 1/20 of that of one mask; bf16 adds a little.
        assert apart(mean, without[part]) < single / 20 * 1.5 + 0.005
    torch.manual_seed(11)
    first = run(0.2)[0]
    torch.manual_seed(11)
    exactly(run(0.2)[0], first)


def model_on_both(**changes: object) -> tuple[BertForQuestionAnswering, BertForQuestionAnswering]:
    """Make models with the same random weights on the CPU and on the GPU."""
    torch.manual_seed(0)
    config = BertConfig(**(TINY | changes))
    cpu, gpu = BertForQuestionAnswering(config).eval(), BertForQuestionAnswering(config).eval()
    with torch.no_grad():
        for parameter in cpu.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    gpu.load_state_dict(cpu.state_dict())
    return cpu, gpu.cuda()


def logits_and_gradients(model: BertForQuestionAnswering, batch: PackedBatch) -> list[Tensor]:
    """Return start logits, end logits and the gradient of every parameter, on the CPU."""
    ends = torch.tensor([length - 1 for length in LENGTHS], device=batch.input_ids.device)
    output = model(batch)
    loss = window_losses(output, batch.lengths, ends // 2, ends).mean()
    found = torch.autograd.grad(loss, list(model.parameters()))
    return [x.detach().cpu() for x in (output.start_logits, output.end_logits, *found)]


@gpu
def test_whole_model_on_the_gpu_in_fp32():
    on_cpu, on_gpu = model_on_both()
    batch = lay(LENGTHS)
    ours = logits_and_gradients(on_gpu, batch.to(torch.device("cuda")))
    for found, expected in zip(ours, logits_and_gradients(on_cpu, batch), strict=True):
        assert_close(found, expected, rtol=1e-4, atol=1e-4)


@gpu
def test_whole_model_on_the_gpu_in_bf16(monkeypatch):
    """With FlashAttention, if the device supports it."""
    on_cpu, on_gpu = model_on_both(hidden_size=64, num_attention_heads=4)
    batch = lay(LENGTHS)
    calls = []

    def counted(*inputs):
        calls.append(inputs)
        return flash_attention(*inputs)

    monkeypatch.setattr(kernels, "flash_attention", counted)
    with torch.autocast("cuda", torch.bfloat16):
        output = on_gpu(batch.to(torch.device("cuda")))
    capable = torch.cuda.get_device_capability() >= (8, 0)
    assert len(calls) == (TINY["num_hidden_layers"] if capable else 0)
    expected = on_cpu(batch)
    assert output.start_logits.dtype == torch.float32
    assert apart(output.start_logits.cpu(), expected.start_logits) < 0.05
    assert apart(output.end_logits.cpu(), expected.end_logits) < 0.05
