"""AdamW as BERT is fine-tuned with it: what decays, and how fast it learns at each step."""

import torch
from torch import nn

SCHEDULES = ("linear", "constant_with_warmup")


def learning_rate(
    step: int, peak: float, total_steps: int, warmup_steps: int, schedule: str = "linear"
) -> float:
    """The rate of optimiser step ``step``, from 0: a line up to ``peak``, a line down to 0.

    Warm-up starts at 0; without it the first step has the peak. The step after the last would
    have 0. This is the schedule of run_qa and of Google's run_squad. "constant_with_warmup", which
    run_qa has as well, stays at the peak.
    """
    if step < warmup_steps:
        return peak * step / warmup_steps
    if schedule == "constant_with_warmup":
        return peak
    return peak * max(0, total_steps - step) / max(1, total_steps - warmup_steps)


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, object]]:
    """Weights decay; biases and LayerNorm do not (Devlin et al. 2019, appendix A.2)."""
    decaying: list[nn.Parameter] = []
    spared: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        is_spared = name.endswith("bias") or "norm." in name
        (spared if is_spared else decaying).append(parameter)
    return [
        {"params": decaying, "weight_decay": weight_decay},
        {"params": spared, "weight_decay": 0.0},
    ]


def make_optimizer(model: nn.Module, weight_decay: float, epsilon: float) -> torch.optim.AdamW:
    """AdamW (Loshchilov and Hutter 2019); the loop sets the learning rate before each step."""
    device = next(model.parameters()).device
    groups = parameter_groups(model, weight_decay)
    return torch.optim.AdamW(groups, lr=0.0, eps=epsilon, fused=device.type in ("cpu", "cuda"))


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Give all parameter groups the same rate."""
    for group in optimizer.param_groups:
        group["lr"] = rate
