"""A training run: the steps of loop.py, with logging, evaluation and checkpoints between them."""

import signal
from collections.abc import Sequence
from typing import Any

from tqdm import tqdm

from bertqa.answering.evaluation import Evaluator
from bertqa.data.labels import LabelledWindows
from bertqa.data.tokenization import BertTokenizer
from bertqa.errors import UserError
from bertqa.interrupts import Interrupts, Stopped
from bertqa.model.bert import BertForQuestionAnswering
from bertqa.model.checkpoint import check_saveable
from bertqa.runtime import Runtime
from bertqa.settings import TrainingSettings
from bertqa.training.checkpoints import Checkpoints, Progress
from bertqa.training.distillation import Teacher
from bertqa.training.evaluations import Observer, evaluation_lines, measure
from bertqa.training.log import Failures, TrainingLog, bar_text
from bertqa.training.loop import TrainingLoop
from bertqa.training.run_folder import RunFolder, check_free


class Run:
    """One training run.

    Args:
        model: in float32; it is moved to the runtime's device and trained in place.
        tokenizer: saved with the model.
        windows: the training set.
        evaluator: evaluates the model on the validation set; None for no evaluation.
        settings: training settings.
        runtime: device, precision and processes.
        folder: the run's folder.
        example_ids: ids of the examples, for messages; if empty, their indices are used.
        observer: callbacks for log lines, evaluations and the end.
        teachers: models for distillation.

    Attributes:
        loop: model, optimizer and plan.
        progress: state of the run.
    """

    def __init__(
        self,
        *,
        model: BertForQuestionAnswering,
        tokenizer: BertTokenizer,
        windows: LabelledWindows,
        evaluator: Evaluator | None,
        settings: TrainingSettings,
        runtime: Runtime,
        folder: RunFolder,
        example_ids: Sequence[str] = (),
        observer: Observer | None = None,
        teachers: Sequence[Teacher] = (),
    ) -> None:
        self.loop = TrainingLoop(model, windows, settings, runtime, teachers)
        self.tokenizer, self.evaluator, self.runtime = tokenizer, evaluator, runtime
        self.folder, self.observer = folder, Observer() if observer is None else observer
        self.checkpoints = Checkpoints(folder.path / "checkpoints", settings.save_total_limit)
        self.progress = Progress()
        plan = self.loop.plan
        self._failures = Failures(
            folder, self.checkpoints, plan, windows, example_ids, runtime.is_main
        )
        self._log = TrainingLog(plan, self._failures, self.loop.scaler.is_enabled())

    def start(self, resume: bool) -> None:
        """Open the folder; with ``resume`` load its last checkpoint, if any.

        Raises:
            UserError: the model cannot be saved; the folder is not empty and ``resume`` is False,
                contains another run, or is not the same for all processes.
        """
        check_saveable(self.loop.model)
        check_free(self.folder.path, resume)
        if resume:
            self.folder.check_same_run()
            loop = self.loop
            self.progress = self.checkpoints.load_last(loop.model, loop.optimizer, loop.ema)
            if self.progress.scaler:
                self.loop.scaler.load_state_dict(self.progress.scaler)
        if len(set(self.runtime.gather(self.progress.step))) > 1:
            raise UserError(
                "--output_dir: must have the same checkpoints for all processes, got different "
                f"ones in {self.folder.path}: pass a folder that all machines of the run share"
            )
        self.runtime.wait_for_all()  # all processes read before one writes
        if self.runtime.is_main:
            self.folder.open(self.progress.step)
            self.checkpoints.open()

    def train(self) -> Progress:
        """Train to the last step or early stopping; log, evaluate and save.

        Raises:
            UserError: the loss is not finite, or a file cannot be written.
            Stopped: SIGINT or SIGTERM was received; the step was finished and a checkpoint saved.
        """
        plan, progress = self.loop.plan, self.progress
        bar = tqdm(
            total=plan.total_steps, initial=progress.step, unit="step",
            disable=not self.runtime.is_main, dynamic_ncols=True,
        )  # fmt: skip
        with Interrupts() as interrupts, bar:  # errors are printed on a new line after the bar
            if self.runtime.is_main and progress.evaluations:  # of a resumed run
                bar.write("\n".join(evaluation_lines(progress.evaluations)))
            self._log.start_clock()
            for step in () if self._stops_early() else self.loop.steps(first=progress.step):
                progress.step = step.number
                bar.update()
                self._log.add(step, progress)
                if plan.logs_after(progress.step):
                    self._write_log(bar)
                self._log.stop_clock(progress)  # do not count evaluation and saving
                if plan.evaluates_after(progress.step):
                    self._evaluate(bar)
                if plan.saves_after(progress.step):
                    self._save()
                self._log.start_clock()
                if self._stops_early():  # the same in all processes
                    break
                # Processes may receive a signal at different steps, but must stop at the same one.
                if number := self.runtime.max_over_ranks(interrupts.number):
                    self._stop(number)
        if self.runtime.is_main:
            self.observer.at_end(progress)
        return progress

    def _stops_early(self) -> bool:
        """Return whether early stopping ends the run now."""
        patience = self.loop.settings.early_stopping_patience
        return patience is not None and self.progress.evaluations_since_best >= patience

    def _write_log(self, bar: Any) -> None:
        """Write a line to log.jsonl and the progress bar."""
        line = self._log.line(self.progress)
        bar.set_postfix_str(bar_text(line))
        if self.runtime.is_main:
            self.folder.append_log(line)
            self.observer.after_log(line)

    def _evaluate(self, bar: Any) -> None:
        """Evaluate the model; save it if it is the best so far."""
        self._log.settle(self.progress)
        measured = measure(self.loop.result, self.evaluator, self.loop.plan, self.progress)
        if not self.runtime.is_main:
            return
        if measured.is_best:
            with self._failures.while_saving(self.progress.step):
                self.folder.keep_best(self.loop.result, self.tokenizer)
            if measured.evaluation:
                self.folder.keep_predictions(measured.evaluation, measured.settings)
        self.folder.append_log(measured.row)
        if measured.evaluation:
            self.folder.keep_answers(self.progress.step, measured.evaluation.predictions)
        self.observer.after_evaluation(measured)
        lines = evaluation_lines(self.progress.evaluations)
        bar.write("\n".join(lines if len(lines) == 2 else lines[-1:]))  # the header only once

    def _save(self) -> None:
        """Write a checkpoint."""
        self._log.settle(self.progress)
        self.progress.scaler = self.loop.scaler.state_dict()
        loop, progress = self.loop, self.progress
        if self.runtime.is_main:
            with self._failures.while_saving(progress.step):
                self.checkpoints.save(
                    loop.model, self.tokenizer, loop.optimizer, progress, loop.ema
                )

    def _stop(self, number: int) -> None:
        """Save a checkpoint and stop the run; do nothing after the last step.

        Raises:
            Stopped: before the last step.
        """
        step, total = self.progress.step, self.loop.plan.total_steps
        if step == total:
            return
        self._save()
        raise Stopped(
            f"stopped by {signal.Signals(number).name} after step {step} of {total}, saved: to "
            "continue, run the same command with --resume",
            number,
        )
