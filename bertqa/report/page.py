"""What the HTML pages share: one file each, nothing fetched, no script needed, light and dark."""

import base64
import hashlib
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

from bertqa.data.text import visible

_FILES = Path(__file__).parent


def document(title: str, body: Iterable[str], *, style: str = "", script: str = "") -> str:
    """A page in the common style, pages.css.

    Args:
        body: parts that are HTML already.
        style: rules of this page alone.
        script: the one that it may run, at its end.
    """
    common = (_FILES / "pages.css").read_text(encoding="utf-8")
    # What the page may do: draw itself, and run this one script. Nothing is loaded from anywhere.
    policy = "default-src 'none'; style-src 'unsafe-inline'"
    if script:
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        policy += f"; script-src 'sha256-{digest}'"
    return "\n".join(
        [
            '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            '<meta name="color-scheme" content="light dark">',
            f"<title>{escape(visible(title))}</title>",
            f"<style>\n{common}{style}</style>\n</head>\n<body>",
            *body,
            f"<script>{script}</script>\n</body>\n</html>\n" if script else "</body>\n</html>\n",
        ]
    )


def text(content: str) -> str:
    """Text of the data for HTML; what hides in it is shown as its escape."""
    # The escapes of HTML bring nothing that hides, so the order is free of harm.
    return visible(escape(content), lambda form: f'<i class="hidden">{form}</i>')


def table(
    caption: str, heads: Sequence[tuple[str, str]], rows: Iterable[Sequence[str]], *, first: str
) -> str:
    """A table of cells that are HTML already.

    Args:
        heads: of each column the name and the class of its cells.
        first: the element of the first cell of a row, th or td.
    """
    head = "".join(f'<th scope="col"{_class(kind)}>{name}</th>' for name, kind in heads)
    lines = []
    for row in rows:
        cells = []
        for place, (cell, (_, kind)) in enumerate(zip(row, heads, strict=True)):
            is_head = place == 0 and first == "th"
            tag, scope = ("th", ' scope="row"') if is_head else ("td", "")
            cells.append(f"<{tag}{scope}{_class(kind)}>{cell}</{tag}>")
        lines.append(f"<tr>{''.join(cells)}</tr>")
    body = "\n".join(lines)
    return (
        f'<div class="scroll"><table class="list"><caption>{caption}</caption>\n'
        f"<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody></table></div>"
    )


def figures(entries: Iterable[tuple[object, str]]) -> str:
    """Numbers, each with what it counts."""
    rows = "".join(f"<dt>{number}</dt><dd>{what}</dd>\n" for number, what in entries)
    return f'<dl class="figures">\n{rows}</dl>'


def _class(kind: str) -> str:
    return f' class="{kind}"' if kind else ""
