"""An exponential moving average of the weights in training.

After each optimiser step, from 0, every weight of the average moves towards the trained one:

    d = min(decay, (1 + step) / (10 + step))
    average = d * average + (1 - d) * weight

Averages of the iterates generalise better than the last of them (Polyak and Juditsky 1992). The
fraction is the warm-up of TensorFlow's tf.train.ExponentialMovingAverage: without it the average
would hold on to the weights before training for some 1 / (1 - decay) steps.
"""

from collections.abc import Mapping
from copy import deepcopy

import torch
from torch import Tensor

from bertqa.model.bert import BertForQuestionAnswering


def decay_at(step: int, decay: float) -> float:
    """Return the share of the average that stays at optimiser step ``step``, from 0."""
    return min(decay, (1 + step) / (10 + step))


class ExponentialMovingAverage:
    """The average of a model's trained weights.

    Args:
        model: the model in training, on its device, in float32.
        decay: in (0, 1).

    Attributes:
        model: has the averaged weights, and shares with the other one those that are not trained.
    """

    def __init__(self, model: BertForQuestionAnswering, decay: float) -> None:
        self.decay = decay
        self._weights = {name: p for name, p in model.named_parameters() if p.requires_grad}
        frozen = {id(p): p for p in model.parameters() if not p.requires_grad}
        self.model = deepcopy(model, frozen).requires_grad_(False)

    @property
    def averages(self) -> dict[str, Tensor]:
        """The average of each trained parameter, by its name in the model."""
        return {name: p for name, p in self.model.named_parameters() if name in self._weights}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after optimiser step ``step``, from 0."""
        decay = decay_at(step, self.decay)
        for name, average in self.averages.items():
            average.lerp_(self._weights[name], 1 - decay)

    def load(self, averages: Mapping[str, Tensor]) -> None:
        """Go on from the averages of an earlier run.

        Raises:
            RuntimeError: a name or shape is not this model's.
        """
        shared = {n: p for n, p in self.model.named_parameters() if n not in self._weights}
        self.model.load_state_dict(shared | dict(averages))
