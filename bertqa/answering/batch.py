"""Batches of questions in columns, for data engines with many processes and machines.

An ``AnswerBatch`` maps a dictionary of columns to a dictionary of columns. It is pickled as a few
hundred bytes, and each worker process loads the model once, with its first batch. docs/scale.md has
a recipe for each engine.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from bertqa.answering.answerer import (
    NO_OVERRIDES,
    QuestionAnswerer,
    make_examples,
    resolve_settings,
)
from bertqa.answering.answers import Prediction, answer_entries
from bertqa.answering.pickling import CheckpointFiles, Recipe, absolute_name, load_once
from bertqa.errors import UserError, shown
from bertqa.fields import check_kind, whole_number
from bertqa.model.config import load_config
from bertqa.model.hub import SHIPPED_MODEL, find_folder
from bertqa.settings import Overrides, check_precision


class AnswerBatch:
    """Callable that answers a batch of questions in columns.

    Args:
        model, device, precision, revision, allow_bin: see ``QuestionAnswerer.from_pretrained``. The
            model must also exist in this process, so that workers with another model are detected.
        question, context: names of the columns.
        top_k: answers for each question; above 1, each column has a list per question, best first.
        threads: CPU threads of torch while a batch is answered; None keeps the current number. A
            forked process always has one.
        overrides: settings that replace the model's.

    Raises:
        UserError: the model does not exist, or a setting is out of range.
    """

    def __init__(
        self,
        model: str | Path = SHIPPED_MODEL,
        question: str = "question",
        context: str = "context",
        *,
        top_k: int = 1,
        threads: int | None = None,
        overrides: Overrides = NO_OVERRIDES,
        device: str = "auto",
        precision: str = "auto",
        revision: str | None = None,
        allow_bin: bool = False,
    ) -> None:
        top_k = whole_number("top_k", top_k)
        threads = threads if threads is None else whole_number("threads", threads)
        check_kind("overrides", overrides, Overrides)
        check_precision(precision)
        overrides.check()
        folder = find_folder(str(model), revision=revision, allow_bin=allow_bin)
        windows, decoding = resolve_settings(folder, load_config(folder)[0], overrides)
        decoding = replace(decoding, n_best_size=max(decoding.n_best_size, top_k))
        digest = CheckpointFiles(folder).digest()
        name = absolute_name(model, folder)
        recipe = Recipe(name, revision, allow_bin, device, precision, windows, decoding, digest)
        self.question, self.context, self.top_k, self.threads = question, context, top_k, threads
        self._recipe = recipe.to_json()
        self._answerer: QuestionAnswerer | None = None

    def __call__(self, columns: Mapping[str, Sequence[str]]) -> dict[str, list[Any]]:
        """Answer the questions of a batch.

        Args:
            columns: lists or arrays of equal length; other columns are ignored.

        Returns:
            Columns of that length: "answer", "score", "start", "end" as in ``AnswerEntry``, and
            "null_score", the probability of "no answer", for a model trained with it.

        Raises:
            UserError: a column is missing, a question or context is empty, or this worker's model
                differs from the model of the constructor.
        """
        missing = [name for name in (self.question, self.context) if name not in columns]
        if missing:
            raise UserError(
                f"the batch must have the column {missing[0]!r}, got {sorted(columns)}: pass the "
                "names of its columns as question= and context="
            )
        questions, contexts = (columns[name] for name in (self.question, self.context))
        for name, column in ((self.question, questions), (self.context, contexts)):
            if isinstance(column, str) or not isinstance(column, Iterable):
                raise UserError(f"the column {name!r} must be a list of texts, got {shown(column)}")
        examples = make_examples(list(questions), list(contexts))
        with self._with_threads():
            predictions = list(self._loaded().answer(examples))
        return self._columns(predictions)

    def _columns(self, predictions: Sequence[Prediction]) -> dict[str, list[Any]]:
        found = [answer_entries(prediction, self.top_k) for prediction in predictions]
        answers: dict[str, list[Any]] = {}
        for key in ("answer", "score", "start", "end"):
            values = [[entry[key] for entry in entries] for entries in found]
            answers[key] = values if self.top_k > 1 else [value[0] for value in values]
        if self._loaded().decoding.version_2_with_negative:
            answers["null_score"] = [
                next(answer.probability for answer in prediction.answers if not answer.text)
                for prediction in predictions
            ]
        return answers

    def _loaded(self) -> QuestionAnswerer:
        if self._answerer is None:
            self._answerer = load_once(QuestionAnswerer, self._recipe)
        return self._answerer

    @contextmanager
    def _with_threads(self) -> Iterator[None]:
        before = torch.get_num_threads()
        if self.threads:
            torch.set_num_threads(self.threads)
        try:
            yield
        finally:
            if self.threads:
                torch.set_num_threads(before)

    def __reduce__(self) -> tuple[Any, ...]:
        # One string, so that equal objects have equal fingerprints.
        kept = {name: value for name, value in vars(self).items() if name != "_answerer"}
        return _batch_of, (type(self), json.dumps(kept, separators=(",", ":")))


def _batch_of(kind: type[AnswerBatch], text: str) -> AnswerBatch:
    batch = kind.__new__(kind)
    vars(batch).update(json.loads(text), _answerer=None)
    return batch
