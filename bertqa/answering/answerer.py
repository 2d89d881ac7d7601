"""The question answerer: a loaded model that answers questions about texts."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any, Literal, overload

from bertqa.answering.answers import AnswerEntry, Prediction, answer_entries
from bertqa.answering.decoding_file import read_decoding_file
from bertqa.answering.documents import ReadEntry, ReadSettings, read_documents
from bertqa.answering.evaluation import predict
from bertqa.answering.pickling import (
    CheckpointFiles,
    Origin,
    PickledAsRecipe,
    Recipe,
    absolute_name,
)
from bertqa.data.squad import Example
from bertqa.data.text import is_blank
from bertqa.data.tokenization import BertTokenizer
from bertqa.data.windows import make_windows
from bertqa.errors import UserError, counted, flag, shown
from bertqa.fields import check_kind, probability, true_or_false, whole_number
from bertqa.files import DECODING_FILE
from bertqa.model.bert import BertForQuestionAnswering
from bertqa.model.checkpoint import LoadReport, load_checkpoint
from bertqa.model.config import BertConfig
from bertqa.model.cpu_inference import check_int8, prepare_for_inference
from bertqa.model.hub import find_folder
from bertqa.runtime import Runtime, adapt_to_fork, limit_onednn_cache, local_runtime
from bertqa.settings import DecodingSettings, Overrides, WindowSettings

_SPARE_ROWS = 1024  # unused embeddings that a model may have, such as to round up their number
NO_OVERRIDES = Overrides()
QUESTIONS_PER_BLOCK = 1024  # questions cut into windows together


def load_folder(
    folder: Path, allow_bin: bool, require_head: bool
) -> tuple[BertForQuestionAnswering, BertTokenizer, LoadReport]:
    """Load the model and tokenizer of a checkpoint folder; see ``load_checkpoint``.

    Raises:
        UserError: the model or tokenizer is corrupt, or they do not match.
    """
    model, report = load_checkpoint(folder, allow_bin=allow_bin, require_head=require_head)
    tokenizer = BertTokenizer.load(folder)
    check_vocabulary(tokenizer, model.config, f"the model in {folder}")
    return model, tokenizer, report


def check_vocabulary(tokenizer: BertTokenizer, config: BertConfig, model: str) -> None:
    """Check that a tokenizer matches a model.

    Args:
        model: name of the model in messages.

    Raises:
        UserError: the tokenizer has more tokens than the model has embeddings, or far fewer.
    """
    rows = config.vocab_size
    if not rows - _SPARE_ROWS <= tokenizer.vocab_size <= rows:
        raise UserError(
            f"{tokenizer.source}: must have as many tokens as {model} has embeddings ({rows}), got "
            f"{tokenizer.vocab_size}: use the tokenizer of the model"
        )


def check_window_fits(
    config: BertConfig,
    settings: WindowSettings,
    name: str = "",
    model: str = "this model",
) -> None:
    """Check that windows are not longer than the model's position embeddings.

    Args:
        name: name of the setting in messages, by its origin; "" for the flag.
        model: name of the model in messages.

    Raises:
        UserError: they are longer.
    """
    limit = config.max_position_embeddings
    if settings.max_seq_length > limit:
        raise UserError(
            f"{name or flag('max_seq_length')} must be at most the {limit} positions of {model}, "
            f"got {settings.max_seq_length}"
        )


def default_window_settings(config: BertConfig) -> WindowSettings:
    """Return windows of 384 tokens with an overlap of 128, or of all positions if these are fewer.

    Then the overlap is at most a third of a window.
    """
    longest = min(384, config.max_position_embeddings)
    return WindowSettings(longest, doc_stride=min(128, longest // 3))


def resolve_settings(
    folder: Path,
    config: BertConfig,
    overrides: Overrides,
    windows: WindowSettings | None = None,
    decoding: DecodingSettings | None = None,
) -> tuple[WindowSettings, DecodingSettings]:
    """Return the given settings, or those of the model's decoding.json, or the defaults.

    Args:
        overrides: single settings that replace these.

    Raises:
        UserError: decoding.json is corrupt, or a setting is out of range or does not fit the model.
    """
    check_kind("overrides", overrides, Overrides)
    if windows is not None:
        check_kind("windows", windows, WindowSettings)
    if decoding is not None:
        check_kind("decoding", decoding, DecodingSettings)
    own_windows, own_decoding = read_decoding_file(folder)
    windows = overrides.windows(windows or own_windows or default_window_settings(config))
    if windows == own_windows:
        check_window_fits(config, windows, f"{folder / DECODING_FILE}: max_seq_length")
    else:
        check_window_fits(config, windows)
    return windows, overrides.decoding(decoding or own_decoding)


class QuestionAnswerer(PickledAsRecipe):
    """A model that answers questions about texts.

    ``qa = QuestionAnswerer.from_pretrained(folder_or_name)`` loads a model, and
    ``qa(question=..., context=...)`` returns what transformers' question-answering pipeline
    returned until it was removed. A loaded answerer can be pickled and copied, see pickling.py, and
    used in forked processes.

    Args:
        model: converted to the device and precision of ``runtime`` and prepacked in place (see
            cpu_inference.py); it has no gradients afterwards.
        tokenizer: the model's.
        windows, decoding: how contexts are cut and how spans become answers.
        runtime: device and precision (default: those of ``local_runtime()``).

    Attributes:
        model, tokenizer, windows, decoding, runtime: the arguments, or their defaults.
        folder: checkpoint folder; None for a model given to the constructor.

    Raises:
        UserError: the tokenizer or the windows do not fit the model.
    """

    def __init__(
        self,
        model: BertForQuestionAnswering,
        tokenizer: BertTokenizer,
        windows: WindowSettings | None = None,
        decoding: DecodingSettings | None = None,
        runtime: Runtime | None = None,
    ) -> None:
        limit_onednn_cache()
        self.windows = windows or default_window_settings(model.config)
        self.decoding = decoding or DecodingSettings()
        self.runtime = runtime or local_runtime()
        check_vocabulary(tokenizer, model.config, "the model")
        check_window_fits(model.config, self.windows)
        self.model = prepare_for_inference(
            model, self.runtime.device, self.runtime.dtype, int8=self.runtime.int8
        )
        self.tokenizer = tokenizer
        self.folder: Path | None = None
        self.origin = None

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path,
        *,
        windows: WindowSettings | None = None,
        decoding: DecodingSettings | None = None,
        overrides: Overrides = NO_OVERRIDES,
        device: str = "auto",
        precision: str = "auto",
        revision: str | None = None,
        allow_bin: bool = False,
        token: str | bool | None = None,
    ) -> "QuestionAnswerer":
        """Load a fine-tuned checkpoint: a folder, a name under weights/, or a name on the hub.

        Args:
            windows, decoding: how contexts are cut and how spans become answers (default: from the
                model's decoding.json, if it has one).
            overrides: single settings that replace these.
            revision, allow_bin, token: see ``find_folder``; the token is not pickled.

        Raises:
            UserError: the checkpoint is unavailable, corrupt, not a BERT, or not fine-tuned.
        """
        runtime = local_runtime(device, precision)
        if runtime.int8:
            check_int8(runtime.device)  # before the model is downloaded
        folder = find_folder(str(name), revision=revision, allow_bin=allow_bin, token=token)
        files = CheckpointFiles(folder.absolute())
        model, tokenizer, _ = load_folder(folder, allow_bin, require_head=True)
        windows, decoding = resolve_settings(folder, model.config, overrides, windows, decoding)
        answerer = cls(model, tokenizer, windows, decoding, runtime)
        answerer.folder = folder
        lasting = absolute_name(name, folder)
        recipe = Recipe(lasting, revision, allow_bin, device, precision, windows, decoding, "")
        answerer.origin = Origin(recipe, files, answerer)
        return answerer

    def stored_model(self) -> BertForQuestionAnswering:
        """Load the model again in float32, ready for saving.

        Raises:
            UserError: the model has no checkpoint, or was changed in memory.
        """
        origin = self.origin
        if origin is None or not origin.has_model_of(self):
            raise UserError(
                "the model must be unchanged since loading to be saved, got a model that was "
                "changed in memory: save it with save_model before you pass it to an answerer"
            )
        return load_folder(origin.files.folder, origin.recipe.allow_bin, require_head=True)[0]

    def answer(self, examples: Iterable[Example]) -> Iterator[Prediction]:
        """Answer examples in order, streamed in constant memory.

        Raises:
            UserError: a question does not fit into a window, or a score is not finite.
        """
        adapt_to_fork(self.runtime.device)
        stream = iter(examples)
        while block := list(islice(stream, QUESTIONS_PER_BLOCK)):
            windows = make_windows(block, self.tokenizer, self.windows)
            yield from predict(self.model, block, windows, self.decoding, self.runtime)

    @overload
    def __call__(
        self,
        question: str,
        context: str,
        *,
        top_k: Literal[1] = 1,
        max_answer_len: int | None = None,
        handle_impossible_answer: bool | None = None,
        score_threshold: float | None = None,
    ) -> AnswerEntry: ...

    @overload
    def __call__(
        self,
        question: str,
        context: str,
        *,
        top_k: int,
        max_answer_len: int | None = None,
        handle_impossible_answer: bool | None = None,
        score_threshold: float | None = None,
    ) -> AnswerEntry | list[AnswerEntry]: ...

    @overload
    def __call__(
        self,
        question: list[str] | tuple[str, ...],
        context: str | Sequence[str],
        *,
        top_k: Literal[1] = 1,
        max_answer_len: int | None = None,
        handle_impossible_answer: bool | None = None,
        score_threshold: float | None = None,
    ) -> list[AnswerEntry]: ...

    @overload
    def __call__(
        self,
        question: list[str] | tuple[str, ...],
        context: str | Sequence[str],
        *,
        top_k: int,
        max_answer_len: int | None = None,
        handle_impossible_answer: bool | None = None,
        score_threshold: float | None = None,
    ) -> list[AnswerEntry | list[AnswerEntry]]: ...

    def __call__(
        self,
        question: str | Sequence[str],
        context: str | Sequence[str],
        *,
        top_k: int = 1,
        max_answer_len: int | None = None,
        handle_impossible_answer: bool | None = None,
        score_threshold: float | None = None,
    ) -> Any:
        """Answer one question or several, about one context or one each.

        Args:
            question: one or several.
            context: one, or as many as questions.
            top_k: number of answers for each question.
            max_answer_len: maximum tokens of an answer; None keeps ``decoding``'s.
            handle_impossible_answer: allow "" as an answer; False always returns a span, whose
                probability is normalized over the spans only; None keeps ``decoding``'s.
            score_threshold: answer "" if the answer's probability, 0 to 1, is below this; None
                keeps ``decoding``'s.

        Returns:
            For one question an ``AnswerEntry``, or with ``top_k`` above 1 a list of them, best
            first; for several questions a list of these.

        Raises:
            UserError: a question or context is not a text or has no visible character, their
                numbers differ, or a parameter is out of range, such as ``top_k`` below 1.
        """
        adapt_to_fork(self.runtime.device)
        examples = make_examples(question, context)
        top_k = whole_number("top_k", top_k)
        decoding = self._decoding(top_k, max_answer_len, handle_impossible_answer, score_threshold)
        predictions = self._predict(examples, decoding)
        results = [as_pipeline(prediction, top_k) for prediction in predictions]
        return results[0] if isinstance(question, str) else results

    @overload
    def read(
        self, question: str, documents: Iterable[str | Mapping[str, Any]], **settings: Any
    ) -> list[ReadEntry]: ...

    @overload
    def read(
        self, question: list[str], documents: Iterable[str | Mapping[str, Any]], **settings: Any
    ) -> list[list[ReadEntry]]: ...

    def read(
        self,
        question: str | list[str],
        documents: Iterable[str | Mapping[str, Any]],
        *,
        max_answer_len: int | None = None,
        handle_impossible_answer: bool | None = None,
        **settings: Any,
    ) -> Any:
        """Answer one question or several from many documents; see documents.py.

        Args:
            documents: texts, or dictionaries with "text", optionally "id", and any other keys;
                streamed, so a generator of any length works.
            max_answer_len, handle_impossible_answer: as for one context.
            settings: the fields of ``ReadSettings``; its ``score_threshold`` drops answers, while
                that of ``decoding`` puts "" first if the best answer is below it.

        Returns:
            The best answers, best first; for several questions a list of these.

        Raises:
            UserError: an empty question, a document without text, or a setting out of range.
            TypeError: an unknown setting.
        """
        adapt_to_fork(self.runtime.device)
        questions = [example.question for example in make_examples(question, "any")]
        decoding = self._decoding(1, max_answer_len, handle_impossible_answer)
        wanted = ReadSettings(**settings)
        found = read_documents(questions, documents, self._predict, decoding, wanted)
        return found[0] if isinstance(question, str) else found

    def _predict(
        self, examples: Sequence[Example], decoding: DecodingSettings
    ) -> Iterator[Prediction]:
        windows = make_windows(examples, self.tokenizer, self.windows)
        return predict(self.model, examples, windows, decoding, self.runtime)

    def _decoding(
        self,
        top_k: int,
        max_answer_len: int | None,
        handle_impossible_answer: bool | None,
        score_threshold: float | None = None,
    ) -> DecodingSettings:
        """Return the decoding settings of one call; None keeps a setting."""
        wanted = replace(self.decoding, n_best_size=max(top_k, self.decoding.n_best_size))
        if max_answer_len is not None:
            length = whole_number("max_answer_len", max_answer_len)
            wanted = replace(wanted, max_answer_length=length)
        if handle_impossible_answer is not None:
            impossible = true_or_false("handle_impossible_answer", handle_impossible_answer)
            wanted = replace(wanted, version_2_with_negative=impossible)
        if score_threshold is not None:
            lowest = probability("score_threshold", score_threshold)
            wanted = replace(wanted, score_threshold=lowest)
        return wanted


def make_examples(question: str | Sequence[str], context: str | Sequence[str]) -> list[Example]:
    """Pair questions with one context for all, or with one each.

    Raises:
        UserError: a question or context is not a text or has no visible character, or their
            numbers differ.
    """
    for name, given in (("question", question), ("context", context)):
        if not isinstance(given, str) and not is_several(given):
            raise UserError(f"{name} must be a text or a list of texts, got {shown(given)}")
    questions = [question] if isinstance(question, str) else list(question)
    contexts = contexts_of(questions, context)
    for name, given, texts in (("question", question, questions), ("context", context, contexts)):
        for index, text in enumerate(texts):
            if not isinstance(text, str) or is_blank(text):
                where = "" if isinstance(given, str) else f" at index {index}"
                raise UserError(
                    f"{name}{where} must be a text with a visible character, got {shown(text)}"
                )
    pairs = zip(questions, contexts, strict=True)
    return [Example(str(i), q, c) for i, (q, c) in enumerate(pairs)]


asked = make_examples  # its name in earlier versions


def is_several(value: Any) -> bool:
    """Return whether it is an iterable, such as a list or a column, but not a text or mapping."""
    return isinstance(value, Iterable) and not isinstance(value, str | bytes | Mapping)


def contexts_of(questions: Sequence[Any], context: Any) -> list[Any]:
    """Return a context for each question: the same for all, or one each.

    Raises:
        UserError: there are several contexts, but not as many as questions.
    """
    contexts = list(context) if is_several(context) else [context] * len(questions)
    if len(questions) != len(contexts):
        raise UserError(
            "there must be one context, or as many as questions, got "
            f"{counted(len(questions), 'question')} and {counted(len(contexts), 'context')}"
        )
    return contexts


def as_pipeline(prediction: Prediction, top_k: int) -> AnswerEntry | list[AnswerEntry]:
    """Return one answer if ``top_k`` is 1, else a list, as transformers' pipeline did."""
    entries = answer_entries(prediction, top_k)
    return entries if top_k > 1 else entries[0]
