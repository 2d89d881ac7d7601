"""The training loop.

Everything random in step k is a function of the seed and k: the windows of its batch, what dropout
zeroes. So a run that is resumed is the same run, bit for bit, and no state of a random number
generator need be kept.
"""

import math
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from bertqa.answering.evaluation import Evaluation, Evaluator
from bertqa.data.batching import (
    TrainingBatch,
    mix_seed,
    step_windows,
    steps_per_epoch,
    training_batch,
)
from bertqa.data.tokenization import BertTokenizer
from bertqa.data.windows import WindowSet
from bertqa.errors import UserError
from bertqa.interrupts import Interrupts, Stopped
from bertqa.model.bert import BertForQuestionAnswering, window_losses
from bertqa.model.checkpoint import BadWeights
from bertqa.runtime import Runtime
from bertqa.settings import TrainingSettings
from bertqa.training.checkpoints import Checkpoints, Progress
from bertqa.training.observer import Measured, Nobody, Observer
from bertqa.training.optim import learning_rate, make_optimizer, set_learning_rate
from bertqa.training.run_folder import RunFolder, check_free, evaluation_table


def total_steps(settings: TrainingSettings, num_windows: int, world_size: int) -> int:
    """Optimiser steps of the whole run."""
    if settings.max_steps is not None:
        return settings.max_steps
    epoch = steps_per_epoch(num_windows, settings.windows_per_step(world_size))
    return math.ceil(settings.num_train_epochs * epoch)


class Run:
    """One training run.

    Args:
        model: in float32; it is moved to the runtime's device and trained in place.
        tokenizer: saved beside the model.
        windows: the training set.
        evaluator: measures the model on the validation set; None trains without.
        settings, runtime: how and where.
        folder: where the run leaves what it makes.
        example_ids: of the examples that the windows are of, for messages; their numbers if none.
        observer: is told of log lines, evaluations and the end.
    """

    def __init__(
        self,
        model: BertForQuestionAnswering,
        tokenizer: BertTokenizer,
        windows: WindowSet,
        evaluator: Evaluator | None,
        settings: TrainingSettings,
        runtime: Runtime,
        folder: RunFolder,
        example_ids: Sequence[str] = (),
        observer: Observer | None = None,
    ) -> None:
        if settings.dropout is not None:
            model.set_dropout(settings.dropout)
        if settings.freeze_word_embeddings:
            model.embeddings.word.requires_grad_(False)
        self.model = model.to(runtime.device)
        self.tokenizer, self.windows, self.evaluator = tokenizer, windows, evaluator
        self.settings, self.runtime, self.folder = settings, runtime, folder
        self.checkpoints = Checkpoints(folder.path / "checkpoints", settings.save_total_limit)
        self.example_ids, self.observer = example_ids, observer or Nobody()
        self.optimizer = make_optimizer(
            model, settings.weight_decay, settings.adam_epsilon, settings.layerwise_lr_decay
        )
        self.scaler = torch.amp.GradScaler(
            runtime.device.type, enabled=runtime.dtype is torch.float16
        )
        self.windows_per_step = settings.windows_per_step(runtime.world_size)
        self.steps_per_epoch = steps_per_epoch(len(windows), self.windows_per_step)
        self.total_steps = total_steps(settings, len(windows), runtime.world_size)
        self.progress = Progress()
        # Loss and gradient norm of the last steps. They stay on the device until they are needed:
        # asking a GPU for a number at every step would make it wait.
        self._pending: list[tuple[Tensor, Tensor]] = []
        self._started = time.perf_counter()  # what comes after it is still to be counted

    def start(self, resume: bool) -> None:
        """Open the folder; with ``resume`` go on from the last checkpoint in it, if there is one.

        Raises:
            UserError: the folder holds something and ``resume`` is not asked for, or another run,
                or is not the same for all processes.
        """
        check_free(self.folder.path, resume)
        if resume:
            self.folder.check_same_run()
            self.progress = self.checkpoints.load_last(self.model, self.optimizer)
            if self.progress.scaler:
                self.scaler.load_state_dict(self.progress.scaler)
        if len(set(self.runtime.gather(self.progress.step))) > 1:
            raise UserError(
                f"--output_dir {self.folder.path} holds other checkpoints for one process than for "
                "another: give one folder that all machines of the run share"
            )
        self.runtime.wait_for_all()  # all have looked before one writes
        if self.runtime.is_main:
            self.folder.open(self.progress.step)
            self.checkpoints.open()

    # --- the loop ---

    def train(self) -> Progress:
        """Train to the last step; log, evaluate and save on the way.

        Raises:
            UserError: the loss is no longer a finite number, or the disk refuses a file.
            Stopped: SIGINT or SIGTERM came; the step was finished and everything is saved.
        """
        self.model.train()
        bar = tqdm(
            total=self.total_steps, initial=self.progress.step, unit="step",
            disable=not self.runtime.is_main, dynamic_ncols=True,
        )  # fmt: skip
        with Interrupts() as interrupts, bar:  # an error comes after the bar, on a line of its own
            self._steps(bar, interrupts)
        if self.runtime.is_main:
            self.observer.at_end(self.progress)
        return self.progress

    def _steps(self, bar: Any, interrupts: Interrupts) -> None:
        """The steps that are still to be done."""
        self._started = time.perf_counter()
        for step in range(self.progress.step, self.total_steps):
            torch.manual_seed(mix_seed(self.settings.seed, step, self.runtime.rank))
            set_learning_rate(self.optimizer, self._learning_rate(step))

            loss = torch.zeros((), device=self.runtime.device)
            for batch, share in self._micro_batches(step):
                with self.runtime.autocast():
                    output = self.model(batch.tokens)
                losses = window_losses(
                    output, batch.tokens.lengths, batch.start_positions, batch.end_positions
                )
                part = losses.sum() * share  # shares of all batches of the step: their mean
                self.scaler.scale(part).backward()
                loss += part.detach()
                self.progress.tokens_since_log += len(batch.tokens.input_ids)

            self.runtime.sum_over_ranks([loss, *self._gradients()])
            self.scaler.unscale_(self.optimizer)
            grad_norm = self._clip()
            self.scaler.step(self.optimizer)
            self.scaler.update()
            self.optimizer.zero_grad()

            self.progress.step = step + 1
            self._pending.append((loss, grad_norm))
            bar.update()
            if self._due(self.settings.logging_steps):
                self._log(bar)
            self._count_seconds()
            if self._evaluation_due():
                self._evaluate(bar)
            if self._due(self.settings.save_steps) or self._evaluation_due():
                self._save()
            self._started = time.perf_counter()  # the log's time is that of the training alone
            # Processes get a signal at different steps, and must end after the same one.
            if number := self.runtime.max_over_ranks(interrupts.number):
                self._stop(number)

    def _stop(self, number: int) -> None:
        """Save, and end the run.

        Raises:
            Stopped: always, but after the last step, where there is nothing left to stop.
        """
        if self.progress.step == self.total_steps:
            return
        self._save()
        raise Stopped(
            f"stopped by {signal.Signals(number).name} after step {self.progress.step} of "
            f"{self.total_steps}, which is saved: the same command with --resume goes on",
            number,
        )

    def _learning_rate(self, step: int) -> float:
        warmup_steps = math.ceil(self.total_steps * self.settings.warmup_ratio)
        peak, schedule = self.settings.learning_rate, self.settings.lr_scheduler_type
        return learning_rate(step, peak, self.total_steps, warmup_steps, schedule)

    def _micro_batches(self, step: int) -> Iterator[tuple[TrainingBatch, float]]:
        """This process's part of a step, as batches on the device, and one window's share."""
        chosen = step_windows(len(self.windows), self.windows_per_step, self.settings.seed, step)
        mine = chosen[self.runtime.rank :: self.runtime.world_size]
        for part in mine.split(self.settings.per_device_train_batch_size):
            if len(part):  # the last step of an epoch may have no window for this process
                batch = training_batch(self.windows, part).to(self.runtime.device)
                yield batch, 1 / len(chosen)

    def _gradients(self) -> list[Tensor]:
        """The gradient of every trained parameter; zero where this process had no window."""
        for parameter in self.model.parameters():
            if parameter.requires_grad and parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        return [p.grad for p in self.model.parameters() if p.grad is not None]

    def _clip(self) -> Tensor:
        """Scale the gradients down to ``max_grad_norm``; their norm before that."""
        limit = self.settings.max_grad_norm or math.inf
        return torch.nn.utils.clip_grad_norm_(self.model.parameters(), limit, foreach=True)

    def _due(self, every: int) -> bool:
        return self.progress.step % every == 0 or self.progress.step == self.total_steps

    def _evaluation_due(self) -> bool:
        return self._due(self.settings.eval_steps or self.steps_per_epoch)

    # --- logging, evaluation ---

    def _settle(self) -> None:
        """Turn the pending losses into numbers.

        Raises:
            UserError: a loss or a gradient is not finite; nothing that came of it has been saved.
        """
        progress, first = self.progress, self.progress.step - len(self._pending) + 1
        for step, (loss, grad_norm) in enumerate(self._pending, start=first):
            progress.grad_norm = float(grad_norm)
            # With fp16 an infinite gradient is expected now and then: the scaler skips the step.
            finite = self.scaler.is_enabled() or math.isfinite(progress.grad_norm)
            if not (finite and math.isfinite(loss)):
                numbers = {"loss": str(float(loss)), "gradient_norm": str(progress.grad_norm)}
                message = "step {} has loss {} and gradient norm {}".format(step, *numbers.values())
                raise self._failure(message, step, numbers)
            progress.losses_since_log.append(float(loss))
            progress.losses_since_evaluation.append(float(loss))
        self._pending = []

    def _failure(self, message: str, step: int, failure: dict[str, Any]) -> UserError:
        """The error for what came of a step; its questions go into a file."""
        chosen = step_windows(
            len(self.windows), self.windows_per_step, self.settings.seed, step - 1
        )
        examples = sorted({int(self.windows.example[window]) for window in chosen.tolist()})
        ids = [self.example_ids[i] if self.example_ids else str(i) for i in examples]
        last = self.checkpoints.last()
        if self.runtime.is_main:
            failure = {"step": step, **failure, "example_ids": ids}
            failure["last_checkpoint"] = str(last) if last else None
            message += f" (its {len(ids)} questions are in {self.folder.keep_failure(failure)})"
        advice = (
            f"or begin a new run with --model {last}, the checkpoint from before, another "
            "--output_dir and a lower --learning_rate"
            if last
            else "or begin anew with a lower --learning_rate; there is no checkpoint yet"
        )
        return UserError(f"{message}: look at the questions, {advice}")

    def _log(self, bar: Any) -> None:
        """One line in log.jsonl and beside the progress bar, for the steps since the last one."""
        self._settle()
        loss = _mean(self.progress.losses_since_log)
        self.progress.losses_since_log = []
        rate = self._learning_rate(self.progress.step - 1)
        self._count_seconds()
        seconds = self.progress.seconds_since_log
        tokens_per_second = self.progress.tokens_since_log * self.runtime.world_size / seconds
        self.progress.seconds_since_log, self.progress.tokens_since_log = 0.0, 0
        bar.set_postfix_str(f"loss {loss:.3f}, lr {rate:.1e}, {tokens_per_second:,.0f} tokens/s")
        norm = self.progress.grad_norm
        line = {
            "step": self.progress.step,
            "epoch": round(self.progress.step / self.steps_per_epoch, 4),
            "loss": loss,
            "learning_rate": rate,
            "grad_norm": norm if math.isfinite(norm) else None,
            "tokens_per_second": round(tokens_per_second),
            "seconds": round(seconds, 4),  # evaluations apart
        }
        if self.runtime.is_main:
            self.folder.append_log(line)
            self.observer.after_log(line)

    def _count_seconds(self) -> None:
        """Put the time since it was last counted down to the training."""
        now = time.perf_counter()
        self.progress.seconds_since_log += now - self._started
        self._started = now

    def _evaluate(self, bar: Any) -> None:
        """Measure the model; keep it at the folder's top if it is the best so far."""
        self._settle()
        row: dict[str, float] = {
            "epoch": round(self.progress.step / self.steps_per_epoch, 2),
            "step": self.progress.step,
            "training_loss": _mean(self.progress.losses_since_evaluation),
        }
        self.progress.losses_since_evaluation = []
        evaluation = self.evaluator(self.model) if self.evaluator else None
        if evaluation:
            row |= {
                "validation_loss": evaluation.loss,
                "exact_match": evaluation.exact_match,
                "f1": evaluation.f1,
            }
        self.progress.evaluations.append(row)
        is_best = self._keep_if_best(evaluation)
        if self.runtime.is_main:
            self.folder.append_log(row)
            if evaluation and self.evaluator:
                self.folder.keep_answers(self.progress.step, evaluation.predictions)
                examples, decoding = self.evaluator.examples, self.evaluator.settings
                measured = Measured(row, is_best, evaluation, examples, decoding)
            else:
                measured = Measured(row, is_best)
            self.observer.after_evaluation(measured)
            bar.write(evaluation_table(self.progress.evaluations))

    def _keep_if_best(self, evaluation: Evaluation | None) -> bool:
        """Keep the model with the best F1 so far; without a validation set, the last one."""
        best = self.progress.best_f1
        if evaluation:
            if best is not None and evaluation.f1 <= best:
                return False
            self.progress.best_f1 = evaluation.f1
        if not self.runtime.is_main:
            return True
        with self._going_on():
            self.folder.keep_best(self.model, self.tokenizer)
        if evaluation and self.evaluator:
            self.folder.keep_predictions(evaluation, self.evaluator.settings)
        return True

    def _save(self) -> None:
        self._settle()
        self.progress.scaler = self.scaler.state_dict()
        if self.runtime.is_main:
            with self._going_on():
                self.checkpoints.save(self.model, self.tokenizer, self.optimizer, self.progress)

    @contextmanager
    def _going_on(self) -> Iterator[None]:
        """Say of a model that is not written how the run can go on.

        Raises:
            UserError: the weights are no numbers that can be loaded, or the disk refuses them.
        """
        try:
            yield
        except BadWeights as error:
            step = self.progress.step
            message = f"at step {step}, or at one since the last checkpoint, {error.fault}"
            raise self._failure(message, step, {"weights": error.fault}) from error
        except UserError as error:
            last = self.checkpoints.last()
            if last is None:
                raise
            raise UserError(
                f"{error}; {last} is whole, and the same command with --resume goes on from there"
            ) from error


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)
