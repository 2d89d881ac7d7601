"""The causes of faults in a data set: what each means, and what ``--repair`` does about it."""

from enum import Enum


class Cause(str, Enum):
    """What may be wrong with a question.

    Attributes:
        meaning: what a row with this fault has.
        repair: what repair.py does about it, "" for nothing.
    """

    meaning: str
    repair: str

    def __new__(cls, name: str, meaning: str, repair: str = "") -> "Cause":
        """Create a member whose value is ``name``, as reports show it."""
        cause = str.__new__(cls, name)
        cause._value_, cause.meaning, cause.repair = name, meaning, repair
        return cause

    UNREADABLE = "unreadable", "a value of the row is of the wrong kind, or contradicts another"
    DUPLICATE_ID = (
        "duplicate id",
        "the id stands in an earlier row too",
        "an exact repeat is left out, another question gets a new id",
    )
    EMPTY = (
        "empty",
        "the question, the context or an answer is empty or blank",
        "a blank answer beside others is left out",
    )
    NO_GOLD = "no answers given", "the gold is not given, not even that there is no answer"
    UNEVEN = (
        "uneven",
        "there are more or fewer answer_starts than answers",
        "starts are looked for, if each answer stands in the context just once",
    )
    MISPLACED = (
        "misplaced",
        "the answer does not stand at its answer_start, but elsewhere in the context",
        "moved, if it stands in the context just once, and not inside a token",
    )
    ABSENT = (
        "absent",
        "the answer stands nowhere in the context",
        "replaced by the context's own text, if that differs by case, blanks or Unicode form "
        "alone and stands there just once",
    )
    UNANSWERABLE = (
        "unanswerable",
        "there is no answer, but --version_2_with_negative is not given",
    )
    LONG_QUESTION = "question too long", "it has more tokens than a window has room for"
    BLANKS = "blanks", "the answer has blanks at its ends; the label is the rest", "stripped"
    COMBINING = (
        "combining marks",
        "the answer ends inside a grapheme cluster; the label takes it whole",
    )
    INVISIBLE = (
        "invisible",
        "the answer has characters without tokens at its ends; the label is the rest",
    )
    INSIDE_TOKEN = "inside a token", "the answer ends inside a token; the label takes it whole"
    NO_TOKENS = "no tokens", "no token covers any of the answer; it is labelled [CLS]"
    CUT = "cut by a window", "no window holds the whole answer; it is labelled [CLS]"
    QUESTION_CUT = "question cut", "--max_query_length cuts it"
    CONFLICT = (
        "conflicting answers", "another row asks the same, and they have no answer in common"
    )  # fmt: skip


# For these training refuses a data set.
REFUSED = frozenset(
    {
        Cause.UNREADABLE, Cause.DUPLICATE_ID, Cause.EMPTY, Cause.NO_GOLD, Cause.UNEVEN,
        Cause.MISPLACED, Cause.ABSENT, Cause.UNANSWERABLE, Cause.LONG_QUESTION,
    }
)  # fmt: skip
