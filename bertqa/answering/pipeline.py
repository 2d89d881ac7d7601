"""``pipeline("question-answering")`` as in transformers until 5.3, for BERT checkpoints.

The arguments are parsed into ``CallSettings`` and examples; a ``QuestionAnswerer`` answers.
docs/migration.md lists the differences from transformers 4.57.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from inspect import signature
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from bertqa.answering.answerer import QUESTIONS_PER_BLOCK, QuestionAnswerer, check_window_fits
from bertqa.answering.answers import AnswerEntry, Prediction, answer_entries
from bertqa.answering.decoding import WindowScores
from bertqa.answering.decoding_file import stored_unanswerable_share, write_decoding_file
from bertqa.answering.evaluation import ExampleBlock, predictions_of, scored_blocks
from bertqa.answering.per_window import PerWindowSettings, per_window_answers
from bertqa.answering.pipeline_inputs import INPUTS, LazyExamples, read_inputs
from bertqa.answering.pipeline_loading import load_name, load_object
from bertqa.answering.pipeline_settings import (
    SCORES,
    TASK,
    CallSettings,
    call_names,
    check_names,
    check_unsupported_arguments,
    keyword_names,
    load_settings,
    only_given,
)
from bertqa.data.squad import Example
from bertqa.data.tokenization import BertTokenizer
from bertqa.data.windows import WindowSet, make_windows
from bertqa.data.words import as_words, word_bounds
from bertqa.errors import UserError, shown
from bertqa.model.bert import BertForQuestionAnswering
from bertqa.model.checkpoint import save_model
from bertqa.model.hub import SHIPPED_MODEL
from bertqa.runtime import adapt_to_fork
from bertqa.settings import DecodingSettings, WindowSettings


def pipeline(
    task: str | None = TASK,
    model: Any = None,
    config: Any = None,
    tokenizer: Any = None,
    feature_extractor: Any = None,
    image_processor: Any = None,
    processor: Any = None,
    framework: str | None = None,
    revision: str | None = None,
    use_fast: bool = True,
    token: str | bool | None = None,
    device: int | str | torch.device | None = None,
    device_map: Any = None,
    dtype: str | torch.dtype | None = None,
    trust_remote_code: bool | None = None,
    model_kwargs: dict[str, Any] | None = None,
    pipeline_class: Any = None,
    *,
    torch_dtype: str | torch.dtype | None = None,
    allow_bin: bool = False,
    scores: str = SCORES[0],
    **parameters: Any,
) -> "QuestionAnsweringPipeline":
    """Load a BERT for question answering, with the arguments of transformers 4.57.

    Args:
        task: "question-answering".
        model: a checkpoint folder, the name of a model, or a BertForQuestionAnswering of
            transformers (default: the model shipped with bertqa).
        tokenizer: a folder, a name, or a tokenizer of transformers; required with a model object.
        revision, token, allow_bin: see ``find_folder``.
        device, device_map: a number (-1 is the CPU), a name, or a ``torch.device`` (default: a GPU
            if there is one).
        dtype, torch_dtype: float32, bfloat16 or float16 (default: as in ``local_runtime``, or
            float32 with ``scores="transformers"``).
        trust_remote_code: has no effect: a model's code is never run.
        scores: "bertqa", the probability among all spans of the context with the model's
            temperature, or "transformers", the scores of 4.57, without a temperature.
        parameters: fields of ``CallSettings``: defaults of the calls.
        config, feature_extractor, image_processor, processor, framework, use_fast, pipeline_class:
            rejected unless they fit a BERT in PyTorch.

    Raises:
        UserError: an argument is unknown or unsupported, or the model cannot be loaded.
    """
    with keyword_names():
        check_names(parameters, call_names() | signature(pipeline).parameters.keys())
        others = {"config": config, "feature_extractor": feature_extractor}
        others |= {"image_processor": image_processor, "processor": processor}
        check_unsupported_arguments(
            task, framework, use_fast, others | {"pipeline_class": pipeline_class}
        )
        dtype = only_given("dtype", dtype, torch_dtype)
        loading = load_settings(scores, device, dtype, device_map, model_kwargs)
        settings = CallSettings().changed(parameters)
        if model is None and tokenizer is not None:
            raise UserError(f"tokenizer requires model, got tokenizer {shown(tokenizer)} only")
        if model is None or isinstance(model, str | Path):
            name = str(model or SHIPPED_MODEL)
            loaded = load_name(name, tokenizer, loading, revision, allow_bin, token)
        else:
            loaded = load_object(model, tokenizer, loading, revision, token)
        return QuestionAnsweringPipeline(*loaded, settings, scores)


class LazyAnswers:
    """Answers computed during iteration; the length is that of the dataset."""

    def __init__(
        self, answer: Callable[[Iterable[Example]], Iterator[Any]], examples: LazyExamples
    ) -> None:
        self._answer, self._examples = answer, examples

    def __iter__(self) -> Iterator[Any]:
        return self._answer(self._examples)

    def __len__(self) -> int:
        return len(self._examples)


class QuestionAnsweringPipeline:
    """Question-answering pipeline that ``pipeline`` returns; see there for its parameters.

    Attributes:
        answerer: the question answerer.
        settings: default parameters of the calls.
        scores: "bertqa" or "transformers".
        task: "question-answering".
    """

    task = TASK

    def __init__(
        self,
        answerer: QuestionAnswerer,
        reload: Callable[[], BertForQuestionAnswering],
        settings: CallSettings,
        scores: str,
    ) -> None:
        self.answerer, self.settings, self.scores = answerer, settings, scores
        self._reload = reload
        self._windows(settings)  # check them before the first question

    @property
    def model(self) -> BertForQuestionAnswering:
        """The model, converted and prepacked; see ``QuestionAnswerer``."""
        return self.answerer.model

    @property
    def tokenizer(self) -> BertTokenizer:
        """The tokenizer."""
        return self.answerer.tokenizer

    @property
    def device(self) -> torch.device:
        """The device of the model."""
        return self.answerer.runtime.device

    @property
    def dtype(self) -> torch.dtype:
        """The precision of the model."""
        return self.answerer.runtime.dtype

    def __call__(self, *args: Any, **given: Any) -> Any:
        """Answer one question or several.

        Args:
            args: the questions; see pipeline_inputs.py for the formats.
            given: ``question`` and ``context``, ``X`` or ``data``; the fields of ``CallSettings``.

        Returns:
            For one question an ``AnswerEntry``, or a list of them, best first, unless there is
            exactly one answer; for several questions a list of these. For a generator or a torch
            dataset a ``LazyAnswers``.

        Raises:
            KeyError: a row lacks question or context.
            UserError: an unknown parameter, a value out of range, a missing or empty text.
        """
        with keyword_names():
            named = {name: given.pop(name) for name in INPUTS if name in given}
            settings = self.settings.changed(given)
            windows = self._windows(settings)
            examples = read_inputs(args, named)
            if isinstance(examples, LazyExamples):
                size = max(settings.batch_size, examples.read_ahead)
                return LazyAnswers(
                    lambda rows: self._results(rows, settings, windows, size), examples
                )
            results = list(self._results(examples, settings, windows, QUESTIONS_PER_BLOCK))
            return results[0] if len(results) == 1 else results

    def predict(self, X: Any) -> Any:
        """Answer questions; for compatibility with scikit-learn."""
        return self(X)

    transform = predict

    def save_pretrained(self, save_directory: str | Path) -> None:
        """Write model and tokenizer as loaded, in float32 and transformers' format.

        Raises:
            UserError: the model was changed since loading, or the folder cannot be written.
        """
        folder, decoding = Path(save_directory), self.answerer.decoding
        save_model(folder, self._reload())
        self.tokenizer.save(folder)
        if decoding.version_2_with_negative or decoding.temperature != 1:
            share = stored_unanswerable_share(self.answerer.folder, decoding)
            write_decoding_file(folder, decoding, self.answerer.windows, share)

    def _windows(self, settings: CallSettings) -> WindowSettings:
        if self.scores == "transformers" and settings.score_threshold:
            raise UserError(
                f'score_threshold requires scores="bertqa", which are probabilities, got '
                f'{settings.score_threshold} with scores="transformers"'
            )
        config, answerer = self.model.config, self.answerer
        by_tokenizer = self.tokenizer.settings.get("model_max_length")
        longest = config.max_position_embeddings
        if isinstance(by_tokenizer, int | float) and by_tokenizer >= 1:
            longest = int(min(longest, by_tokenizer))
        as_transformers = self.scores == "transformers"
        is_tuned = answerer.decoding.version_2_with_negative and not as_transformers
        if is_tuned and settings.has_default_windows:
            return answerer.windows  # of decoding.json, whose threshold is valid for its windows
        windows = settings.windows(longest)
        check_window_fits(config, windows, "max_seq_len")
        if as_transformers and windows.max_query_length:  # it does not truncate questions
            windows = replace(windows, max_query_length=windows.max_seq_length)
        return windows

    def _results(
        self,
        examples: Iterable[Example],
        settings: CallSettings,
        windows: WindowSettings,
        size: int,
    ) -> Iterator[AnswerEntry | list[AnswerEntry]]:
        """Yield the result of each question, answering ``size`` questions at a time."""
        stream = iter(examples)
        while block := list(islice(stream, size)):
            with keyword_names():
                answers = list(self._answers(block, settings, windows))
            for entries in answers:
                yield entries[0] if len(entries) == 1 else entries

    def _answers(
        self, examples: list[Example], settings: CallSettings, sizes: WindowSettings
    ) -> Iterator[list[AnswerEntry]]:
        """Yield the best answers to each question, at most ``top_k``."""
        answerer, top_k, longest = self.answerer, settings.top_k, settings.max_answer_len
        with_null = settings.handle_impossible_answer
        adapt_to_fork(self.device)
        windows = make_windows(examples, self.tokenizer, sizes)
        if self.scores == "transformers":
            aligned = settings.align_to_words
            words = word_bounds(windows.contexts, self.tokenizer) if aligned else None
            per_window = PerWindowSettings(top_k, longest, with_null, words)
            yield from per_window_answers(
                self.model, examples, windows, per_window, answerer.runtime
            )
            return
        if settings.align_to_words:
            windows = replace(windows, contexts=as_words(windows.contexts, self.tokenizer))
        decoding = replace(
            answerer.decoding, max_answer_length=longest, version_2_with_negative=with_null,
            score_threshold=settings.score_threshold,
        )  # fmt: skip
        for block, scores in scored_blocks(self.model, windows, len(examples), answerer.runtime):
            for prediction in _decode(examples, windows, block, scores, decoding, top_k):
                yield answer_entries(prediction, top_k)


def _decode(
    examples: list[Example],
    windows: WindowSet,
    block: ExampleBlock,
    scores: WindowScores,
    settings: DecodingSettings,
    top_k: int,
) -> list[Prediction]:
    """Find ``top_k`` answers to each question, if it has as many: several spans may be one answer.

    So search more spans until there are enough answers.
    """
    lengths = windows.contexts.lengths[windows.context_of[list(block.examples)]]
    spans = (lengths * settings.max_answer_length).tolist()  # upper bound for each question
    may_be_null = settings.version_2_with_negative or settings.score_threshold > 0
    n_best, enough = max(20, 4 * top_k), top_k + may_be_null
    while True:
        settings = replace(settings, n_best_size=n_best)
        found = list(predictions_of(examples, windows, block, scores, settings))
        pairs = zip(found, spans, strict=True)
        if not any(len(each.answers) < enough and n_best < most for each, most in pairs):
            return found
        n_best *= 8
