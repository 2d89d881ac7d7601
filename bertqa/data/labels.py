"""Label windows with their gold answers, and tell what became of each answer on the way.

E  examples      W  windows of the set

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

_NOTHING = Example("", "", "")
FIRST_GOLD = "the first"  # of the gold answers of a question, see ``label_rule``


@dataclass(frozen=True)
class LabelledWindows(WindowSet):
    """Windows with the labels that training and evaluation need; E examples, W windows.

    Attributes:
        start_position, end_position: ``(W,)`` int32, first and last token of the answer, counted in
            the window; both 0, which is [CLS], where the window holds no whole answer.
        gold: ``(W,)`` int32, which of the gold answers it is; 0 where there is no label, too.
        outcome: ``(E,)`` uint8, an ``Outcome`` for each example: of the answer in the first window
            that has a label, or else of its first answer.
    """

    start_position: Tensor
    end_position: Tensor
    gold: Tensor
    outcome: Tensor

    def label_of(self, window: int) -> tuple[int, int]:
        """First and last token of the answer in one window; (0, 0) is [CLS]."""
        return int(self.start_position[window]), int(self.end_position[window])


def label_windows(windows: WindowSet, examples: Sequence[Example]) -> LabelledWindows:
    """Label each window of ``examples`` with the first gold answer that it holds whole."""
    contexts, context_of = windows.contexts, windows.context_of.long()
    start, end, number = torch.zeros(3, len(windows), dtype=torch.int64)
    golds, tokens = [], []
    for n in range(max((len(_golds(example)) for example in examples), default=0) or 1):
        golds.append([only_gold(example, n) for example in examples])
        tokens.append(torch.stack(answer_tokens(golds[n], contexts, context_of)))
        first, last = _positions(windows, *tokens[n])
        new = (start == 0) & (first > 0)
        start[new], end[new], number[new] = first[new], last[new], n
    # The first labelled window of each example, whose answer the outcome is of.
    labelled = start > 0
    owner, count = torch.unique_consecutive(windows.example[labelled].long(), return_counts=True)
    gold, held = torch.zeros(2, len(examples), dtype=torch.int64)
    gold[owner], held[owner] = number[labelled][count.cumsum(0) - count], 1
    told = [golds[n][i] for i, n in enumerate(gold.tolist())]
    first, last = torch.stack(tokens)[gold, :, torch.arange(len(examples))].T
    columns = {field.name: getattr(windows, field.name) for field in fields(WindowSet)}
    return LabelledWindows(
        **columns,
        start_position=start.int(),
        end_position=end.int(),
        gold=number.int(),
        outcome=outcomes(told, contexts, context_of, (first, last), held.bool()),
    )


def make_labelled_windows(
    examples: Sequence[Example], tokenizer: BertTokenizer, settings: WindowSettings
) -> LabelledWindows:
    """Cut the windows of ``examples`` and label them.

    Raises:
        UserError: a question is longer than the window allows.
    """
    return label_windows(make_windows(examples, tokenizer, settings), examples)


def label_rule(windows: LabelledWindows) -> str:
    """Which gold answer labels the windows, as a run remembers it.

    Older versions took the first alone, whichever a window holds.
    """
    return "the first that a window holds" if windows.gold.any() else FIRST_GOLD


def _golds(example: Example) -> list[tuple[str, int]]:
    """The gold answers with their starts, of those at one position the first alone."""
    pairs = [*zip(example.answers or (), example.answer_starts, strict=False)]
    return pairs if len(example.positions) > 1 else pairs[:1]


def only_gold(example: Example, number: int) -> Example:
    """The example with one of its gold answers alone; one without any where it has fewer."""
    golds = _golds(example)
    if number < len(golds) > 1:
        text, start = golds[number]
        return replace(example, answers=(text,), answer_starts=(start,))
    return _NOTHING if number else example


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
        total, unanswerable = self.counts.total(), self.counts[Outcome.UNANSWERABLE]
        exact = f", {counted(self.counts[Outcome.EXACT], 'answer')} labelled exactly"
        lines = [counted(total, "example") + exact * (unanswerable < total)]
        if unanswerable:
            lines.append(f"  unanswerable, labelled [CLS]: {unanswerable}")
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
