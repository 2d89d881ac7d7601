"""Labels: the tokens of the gold answer in each window, and how well they reproduce the answer.

E  examples      W  windows of the set

The label of an answer is the tokens that overlap it. Usually they reproduce its text exactly;
otherwise the cause is recorded, counted and listed. If there are several gold answers, a window is
labelled with the first that it contains.
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
    """How the label of an example relates to its answer."""

    EXACT = 0  # the label is the answer
    UNANSWERABLE = 1  # SQuAD v2.0: labelled [CLS]
    UNLABELLED = 2  # no gold answer or no answer_start
    BLANKS = 3  # the label omits leading or trailing blanks
    GRAPHEME = 4  # the answer ends inside a grapheme cluster; the label includes all of it
    INVISIBLE = 5  # the label omits leading or trailing characters that no token covers
    INSIDE_TOKEN = 6  # the answer ends inside a token, such as "Japan" in "Japanese"
    NO_TOKENS = 7  # no token covers any of the answer: labelled [CLS]
    CUT = 8  # no window contains a whole answer: all are labelled [CLS]


# The outcomes whose label is not the answer, as described in reports.
CAUSES = {
    Outcome.BLANKS: "answer has blanks at its ends, label omits them",
    Outcome.GRAPHEME: "answer ends inside a grapheme cluster, label includes all of it",
    Outcome.INVISIBLE: "answer has invisible characters at its ends, label omits them",
    Outcome.INSIDE_TOKEN: "answer ends inside a token, label includes all of it",
    Outcome.NO_TOKENS: "answer has no tokens, labelled [CLS]",
    Outcome.CUT: "no window contains the whole answer, labelled [CLS]",
}

_NO_EXAMPLE = Example("", "", "")
FIRST_GOLD = "the first"  # a value of ``label_rule``


@dataclass(frozen=True)
class LabelledWindows(WindowSet):
    """Windows with the labels that training and evaluation need; E examples, W windows.

    Attributes:
        start_position, end_position: ``(W,)`` int32, positions in the window of the answer's first
            and last token; both 0, which is [CLS], if the window contains no whole answer.
        gold: ``(W,)`` int32, index of the gold answer; 0 if there is none.
        outcome: ``(E,)`` uint8, an ``Outcome`` for each example: that of the answer in its first
            labelled window, or of its first answer if no window is labelled.
    """

    start_position: Tensor
    end_position: Tensor
    gold: Tensor
    outcome: Tensor

    def label_of(self, window: int) -> tuple[int, int]:
        """Return the answer's first and last token in one window; (0, 0) is [CLS]."""
        return int(self.start_position[window]), int(self.end_position[window])


def label_windows(windows: WindowSet, examples: Sequence[Example]) -> LabelledWindows:
    """Label each window of ``examples`` with the first gold answer that it fully contains."""
    contexts, context_of = windows.contexts, windows.context_of.long()
    start, end, gold = torch.zeros(3, len(windows), dtype=torch.int64)  # (W,) each
    golds, tokens = [], []  # of the n-th gold answers: E examples with only it; (2, E) tokens
    for n in range(max((len(_golds(example)) for example in examples), default=0) or 1):
        golds.append([only_gold(example, n) for example in examples])
        tokens.append(torch.stack(answer_tokens(golds[n], contexts, context_of)))
        first, last = _positions(windows, *tokens[n])  # (W,) each
        new = (start == 0) & (first > 0)  # (W,)
        start[new], end[new], gold[new] = first[new], last[new], n
    # An example's outcome is that of the answer in its first labelled window.
    number, contained = _first_labelled(windows.example.long(), start > 0, gold, len(examples))
    chosen = [golds[n][i] for i, n in enumerate(number.tolist())]
    first, last = torch.stack(tokens)[number, :, torch.arange(len(examples))].T  # (E,) each
    columns = {field.name: getattr(windows, field.name) for field in fields(WindowSet)}
    return LabelledWindows(
        **columns,
        start_position=start.int(),
        end_position=end.int(),
        gold=gold.int(),
        outcome=outcomes(chosen, contexts, context_of, (first, last), contained),
    )


def _first_labelled(
    example: Tensor, labelled: Tensor, gold: Tensor, examples: int
) -> tuple[Tensor, Tensor]:
    """Return the gold answer in each example's first labelled window, and whether there is one.

    The arguments are ``(W,)``, the results ``(E,)``.
    """
    found, none = labelled.nonzero().flatten(), len(labelled)
    first = torch.full((examples,), none).scatter_reduce(0, example[found], found, "amin")  # (E,)
    contained = first < none
    number = torch.zeros(examples, dtype=torch.int64)
    number[contained] = gold[first[contained]]
    return number, contained


def make_labelled_windows(
    examples: Sequence[Example], tokenizer: BertTokenizer, settings: WindowSettings
) -> LabelledWindows:
    """Cut ``examples`` into windows and label them.

    Raises:
        UserError: a question is too long for the windows.
    """
    return label_windows(make_windows(examples, tokenizer, settings), examples)


def label_rule(windows: LabelledWindows) -> str:
    """Return which gold answer labels the windows, for run.json.

    Older versions used only the first gold answer.
    """
    return "the first that a window holds" if windows.gold.any() else FIRST_GOLD


def _golds(example: Example) -> list[tuple[str, int]]:
    """Return the gold answers and their starts; only the first if all are at one position."""
    pairs = [*zip(example.answers or (), example.answer_starts, strict=False)]
    return pairs if len(example.positions) > 1 else pairs[:1]


def only_gold(example: Example, number: int) -> Example:
    """Return an example with only one of its gold answers, or without any if it has fewer."""
    golds = _golds(example)
    if number < len(golds) > 1:
        text, start = golds[number]
        return replace(example, answers=(text,), answer_starts=(start,))
    return _NO_EXAMPLE if number else example


def _positions(windows: WindowSet, first: Tensor, last: Tensor) -> tuple[Tensor, Tensor]:
    """Return start and end position of each window's label, ``(W,)`` int64 each.

    Args:
        windows: the windows.
        first, last: ``(E,)``, positions of the answer's tokens in the context.
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
    """Return the text of a window's label: a slice of the context, "" for [CLS]."""
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
    """Return the first and last context token that overlap each example's first answer.

    Common implementations search for the tokens of the answer's first and last character, and fail
    if no token covers one of them: a blank, a dropped accent, a control character.

    Returns:
        Two tensors ``(E,)`` int64, positions in the context; last < first if no token overlaps.
    """
    ends = torch.tensor([_trimmed(e) for e in examples], dtype=torch.int64)
    start, end = ends.view(-1, 2).unbind(dim=1)
    # Search all contexts at once: a key is (context, character), with the context in the high bits.
    scale = 1 << 32
    row = torch.arange(len(contexts.lengths)).repeat_interleave(contexts.lengths)
    first = torch.searchsorted(row * scale + contexts.ends, context_of * scale + start, right=True)
    last = torch.searchsorted(row * scale + contexts.starts, context_of * scale + end) - 1
    bounds = contexts.bounds[context_of]
    nothing = end <= start
    return (first - bounds).masked_fill(nothing, 0), (last - bounds).masked_fill(nothing, -1)


def _trimmed(example: Example) -> tuple[int, int]:
    """Return the bounds of the first gold answer in the context, without surrounding blanks."""
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
    contained: Tensor,
) -> Tensor:
    """Return an ``Outcome`` for each example, ``(E,)`` uint8.

    Args:
        examples: the examples; only the first gold answer is considered.
        contexts, context_of: see ``WindowSet``.
        tokens: result of ``answer_tokens``.
        contained: ``(E,)`` bool, whether some window contains the whole answer.
    """
    first, last = tokens
    covered = last >= first
    rows = contexts.bounds[context_of]
    start, end = torch.zeros_like(first), torch.zeros_like(first)
    start[covered] = contexts.starts[(rows + first)[covered]].long()
    end[covered] = contexts.ends[(rows + last)[covered]].long()
    found = zip(
        examples, covered.tolist(), contained.tolist(), start.tolist(), end.tolist(), strict=True
    )
    return torch.tensor([_outcome(*row) for row in found], dtype=torch.uint8)


def _outcome(example: Example, covered: bool, contained: bool, start: int, end: int) -> Outcome:
    if example.is_impossible:
        return Outcome.UNANSWERABLE
    if not example.answers or not example.answer_starts:
        return Outcome.UNLABELLED
    if not covered:
        return Outcome.NO_TOKENS
    return _compare(example, example.answers[0], start, end) if contained else Outcome.CUT


def _compare(example: Example, answer: str, start: int, end: int) -> Outcome:
    """Compare the answer with the label, ``context[start:end]`` in whole grapheme clusters."""
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
    """Report of the labels of a dataset.

    Attributes:
        counts: number of examples by outcome.
        listed: ids of the examples whose label is not their answer, by outcome.
        cut_questions: ids of the truncated questions.
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
                sample = [*map(visible, ids[:3]), *["..."] * (len(ids) > 3)]
                lines.append(f"  {cause}: {len(ids)} ({', '.join(sample)})")
        return "\n".join(lines)


def label_report(examples: Sequence[Example], windows: LabelledWindows) -> LabelReport:
    """Count and list all labels that are not their answer, by cause."""
    outcome = windows.outcome
    listed: dict[Outcome, list[str]] = {cause: [] for cause in CAUSES}
    for i in (outcome >= Outcome.BLANKS).nonzero().flatten().tolist():
        listed[Outcome(int(outcome[i]))].append(examples[i].id)
    return LabelReport(
        counts=Counter(Outcome(value) for value in outcome.tolist()),
        listed={cause: ids for cause, ids in listed.items() if ids},
        cut_questions=[examples[i].id for i in windows.cut_questions.nonzero().flatten().tolist()],
    )
