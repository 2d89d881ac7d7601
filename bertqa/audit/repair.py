"""Unambiguous repairs of a dataset, listed in causes.py, and the repaired copy.

An answer is moved only to a position at which its label reproduces it: "art" is not found in
"party". All other faults remain.
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
from bertqa.settings import COPY_ENDINGS


@dataclass(frozen=True, slots=True)
class Change:
    """A repair.

    Attributes:
        row: row of the original dataset, from 0.
        id: id of that row.
        what: description of the repair.
        excerpt: the context around the repaired answer; ``NOWHERE`` if it does not concern one.
    """

    row: int
    id: str
    what: str
    excerpt: Excerpt = NOWHERE


@dataclass(frozen=True)
class Repaired:
    """A repaired dataset and its changes, in the order of rows."""

    examples: list[Example]
    changes: tuple[Change, ...]


# --- search --------------------------------------------------------------------------------------


def occurs_at(context: str, text: str, start: int) -> bool:
    """Return whether the context has the text at ``start``; False for a negative start."""
    return start >= 0 and context.startswith(text, start)


def occurrences(context: str, text: str) -> list[int]:
    """Return all offsets at which a non-empty text occurs, including overlapping ones."""
    return [match.start() for match in re.finditer(f"(?={re.escape(text)})", context)]


def loose_occurrences(context: str, text: str) -> list[tuple[int, int]]:
    """Return slices of the context that equal the text up to case, whitespace and normalization.

    They begin and end at grapheme cluster boundaries: "cafe" is not found in "café".
    """
    folded, origins = _folded(context)
    wanted = _folded(text.strip())[0]
    found = []
    for start in occurrences(folded, wanted) if wanted else []:
        stop = start + len(wanted)
        is_whole_start = start == 0 or origins[start - 1] != origins[start]
        is_whole_end = stop == len(folded) or origins[stop - 1] != origins[stop]
        if is_whole_start and is_whole_end:
            found.append((origins[start][0], origins[stop - 1][1]))
    return found


@lru_cache(maxsize=2)  # neighboring questions share a context, which may be long
def _folded(text: str) -> tuple[str, list[tuple[int, int]]]:
    """Casefold and normalize a text; return it with the original slice of each character."""
    pieces: list[str] = []
    origins: list[tuple[int, int]] = []
    for start, end in grapheme_clusters(text):
        cluster = text[start:end]
        folded = unicodedata.normalize("NFKD", cluster).casefold()
        piece = " " if cluster.isspace() else unicodedata.normalize("NFKD", folded)
        if piece != " " or pieces[-1:] != [" "]:
            pieces.append(piece)
            origins += [(start, end)] * len(piece)
    return "".join(pieces), origins


# --- answers -------------------------------------------------------------------------------------


class _Answer(NamedTuple):
    """A gold answer before and after its repair, and the repair, "" for none.

    A new text of "" removes the answer; a missing start is None. ``is_searched`` is set if the new
    start was found by searching for the text.
    """

    old_text: str
    old_start: int | None
    text: str
    start: int | None
    done: str = ""
    is_searched: bool = False

    def undone(self) -> "_Answer":
        """Return the answer without its repair."""
        return _Answer(self.old_text, self.old_start, self.old_text, self.old_start)


def _relocated(context: str, text: str, start: int | None) -> _Answer:
    """Move a nonblank answer to its only possible offset; keep it if there is not exactly one."""
    old = _Answer(text, start, text, start)
    leading = len(text) - len(text.lstrip())
    bare = text.strip()
    if start is not None and occurs_at(context, text, start):
        if bare == text:
            return old
        return old._replace(text=bare, start=start + leading, done="stripped of whitespace")
    exact = occurrences(context, text)
    if exact:
        found = [(offset + leading, offset + leading + len(bare)) for offset in exact]
        done = "moved to its only occurrence"
    else:
        found = [(offset, offset + len(bare)) for offset in occurrences(context, bare)]
        done = "moved to its only occurrence without whitespace"
    if not found:
        found = loose_occurrences(context, text)
        done = "replaced by its only similar text in the context"
    if len(found) != 1:
        return old
    start, stop = found[0]
    return old._replace(text=context[start:stop], start=start, done=done, is_searched=True)


def _proposed(example: Example) -> list[_Answer]:
    """Return the possible repairs of a question's answers."""
    texts = example.answers or ()
    are_even = len(texts) == len(example.answer_starts)
    known = [None if start == -1 else start for start in example.answer_starts]
    starts = known if are_even else [None] * len(texts)
    some = any(map(str.strip, texts))
    answers = []
    for text, start in zip(texts, starts, strict=True):
        if text.strip():
            answers.append(_relocated(example.context, text, start))
        elif some:
            answers.append(_Answer(text, start, "", None, "removed, because it is blank"))
        else:
            answers.append(_Answer(text, start, text, start))
    return answers


def _are_reproduced(probes: Sequence[Example], tokenizer: BertTokenizer) -> list[bool]:
    """Return whether the label of each example reproduces its answer, independent of windows."""
    index: dict[str, int] = {}
    rows = [index.setdefault(probe.context, len(index)) for probe in probes]
    context_of = torch.tensor(rows, dtype=torch.int64)
    contexts = tokenizer.encode(list(index))
    tokens = answer_tokens(probes, contexts, context_of)
    held = torch.ones(len(probes), dtype=torch.bool)
    outcome = outcomes(probes, contexts, context_of, tokens, held)
    return (outcome == Outcome.EXACT).tolist()


def _repaired_answers(
    examples: Sequence[Example], tokenizer: BertTokenizer
) -> Iterator[tuple[int, list[_Answer]]]:
    """Yield the rows whose answers change, with those answers."""
    proposed = {row: _proposed(e) for row, e in enumerate(examples) if _is_faulty(e)}
    searched = [
        (row, number, Example("", "", examples[row].context, (answer.text,), (answer.start,)))
        for row, answers in proposed.items()
        for number, answer in enumerate(answers)
        if answer.is_searched and answer.start is not None
    ]
    reproduced = _are_reproduced([probe for _, _, probe in searched], tokenizer)
    for (row, number, _), is_reproduced in zip(searched, reproduced, strict=True):
        if not is_reproduced:
            proposed[row][number] = proposed[row][number].undone()
    for row, answers in proposed.items():
        is_complete = all(answer.start is not None or not answer.text for answer in answers)
        if is_complete and any(answer.done for answer in answers):
            yield row, answers


def _is_faulty(example: Example) -> bool:
    texts, starts = example.answers or (), example.answer_starts
    return len(texts) != len(starts) or any(
        text != text.strip() or not text or not occurs_at(example.context, text, start)
        for text, start in zip(texts, starts, strict=True)
    )


def _change(row: int, example: Example, answer: _Answer) -> Change:
    old = shown(answer.old_text) + ("" if answer.old_start is None else f" at {answer.old_start}")
    if answer.start is None:
        return Change(row, example.id, f"answer {old}: {answer.done}")
    new = f"{shown(answer.text)} at {answer.start}"
    end = answer.start + len(answer.text)
    around = excerpt(example.context, answer.start, end)
    return Change(row, example.id, f"answer {old} is now {new}: {answer.done}", around)


# --- ids -----------------------------------------------------------------------------------------


def _without_duplicates(examples: Sequence[Example]) -> tuple[list[Example], list[Change]]:
    """Return the examples with unique ids, and the changes."""
    taken = {example.id for example in examples}
    first_rows: dict[str, int] = {}
    kept: list[Example] = []
    seen: set[Example] = set()
    numbers: dict[str, int] = {}  # id -> its last suffix
    changes = []
    for row, example in enumerate(examples):
        first = first_rows.setdefault(example.id, row)
        if first == row:
            kept.append(example)
        elif example in seen:
            changes.append(Change(row, example.id, "removed: exact duplicate of an earlier row"))
        else:
            name = example.id
            while name in taken:
                numbers[example.id] = numbers.get(example.id, 1) + 1
                name = f"{example.id}-{numbers[example.id]}"
            taken.add(name)
            kept.append(replace(example, id=name))
            what = f"id is now {shown(name)}: row {first} has the same id, but differs"
            changes.append(Change(row, example.id, what))
        seen.add(example)
    return kept, changes


def repair(examples: Sequence[Example], tokenizer: BertTokenizer) -> Repaired:
    """Make all unambiguous repairs and keep all other faults.

    Unchanged examples are returned as the same objects.
    """
    repaired = list(examples)
    changes = []
    for row, answers in _repaired_answers(examples, tokenizer):
        kept = [answer for answer in answers if answer.text]
        repaired[row] = replace(
            examples[row],
            answers=tuple(answer.text for answer in kept),
            answer_starts=tuple(answer.start for answer in kept if answer.start is not None),
        )
        changes += [_change(row, examples[row], answer) for answer in answers if answer.done]
    unique, more = _without_duplicates(repaired)
    return Repaired(unique, tuple(sorted([*changes, *more], key=lambda c: c.row)))


# --- output --------------------------------------------------------------------------------------


def save_examples(path: Path, examples: Sequence[Example]) -> None:
    """Write examples atomically in a format of ``read_examples``.

    ``.json`` is run_qa's flat format, one row per line; ``.jsonl`` has only the rows. Keys that
    ``Example`` does not have are lost.

    Raises:
        UserError: another suffix, or the file cannot be written.
    """
    if path.suffix.lower() not in COPY_ENDINGS:
        needed = f"must end in {' or '.join(COPY_ENDINGS)}, got {shown(path.suffix)}"
        raise UserError(f"{path}: {needed}: rename it")
    rows = [json.dumps(_row(example), ensure_ascii=False) for example in examples]
    whole = '{"data": [\n' + ",\n".join(rows) + "\n]}\n"
    write_text(path, whole if path.suffix.lower() == ".json" else "\n".join(rows) + "\n")


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
        row["is_impossible"] = False  # an empty list without it means that there is no answer
    return row
