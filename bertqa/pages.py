"""What the HTML pages share: one file each, nothing fetched, no script needed, light and dark."""

from collections.abc import Iterable, Sequence
from html import escape

from bertqa.excerpts import visible

_STYLE = """
:root { color-scheme: light dark; --ink: #1c1c1c; --paper: #fff; --soft: #595959; --line: #d8d8d8;
  --mark: #ffe38a; --bad: #a8200d; --good: #00694c; --code: #f1f1f1 }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e6e6; --paper: #151515; --soft: #a8a8a8;
  --line: #3a3a3a; --mark: #6b5300; --bad: #ff8f7d; --good: #57d3a9; --code: #262626 } }
body { font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper);
  max-width: 72rem; margin: 0 auto; padding: 1rem 1.25rem 4rem }
h1 { font-size: 1.7rem; margin: 1rem 0 0 } h2 { font-size: 1.3rem; margin: 2.5rem 0 .5rem }
h3 { font-size: 1.1rem; margin: 1.5rem 0 .3rem } h4 { font-size: 1rem; margin: 1rem 0 .3rem }
h2 { overflow-wrap: anywhere } p { margin: .4rem 0 }
.refused, .worse { color: var(--bad); font-weight: 600 }
.taken, .better { color: var(--good); font-weight: 600 }
.scroll { overflow-x: auto }
table { border-collapse: collapse; width: 100% } caption { text-align: start; color: var(--soft) }
th, td { text-align: start; vertical-align: top; padding: .3rem .8rem .3rem 0;
  border-bottom: 1px solid var(--line) }
thead th { color: var(--soft); font-weight: 500; font-size: .87rem } tbody th { font-weight: 500 }
.n { text-align: end; font-variant-numeric: tabular-nums; width: 4rem }
.id { width: 11rem } table:has(.wide) { table-layout: fixed; min-width: 44rem }
td.id { overflow-wrap: anywhere; font-size: .87rem }
td p { margin: 0 } td p + p { margin-top: .15rem; color: var(--soft); font-size: .9rem }
td.wide { overflow-wrap: anywhere }
mark { background: var(--mark); color: inherit; padding: 0 .1em; border-radius: .15em }
i.hidden { font: .8em ui-monospace, monospace; color: var(--soft); background: var(--code) }
details { margin: .5rem 0; border: 1px solid var(--line); border-radius: .4rem;
  padding: .4rem .8rem } summary { cursor: pointer; font-weight: 500 }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .15rem 1rem; margin: .5rem 0 }
dt { text-align: end; font-variant-numeric: tabular-nums; font-weight: 600 } dd { margin: 0 }
figure { margin: 1rem 0; max-width: 46rem } svg { width: 100%; height: auto }
""".strip()


def document(title: str, parts: Iterable[str]) -> str:
    """A page of parts that are HTML already."""
    return "\n".join(
        [
            "<!DOCTYPE html>",
            '<html lang="en"><head><meta charset="utf-8">',
            '<meta http-equiv="Content-Security-Policy" '
            "content=\"default-src 'none'; style-src 'unsafe-inline'\">",
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{escape(visible(title))}</title>",
            f"<style>\n{_STYLE}\n</style></head><body><main>",
            *parts,
            "</main></body></html>\n",
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
        f'<div class="scroll"><table><caption>{caption}</caption>\n<thead><tr>{head}</tr></thead>\n'
        f"<tbody>\n{body}\n</tbody></table></div>"
    )


def figures(entries: Iterable[tuple[object, str]]) -> str:
    """Numbers, each with what it counts."""
    rows = "".join(f"<dt>{number}</dt><dd>{what}</dd>\n" for number, what in entries)
    return f"<dl>\n{rows}</dl>"


def _class(kind: str) -> str:
    return f' class="{kind}"' if kind else ""
