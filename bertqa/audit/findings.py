"""Looking at a data set before training: every fault in it, and what its windows are.

    from bertqa.audit.findings import audit
    found = audit(read_examples(path), tokenizer)

Training stops at the first fault. An audit goes on and finds them all, each under its cause.
Training refuses a data set for the causes in ``REFUSED``. For the others it goes on, with a label
that does not give back the answer, or with two labels that contradict each other. The same question
is the same but for case and blanks, the same answer one that the official rules of exact match
accept.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate

import torch

from bertqa.answering.metrics import normalize_answer
from bertqa.audit.causes import REFUSED, Cause
from bertqa.audit.repair import loose_occurrences, occurrences, stands
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
    """One fault of one question.

    Attributes:
        cause: kind of fault.
        row: of the data set, from 0.
        id, question: those of the row.
        detail: what exactly is wrong.
        excerpt: the context around the answer; ``NOWHERE`` where the fault is not about one.
    """

    cause: Cause
    row: int
    id: str
    question: str
    detail: str
    excerpt: Excerpt = NOWHERE


@dataclass(frozen=True)
class WindowFigures:
    """How a data set falls into windows. Too long questions are taken as cut to what fits.

    Attributes:
        lengths: ``lengths[n]`` windows have n tokens.
        labelled: windows that hold a whole answer; the others are labelled [CLS].
        split_questions: questions whose context takes several windows.
        most: windows of the question that has most.
        context_tokens: in all windows together.
        repeated_tokens: those that the previous window has too.
        question_limit: most tokens of a question.
        longest_question: tokens of the longest, before it was cut.
        long_questions: how many pass the limit.
        lost_tokens: how many tokens they lose together.
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
        """The length that this share of the windows does not pass."""
        seen = accumulate(self.lengths)
        return next(length for length, n in enumerate(seen) if n >= share * self.count)


@dataclass(frozen=True)
class Audit:
    """What an audit found.

    Attributes:
        source: what was read.
        settings: how the windows were cut.
        version_2_with_negative: whether questions without an answer are meant to be there.
        examples, contexts, titles: questions, distinct contexts and titles.
        answers: gold answers of all questions.
        unanswerable: questions that have no answer.
        scattered: questions with gold answers at different positions.
        exact: questions whose label reproduces their answer.
        windows: how they are cut.
        findings: every fault, in the order of ``Cause``, then of rows.
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
        """The findings of each cause that has some."""
        found: dict[Cause, list[Finding]] = {}
        for finding in self.findings:
            found.setdefault(finding.cause, []).append(finding)
        return found

    @cached_property
    def counts(self) -> dict[Cause, int]:
        """Questions of each cause that has some."""
        return {cause: len({f.row for f in found}) for cause, found in self.by_cause.items()}

    @property
    def refused(self) -> int:
        """Questions for which training refuses the data set; 0 if it takes it."""
        return len({finding.row for finding in self.findings if finding.cause in REFUSED})


def audit(
    examples: Sequence[Example],
    tokenizer: BertTokenizer,
    settings: WindowSettings | None = None,
    *,
    source: str = "the data set",
    version_2_with_negative: bool = False,
) -> Audit:
    """Find every fault of a data set.

    Args:
        settings: how windows are to be cut; None takes the defaults.
        source: what the report calls the data set.
        version_2_with_negative: questions without an answer are meant to be there.

    Raises:
        UserError: there is no example.
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
    # A limit that no question can keep has those cut that training refuses, and no others.
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


# --- what the rows alone show --------------------------------------------------------------------


def _repeated_ids(examples: Sequence[Example]) -> Iterator[Finding]:
    first_rows: dict[str, int] = {}
    for row, example in enumerate(examples):
        first = first_rows.setdefault(example.id, row)
        if first < row:
            other = "is the same" if examples[first] == example else "has it, and differs"
            yield _finding(Cause.DUPLICATE_ID, examples, row, f"row {first} {other}")


def _conflicts(examples: Sequence[Example]) -> Iterator[Finding]:
    """Rows that ask the same, with no answer in common; "no answer" is one of its own."""
    asked: dict[tuple[str, str], list[int]] = {}
    for row, example in enumerate(examples):
        if example.answers is not None:
            question = " ".join(example.question.casefold().split())
            asked.setdefault((question, example.context), []).append(row)
    for rows in asked.values():
        if len(rows) == 1:
            continue
        golds = [frozenset(map(normalize_answer, examples[row].answers or ())) for row in rows]
        # Of rows with the same answers, the first is enough to compare with.
        kinds = dict(zip(reversed(golds), reversed(rows), strict=True))
        for row, gold in zip(rows, golds, strict=True):
            others = (r for kind, r in kinds.items() if kind != gold and not kind & gold)
            other = min(others, default=None)
            if other is not None:
                said, here = _first_answer(examples[other]), _first_answer(examples[row])
                detail = f"here {here}; in row {other}, id {shown(examples[other].id)}, {said}"
                around = _around_first(examples[row])
                yield _finding(Cause.CONFLICT, examples, row, detail, around)


def _first_answer(example: Example) -> str:
    return shown(example.answers[0]) if example.answers else "no answer"


def _around_first(example: Example) -> Excerpt:
    """The context around the first answer, if that is at its answer_start."""
    if not example.answers or not _has_label(example):
        return NOWHERE
    start = example.answer_starts[0]
    return excerpt(example.context, start, start + len(example.answers[0]))


def _has_label(example: Example) -> bool:
    """Whether a label can be made: no answer, or the first is at its answer_start."""
    texts, starts = example.answers or (), example.answer_starts
    if len(texts) != len(starts):
        return False
    return not texts or (bool(texts[0].strip()) and stands(example.context, texts[0], starts[0]))


def _with_labels(example: Example) -> Example:
    """The example with the answers that can be labels, for which the first one must be."""
    if not _has_label(example):
        return replace(example, answers=None)
    if len(example.positions) < 2:
        return example
    pairs = zip(example.answers or (), example.answer_starts, strict=True)
    good = [(text, start) for text, start in pairs if stands(example.context, text, start)]
    texts, starts = zip(*good, strict=True)
    return replace(example, answers=texts, answer_starts=starts)


_Fault = tuple[Cause, str, Excerpt]


def _faults(example: Example, version_2_with_negative: bool) -> Iterator[_Fault]:
    """What is wrong with a question, whatever the others and the windows are."""
    if example.fault:
        yield Cause.UNREADABLE, example.fault, NOWHERE
        return
    for name, text in (("question", example.question), ("context", example.context)):
        if is_blank(text):
            yield Cause.EMPTY, f"the {name} is {shown(text)}", NOWHERE
    if example.answers is None:
        yield Cause.NO_GOLD, "it has no answers", NOWHERE
        return
    if example.is_impossible and not version_2_with_negative:
        yield Cause.UNANSWERABLE, "it has no answer", NOWHERE
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
    """What is wrong with an answer that is not blank."""
    if not stands(context, text, start):
        cause, where = _elsewhere(context, text)
        # A start outside the context has nothing around it.
        is_inside = 0 <= start < len(context)
        around = excerpt(context, start, start + len(text)) if is_inside else NOWHERE
        said = "has no start" if start == -1 else f"is said to stand at {start}"
        yield cause, f"{which} {said}: {where}", around
    elif text != text.strip():
        yield (
            Cause.BLANKS,
            f"{which} has blanks at its ends",
            excerpt(context, start, start + len(text)),
        )


def _elsewhere(context: str, text: str) -> tuple[Cause, str]:
    """Search the context for an answer that is not at its answer_start."""
    places = occurrences(context, text)
    if len(places) == 1:
        return Cause.MISPLACED, f"it stands at {places[0]} alone"
    if places:
        named = ", ".join(map(str, places[:3])) + ", ..." * (len(places) > 3)
        return Cause.MISPLACED, f"it stands at {len(places)} places, {named}"
    loose = loose_occurrences(context, text)
    if not loose:
        return Cause.ABSENT, "the context does not hold it"
    first, last = loose[0]
    also = f", and {len(loose) - 1} more" * (len(loose) > 1)
    return Cause.ABSENT, f"the context holds {shown(context[first:last])} at {first}{also}"


# --- what the windows show -----------------------------------------------------------------------


def _label_faults(
    examples: Sequence[Example], windows: LabelledWindows, settings: WindowSettings
) -> Iterator[Finding]:
    """Labels that do not reproduce their answer; ``_answer_faults`` reports blanks."""
    labelled = windows.start_position > 0
    for row in (windows.outcome > Outcome.BLANKS).nonzero().flatten().tolist():
        cause = _OF_OUTCOMES[Outcome(int(windows.outcome[row]))]
        example = examples[row]
        assert example.answers  # else there is no label
        first, last = windows.of_examples(row, row + 1)
        window = first + int(labelled[first:last].int().argmax())  # the first that has a label
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
    """How long the answer ``context[start:end]`` is, and which overlap would keep it whole."""
    rows = windows.contexts.rows(int(windows.context_of[row]))
    shares = (windows.contexts.ends[rows] > start) & (windows.contexts.starts[rows] < end)
    tokens = int(shares.sum())
    # An answer of one token more than the overlap is whole in the last window that begins by it.
    needed = replace(settings, doc_stride=0).longest_question - int(windows.questions.lengths[row])
    if tokens <= needed + 1:
        return f"{tokens} tokens: with --doc_stride {tokens - 1} a window would hold it"
    return f"{tokens} tokens: no window of --max_seq_length {settings.max_seq_length} can hold it"


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
    # What a context has, each of its questions needs once.
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
