"""Fields of settings and parameters: which values each may have."""

import math
import operator
from collections.abc import Callable, Sequence
from dataclasses import field, fields
from numbers import Real
from typing import Any, get_args

from bertqa.errors import UserError, shown

# Which values a field may have: in words, and a test.
Allowed = tuple[str, Callable[[Any], bool]]
FROM_1: Allowed = ("1 or more", lambda value: 1 <= value < math.inf)
FROM_0: Allowed = ("0 or more", lambda value: 0 <= value < math.inf)
ABOVE_0: Allowed = ("a number above 0", lambda value: 0 < value < math.inf)
BELOW_1: Allowed = ("0 or more, below 1", lambda value: 0 <= value < 1)
UP_TO_1: Allowed = ("a number above 0, and at most 1", lambda value: 0 < value <= 1)
TEMPERATURE: Allowed = ("0.01 to 100", lambda value: 0.01 <= value <= 100)
PROBABILITY: Allowed = ("0 to 1", lambda value: 0 <= value <= 1)
SHARE: Allowed = ("a number above 0, below 1", lambda value: 0 < value < 1)
PER_CENT: Allowed = ("1 to 50 per cent", lambda value: 1 <= value <= 50)


def setting(
    default: Any,
    help: str,
    metavar: str | None = None,
    allowed: Allowed | None = None,
    choices: Sequence[str] | None = None,
) -> Any:
    """A field of settings.

    Args:
        help: what the field is, in the words of ``--help``, which adds the default where the help
            does not speak of one.
        allowed: which values it may have; None is always allowed.
    """
    if choices:
        allowed = " or ".join(choices), choices.__contains__
    about = {"help": help, "metavar": metavar, "choices": choices, "allowed": allowed}
    return field(default=default, metadata=about)


def _is_whole(value: Any) -> bool:
    """Whether a value is a whole number, of Python or numpy."""
    try:
        return not isinstance(value, bool) and operator.index(value) is not None
    except TypeError:
        return False


def whole_number(name: str, value: Any, lowest: int = 1) -> int:
    """A parameter that counts something, as an int.

    Raises:
        UserError: it is no whole number, or a lower one.
    """
    if not _is_whole(value) or value < lowest:
        raise UserError(f"{name} must be a whole number of at least {lowest}, got {shown(value)}")
    if value >= 2**63:  # whole numbers end here for torch
        raise UserError(f"{name} must be less than 2**63, got {shown(value)}")
    return operator.index(value)


def check_kind(name: str, value: Any, kind: type) -> None:
    """Refuse a parameter that is not of its class, such as a dictionary in place of settings.

    Raises:
        UserError: it is not.
    """
    if not isinstance(value, kind):
        raise UserError(f"{name} must be of the class {kind.__name__}, got {shown(value)}")


def true_or_false(name: str, value: Any) -> bool:
    """A parameter that is on or off.

    Raises:
        UserError: it is something else, such as a number.
    """
    if not isinstance(value, bool):
        raise UserError(f"{name} must be True or False, got {shown(value)}")
    return value


def probability(name: str, value: Any) -> float:
    """A parameter from 0 to 1, as a float.

    Raises:
        UserError: it is no number, or one outside of that.
    """
    if isinstance(value, bool) or not isinstance(value, Real) or not 0 <= float(value) <= 1:
        raise UserError(f"{name} must be a number from 0 to 1, got {shown(value)}")
    return float(value)


_ANYTHING: Allowed = ("anything", lambda value: True)
# What a field takes by its type. Flags have it always; in Python anything may be given.
_KINDS: dict[Any, Allowed] = {
    int: ("a whole number", _is_whole),
    float: ("a number", lambda value: isinstance(value, Real) and not isinstance(value, bool)),
    bool: ("True or False", lambda value: isinstance(value, bool)),
}


class Settings:
    """Checks the values of a dataclass's fields, each by itself."""

    def __post_init__(self) -> None:
        for each in fields(self):  # type: ignore[arg-type]
            value, allowed = getattr(self, each.name), each.metadata["allowed"]
            if value is None:
                continue
            needed, is_kind = _KINDS.get((*get_args(each.type), each.type)[0], _ANYTHING)
            if not is_kind(value):
                raise UserError(f"{each.name} must be {needed}, got {shown(value)}")
            if allowed and not allowed[1](value):
                raise UserError(f"--{each.name} {value} is out of range: give {allowed[0]}")
