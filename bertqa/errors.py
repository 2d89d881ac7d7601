"""The exception for errors that a user can fix, and formatting and reporting of messages."""

import reprlib
from collections.abc import Callable, Iterable
from contextvars import ContextVar
from typing import Any

Say = Callable[[str], object]  # called with each line that a function reports

_repr = reprlib.Repr()
_repr.maxstring = _repr.maxother = 60
_LONGEST = 200  # characters of a library's own message
# How messages write the name of a setting; ``pipeline`` sets another function during its calls.
SPELLING: ContextVar[Callable[[str], str]] = ContextVar("SPELLING", default="--{}".format)


class UserError(ValueError):
    """Bad input: the message says what is wrong, in which file or flag, and what to do.

    Scripts print the message to stderr and exit with code 2. Any other exception is a bug.

    Attributes:
        is_printed_elsewhere: whether another process of the run prints it.
    """

    is_printed_elsewhere = False


def flag(name: str) -> str:
    """Return the name of a setting for a message: the flag, or in ``pipeline`` the keyword."""
    return SPELLING.get()(name)


def ignore(line: str) -> None:
    """Do nothing with a line: the ``Say`` of functions that report nothing."""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return " (did you mean 'x'?)" for the known word most similar to ``word``; "" if none is."""
    import difflib  # late: only for a misspelt word

    near = difflib.get_close_matches(word, known, n=1)
    return "".join(f" (did you mean {each!r}?)" for each in near)


def shown(value: Any) -> str:
    """Format a value for a message: on one line, a long value without its middle."""
    return _repr.repr(value)


def counted(number: int, noun: str) -> str:
    """Format a number and a noun: 1 question, 2 questions."""
    return f"{number:,} {noun}{'s' * (number != 1)}"


def reason(error: Exception) -> str:
    """Return the first sentence of a library's message, on one line, printable and shortened.

    The message may quote the contents of an untrusted file.
    """
    text = " ".join(str(error).split()).split(". ")[0].rstrip(".") or type(error).__name__
    return printable(text if len(text) <= _LONGEST else f"{text[:_LONGEST]}...")


def printable(text: str) -> str:
    """Escape a text that contains control characters or cannot be encoded."""
    return text if text.isprintable() else ascii(text)[1:-1]
