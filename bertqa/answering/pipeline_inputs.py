"""Conversion of the inputs of transformers' question-answering pipeline to examples.

    question= and context=, each a text or several; or both as positional arguments
    one or several dictionaries or objects, as positional arguments, X= or data=
    a generator or a torch dataset: read lazily while the answers are taken

A dictionary has the keys question and context, an object question_text and context_text. Other
keys are ignored, except id, which messages use to name the question.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import GeneratorType
from typing import Any

from torch.utils.data import Dataset, IterableDataset

from bertqa.answering.answerer import contexts_of, is_several
from bertqa.data.squad import Example
from bertqa.errors import UserError, shown

INPUTS = ("question", "context", "X", "data")
_FORMS = "pass question= and context=, a dictionary with these keys, or several such dictionaries"


class LazyExamples:
    """Questions of a generator or a torch dataset, read during iteration.

    Attributes:
        read_ahead: number of questions that may be read before the first is answered; 1 for a
            generator, whose next question may depend on the answer.
    """

    def __init__(self, source: Any) -> None:
        self._source = source
        self.read_ahead = 64 if isinstance(source, Dataset) else 1

    def __iter__(self) -> Iterator[Example]:
        return _examples(self._rows())

    def __len__(self) -> int:
        """Return the number of rows; raises TypeError if the source has no length."""
        return len(self._source)

    def _rows(self) -> Iterator[Any]:
        source = self._source
        if isinstance(source, Dataset) and not isinstance(source, IterableDataset):
            yield from (source[i] for i in range(len(self)))  # it may not raise IndexError
        else:
            yield from source


def read_inputs(args: Sequence[Any], named: Mapping[str, Any]) -> list[Example] | LazyExamples:
    """Read the questions from the arguments of a call.

    Args:
        named: the given keyword arguments of ``INPUTS``.

    Raises:
        KeyError: a row lacks a key.
        UserError: a text is missing or empty, or the format is unknown.
    """
    given = _given(args, named)
    if isinstance(given, Dataset | GeneratorType):
        return LazyExamples(given)
    return list(_examples(_rows(given)))


def _given(args: Sequence[Any], named: Mapping[str, Any]) -> Any:
    """Return the object that contains the rows."""
    forms = [bool(args), "X" in named, "data" in named, "question" in named or "context" in named]
    if sum(forms) != 1:
        what = ", ".join(["positional arguments"] * forms[0] + list(named)) or "nothing"
        raise UserError(f"the questions must be given in one way, got {what}: {_FORMS}")
    if "question" in named or "context" in named:
        if len(named) == 1:
            raise UserError(
                f"question and context require each other, got {next(iter(named))} only: {_FORMS}"
            )
        return dict(named)
    if named:
        return next(iter(named.values()))
    if len(args) == 2 and all(_is_text_or_texts(arg) for arg in args):
        return {"question": args[0], "context": args[1]}
    return args[0] if len(args) == 1 else args


def _is_text_or_texts(value: Any) -> bool:
    return isinstance(value, str) or (
        is_several(value) and all(isinstance(each, str) for each in value)
    )


def _rows(given: Any) -> list[Any]:
    """Return one row for each question."""
    if _is_row(given):
        question, context = _texts(given)
        if is_several(question):
            questions = list(question)
            pairs = zip(questions, contexts_of(questions, context), strict=True)
            return [{"question": question, "context": context} for question, context in pairs]
        return [given]
    if is_several(given):
        return list(given)
    raise UserError(f"the questions must be texts or dictionaries, got {shown(given)}: {_FORMS}")


# --- one row -------------------------------------------------------------------------------------


def _examples(rows: Iterable[Any]) -> Iterator[Example]:
    for number, row in enumerate(rows):
        if not _is_row(row):
            raise UserError(f"question {number} must be a dictionary, got {shown(row)}: {_FORMS}")
        texts = dict(zip(("question", "context"), _texts(row), strict=True))
        for key, text in texts.items():
            if not isinstance(text, str) or not text:
                raise UserError(
                    f"the {key} of question {number} must be a text that is not empty, got "
                    f"{shown(text)}"
                )
        yield Example(str(_id(row, number)), **texts)


def _is_row(value: Any) -> bool:
    return isinstance(value, Mapping | Example) or hasattr(value, "question_text")


def _texts(row: Any) -> tuple[Any, Any]:
    """Return question and context of a row.

    Raises:
        KeyError: a key is missing.
    """
    if isinstance(row, Example):
        return row.question, row.context
    if not isinstance(row, Mapping):
        return row.question_text, getattr(row, "context_text", None)
    for key in ("question", "context"):
        if key not in row:
            raise KeyError(f"a row must have the keys question and context, got {sorted(row)}")
    return row["question"], row["context"]


def _id(row: Any, number: int) -> Any:
    if isinstance(row, Mapping):
        return row.get("id", number)
    name = getattr(row, "id", getattr(row, "qas_id", None))
    return number if name is None else name
