"""Prepacked linear layers for inference on the CPU.

oneDNN, torch's library for matrix products on the CPU, is fastest with weights in blocks that fit
the processor's registers; ``F.linear`` reorders them at every call. ``prepack`` reorders them once,
after loading, by replacing the linear layers of a model used only for inference. The operators are
private in torch; only this module uses them.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from bertqa.errors import UserError
from bertqa.model.bert import BertForQuestionAnswering, FeedForward, SelfAttention
from bertqa.model.kernels import INTEGERS, JointPart, Prepacked, is_plain_linear

# The model's attribute that stores its precision. Such a model may have no prepacked layers: on a
# GPU, or if each layer is wrapped.
_READY_IN = "_ready_in"
_LARGEST = 126  # not 127: bfloat16 may round it up to 128, which overflows 8 bits
_SMALLEST_SCALE = 1e-30  # for tokens and outputs that are all 0
_ZERO_POINT = 128  # represents 0: oneDNN is only fast with unsigned inputs


class PrepackedLinear(Prepacked):
    """``x W^T + b`` with a weight in oneDNN's layout; without gradients.

    Args:
        weight: ``(out, in)``, float32 or bfloat16.
        bias: ``(out,)``, of the same dtype.
    """

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight.detach())
        self.bias = bias.detach()

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(T, in)`` to ``(T, out)``.

        Raises:
            RuntimeError: a gradient is required; the operator would silently give none.
        """
        _refuse_gradients(x)
        out: Tensor = torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "none", [], "")
        return out


class Int8Linear(Prepacked):
    """``x W^T + b`` in 8-bit integers, with an error of about 1 %.

    Weights are scaled per output, inputs per token. A token's scale is computed from its own
    values, so no calibration is needed, and an answer does not depend on the rest of the batch.

    Args:
        weight: ``(out, in)``.
        bias: ``(out,)``; its dtype is that of the inputs and outputs.
    """

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        rows = weight.detach().float()
        scale = rows.abs().amax(dim=1) / _LARGEST + _SMALLEST_SCALE
        integers = (rows / scale[:, None]).round().to(torch.int8)
        self.weight = torch.ops.onednn.qlinear_prepack(integers, None)
        self.scale = scale  # (out,)
        self.zero_points = torch.zeros(len(scale), dtype=torch.int32)
        self.bias = bias.detach()

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(T, in)`` to ``(T, out)``.

        Raises:
            RuntimeError: as with ``PrepackedLinear``.
        """
        _refuse_gradients(x)
        integers, scale = quantize_tokens(x)
        product = torch.ops.onednn.qlinear_pointwise(
            integers, 1.0, _ZERO_POINT, self.weight, self.scale, self.zero_points,
            None, 1.0, 0, x.dtype, "none", [], "",
        )  # fmt: skip
        return torch.addcmul(self.bias, product, scale)


def _refuse_gradients(x: Tensor) -> None:
    if torch.is_grad_enabled() and x.requires_grad:
        raise RuntimeError("prepacked layers have no gradients: load the model without prepacking")


def quantize_tokens(x: Tensor) -> tuple[Tensor, Tensor]:
    """Quantize each token to 8-bit integers.

    Args:
        x: ``(T, D)``.

    Returns:
        ``(T, D)`` uint8 and ``(T, 1)`` in x's dtype: ``(integers - 128) * scale`` is x, up to
        rounding.
    """
    scale = _largest_magnitude(x) / _LARGEST + _SMALLEST_SCALE
    integers = (x / scale).round_().to(torch.int8)
    # Flipping the highest bit and reading the bits as unsigned adds 128.
    return integers.view(torch.uint8).bitwise_xor_(_ZERO_POINT), scale


def _largest_magnitude(x: Tensor) -> Tensor:
    """Compute ``x.abs().amax(dim=1, keepdim=True)``, ``(T, D)`` to ``(T, 1)``, in half the time.

    Without the sign bit, floating-point numbers are ordered like their bits read as integers, and
    torch's maximum is faster for integers.
    """
    integer = INTEGERS[x.element_size()]
    without_sign = x.view(integer) & torch.iinfo(integer).max
    return without_sign.amax(dim=1, keepdim=True).view(x.dtype)


def can_prepack(
    device: torch.device, dtype: torch.dtype = torch.float32, int8: bool = False
) -> bool:
    """Return whether torch and the processor support prepacking for a device and precision.

    int8 requires VNNI: without it, oneDNN accumulates 8-bit products in 16 bits, which overflows.
    """
    if device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    if not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return False
    if dtype is torch.bfloat16 and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return False
    built = hasattr(torch.ops.onednn, "qlinear_prepack")
    # torch has no public function for this yet.
    return not int8 or (built and torch.cpu._is_vnni_supported())


def check_int8(device: torch.device) -> None:
    """Check that ``--precision int8`` is supported.

    Raises:
        UserError: torch or the processor does not support it.
    """
    if not can_prepack(device, int8=True):
        raise UserError(
            f"--precision: int8 requires a CPU with VNNI instructions, got this {device}: pass "
            "another precision, or --device cpu if the CPU has them"
        )


def is_prepacked(model: BertForQuestionAnswering) -> bool:
    """Return whether ``prepack`` was called; such a model cannot be trained, copied or saved."""
    return any(isinstance(module, Prepacked) for module in model.modules())


def prepare_for_inference(
    model: BertForQuestionAnswering, device: torch.device, dtype: torch.dtype, *, int8: bool = False
) -> BertForQuestionAnswering:
    """Move and convert a model for inference, in place; prepack it if possible.

    The encoder is converted once; autocast would convert all weights again for every batch. S and
    E stay in float32, and so does a module that replaced a linear layer: it gets float32 inputs and
    autocast applies to it, as in training. A second call changes nothing.

    Raises:
        UserError: ``int8`` is not supported.
        ValueError: the model was made ready in another precision, which cannot be undone.
    """
    if int8:
        check_int8(device)
    ready_in = vars(model).get(_READY_IN)
    if ready_in not in (None, (dtype, int8)):
        raise ValueError("the model was made ready in another precision: load it again")
    if is_prepacked(model):
        return model
    model.to(device).eval()
    if ready_in is not None:
        return model
    model.embeddings.to(dtype)
    _convert_layers(model, dtype)
    if can_prepack(device, dtype, int8):
        prepack(model, int8=int8)
        model.eval()  # for the new layers, so that another eval() changes nothing
    vars(model)[_READY_IN] = (dtype, int8)
    return model


def _convert_layers(model: BertForQuestionAnswering, dtype: torch.dtype) -> None:
    """Convert all layers except modules that replace a linear layer; convert their inputs."""
    others = [
        (parent, name, module)
        for parent, names in _positions(model)
        for name in names
        if type(module := getattr(parent, name)) is not nn.Linear
    ]
    for parent, name, _ in others:
        setattr(parent, name, nn.Identity())
    model.layers.to(dtype)
    for parent, name, module in others:
        setattr(parent, name, module)
        if dtype is not torch.float32:
            module.register_forward_pre_hook(lambda module, args: (args[0].float(), *args[1:]))
            module.register_forward_hook(lambda module, args, output: output.to(dtype))


def _positions(model: BertForQuestionAnswering) -> Iterator[tuple[nn.Module, tuple[str, ...]]]:
    """Yield modules with linear layers, and the names of those layers that share an input."""
    kinds = (SelfAttention, FeedForward)  # not subclasses, which may use their layers differently
    for module in [module for module in model.layers.modules() if type(module) in kinds]:
        if isinstance(module, SelfAttention):
            yield from ((module, names) for names in (("query", "key", "value"), ("output",)))
        else:
            yield from ((module, (name,)) for name in ("up", "down"))


def prepack(model: BertForQuestionAnswering, *, int8: bool = False) -> None:
    """Prepack the linear layers of a model on the CPU, in place; fuse query, key and value.

    With ``int8`` they become ``Int8Linear``; attention and the norms stay in the model's dtype.
    Other modules (see ``is_plain_linear``) are not replaced.
    """
    for parent, names in _positions(model):
        plain = [name for name in names if is_plain_linear(getattr(parent, name))]
        for together in [plain] if len(plain) == len(names) else [[name] for name in plain]:
            _replace(parent, together, Int8Linear if int8 else PrepackedLinear)


def _replace(
    parent: nn.Module, names: Sequence[str], kind: type[PrepackedLinear] | type[Int8Linear]
) -> None:
    """Replace linear layers that share an input by a single product."""
    layers = [getattr(parent, name) for name in names]
    product = kind(
        torch.cat([layer.weight for layer in layers]), torch.cat([layer.bias for layer in layers])
    )
    sizes = [layer.out_features for layer in layers]
    for number, name in enumerate(names):
        setattr(parent, name, JointPart(product, number, sizes) if len(names) > 1 else product)
