"""Training and validation data: reading, checking, windowing and labelling."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bertqa.data.labels import LabelledWindows, LabelReport, label_report, make_labelled_windows
from bertqa.data.readers import load_hub_dataset, read_examples
from bertqa.data.squad import (
    Example,
    check_answers,
    check_examples,
    check_version,
    split_by_article,
)
from bertqa.data.tokenization import BertTokenizer
from bertqa.errors import Say, UserError, counted, ignore
from bertqa.runtime import Runtime
from bertqa.settings import DataSettings, WindowSettings


@dataclass(frozen=True)
class Part:
    """Examples, their windows, and a report of their labels."""

    examples: Sequence[Example]
    windows: LabelledWindows
    labels: LabelReport

    def __str__(self) -> str:
        return f"{counted(len(self.windows), 'window')} of {self.labels}"


def label_part(
    examples: list[Example], tokenizer: BertTokenizer, settings: WindowSettings, runtime: Runtime
) -> Part:
    """Cut examples into labelled windows, in every process; takes seconds."""
    windows = runtime.main_first(lambda: make_labelled_windows(examples, tokenizer, settings))
    return Part(examples, windows, label_report(examples, windows))


def load_data(
    data: DataSettings, *, version_2_with_negative: bool, say: Say = ignore
) -> tuple[list[Example], list[Example]]:
    """Load and check training and validation examples; the second list may be empty.

    Args:
        say: called with each remark on the data.

    Raises:
        UserError: the data cannot be read or cannot be used for training.
    """
    parts = read_data(data, say=say)
    for source, examples in parts:
        try:
            check_examples(examples, source)
            check_answers(examples, source)
        except UserError as error:
            hint = " (bertqa check lists all errors)" if examples else ""
            raise UserError(f"{error}{hint}") from error
        check_version(examples, source, version_2_with_negative)
    train = parts[0][1]
    validation = parts[1][1] if len(parts) > 1 else []
    if data.validation_split_percentage:
        train, validation = split_by_article(train, data.validation_split_percentage)
    return train[: data.max_train_samples], validation[: data.max_eval_samples]


def read_data(
    data: DataSettings, *, say: Say, keep_faulty: bool = False
) -> list[tuple[str, list[Example]]]:
    """Read the training data and the validation data, if any; return each with its name, unchecked.

    ``say`` and ``keep_faulty`` are as in ``read_examples``.
    """
    if data.train_file:
        paths = [Path(path) for path in (data.train_file, data.validation_file) if path]
        return [(str(p), read_examples(p, say=say, keep_faulty=keep_faulty)) for p in paths]
    name = data.dataset or "squad"
    splits = ("train",) if data.validation_split_percentage else ("train", "validation")
    return [
        (f"{name}, {split}", load_hub_dataset(name, split, say=say, keep_faulty=keep_faulty))
        for split in splits
    ]
