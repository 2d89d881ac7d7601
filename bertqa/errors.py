"""The one exception for what a user can mend: a file, a flag, a value."""

import reprlib
from typing import Any

_repr = reprlib.Repr()
_repr.maxstring = _repr.maxother = 60


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
