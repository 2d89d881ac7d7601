"""Attribution of a span's score to tokens, heads and layers.

All functions take one window. The attributions need gradients, so the model must not be prepacked
(see cpu_inference.py): load it with ``bertqa.model.checkpoint.load_checkpoint(folder)[0]``.
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

_TOKENS_PER_BATCH = 1024  # of copies of the window

# Called with the number of forward passes just completed.
Progress = Callable[[int], object]


@dataclass(frozen=True)
class Attribution:
    """Contribution of each token of a window to a score, relative to a baseline.

    Attributes:
        tokens: ``(L,)``, on the CPU; their sum is ``score - baseline``, up to
            ``convergence_delta``.
        score, baseline: the score of the window and of the baseline.
    """

    tokens: Tensor
    score: float
    baseline: float

    @property
    def convergence_delta(self) -> float:
        """Sum of ``tokens`` minus ``score - baseline``: the error of the numerical integration."""
        return float(self.tokens.sum()) - (self.score - self.baseline)


def masked_baseline(batch: PackedBatch, replacement: int, kept: Iterable[int]) -> PackedBatch:
    """Return the window with every token replaced by one id, such as [MASK]'s.

    Args:
        kept: ids that are not replaced, such as those of [CLS] and [SEP].
    """
    stays = torch.isin(batch.input_ids, torch.tensor(list(kept)).to(batch.input_ids))
    return replace(batch, input_ids=batch.input_ids.where(stays, replacement))


def integrated_gradients(
    model: BertForQuestionAnswering,
    batch: PackedBatch,
    baseline: PackedBatch,
    position: int,
    *,
    of_end: bool = False,
    steps: int = 64,
    progress: Progress | None = None,
) -> Attribution:
    """Attribute the start logit of a token, S.T_position, to all tokens by integrated gradients.

    The gradient of the score is averaged over the straight line from the baseline's embeddings x0
    to the window's embeddings x (Sundararajan et al. 2017):

        token i:  sum over d of  (x - x0)[i, d]  *  integral from 0 to 1 of  d score / d x[i, d]
                  at x0 + a (x - x0)  over a

    The tokens' contributions sum to the difference of the two scores. The integral is computed by
    the midpoint rule.

    Args:
        batch: one window.
        baseline: a window of the same length.
        position: position of the token in the window.
        of_end: attribute the end logit, E.T_position, instead.
        steps: number of midpoints.
        progress: called after each batch of steps with their number.

    Raises:
        UserError: several windows, windows of different lengths, a position outside the window, or
            no steps.
    """
    _check(batch, position)
    if steps < 1:
        raise UserError(f"steps: must be at least 1, got {steps}")
    if baseline.lengths != batch.lengths:
        raise UserError(
            f"baseline: must have the same length as the window, {batch.lengths}, got "
            f"{baseline.lengths}"
        )
    model.eval()
    with torch.no_grad():
        x, x0 = model.embeddings(batch), model.embeddings(baseline)
        ends = [_score(model, batch, embedded, position, of_end).item() for embedded in (x, x0)]
    total = torch.zeros_like(x)
    midpoints = (torch.arange(steps).to(x) + 0.5) / steps
    for part in midpoints.split(max(1, _TOKENS_PER_BATCH // batch.lengths[0])):
        points = x0 + part[:, None, None] * (x - x0)  # (n, L, D)
        points.requires_grad_()
        scores = _score(model, batch, points.flatten(0, 1), position, of_end)
        (gradient,) = torch.autograd.grad(scores.sum(), points)
        total += gradient.sum(dim=0)
        if progress:
            progress(len(part))
    tokens = ((x - x0) * total / steps).sum(dim=-1)
    return Attribution(tokens.cpu(), score=ends[0], baseline=ends[1])


def _score(
    model: BertForQuestionAnswering, batch: PackedBatch, embedded: Tensor, position: int,
    of_end: bool,
) -> Tensor:  # fmt: skip
    """Return the logit of one token for each copy of the window in ``embedded``, ``(n,)``."""
    times = len(embedded) // batch.lengths[0]
    parts = (batch.input_ids, batch.token_type_ids, batch.position_ids)
    ids, types, positions = (part.repeat(times) for part in parts)
    copies = PackedBatch(ids, types, positions, batch.lengths * times)
    with intervene(model, embeddings=embedded):
        output = model(copies)
    scores = output.end_logits if of_end else output.start_logits
    return scores.view(len(copies.lengths), -1)[:, position]


def head_effects(
    model: BertForQuestionAnswering,
    batch: PackedBatch,
    start: int,
    end: int,
    progress: Progress | None = None,
) -> Tensor:
    """Return how much the log-likelihood of a span decreases when each head is masked.

    Args:
        batch: one window.
        start, end: positions of the span in the window.
        progress: called after each pass, one per head.

    Returns:
        ``(layers, H)``: positive if masking the head lowers the likelihood of the span.

    Raises:
        UserError: several windows, or a position outside the window.
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
    """Return how much the span's log-likelihood decreases without each layer, ``(layers,)``."""
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
    """Return the loss of the span under each intervention minus that of the unchanged model."""
    _check(batch, start, end)
    model.eval()
    labels = torch.tensor([[start], [end]], device=batch.input_ids.device)

    def loss() -> float:
        return float(window_losses(model(batch), batch.lengths, *labels))

    plain, effects = loss(), []
    for intervention in interventions:
        with intervention:
            effects.append(loss() - plain)
        if progress:
            progress(1)
    return torch.tensor(effects)


def _check(batch: PackedBatch, *positions: int) -> None:
    if len(batch.lengths) != 1:
        raise UserError(f"batch: must hold one window, got {len(batch.lengths)} windows")
    for position in positions:
        if not 0 <= position < batch.lengths[0]:
            raise UserError(f"position: must be in 0 to {batch.lengths[0] - 1}, got {position}")
