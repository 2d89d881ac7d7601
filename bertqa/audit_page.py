"""An audit as one HTML page: no script, nothing fetched, in light and dark."""

from collections.abc import Iterable, Sequence
from html import escape
from itertools import pairwise
from pathlib import Path

from bertqa.audit import RULES, Audit, Cause, Finding
from bertqa.audit_text import groups, verdict
from bertqa.charts import Bar, histogram, ticks
from bertqa.excerpts import Excerpt, visible
from bertqa.files import write_text
from bertqa.mending import Change

_BARS = 32  # of the histogram of window lengths, about
_OPEN = 20  # up to so many findings of a cause stand open

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
.refused { color: var(--bad); font-weight: 600 } .taken { color: var(--good); font-weight: 600 }
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


def save_page(path: Path, audits: Sequence[Audit], changes: Sequence[Change] | None) -> None:
    """Write the page of some audits; ``changes`` is None where nothing was to be mended.

    Raises:
        UserError: it cannot be written.
    """
    write_text(path, audit_page(audits, changes))


def audit_page(audits: Sequence[Audit], changes: Sequence[Change] | None = None) -> str:
    """All that was found, every finding with its place, as an HTML document."""
    parts = ["<h1>Data audit</h1>"]
    for audit in audits:
        parts += _audit_parts(audit)
    if changes is not None:
        parts += _change_parts(changes)
    parts += _rule_parts()
    return "\n".join(
        [
            "<!DOCTYPE html>",
            '<html lang="en"><head><meta charset="utf-8">',
            '<meta http-equiv="Content-Security-Policy" '
            "content=\"default-src 'none'; style-src 'unsafe-inline'\">",
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>Data audit: {escape(visible(audits[0].source))}</title>",
            f"<style>\n{_STYLE}\n</style></head><body><main>",
            *parts,
            "</main></body></html>\n",
        ]
    )


# --- text in HTML --------------------------------------------------------------------------------


def _text(text: str) -> str:
    """Text of the data for HTML; what hides in it is shown as its escape."""
    # The escapes of HTML bring nothing that hides, so the order is free of harm.
    return visible(escape(text), lambda form: f'<i class="hidden">{form}</i>')


def _excerpt(around: Excerpt) -> str:
    return f"{_text(around.before)}<mark>{_text(around.marked)}</mark>{_text(around.after)}"


def _table(
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


def _class(kind: str) -> str:
    return f' class="{kind}"' if kind else ""


# --- the parts of the page -----------------------------------------------------------------------


def _audit_parts(audit: Audit) -> list[str]:
    kind = "refused" if audit.refused else "taken"
    parts = [f"<h2><bdi>{_text(audit.source)}</bdi></h2>"]
    parts.append(f'<p class="{kind}">{escape(verdict(audit))}.</p>')
    parts += ["<h3>What it holds</h3>", _holdings(audit)]
    parts += ["<h3>Windows</h3>", _windows(audit), _lengths(audit)]
    parts.append("<h3>What was found</h3>")
    if not audit.findings:
        parts.append("<p>Nothing.</p>")
    for title, causes in groups(audit):
        parts.append(f"<h4>{title}</h4>")
        parts += [_cause(cause, audit.by_cause[cause], audit.counts[cause]) for cause in causes]
    return parts


def _figures(entries: Iterable[tuple[object, str]]) -> str:
    """Numbers, each with what it counts."""
    rows = "".join(f"<dt>{number}</dt><dd>{what}</dd>\n" for number, what in entries)
    return f"<dl>\n{rows}</dl>"


def _holdings(audit: Audit) -> str:
    answered = audit.examples - audit.unanswerable
    return _figures(
        [
            (f"{audit.examples:,}", "questions"),
            (f"{audit.contexts:,}", "contexts"),
            (f"{audit.titles:,}", "titles of articles"),
            (f"{audit.answers:,}", "gold answers"),
            (f"{audit.unanswerable:,}", "questions without an answer"),
            (
                f"{audit.exact:,}",
                f"of the other {answered:,} have a label that gives back their answer",
            ),
        ]
    )


def _windows(audit: Audit) -> str:
    windows, settings = audit.windows, audit.settings
    repeated = windows.repeated_tokens / max(1, windows.context_tokens)
    return _figures(
        [
            (
                f"{windows.count:,}",
                f"windows, by --max_seq_length {settings.max_seq_length} and --doc_stride "
                f"{settings.doc_stride}",
            ),
            (f"{windows.labelled:,}", "hold the whole answer, the others are labelled [CLS]"),
            (
                f"{windows.split_questions:,}",
                f"questions take several windows, at most {windows.most}",
            ),
            (f"{repeated:.1%}", "of the context tokens repeat those of a window before"),
            (
                f"{windows.longest_question:,}",
                f"tokens has the longest question; {windows.question_limit:,} fit",
            ),
            (
                f"{windows.long_questions:,}",
                f"questions are longer, by {windows.lost_tokens:,} tokens in all",
            ),
        ]
    )


def _lengths(audit: Audit) -> str:
    """How long the windows are, as a picture with its figures below."""
    windows = audit.windows
    edges = [round(edge) for edge in ticks(0, max(_BARS, windows.longest + 1), about=_BARS)]
    bars = [Bar(start, end, sum(windows.lengths[start:end])) for start, end in pairwise(edges)]
    picture = histogram("Windows by their length", "tokens", bars)
    return (
        f"<figure>\n{picture}<figcaption>{windows.shortest} to {windows.longest} tokens, half of "
        f"the windows have up to {windows.quantile(0.5)}, nine in ten up to "
        f"{windows.quantile(0.9)}; mean {windows.mean:.1f}.</figcaption></figure>"
    )


def _cause(cause: Cause, found: Sequence[Finding], count: int) -> str:
    """The findings of a cause, folded away where they are many."""
    rule = RULES[cause]
    caption = f"{rule.meaning[0].upper()}{rule.meaning[1:]}."
    if rule.repair:
        caption += f" --repair: {rule.repair}."
    heads = [("row", "n"), ("id", "id"), ("question and text", "wide"), ("fault", "wide")]
    rows = [
        (f"{f.row:,}", f"<bdi>{_text(f.id)}</bdi>", _place(f), f"<bdi>{_text(f.detail)}</bdi>")
        for f in found
    ]
    return (
        f"<details{' open' * (len(found) <= _OPEN)}><summary>{cause.value}: {count:,} "
        f"question{'s' * (count != 1)}</summary>\n"
        f"{_table(escape(caption), heads, rows, first='td')}\n</details>"
    )


def _place(finding: Finding) -> str:
    """The text around an answer and the question, each in the direction of its own writing."""
    question = f'<p dir="auto">{_text(finding.question)}</p>'
    around = finding.excerpt
    if not (around.before or around.marked or around.after):
        return question
    return f'<p dir="auto">{_excerpt(around)}</p>{question}'


def _change_parts(changes: Sequence[Change]) -> list[str]:
    parts = [f"<h2>What was mended in the copy: {len(changes):,}</h2>"]
    if not changes:
        return [*parts, "<p>Nothing could be mended.</p>"]
    heads = [("row", "n"), ("id", "id"), ("text now", "wide"), ("change", "wide")]
    rows = [
        (
            f"{c.row:,}",
            f"<bdi>{_text(c.id)}</bdi>",
            f'<p dir="auto">{_excerpt(c.excerpt)}</p>' if c.excerpt.marked else "",
            f"<bdi>{_text(c.what)}</bdi>",
        )
        for c in changes
    ]
    return [
        *parts,
        _table("Rows are those of the data set that was read.", heads, rows, first="td"),
    ]


def _rule_parts() -> list[str]:
    rows = [
        (cause.value, escape(rule.meaning), escape(rule.repair)) for cause, rule in RULES.items()
    ]
    heads = [("cause", ""), ("what it means", ""), ("what --repair does", "")]
    caption = (
        "Rows are counted from 0. The same question is the same but for case and blanks, the same "
        "answer one that the official rules of exact match accept."
    )
    return [
        "<h2>What the causes mean</h2>",
        f"<details><summary>All {len(rows)} of them</summary>\n"
        f"{_table(caption, heads, rows, first='th')}\n</details>",
    ]
