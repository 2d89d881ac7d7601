"""Texts, numbers and tables of a user's, as HTML that is whole whatever they hold."""

import json
import unicodedata
from collections.abc import Iterable, Sequence
from html import escape

from bertqa.data.text import shortened
from bertqa.explain.explanation import Candidate
from bertqa.explain.formulas import FORMULAS, Source
from bertqa.report.page import clean

SECTIONS = {
    "context": "Where it stands",
    "candidates": "What it won against",
    "matrix": "All spans around it",
    "lens": "Layer by layer",
    "heads": "The heads it needs",
    "attention": "Who looks at whom",
    "parts": "The words it rests on",
    "code": "The code",
}


def text_of(text: str) -> str:
    """Any text as HTML, in an element or between quotation marks."""
    return escape(clean(text))


def foreign(text: str) -> str:
    """A text of the user's, whatever its script: it does not turn round what stands beside it."""
    return f"<bdi>{text_of(text)}</bdi>"


def json_of(value: object) -> str:
    """JSON that ends no script element, whatever is in it."""
    return json.dumps(value, ensure_ascii=True, separators=(",", ":")).replace("<", "\\u003c")


def signed(value: float, decimals: int = 3) -> str:
    """With a sign, and with a minus that is as wide as the plus."""
    return f"{value:+.{decimals}f}".replace("-", "−")


def decimals_of(most: float) -> int:
    """How many a table shows, by its largest number; more would make it too wide to be seen."""
    return 2 if most >= 0.1 else 3


def rounded(value: float, decimals: int) -> str:
    """With a sign, if there is anything left of it."""
    return signed(value, decimals) if round(value, decimals) else "0"


def percent(probability: float) -> str:
    """Short: whole per cents from ten on, below one decimal."""
    if probability < 0.0005:
        return "<0.1%" if probability > 0 else "0%"
    return f"{100 * probability:.{1 if probability < 0.1 else 0}f}%"


def shown_percent(probability: float) -> str:
    """The same as HTML."""
    return escape(percent(probability))


def answer_text(candidate: Candidate | None) -> str:
    """An answer on one line; also that there is none."""
    if candidate is None:
        return "(none)"
    return shortened(" ".join(candidate.answer.text.split())) or "(no answer)"


def direction_of(text: str) -> str:
    """Which way a text is written, by its first letter."""
    kinds = (unicodedata.bidirectional(character) for character in text)
    first = next((kind for kind in kinds if kind in ("L", "R", "AL")), "L")
    return "ltr" if first == "L" else "rtl"


def strength(value: float) -> str:
    """How strong a colour is, from 0 to 1; small numbers are to be seen as well."""
    return f"{max(0.0, value) ** 0.5:.2f}"


def style_of(**values: str) -> str:
    """Custom properties of an element; those that are 0 are the default."""
    said = ";".join(f"--{name}:{value}" for name, value in values.items() if float(value))
    return f' style="{said}"' if said else ""


def table_of(kind: str, caption: str, head: Sequence[str], rows: Iterable[str]) -> str:
    """A table with a head, of a kind that page.css knows."""
    cells = "".join(f'<th scope="col">{cell}</th>' for cell in head)
    return scrolled(
        f'<table class="{kind}"><caption>{caption}</caption><thead><tr>{cells}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table>",
        caption,
    )


def scrolled(content: str, name: str) -> str:
    """What may be wider than a phone; it can be reached and moved by keyboard."""
    return f'<div class="scroll" tabindex="0" role="region" aria-label="{name}">{content}</div>'


def section_of(key: str, lead: str, content: str, formulas: Sequence[str], notes: str) -> str:
    """A picture, and beside it the formula and the code."""
    maths = "".join(FORMULAS[name] for name in formulas)
    return (
        f'<section id="{key}" aria-labelledby="h-{key}"><h2 id="h-{key}">{SECTIONS[key]}</h2>\n'
        f'<p class="lead">{lead}</p>\n<div class="pair"><div class="picture">{content}</div>\n'
        f'<div class="note">{maths}{notes}</div></div></section>'
    )


def code_links(found: Iterable[Source]) -> str:
    """The functions and classes, by place, with a way to them."""
    links = (
        f'<a href="#{anchor(source)}"><code>{escape(source.place)}</code></a>' for source in found
    )
    return f'<p class="code">Computed in {", ".join(links)}</p>'


def anchor(source: Source) -> str:
    """The id of a function or class in the page."""
    return f"code-{source.key.replace('.', '-')}"
