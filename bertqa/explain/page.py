"""What an answer was made of, as one page: HTML without libraries, network or need of scripts.

Every picture stands with the formula that it shows and the code that computes it. The page
is whole as it is written; its script, page.js, adds the free choice of layer, head and token.
"""

from collections.abc import Sequence
from html import escape
from pathlib import Path

from bertqa.explain.explanation import Explanation
from bertqa.explain.formulas import Source, sources
from bertqa.explain.html import (
    SECTIONS,
    anchor,
    answer_text,
    foreign,
    json_of,
    shown_percent,
    signed,
    text_of,
)
from bertqa.explain.layers import attention_section, heads_section, lens_section, parts_section
from bertqa.explain.script_data import packed_attention, script_data
from bertqa.explain.spans import candidates_section, context_section, highlights, matrix_section
from bertqa.report.page import render

# Where the repository's files can be read, such as https://HOST/OWNER/NAME/blob/main; None while
# there is no such place. The page holds the lines themselves in any case.
SOURCE_URL: str | None = None

_FILES = Path(__file__).parent


def page(explanation: Explanation, *, source_url: str | None = SOURCE_URL) -> str:
    """The page of one answer.

    Args:
        source_url: where the repository's files can be read, for links beside the code that
            the page holds; None leaves them out.
    """
    e = explanation
    style = (_FILES / "page.css").read_text(encoding="utf-8")
    script = (_FILES / "page.js").read_text(encoding="utf-8")
    attention = packed_attention(e.inside.attentions)
    found = sources(e.decoding)
    body = [
        _header(e),
        context_section(e, found["context"]),
        candidates_section(e, found["candidates"]),
        matrix_section(e, found["matrix"]),
        lens_section(e, found["lens"]),
        heads_section(e, found["heads"]),
        attention_section(e, attention, found["attention"]),
        parts_section(e, found["parts"]),
        _code([source for group in found.values() for source in group], source_url),
    ]
    numbers = json_of(script_data(e, attention))
    body += [f'<script type="application/json" id="data">{numbers}</script>']
    return render(
        "explain/page.jinja",
        title=f"{e.question} – {answer_text(e.answer)}",
        script=script,
        style=style + highlights(e),
        body="\n".join(['<a class="skip" href="#context">To the answer in its text</a>', *body]),
    )


def _header(e: Explanation) -> str:
    answer = e.answer.answer
    links = "".join(f'<li><a href="#{key}">{name}</a></li>' for key, name in SECTIONS.items())
    place = "the text has none" if e.is_null else f"characters {answer.start} to {answer.end}"
    facts = {
        "Probability": f"<b>{shown_percent(answer.probability)}</b>",
        "Score": f"{signed(answer.start_logit)} {signed(answer.end_logit)} = "
        f"<b>{signed(answer.score)}</b>",
        "Place": place,
        "Window": f"{e.window + 1} of {len(e.null_scores)}, {len(e.tokens)} tokens",
        "Model": f"{foreign(e.model_name) if e.model_name else 'not named'}, "
        f"{e.inside.attentions.shape[0]} layers of {e.inside.attentions.shape[1]} heads",
        "Precision": _precision(e),
    }
    listed = "".join(f"<div><dt>{name}</dt><dd>{fact}</dd></div>" for name, fact in facts.items())
    return (
        '<header><p class="kicker">Why this answer?</p>'
        f'<h1 dir="auto" lang="">{text_of(e.question)}</h1>'
        f'<p class="said"><span class="vh">Answer: </span>'
        f'<span dir="auto" lang="">{text_of(answer_text(e.answer))}</span></p>'
        f'<dl class="facts">{listed}</dl>'
        f'<nav aria-label="Sections"><ul>{links}</ul></nav></header>\n<main>'
    )


def _precision(e: Explanation) -> str:
    if e.is_in_fp32:
        return "answered and explained in fp32"
    return (
        f"answered in {escape(e.answered_in)}, explained in fp32, where the answer's score is "
        f"{signed(e.explained_score)}"
    )


def _code(found: Sequence[Source], source_url: str | None) -> str:
    """The functions themselves, so that the page is whole by itself."""
    parts = []
    for source in dict.fromkeys(found):
        last = source.first + len(source.lines) - 1
        link = (
            f' <a href="{escape(source_url.rstrip("/"))}/{source.path}#L{source.first}">in the '
            "repository</a>"
            if source_url
            else ""
        )
        parts.append(
            f'<details open id="{anchor(source)}"><summary><code>{escape(source.key)}</code> in '
            f"{escape(source.path)}, lines {source.first} to {last}</summary>"
            f'<pre tabindex="0"><code>{escape(chr(10).join(source.lines))}</code></pre>'
            f"{link}</details>"
        )
    return (
        f'<section id="code" aria-labelledby="h-code"><h2 id="h-code">{SECTIONS["code"]}</h2>'
        '<p class="lead">The functions and classes that computed what is above.</p>'
        f"{''.join(parts)}</section></main>"
    )
