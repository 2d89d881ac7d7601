"""The explanation of an answer as one HTML page, without libraries or network.

Each picture has the formula that it shows and the code that computes it beside it. The page works
without its script, page.js, which adds the choice of layer, head and token.
"""

from pathlib import Path

from bertqa.explain.explanation import Explanation, answer_text
from bertqa.explain.page_data import page_data, percent, rounded, signed, strength
from bertqa.explain.sources import sources
from bertqa.report.page import render


def page(explanation: Explanation) -> str:
    """The page of one answer, as HTML."""
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
