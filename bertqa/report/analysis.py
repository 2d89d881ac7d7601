"""Where answers are right and where not: EM and F1 by kind of question, length and place of answer.

EM and F1 of a single question are those of its best gold answer, as in metrics.py.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from bertqa.answering.metrics import question_scores
from bertqa.data.squad import Example

_WORD = re.compile(r"\w+")
# What a question begins with, or has first where it begins otherwise ("In which year ...").
_KINDS = {
    "who": "who", "whom": "who", "whose": "who", "when": "when", "where": "where", "why": "why",
    "which": "which", "what": "what", "how": "how",
}  # fmt: skip
_AMOUNTS = {"many", "much", "long", "far", "old", "often", "large", "tall", "big", "high"}
_LENGTHS = ((1, "1 word"), (2, "2 words"), (4, "3-4 words"), (8, "5-8 words"))
_PLACES = (250, 500, 1000)  # characters


@dataclass(frozen=True)
class Group:
    """Questions that have something in common.

    Attributes:
        by: what they are grouped by.
        name: which of these they are.
        count: how many.
        exact_match, f1: their means, in per cent.
    """

    by: str
    name: str
    count: int
    exact_match: float
    f1: float


def question_kind(question: str) -> str:
    """Its question word; "how many" stands for all amounts; "other" where there is none."""
    words = [word.lower() for word in _WORD.findall(question)]
    for word, following in pairwise([*words, ""]):
        if word == "how" and following in _AMOUNTS:
            return "how many"
        if word in _KINDS:
            return _KINDS[word]
    return "other"


def answer_length(example: Example) -> str:
    """Words of the first gold answer, in steps; "no answer" where the gold is that."""
    if not example.answers:
        return "no answer"
    words = len(example.answers[0].split())
    return next((name for limit, name in _LENGTHS if words <= limit), "9 words or more")


def answer_place(example: Example) -> str:
    """Where in its context the first gold answer begins, in steps of characters."""
    if not example.answer_starts:
        return "no answer"
    start = example.answer_starts[0]
    return next((f"before {end}" for end in _PLACES if start < end), f"from {_PLACES[-1]} on")


_GROUPINGS: dict[str, tuple[Callable[[Example], str], Sequence[str]]] = {
    "question": (lambda example: question_kind(example.question), (*_KINDS.values(), "how many")),
    "length of the answer": (answer_length, tuple(name for _, name in _LENGTHS)),
    "place of the answer, in characters": (answer_place, [f"before {end}" for end in _PLACES]),
}


def breakdown(
    examples: Sequence[Example], predictions: Mapping[str, str], *, v2: bool = False
) -> list[Group]:
    """The figures of every group that has a question.

    Args:
        examples: with gold answers.
        predictions: id to answer; a question without one counts as wrong.
        v2: score by the rules of SQuAD v2.0, where "" is an answer.
    """
    references = {example.id: example.answers or () for example in examples}
    scores = question_scores(predictions, references, v2=v2)
    figures = [scores[example.id] for example in examples]
    groups = []
    for by, (name_of, order) in _GROUPINGS.items():
        members: dict[str, list[tuple[float, float]]] = {name: [] for name in order}
        for example, figure in zip(examples, figures, strict=True):
            members.setdefault(name_of(example), []).append(figure)
        groups += [
            Group(
                by, name, len(found), *(100 * sum(x) / len(found) for x in zip(*found, strict=True))
            )
            for name, found in members.items()
            if found
        ]
    return groups
