"""Conversion of a row of a file or dataset to an ``Example``: strictly checked, never guessed.

A row has ``question`` and ``context``, and may have an id under one of ``ID_KEYS``, ``title``, gold
answers under ``GOLD_KEYS``, and ``is_impossible``. Gold answers under two keys must agree. Other
keys are ignored; ``ignored_keys`` lists them, except SQuAD v2.0's plausible_answers. Texts are not
changed, except that leading blanks of a question are removed.

    {"text": ["Ada"], "answer_start": [0]}      gold answers, as in run_qa
    [{"text": "Ada", "answer_start": 0}]        as in SQuAD
    {"text": "Ada", "answer_start": 0}          one answer
    ["Ada"] or "Ada"                            starts in "answer_start", in MRQA's
                                                "detected_answers", or missing
    [], or a blank text without a position      unanswerable; if is_impossible is false, no gold
                                                answer is given
    null                                        no gold answer is given; if is_impossible is true,
                                                unanswerable

A start may be an integral float, as pandas writes it; null or -1 means unknown.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any

from bertqa.data.graphemes import SURROGATES
from bertqa.data.squad import Example
from bertqa.errors import UserError, shown

# Advice for keys that other datasets use instead of question and context.
_ADVICE = dict.fromkeys(
    ("context_text", "query_text"),
    "use the SQuAD format of CMRC 2018, or rename context_text to context, query_text to question "
    "and query_id to id",
) | dict.fromkeys(
    ("story", "questions"),
    "write rows with question and context; CoQA's questions depend on earlier ones",
)


def wrong_type(value: Any, key: str, needed: str, location: str) -> UserError:
    """Return the error for a value of the wrong type."""
    kind = type(value).__name__
    return UserError(f"{location}: {key} must be {needed}, got {shown(value)} ({kind}): correct it")


def require_keys(row: Any, keys: Sequence[str], location: str) -> None:
    """Check that the row is an object with these keys.

    Raises:
        UserError: it is not an object, or lacks a key.
    """
    if not isinstance(row, dict):
        found = f"{shown(row)} ({type(row).__name__})"
        needed = f"an object with {' and '.join(keys)}"
        raise UserError(f"{location}: must be {needed}, got {found}: correct it")
    missing = [key for key in keys if key not in row]
    if missing:
        advice = next((_ADVICE[key] for key in row if key in _ADVICE), "add or rename it")
        needed = " and ".join(missing)
        raise UserError(f"{location}: must have {needed}, got {listed(row)}: {advice}")


def listed(names: Iterable[str]) -> str:
    """Format names for a message, ten at most."""
    parts = [shown(name) for name in names]
    if len(parts) > 10:
        parts[10:] = [f"{len(parts) - 10} more"]
    return ", ".join(parts) or "nothing"


def checked_text(value: Any, key: str, location: str) -> str:
    """Check that the value is a string without lone surrogates, and return it.

    Raises:
        UserError: it is not.
    """
    if not isinstance(value, str):
        raise wrong_type(value, key, "a string", location)
    # JSON can encode a lone surrogate ("\ud83d"), which tokenizers reject.
    if not value.isascii() and SURROGATES.search(value):
        raise UserError(
            f"{location}: {key} must not contain a lone surrogate, got {shown(value)}: remove it"
        )
    return value


def checked_list(value: Any, key: str, location: str) -> list[Any]:
    """Check that the value is a list, and return it.

    Raises:
        UserError: it is not.
    """
    if not isinstance(value, list):
        raise wrong_type(value, key, "a list", location)
    return value


# --- one row -> Example --------------------------------------------------------------------------

ID_KEYS = ("id", "qid", "question_id", "guid", "_id")
# Keys of gold answers -> the key of their starts, unless the answers contain them.
GOLD_KEYS = {
    "answers": "answer_start",
    "answer": "answer_start",
    "answer_text": "answer_start",
    "answers.text": "answers.answer_start",  # in a flattened table
    "text": "answer_start",
}
_ANSWER_KEYS = ("text", "answer_start")
# SQuAD v2.0's plausible_answers are wrong answers; they are ignored on purpose.
_READ_KEYS = {"question", "context", "title", "is_impossible", "plausible_answers", *ID_KEYS}

_Gold = tuple[tuple[str, ...] | None, tuple[int, ...]]


def _is_null(value: Any) -> bool:
    return value is None or value != value  # pandas writes NaN for a missing cell


def _start(value: Any, location: str) -> int:
    """Return a start; -1, as in some datasets, if it is unknown."""
    if _is_null(value):
        return -1
    if isinstance(value, float) and value.is_integer():  # pandas, if a cell of the column is null
        return int(value)
    # Not isinstance: True is an int.
    if type(value) is not int:
        raise wrong_type(value, "answer_start", "a whole number", location)
    return value


def _texts_and_starts(key: str, value: Any, beside: Any, location: str) -> tuple[list, list]:
    """Return texts and starts of gold answers in any format, unchecked."""
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
    return texts, _agreed_starts(_as_list(inner), _as_list(beside), location)


def _as_list(starts: Any) -> list[Any]:
    if _is_null(starts):
        return []
    return starts if isinstance(starts, list) else [starts]


def _agreed_starts(inner: list[Any], beside: list[Any], location: str) -> list[Any]:
    """Return the starts in the answers, or else those beside them; both must agree."""
    known = [start for start in inner if not _is_null(start)]
    if not known:
        return beside or inner
    if any(start not in known for start in beside if not _is_null(start)):
        raise UserError(
            f"{location}: answer_start must agree with the answers, got {shown(beside)} and "
            f"{shown(known)} in the answers: remove the wrong one"
        )
    return inner


def _detected_starts(texts: Sequence[str], detected: Any, location: str) -> list[Any]:
    """Return the first start of each text in MRQA's detected_answers."""
    try:
        starts = {answer["text"]: answer["char_spans"][0][0] for answer in detected}
    except (KeyError, TypeError, IndexError) as error:
        needed = 'a list of {"text", "char_spans"}'
        raise wrong_type(detected, "detected_answers", needed, location) from error
    return [starts.get(text) for text in texts]


def _gold_keys(row: dict[str, Any]) -> list[str]:
    """Return the keys of a row for gold answers; "text" is one only with "answer_start"."""
    return [key for key in GOLD_KEYS if key in row and (key != "text" or "answer_start" in row)]


def _gold_under(key: str, row: dict[str, Any], location: str) -> _Gold:
    """Return the gold answers under one key; a blank text may mean unanswerable."""
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
    """Return whether the gold answers ``part`` are contained in ``whole``."""
    texts, of_whole = part[0] or (), whole[0] or ()
    if not texts or not set(texts) <= set(of_whole):
        return texts == of_whole
    if len(texts) != len(part[1]) or len(of_whole) != len(whole[1]):  # not all starts are known
        return True
    pairs = zip(texts, part[1], strict=True)
    return {pair for pair in pairs if pair[1] != -1} <= set(zip(of_whole, whole[1], strict=True))


def _formatted(gold: _Gold) -> str:
    """Format gold answers for a message."""
    texts = listed(gold[0]) if gold[0] else "no answer"
    return f"{texts} at {shown(list(gold[1]))}" if gold[1] else texts


def _answers(row: dict[str, Any], location: str) -> _Gold:
    """Return the gold answers of a row: those of the key with most answers; others must agree."""
    keys = _gold_keys(row)
    given = [key for key in keys if not _is_null(row[key])]
    # Only starts: the text of an unanswerable question may be null.
    given = given or [key for key in keys if not _is_null(row.get(GOLD_KEYS[key]))][:1]
    golds = {key: _gold_under(key, row, location) for key in given}
    if row.get("is_impossible") is False:  # then a blank answer means that none is given
        golds = {key: gold for key, gold in golds.items() if gold[0]} or golds
    if not golds:
        return None, ()
    fullest = max(golds, key=lambda key: (len(golds[key][0] or ()), len(golds[key][1])))
    for key, gold in golds.items():
        if not _is_part(gold, golds[fullest]):
            one, other = (_formatted(golds[each]) for each in (fullest, key))
            raise UserError(
                f"{location}: {fullest} and {key} must agree, got {one} and {other}: remove the "
                "wrong one"
            )
    return golds[fullest]


def _gold(row: dict[str, Any], location: str) -> _Gold:
    """Return the gold answers of a row, with ``is_impossible`` taken into account."""
    answers, starts = _answers(row, location)
    impossible = row.get("is_impossible")
    if _is_null(impossible):
        return answers, starts
    if not isinstance(impossible, bool):
        raise wrong_type(impossible, "is_impossible", "true or false", location)
    if not impossible:
        # Answerable, but no answer is given, as in test sets and unfinished annotations.
        return answers or None, starts
    if answers:
        raise UserError(
            f"{location}: answers must be empty if is_impossible is true, got {shown(answers[0])}: "
            "remove one of the two"
        )
    return (), ()


def id_key(row: dict[str, Any]) -> str | None:
    """Return the key of a row's id, None if it has no id."""
    return next((key for key in ID_KEYS if not _is_null(row.get(key))), None)


def ignored_keys(row: dict[str, Any]) -> tuple[str, ...]:
    """Return the keys of a row, and of its answers, that are ignored."""
    golds = _gold_keys(row)
    beside = {"detected_answers", *(GOLD_KEYS[key] for key in golds)} if golds else set()
    ignored = [key for key in row if key not in _READ_KEYS | beside and key not in golds]
    for key in golds:
        for answer in row[key] if isinstance(row[key], list) else [row[key]]:
            inner = answer if isinstance(answer, dict) else ()
            ignored += [f"{key}.{each}" for each in inner if each not in _ANSWER_KEYS]
    return tuple(dict.fromkeys(ignored))


def _identifier(row: dict[str, Any], generated_id: str, location: str) -> str:
    key = id_key(row)
    if key is None:
        return generated_id
    value = row[key]
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if type(value) is int:
        return str(value)
    if not isinstance(value, str):
        raise wrong_type(value, key, "a string or a whole number", location)
    return checked_text(value, key, location)


def row_example(row: Any, generated_id: str, location: str) -> Example:
    """Convert a row to an example; ``generated_id`` is its id if it has none."""
    require_keys(row, ["question", "context"], location)
    answers, starts = _gold(row, location)
    title = row.get("title")
    return Example(
        id=_identifier(row, generated_id, location),
        # As SQuAD's scripts do: its files have questions with leading blanks.
        question=checked_text(row["question"], "question", location).lstrip(),
        context=checked_text(row["context"], "context", location),
        answers=answers,
        answer_starts=starts,
        title=title if isinstance(title, str) else "",  # not checked: it only groups questions
    )


def shared_texts() -> Callable[[Example], Example]:
    """Return a function that replaces an example's texts by the first equal ones it was given.

    This saves memory: a context is repeated for each question, in SQuAD almost five times.
    """
    # A cached identity function returns the first of equal strings.
    first_copy = lru_cache(None)(lambda text: text)

    def share(example: Example) -> Example:
        question, context = first_copy(example.question), first_copy(example.context)
        return replace(example, question=question, context=context, title=first_copy(example.title))

    return share
