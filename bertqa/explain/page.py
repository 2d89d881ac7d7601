"""What an answer was made of, as one page: HTML without libraries, network or need of scripts.

Every picture stands with the formula that it shows and the code that computes it. The page,
page.jinja, is whole as it is written; its script, page.js, adds the free choice of layer, head and
token.
"""

from pathlib import Path

from bertqa.explain.explanation import Explanation, answer_text
from bertqa.explain.page_data import page_data, percent, rounded, signed, strength
from bertqa.explain.sources import sources
from bertqa.report.page import render

# Where the repository's files can be read, such as https://HOST/OWNER/NAME/blob/main; None while
# there is no such place. The page holds the lines themselves in any case.
SOURCE_URL: str | None = None


def page(explanation: Explanation, *, source_url: str | None = SOURCE_URL) -> str:
    """The page of one answer.

    Args:
        source_url: where the repository's files can be read, for links beside the code that
            the page holds; None leaves them out.
    """
    return render(
        "explain/page.jinja",
        title=f"{explanation.question} – {answer_text(explanation.answer)}",
        script=(Path(__file__).parent / "page.js").read_text(encoding="utf-8"),
        **page_data(explanation),
        sources=sources(explanation.decoding),
        source_url=source_url and source_url.rstrip("/"),
        answer_text=answer_text,
        percent=percent,
        rounded=rounded,
        signed=signed,
        strength=strength,
        zip=zip,
    )
