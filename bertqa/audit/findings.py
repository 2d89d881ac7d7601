"""Audit of a dataset: all its faults by cause, and statistics of its windows.

    from bertqa.audit.findings import audit
    found = audit(read_examples(path), tokenizer)

Training stops at the first fault with a cause in ``REFUSED``; an audit finds all of them. It also
finds faults with which training continues: labels that do not reproduce their answer, and labels
that contradict each other. Questions are compared without case and whitespace, answers by the
normalization of the official exact match.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate

import torch

from bertqa.answering.metrics import normalize_answer
from bertqa.audit.causes import REFUSED, Cause
from bertqa.audit.repair import loose_occurrences, occurrences, occurs_at
from bertqa.data.labels import LabelledWindows, Outcome, label_text, make_labelled_windows
from bertqa.data.squad import Example, check_examples
from bertqa.data.text import NOWHERE, Excerpt, excerpt, is_blank
from bertqa.data.tokenization import BertTokenizer
from bertqa.data.windows import WindowSet
from bertqa.errors import shown
from bertqa.settings import WindowSettings

_OF_OUTCOMES = {
    Outcome.GRAPHEME: Cause.COMBINING,
    Outcome.INVISIBLE: Cause.INVISIBLE,
    Outcome.INSIDE_TOKEN: Cause.INSIDE_TOKEN,
    Outcome.NO_TOKENS: Cause.NO_TOKENS,
    Outcome.CUT: Cause.CUT,
}


@dataclass(frozen=True, slots=True)
class Finding:
    """A fault of one question.

    Attributes:
        cause: kind of fault.
        row: row of the dataset, from 0.
        id, question: those of the row.
        detail: description of the fault.
        excerpt: the context around the answer; ``NOWHERE`` if the fault does not concern one.
    """

    cause: Cause
    row: int
    id: str
    question: str
    detail: str
    excerpt: Excerpt = NOWHERE


@dataclass(frozen=True)
class WindowFigures:
    """Statistics of the sliding windows of a dataset, with long questions truncated.

    Attributes:
        lengths: ``lengths[n]`` windows have n tokens.
        labelled: number of windows with a whole answer; the others are labelled [CLS].
        split_questions: number of questions with several windows.
        most: maximum number of windows of a question.
        context_tokens: context tokens in all windows.
        repeated_tokens: context tokens that the previous window contains too.
        question_limit: maximum number of question tokens.
        longest_question: tokens of the longest question before truncation.
        long_questions: number of questions above the limit.
        lost_tokens: question tokens lost by truncation.
    """

    lengths: tuple[int, ...]
    labelled: int
    split_questions: int
    most: int
    context_tokens: int
    repeated_tokens: int
    question_limit: int
    longest_question: int
    long_questions: int
    lost_tokens: int

    @property
    def count(self) -> int:
        """Number of windows."""
        return sum(self.lengths)

    @property
    def mean(self) -> float:
        """Mean length in tokens."""
        return sum(n * count for n, count in enumerate(self.lengths)) / self.count

    @property
    def shortest(self) -> int:
        """Tokens of the shortest window."""
        return next(n for n, count in enumerate(self.lengths) if count)

    @property
    def longest(self) -> int:
        """Tokens of the longest window."""
        return len(self.lengths) - 1

    def quantile(self, share: float) -> int:
        """Return the smallest length that is an upper limit for this share of the windows."""
        seen = accumulate(self.lengths)
        return next(length for length, n in enumerate(seen) if n >= share * self.count)


@dataclass(frozen=True)
class Audit:
    """Result of an audit.

    Attributes:
        source: name of the dataset.
        settings: sliding-window settings.
        version_2_with_negative: whether questions without an answer are allowed.
        examples, contexts, titles: number of questions, distinct contexts and titles.
        answers: number of gold answers.
        unanswerable: number of questions without an answer.
        scattered: number of questions with gold answers at different positions.
        exact: number of questions whose label reproduces their answer.
        windows: statistics of the windows.
        findings: all faults, ordered by ``Cause``, then by row.
    """

    source: str
    settings: WindowSettings
    version_2_with_negative: bool
    examples: int
    contexts: int
    titles: int
    answers: int
    unanswerable: int
    scattered: int
    exact: int
    windows: WindowFigures
    findings: tuple[Finding, ...]

    @cached_property
    def by_cause(self) -> dict[Cause, list[Finding]]:
        """Cause -> its findings, for causes with findings."""
        found: dict[Cause, list[Finding]] = {}
        for finding in self.findings:
            found.setdefault(finding.cause, []).append(finding)
        return found

    @cached_property
    def counts(self) -> dict[Cause, int]:
        """Cause -> number of questions, for causes with findings."""
        return {cause: len({f.row for f in found}) for cause, found in self.by_cause.items()}

    @property
    def refused(self) -> int:
        """Number of questions for which training refuses the dataset; 0 if it accepts it."""
        return len({finding.row for finding in self.findings if finding.cause in REFUSED})


def audit(
    examples: Sequence[Example],
    tokenizer: BertTokenizer,
    settings: WindowSettings | None = None,
    *,
    source: str = "the dataset",
    version_2_with_negative: bool = False,
) -> Audit:
    """Find all faults of a dataset.

    Args:
        settings: sliding-window settings; None uses the defaults.
        source: name of the dataset in reports.
        version_2_with_negative: whether questions without an answer are allowed.

    Raises:
        UserError: ``examples`` is empty.
    """
    if not examples:
        check_examples(examples, source)
    settings = settings or WindowSettings()
    found = [*_repeated_ids(examples), *_conflicts(examples)]
    for row, example in enumerate(examples):
        for cause, detail, around in _faults(example, version_2_with_negative):
            found.append(_finding(cause, examples, row, detail, around))
    labelled = [_with_labels(example) for example in examples]
    limit = min(settings.longest_question, settings.max_query_length or settings.longest_question)
    # A limit above every question's length truncates exactly the questions that training refuses.
    cutting = replace(
        settings, max_query_length=settings.max_query_length or settings.max_seq_length
    )
    windows = make_labelled_windows(labelled, tokenizer, cutting)
    found += _label_faults(labelled, windows, settings)
    found += _long_questions(examples, windows, settings)
    order = {cause: number for number, cause in enumerate(Cause)}
    return Audit(
        source=source,
        settings=settings,
        version_2_with_negative=version_2_with_negative,
        examples=len(examples),
        contexts=len(windows.contexts.lengths),
        titles=len({example.title for example in examples} - {""}),
        answers=sum(len(example.answers or ()) for example in examples),
        unanswerable=sum(example.is_impossible for example in examples),
        scattered=sum(len(example.positions) > 1 for example in examples),
        exact=int((windows.outcome == Outcome.EXACT).sum()),
        windows=_figures(windows, limit),
        findings=tuple(sorted(found, key=lambda finding: (order[finding.cause], finding.row))),
    )


def _finding(
    cause: Cause, examples: Sequence[Example], row: int, detail: str, around: Excerpt = NOWHERE
) -> Finding:
    return Finding(cause, row, examples[row].id, examples[row].question, detail, around)


# --- faults of rows ------------------------------------------------------------------------------


def _repeated_ids(examples: Sequence[Example]) -> Iterator[Finding]:
    first_rows: dict[str, int] = {}
    for row, example in enumerate(examples):
        first = first_rows.setdefault(example.id, row)
        if first < row:
            other = "is identical" if examples[first] == example else "has the same id, but differs"
            yield _finding(Cause.DUPLICATE_ID, examples, row, f"row {first} {other}")


def _conflicts(examples: Sequence[Example]) -> Iterator[Finding]:
    """Yield rows with the same question and no answer in common; "no answer" is an answer too."""
    rows_of: dict[tuple[str, str], list[int]] = {}
    for row, example in enumerate(examples):
        if example.answers is not None:
            question = " ".join(example.question.casefold().split())
            rows_of.setdefault((question, example.context), []).append(row)
    for rows in rows_of.values():
        if len(rows) == 1:
            continue
        golds = [frozenset(map(normalize_answer, examples[row].answers or ())) for row in rows]
        # Among rows with the same answers, compare with the first only.
        kinds = dict(zip(reversed(golds), reversed(rows), strict=True))
        for row, gold in zip(rows, golds, strict=True):
            others = (r for kind, r in kinds.items() if kind != gold and not kind & gold)
            other = min(others, default=None)
            if other is not None:
                here, there = _first_answer(examples[row]), _first_answer(examples[other])
                detail = f"here {here}; in row {other}, id {shown(examples[other].id)}, {there}"
                around = _around_first(examples[row])
                yield _finding(Cause.CONFLICT, examples, row, detail, around)


def _first_answer(example: Example) -> str:
    return shown(example.answers[0]) if example.answers else "no answer"


def _around_first(example: Example) -> Excerpt:
    """Return the context around the first answer, if that is at its answer_start."""
    if not example.answers or not _has_label(example):
        return NOWHERE
    start = example.answer_starts[0]
    return excerpt(example.context, start, start + len(example.answers[0]))


def _has_label(example: Example) -> bool:
    """Return whether the example can be labelled: no answer, or the first at its answer_start."""
    texts, starts = example.answers or (), example.answer_starts
    if len(texts) != len(starts):
        return False
    return not texts or (bool(texts[0].strip()) and occurs_at(example.context, texts[0], starts[0]))


def _with_labels(example: Example) -> Example:
    """Return the example with the answers that can be labels; none unless the first one can."""
    if not _has_label(example):
        return replace(example, answers=None)
    if len(example.positions) < 2:
        return example
    pairs = zip(example.answers or (), example.answer_starts, strict=True)
    good = [(text, start) for text, start in pairs if occurs_at(example.context, text, start)]
    texts, starts = zip(*good, strict=True)
    return replace(example, answers=texts, answer_starts=starts)


_Fault = tuple[Cause, str, Excerpt]


def _faults(example: Example, version_2_with_negative: bool) -> Iterator[_Fault]:
    """Yield the faults of a question that do not depend on other rows or on windows."""
    if example.fault:
        yield Cause.UNREADABLE, example.fault, NOWHERE
        return
    for name, text in (("question", example.question), ("context", example.context)):
        if is_blank(text):
            yield Cause.EMPTY, f"{name} is {shown(text)}", NOWHERE
    if example.answers is None:
        yield Cause.NO_GOLD, "no answers", NOWHERE
        return
    if example.is_impossible and not version_2_with_negative:
        yield Cause.UNANSWERABLE, "no answer", NOWHERE
    texts, starts = example.answers, example.answer_starts
    is_even = len(texts) == len(starts)
    if not is_even:
        yield Cause.UNEVEN, f"answers: {len(texts)}, answer_starts: {len(starts)}", NOWHERE
    for number, text in enumerate(texts):
        which = f"answer {number + 1} of {len(texts)}, {shown(text)},"
        which = which if len(texts) > 1 else f"answer {shown(text)}"
        if not text.strip():
            yield Cause.EMPTY, f"{which} is blank", NOWHERE
        elif is_even:
            yield from _answer_faults(example.context, text, starts[number], which)


def _answer_faults(context: str, text: str, start: int, which: str) -> Iterator[_Fault]:
    """Yield the faults of an answer that is not blank."""
    if not occurs_at(context, text, start):
        cause, where = _elsewhere(context, text)
        is_inside = 0 <= start < len(context)
        around = excerpt(context, start, start + len(text)) if is_inside else NOWHERE
        given = "has no answer_start" if start == -1 else f"is not at its answer_start {start}"
        yield cause, f"{which} {given}: {where}", around
    elif text != text.strip():
        yield (
            Cause.BLANKS,
            f"{which} has leading or trailing whitespace",
            excerpt(context, start, start + len(text)),
        )


def _elsewhere(context: str, text: str) -> tuple[Cause, str]:
    """Search the context for an answer that is not at its answer_start."""
    starts = occurrences(context, text)
    if len(starts) == 1:
        return Cause.MISPLACED, f"it occurs once, at {starts[0]}"
    if starts:
        listed = ", ".join(map(str, starts[:3])) + ", ..." * (len(starts) > 3)
        return Cause.MISPLACED, f"it occurs {len(starts)} times, at {listed}"
    loose = loose_occurrences(context, text)
    if not loose:
        return Cause.ABSENT, "it is not in the context"
    start, stop = loose[0]
    also = f", and {len(loose) - 1} more" * (len(loose) > 1)
    return Cause.ABSENT, f"the context has {shown(context[start:stop])} at {start}{also}"


# --- faults of windows ---------------------------------------------------------------------------


def _label_faults(
    examples: Sequence[Example], windows: LabelledWindows, settings: WindowSettings
) -> Iterator[Finding]:
    """Yield labels that do not reproduce their answer; ``_answer_faults`` reports whitespace."""
    labelled = windows.start_position > 0
    for row in (windows.outcome > Outcome.BLANKS).nonzero().flatten().tolist():
        cause = _OF_OUTCOMES[Outcome(int(windows.outcome[row]))]
        example = examples[row]
        assert example.answers  # else there is no label
        own = windows.of_examples(row, row + 1)
        window = next((window for window in own if labelled[window]), own.start)
        gold = int(windows.gold[window])
        answer, start = example.answers[gold], example.answer_starts[gold]
        end = start + len(answer)
        detail = f"answer {shown(answer)}"
        if cause is Cause.CUT:
            detail += f", {_why_cut(windows, row, start, end, settings)}"
        elif cause is not Cause.NO_TOKENS:
            detail += f", label {shown(label_text(windows, window, example.context))}"
        yield _finding(cause, examples, row, detail, excerpt(example.context, start, end))


def _why_cut(windows: WindowSet, row: int, start: int, end: int, settings: WindowSettings) -> str:
    """Return the length of ``context[start:end]`` in tokens, and the overlap that would fit it."""
    rows = windows.contexts.rows(int(windows.context_of[row]))
    covers = (windows.contexts.ends[rows] > start) & (windows.contexts.starts[rows] < end)
    tokens = int(covers.sum())
    # With an overlap of tokens - 1, the last window that starts before or at the answer fits it.
    needed = replace(settings, doc_stride=0).longest_question - int(windows.questions.lengths[row])
    if tokens <= needed + 1:
        return f"{tokens} tokens, which fit into a window with --doc_stride {tokens - 1}"
    return f"{tokens} tokens, which exceed a window of --max_seq_length {settings.max_seq_length}"


def _long_questions(
    examples: Sequence[Example], windows: WindowSet, settings: WindowSettings
) -> Iterator[Finding]:
    cause = Cause.LONG_QUESTION if settings.max_query_length is None else Cause.QUESTION_CUT
    for row in windows.cut_questions.nonzero().flatten().tolist():
        fit = int(windows.questions.lengths[row])
        tokens = fit + int(windows.cut_questions[row])
        yield _finding(cause, examples, row, f"{tokens} tokens, of which {fit} fit")


def _figures(windows: LabelledWindows, limit: int) -> WindowFigures:
    per_question = torch.bincount(windows.example)
    context_tokens = int(windows.count.sum())
    # Each question needs every token of its context once.
    needed = int(windows.contexts.lengths[windows.context_of].sum())
    return WindowFigures(
        lengths=tuple(torch.bincount(windows.lengths).tolist()),
        labelled=int((windows.start_position > 0).sum()),
        split_questions=int((per_question > 1).sum()),
        most=int(per_question.max()),
        context_tokens=context_tokens,
        repeated_tokens=context_tokens - needed,
        question_limit=limit,
        longest_question=int((windows.questions.lengths + windows.cut_questions).max()),
        long_questions=int((windows.cut_questions > 0).sum()),
        lost_tokens=int(windows.cut_questions.sum()),
    )
