"""The page of an answer, its second half: layers, heads, attention, and the part of each word."""

from collections.abc import Mapping, Sequence

from torch import Tensor

from bertqa.explain.explanation import Explanation
from bertqa.explain.formulas import Source
from bertqa.explain.html import (
    answer_text,
    code_links,
    decimals_of,
    direction_of,
    foreign,
    percent,
    rounded,
    section_of,
    shown_percent,
    signed,
    strength,
    style_of,
    table_of,
    text_of,
)
from bertqa.explain.script_data import PackedAttention
from bertqa.report.charts import Line, line_chart

_LIST = 8  # rows of a list of tokens
_MATTERS = 0.01  # of log-likelihood; a head that is worth less is as good as not needed
_STRIPS = {
    "lens": "Tokens by start and end probability",
    "attention": "Tokens by attention",
    "parts": "Tokens by what they add to the score",
}


def lens_section(e: Explanation, found: Sequence[Source]) -> str:
    """What S and E read after each layer: a chart, a table, the tokens."""
    rows = (
        f'<tr id="layer-{number}"><th scope="row">{_layer_name(number)}</th>'
        f"<td>{foreign(answer_text(reading.best))}</td>"
        f'<td class="bar start"{style_of(p=f"{reading.start_probability:.2f}")}>'
        f"{shown_percent(reading.start_probability)}</td><td>{reading.start_rank}</td>"
        f'<td class="bar end"{style_of(p=f"{reading.end_probability:.2f}")}>'
        f"{shown_percent(reading.end_probability)}</td><td>{reading.end_rank}</td></tr>"
        for number, reading in enumerate(e.layers)
    )
    last = len(e.layers) - 1
    controls = (
        '<div class="controls" id="lens-controls" hidden><label for="lens-layer">Layer</label>'
        f'<input type="range" id="lens-layer" min="0" max="{last}" value="{last}" '
        'aria-describedby="lens-says"><output id="lens-says" for="lens-layer" aria-live="polite">'
        "</output></div>"
    )
    probabilities = e.layer_logits[-1].softmax(dim=-1)
    strip = _strip(
        e,
        "lens",
        [
            style_of(s=strength(float(s)), e=strength(float(t)))
            for s, t in zip(*probabilities, strict=True)
        ],
        [
            f"start {percent(float(s))}, end {percent(float(t))}"
            for s, t in zip(*probabilities, strict=True)
        ],
    )
    table = table_of(
        "numbers readings",
        "What S and E read after each layer",
        ["After", "Best span there", "P<sub>start</sub>", "Rank", "P<sub>end</sub>", "Rank"],
        rows,
    )
    lead = (
        "S and E have learned to read the last layer. Held against the earlier ones, they show "
        "when the answer's start and end begin to stand out from the other tokens."
    )
    notes = (
        "<p>This is the logit lens, with S and E in place of the words of a vocabulary. P and rank "
        "are those of the answer's own start and end among all tokens of the window.</p>"
        + code_links(found)
    )
    return section_of(
        "lens", lead, _lens_chart(e) + table + controls + strip, ["lens", "context"], notes
    )


def _layer_name(number: int) -> str:
    """Layers are counted from 0, as in checkpoints and in ``intervene``."""
    return f"layer {number - 1}" if number else "embeddings"


def _lens_chart(e: Explanation) -> str:
    """P_start and P_end of the answer over the layers, as a picture; the table has the numbers."""
    names = ["embedded", *map(str, range(len(e.layers) - 1))]
    lines = [
        Line("start", [(i, 100 * r.start_probability) for i, r in enumerate(e.layers)]),
        Line("end", [(i, 100 * r.end_probability) for i, r in enumerate(e.layers)]),
    ]
    title = "Probability of the answer's start and end after each layer, %"
    chart = line_chart(title, "layer", lines, x_names=names, y_ticks=(0, 25, 50, 75, 100))
    return f'<figure class="chart">\n{chart}</figure>'


def _strip(
    e: Explanation,
    key: str,
    styles: Sequence[str],
    titles: Sequence[str],
    minus: Sequence[bool] = (),
) -> str:
    """All tokens of the window as the model reads them, one after the other.

    Args:
        styles, titles: of each token.
        minus: which stand for a number below 0.
    """
    places = {"q": e.question_places, "c": e.context_starts}
    parts = []
    for i, token in enumerate(e.tokens):
        kinds = "t " + next((name for name, group in places.items() if i in group), "x")
        is_part = token.startswith("##") and len(token) > 2
        shown = token[2:] if is_part else token
        kinds += " part" * is_part + " minus" * (bool(minus) and minus[i])
        title = text_of(f"{token}: {titles[i]}")
        parts.append(f'<span class="{kinds}"{styles[i]} title="{title}">{text_of(shown)}</span>')
    direction = direction_of(e.context)
    return (
        f'<div class="strip {key}" id="{key}-tokens" dir="{direction}" lang="" tabindex="0" '
        f'role="group" aria-label="{_STRIPS[key]}">'
        f"{''.join(parts)}</div>"
    )


def heads_section(e: Explanation, found: Sequence[Source]) -> str:
    """The worth of every head and layer."""
    heads = e.inside.head_effects.shape[1]
    most = float(e.inside.head_effects.abs().max())
    deepest = float(e.inside.layer_effects.abs().max())

    def cell(value: float, scale: float, title: str, kind: str) -> str:
        sign = "minus" if value < 0 else ""
        style = style_of(v=strength(abs(value) / (scale or 1.0)))
        return (
            f'<td class="{f"{kind} {sign}".strip()}"{style} title="{title}: '
            f'{signed(value, 6)}">{rounded(value, decimals_of(scale))}</td>'
        )

    rows = [
        f'<tr><th scope="row">{layer}</th>'
        + "".join(
            cell(float(value), most, f"layer {layer}, head {head}", "effect")
            for head, value in enumerate(e.inside.head_effects[layer])
        )
        + cell(
            float(e.inside.layer_effects[layer]),
            deepest,
            f"layer {layer} skipped",
            "effect whole",
        )
        + "</tr>"
        for layer in range(len(e.inside.layer_effects))
    ]
    columns = ["Layer", *map(str, range(heads)), "Layer skipped"]
    caption = "What the loss rises by without each head, and without each layer"
    links = "".join(
        f'<li><a href="#attention" data-head="{layer},{head}">layer {layer}, head {head}</a> '
        f"{signed(effect, decimals_of(most) + 1)}</li>"
        for layer, head, effect in e.inside.most_needed(5)
    )
    content = (
        '<p class="legend"><span class="swatch plus">+</span> the answer needs it '
        '<span class="swatch less">−</span> the answer is likelier without it</p>'
        f"{table_of('effects', caption, columns, rows)}{_needed(most)}"
        f"<p>{_ranked(most)}; each leads to what it looks at:</p>"
        f"<ol>{links}</ol>"
    )
    lead = (
        "One head at a time gathers nothing, and the model answers again. What the answer's "
        "log-likelihood loses by that is what this head was worth."
    )
    notes = (
        "<p>This is ablation (Michel et al. 2019). "
        "i and j are the answer's start and end; the loss is the one the model was trained "
        "with. The last column skips the layer as a whole, and has colours of its own.</p>"
        + code_links(found)
    )
    return section_of("heads", lead, content, ["heads", "loss"], notes)


def _needed(most: float) -> str:
    """Numbers that are all small say something as well."""
    if most >= _MATTERS:
        return ""
    return (
        f"<p>No head changes the log-likelihood by as much as {_MATTERS}: the answer is as likely "
        "without any one of them. That is not to say that it needs none: one can stand in for "
        "another.</p>"
    )


def _ranked(most: float) -> str:
    """What the list of the first heads is."""
    if most >= _MATTERS:
        return "The answer depends most on these heads"
    return "The largest of the small numbers are those of these heads"


def attention_section(e: Explanation, packed: PackedAttention, found: Sequence[Source]) -> str:
    """Attention over the tokens: of any head with scripts, without them of the strongest."""
    layer, head = e.inside.strongest_head
    square = e.inside.attentions[layer, head]
    question = list(e.question_places) or [0]  # of control characters there is nothing left
    looks, seen = square[question].mean(dim=0), square[:, question].sum(dim=1)
    words = [*e.question_places, *e.context_starts]
    most = max((float(looks[i]) for i in words), default=1.0) or 1.0
    shares, word_set = (looks / most).tolist(), set(words)
    strip = _strip(
        e,
        "attention",
        [style_of(v=strength(share if i in word_set else 0)) for i, share in enumerate(shares)],
        [percent(float(p)) for p in looks],
    )
    tables = (
        '<div class="two">'
        + _weights(e, "attention-from", "Looks at", looks, words)
        + _weights(e, "attention-to", "Is looked at by", seen, words)
        + "</div>"
    )
    said = (
        f"Layer {layer}, head {head}, whose loss costs the answer most: where the question "
        "looks, on average over its tokens."
    )
    content = (
        f'{_attention_controls(e)}<p class="says" id="attention-says" aria-live="polite">{said}</p>'
        f"{strip}{tables}"
    )
    lead = (
        "In each head a token spreads its look over all tokens of the window, and gathers from "
        "them in these shares. Choose a layer and a head, then a token."
    )
    each = (
        f"the {packed.kept} strongest targets of each token"
        if packed.kept < len(e.tokens)
        else "all targets of each token"
    )
    notes = (
        "<p>Q and K are a head's queries and keys, d<sub>k</sub> is the size of a head. The "
        f"page holds {each}, {100 * packed.share:.1f}% of all attention, in steps of a byte. "
        "“Is looked at by” adds up what a token gives to all the chosen ones.</p>"
        + code_links(found)
    )
    return section_of("attention", lead, content, ["attention"], notes)


def _attention_controls(e: Explanation) -> str:
    layers, heads = e.inside.attentions.shape[:2]

    def choice(name: str, count: int) -> str:
        options = "".join(f'<option value="{i}">{i}</option>' for i in range(count))
        return (
            f'<label for="attention-{name}">{name.capitalize()}</label>'
            f'<select id="attention-{name}">{options}</select>'
        )

    ways = _radios("attention-way", {"from": "where it looks", "to": "who looks at it"})
    presets = [("question", "the question", "Question")]
    presets.append(("cls", "[CLS]", "[CLS]") if e.is_null else ("answer", "the answer", "Answer"))
    buttons = "".join(
        f'<button type="button" data-preset="{key}" data-name="{said}">{name}</button>'
        for key, said, name in presets
    )
    return (
        '<noscript><p class="aside">Without scripts the page shows one head.</p></noscript>'
        '<p class="aside" id="attention-old" hidden>This browser is too old to open the other '
        'heads; here is one of them.</p><div class="controls" id="attention-controls" hidden>'
        f'<span class="group">{choice("layer", layers)}{choice("head", heads)}</span>'
        f"<fieldset><legend>Show</legend>{ways}</fieldset>"
        f'<span class="group" role="group" aria-label="Tokens">{buttons}</span>'
        '<span class="group"><input type="checkbox" id="attention-words" checked>'
        '<label for="attention-words">words only, without [CLS] and [SEP]</label></span></div>'
    )


def _radios(name: str, choices: Mapping[str, str]) -> str:
    """One choice of several, by value and label; the first is taken."""
    first = next(iter(choices))
    return "".join(
        f'<input type="radio" name="{name}" id="{name}-{value}" value="{value}"'
        f"{' checked' * (value == first)}>"
        f'<label for="{name}-{value}">{label}</label>'
        for value, label in choices.items()
    )


def _weights(e: Explanation, key: str, caption: str, values: Tensor, words: Sequence[int]) -> str:
    order = sorted(words, key=lambda i: -float(values[i]))[:_LIST]
    most = float(values[order[0]]) if order else 1.0
    rows = "".join(
        f'<tr><th scope="row">{foreign(e.tokens[i])}</th>'
        f'<td class="bar"{style_of(p=f"{float(values[i]) / (most or 1):.2f}")}>'
        f"{shown_percent(float(values[i]))}</td></tr>"
        for i in order
    )
    return (
        f'<table class="numbers"><caption>{caption}</caption><thead><tr><th scope="col">Word piece'
        f'</th><th scope="col">Attention</th></tr></thead><tbody id="{key}">{rows}</tbody></table>'
    )


def parts_section(e: Explanation, found: Sequence[Source]) -> str:
    """What each token adds to the score."""
    total = e.inside.parts
    most = float(total.abs().max()) or 1.0
    strip = _strip(
        e,
        "parts",
        [style_of(v=strength(abs(float(v)) / most)) for v in total],
        [signed(float(v)) for v in total],
        minus=(total < 0).tolist(),
    )
    rows = (
        f'<tr><th scope="row">{foreign(e.tokens[i])}</th><td>{e.part_of(i)}</td>'
        f"<td>{signed(float(e.inside.start_parts.tokens[i]))}</td>"
        f"<td>{signed(float(e.inside.end_parts.tokens[i]))}</td><td>{signed(float(total[i]))}</td></tr>"
        for i in total.abs().argsort(descending=True)[:12].tolist()
    )
    choices = _radios("parts-of", {"span": "both", "start": "start score", "end": "end score"})
    controls = (
        '<div class="controls" id="parts-controls" hidden><fieldset><legend>Of the</legend>'
        f"{choices}</fieldset></div>"
    )
    legend = (
        '<p class="legend"><span class="swatch plus">+</span> raises the score '
        '<span class="swatch less">−</span> lowers it</p>'
    )
    table = table_of(
        "numbers",
        "The tokens that matter most",
        ["Word piece", "Part of", "S·T<sub>i</sub>", "E·T<sub>j</sub>", "Sum"],
        rows,
    )
    lead = (
        "How much each token adds to the answer's score, against a window in which every word is "
        f"{text_of(e.inside.replacement)}. The parts of all tokens add up to the difference of "
        "the scores."
    )
    notes = f"{_completeness(e)}{code_links(found)}"
    return section_of("parts", lead, controls + legend + strip + table, ["parts"], notes)


def _completeness(e: Explanation) -> str:
    rows = "".join(
        f'<tr><th scope="row">{name}</th><td>{signed(part.score)}</td>'
        f"<td>{signed(part.baseline)}</td><td>{signed(float(part.tokens.sum()))}</td>"
        f"<td>{signed(part.gap)}</td></tr>"
        for name, part in (("start", e.inside.start_parts), ("end", e.inside.end_parts))
    )
    return (
        "<p>These attributions are integrated gradients (Sundararajan et al. 2017), and that they "
        "add up is their completeness. x are the embedded tokens, x′ those of the baseline, the "
        "window "
        "without words; the gradient is taken at x′ + a (x − x′). The integral over a is a sum of "
        f"{e.inside.steps} steps; the gap is what that misses.</p>"
        '<table class="small"><caption class="vh">Scores and the sum of the parts</caption><thead>'
        '<tr><td></td><th scope="col">score</th><th scope="col">without</th>'
        '<th scope="col">sum</th><th scope="col">gap</th></tr></thead>'
        f"<tbody>{rows}</tbody></table>"
    )
