"""Repairing a data set: what can be put right without a guess, and the copy that holds it.

    answer elsewhere       moved, if its text occurs in the context exactly once
    answer nowhere         replaced by the context's own text, if that differs by case, blanks or
                           Unicode form alone and occurs there exactly once
    blanks at its ends     stripped, the start moved along
    blank beside others    left out
    starts missing         searched for, if every answer of the question occurs exactly once
    id twice               an exact repeat is left out, another question gets a new id

An answer is moved only to where its label would give it back: "art" is not found in "party". All
else stays as it is, whatever is wrong with it.
"""

import json
import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import torch

from bertqa.data.graphemes import grapheme_clusters
from bertqa.data.labels import Outcome, answer_tokens, outcomes
from bertqa.data.squad import Example
from bertqa.data.text import NOWHERE, Excerpt, excerpt
from bertqa.data.tokenization import BertTokenizer
from bertqa.errors import UserError, shown
from bertqa.files import write_text

COPY_ENDINGS = (".json", ".jsonl")


@dataclass(frozen=True, slots=True)
class Change:
    """One thing that was repaired.

    Attributes:
        row: of the data set that was read, from 0.
        id: of its question there.
        what: what was done.
        excerpt: the context around the answer as it is now; ``NOWHERE`` where it is not about one.
    """

    row: int
    id: str
    what: str
    excerpt: Excerpt = NOWHERE


@dataclass(frozen=True)
class Repaired:
    """A data set after repairing, and every change to it, in the order of its rows."""

    examples: list[Example]
    changes: tuple[Change, ...]


# --- where a text occurs -------------------------------------------------------------------------


def stands(context: str, text: str, start: int) -> bool:
    """Whether a context has a text at ``start``; never for a negative start."""
    return start >= 0 and context.startswith(text, start)


def occurrences(context: str, text: str) -> list[int]:
    """Every position at which a non-empty text occurs, overlapping ones too."""
    return [match.start() for match in re.finditer(f"(?={re.escape(text)})", context)]


def loose_occurrences(context: str, text: str) -> list[tuple[int, int]]:
    """Slices of the context that are the text but for case, blanks and Unicode form.

    They begin and end where grapheme clusters do: "cafe" is not found in "café".
    """
    folded, origins = _folded(context)
    wanted = _folded(text.strip())[0]
    found = []
    for first in occurrences(folded, wanted) if wanted else []:
        last = first + len(wanted)
        is_whole_start = first == 0 or origins[first - 1] != origins[first]
        is_whole_end = last == len(folded) or origins[last - 1] != origins[last]
        if is_whole_start and is_whole_end:
            found.append((origins[first][0], origins[last - 1][1]))
    return found


@lru_cache(maxsize=2)  # neighbouring questions ask about the same text, which may be a book
def _folded(text: str) -> tuple[str, list[tuple[int, int]]]:
    """The text without case, runs of blanks and Unicode forms, and whence each character came."""
    pieces: list[str] = []
    origins: list[tuple[int, int]] = []
    for start, end in grapheme_clusters(text):
        written = text[start:end]
        folded = unicodedata.normalize("NFKD", written).casefold()
        piece = " " if written.isspace() else unicodedata.normalize("NFKD", folded)
        if piece != " " or pieces[-1:] != [" "]:
            pieces.append(piece)
            origins += [(start, end)] * len(piece)
    return "".join(pieces), origins


# --- answers -------------------------------------------------------------------------------------


class _Answer(NamedTuple):
    """A gold answer as it was and as it is to be, and what was done to it, "" for nothing.

    A new text of "" leaves it out; a start is None where there is none. ``is_sought`` says that
    the new start was found by searching for the text.
    """

    old_text: str
    old_start: int | None
    text: str
    start: int | None
    done: str = ""
    is_sought: bool = False

    def undone(self) -> "_Answer":
        """The answer left as it was."""
        return _Answer(self.old_text, self.old_start, self.old_text, self.old_start)


def _placed(context: str, text: str, start: int | None) -> _Answer:
    """An answer that is not blank, at the one place where it can be; as it was if there is none."""
    old = _Answer(text, start, text, start)
    blanks = len(text) - len(text.lstrip())
    bare = text.strip()
    if start is not None and stands(context, text, start):
        if bare == text:
            return old
        return old._replace(text=bare, start=start + blanks, done="stripped of blanks at its ends")
    exact = occurrences(context, text)
    if exact:
        found = [(place + blanks, place + blanks + len(bare)) for place in exact]
        done = "moved to the one place where it stands"
    else:
        found = [(place, place + len(bare)) for place in occurrences(context, bare)]
        done = "moved to the one place where it stands without its blanks"
    if not found:
        found = loose_occurrences(context, text)
        done = "replaced by the text's own form, which stands there once"
    if len(found) != 1:
        return old
    first, last = found[0]
    return old._replace(text=context[first:last], start=first, done=done, is_sought=True)


def _proposed(example: Example) -> list[_Answer]:
    """What may become of the answers of a question."""
    texts = example.answers or ()
    are_even = len(texts) == len(example.answer_starts)
    known = [None if start == -1 else start for start in example.answer_starts]
    starts = known if are_even else [None] * len(texts)
    some = any(map(str.strip, texts))
    answers = []
    for text, start in zip(texts, starts, strict=True):
        if text.strip():
            answers.append(_placed(example.context, text, start))
        elif some:
            answers.append(_Answer(text, start, "", None, "left out, since it is blank"))
        else:
            answers.append(_Answer(text, start, text, start))
    return answers


def _give_back(probes: Sequence[Example], tokenizer: BertTokenizer) -> list[bool]:
    """Whether the label of each example gives back its answer, whatever the windows."""
    places: dict[str, int] = {}
    rows = [places.setdefault(probe.context, len(places)) for probe in probes]
    context_of = torch.tensor(rows, dtype=torch.int64)
    contexts = tokenizer.encode(list(places))
    tokens = answer_tokens(probes, contexts, context_of)
    held = torch.ones(len(probes), dtype=torch.bool)
    outcome = outcomes(probes, contexts, context_of, tokens, held)
    return (outcome == Outcome.EXACT).tolist()


def _mended_answers(
    examples: Sequence[Example], tokenizer: BertTokenizer
) -> Iterator[tuple[int, list[_Answer]]]:
    """The rows whose answers change, with those answers."""
    proposed = {row: _proposed(e) for row, e in enumerate(examples) if _is_faulty(e)}
    sought = [
        (row, number, Example("", "", examples[row].context, (answer.text,), (answer.start,)))
        for row, answers in proposed.items()
        for number, answer in enumerate(answers)
        if answer.is_sought and answer.start is not None
    ]
    rights = _give_back([probe for _, _, probe in sought], tokenizer)
    for (row, number, _), right in zip(sought, rights, strict=True):
        if not right:
            proposed[row][number] = proposed[row][number].undone()
    for row, answers in proposed.items():
        is_whole = all(answer.start is not None or not answer.text for answer in answers)
        if is_whole and any(answer.done for answer in answers):
            yield row, answers


def _is_faulty(example: Example) -> bool:
    texts, starts = example.answers or (), example.answer_starts
    return len(texts) != len(starts) or any(
        text != text.strip() or not text or not stands(example.context, text, start)
        for text, start in zip(texts, starts, strict=True)
    )


def _change(row: int, example: Example, answer: _Answer) -> Change:
    old = f"{shown(answer.old_text)}" + (
        "" if answer.old_start is None else f" at {answer.old_start}"
    )
    if answer.start is None:
        return Change(row, example.id, f"the answer {old} is {answer.done}")
    new = f"{shown(answer.text)} at {answer.start}"
    end = answer.start + len(answer.text)
    around = excerpt(example.context, answer.start, end)
    return Change(row, example.id, f"the answer {old} is now {new}: {answer.done}", around)


# --- ids, and all of it --------------------------------------------------------------------------


def _without_repeats(examples: Sequence[Example]) -> tuple[list[Example], list[Change]]:
    """The examples with each id once."""
    taken = {example.id for example in examples}
    first_rows: dict[str, int] = {}
    kept: list[Example] = []
    seen: set[Example] = set()
    numbers: dict[str, int] = {}  # the last that was put behind an id
    changes = []
    for row, example in enumerate(examples):
        first = first_rows.setdefault(example.id, row)
        if first == row:
            kept.append(example)
        elif example in seen:
            changes.append(Change(row, example.id, "left out: an exact repeat of an earlier row"))
        else:
            name = example.id
            while name in taken:
                numbers[example.id] = numbers.get(example.id, 1) + 1
                name = f"{example.id}-{numbers[example.id]}"
            taken.add(name)
            kept.append(replace(example, id=name))
            what = f"the id is now {shown(name)}: it is row {first}'s, which differs"
            changes.append(Change(row, example.id, what))
        seen.add(example)
    return kept, changes


def repair(examples: Sequence[Example], tokenizer: BertTokenizer) -> Repaired:
    """Put right what needs no guess; what does, stays.

    Examples without a fault are the same objects afterwards.
    """
    repaired = list(examples)
    changes = []
    for row, answers in _mended_answers(examples, tokenizer):
        kept = [answer for answer in answers if answer.text]
        repaired[row] = replace(
            examples[row],
            answers=tuple(answer.text for answer in kept),
            answer_starts=tuple(answer.start for answer in kept if answer.start is not None),
        )
        changes += [_change(row, examples[row], answer) for answer in answers if answer.done]
    without_repeats, more = _without_repeats(repaired)
    return Repaired(without_repeats, tuple(sorted([*changes, *more], key=lambda c: c.row)))


# --- the copy ------------------------------------------------------------------------------------


def save_examples(path: Path, examples: Sequence[Example]) -> None:
    """Write examples so that ``read_examples`` gives them back, whole or not at all.

    ``.json`` is run_qa's flat form, one row a line, ``.jsonl`` the rows alone. Of a row that was
    read from another file, keys that an ``Example`` does not have are lost.

    Raises:
        UserError: another ending, or the file cannot be written.
    """
    if path.suffix not in COPY_ENDINGS:
        raise UserError(f"{path} must end in {' or '.join(COPY_ENDINGS)}: rename it")
    rows = [json.dumps(_row(example), ensure_ascii=False) for example in examples]
    whole = '{"data": [\n' + ",\n".join(rows) + "\n]}\n"
    write_text(path, whole if path.suffix == ".json" else "\n".join(rows) + "\n")


def _row(example: Example) -> dict[str, Any]:
    row: dict[str, Any] = {"id": example.id}
    if example.title:
        row["title"] = example.title
    row |= {"context": example.context, "question": example.question}
    row["answers"] = {
        "text": list(example.answers or ()),
        "answer_start": list(example.answer_starts),
    }
    if example.answers is None:
        row["is_impossible"] = False  # an empty list alone would say that there is no answer
    return row
