"""Error analysis: EM and F1 by question word, answer length and answer position.

EM and F1 of a question are the maximum over its gold answers, as in metrics.py.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch

from bertqa.answering.metrics import question_scores
from bertqa.data.squad import Example

_WORD = re.compile(r"\w+")
# Question words; the first one of a question counts, as in "In which year ...".
_KINDS = {
    "who": "who", "whom": "who", "whose": "who", "when": "when", "where": "where", "why": "why",
    "which": "which", "what": "what", "how": "how",
}  # fmt: skip
_AMOUNTS = {"many", "much", "long", "far", "old", "often", "large", "tall", "big", "high"}
_LENGTHS = ((1, "1 word"), (2, "2 words"), (4, "3-4 words"), (8, "5-8 words"))
_POSITIONS = (250, 500, 1000)  # characters
_RESAMPLES = 1000


@dataclass(frozen=True)
class Group:
    """Questions of one group.

    Attributes:
        by: the grouping, such as "question".
        name: the group, such as "who".
        count: number of questions.
        exact_match, f1: means over the questions, in percent.
    """

    by: str
    name: str
    count: int
    exact_match: float
    f1: float


def question_kind(question: str) -> str:
    """Return the question word; "how many" for all amounts, "other" if there is none."""
    words = [word.lower() for word in _WORD.findall(question)]
    for word, following in pairwise([*words, ""]):
        if word == "how" and following in _AMOUNTS:
            return "how many"
        if word in _KINDS:
            return _KINDS[word]
    return "other"


def answer_length(example: Example) -> str:
    """Return the bin of the first gold answer's length in words, or "no answer"."""
    if not example.answers:
        return "no answer"
    words = len(example.answers[0].split())
    return next((name for limit, name in _LENGTHS if words <= limit), "9 words or more")


def answer_position(example: Example) -> str:
    """Return the bin of the first gold answer's start in characters, or "no answer"."""
    if not example.answer_starts:
        return "no answer"
    start = example.answer_starts[0]
    return next((f"before {end}" for end in _POSITIONS if start < end), f"from {_POSITIONS[-1]} on")


_GROUPINGS: dict[str, tuple[Callable[[Example], str], Sequence[str]]] = {
    "question": (lambda example: question_kind(example.question), (*_KINDS.values(), "how many")),
    "length of the answer": (answer_length, tuple(name for _, name in _LENGTHS)),
    "position of the answer, in characters": (
        answer_position,
        [f"before {end}" for end in _POSITIONS],
    ),
}


def breakdown(
    examples: Sequence[Example], predictions: Mapping[str, str], *, v2: bool = False
) -> list[Group]:
    """Return EM and F1 of every group that is not empty.

    Args:
        examples: with gold answers.
        predictions: id to answer; a question without one counts as wrong.
        v2: score as in SQuAD v2.0, where "" is an answer.
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


def bootstrap_interval(values: Sequence[float]) -> tuple[float, float]:
    """Return the 95 % confidence interval of a mean, by the percentile bootstrap (Efron 1979).

    It covers the choice of the questions, not that of the training's seed. The resamples are the
    same at every call.
    """
    given, generator = torch.tensor(values, dtype=torch.float64), torch.Generator().manual_seed(0)
    means = torch.stack([
        given[torch.randint(len(given), given.shape, generator=generator)].mean()
        for _ in range(_RESAMPLES)
    ])  # fmt: skip
    low, high = means.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return low, high
