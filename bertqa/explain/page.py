"""HTML page of an explanation, self-contained, without libraries or network access.

Each figure has its formula and a link to the code that computes it. Without JavaScript the page
shows one head; page.js adds the choice of layer, head and token.
"""

from pathlib import Path

from bertqa.explain.explanation import Explanation, answer_text
from bertqa.explain.page_data import page_data, percent, rounded, signed, strength
from bertqa.explain.sources import sources
from bertqa.report.page import render


def page(explanation: Explanation) -> str:
    """Return the HTML page of an explanation."""
    return render(
        "explain/page.jinja",
        title=f"{explanation.question} – {answer_text(explanation.answer)}",
        script=(Path(__file__).parent / "page.js").read_text(encoding="utf-8"),
        **page_data(explanation),
        sources=sources(explanation.decoding),
        answer_text=answer_text,
        percent=percent,
        rounded=rounded,
        signed=signed,
        strength=strength,
        zip=zip,
    )
