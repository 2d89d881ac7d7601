"""Changes to a forward pass: what a head, a layer or a state does shows when it is taken away.

Masking heads follows Michel et al., "Are Sixteen Heads Really Better than One?", 2019; replacing
states by those of another run is what Vig et al., "Investigating Gender Bias in Language Models
Using Causal Mediation Analysis", 2020, and later work call activation patching.
"""

from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, field

import torch
from torch import Tensor

from bertqa.errors import UserError
from bertqa.model.config import BertConfig

Head = tuple[int, int]  # layer and head, both from 0

# What the heads of a layer gathered, ``(T, H, K)``, and the windows' lengths -> the same, changed.
HeadChange = Callable[[Tensor, Sequence[int]], Tensor]


@dataclass(frozen=True)
class Interventions:
    """What to change in a forward pass; by default nothing.

    Attributes:
        mask_heads: heads that give zeros in place of what they gathered.
        mean_heads: heads that give every token the mean of what the tokens of its window gathered,
            so that they still say what is in the window but no longer where.
        skip_layers: layers, from 0, that give back what they were given.
        states: place in ``BertOutput.hidden_states`` (0 after the embeddings, n + 1 after
            layer n) -> the tokens of the stream, ``(k,)`` int64, and the states ``(k, D)`` that
            they have from there on.
    """

    mask_heads: Set[Head] = frozenset()
    mean_heads: Set[Head] = frozenset()
    skip_layers: Set[int] = frozenset()
    states: Mapping[int, tuple[Tensor, Tensor]] = field(default_factory=dict)

    @classmethod
    def without_head(cls, layer: int, head: int, *, mean: bool = False) -> "Interventions":
        """One head masked, or averaged."""
        chosen = frozenset({(layer, head)})
        return cls(mean_heads=chosen) if mean else cls(mask_heads=chosen)

    def check(self, config: BertConfig) -> None:
        """Refuse what the model has no place for.

        Raises:
            UserError: a layer, head or place that is not there, or a head that is to be masked and
                averaged.
        """
        layers, heads = config.num_hidden_layers, config.num_attention_heads
        for layer, head in [*self.mask_heads, *self.mean_heads]:
            if not (0 <= layer < layers and 0 <= head < heads):
                raise UserError(
                    f"head {head} of layer {layer} is not there: the model has layers 0 to "
                    f"{layers - 1} with heads 0 to {heads - 1}, name one of these"
                )
        for layer, head in self.mask_heads & self.mean_heads:
            raise UserError(
                f"head {head} of layer {layer} is both in mask_heads and in mean_heads: drop one"
            )
        for layer in self.skip_layers:
            if not 0 <= layer < layers:
                raise UserError(
                    f"layer {layer} is not there: the model has 0 to {layers - 1}, name one"
                )
        for place in self.states:
            if not 0 <= place <= layers:
                raise UserError(
                    f"hidden_states have no place {place}: name 0, after the embeddings, to "
                    f"{layers}, after the last layer"
                )

    def of_layer(self, layer: int) -> HeadChange | None:
        """What to do with the heads of one layer; None for nothing."""
        masked = [head for at, head in self.mask_heads if at == layer]
        averaged = [head for at, head in self.mean_heads if at == layer]
        if not masked and not averaged:
            return None

        def change(gathered: Tensor, lengths: Sequence[int]) -> Tensor:
            if averaged:
                windows = gathered.split(list(lengths))
                means = torch.cat([w.mean(dim=0, keepdim=True).expand_as(w) for w in windows])
                gathered = gathered.index_copy(1, *_columns(means, averaged))
            if masked:
                gathered = gathered.index_copy(1, *_columns(torch.zeros_like(gathered), masked))
            return gathered

        return change

    def patched(self, place: int, hidden: Tensor) -> Tensor:
        """The states at a place, ``(T, D)``, with those that were given from outside.

        Raises:
            UserError: one is for a token that is not there.
        """
        if place not in self.states:
            return hidden
        tokens, states = self.states[place]
        if len(tokens) and not 0 <= int(tokens.min()) <= int(tokens.max()) < len(hidden):
            raise UserError(
                f"states of hidden_states[{place}] are for tokens {int(tokens.min())} to "
                f"{int(tokens.max())}: name tokens from 0 to {len(hidden) - 1}"
            )
        return hidden.index_copy(0, tokens.to(hidden.device), states.to(hidden))


def _columns(values: Tensor, heads: Sequence[int]) -> tuple[Tensor, Tensor]:
    """The heads as indices, and their part of ``(T, H, K)``."""
    chosen = torch.tensor(heads, device=values.device)
    return chosen, values[:, chosen]


NOTHING = Interventions()


def patch_from(hidden_states: Sequence[Tensor], place: int, tokens: Sequence[int]) -> Interventions:
    """The intervention that gives some tokens the states that they had in another run.

    Args:
        hidden_states: of the other run, ``BertOutput.hidden_states``.
        place: which of them.
        tokens: places in the stream, the same in both runs.
    """
    chosen = torch.tensor(list(tokens), dtype=torch.int64)
    return Interventions(states={place: (chosen, hidden_states[place][chosen])})
