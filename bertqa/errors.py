"""The one exception for what a user can mend: a file, a flag, a value."""

import reprlib
from typing import Any

_repr = reprlib.Repr()
_repr.maxstring = _repr.maxother = 60
_LONGEST = 200  # characters of a library's own message


class UserError(ValueError):
    """Bad input, said in one sentence: what is wrong, where it stands, and what to do.

    Raised where the fault is found; the scripts turn it into that sentence on stderr and
    exit code 2. Anything else that is raised is a defect of this program.

    Attributes:
        is_said: another process of the run has said it already.
    """

    is_said = False


def shown(value: Any) -> str:
    """A value as a message shows it: on one line, a long one with its middle cut out."""
    return _repr.repr(value)


def counted(number: int, noun: str) -> str:
    """A number and what it counts: 1 question, 2 questions."""
    return f"{number:,} {noun}{'s' * (number != 1)}"


def reason(error: Exception) -> str:
    """The first sentence of a library's message, on one line, printable, and not too long.

    It may repeat what is in a file, which may be anything.
    """
    text = " ".join(str(error).split()).split(". ")[0].rstrip(".") or type(error).__name__
    return printable(text if len(text) <= _LONGEST else f"{text[:_LONGEST]}...")


def printable(text: str) -> str:
    """The text with escapes where a terminal would obey or a pipe refuse a character."""
    return text if text.isprintable() else ascii(text)[1:-1]
