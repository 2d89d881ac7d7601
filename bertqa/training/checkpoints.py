"""Training checkpoints, and the initial model of a run.

    checkpoints/step-00000500/
        config.json, model.safetensors, tokenizer ...   an ordinary model folder
        optimizer.safetensors                           AdamW's moments, PARAMETER.exp_avg ...
        ema.safetensors                                 with --ema_decay: the averaged weights
        progress.json                                   Progress

A checkpoint is written atomically, and nothing in it is pickled. No state of a random number
generator is saved, since each step seeds its own, see loop.py.
"""

import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from bertqa.answering.answerer import load_folder
from bertqa.data.tokenization import BertTokenizer
from bertqa.errors import UserError
from bertqa.files import new_folder, os_errors_as_user_errors, read_json_object, write_json
from bertqa.model.bert import BertForQuestionAnswering
from bertqa.model.checkpoint import (
    LoadReport,
    load_checkpoint,
    read_tensors,
    save_model,
    write_tensors,
)
from bertqa.model.hub import find_folder
from bertqa.training.ema import ExponentialMovingAverage

_MOMENTS = ("step", "exp_avg", "exp_avg_sq")  # AdamW's state of each parameter


def load_for_training(
    name: str, *, seed: int = 42, revision: str | None = None, allow_bin: bool = False
) -> tuple[BertForQuestionAnswering, BertTokenizer, LoadReport]:
    """Load a model and its tokenizer; missing S and E are initialized from ``seed``.

    Raises:
        UserError: the model is not available, corrupt, or not a BERT.
    """
    torch.manual_seed(seed)
    folder = find_folder(name, revision=revision, allow_bin=allow_bin)
    return load_folder(folder, allow_bin, require_head=False)


@dataclass
class Progress:
    """State of a run besides weights and optimizer; saved in each checkpoint.

    Attributes:
        step: completed optimizer steps.
        losses_since_log, losses_since_evaluation: loss of each step since then.
        tokens_since_log, seconds_since_log: of this process, without evaluations.
        grad_norm: gradient norm of the last step.
        evaluations: a row for each evaluation, see ``evaluation_lines``.
        best_f1: F1 of the best model; None before the first evaluation.
        scaler: state of the fp16 loss scaler; empty for other precisions.
    """

    step: int = 0
    losses_since_log: list[float] = field(default_factory=list)
    losses_since_evaluation: list[float] = field(default_factory=list)
    tokens_since_log: int = 0
    seconds_since_log: float = field(default=0.0, compare=False)
    grad_norm: float = 0.0
    evaluations: list[dict[str, float]] = field(default_factory=list)
    best_f1: float | None = None
    scaler: dict[str, Any] = field(default_factory=dict)

    @property
    def evaluations_since_best(self) -> int:
        """Evaluations since that of the best model."""
        if self.best_f1 is None:
            return 0
        scores = [row["f1"] for row in self.evaluations]
        return len(scores) - 1 - scores.index(self.best_f1)


class Checkpoints:
    """The checkpoints of a run.

    Args:
        path: their folder; ``open`` creates it.
        keep: number of checkpoints to keep.
    """

    def __init__(self, path: Path, keep: int = 1) -> None:
        self.path, self.keep = path, keep

    def open(self) -> None:
        """Create the folder, and remove partial checkpoints of a killed run."""
        with os_errors_as_user_errors(self.path, "created"):
            self.path.mkdir(parents=True, exist_ok=True)
            for partial in self.path.glob(".*.partial"):
                shutil.rmtree(partial)

    def last(self) -> Path | None:
        """Return the newest checkpoint; None if there is none."""
        return max(self.path.glob("step-*"), default=None)

    def save(
        self,
        model: BertForQuestionAnswering,
        tokenizer: BertTokenizer,
        optimizer: torch.optim.Optimizer,
        progress: Progress,
        ema: ExponentialMovingAverage | None = None,
    ) -> None:
        """Write a checkpoint, and remove all but the newest ``keep``.

        Raises:
            UserError: it cannot be written, or the weights are invalid.
        """
        path = self.path / f"step-{progress.step:08d}"
        if path.exists():
            return
        moments = {
            f"{name}.{key}": optimizer.state[parameter][key].cpu()
            for name, parameter in model.named_parameters()
            if parameter.requires_grad
            for key in _MOMENTS
        }
        with new_folder(path) as folder:
            save_model(folder, model)
            tokenizer.save(folder)
            write_tensors(folder / "optimizer.safetensors", moments)
            if ema:
                averages = {name: average.cpu() for name, average in ema.averages.items()}
                write_tensors(folder / "ema.safetensors", averages)
            write_json(folder / "progress.json", asdict(progress))
        for old in sorted(self.path.glob("step-*"))[: -self.keep]:
            # Rename it first, so that a killed run leaves no partial checkpoint under this name.
            dropped = old.with_name(f".{old.name}.partial")
            with os_errors_as_user_errors(old, "removed"):
                old.rename(dropped)
                shutil.rmtree(dropped)

    def load_last(
        self,
        model: BertForQuestionAnswering,
        optimizer: torch.optim.Optimizer,
        ema: ExponentialMovingAverage | None = None,
    ) -> Progress:
        """Load the newest checkpoint into the arguments; do nothing if there is none.

        Raises:
            UserError: the checkpoint cannot be read, is corrupt or of another model.
        """
        newest = self.last()
        if newest is None:
            return Progress()
        names = {id(parameter): name for name, parameter in model.named_parameters()}
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        state = optimizer.state_dict()
        try:
            saved, _ = load_checkpoint(newest)
            moments = read_tensors(newest / "optimizer.safetensors")
            progress = Progress(**read_json_object(newest / "progress.json"))
            state["state"] = {
                i: {key: moments[f"{names[id(parameter)]}.{key}"] for key in _MOMENTS}
                for i, parameter in enumerate(parameters)
            }
            model.load_state_dict(saved.state_dict())
            optimizer.load_state_dict(state)
            if ema:
                ema.load(read_tensors(newest / "ema.safetensors"))
        except (UserError, KeyError, RuntimeError, TypeError) as error:
            cause = error.__cause__
            if isinstance(cause, OSError) and not isinstance(cause, FileNotFoundError):
                raise  # no permission, for example: the checkpoint may be intact
            # Drop the advice of a UserError, to copy the file again. The other errors are about
            # names, shapes or keys.
            fault = str(error).rpartition(": ")[0]
            because = fault if isinstance(error, UserError) else "incomplete, or of another model"
            raise UserError(
                f"--resume: the checkpoint {newest} is damaged ({because}): remove it to continue "
                "from the previous checkpoint, if --save_total_limit kept one, or from the start"
            ) from error
        return progress
