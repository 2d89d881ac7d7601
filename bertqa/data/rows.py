"""One row of a file or data set -> one ``Example``: checked, never converted by guess.

A row has ``question`` and ``context``, and may have ``id`` (else the row's number, from 0),
``title``, ``answers`` and ``is_impossible``. ``answers`` is {"text": [...], "answer_start": [...]},
a list of {"text", "answer_start"}, a list of strings, or null. Other keys (plausible_answers) are
ignored. Texts are kept as they are, but for the blanks at the start of a question.
"""

from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from typing import Any

from bertqa.data.graphemes import SURROGATES
from bertqa.data.squad import Example
from bertqa.errors import UserError, shown

# What to do about the names that other data sets have in place of question and context.
CURES = dict.fromkeys(
    ("context_text", "query_text"),
    "this is CMRC 2018's first form: take its squad-style one, or rename context_text to context, "
    "query_text to question and query_id to id",
) | dict.fromkeys(
    ("story", "questions"),
    "this is CoQA, whose questions depend on those before; write rows with question and context",
)


def wrong_type(value: Any, key: str, needed: str, location: str) -> UserError:
    """The error for a value of the wrong kind."""
    kind = type(value).__name__
    return UserError(
        f"{location}: {key} is {shown(value)} ({kind}), but must be {needed}; correct it"
    )


def require_keys(row: Any, keys: Sequence[str], location: str) -> None:
    """Raise unless the row is an object that has these keys."""
    if not isinstance(row, dict):
        found = f"{shown(row)} ({type(row).__name__})"
        needed = f"an object with {' and '.join(keys)}"
        raise UserError(f"{location} is {found}, but must be {needed}; correct it")
    missing = [key for key in keys if key not in row]
    if missing:
        cure = next((CURES[key] for key in row if key in CURES), "add or rename it")
        raise UserError(f"{location} lacks {' and '.join(missing)} (found: {listed(row)}); {cure}")


def listed(names: Iterable[str]) -> str:
    """Names as a message lists them, ten at most."""
    parts = [shown(name) for name in names]
    if len(parts) > 10:
        parts[10:] = [f"{len(parts) - 10} more"]
    return ", ".join(parts) or "nothing"


def checked_text(value: Any, key: str, location: str) -> str:
    """The value, if it is text that a tokenizer can read."""
    if not isinstance(value, str):
        raise wrong_type(value, key, "a string", location)
    # JSON can hold half of a surrogate pair ("\ud83d"): no text, and tokenizers refuse it.
    if not value.isascii() and SURROGATES.search(value):
        raise UserError(f"{location}: {key} holds half a surrogate pair, {shown(value)}; remove it")
    return value


def checked_list(value: Any, key: str, location: str) -> list[Any]:
    """The value, if it is a list."""
    if not isinstance(value, list):
        raise wrong_type(value, key, "a list", location)
    return value


def _whole(value: Any, key: str, location: str) -> int:
    # Not isinstance: True is an int.
    if type(value) is not int:
        raise wrong_type(value, key, "a whole number", location)
    return value


# --- one row -> Example --------------------------------------------------------------------------

_Gold = tuple[tuple[str, ...] | None, tuple[int, ...]]


def _texts_and_starts(value: Any, location: str) -> tuple[list[Any], list[Any]]:
    """The two lists of any accepted form of ``answers``, their items not yet checked."""
    if isinstance(value, dict):
        require_keys(value, ["text"], f"{location}: answers")
        starts = value.get("answer_start")
        texts = checked_list(value["text"], "text", location)
        return texts, [] if starts is None else checked_list(starts, "answer_start", location)
    answers = checked_list(value, "answers", location)
    if not any(isinstance(answer, dict) for answer in answers):
        return answers, []
    for answer in answers:
        require_keys(answer, ["text"], f"{location}: an answer")
    starts = [answer["answer_start"] for answer in answers if "answer_start" in answer]
    return [answer["text"] for answer in answers], starts


def _answers(value: Any, location: str) -> _Gold:
    if value is None:
        return None, ()
    texts, starts = _texts_and_starts(value, location)
    return (
        tuple(checked_text(text, "an answer", location) for text in texts),
        tuple(_whole(start, "answer_start", location) for start in starts),
    )


def _gold(row: dict[str, Any], location: str) -> _Gold:
    """``answers`` and ``is_impossible`` taken together."""
    answers, starts = _answers(row.get("answers"), location)
    impossible = row.get("is_impossible")
    if impossible is None:
        return answers, starts
    if not isinstance(impossible, bool):
        raise wrong_type(impossible, "is_impossible", "true or false", location)
    if not impossible:
        # An answer is said to exist but is not given, as in test sets and unfinished annotations.
        return answers or None, starts
    if answers:
        raise UserError(
            f"{location}: is_impossible is true, but there is an answer, {shown(answers[0])}; "
            "remove one of the two"
        )
    return (), ()


def _identifier(value: Any, number: int, location: str) -> str:
    if value is None:
        return str(number)
    if type(value) is int:
        return str(value)
    if not isinstance(value, str):
        raise wrong_type(value, "id", "a string or a whole number", location)
    return checked_text(value, "id", location)


def row_example(row: Any, number: int, location: str) -> Example:
    """The example of a row; ``number`` serves where it has no id."""
    require_keys(row, ["question", "context"], location)
    answers, starts = _gold(row, location)
    title = row.get("title")
    return Example(
        id=_identifier(row.get("id"), number, location),
        # As the scripts of SQuAD do: blanks before a question, found in its files, mean nothing.
        question=checked_text(row["question"], "question", location).lstrip(),
        context=checked_text(row["context"], "context", location),
        answers=answers,
        answer_starts=starts,
        title=title if isinstance(title, str) else "",  # it only groups: anything may stand there
    )


def shared_texts(examples: Iterable[Example]) -> Iterator[Example]:
    """The same examples, with one copy of each text.

    Rows repeat their context for each of its questions: in SQuAD almost five times.
    """
    # A cached identity returns the first of equal strings, and so frees the later ones.
    first_copy = lru_cache(None)(lambda text: text)
    for example in examples:
        question, context = first_copy(example.question), first_copy(example.context)
        title = first_copy(example.title)
        yield Example(example.id, question, context, example.answers, example.answer_starts, title)
