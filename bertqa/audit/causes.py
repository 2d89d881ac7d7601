"""Kinds of dataset faults, their meaning, and what ``--repair`` does about them."""

from enum import Enum


class Cause(str, Enum):
    """Kind of fault.

    Attributes:
        meaning: description for reports.
        repair: what repair.py does about it, "" for nothing.
    """

    meaning: str
    repair: str

    def __new__(cls, name: str, meaning: str, repair: str = "") -> "Cause":
        """Create a member with the value ``name``, which reports show."""
        cause = str.__new__(cls, name)
        cause._value_, cause.meaning, cause.repair = name, meaning, repair
        return cause

    UNREADABLE = "unreadable", "a value of the row has the wrong type or contradicts another"
    DUPLICATE_ID = (
        "duplicate id",
        "an earlier row has the same id",
        "an exact duplicate is removed, another question gets a new id",
    )
    EMPTY = (
        "empty",
        "the question, the context or an answer is empty or blank",
        "a blank answer is removed if there are others",
    )
    NO_GOLD = "no answers given", "there is no gold answer, nor a statement that none exists"
    UNEVEN = (
        "uneven",
        "there are more or fewer answer_starts than answers",
        "starts are searched, if each answer occurs exactly once in the context",
    )
    MISPLACED = (
        "misplaced",
        "the answer is not at its answer_start, but elsewhere in the context",
        "moved, if it occurs exactly once in the context and not inside a token",
    )
    ABSENT = (
        "absent",
        "the answer is not in the context",
        "replaced by text of the context, if that differs only in case, whitespace or Unicode "
        "normalization and occurs exactly once",
    )
    UNANSWERABLE = (
        "unanswerable",
        "there is no answer, but --version_2_with_negative is not set",
    )
    LONG_QUESTION = "question too long", "it has more tokens than fit into a window"
    BLANKS = (
        "blanks", "the answer has leading or trailing whitespace, which the label omits", "stripped"
    )  # fmt: skip
    COMBINING = (
        "combining marks",
        "the answer ends inside a grapheme cluster; the label includes the whole cluster",
    )
    INVISIBLE = (
        "invisible",
        "the answer starts or ends with characters without tokens, which the label omits",
    )
    INSIDE_TOKEN = (
        "inside a token", "the answer ends inside a token; the label includes the whole token"
    )  # fmt: skip
    NO_TOKENS = "no tokens", "no token covers the answer; it is labelled [CLS]"
    CUT = "cut by a window", "no window contains the whole answer; it is labelled [CLS]"
    QUESTION_CUT = "question cut", "--max_query_length truncates it"
    CONFLICT = (
        "conflicting answers", "another row has the same question, but no answer in common"
    )  # fmt: skip


# Training refuses a dataset with these.
REFUSED = frozenset(
    {
        Cause.UNREADABLE, Cause.DUPLICATE_ID, Cause.EMPTY, Cause.NO_GOLD, Cause.UNEVEN,
        Cause.MISPLACED, Cause.ABSENT, Cause.UNANSWERABLE, Cause.LONG_QUESTION,
    }
)  # fmt: skip
