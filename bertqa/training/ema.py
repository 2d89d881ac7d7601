"""Exponential moving average (EMA) of the weights.

After each optimizer step, counted from 0:

    d = min(decay, (1 + step) / (10 + step))
    average = d * average + (1 - d) * weight

Averaged iterates generalize better than the last one (Polyak and Juditsky 1992). The fraction is
the warmup of TensorFlow's tf.train.ExponentialMovingAverage: without it the initial weights would
dominate the average for about 1 / (1 - decay) steps.
"""

from collections.abc import Mapping
from copy import deepcopy

import torch
from torch import Tensor

from bertqa.model.bert import BertForQuestionAnswering


def decay_at(step: int, decay: float) -> float:
    """Return the decay of the average at optimizer step ``step``, counted from 0."""
    return min(decay, (1 + step) / (10 + step))


class ExponentialMovingAverage:
    """Moving average of a model's trained weights.

    Args:
        model: the model in training, on its device, in float32.
        decay: in (0, 1).

    Attributes:
        model: the model with averaged weights; it shares frozen parameters with the trained one.
    """

    def __init__(self, model: BertForQuestionAnswering, decay: float) -> None:
        self.decay = decay
        self._weights = {name: p for name, p in model.named_parameters() if p.requires_grad}
        frozen = {id(p): p for p in model.parameters() if not p.requires_grad}
        self.model = deepcopy(model, frozen).requires_grad_(False)

    @property
    def averages(self) -> dict[str, Tensor]:
        """The average of each trained parameter, by name."""
        return {name: p for name, p in self.model.named_parameters() if name in self._weights}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Update the average after optimizer step ``step``, counted from 0."""
        decay = decay_at(step, self.decay)
        for name, average in self.averages.items():
            average.lerp_(self._weights[name], 1 - decay)

    def load(self, averages: Mapping[str, Tensor]) -> None:
        """Load saved averages.

        Raises:
            RuntimeError: a name or shape does not match the model.
        """
        shared = {n: p for n, p in self.model.named_parameters() if n not in self._weights}
        self.model.load_state_dict(shared | dict(averages))
