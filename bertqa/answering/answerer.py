"""Load once, ask many times."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any, Literal, overload

from bertqa.answering.answers import AnswerEntry, Prediction, answer_entries
from bertqa.answering.decoding_file import read_decoding_file
from bertqa.answering.documents import ReadEntry, ReadSettings, read_documents
from bertqa.answering.evaluation import predict
from bertqa.answering.pickling import CheckpointFiles, Origin, PickledAsRecipe, Recipe, lasting_name
from bertqa.data.squad import Example
from bertqa.data.text import is_blank
from bertqa.data.tokenization import BertTokenizer
from bertqa.data.windows import make_windows
from bertqa.errors import UserError, counted, shown
from bertqa.fields import check_kind, probability, true_or_false, whole_number
from bertqa.files import DECODING_FILE
from bertqa.model.bert import BertForQuestionAnswering
from bertqa.model.checkpoint import LoadReport, load_checkpoint
from bertqa.model.config import BertConfig
from bertqa.model.cpu_inference import check_int8, make_ready
from bertqa.model.hub import find_folder
from bertqa.runtime import Runtime, adapt_to_fork, limit_onednn_cache, local_runtime
from bertqa.settings import DecodingSettings, Overrides, WindowSettings

_SPARE_ROWS = 1024  # embeddings that no token has: some models have a round number of them
NOTHING_ASKED = Overrides()
AT_ONCE = 1024  # questions that are cut into windows together


def load_folder(
    folder: Path, allow_bin: bool, require_head: bool
) -> tuple[BertForQuestionAnswering, BertTokenizer, LoadReport]:
    """The model and tokenizer of a checkpoint folder; see ``load_checkpoint``.

    Raises:
        UserError: one of them is corrupt, or they do not belong together.
    """
    model, report = load_checkpoint(folder, allow_bin=allow_bin, require_head=require_head)
    tokenizer = BertTokenizer.load(folder)
    check_vocabulary(tokenizer, model.config, f"the model in {folder}")
    return model, tokenizer, report


def check_vocabulary(tokenizer: BertTokenizer, config: BertConfig, model: str) -> None:
    """Refuse a tokenizer that does not belong to a model.

    Args:
        model: what a message calls it.

    Raises:
        UserError: it has more tokens, or far fewer.
    """
    rows = config.vocab_size
    if not rows - _SPARE_ROWS <= tokenizer.vocab_size <= rows:
        raise UserError(
            f"{tokenizer.source} has {tokenizer.vocab_size} tokens, but {model} has {rows}: take "
            "the tokenizer that belongs to the model"
        )


def check_window_fits(
    config: BertConfig,
    settings: WindowSettings,
    name: str = "--max_seq_length",
    model: str = "this model",
) -> None:
    """Refuse windows longer than the positions that the model has learned.

    Args:
        name: what a message calls the setting, by where it comes from.
        model: what it calls the model.

    Raises:
        UserError: the windows are too long.
    """
    limit = config.max_position_embeddings
    if settings.max_seq_length > limit:
        raise UserError(
            f"{name} {settings.max_seq_length} is more than the {limit} positions that {model} "
            f"knows: pass {limit} or less"
        )


def usual_windows(config: BertConfig) -> WindowSettings:
    """Windows of 384 tokens with an overlap of 128; shorter where the model has no such places."""
    longest = min(384, config.max_position_embeddings)
    return WindowSettings(longest, doc_stride=min(128, longest // 3))


def settings_of(
    folder: Path,
    config: BertConfig,
    overrides: Overrides,
    windows: WindowSettings | None = None,
    decoding: DecodingSettings | None = None,
) -> tuple[WindowSettings, DecodingSettings]:
    """The settings of a model: those given, else those of its decoding.json, else the usual ones.

    Args:
        overrides: single settings to take in place of those.

    Raises:
        UserError: decoding.json is corrupt, or a setting is out of range or does not fit the model.
    """
    check_kind("overrides", overrides, Overrides)
    if windows is not None:
        check_kind("windows", windows, WindowSettings)
    if decoding is not None:
        check_kind("decoding", decoding, DecodingSettings)
    own_windows, own_decoding = read_decoding_file(folder)
    windows = overrides.windows(windows or own_windows or usual_windows(config))
    if windows == own_windows:
        check_window_fits(config, windows, f"{folder / DECODING_FILE}: max_seq_length")
    else:
        check_window_fits(config, windows)
    return windows, overrides.decoding(decoding or own_decoding)


class QuestionAnswerer(PickledAsRecipe):
    """A model that answers questions about texts.

    ``qa = QuestionAnswerer.from_pretrained(folder_or_name)`` loads it and
    ``qa(question=..., context=...)`` asks it; the result is what transformers' question-answering
    pipeline returned until it was removed. One that was loaded so can be pickled and copied, see
    pickling.py, and asked in forked processes.

    Attributes:
        model, tokenizer: what was loaded.
        windows, decoding: how contexts are cut and spans become answers.
        folder: the checkpoint that it was loaded from; None for a model given to the constructor.
        runtime: device and precision; a model given to the constructor is converted to them and
            prepacked (see cpu_inference.py), and gives no gradients any more.
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
        self.windows = windows or usual_windows(model.config)
        self.decoding = decoding or DecodingSettings()
        self.runtime = runtime or local_runtime()
        check_window_fits(model.config, self.windows)
        self.model = make_ready(
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
        overrides: Overrides = NOTHING_ASKED,
        device: str = "auto",
        precision: str = "auto",
        revision: str | None = None,
        allow_bin: bool = False,
        token: str | bool | None = None,
    ) -> "QuestionAnswerer":
        """Load a fine-tuned checkpoint: a folder, a name under weights/, or one on the hub.

        Args:
            windows, decoding: how contexts are cut and spans become answers; None takes what the
                model's decoding.json says, if it has one.
            overrides: single settings to take in place of those.
            revision, allow_bin, token: see ``find_folder``; a pickle does not hold the token.

        Raises:
            UserError: it is not available, corrupt, no BERT, or was never trained to answer.
        """
        runtime = local_runtime(device, precision)
        if runtime.int8:
            check_int8(runtime.device)  # before a model is looked for
        folder = find_folder(str(name), revision=revision, allow_bin=allow_bin, token=token)
        files = CheckpointFiles(folder.absolute())
        model, tokenizer, _ = load_folder(folder, allow_bin, require_head=True)
        windows, decoding = settings_of(folder, model.config, overrides, windows, decoding)
        answerer = cls(model, tokenizer, windows, decoding, runtime)
        answerer.folder = folder
        lasting = lasting_name(name, folder)
        recipe = Recipe(lasting, revision, allow_bin, device, precision, windows, decoding, "")
        answerer.origin = Origin(recipe, files, answerer)
        return answerer

    def stored_model(self) -> BertForQuestionAnswering:
        """Load the model again, in float32 and such that it can be saved.

        Raises:
            UserError: there is no checkpoint of it, since it was changed or made in memory.
        """
        origin = self.origin
        if origin is None or not origin.has_model_of(self):
            raise UserError(
                "the model must be as it was loaded to be saved, got one that was changed in "
                "memory: save the one that you changed before it is made ready for answering"
            )
        return load_folder(origin.files.folder, origin.recipe.allow_bin, require_head=True)[0]

    def answer(self, examples: Iterable[Example]) -> Iterator[Prediction]:
        """Answer examples in order; a stream of any length in constant memory.

        Raises:
            UserError: a question is longer than a window allows.
        """
        adapt_to_fork(self.runtime.device)
        stream = iter(examples)
        while block := list(islice(stream, AT_ONCE)):
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
        """Ask one question, or several: of one context, or each of its own.

        Args:
            question: one, or several.
            context: one, or as many as there are questions.
            top_k: answers wanted for each question.
            max_answer_len: most tokens of an answer; None keeps ``decoding``'s.
            handle_impossible_answer: "" is an answer too; False forces another, whose probability
                only compares it with other spans; None keeps ``decoding``'s.
            score_threshold: answer "" where the answer's probability is below this, 0 to 1; None
                keeps ``decoding``'s.

        Returns:
            For one question an ``AnswerEntry``, with ``top_k`` above 1 a list of them, best first;
            for several questions a list of that.

        Raises:
            UserError: a question or context that is no text or has nothing to be read, numbers
                that do not match, or another parameter that cannot be, such as ``top_k`` below 1.
        """
        adapt_to_fork(self.runtime.device)
        examples = asked(question, context)
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
        """Ask one question, or several, of many documents; see documents.py.

        Args:
            documents: texts, or dictionaries with "text", perhaps "id", and anything else; read
                once, one after the other, so a generator of any length will do.
            max_answer_len, handle_impossible_answer: as when one context is asked.
            settings: the fields of ``ReadSettings``; its ``score_threshold`` leaves answers out,
                while that of ``decoding`` lets "" come first where the best answer is below it.

        Returns:
            The best answers, the one that counts first; for several questions a list of that.

        Raises:
            UserError: an empty question, a document without a text, or a setting out of range.
            TypeError: a setting that there is not.
        """
        adapt_to_fork(self.runtime.device)
        questions = [example.question for example in asked(question, "any")]
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
        """The settings of one call: what is None stays as it is."""
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


def asked(question: str | Sequence[str], context: str | Sequence[str]) -> list[Example]:
    """The questions, each with its context: of one for all, or of its own.

    Raises:
        UserError: a question or context that is no text or has nothing to be read, or numbers
            that do not match.
    """
    for name, given in (("question", question), ("context", context)):
        if isinstance(given, bytes | Mapping) or not isinstance(given, Iterable):
            raise UserError(f"the {name} is {shown(given)}: give a text, or a list of texts")
    questions = [question] if isinstance(question, str) else list(question)
    contexts = [context] * len(questions) if isinstance(context, str) else list(context)
    if len(questions) != len(contexts):
        raise UserError(
            f"{counted(len(questions), 'question')} and {counted(len(contexts), 'context')} do not "
            "match: give one context, or as many as there are questions"
        )
    for name, given, texts in (
        ("question", question, questions),
        ("context", context, contexts),
    ):
        for index, text in enumerate(texts):
            if not isinstance(text, str) or is_blank(text):
                where = "" if isinstance(given, str) else f" at index {index}"
                raise UserError(
                    f"the {name}{where} is {shown(text)}: give a text that has a visible character"
                )
    pairs = zip(questions, contexts, strict=True)
    return [Example(str(i), q, c) for i, (q, c) in enumerate(pairs)]


def as_pipeline(prediction: Prediction, top_k: int) -> AnswerEntry | list[AnswerEntry]:
    """One answer where one was asked for, else a list, as the removed pipeline has it."""
    entries = answer_entries(prediction, top_k)
    return entries if top_k > 1 else entries[0]
