"""Text and JSON reports of an audit."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from itertools import chain
from pathlib import Path
from typing import Any

from bertqa.audit.causes import REFUSED, Cause
from bertqa.audit.findings import Audit, Finding
from bertqa.audit.repair import Change
from bertqa.data.text import Excerpt, shortened, visible
from bertqa.errors import counted
from bertqa.files import write_json

_SHOWN = 5  # findings per cause in the text report


def audit_text(audit: Audit) -> str:
    """Return the text report, with the first findings of each cause."""
    parts = [figures_text(audit), verdict(audit)]
    for title, causes in groups(audit):
        rows = [(cause.value, audit.counts[cause], cause.meaning) for cause in causes]
        parts.append("\n".join([f"{title}:", *_aligned(rows)]))
    parts += [_findings_text(cause, found) for cause, found in audit.by_cause.items()]
    return "\n\n".join(parts)


def figures_text(audit: Audit) -> str:
    """Return the statistics of the dataset and its windows."""
    (count, questions), *figures = [*dataset_statistics(audit), *window_statistics(audit)]
    widest = max(len(number) for number, _ in figures)
    lines = [f"  {number:>{widest}} {what}" for number, what in figures]
    return "\n".join([f"{visible(audit.source)}: {count} {questions}", *lines])


def dataset_statistics(audit: Audit) -> list[tuple[str, str]]:
    """Return the statistics of the dataset, as number and description, without zeros."""
    answered = audit.examples - audit.unanswerable
    figures = [
        _figure(audit.examples, "question"),
        _figure(audit.contexts, "context"),
        _figure(audit.titles, "title"),
        _figure(audit.answers, "gold answer"),
        _figure(audit.scattered, "question", " with gold answers at different positions"),
        _figure(audit.unanswerable, "question", " without an answer"),
    ]
    others = f"{'the other ' * bool(audit.unanswerable)}{counted(answered, 'question')}"
    exact = _figure(audit.exact, "exact label", f" for {others}")
    return [figure for figure in figures if figure[0] != "0"] + [exact] * bool(answered)


def _figure(number: int, noun: str, more: str = "") -> tuple[str, str]:
    count, _, what = counted(number, noun).partition(" ")
    return count, what + more


def window_statistics(audit: Audit) -> list[tuple[str, str]]:
    """Return the statistics of the windows, as number and description."""
    w, settings = audit.windows, audit.settings
    flags = f"--max_seq_length {settings.max_seq_length} and --doc_stride {settings.doc_stride}"
    lengths = (
        f": {w.shortest} to {w.longest}, median {w.quantile(0.5)}, 90th percentile "
        f"{w.quantile(0.9)}"
    ) * (w.shortest < w.longest)
    others = "; the others are labelled [CLS]" * (w.labelled < w.count)
    longest = f" in the longest question, limit {w.question_limit:,}"
    figures = [
        _figure(w.count, "window", f", with {flags}"),
        (f"{w.mean:.1f}", f"tokens per window on average{lengths}"),
    ]
    if audit.unanswerable < audit.examples:
        figures.append(_figure(w.labelled, "window", f" with a whole answer{others}"))
    if w.split_questions:
        more = f" in several windows, at most {w.most}"
        figures.append(_figure(w.split_questions, "question", more))
    if w.repeated_tokens:
        repeated = w.repeated_tokens / w.context_tokens
        figures.append((f"{repeated:.1%}", "of the context tokens are in the previous window too"))
    figures.append(_figure(w.longest_question, "token", longest))
    if w.long_questions:
        more = f" above the limit, by {counted(w.lost_tokens, 'token')}"
        figures.append(_figure(w.long_questions, "question", more))
    return figures


def verdict(audit: Audit) -> str:
    """Return one line that states whether training accepts the dataset."""
    if audit.refused:
        return f"bertqa train refuses it because of {counted(audit.refused, 'question')}"
    if audit.findings:
        return "bertqa train accepts it, with the findings below"
    return "bertqa train accepts it; there are no findings"


def groups(audit: Audit) -> Iterator[tuple[str, list[Cause]]]:
    """Yield the causes with findings: those that training refuses, then those it accepts."""
    for title, is_refused in (("bertqa train refuses", True), ("bertqa train accepts", False)):
        causes = [cause for cause in audit.by_cause if (cause in REFUSED) == is_refused]
        if causes:
            yield title, causes


def changes_text(changes: Sequence[Change]) -> str:
    """Return a list of all changes."""
    blocks = [
        [f"  row {change.row}, {visible(shortened(change.id))}: {visible(change.what)}"]
        + [f"    {_marked(change.excerpt)}"] * bool(change.excerpt.marked)
        for change in changes
    ]
    number = f"{len(changes):,}" if changes else "nothing"
    return "\n".join([f"repaired: {number}", *chain.from_iterable(blocks)])


def _findings_text(cause: Cause, found: Sequence[Finding]) -> str:
    blocks = []
    for finding in found[:_SHOWN]:
        around = _marked(finding.excerpt) or visible(shortened(finding.question))
        line = f"  row {finding.row}, {visible(shortened(finding.id))}: {visible(finding.detail)}"
        blocks.append([line, *[f"    {around}"] * bool(around)])
    if len(found) > _SHOWN:
        blocks.append([f"  and {len(found) - _SHOWN:,} more; --report FILE lists all"])
    return "\n".join([f"{cause.value}: {len(found):,}", *chain.from_iterable(blocks)])


def _marked(around: Excerpt) -> str:
    """Return an excerpt on one line, the answer between guillemets; "" for ``NOWHERE``."""
    before, marked, after = (visible(t) for t in (around.before, around.marked, around.after))
    return f"{before}\u00bb{marked}\u00ab{after}" if before or marked or after else ""


def _aligned(rows: Iterable[tuple[str, int, str]]) -> list[str]:
    """Align rows of a name, a number and a text in columns."""
    rows = list(rows)
    names = max(len(name) for name, _, _ in rows)
    numbers = max(len(f"{number:,}") for _, number, _ in rows)
    return [f"  {name:<{names}}  {number:>{numbers},}  {text}" for name, number, text in rows]


# --- JSON ----------------------------------------------------------------------------------------


def save_json(path: Path, audits: Sequence[Audit], changes: Sequence[Change] | None) -> None:
    """Write all findings as JSON; ``changes`` is None if no repair was requested.

    Raises:
        UserError: the file cannot be written.
    """
    document: dict[str, Any] = {
        "rules": {
            cause.value: {
                "meaning": cause.meaning,
                "repair": cause.repair,
                "refused": cause in REFUSED,
            }
            for cause in Cause
        },
        "audits": [_entries(audit) for audit in audits],
    }
    if changes is not None:
        document["changes"] = [asdict(change) for change in changes]
    write_json(path, document)


def _entries(audit: Audit) -> dict[str, Any]:
    """Return an audit as a JSON object, including derived statistics."""
    windows = audit.windows
    figures = {
        "count": windows.count, "mean": windows.mean, "median": windows.quantile(0.5),
        "shortest": windows.shortest, "longest": windows.longest,
    }  # fmt: skip
    found = asdict(audit)
    found["windows"] = figures | found["windows"]
    counts = {cause.value: count for cause, count in audit.counts.items()}
    findings = found.pop("findings")
    return found | {"refused": audit.refused, "counts": counts, "findings": findings}
