"""Label windows with their gold answers, and tell what became of each answer on the way.

E  examples      W  windows of the set

The label of an answer is the tokens that share a character with it. Mostly they give back its
text exactly; where they cannot, the cause is kept, counted and listed.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, fields
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
    CUT = 8  # no window holds the whole answer: all are labelled [CLS]


# Those whose label does not give back the answer, and what the reports say of them.
CAUSES = {
    Outcome.BLANKS: "answer has blanks at its ends, label is the rest",
    Outcome.GRAPHEME: "answer ends inside a grapheme cluster, label takes it whole",
    Outcome.INVISIBLE: "answer has invisible characters at its ends, label is the rest",
    Outcome.INSIDE_TOKEN: "answer ends inside a token, label takes it whole",
    Outcome.NO_TOKENS: "answer has no tokens, labelled [CLS]",
    Outcome.CUT: "answer is whole in no window, labelled [CLS]",
}


@dataclass(frozen=True)
class LabelledWindows(WindowSet):
    """Windows with the labels that training and evaluation need; E examples, W windows.

    Attributes:
        start_position, end_position: ``(W,)`` int32, first and last token of the answer, counted in
            the window; both 0, which is [CLS], where the window does not hold the whole answer.
        outcome: ``(E,)`` uint8, an ``Outcome`` for each example.
    """

    start_position: Tensor
    end_position: Tensor
    outcome: Tensor

    def label_of(self, window: int) -> tuple[int, int]:
        """First and last token of the answer in one window; (0, 0) is [CLS]."""
        return int(self.start_position[window]), int(self.end_position[window])


def label_windows(windows: WindowSet, examples: Sequence[Example]) -> LabelledWindows:
    """Label the windows of ``examples`` with their first gold answers."""
    contexts, context_of = windows.contexts, windows.context_of.long()
    answer = answer_tokens(examples, contexts, context_of)
    start, end = _positions(windows, *answer)
    held = torch.zeros(len(examples), dtype=torch.bool)
    held[windows.example[start > 0].long()] = True
    columns = {field.name: getattr(windows, field.name) for field in fields(WindowSet)}
    return LabelledWindows(
        **columns,
        start_position=start.int(),
        end_position=end.int(),
        outcome=outcomes(examples, contexts, context_of, answer, held),
    )


def make_labelled_windows(
    examples: Sequence[Example], tokenizer: BertTokenizer, settings: WindowSettings
) -> LabelledWindows:
    """Cut the windows of ``examples`` and label them.

    Raises:
        UserError: a question is longer than the window allows.
    """
    return label_windows(make_windows(examples, tokenizer, settings), examples)


def _positions(windows: WindowSet, first: Tensor, last: Tensor) -> tuple[Tensor, Tensor]:
    """The label of each window, ``(W,)`` int64 each.

    Args:
        first, last: ``(E,)``, the answer's tokens, counted in the context.
    """
    example = windows.example.long()
    first, last = first[example] - windows.first, last[example] - windows.first
    inside = (first >= 0) & (last >= first) & (last < windows.count)
    context_start = windows.context_starts
    return (
        torch.where(inside, first + context_start, 0),
        torch.where(inside, last + context_start, 0),
    )


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
    """First and last context token that share a character with each answer.

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
