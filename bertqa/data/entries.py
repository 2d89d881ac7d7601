"""Entries of a file -> rows: what a form gives, and what rows are nested in.

An entry is a row (run_qa's flat form), a paragraph {"context", "qas": [row, ...]}
(simpletransformers, MRQA, KorQuAD 2), or an article {"title", "paragraphs": [paragraph, ...]}
(SQuAD v1.1 and v2.0). What a row is, rows.py says.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

from bertqa.data.rows import checked_list, checked_text, listed, require_keys
from bertqa.errors import UserError, shown


class Entry(NamedTuple):
    """A row, or what rows are nested in, as a reader finds it.

    Attributes:
        location: where it is, as a message says it, with the name of the file.
        value: what is there, not checked; the UserError in place of what cannot be read, so that
            it stops no other entry.
        raw: the bytes of a line of JSON lines, or what the parser of the file has made of the row.
        line: that of JSON lines, from 1; else 0.
        unread: keys that mean nothing here, of what it is nested in.
    """

    location: str
    value: Any
    raw: Any
    line: int = 0
    unread: tuple[str, ...] = ()


Entries = Iterator[Entry]
_KNOWN = {"data", "paragraphs", "qas", "question", "context"}


def value_or_fault(read: Callable[..., Any], *arguments: Any) -> Any:
    """What a function returns; the UserError that it raises, in place of that."""
    try:
        return read(*arguments)
    except UserError as error:
        return error


def document_entries(document: Any, source: str) -> Entries:
    """The entries of a whole JSON document: rows, paragraphs or articles, or one of these."""
    if isinstance(document, list):
        return _entries(document, f"{source}, ")
    if not isinstance(document, dict) or not document.keys() & _KNOWN:
        found = listed(document) if isinstance(document, dict) else shown(document)
        raise UserError(
            f"{source} is JSON, but no data set (found: {found}); "
            'give {"data": [...]}, as SQuAD does, or rows with question and context'
        )
    if "data" in document:
        unread = _unread(document, "document", "data", "version")
        data = checked_list(document["data"], "data", source)
        return _entries(data, f"{source}, data", unread)
    return _entries([document], f"{source}, ")


def _entries(entries: Iterable[Any], prefix: str, unread: tuple[str, ...] = ()) -> Entries:
    numbered = enumerate(entries)
    return (Entry(f"{prefix}[{n}]", entry, entry, unread=unread) for n, entry in numbered)


def _unread(outer: dict[str, Any], name: str, *read: str) -> tuple[str, ...]:
    """The keys that mean nothing here, of what rows are nested in."""
    return tuple(f"{name}.{key}" for key in outer if key not in read)


def flat_rows(entries: Entries) -> Entries:
    """The rows of any entries: an article has paragraphs, a paragraph questions, a row neither."""
    for entry in entries:
        inner = value_or_fault(_inner, entry)
        if isinstance(inner, UserError):
            yield entry._replace(value=inner)
        elif inner is None:
            yield entry
        else:
            yield from flat_rows(inner)


def _inner(entry: Entry) -> Entries | None:
    """What is nested in an article or a paragraph; None for a row."""
    value, location = entry.value, entry.location
    if not isinstance(value, dict) or "question" in value:
        return None
    if value.keys() == {"header"}:  # MRQA's first line
        return iter(())
    title = {"title": value.get("title")}
    if "paragraphs" in value:
        unread = _unread(value, "article", "title", "paragraphs")
        return _within(entry, "paragraphs", ["qas"], title, unread)
    if "qas" in value:
        unread = _unread(value, "paragraph", "title", "context", "qas")
        context = value_or_fault(_context, value, location)
        return _within(entry, "qas", [], {"context": context} | title, unread)
    return None


def _context(paragraph: dict[str, Any], location: str) -> str:
    """A paragraph's context, as its questions get it."""
    require_keys(paragraph, ["context"], location)
    return checked_text(paragraph["context"], "context", location)


def _within(
    entry: Entry, key: str, needed: list[str], more: dict[str, Any], unread: tuple[str, ...]
) -> Entries:
    """The items of a list in an entry, with more keys, where these are not null."""
    given = {name: value for name, value in more.items() if value is not None}

    def merged(value: Any, location: str) -> dict[str, Any]:
        require_keys(value, needed, location)
        if isinstance(fault := given.get("context"), UserError):
            raise fault
        row = {**value, **given}
        if value.get("context") not in (None, row.get("context")):
            raise UserError(f"{location}: context must be its paragraph's; remove one of them")
        return row

    def item(number: int, value: Any) -> Entry:
        location = f"{entry.location}.{key}[{number}]"
        raw = entry.raw if entry.line else value
        row = value_or_fault(merged, value, location)
        return Entry(location, row, raw, entry.line, entry.unread + unread)

    items = enumerate(checked_list(entry.value[key], key, entry.location))
    return (item(number, value) for number, value in items)
