"""Define an example, one question about one context, and check that a data set can be used.

Text only: offsets count code points of the context, as in SQuAD (Rajpurkar et al. 2016).
"""

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from bertqa.errors import UserError, counted, shown


@dataclass(frozen=True, slots=True)
class Example:
    """One question about one context.

    ``answers`` is None where no gold was given, and () where the question is known to have no
    answer (SQuAD v2.0). ``answer_starts`` are code points of the context, parallel to ``answers``,
    -1 for one that is not known; () where the file gives none. ``title`` is that of the article, ""
    where there is none. ``fault`` says why nothing else of a row could be read, "" if it could.
    """

    id: str
    question: str
    context: str
    answers: tuple[str, ...] | None = None
    answer_starts: tuple[int, ...] = ()
    title: str = ""
    fault: str = ""

    @property
    def is_impossible(self) -> bool:
        """Whether the gold says that the context holds no answer."""
        return self.answers == ()


def has_both_kinds(examples: Sequence[Example]) -> bool:
    """Whether a threshold can be chosen on them: some have an answer, some have none."""
    return len({example.is_impossible for example in examples}) == 2


def data_fingerprint(examples: Sequence[Example]) -> str:
    """A digest of all that is in the examples; 32 hexadecimal digits.

    A context that several questions share is read once: at first sight it goes in with its
    number, afterwards the number stands for it.
    """
    digest = hashlib.blake2b(digest_size=16)
    numbers: dict[str, int] = {}
    for example in examples:
        known = len(numbers)
        number = numbers.setdefault(example.context, known)
        context = example.context if number == known else None
        fields = (example.id, example.question, number, context, example.answers)
        text = repr((fields, example.answer_starts))  # quotes and commas keep the fields apart
        digest.update(text.encode("utf-8", "surrogatepass"))
    return digest.hexdigest()


def split_by_article(
    examples: Sequence[Example], percentage: int
) -> tuple[list[Example], list[Example]]:
    """Hold out a part of a data set to measure on what was not trained on.

    Questions about one article stay together, since they ask for the same facts; where no titles
    are given, those about one context. Every n-th article is held out, so that the part is spread
    over the data set and is the same each time.

    Args:
        percentage: of the articles, 1 to 50.

    Returns:
        The examples to train on, and those held out, each in their order.

    Raises:
        UserError: there is only one article.
    """
    numbers: dict[str, int] = {}
    articles = [numbers.setdefault(e.title or e.context, len(numbers)) for e in examples]
    # Article i is held out where the count of those to be held out by then rises.
    held = [i * percentage // 100 < (i + 1) * percentage // 100 for i in range(len(numbers))]
    if not any(held):
        held[-1:] = [True]
    if all(held):
        raise UserError(
            f"--validation_split_percentage {percentage} has nothing to divide: all questions are "
            "about one article; give a --validation_file"
        )
    parts: tuple[list[Example], list[Example]] = ([], [])
    for example, article in zip(examples, articles, strict=True):
        parts[held[article]].append(example)
    return parts


def check_examples(examples: Sequence[Example], source: str) -> None:
    """Refuse what no run can use.

    Raises:
        UserError: there is no example, an id is repeated, or a question or context is blank.
    """
    if not examples:
        raise UserError(f"{source} holds no examples; give at least one question")
    if len({example.id for example in examples}) < len(examples):
        counts = Counter(example.id for example in examples)
        repeated = [name for name, count in counts.items() if count > 1]
        raise UserError(
            f"{source}: the id {shown(repeated[0])} stands {counts[repeated[0]]} times "
            f"({counted(len(repeated), 'repeated id')} in all); give each question its own"
        )
    for key in ("question", "context"):
        blank = [example for example in examples if not getattr(example, key).strip()]
        if blank:
            raise _fault(blank, f"has a blank {key}", "fill it in or remove the question", source)


def check_version(examples: Sequence[Example], source: str, with_negative: bool) -> None:
    """Refuse questions without an answer unless they are said to be there.

    Raises:
        UserError: some are, and ``with_negative`` is False.
    """
    impossible = sum(example.is_impossible for example in examples)
    if impossible and not with_negative:
        raise UserError(
            f"{source} has {counted(impossible, 'question')} without an answer: pass "
            "--version_2_with_negative"
        )


def _fault(faulty: Sequence[Example], fault: str, cure: str, source: str) -> UserError:
    """An error that shows the first of the faulty examples and counts them."""
    return UserError(
        f"{source}: question {shown(faulty[0].id)} {fault} ({len(faulty)} such in all); {cure}"
    )


def _misplaced(example: Example) -> Iterator[tuple[str, int, str]]:
    """The text, start and what stands there instead, of each answer that is not at its start."""
    for text, start in zip(example.answers or (), example.answer_starts, strict=True):
        # A negative start would count from the end.
        found = example.context[start : start + len(text)] if start >= 0 else ""
        if found != text:
            yield text, start, found


def _known_starts(example: Example) -> int:
    return len(example.answer_starts) - example.answer_starts.count(-1)


def check_answers(examples: Sequence[Example], source: str) -> None:
    """Refuse what training and validation cannot use; unanswerable questions pass.

    Raises:
        UserError: gold or starts are missing, an answer is blank, or stands not at its start.
    """
    without = [example for example in examples if example.answers is None]
    if without:
        cure = "add them, or remove the question; if its text holds no answer, set is_impossible "
        cure += "to true and pass --version_2_with_negative"
        raise _fault(without, "has no gold answers", cure, source)
    uneven = [e for e in examples if len(e.answers or ()) != _known_starts(e)]
    if uneven:
        counts = f"{len(uneven[0].answers or ())} and {_known_starts(uneven[0])}"
        fault = f"has answer texts and answer_starts in different numbers, {counts}"
        raise _fault(uneven, fault, "give one answer_start for each text", source)
    blank = [e for e in examples if not all(map(str.strip, e.answers or ()))]
    if blank:
        raise _fault(blank, "has a blank answer text", "fill it in or remove it", source)
    misplaced = [example for example in examples if any(_misplaced(example))]
    if misplaced:
        text, start, found = next(_misplaced(misplaced[0]))
        fault = f"has the answer {shown(text)}, but its context has {shown(found)} "
        fault += f"at answer_start {start}"
        raise _fault(misplaced, fault, "count the code points before it, from 0", source)
