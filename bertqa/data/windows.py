"""Windows: tokenized examples cut by a sliding window into the sequences that the model processes.

A window is ``[CLS] question [SEP] part of the context [SEP]``. A context too long for one window is
cut into several, each of which repeats the last ``doc_stride`` context tokens of the previous one
(run_qa's meaning of stride; in Google's script, doc_stride is the step from window to window).

E  examples      W  windows      C  distinct contexts      L  tokens of one window

Each question and each distinct context is tokenized and stored once; a window only refers to a
question and a part of a context. Training, evaluation and inference use the same windows; labels.py
adds labels for training.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from bertqa.data.squad import Example
from bertqa.data.tokenization import BertTokenizer, TokenTable
from bertqa.errors import UserError, flag, shown
from bertqa.settings import SPECIAL_TOKENS, WindowSettings


@dataclass(frozen=True)
class Window:
    """One window, for display.

    Attributes:
        example: index of its example.
        input_ids, token_type_ids: ``L`` numbers each.
        offsets: slice of the context that each token covers; None for other tokens.
    """

    example: int
    input_ids: list[int]
    token_type_ids: list[int]
    offsets: list[tuple[int, int] | None]


@dataclass(frozen=True)
class WindowSet:
    """All windows of a list of examples, as flat arrays.

    Attributes:
        questions: tokens of the E questions, truncated to fit into a window.
        contexts: tokens of the distinct contexts.
        context_of: ``(E,)`` int32, index of each example's context in ``contexts``.
        example: ``(W,)`` int32, index of each window's example; windows are ordered by example.
        first: ``(W,)`` int32, position in the context of the window's first context token.
        count: ``(W,)`` int32, context tokens in the window.
        cut_questions: ``(E,)`` int32, tokens of each question removed by ``max_query_length``.
        cls_id, sep_id: ids of [CLS] and [SEP].
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
        """``(W,)``, position of the first context token in each window."""
        return self.question_lengths + 2

    def of_examples(self, start: int, stop: int) -> range:
        """Return the windows of the examples ``start`` to ``stop - 1``."""
        bounds = torch.searchsorted(self.example, torch.tensor([start, stop], dtype=torch.int32))
        return range(*bounds.tolist())

    def __getitem__(self, window: int) -> Window:
        """Return one window; for display, not for speed."""
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
    """Tokenize examples and cut them into windows.

    The windows equal, token for token, those of transformers' tokenizer with
    ``truncation="only_second"``, ``stride`` and ``return_overflowing_tokens``.

    Raises:
        UserError: a question is too long for the windows of its context.
    """
    row_of: dict[str, int] = {}  # distinct context -> index
    rows = [row_of.setdefault(e.context, len(row_of)) for e in examples]
    context_of = torch.tensor(rows, dtype=torch.int64)
    contexts = tokenizer.encode_contexts(list(row_of))
    questions = tokenizer.encode([e.question for e in examples])
    context_lengths = contexts.lengths[context_of]
    questions, cut_questions = _fit_questions(questions, context_lengths, examples, settings)
    capacity = settings.max_seq_length - SPECIAL_TOKENS - questions.lengths
    example, first, count = _cut(context_lengths, capacity, settings.doc_stride)
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
    """Truncate questions; return them and the number of tokens removed from each."""
    lengths = questions.lengths
    requested = lengths.clamp(max=settings.max_query_length or settings.max_seq_length)
    # If the whole context fits into one window, windows need not overlap.
    fits = requested + context_lengths + SPECIAL_TOKENS <= settings.max_seq_length
    allowed = torch.where(fits, requested, requested.clamp(max=settings.longest_question))
    if settings.max_query_length is None and not torch.equal(allowed, lengths):
        worst = int((lengths - allowed).argmax())
        raise UserError(
            f"question {shown(examples[worst].id)}: must have at most {settings.longest_question} "
            f"tokens with a context of several windows ({flag('max_seq_length')} "
            f"{settings.max_seq_length}, {flag('doc_stride')} {settings.doc_stride}), got "
            f"{int(lengths[worst])}: shorten it, lower {flag('doc_stride')}, or pass "
            f"{flag('max_query_length')} 64 to truncate long questions"
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


def _cut(lengths: Tensor, capacity: Tensor, doc_stride: int) -> tuple[Tensor, Tensor, Tensor]:
    """Slide a window over each context; return example, first token and token count of windows.

    Args:
        lengths: ``(E,)``, context tokens of each example.
        capacity: ``(E,)``, maximum context tokens in a window of the example.
        doc_stride: overlap of neighboring windows.
    """
    step = (capacity - doc_stride).clamp(min=1)  # below 1 only if the context fits in one window
    # The first window, and as many steps as are needed to cover the rest.
    windows = 1 + ((lengths - capacity).clamp(min=0) + step - 1) // step
    example = torch.arange(len(lengths)).repeat_interleave(windows)
    number = torch.arange(len(example)) - (windows.cumsum(0) - windows)[example]
    first = number * step[example]
    return example, first, torch.minimum(capacity[example], lengths[example] - first)
