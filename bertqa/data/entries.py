"""Entries of a file -> rows, unnested.

An entry is a row (run_qa's flat format, see rows.py), a paragraph {"context", "qas": [row, ...]}
(simpletransformers, MRQA, KorQuAD 2), or an article {"title", "paragraphs": [paragraph, ...]}
(SQuAD v1.1 and v2.0).
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

from bertqa.data.rows import checked_list, checked_text, listed, require_keys
from bertqa.errors import UserError, shown


class Entry(NamedTuple):
    """A row, paragraph or article, as parsed.

    Attributes:
        location: its location for messages, with the name of the file.
        value: its unchecked value; a UserError if it cannot be read, so that other entries can be.
        raw: bytes of a line of JSON lines; in other formats the parsed row.
        line: line number in JSON lines, from 1; else 0.
        ignored_keys: ignored keys of its paragraph, article and document.
    """

    location: str
    value: Any
    raw: Any
    line: int = 0
    ignored_keys: tuple[str, ...] = ()


Entries = Iterator[Entry]
_KNOWN = {"data", "paragraphs", "qas", "question", "context"}


def value_or_fault(read: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function; return its result, or the UserError that it raises."""
    try:
        return read(*arguments)
    except UserError as error:
        return error


def document_entries(document: Any, source: str) -> Entries:
    """Return the entries of a JSON document: rows, paragraphs or articles, or a single one."""
    if isinstance(document, list):
        return _entries(document, f"{source}, ")
    if not isinstance(document, dict) or not document.keys() & _KNOWN:
        found = listed(document) if isinstance(document, dict) else shown(document)
        raise UserError(
            f"{source}: must be a dataset, got JSON with {found}: "
            'use {"data": [...]}, as in SQuAD, or rows with question and context'
        )
    if "data" in document:
        ignored = _ignored_keys(document, "document", "data", "version")
        data = checked_list(document["data"], "data", source)
        return _entries(data, f"{source}, data", ignored)
    return _entries([document], f"{source}, ")


def _entries(entries: Iterable[Any], prefix: str, ignored_keys: tuple[str, ...] = ()) -> Entries:
    numbered = enumerate(entries)
    return (Entry(f"{prefix}[{n}]", entry, entry, 0, ignored_keys) for n, entry in numbered)


def _ignored_keys(outer: dict[str, Any], name: str, *known: str) -> tuple[str, ...]:
    """Return the keys of an article, paragraph or document that are not read."""
    return tuple(f"{name}.{key}" for key in outer if key not in known)


def flat_rows(entries: Entries) -> Entries:
    """Yield the rows of entries: unnest articles and paragraphs."""
    for entry in entries:
        inner = value_or_fault(_inner, entry)
        if isinstance(inner, UserError):
            yield entry._replace(value=inner)
        elif inner is None:
            yield entry
        else:
            yield from flat_rows(inner)


def _inner(entry: Entry) -> Entries | None:
    """Return the entries nested in an article or a paragraph; None for a row."""
    value, location = entry.value, entry.location
    if not isinstance(value, dict) or "question" in value:
        return None
    if value.keys() == {"header"}:  # MRQA's first line
        return iter(())
    title = {"title": value.get("title")}
    if "paragraphs" in value:
        ignored = _ignored_keys(value, "article", "title", "paragraphs")
        return _within(entry, "paragraphs", ["qas"], title, ignored)
    if "qas" in value:
        ignored = _ignored_keys(value, "paragraph", "title", "context", "qas")
        context = value_or_fault(_context, value, location)
        return _within(entry, "qas", [], {"context": context} | title, ignored)
    return None


def _context(paragraph: dict[str, Any], location: str) -> str:
    """Return a paragraph's context."""
    require_keys(paragraph, ["context"], location)
    return checked_text(paragraph["context"], "context", location)


def _within(
    entry: Entry, key: str, needed: list[str], more: dict[str, Any], ignored_keys: tuple[str, ...]
) -> Entries:
    """Return the items of a list in an entry, each with the keys ``more`` that are not null."""
    given = {name: value for name, value in more.items() if value is not None}

    def merged(value: Any, location: str) -> dict[str, Any]:
        require_keys(value, needed, location)
        if isinstance(fault := given.get("context"), UserError):
            raise fault
        row = {**value, **given}
        if value.get("context") not in (None, row.get("context")):
            raise UserError(f"{location}: context must be the paragraph's, got another: remove one")
        return row

    def item(number: int, value: Any) -> Entry:
        location = f"{entry.location}.{key}[{number}]"
        raw = entry.raw if entry.line else value
        row = value_or_fault(merged, value, location)
        return Entry(location, row, raw, entry.line, entry.ignored_keys + ignored_keys)

    items = enumerate(checked_list(entry.value[key], key, entry.location))
    return (item(number, value) for number, value in items)
