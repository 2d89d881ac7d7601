"""The page of an answer, its first half: the text, the spans that competed, and all around it."""

from collections.abc import Iterator, Sequence
from html import escape

from torch import Tensor

from bertqa.data.text import shortened
from bertqa.explain.explanation import Candidate, Explanation
from bertqa.explain.formulas import Source
from bertqa.explain.html import (
    answer_text,
    code_links,
    foreign,
    percent,
    scrolled,
    section_of,
    shown_percent,
    signed,
    strength,
    style_of,
    table_of,
    text_of,
)

_ROWS = 20  # most rows of a table of spans
_OUTSIDE = 600  # characters of the context that are shown before and after the window


def context_section(e: Explanation, found: Sequence[Source]) -> str:
    """The text with P_start and P_end as heat, and the answer in it."""
    legend = (
        '<p class="legend"><span class="swatch s">start</span> upper half: P<sub>start</sub> '
        '<span class="swatch e">end</span> lower half: P<sub>end</sub> '
        '<span class="swatch a">answer</span> the chosen span</p>'
    )
    text = f'<p class="text" dir="auto" lang="">{"".join(_pieces(e))}</p>'
    strongest = (
        '<div class="two">'
        + _strongest(e, "start", "S·T", e.start_logits, e.start_probabilities)
        + _strongest(e, "end", "E·T", e.end_logits, e.end_probabilities)
        + "</div>"
    )
    lead = (
        "Each word piece has a probability of being where the answer starts and where it ends. "
        "The stronger the colour, the higher it is; a probability of 1% can just be seen."
    )
    if len(e.null_scores) > 1:
        lead += (
            f" The text is read in {len(e.null_scores)} windows; this is window {e.window + 1}, "
            "and what is grey lies outside of it."
        )
    notes = (
        "<p>T<sub>i</sub> is what the last layer makes of token i; S is one learned vector. With E "
        "in place of S it is P<sub>end</sub>. The sum runs over all tokens of the window, those of "
        "the question included.</p>" + code_links(found)
    )
    return section_of("context", lead, legend + text + strongest, ["context"], notes)


def _strongest(e: Explanation, kind: str, vector: str, logits: Tensor, p: Tensor) -> str:
    """The tokens that are likeliest to be the start, or the end."""
    rows = (
        f'<tr><th scope="row">{foreign(e.tokens[i])}</th><td>{signed(float(logits[i]))}</td>'
        f'<td class="bar {kind}"{style_of(p=f"{float(p[i]):.2f}")}>'
        f"{shown_percent(float(p[i]))}</td></tr>"
        for i in p.argsort(descending=True)[:5].tolist()
    )
    return table_of("numbers", f"Strongest {kind}s", ["Word piece", vector, "P"], rows)


def _pieces(e: Explanation) -> Iterator[str]:
    """The context, each word piece with its heat, the answer marked."""
    cells = list(e.cells())
    first = e.window_start
    last = first + sum(len(cell.text) for cell in cells)
    yield _outside(e.context[:first], before=True)
    span = range(0) if e.is_null else range(e.answer.first, e.answer.last + 1)
    inside = [i for i, cell in enumerate(cells) if any(place in span for place in cell.places)]
    for number, cell in enumerate(cells):
        if inside and number == inside[0]:
            yield '<mark class="answer">'
        if not cell.places:
            yield text_of(shortened(cell.text))
        else:
            start, end = (
                float(p[list(cell.places)].sum())
                for p in (e.start_probabilities, e.end_probabilities)
            )
            style = style_of(s=strength(min(1, start)), e=strength(min(1, end)))
            title = escape(f"start {percent(start)}, end {percent(end)}")
            yield (
                f'<span class="w" id="w{cell.places.start}"{style} title="{title}">'
                f"{text_of(shortened(cell.text))}</span>"
            )
        if inside and number == inside[-1]:
            yield "</mark>"
    yield _outside(e.context[last:], before=False)


def _outside(text: str, *, before: bool) -> str:
    """What of the context is not in the window; of much only what is near."""
    if not text.strip():
        return text_of(text)
    near = text[-_OUTSIDE:] if before else text[:_OUTSIDE]
    more = f"[{len(text) - len(near):,} characters]" if len(near) < len(text) else ""
    shown = f"{more} … {near}" if more and before else f"{near} … {more}" if more else near
    return f'<span class="outside">{text_of(shown)}</span>'


def highlights(e: Explanation) -> str:
    """Rules that show a span in the text while its row in the table is pointed at."""
    cells = [cell.places for cell in e.cells() if cell.places]
    rules = []
    for number, candidate in _rows(e):
        if candidate.window != e.window or not candidate.answer.text:
            continue
        span = range(candidate.first, candidate.last + 1)
        words = ",".join(f"#w{p.start}" for p in cells if any(i in span for i in p))
        rules.append(f":root:has(#c{number}:is(:hover,:focus-within)) :is({words}){{--on:1}}\n")
    return "".join(rules)


def _rows(e: Explanation) -> list[tuple[int, Candidate]]:
    """The candidates that the page shows, numbered; the answer and "no answer" are always there."""
    return [
        (i, c)
        for i, c in enumerate(e.candidates)
        if i < _ROWS or i == e.chosen or not c.answer.text
    ]


def candidates_section(e: Explanation, found: Sequence[Source]) -> str:
    """The n best, and of several windows the best of each."""
    several = len(e.null_scores) > 1
    head = ["Answer", *["Window"] * several, "Characters", "S·T<sub>i</sub>", "E·T<sub>j</sub>"]
    rows = [_candidate(e, number, candidate, several) for number, candidate in _rows(e)]
    content = table_of(
        "numbers spans",
        f"The best spans, best first{_precision(e)}",
        [*head, "Sum", "Probability"],
        rows,
    )
    if several:
        content += table_of(
            "numbers spans",
            "The best span of each window, in fp32",
            [*head, "Sum", "Probability"],
            _window_rows(e),
        )
    most = e.decoding.max_answer_length
    competing = (
        f"The {e.decoding.n_best_size} best starts and the {e.decoding.n_best_size} best ends of "
        f"each window make the spans, of at most {most} tokens, that compete"
        if e.decoding.decoder == "top20"
        else f"Every span of at most {most} tokens competes"
    )
    lead = (
        f"{competing} with its two scores. Point at a row, or reach it with the Tab key, to see it "
        "in the text above."
    )
    notes = f"<p>{_normalised(e)}</p>{_null_note(e)}{_other_numbers(e)}{code_links(found)}"
    formulas = ["candidates", "probability"]
    if e.prediction.null_odds is not None:
        formulas.append("null")
    return section_of("candidates", lead, content, formulas, notes)


def _precision(e: Explanation) -> str:
    """Which the answer was found in, where the rest of the page is in another."""
    return "" if e.is_in_fp32 else f", in {escape(e.answered_in)}"


def _other_numbers(e: Explanation) -> str:
    """Which numbers of the page are in which precision."""
    if e.is_in_fp32:
        return ""
    null = ", and the null score with what it is compared to" * (e.prediction.null_odds is not None)
    windows = ", the table of windows among them," * (len(e.null_scores) > 1)
    return (
        f"<p>The answer was found in {escape(e.answered_in)}: so are its scores and probability, "
        f"here and at the top of the page, those of the other best spans{null}. The numbers of the "
        f"other pictures and tables{windows} are in fp32.</p>"
    )


def _normalised(e: Explanation) -> str:
    """What the sum under a probability runs over."""
    null = ", “no answer” among them" * (e.prediction.null_odds is not None)
    if e.decoding.decoder == "top20":
        return (
            f"The sum of a probability runs over the rows of the first table alone{null}, as "
            "run_qa has it; in a table of windows over all spans of all windows."
        )
    return (
        f"The sum runs over the spans (k, l) of all windows{null}: those with k ≤ l and at most "
        f"{e.decoding.max_answer_length} tokens."
    )


def _candidate(e: Explanation, number: int, candidate: Candidate, several: bool) -> str:
    """A row of the table; its answer leads to its place in the text."""
    answer = candidate.answer
    name = foreign(answer_text(candidate))
    cells = [cell.places for cell in e.cells() if candidate.first in cell.places]
    if answer.text and candidate.window == e.window and cells:
        name = f'<a href="#w{cells[0].start}">{name}</a>'
    if number == e.chosen:
        name += ' <span class="badge">the answer</span>'
    return _span_row(f' id="c{number}"', name, candidate, several, number == e.chosen)


def _span_row(
    attributes: str, name: str, candidate: Candidate, several: bool, is_chosen: bool
) -> str:
    answer = candidate.answer
    probability = shown_percent(answer.probability)
    window = f"<td>{candidate.window + 1}</td>" if several else ""
    place = f"{answer.start}–{answer.end}" if answer.text else "–"
    return (
        f'<tr{attributes}{" class=chosen" if is_chosen else ""}><th scope="row">{name}</th>'
        f"{window}<td>{place}</td>"
        f"<td>{signed(answer.start_logit)}</td><td>{signed(answer.end_logit)}</td>"
        f"<td>{signed(answer.score)}</td>"
        f'<td class="bar"{style_of(p=f"{answer.probability:.2f}")}>{probability}</td></tr>'
    )


def _window_rows(e: Explanation) -> Iterator[str]:
    """The best spans of the windows, as many as there is room for, in the order of the text."""
    best = sorted(filter(None, e.best_spans), key=lambda c: -c.answer.score)[:_ROWS]
    for candidate in sorted(best, key=lambda c: c.window):
        name = foreign(answer_text(candidate))
        yield _span_row("", name, candidate, True, candidate.window == e.window)


def _null_note(e: Explanation) -> str:
    odds = e.prediction.null_odds
    if odds is None:
        return ""
    if not e.prediction.best_span:
        return "<p>The text has no span, so the answer is “no answer”.</p>"
    null = next(c.answer.score for c in e.candidates if not c.answer.text)
    return (
        "<p>The null score is that of [CLS], the lowest of all windows: here "
        f"{signed(null)}. It passes the best span's score by {signed(odds)}; above "
        f"{signed(e.decoding.null_score_diff_threshold)} the answer is “no answer”.</p>"
    )


def matrix_section(e: Explanation, found: Sequence[Source]) -> str:
    """Starts by ends around the answer."""
    matrix = e.span_matrix()
    lead = (
        "A row is a start, a column an end. A span cannot end before it starts: that half is "
        "hatched. The stronger the colour, the higher the score."
    )
    notes = (
        f"<p>Spans of more than {e.decoding.max_answer_length} tokens are hatched as well.</p>"
        + code_links(found)
    )
    if matrix is None:
        return section_of("matrix", lead, "<p>The window has no span.</p>", ["matrix"], notes)
    allowed = ~(matrix.backward | matrix.too_long)
    values = matrix.scores[allowed]
    low, high = float(values.min()), float(values.max())

    def cell(row: int, column: int) -> str:
        i, j = matrix.starts[row], matrix.ends[column]
        if not allowed[row, column]:
            why = "j < i" if matrix.backward[row, column] else "too long"
            return f'<td class="never" title="{escape(why)}"><span class="vh">no span</span></td>'
        value = float(matrix.scores[row, column])
        share = ((value - low) / (high - low or 1)) ** 2
        is_answer = (i, j) == (e.answer.first, e.answer.last)
        title = text_of(f"{e.tokens[i]} … {e.tokens[j]}: {signed(value)}")
        shown = signed(value, 1)
        attributes = " class=chosen" * is_answer + style_of(v=f"{share:.2f}")
        return f'<td{attributes} title="{title}">{f"<b>{shown}</b>" if is_answer else shown}</td>'

    columns = "".join(
        f'<th scope="col"><span>{foreign(e.tokens[j])}</span></th>' for j in matrix.ends
    )
    rows = "".join(
        f'<tr><th scope="row">{foreign(e.tokens[i])}</th>'
        f"{''.join(cell(row, column) for column in range(len(matrix.ends)))}</tr>"
        for row, i in enumerate(matrix.starts)
    )
    caption = "Scores of the spans from a row's token to a column's"
    table = (
        f'<table class="matrix"><caption>{caption}</caption><thead><tr><td class="corner">start ↓ '
        f"end →</td>{columns}</tr></thead><tbody>{rows}</tbody></table>"
    )
    return section_of("matrix", lead, scrolled(table, caption), ["matrix"], notes)
