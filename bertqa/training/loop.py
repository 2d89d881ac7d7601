"""The training loop: a generator of optimizer steps.

B  windows of a step, of all processes
N  windows of a batch, or of a core's share of it
T  tokens of the N windows

    choose      seed, step       -> (B,) windows                      data/batching.py
    batches     (B,) windows     -> (N,) windows, of this process     see _batches
    split       (N,) windows     -> a share for each CPU core         shares.py
    collate     (N,) windows     -> (T,) tokens, (N,) labels          data/batching.py
    forward     (T,) tokens      -> (T,) start and end logits         model/bert.py
    loss        logits, labels   -> (N,) losses; their mean over B    model/bert.py
    distil      logits, teachers -> (N,) losses, with --teacher       distillation.py
    backward    mean loss        -> gradients, summed over batches and processes
    clip        gradients        -> gradient clipping to norm max_grad_norm (Pascanu et al. 2013)
    update      gradients, rate  -> parameters, by AdamW              optim.py
    average     parameters       -> moving average, if --ema_decay    ema.py

The recipe is BERT's (Devlin et al. 2019, section 4.2 and appendix A.3), in the form of
transformers' run_qa: AdamW with bias correction and linear decay of the learning rate.

The windows of step k depend only on the seed, k and B. Its dropout masks also depend on the rank of
the process, its batches and its number of threads. A run resumed with the same ones is therefore
identical, bit for bit, and no state of a random number generator is saved.

Logging, evaluation and saving happen between the steps, in run.py.
"""

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from bertqa.data.batching import mix_seed, training_batch
from bertqa.data.labels import LabelledWindows
from bertqa.model.bert import BertForQuestionAnswering, window_losses
from bertqa.runtime import Runtime
from bertqa.settings import TrainingSettings
from bertqa.training import shares
from bertqa.training.distillation import Distillation, Teacher
from bertqa.training.ema import ExponentialMovingAverage
from bertqa.training.optim import make_optimizer, set_learning_rate
from bertqa.training.plan import Plan


class Step(NamedTuple):
    """A completed optimizer step.

    Attributes:
        number: number of the step, from 1.
        loss: ``()``, mean over the B windows. Loss and norm stay on the device: reading them at
            every step would synchronize a GPU.
        grad_norm: ``()``, norm of all gradients, before gradient clipping.
        tokens: tokens processed by this process.
    """

    number: int
    loss: Tensor
    grad_norm: Tensor
    tokens: int


class TrainingLoop:
    """A model in training.

    Args:
        model: in float32; it is moved to the runtime's device and trained in place.
        windows: the training set.
        settings: training settings.
        runtime: device, precision and processes.
        teachers: models for distillation, see distillation.py.

    Attributes:
        plan: number of steps and learning rates.
        optimizer: AdamW.
        scaler: loss scaler for fp16, against gradient underflow; disabled in other precisions.
        ema: the moving average of the weights; None without ``ema_decay``.
        distillation: the loss with teachers; None without teachers.
    """

    def __init__(
        self,
        model: BertForQuestionAnswering,
        windows: LabelledWindows,
        settings: TrainingSettings,
        runtime: Runtime,
        teachers: Sequence[Teacher] = (),
    ) -> None:
        if settings.dropout is not None:
            model.set_dropout(settings.dropout)
        if settings.freeze_word_embeddings:
            model.embeddings.word.requires_grad_(False)
        self.model, self.windows = model.to(runtime.device), windows
        self.settings, self.runtime = settings, runtime
        self.plan = Plan(settings, len(windows), runtime.world_size)
        self.optimizer = make_optimizer(
            model, settings.weight_decay, settings.adam_epsilon, settings.layerwise_lr_decay
        )
        self.scaler = torch.amp.GradScaler(
            runtime.device.type, enabled=runtime.dtype is torch.float16
        )
        self.distillation = Distillation(teachers, settings, runtime) if teachers else None
        decay = settings.ema_decay
        self.ema = ExponentialMovingAverage(self.model, decay) if decay else None

    @property
    def result(self) -> BertForQuestionAnswering:
        """The model to evaluate and keep: with averaged weights if ``ema_decay`` is set."""
        return self.ema.model if self.ema else self.model

    def steps(self, first: int = 0) -> Iterator[Step]:
        """Run the steps from ``first``, counted from 0, to the last; yield after each."""
        self.model.train()
        for step in range(first, self.plan.total_steps):
            torch.manual_seed(mix_seed(self.settings.seed, step, self.runtime.rank))
            set_learning_rate(self.optimizer, self.plan.learning_rate(step))

            chosen = self.plan.windows_of(step)  # (B,)
            loss, tokens = torch.zeros((), device=self.runtime.device), 0
            for batch in self._batches(chosen):  # (N,)
                for share_loss, share_tokens in self._backward(batch, 1 / len(chosen)):
                    loss += share_loss
                    tokens += share_tokens

            self.runtime.sum_over_ranks([loss, *self._gradients()])
            self.scaler.unscale_(self.optimizer)
            limit = self.settings.max_grad_norm or math.inf
            grad_norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), limit, foreach=True)
            self.scaler.step(self.optimizer)
            self.scaler.update()
            self.optimizer.zero_grad()
            if self.ema:
                self.ema.update(step)
            yield Step(step + 1, loss, grad_norm, tokens)

    def _batches(self, chosen: Tensor) -> Iterator[Tensor]:
        """Yield this process's windows of a step ``(B,)``, in batches ``(N,)``."""
        local = chosen[self.runtime.rank :: self.runtime.world_size]
        for batch in local.split(self.settings.per_device_train_batch_size):
            if len(batch):  # the last step of an epoch may have no window for this process
                yield batch

    def _backward(self, batch: Tensor, weight: float) -> list[tuple[Tensor, int]]:
        """Run forward and backward passes of a batch ``(N,)``, a share on each core.

        Args:
            batch: indices of the windows.
            weight: factor of a window's loss.

        Returns:
            The weighted loss ``()`` and the number of tokens of each share.
        """

        def loss_of(share: Tensor) -> tuple[Tensor, tuple[Tensor, int]]:
            inputs = training_batch(self.windows, batch[share]).to(self.runtime.device)
            with self.runtime.autocast():
                output = self.model(inputs.tokens)  # (T,) start and end logits
            losses = window_losses(
                output, inputs.tokens.lengths, inputs.start_positions, inputs.end_positions
            )  # (N,)
            if self.distillation:
                losses = self.distillation(inputs, output, losses)  # (N,)
            loss = losses.sum() * weight
            return self.scaler.scale(loss), (loss.detach(), len(inputs.tokens.input_ids))

        positions = shares.split(self.model, self.windows.lengths[batch], self.runtime)
        return shares.backward(self.model, loss_of, positions, self.runtime)

    def _gradients(self) -> list[Tensor]:
        """Return the gradients of all trained parameters; zeros if this process had no window."""
        for parameter in self.model.parameters():
            if parameter.requires_grad and parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        return [p.grad for p in self.model.parameters() if p.grad is not None]
