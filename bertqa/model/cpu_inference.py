"""Linear layers made ready for inference on the CPU; the model computes the same with them.

oneDNN, the library below torch's products on the CPU, multiplies fastest when a weight lies in
blocks that fit the processor's registers, and ``F.linear`` lays it out so anew at every call. Here
that is done once, after loading: ``prepack`` replaces the linear layers of a model that will only
answer. The operators have no public names in torch; they are used here and nowhere else.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from bertqa.errors import UserError
from bertqa.model.bert import BertForQuestionAnswering, FeedForward, SelfAttention
from bertqa.model.kernels import JointPart, Prepacked, is_plain_linear

# The attribute by which a model remembers its precision. There may be nothing prepacked in it: on a
# GPU, or where each layer is wrapped.
_READY_IN = "_ready_in"
_LARGEST = 126  # 127 would become 128, which 8 bits do not hold, where bfloat16 rounds up
_SMALLEST_SCALE = 1e-30  # of a token or an output whose numbers are all 0
_ZERO_POINT = 128  # oneDNN is fast with unsigned inputs only: 128 represents 0


class PrepackedLinear(Prepacked):
    """``x W^T + b`` with a weight that oneDNN has laid out; for inference, without gradients.

    Args:
        weight: ``(out, in)``, float32 or bfloat16.
        bias: ``(out,)``, of the same dtype.
    """

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight.detach())
        self.bias = bias.detach()

    def forward(self, x: Tensor) -> Tensor:
        """``(T, in)`` to ``(T, out)``.

        Raises:
            RuntimeError: a gradient is wanted; there is none here, and silence would be wrong.
        """
        _refuse_gradients(x)
        out: Tensor = torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "none", [], "")
        return out


class Int8Linear(Prepacked):
    """``x W^T + b`` in 8-bit integers, about 1 % off.

    Each output's weights share one scale, as does each token's input. A token's scale comes from
    its own numbers, so no calibration is needed, and an answer does not depend on what else is in
    the batch.

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
        """``(T, in)`` to ``(T, out)``.

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
        raise RuntimeError("prepacked layers give no gradients: load the model without prepacking")


def quantize_tokens(x: Tensor) -> tuple[Tensor, Tensor]:
    """Each token's numbers as 8-bit integers.

    Args:
        x: ``(T, D)``.

    Returns:
        ``(T, D)`` uint8 and ``(T, 1)`` in x's dtype: ``(integers - 128) * scale`` is x again,
        but for rounding.
    """
    scale = _largest_magnitude(x) / _LARGEST + _SMALLEST_SCALE
    integers = (x / scale).round_().to(torch.int8)
    # The same bits read as unsigned, with the highest flipped, are the integers plus 128.
    return integers.view(torch.uint8).bitwise_xor_(_ZERO_POINT), scale


def _largest_magnitude(x: Tensor) -> Tensor:
    """``x.abs().amax(dim=1, keepdim=True)``, ``(T, D)`` to ``(T, 1)``, in half the time.

    Without their sign bit, the bits of floating-point numbers, read as integers, have the order of
    the numbers, and torch finds the largest of a row of integers faster.
    """
    integer = {2: torch.int16, 4: torch.int32}[x.element_size()]
    without_sign = x.view(integer) & torch.iinfo(integer).max
    return without_sign.amax(dim=1, keepdim=True).view(x.dtype)


def can_prepack(
    device: torch.device, dtype: torch.dtype = torch.float32, int8: bool = False
) -> bool:
    """Whether this torch and this processor have the operators for that device and precision.

    Without the instructions for it (VNNI), oneDNN adds 8-bit products up in 16 bits, which these
    numbers overflow.
    """
    if device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    if not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return False
    if dtype is torch.bfloat16 and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return False
    built = hasattr(torch.ops.onednn, "qlinear_prepack")
    # This question has no public name in torch yet.
    return not int8 or (built and torch.cpu._is_vnni_supported())


def check_int8(device: torch.device) -> None:
    """Refuse ``--precision int8`` where there are no integer layers.

    Raises:
        UserError: this torch or this processor lacks the operators.
    """
    if not can_prepack(device, int8=True):
        raise UserError(
            f"--precision int8 runs on CPUs with instructions for it (VNNI), not on this {device}: "
            "pass another precision, or --device cpu where the CPU has them"
        )


def is_prepacked(model: BertForQuestionAnswering) -> bool:
    """Whether ``prepack`` was called: the model answers, but cannot be trained, copied or saved."""
    return any(isinstance(module, Prepacked) for module in model.modules())


def make_ready(
    model: BertForQuestionAnswering, device: torch.device, dtype: torch.dtype, *, int8: bool = False
) -> BertForQuestionAnswering:
    """Move and convert a model that from now on only answers, in place; prepack it where possible.

    The encoder is converted once here, where autocast would convert all weights again for every
    batch. S and E stay as they are: the last step is not rounded. A module that replaces a
    linear layer stays in float32 too, gets float32 and is left to autocast, as in training. A
    model that is ready already stays as it is.

    Raises:
        UserError: ``int8`` where there are no integer layers.
        ValueError: it was made ready in another precision, which cannot be undone.
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
        model.eval()  # the new layers, too, so that another eval() changes nothing
    vars(model)[_READY_IN] = (dtype, int8)
    return model


def _convert_layers(model: BertForQuestionAnswering, dtype: torch.dtype) -> None:
    """Convert all but what replaces a linear layer; that is put between conversions."""
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
    """Where linear layers belong: a module, and its names for those that have one input."""
    kinds = (SelfAttention, FeedForward)  # no subclass, which may use its layers in another way
    for module in [module for module in model.layers.modules() if type(module) in kinds]:
        if isinstance(module, SelfAttention):
            yield from ((module, names) for names in (("query", "key", "value"), ("output",)))
        else:
            yield from ((module, (name,)) for name in ("up", "down"))


def prepack(model: BertForQuestionAnswering, *, int8: bool = False) -> None:
    """Replace the linear layers of a model on the CPU, in place; query, key and value by one.

    With ``int8`` they become ``Int8Linear``; attention and the norms stay in the model's dtype.
    Other modules (see ``is_plain_linear``) stay and are called.
    """
    for parent, names in _positions(model):
        plain = [name for name in names if is_plain_linear(getattr(parent, name))]
        for together in [plain] if len(plain) == len(names) else [[name] for name in plain]:
            _replace(parent, together, Int8Linear if int8 else PrepackedLinear)


def _replace(
    parent: nn.Module, names: Sequence[str], kind: type[PrepackedLinear] | type[Int8Linear]
) -> None:
    """Replace the linear layers of these names, which have one input, by a single product."""
    layers = [getattr(parent, name) for name in names]
    product = kind(
        torch.cat([layer.weight for layer in layers]), torch.cat([layer.bias for layer in layers])
    )
    sizes = [layer.out_features for layer in layers]
    for number, name in enumerate(names):
        setattr(parent, name, JointPart(product, number, sizes) if len(names) > 1 else product)
