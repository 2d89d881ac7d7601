"""HTML report of an audit, self-contained, without scripts."""

from collections.abc import Sequence
from itertools import pairwise

from bertqa.audit.causes import Cause
from bertqa.audit.findings import Audit, WindowFigures
from bertqa.audit.repair import Change
from bertqa.audit.text import dataset_statistics, groups, verdict, window_statistics
from bertqa.data.text import NOWHERE
from bertqa.report.charts import Bar, histogram, ticks
from bertqa.report.page import render

_BARS = 32  # approximate number of bars in the histogram of window lengths


def audit_page(audits: Sequence[Audit], changes: Sequence[Change] | None = None) -> str:
    """Return all findings with their context as an HTML document.

    ``changes`` is None if no repair was requested.
    """
    return render(
        "audit/page.jinja",
        title=f"Data audit: {audits[0].source}",
        audits=audits,
        changes=changes,
        all_causes=list(Cause),
        nowhere=NOWHERE,
        groups=lambda audit: list(groups(audit)),
        dataset_statistics=dataset_statistics,
        lengths=_lengths,
        verdict=verdict,
        window_statistics=window_statistics,
    )


def _lengths(windows: WindowFigures) -> str:
    """Return a histogram of window lengths."""
    edges = [round(edge) for edge in ticks(0, max(_BARS, windows.longest + 1), about=_BARS)]
    bars = [Bar(start, end, sum(windows.lengths[start:end])) for start, end in pairwise(edges)]
    return histogram("Windows by their length", "tokens", bars)
