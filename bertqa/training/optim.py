"""AdamW for fine-tuning BERT: weight decay and learning rate schedules."""

import math
from typing import Any

import torch
from torch import nn


def learning_rate(
    step: int, peak: float, total_steps: int, warmup_steps: int, schedule: str = "linear"
) -> float:
    """Return the learning rate of optimizer step ``step``, counted from 0.

    Warmup is linear from 0 to ``peak``; without it the first step has the peak. Then follows one of
    transformers' schedules:

        linear                  linear decay to 0, reached one step after the last
        cosine                  half a cosine to 0 (Loshchilov and Hutter, "SGDR", 2017)
        constant_with_warmup    the peak
        constant                the peak from the first step on; ``warmup_steps`` is ignored

    In Google's run_squad linear decay begins at step 0, so the rate drops where warmup ends.
    """
    if schedule == "constant":
        return peak
    if step < warmup_steps:
        return peak * step / warmup_steps
    if schedule == "constant_with_warmup":
        return peak
    decay_steps = max(1, total_steps - warmup_steps)
    if schedule == "cosine":
        return peak * (1 + math.cos(math.pi * (step - warmup_steps) / decay_steps)) / 2
    return peak * max(0, total_steps - step) / decay_steps


def parameter_groups(
    model: nn.Module, weight_decay: float, layerwise_lr_decay: float = 1.0
) -> list[dict[str, Any]]:
    """Return AdamW's parameter groups: no weight decay of biases and LayerNorm.

    As in Google's code (optimization.py). ``lr_scale`` is a group's factor of the learning rate: 1
    for S and E, ``layerwise_lr_decay`` for the last layer, its square for the one before, and so on
    down to the embeddings (Clark et al., "ELECTRA", 2020, appendix B; Howard and Ruder, "ULMFiT",
    2018). Frozen parameters are in no group.
    """
    groups: dict[tuple[int, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            no_decay = name.endswith("bias") or "norm." in name
            depth = _depth(name, model) if layerwise_lr_decay != 1 else 0
            groups.setdefault((depth, no_decay), []).append(parameter)
    return [
        {
            "params": parameters,
            "weight_decay": 0.0 if no_decay else weight_decay,
            "lr_scale": layerwise_lr_decay**depth,
        }
        for (depth, no_decay), parameters in sorted(groups.items(), key=lambda item: item[0])
    ]


def _depth(name: str, model: nn.Module) -> int:
    """Return how many layers a parameter is below S and E: 0 for those, 1 for the last layer."""
    part, _, rest = name.partition(".")
    layers = len(model.get_submodule("layers"))  # type: ignore[arg-type]
    if part == "layers":
        return layers - int(rest.partition(".")[0])
    return layers + 1 if part == "embeddings" else 0


def make_optimizer(
    model: nn.Module, weight_decay: float, epsilon: float, layerwise_lr_decay: float = 1.0
) -> torch.optim.AdamW:
    """Make AdamW (Loshchilov and Hutter 2019); the loop sets the learning rate of each step."""
    device = next(model.parameters()).device
    groups = parameter_groups(model, weight_decay, layerwise_lr_decay)
    return torch.optim.AdamW(groups, lr=0.0, eps=epsilon, fused=device.type in ("cpu", "cuda"))


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the learning rate of each parameter group to ``rate`` times its ``lr_scale``."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["lr_scale"]
