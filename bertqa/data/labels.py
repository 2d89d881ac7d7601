"""Label windows with their gold answers, and tell what became of each answer on the way.

E  examples      G  gold answers of all examples, at least one row each      W  windows of the set

The label of an answer is the tokens that share a character with it. Mostly they give back its
text exactly; where they cannot, the cause is kept, counted and listed. Of several gold answers a
window is labelled with the first that it holds.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from enum import IntEnum

import torch
from torch import Tensor

from bertqa.data.graphemes import snap_to_graphemes
from bertqa.data.squad import Example
from bertqa.data.text import visible
from bertqa.data.tokenization import BertTokenizer, TokenTable
from bertqa.data.windows import WindowSet, make_windows
from bertqa.errors import counted
from bertqa.settings import WindowSettings


class Outcome(IntEnum):
    """What became of an example's answer as a label."""

    EXACT = 0  # the label gives back the answer's text
    UNANSWERABLE = 1  # SQuAD v2.0: labelled [CLS]
    UNLABELLED = 2  # no gold answer is known, or not where it stands
    BLANKS = 3  # the answer has leading or trailing blanks; the label is the rest
    GRAPHEME = 4  # the answer ends inside a grapheme cluster; the label takes it whole
    INVISIBLE = 5  # characters that no token covers at the answer's ends are not in the label
    INSIDE_TOKEN = 6  # the answer ends inside a token, such as "Japan" in "Japanese"
    NO_TOKENS = 7  # no token covers any of the answer: labelled [CLS]
    CUT = 8  # no window holds a whole answer: all are labelled [CLS]


# Those whose label does not give back the answer, and what the reports say of them.
CAUSES = {
    Outcome.BLANKS: "answer has blanks at its ends, label is the rest",
    Outcome.GRAPHEME: "answer ends inside a grapheme cluster, label takes it whole",
    Outcome.INVISIBLE: "answer has invisible characters at its ends, label is the rest",
    Outcome.INSIDE_TOKEN: "answer ends inside a token, label takes it whole",
    Outcome.NO_TOKENS: "answer has no tokens, labelled [CLS]",
    Outcome.CUT: "answer is whole in no window, labelled [CLS]",
}

FIRST_GOLD = "the first"  # of the gold answers of a question, see ``label_rule``


@dataclass(frozen=True)
class LabelledWindows(WindowSet):
    """Windows with the labels that training and evaluation need; E examples, W windows.

    Attributes:
        start_position, end_position: ``(W,)`` int32, first and last token of the answer, counted in
            the window; both 0, which is [CLS], where the window holds no whole answer.
        outcome: ``(E,)`` uint8, an ``Outcome`` for each example.
        gold: ``(E,)`` int32, which of its answers the outcome is of: the one in its first window
            that has a label, or else its first.
    """

    start_position: Tensor
    end_position: Tensor
    outcome: Tensor
    gold: Tensor

    def label_of(self, window: int) -> tuple[int, int]:
        """First and last token of the answer in one window; (0, 0) is [CLS]."""
        return int(self.start_position[window]), int(self.end_position[window])


def label_windows(windows: WindowSet, examples: Sequence[Example]) -> LabelledWindows:
    """Label each window of ``examples`` with the first gold answer that it holds whole."""
    contexts, context_of = windows.contexts, windows.context_of.long()
    golds, owner = _one_by_one(examples)
    first, last = answer_tokens(golds, contexts, context_of[owner])
    labelled, gold = _first_held(windows, owner, first, last)

    begin = (windows.context_starts - windows.first).long()[labelled]
    start, end = torch.zeros(2, len(windows), dtype=torch.int32)
    start[labelled] = (first[gold] + begin).int()
    end[labelled] = (last[gold] + begin).int()

    gold_of = torch.searchsorted(owner, torch.arange(len(examples)))  # its first one
    held, where = _first_of_each(windows.example[labelled].long())
    gold_of[held] = gold[where]
    is_held = torch.zeros(len(examples), dtype=torch.bool)
    is_held[held] = True
    told = [golds[i] for i in gold_of.tolist()]
    tokens = first[gold_of], last[gold_of]
    columns = {field.name: getattr(windows, field.name) for field in fields(WindowSet)}
    return LabelledWindows(
        **columns,
        start_position=start,
        end_position=end,
        outcome=outcomes(told, contexts, context_of, tokens, is_held),
        gold=(gold_of - torch.searchsorted(owner, owner[gold_of])).int(),
    )


def make_labelled_windows(
    examples: Sequence[Example], tokenizer: BertTokenizer, settings: WindowSettings
) -> LabelledWindows:
    """Cut the windows of ``examples`` and label them.

    Raises:
        UserError: a question is longer than the window allows.
    """
    return label_windows(make_windows(examples, tokenizer, settings), examples)


def label_rule(examples: Sequence[Example]) -> str:
    """Which gold answer labels a window of ``examples``, as a run remembers it.

    Older versions took the first alone, which is the same where a question has one position.
    """
    several = any(len(example.positions) > 1 for example in examples)
    return "the first that a window holds" if several else FIRST_GOLD


def _one_by_one(examples: Sequence[Example]) -> tuple[list[Example], Tensor]:
    """Each example once for each of its gold answers, with that one alone; ``(G,)`` whose it is."""
    golds: list[Example] = []
    owner: list[int] = []
    for number, example in enumerate(examples):
        each = [example]
        if len(example.positions) > 1:
            pairs = zip(example.answers or (), example.answer_starts, strict=False)
            each = [replace(example, answers=(t,), answer_starts=(start,)) for t, start in pairs]
        golds += each
        owner += [number] * len(each)
    return golds, torch.tensor(owner, dtype=torch.int64)


def _first_held(
    windows: WindowSet, owner: Tensor, first: Tensor, last: Tensor
) -> tuple[Tensor, Tensor]:
    """The windows that hold an answer whole, and the first answer that each of them holds.

    Args:
        owner: ``(G,)``, whose each answer is.
        first, last: ``(G,)``, its tokens, counted in the context.
    """
    # All pairs of a window and an answer of its example, in the order of windows, then of answers.
    example = windows.example.long()
    bounds = torch.searchsorted(owner, torch.stack([example, example + 1]))
    answers = bounds[1] - bounds[0]
    window = torch.arange(len(example)).repeat_interleave(answers)
    gold = torch.arange(len(window)) + (bounds[1] - answers.cumsum(0))[window]
    inside = first[gold] >= windows.first[window]
    inside &= last[gold] >= first[gold]
    inside &= last[gold] < (windows.first + windows.count)[window]
    window, gold = window[inside], gold[inside]
    labelled, where = _first_of_each(window)
    return labelled, gold[where]


def _first_of_each(sorted_values: Tensor) -> tuple[Tensor, Tensor]:
    """The distinct values of a sorted tensor, and where each begins."""
    values, counts = torch.unique_consecutive(sorted_values, return_counts=True)
    return values, counts.cumsum(0) - counts


def label_text(windows: LabelledWindows, window: int, context: str) -> str:
    """What the label of a window says: a slice of the context, "" for [CLS]."""
    start, end = windows.label_of(window)
    if start == 0:
        return ""
    offsets = windows[window].offsets
    first, last = offsets[start], offsets[end]
    assert first is not None and last is not None
    return context[slice(*snap_to_graphemes(context, first[0], last[1]))]


def answer_tokens(
    examples: Sequence[Example], contexts: TokenTable, context_of: Tensor
) -> tuple[Tensor, Tensor]:
    """First and last context token that share a character with each example's first answer.

    Well-known code looks for the tokens at which the answer's first and last character stand, and
    goes wrong where none does: a blank, a dropped accent, a control character. To overlap is what
    is meant.

    Returns:
        Two tensors ``(E,)`` int64, counted in the context; where no token does, last < first.
    """
    ends = torch.tensor([_trimmed(e) for e in examples], dtype=torch.int64)
    start, end = ends.view(-1, 2).unbind(dim=1)
    # All contexts are searched at once: in a key, the context weighs more than the character.
    scale = 1 << 32
    row = torch.arange(len(contexts.lengths)).repeat_interleave(contexts.lengths)
    first = torch.searchsorted(row * scale + contexts.ends, context_of * scale + start, right=True)
    last = torch.searchsorted(row * scale + contexts.starts, context_of * scale + end) - 1
    bounds = contexts.bounds[context_of]
    nothing = end <= start
    return (first - bounds).masked_fill(nothing, 0), (last - bounds).masked_fill(nothing, -1)


def _trimmed(example: Example) -> tuple[int, int]:
    """The first gold answer as a slice of the context, without blanks at its ends."""
    if not example.answers or not example.answer_starts:
        return 0, 0
    text, start = example.answers[0], example.answer_starts[0]
    blanks = len(text) - len(text.lstrip())
    return start + blanks, start + max(blanks, len(text.rstrip()))


def outcomes(
    examples: Sequence[Example],
    contexts: TokenTable,
    context_of: Tensor,
    tokens: tuple[Tensor, Tensor],
    held: Tensor,
) -> Tensor:
    """An ``Outcome`` for each example, ``(E,)`` uint8.

    Args:
        tokens: what ``answer_tokens`` gave.
        held: ``(E,)`` bool, whether some window holds the whole answer.
    """
    first, last = tokens
    covered = last >= first
    rows = contexts.bounds[context_of]
    start, end = torch.zeros_like(first), torch.zeros_like(first)
    start[covered] = contexts.starts[(rows + first)[covered]].long()
    end[covered] = contexts.ends[(rows + last)[covered]].long()
    found = zip(
        examples, covered.tolist(), held.tolist(), start.tolist(), end.tolist(), strict=True
    )
    return torch.tensor([_outcome(*row) for row in found], dtype=torch.uint8)


def _outcome(example: Example, covered: bool, held: bool, start: int, end: int) -> Outcome:
    if example.is_impossible:
        return Outcome.UNANSWERABLE
    if not example.answers or not example.answer_starts:
        return Outcome.UNLABELLED
    if not covered:
        return Outcome.NO_TOKENS
    return _compare(example, example.answers[0], start, end) if held else Outcome.CUT


def _compare(example: Example, answer: str, start: int, end: int) -> Outcome:
    """Whether the label, ``context[start:end]`` in whole characters, is the answer; if not, why."""
    context = example.context
    label = context[slice(*snap_to_graphemes(context, start, end))]
    if label == answer:
        return Outcome.EXACT
    if label == answer.strip():
        return Outcome.BLANKS
    trimmed = _trimmed(example)
    if snap_to_graphemes(context, *trimmed) != trimmed:
        return Outcome.GRAPHEME
    if trimmed[0] <= start and end <= trimmed[1]:
        return Outcome.INVISIBLE
    return Outcome.INSIDE_TOKEN


@dataclass(frozen=True)
class LabelReport:
    """How the answers of a data set fared as labels.

    Attributes:
        counts: examples of each outcome.
        listed: ids of the examples whose label does not give back their answer, by outcome.
        cut_questions: ids of the questions that were cut to fit.
    """

    counts: Counter[Outcome]
    listed: dict[Outcome, list[str]]
    cut_questions: list[str]

    def __str__(self) -> str:
        exact = counted(self.counts[Outcome.EXACT], "answer")
        lines = [f"{counted(self.counts.total(), 'example')}, {exact} labelled exactly"]
        if self.counts[Outcome.UNANSWERABLE]:
            lines.append(f"  unanswerable, labelled [CLS]: {self.counts[Outcome.UNANSWERABLE]}")
        named = [(CAUSES[outcome], ids) for outcome, ids in self.listed.items()]
        for cause, ids in [*named, ("question cut", self.cut_questions)]:
            if ids:
                some = [*map(visible, ids[:3]), *["..."] * (len(ids) > 3)]
                lines.append(f"  {cause}: {len(ids)} ({', '.join(some)})")
        return "\n".join(lines)


def label_report(
    examples: Sequence[Example], outcome: Tensor, cut_questions: Tensor
) -> LabelReport:
    """Count and list by cause every label that does not give back its answer.

    Args:
        outcome: ``(E,)``, from ``outcomes``.
        cut_questions: ``(E,)``, tokens that each question lost.
    """
    listed: dict[Outcome, list[str]] = {cause: [] for cause in CAUSES}
    for i in (outcome >= Outcome.BLANKS).nonzero().flatten().tolist():
        listed[Outcome(int(outcome[i]))].append(examples[i].id)
    return LabelReport(
        counts=Counter(Outcome(value) for value in outcome.tolist()),
        listed={cause: ids for cause, ids in listed.items() if ids},
        cut_questions=[examples[i].id for i in cut_questions.nonzero().flatten().tolist()],
    )
