"""The mean of several models' weights (Izmailov et al. 2018; Wortsman et al. 2022)."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from bertqa.answering.answerer import load_folder
from bertqa.data.tokenization import BertTokenizer
from bertqa.errors import UserError
from bertqa.files import DECODING_FILE, new_folder, read_json_object, write_json
from bertqa.model.bert import BertForQuestionAnswering
from bertqa.model.checkpoint import save_model

AVERAGE_FILE = "average.json"


def write_mean(folders: Sequence[Path], output_dir: Path) -> None:
    """Write the mean of the models, and what it is the mean of, into a new folder.

    Raises:
        UserError: as ``mean_of``, or the folder is there already.
    """
    if output_dir.exists():
        raise UserError(f"--output_dir {output_dir} is there already: name a new folder")
    model = mean_of(folders)
    with new_folder(output_dir) as folder:
        save_model(folder, model)
        BertTokenizer.load(folders[0]).save(folder)
        write_json(folder / AVERAGE_FILE, {"mean_of": [path.resolve().name for path in folders]})


def mean_of(folders: Sequence[Path]) -> BertForQuestionAnswering:
    """The model whose every weight is the mean of the models' own, in float32.

    Raises:
        UserError: there are fewer than two, one cannot be read, they differ in shape or in what
            their tokens are, two have one name, or one says "no answer" by a threshold of its own.
    """
    if len(folders) < 2:
        raise UserError(f"{folders[0]} alone has no mean: name two models or more")
    names = [folder.resolve().name for folder in folders]
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise UserError(f"two of the folders are called {twice[0]!r}: rename one, or name it once")
    for folder in folders:
        if (folder / DECODING_FILE).exists():
            raise UserError(
                f"{folder / DECODING_FILE} says when this model alone finds no answer, and has no "
                "mean: leave the model out, or name models without such a file"
            )
    mean, tokenizer, _ = load_folder(folders[0], allow_bin=False, require_head=True)
    with torch.no_grad():
        for number, folder in enumerate(folders[1:], start=2):
            model, other, _ = load_folder(folder, allow_bin=False, require_head=True)
            # What dropout zeroed in training is no part of what a model is.
            same = replace(
                model.config,
                hidden_dropout_prob=mean.config.hidden_dropout_prob,
                attention_probs_dropout_prob=mean.config.attention_probs_dropout_prob,
            )
            if same != mean.config or other.fingerprint() != tokenizer.fingerprint():
                raise UserError(
                    f"{folder} is not of the same shape and vocabulary as {folders[0]}: name "
                    "models of one encoder"
                )
            for running, weight in zip(mean.parameters(), model.parameters(), strict=True):
                running.add_((weight - running) / number)
    return mean


def read_average(folder: Path) -> list[str]:
    """The names of the folders that a mean was made of.

    Raises:
        UserError: average.json is not one that ``main`` writes.
    """
    names = read_json_object(folder / AVERAGE_FILE).get("mean_of")
    if not isinstance(names, list) or not names or not all(isinstance(n, str) for n in names):
        raise UserError(
            f"{folder / AVERAGE_FILE} names no models: write it again with bertqa average"
        )
    return names
