"""Examples of extractive question answering, and validation of a dataset.

Offsets are code points of the context, as in SQuAD (Rajpurkar et al. 2016).
"""

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from bertqa.data.text import is_blank
from bertqa.errors import UserError, counted, shown


@dataclass(frozen=True, slots=True)
class Example:
    """One question about one context.

    Attributes:
        id: unique id of the question.
        question, context: the texts.
        answers: gold answers; None if not given, () if unanswerable (SQuAD v2.0).
        answer_starts: start of each gold answer in the context, in code points; -1 if unknown, ()
            if not given.
        title: title of the article, "" if not given.
        fault: why the row could not be read, "" if it could.
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
        """Whether the question is unanswerable according to the gold answers."""
        return self.answers == ()

    @property
    def positions(self) -> set[tuple[int, int]]:
        """Start and end of each gold answer in the context."""
        pairs = zip(self.answers or (), self.answer_starts, strict=False)
        return {(start, start + len(text)) for text, start in pairs}


def has_both_kinds(examples: Sequence[Example]) -> bool:
    """Return whether there are both answerable and unanswerable questions."""
    return len({example.is_impossible for example in examples}) == 2


def data_fingerprint(examples: Sequence[Example]) -> str:
    """Return a digest of the examples' contents, 32 hexadecimal digits.

    A context that several questions share is hashed once; later only its number is.
    """
    digest = hashlib.blake2b(digest_size=16)
    numbers: dict[str, int] = {}
    for example in examples:
        known = len(numbers)
        number = numbers.setdefault(example.context, known)
        context = example.context if number == known else None
        fields = (example.id, example.question, number, context, example.answers)
        text = repr((fields, example.answer_starts))  # quotes and commas separate the fields
        digest.update(text.encode("utf-8", "surrogatepass"))
    return digest.hexdigest()


def split_by_article(
    examples: Sequence[Example], percentage: int
) -> tuple[list[Example], list[Example]]:
    """Split a dataset into training and held-out examples.

    Questions about the same article, or context if there are no titles, stay together, since they
    ask for the same facts. Every n-th article is held out, so the split is deterministic and spread
    over the dataset.

    Args:
        examples: the dataset.
        percentage: percentage of articles to hold out, 1 to 50.

    Returns:
        Training and held-out examples, each in order.

    Raises:
        UserError: there is only one article.
    """
    numbers: dict[str, int] = {}
    articles = [numbers.setdefault(e.title or e.context, len(numbers)) for e in examples]
    # Hold out article i if the number of articles to hold out increases there.
    held = [i * percentage // 100 < (i + 1) * percentage // 100 for i in range(len(numbers))]
    if not any(held):
        held[-1:] = [True]
    if all(held):
        raise UserError(
            f"--validation_split_percentage {percentage} requires several articles, got one: pass "
            "a --validation_file"
        )
    parts: tuple[list[Example], list[Example]] = ([], [])
    for example, article in zip(examples, articles, strict=True):
        parts[held[article]].append(example)
    return parts


def check_examples(examples: Sequence[Example], source: str) -> None:
    """Check that examples can be used for inference.

    Raises:
        UserError: there is no example, an id is repeated, or a question or context is blank.
    """
    if not examples:
        raise UserError(f"{source}: must contain at least one question, got none")
    if len({example.id for example in examples}) < len(examples):
        counts = Counter(example.id for example in examples)
        repeated = [name for name, count in counts.items() if count > 1]
        raise UserError(
            f"{source}: ids must be unique, got {shown(repeated[0])} {counts[repeated[0]]} times "
            f"({counted(len(repeated), 'repeated id')} in total): rename them"
        )
    for key in ("question", "context"):
        blank = [example for example in examples if is_blank(getattr(example, key))]
        if blank:
            needed = f"a {key} with a visible character"
            given, advice = shown(getattr(blank[0], key)), "fill it in or remove the question"
            raise _fault(blank, f"must have {needed}, got {given}", advice, source)


def check_version(examples: Sequence[Example], source: str, with_negative: bool) -> None:
    """Check that there are no unanswerable questions unless ``with_negative``.

    Raises:
        UserError: there are some.
    """
    impossible = sum(example.is_impossible for example in examples)
    if impossible and not with_negative:
        raise UserError(
            f"{source}: must have an answer to every question, got {impossible:,} without: pass "
            "--version_2_with_negative"
        )


def _fault(faulty: Sequence[Example], fault: str, advice: str, source: str) -> UserError:
    """Return an error that shows the first faulty example and counts all."""
    return UserError(
        f"{source}, question {shown(faulty[0].id)}: {fault} ({len(faulty)} such in total): {advice}"
    )


def _misplaced(example: Example) -> Iterator[tuple[str, int, str]]:
    """Yield each answer that is not at its start: text, start, and the text found there."""
    for text, start in zip(example.answers or (), example.answer_starts, strict=True):
        # A negative start would count from the end.
        found = example.context[start : start + len(text)] if start >= 0 else ""
        if found != text:
            yield text, start, found


def _known_starts(example: Example) -> int:
    return len(example.answer_starts) - example.answer_starts.count(-1)


def check_answers(examples: Sequence[Example], source: str) -> None:
    """Check that gold answers can be used for training and validation.

    Raises:
        UserError: gold answers or answer_starts are missing, or an answer is blank or not at its
            start.
    """
    without = [example for example in examples if example.answers is None]
    if without:
        advice = (
            "add them, remove the question, or, if it is unanswerable, set is_impossible to true "
        )
        advice += "and pass --version_2_with_negative"
        raise _fault(without, "must have gold answers, got none", advice, source)
    uneven = [e for e in examples if len(e.answers or ()) != _known_starts(e)]
    if uneven:
        counts = f"{_known_starts(uneven[0])} and {len(uneven[0].answers or ())}"
        fault = f"must have as many answer_starts as answer texts, got {counts}"
        raise _fault(uneven, fault, "give one answer_start for each text", source)
    blank = [e for e in examples if not all(map(str.strip, e.answers or ()))]
    if blank:
        text = next(text for text in blank[0].answers or () if not text.strip())
        fault = f"must have no blank answer text, got {shown(text)}"
        raise _fault(blank, fault, "fill it in or remove it", source)
    misplaced = [example for example in examples if any(_misplaced(example))]
    if misplaced:
        text, start, found = next(_misplaced(misplaced[0]))
        fault = f"must have its answer {shown(text)} at answer_start {start}, got {shown(found)}"
        raise _fault(misplaced, fault, "count the code points before it, from 0", source)
