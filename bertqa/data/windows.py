"""Tokenise examples and cut them into windows, the sequences that the model sees.

A window is ``[CLS] question [SEP] piece of context [SEP]``. A context that is too long for one
window is cut into several, each of which repeats the last ``doc_stride`` context tokens of the one
before (run_qa's meaning of the word; in Google's script it is the step from window to window).

E  examples      W  windows      C  distinct contexts      L  tokens of one window

Each distinct context and each question is tokenised once and kept once; a window is only a few
numbers that say which question and which piece of which context it joins. Training, evaluation and
answering use the same windows; labels.py adds the labels that training needs.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from bertqa.data.squad import Example
from bertqa.data.tokenization import BertTokenizer, TokenTable
from bertqa.errors import UserError
from bertqa.settings import SPECIAL_TOKENS, WindowSettings


@dataclass(frozen=True)
class Window:
    """One window, to look at.

    Attributes:
        example: index of its example.
        input_ids, token_type_ids: ``L`` numbers each.
        offsets: for each token the slice of the context it covers, None outside the context.
    """

    example: int
    input_ids: list[int]
    token_type_ids: list[int]
    offsets: list[tuple[int, int] | None]


@dataclass(frozen=True)
class WindowSet:
    """All windows of a list of examples, as flat arrays.

    Attributes:
        questions: tokens of the E questions, as far as they go into a window.
        contexts: tokens of the distinct contexts.
        context_of: ``(E,)``, the row of ``contexts`` of each example.
        example: ``(W,)``, whose window it is; windows of an example stand together, in order.
        first: ``(W,)``, the first context token of the window, counted in its context.
        count: ``(W,)``, context tokens in the window.
        cut_questions: ``(E,)``, tokens that ``max_query_length`` cut off each question.
        cls_id, sep_id: the special tokens that frame question and context.
    """

    questions: TokenTable
    contexts: TokenTable
    context_of: Tensor
    example: Tensor
    first: Tensor
    count: Tensor
    cut_questions: Tensor
    cls_id: int
    sep_id: int

    def __len__(self) -> int:
        return len(self.example)

    @cached_property
    def question_lengths(self) -> Tensor:
        """``(W,)``, question tokens in each window."""
        return self.questions.lengths[self.example]

    @cached_property
    def lengths(self) -> Tensor:
        """``(W,)``, tokens of each window, the special ones included."""
        return self.question_lengths + self.count + SPECIAL_TOKENS

    @cached_property
    def context_starts(self) -> Tensor:
        """``(W,)``, where in each window the context begins: after [CLS] question [SEP]."""
        return self.question_lengths + 2

    def of_examples(self, first: int, last: int) -> tuple[int, int]:
        """The windows of examples ``first`` to ``last - 1``, as a range of windows."""
        bounds = torch.searchsorted(self.example, torch.tensor([first, last], dtype=torch.int32))
        return int(bounds[0]), int(bounds[1])

    def __getitem__(self, window: int) -> Window:
        """One window with everything spelled out; for showing, not for speed."""
        example = int(self.example[window])
        context_start, count = int(self.context_starts[window]), int(self.count[window])
        start = int(self.contexts.bounds[int(self.context_of[example])]) + int(self.first[window])
        rows = slice(start, start + count)
        question = self.questions.ids[self.questions.rows(example)].tolist()
        context = self.contexts.ids[rows].tolist()
        spans = torch.stack([self.contexts.starts[rows], self.contexts.ends[rows]], dim=1).tolist()
        return Window(
            example=example,
            input_ids=[self.cls_id, *question, self.sep_id, *context, self.sep_id],
            token_type_ids=[0] * context_start + [1] * (count + 1),
            offsets=[*[None] * context_start, *map(tuple, spans), None],
        )


def make_windows(
    examples: Sequence[Example], tokenizer: BertTokenizer, settings: WindowSettings
) -> WindowSet:
    """Cut the windows of ``examples``.

    The windows equal, token for token, those of transformers' tokenizer with
    ``truncation="only_second"``, ``stride`` and ``return_overflowing_tokens``.

    Raises:
        UserError: a question is longer than the windows of its context allow.
    """
    row_of: dict[str, int] = {}  # of each distinct context
    rows = [row_of.setdefault(e.context, len(row_of)) for e in examples]
    context_of = torch.tensor(rows, dtype=torch.int64)
    contexts = tokenizer.encode_contexts(list(row_of))
    questions = tokenizer.encode([e.question for e in examples])
    context_lengths = contexts.lengths[context_of]
    questions, cut_questions = _fit_questions(questions, context_lengths, examples, settings)
    room = settings.max_seq_length - SPECIAL_TOKENS - questions.lengths
    example, first, count = _cut(context_lengths, room, settings.doc_stride)
    return WindowSet(
        questions=questions,
        contexts=contexts,
        context_of=context_of.int(),
        example=example.int(),
        first=first.int(),
        count=count.int(),
        cut_questions=cut_questions.int(),
        cls_id=tokenizer.cls_id,
        sep_id=tokenizer.sep_id,
    )


def _fit_questions(
    questions: TokenTable,
    context_lengths: Tensor,
    examples: Sequence[Example],
    settings: WindowSettings,
) -> tuple[TokenTable, Tensor]:
    """Questions no longer than allowed, and how many tokens each lost."""
    lengths = questions.lengths
    asked = lengths.clamp(max=settings.max_query_length or settings.max_seq_length)
    # Where all goes into one window, none overlaps, and the question may fill it.
    fits = asked + context_lengths + SPECIAL_TOKENS <= settings.max_seq_length
    allowed = torch.where(fits, asked, asked.clamp(max=settings.longest_question))
    if settings.max_query_length is None and not torch.equal(allowed, lengths):
        worst = int((lengths - allowed).argmax())
        raise UserError(
            f"the question of {examples[worst].id!r} has {int(lengths[worst])} tokens, but a "
            f"window of --max_seq_length {settings.max_seq_length} with --doc_stride "
            f"{settings.doc_stride} has room for {settings.longest_question} beside a piece of a "
            "longer context: shorten it, lower --doc_stride, or pass --max_query_length 64 to cut "
            "long questions"
        )
    cut = lengths - allowed
    if not cut.any():
        return questions, cut
    position = torch.arange(len(questions.ids)) - questions.bounds[:-1].repeat_interleave(lengths)
    kept = position < allowed.repeat_interleave(lengths)
    bounds = torch.cat([torch.zeros(1, dtype=torch.int64), allowed.cumsum(0)])
    return (
        TokenTable(questions.ids[kept], questions.starts[kept], questions.ends[kept], bounds),
        cut,
    )


def _cut(lengths: Tensor, room: Tensor, doc_stride: int) -> tuple[Tensor, Tensor, Tensor]:
    """Where the windows lie: for each its example, first context token, number of tokens.

    Args:
        lengths: ``(E,)``, context tokens of each example.
        room: ``(E,)``, context tokens that a window of the example can hold.
    """
    step = (room - doc_stride).clamp(min=1)  # less only beside a context that needs no step
    # One window, and one more for each step needed until the end is covered.
    windows = 1 + ((lengths - room).clamp(min=0) + step - 1) // step
    example = torch.arange(len(lengths)).repeat_interleave(windows)
    number = torch.arange(len(example)) - (windows.cumsum(0) - windows)[example]
    first = number * step[example]
    return example, first, torch.minimum(room[example], lengths[example] - first)
