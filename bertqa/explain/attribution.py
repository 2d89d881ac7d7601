"""Why the model scores a span as it does: which tokens, heads and layers its score depends on.

All functions take one window. The model must not be prepacked (see cpu_inference.py), since
gradients are needed: ``bertqa.model.checkpoint.load_checkpoint(folder)[0]`` is one.
"""

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from bertqa.errors import UserError
from bertqa.explain.hooks import intervene
from bertqa.model.bert import BertForQuestionAnswering, window_losses
from bertqa.model.packing import PackedBatch

_TOKENS_AT_ONCE = 1024  # copies of the window go through the model together, up to so many tokens

# Called with the number of passes through the model that were just done.
Progress = Callable[[int], object]


@dataclass(frozen=True)
class Attribution:
    """How much each token of a window adds to a score, against a baseline without these words.

    Attributes:
        tokens: ``(L,)``, on the CPU; their sum is ``score - baseline``, up to ``gap``.
        score, baseline: the score of the window and of the baseline.
    """

    tokens: Tensor
    score: float
    baseline: float

    @property
    def gap(self) -> float:
        """What the sum of ``tokens`` lacks of ``score - baseline``: the error of the integral."""
        return self.score - self.baseline - float(self.tokens.sum())


def without_words(batch: PackedBatch, replacement: int, kept: Iterable[int]) -> PackedBatch:
    """The window with every word replaced by one id, such as [MASK]'s.

    Args:
        kept: ids that stay, such as those of [CLS] and [SEP].
    """
    stays = torch.isin(batch.input_ids, torch.tensor(list(kept)).to(batch.input_ids))
    return replace(batch, input_ids=batch.input_ids.where(stays, replacement))


def integrated_gradients(
    model: BertForQuestionAnswering,
    batch: PackedBatch,
    baseline: PackedBatch,
    place: int,
    *,
    of_end: bool = False,
    steps: int = 64,
    progress: Progress | None = None,
) -> Attribution:
    """Attribute the start score of a token, S.T_place, to all tokens (Sundararajan et al. 2017).

    The embedded window x goes in a straight line from the embedded baseline x0 to x, and the
    gradient of the score is averaged over the way:

        token i:  sum over d of  (x - x0)[i, d]  *  integral from 0 to 1 of  d score / d x[i, d]
                  at x0 + a (x - x0)  over a

    By the fundamental theorem the tokens add up to the difference of the two scores. The integral
    is a sum over the middles of ``steps`` equal parts.

    Args:
        batch: one window, and ``baseline`` another of the same length.
        place: position of the token in the window.
        of_end: attribute the end score, E.T_place, instead.
        progress: called after each chunk of steps with their number.

    Raises:
        UserError: not one window, windows of two lengths, or a position outside the window.
    """
    _check(batch, place)
    if baseline.lengths != batch.lengths:
        raise UserError(
            f"integrated_gradients: the baseline has {baseline.lengths} tokens and the window "
            f"{batch.lengths}: give one of the same length"
        )
    model.eval()
    with torch.no_grad():
        x, x0 = model.embeddings(batch), model.embeddings(baseline)
        ends = [_score(model, batch, embedded, place, of_end).item() for embedded in (x, x0)]
    total = torch.zeros_like(x)
    middles = (torch.arange(steps).to(x) + 0.5) / steps
    for part in middles.split(max(1, _TOKENS_AT_ONCE // batch.lengths[0])):
        points = x0 + part[:, None, None] * (x - x0)  # (n, L, D)
        points.requires_grad_()
        scores = _score(model, batch, points.flatten(0, 1), place, of_end)
        (gradient,) = torch.autograd.grad(scores.sum(), points)
        total += gradient.sum(dim=0)
        if progress:
            progress(len(part))
    tokens = ((x - x0) * total / steps).sum(dim=-1)
    return Attribution(tokens.cpu(), score=ends[0], baseline=ends[1])


def _score(
    model: BertForQuestionAnswering, batch: PackedBatch, embedded: Tensor, place: int, of_end: bool
) -> Tensor:
    """The score of one token in each copy of a window that ``embedded`` holds, ``(n,)``."""
    times = len(embedded) // batch.lengths[0]
    parts = (batch.input_ids, batch.token_type_ids, batch.position_ids)
    ids, types, positions = (part.repeat(times) for part in parts)
    copies = PackedBatch(ids, types, positions, batch.lengths * times)
    with intervene(model, embeddings=embedded):
        output = model(copies)
    scores = output.end_logits if of_end else output.start_logits
    return scores.view(len(copies.lengths), -1)[:, place]


def head_effects(
    model: BertForQuestionAnswering,
    batch: PackedBatch,
    start: int,
    end: int,
    progress: Progress | None = None,
) -> Tensor:
    """Log-likelihood that the span ``start`` to ``end`` loses when each head is masked.

    Args:
        batch: one window.
        progress: called after each pass, one for each head.

    Returns:
        ``(layers, H)``: positive where the span needs the head.

    Raises:
        UserError: not one window, or a position outside the window.
    """
    layers, heads = model.config.num_hidden_layers, model.config.num_attention_heads
    parts = [intervene(model, mask_heads=[(i, j)]) for i in range(layers) for j in range(heads)]
    return intervention_effects(model, batch, start, end, parts, progress).view(layers, heads)


def layer_effects(
    model: BertForQuestionAnswering,
    batch: PackedBatch,
    start: int,
    end: int,
    progress: Progress | None = None,
) -> Tensor:
    """Log-likelihood that the span loses when each layer is skipped, ``(layers,)``."""
    parts = [intervene(model, skip_layers=[i]) for i in range(model.config.num_hidden_layers)]
    return intervention_effects(model, batch, start, end, parts, progress)


@torch.no_grad()
def intervention_effects(
    model: BertForQuestionAnswering,
    batch: PackedBatch,
    start: int,
    end: int,
    interventions: Iterable[AbstractContextManager[None]],
    progress: Progress | None = None,
) -> Tensor:
    """Loss of the span in each intervention, minus that of the unchanged model."""
    _check(batch, start, end)
    model.eval()
    places = torch.tensor([[start], [end]], device=batch.input_ids.device)

    def loss() -> float:
        return float(window_losses(model(batch), batch.lengths, *places))

    plain, effects = loss(), []
    for intervention in interventions:
        with intervention:
            effects.append(loss() - plain)
        if progress:
            progress(1)
    return torch.tensor(effects)


def _check(batch: PackedBatch, *places: int) -> None:
    if len(batch.lengths) != 1:
        raise UserError(f"input_ids hold {len(batch.lengths)} windows: give one")
    for place in places:
        if not 0 <= place < batch.lengths[0]:
            raise UserError(
                f"place {place} is not in the window of input_ids: give 0 to {batch.lengths[0] - 1}"
            )
