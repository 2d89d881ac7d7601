"""A prepacked model gives the same results as the model."""

import copy
from functools import partial

import pytest
import torch

from bertqa.errors import UserError
from bertqa.explain.hooks import attention_names, hidden_state_names, record
from bertqa.model.checkpoint import save_model
from bertqa.model.cpu_inference import (
    Int8Linear,
    PrepackedLinear,
    can_prepack,
    is_prepacked,
    prepack,
    prepare_for_inference,
    quantize_tokens,
)
from bertqa.model.kernels import JointPart, linears
from tests.helpers import TINY
from tests.model.conftest import scores

CPU = torch.device("cpu")
assert_close = partial(torch.testing.assert_close, rtol=1e-5, atol=1e-5)
exactly = partial(torch.testing.assert_close, rtol=0, atol=0)

pytestmark = pytest.mark.skipif(not can_prepack(CPU), reason="this torch has no oneDNN")
needs_bf16 = pytest.mark.skipif(
    not can_prepack(CPU, torch.bfloat16), reason="this processor has no bf16 products"
)
needs_int8 = pytest.mark.skipif(
    not can_prepack(CPU, int8=True), reason="this processor has no 8-bit products"
)
WITH_OR_WITHOUT_INT8 = [False, pytest.param(True, marks=needs_int8)]


def test_a_prepacked_model_gives_the_same_scores(model, batch):
    expected = scores(model, batch)
    prepack(model)
    assert_close(scores(model, batch), expected)


def test_a_prepacked_model_records_the_same_activations(model, batch):
    names = [*hidden_state_names(model), *attention_names(model)]
    with torch.inference_mode(), record(model, names) as expected:
        model(batch)
    prepack(model)
    with torch.inference_mode(), record(model, names) as found:
        model(batch)
    assert_close(dict(found), dict(expected))


@needs_bf16
def test_prepacking_in_half_precision_changes_no_score(model, batch):
    plain = copy.deepcopy(model)
    plain.embeddings.bfloat16()
    plain.layers.bfloat16()
    ready = prepare_for_inference(model, CPU, torch.bfloat16)
    assert isinstance(ready.layers[0].feed_forward.up, PrepackedLinear)
    # The products may round differently.
    torch.testing.assert_close(scores(ready, batch), scores(plain, batch), rtol=0, atol=0.01)
    assert ready.head.weight.dtype is torch.float32


@pytest.mark.parametrize("dtype", [torch.float32, pytest.param(torch.bfloat16, marks=needs_bf16)])
def test_a_prepacked_layer_is_the_linear_layer(dtype):
    torch.manual_seed(1)
    x, weight, bias = torch.randn(37, 48), torch.randn(80, 48), torch.randn(80)
    exact = x.to(dtype).float() @ weight.to(dtype).float().T + bias.to(dtype).float()
    layer = PrepackedLinear(weight.to(dtype), bias.to(dtype))
    bound = 1e-5 if dtype is torch.float32 else 2**-8
    torch.testing.assert_close(layer(x.to(dtype)).float(), exact, rtol=bound, atol=10 * bound)


@pytest.mark.parametrize("int8", WITH_OR_WITHOUT_INT8)
def test_prepacked_layers_raise_if_a_gradient_is_required(model, batch, int8):
    prepack(model, int8=int8)
    with pytest.raises(RuntimeError, match=r"^prepacked layers have no gradients"):
        model(batch)


def test_query_key_and_value_are_one_product_and_still_three_layers(model):
    attention = model.layers[0].attention
    layers = (attention.query, attention.key, attention.value)
    x = torch.randn(5, TINY["hidden_size"])
    with torch.inference_mode():
        expected = [layer(x) for layer in layers]
        prepack(model)
        parts = (attention.query, attention.key, attention.value)
        assert all(isinstance(part, JointPart) for part in parts)
        assert_close([part(x) for part in parts], expected)
        assert_close(list(linears(x, parts)), expected)


def test_a_processor_without_the_instructions_does_not_prepack(model, batch, monkeypatch):
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False)
    monkeypatch.setattr(torch.cpu, "_is_vnni_supported", lambda: False)
    assert can_prepack(CPU) and not can_prepack(torch.device("cuda"))
    assert not can_prepack(CPU, torch.bfloat16) and not can_prepack(CPU, int8=True)
    ready = prepare_for_inference(model, CPU, torch.bfloat16)
    assert not is_prepacked(ready) and scores(ready, batch).isfinite().all()
    with pytest.raises(UserError, match="VNNI"):
        prepare_for_inference(model, CPU, torch.float32, int8=True)


@pytest.mark.parametrize("int8", WITH_OR_WITHOUT_INT8)
def test_a_prepacked_model_cannot_be_saved_and_is_ready_already(model, batch, tmp_path, int8):
    ready = prepare_for_inference(model, CPU, torch.float32, int8=int8)
    before = scores(ready, batch)
    with pytest.raises(ValueError, match="cannot save a prepacked model"):
        save_model(tmp_path / "folder", ready)
    assert not (tmp_path / "folder").exists()
    assert prepare_for_inference(ready, CPU, torch.float32, int8=int8) is ready
    exactly(scores(ready, batch), before)
    for other in ({"dtype": torch.float32, "int8": not int8}, {"dtype": torch.bfloat16}):
        with pytest.raises(ValueError, match="another precision"):
            prepare_for_inference(ready, CPU, **other)


# --- integers ------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", [1e-6, 1.0, 3e4])
def test_a_token_in_integers_is_the_token_up_to_rounding(dtype, size):
    torch.manual_seed(2)
    x = (torch.randn(50, 64) * size).to(dtype)
    integers, scale = quantize_tokens(x)
    assert integers.dtype is torch.uint8
    again = (integers.float() - 128) * scale.float()
    half_a_step = x.float().abs().amax(dim=1, keepdim=True) / 126 / 2
    rounding = 1.01 if dtype is torch.float32 else 2.1  # bfloat16 rounds quotient and scale too
    assert ((again - x.float()).abs() <= half_a_step * rounding).all()


def test_a_tokens_integers_do_not_depend_on_the_other_tokens():
    torch.manual_seed(3)
    x = torch.randn(8, 32)
    single = quantize_tokens(x[:1])
    together = quantize_tokens(x * torch.tensor([1.0] + [100.0] * 7)[:, None])
    exactly(together[0][:1], single[0])
    exactly(together[1][:1], single[1])


def test_a_token_of_zeros():
    integers, scale = quantize_tokens(torch.zeros(1, 8))
    exactly(integers, torch.full((1, 8), 128, dtype=torch.uint8))
    assert torch.isfinite(scale).all()


@needs_int8
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_layer_in_integers_is_close_to_the_linear_layer(dtype):
    torch.manual_seed(4)
    x, weight, bias = torch.randn(64, 384), torch.randn(96, 384) * 0.05, torch.randn(96)
    weight[3] = 0  # an output without weights
    exact = x @ weight.T + bias
    result = Int8Linear(weight.to(dtype), bias.to(dtype))(x.to(dtype)).float()
    assert (result - exact).norm() / exact.norm() < 0.02
    assert_close(result[:, 3], bias[3].to(dtype).float().expand(64))


@needs_int8
def test_outputs_and_tokens_of_very_different_size_keep_their_precision():
    """A single scale would round the small ones to zero."""
    torch.manual_seed(5)
    x, weight = torch.randn(16, 64), torch.randn(8, 64)
    x[0] *= 1e-3
    weight[0] *= 1e-3
    exact = x @ weight.T
    result = Int8Linear(weight, torch.zeros(8))(x)
    for part in (slice(0, 1), slice(1, None)):
        for column in (slice(0, 1), slice(1, None)):
            error = (result[part, column] - exact[part, column]).norm()
            assert error / exact[part, column].norm() < 0.03


@needs_int8
def test_a_model_in_integers_is_close(model, batch):
    expected = scores(model, batch)
    ready = prepare_for_inference(model, CPU, torch.float32, int8=True)
    assert isinstance(ready.layers[0].feed_forward.up, Int8Linear)
    assert isinstance(ready.layers[0].attention.output, Int8Linear)
    result = scores(ready, batch)
    assert (result - expected).norm() / expected.norm() < 0.1
    assert not torch.equal(result, expected)
