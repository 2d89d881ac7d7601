"""One row of a file or data set -> one ``Example``: checked, never converted by guess.

A row has ``question`` and ``context``, and may have an id under one of ``ID_KEYS``, ``title``,
gold under ``GOLD_KEYS``, and ``is_impossible``. Gold under two keys must agree. Other keys are
ignored; ``unread_keys`` names them, but for SQuAD v2.0's plausible_answers.
Texts are kept as they are, but for the blanks at the start of a question.

    {"text": ["Ada"], "answer_start": [0]}      gold, as in run_qa
    [{"text": "Ada", "answer_start": 0}]        as in SQuAD
    {"text": "Ada", "answer_start": 0}          one answer
    ["Ada"] or "Ada"                            with starts in "answer_start", in MRQA's
                                                "detected_answers", or without
    [], or a blank text at no place             there is no answer; with is_impossible false,
                                                none was given
    null                                        none was given; with is_impossible true, there is
                                                no answer

A start may be a whole float, as pandas writes it; null or -1 is one that is not known.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
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


# --- one row -> Example --------------------------------------------------------------------------

ID_KEYS = ("id", "qid", "question_id", "guid", "_id")
# Where gold may be, and where its starts are if they stand beside it.
GOLD_KEYS = {
    "answers": "answer_start",
    "answer": "answer_start",
    "answer_text": "answer_start",
    "answers.text": "answers.answer_start",  # of a flattened table
    "text": "answer_start",
}
# SQuAD v2.0's plausible answers are wrong ones, and never meant to be read.
_ANSWER_KEYS = ("text", "answer_start")
_READ_KEYS = {"question", "context", "title", "is_impossible", "plausible_answers", *ID_KEYS}

_Gold = tuple[tuple[str, ...] | None, tuple[int, ...]]


def _is_null(value: Any) -> bool:
    return value is None or value != value  # pandas writes NaN for a missing cell


def _start(value: Any, location: str) -> int:
    """A start; -1, as some data sets write, where it is not known."""
    if _is_null(value):
        return -1
    if isinstance(value, float) and value.is_integer():  # pandas, once a cell of the column is null
        return int(value)
    # Not isinstance: True is an int.
    if type(value) is not int:
        raise wrong_type(value, "answer_start", "a whole number", location)
    return value


def _texts_and_starts(key: str, value: Any, beside: Any, location: str) -> tuple[list, list]:
    """The two lists of any accepted form of gold, their items not yet checked."""
    inner: Any = None
    if isinstance(value, dict):
        require_keys(value, ["text"], f"{location}: {key}")
        key, value, inner = "text", value["text"], value.get("answer_start")
    texts: list[Any] = [value] if isinstance(value, str) else checked_list(value, key, location)
    if any(isinstance(answer, dict) for answer in texts):
        for answer in texts:
            require_keys(answer, ["text"], f"{location}: an answer")
        inner = [answer.get("answer_start") for answer in texts]
        texts = [answer["text"] for answer in texts]
    return texts, _one_of(_as_list(inner), _as_list(beside), location)


def _as_list(starts: Any) -> list[Any]:
    if _is_null(starts):
        return []
    return starts if isinstance(starts, list) else [starts]


def _one_of(inner: list[Any], beside: list[Any], location: str) -> list[Any]:
    """The starts that the gold itself has, or else those beside it, which must not differ."""
    known = [start for start in inner if not _is_null(start)]
    if not known:
        return beside or inner
    if any(start not in known for start in beside if not _is_null(start)):
        raise UserError(
            f"{location}: answer_start is {shown(known)} in the answers and {shown(beside)} beside "
            "them; remove the wrong one"
        )
    return inner


def _detected_starts(texts: Sequence[str], detected: Any, location: str) -> list[Any]:
    """The first start of each text that MRQA found in the context."""
    try:
        starts = {answer["text"]: answer["char_spans"][0][0] for answer in detected}
    except (KeyError, TypeError, IndexError) as error:
        needed = 'a list of {"text", "char_spans"}'
        raise wrong_type(detected, "detected_answers", needed, location) from error
    return [starts.get(text) for text in texts]


def _gold_keys(row: dict[str, Any]) -> list[str]:
    """The keys of a row that are for gold; "text" is one only beside its start."""
    return [key for key in GOLD_KEYS if key in row and (key != "text" or "answer_start" in row)]


def _gold_under(key: str, row: dict[str, Any], location: str) -> _Gold:
    """The gold under one key; no answer may be written as a blank one."""
    value, beside = "" if _is_null(row[key]) else row[key], row.get(GOLD_KEYS[key])
    texts, found = _texts_and_starts(key, value, beside, location)
    answers = tuple(checked_text(text, "an answer", location) for text in texts)
    if "detected_answers" in row and not found:
        found = _detected_starts(answers, row["detected_answers"], location)
    starts = tuple(_start(start, location) for start in found)
    if not any(map(str.strip, answers)) and max(starts, default=0) <= 0:
        return (), ()
    return answers, () if set(starts) == {-1} else starts


def _is_part(part: _Gold, whole: _Gold) -> bool:
    """Whether one gold says nothing that the other does not say."""
    texts, of_whole = part[0] or (), whole[0] or ()
    if not texts or not set(texts) <= set(of_whole):
        return texts == of_whole
    if len(texts) != len(part[1]) or len(of_whole) != len(whole[1]):  # not all starts are known
        return True
    pairs = zip(texts, part[1], strict=True)
    return {pair for pair in pairs if pair[1] != -1} <= set(zip(of_whole, whole[1], strict=True))


def _said(gold: _Gold) -> str:
    """A gold as a message shows it."""
    texts = listed(gold[0]) if gold[0] else "no answer"
    return f"{texts} at {shown(list(gold[1]))}" if gold[1] else texts


def _answers(row: dict[str, Any], location: str) -> _Gold:
    """The gold of a row: of several keys, the one that has most answers, if the others agree."""
    keys = _gold_keys(row)
    given = [key for key in keys if not _is_null(row[key])]
    # Starts alone: the text of no answer may be null.
    given = given or [key for key in keys if not _is_null(row.get(GOLD_KEYS[key]))][:1]
    golds = {key: _gold_under(key, row, location) for key in given}
    if row.get("is_impossible") is False:  # then a blank answer says that none was given here
        golds = {key: gold for key, gold in golds.items() if gold[0]} or golds
    if not golds:
        return None, ()
    fullest = max(golds, key=lambda key: (len(golds[key][0] or ()), len(golds[key][1])))
    for key, gold in golds.items():
        if not _is_part(gold, golds[fullest]):
            one, other = (_said(golds[each]) for each in (fullest, key))
            raise UserError(
                f"{location}: {fullest} and {key} must agree, got {one} and {other}; remove the "
                "wrong one"
            )
    return golds[fullest]


def _gold(row: dict[str, Any], location: str) -> _Gold:
    """The answers and ``is_impossible`` taken together."""
    answers, starts = _answers(row, location)
    impossible = row.get("is_impossible")
    if _is_null(impossible):
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


def id_key(row: dict[str, Any]) -> str | None:
    """The key under which a row has its id, if it has one."""
    return next((key for key in ID_KEYS if not _is_null(row.get(key))), None)


def unread_keys(row: dict[str, Any]) -> tuple[str, ...]:
    """The keys of a row, and of the answers in it, that mean nothing here."""
    golds = _gold_keys(row)
    beside = {"detected_answers", *(GOLD_KEYS[key] for key in golds)} if golds else set()
    unread = [key for key in row if key not in _READ_KEYS | beside and key not in golds]
    for key in golds:
        for answer in row[key] if isinstance(row[key], list) else [row[key]]:
            inner = answer if isinstance(answer, dict) else ()
            unread += [f"{key}.{each}" for each in inner if each not in _ANSWER_KEYS]
    return tuple(dict.fromkeys(unread))


def _identifier(row: dict[str, Any], made_up: str, location: str) -> str:
    key = id_key(row)
    if key is None:
        return made_up
    value = row[key]
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if type(value) is int:
        return str(value)
    if not isinstance(value, str):
        raise wrong_type(value, key, "a string or a whole number", location)
    return checked_text(value, key, location)


def row_example(row: Any, made_up: str, location: str) -> Example:
    """The example of a row; the made-up id serves where it has none."""
    require_keys(row, ["question", "context"], location)
    answers, starts = _gold(row, location)
    title = row.get("title")
    return Example(
        id=_identifier(row, made_up, location),
        # As the scripts of SQuAD do: blanks before a question, found in its files, mean nothing.
        question=checked_text(row["question"], "question", location).lstrip(),
        context=checked_text(row["context"], "context", location),
        answers=answers,
        answer_starts=starts,
        title=title if isinstance(title, str) else "",  # it only groups: anything may stand there
    )


def shared_texts() -> Callable[[Example], Example]:
    """A function that gives the same example, with one copy of each text that it has met.

    Rows repeat their context for each of its questions: in SQuAD almost five times.
    """
    # A cached identity returns the first of equal strings, and so frees the later ones.
    first_copy = lru_cache(None)(lambda text: text)

    def share(example: Example) -> Example:
        question, context = first_copy(example.question), first_copy(example.context)
        return replace(example, question=question, context=context, title=first_copy(example.title))

    return share
