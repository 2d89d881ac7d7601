"""An audit as one HTML page: no script, nothing fetched, in light and dark."""

from collections.abc import Sequence
from html import escape
from itertools import pairwise
from pathlib import Path

from bertqa.audit.findings import RULES, Audit, Cause, Finding
from bertqa.audit.repair import Change
from bertqa.audit.text import groups, verdict
from bertqa.data.text import Excerpt, shortened
from bertqa.files import write_text
from bertqa.report.charts import Bar, histogram, ticks
from bertqa.report.page import document, figures, table, text

_BARS = 32  # of the histogram of window lengths, about
_OPEN = 20  # up to so many findings of a cause stand open


def save_page(path: Path, audits: Sequence[Audit], changes: Sequence[Change] | None) -> None:
    """Write the page of some audits; ``changes`` is None where nothing was to be repaired.

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
    return document(f"Data audit: {audits[0].source}", ["<main>", *parts, "</main>"])


def _excerpt(around: Excerpt) -> str:
    return f"{text(around.before)}<mark>{text(around.marked)}</mark>{text(around.after)}"


# --- the parts of the page -----------------------------------------------------------------------


def _audit_parts(audit: Audit) -> list[str]:
    kind = "refused" if audit.refused else "taken"
    parts = [f"<h2><bdi>{text(audit.source)}</bdi></h2>"]
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


def _holdings(audit: Audit) -> str:
    answered = audit.examples - audit.unanswerable
    return figures(
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
    return figures(
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
        (
            f"{f.row:,}",
            f"<bdi>{text(shortened(f.id))}</bdi>",
            _place(f),
            f"<bdi>{text(f.detail)}</bdi>",
        )
        for f in found
    ]
    return (
        f"<details{' open' * (len(found) <= _OPEN)}><summary>{cause.value}: {count:,} "
        f"question{'s' * (count != 1)}</summary>\n"
        f"{table(escape(caption), heads, rows, first='td')}\n</details>"
    )


def _place(finding: Finding) -> str:
    """The text around an answer and the question, each in the direction of its own writing."""
    question = f'<p dir="auto">{text(shortened(finding.question))}</p>'
    around = finding.excerpt
    if not (around.before or around.marked or around.after):
        return question
    return f'<p dir="auto">{_excerpt(around)}</p>{question}'


def _change_parts(changes: Sequence[Change]) -> list[str]:
    parts = [f"<h2>What was repaired in the copy: {len(changes):,}</h2>"]
    if not changes:
        return [*parts, "<p>Nothing could be repaired.</p>"]
    heads = [("row", "n"), ("id", "id"), ("text now", "wide"), ("change", "wide")]
    rows = [
        (
            f"{c.row:,}",
            f"<bdi>{text(shortened(c.id))}</bdi>",
            f'<p dir="auto">{_excerpt(c.excerpt)}</p>' if c.excerpt.marked else "",
            f"<bdi>{text(c.what)}</bdi>",
        )
        for c in changes
    ]
    return [
        *parts,
        table("Rows are those of the data set that was read.", heads, rows, first="td"),
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
        f"{table(caption, heads, rows, first='th')}\n</details>",
    ]
