"""Validation of settings and parameters."""

import math
import operator
from collections.abc import Callable, Sequence
from dataclasses import field, fields
from numbers import Real
from typing import Any, get_args

from bertqa.errors import UserError, flag, shown

# The allowed values of a field: "must be ..." in messages, and a test.
Allowed = tuple[str, Callable[[Any], bool]]
FROM_1: Allowed = ("at least 1", lambda value: 1 <= value < math.inf)
FROM_0: Allowed = ("in [0, inf)", lambda value: 0 <= value < math.inf)
ABOVE_0: Allowed = ("in (0, inf)", lambda value: 0 < value < math.inf)
BELOW_1: Allowed = ("in [0, 1)", lambda value: 0 <= value < 1)
UP_TO_1: Allowed = ("in (0, 1]", lambda value: 0 < value <= 1)
TEMPERATURE: Allowed = ("in [0.01, 100]", lambda value: 0.01 <= value <= 100)
NOT_NAN: Allowed = ("a number", lambda value: not math.isnan(value))
PROBABILITY: Allowed = ("in [0, 1]", lambda value: 0 <= value <= 1)
SHARE: Allowed = ("in (0, 1)", lambda value: 0 < value < 1)
PER_CENT: Allowed = ("from 1 to 50", lambda value: 1 <= value <= 50)


def setting(
    default: Any,
    help: str,
    metavar: str | None = None,
    allowed: Allowed | None = None,
    choices: Sequence[str] | None = None,
) -> Any:
    """Return a dataclass field of settings.

    Args:
        default: default value.
        help: text for ``--help``, which adds the default if the text does not mention one.
        metavar: name of the value in ``--help``.
        allowed: allowed values; None is allowed if the type of the field includes it.
        choices: allowed strings.
    """
    if choices:
        allowed = " or ".join(choices), choices.__contains__
    about = {"help": help, "metavar": metavar, "choices": choices, "allowed": allowed}
    return field(default=default, metadata=about)


def _is_whole(value: Any) -> bool:
    """Return whether a value is a whole number, of Python or numpy."""
    try:
        return not isinstance(value, bool) and operator.index(value) is not None
    except TypeError:
        return False


def whole_number(name: str, value: Any, lowest: int = 1) -> int:
    """Return a parameter as an int.

    Raises:
        UserError: it is not a whole number of at least ``lowest``.
    """
    if not _is_whole(value) or value < lowest:
        raise UserError(f"{name} must be a whole number of at least {lowest}, got {shown(value)}")
    if value >= 2**63:  # larger than torch's int64
        raise UserError(f"{name} must be less than 2**63, got {shown(value)}")
    return operator.index(value)


def check_kind(name: str, value: Any, kind: type) -> None:
    """Check the class of a parameter.

    Raises:
        UserError: it has another class, such as a dictionary instead of settings.
    """
    if not isinstance(value, kind):
        raise UserError(f"{name} must be of the class {kind.__name__}, got {shown(value)}")


def true_or_false(name: str, value: Any) -> bool:
    """Return a parameter that must be a bool.

    Raises:
        UserError: it is something else, such as a number.
    """
    if not isinstance(value, bool):
        raise UserError(f"{name} must be True or False, got {shown(value)}")
    return value


def probability(name: str, value: Any) -> float:
    """Return a parameter from 0 to 1 as a float.

    Raises:
        UserError: it is not a number from 0 to 1.
    """
    if isinstance(value, bool) or not isinstance(value, Real) or not 0 <= float(value) <= 1:
        raise UserError(f"{name} must be a number from 0 to 1, got {shown(value)}")
    return float(value)


_ANYTHING: Allowed = ("anything", lambda value: True)
# The allowed values of each type, for calls from Python; flags are already converted.
_KINDS: dict[Any, Allowed] = {
    int: ("a whole number", _is_whole),
    float: ("a number", lambda value: isinstance(value, Real) and not isinstance(value, bool)),
    bool: ("True or False", lambda value: isinstance(value, bool)),
}


class Settings:
    """Base class that checks the value of each field of a dataclass."""

    def __post_init__(self) -> None:
        for each in fields(self):  # type: ignore[arg-type]
            value, allowed = getattr(self, each.name), each.metadata["allowed"]
            if value is None and type(None) in get_args(each.type):
                continue
            needed, is_kind = _KINDS.get((*get_args(each.type), each.type)[0], _ANYTHING)
            if not is_kind(value):
                raise UserError(f"{each.name} must be {needed}, got {shown(value)}")
            if allowed and not allowed[1](value):
                raise UserError(f"{flag(each.name)} must be {allowed[0]}, got {value}")
