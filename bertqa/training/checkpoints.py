"""What a run begins with, and all that it needs to go on from a step.

    checkpoints/step-00000500/
        config.json, model.safetensors, tokenizer ...   a model's folder like any other
        optimizer.safetensors                           AdamW's moments, PARAMETER.exp_avg ...
        ema.safetensors                                 with --ema_decay: the averaged weights
        progress.json                                   Progress

A checkpoint is written whole or not at all, and nothing in it is pickled. No state of a random
number generator is kept: what is random in a step is a function of the seed and the step.
"""

import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from bertqa.answering.answerer import load_folder
from bertqa.data.tokenization import BertTokenizer
from bertqa.errors import UserError
from bertqa.files import new_folder, read_json_object, said_plainly, write_json
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

_MOMENTS = ("step", "exp_avg", "exp_avg_sq")  # what AdamW keeps of each parameter


def load_for_training(
    name: str, *, seed: int = 42, revision: str | None = None, allow_bin: bool = False
) -> tuple[BertForQuestionAnswering, BertTokenizer, LoadReport]:
    """Load the model and tokenizer of a name; S and E are drawn by ``seed`` if it has none.

    Raises:
        UserError: it is not available, corrupt, or no BERT.
    """
    torch.manual_seed(seed)
    folder = find_folder(name, revision=revision, allow_bin=allow_bin)
    return load_folder(folder, allow_bin, require_head=False)


@dataclass
class Progress:
    """What a run knows of itself besides weights and optimiser; kept in each checkpoint.

    Attributes:
        step: optimiser steps done.
        losses_since_log, losses_since_evaluation: of each step since then.
        tokens_since_log, seconds_since_log: of this process, evaluations apart.
        grad_norm: of the last step.
        evaluations: a row for each evaluation, see ``evaluation_table``.
        best_f1: of the model kept at the folder's top; None before the first evaluation.
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
        """Evaluations since the one of the model kept at the folder's top."""
        if self.best_f1 is None:
            return 0
        scores = [row["f1"] for row in self.evaluations]
        return len(scores) - 1 - scores.index(self.best_f1)


class Checkpoints:
    """The checkpoints of a run.

    Args:
        path: their folder; it is made by ``open``.
        keep: only so many of the newest stay.
    """

    def __init__(self, path: Path, keep: int = 1) -> None:
        self.path, self.keep = path, keep

    def open(self) -> None:
        """Make the folder, and sweep away what a run that was killed left half written."""
        with said_plainly(self.path, "made"):
            self.path.mkdir(parents=True, exist_ok=True)
            for partial in self.path.glob(".*.partial"):
                shutil.rmtree(partial)

    def last(self) -> Path | None:
        """The newest checkpoint to go on from; None before there is one."""
        return max(self.path.glob("step-*"), default=None)

    def save(
        self,
        model: BertForQuestionAnswering,
        tokenizer: BertTokenizer,
        optimizer: torch.optim.Optimizer,
        progress: Progress,
        ema: ExponentialMovingAverage | None = None,
    ) -> None:
        """Write a checkpoint, which is a model's folder too, and drop all but the newest ``keep``.

        Raises:
            UserError: the disk refuses it, or the weights are no longer those of any BERT.
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
            # Renamed first: killed in the middle of this, a run leaves no half checkpoint.
            dropped = old.with_name(f".{old.name}.partial")
            with said_plainly(old, "removed"):
                old.rename(dropped)
                shutil.rmtree(dropped)

    def load_last(
        self,
        model: BertForQuestionAnswering,
        optimizer: torch.optim.Optimizer,
        ema: ExponentialMovingAverage | None = None,
    ) -> Progress:
        """Put the newest checkpoint into them; where there is none, change nothing.

        Raises:
            UserError: the checkpoint is corrupt or of another model.
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
        # The advice of a UserError is for a file that can be had again; the others tell of a name,
        # a shape or a key.
        except (UserError, KeyError, RuntimeError, TypeError) as error:
            own = str(error).rpartition(": ")[0]
            because = own if isinstance(error, UserError) else "not whole, or of another model"
            raise UserError(
                f"--resume: the checkpoint {newest} is damaged ({because}): remove it to go on "
                "from the checkpoint before it, if --save_total_limit kept one, or from the start"
            ) from error
        return progress
