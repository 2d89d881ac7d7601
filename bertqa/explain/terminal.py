"""Text of an explanation for a terminal, with or without colors."""

import os
import re
import sys
from collections.abc import Sequence
from itertools import accumulate
from textwrap import wrap

from bertqa.data.text import on_one_line, shortened, visible
from bertqa.explain.explanation import Candidate, Cell, Explanation, answer_text

_RESET, _BOLD, _DIM = "\x1b[0m", "\x1b[1m", "\x1b[2m"
_ESCAPE = re.compile(r"\x1b\[[\d;]*m")
_ANSWER, _HEADING = "\x1b[1;7m", "\x1b[1;36m"
_BLUES = (0, 153, 75, 33, 27)  # of the 256 colors, in order of intensity
_SHOWN = 5  # rows of each list
_NEIGHBORHOOD = 400  # characters of the context on either side of the answer


def has_colors() -> bool:
    """Return whether stdout is a terminal that supports colors (see no-color.org)."""
    plain = os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb"
    return sys.stdout.isatty() and not plain


def render(
    explanation: Explanation, width: int = 80, top_k: int = 1, *, color: bool = False
) -> str:
    """Return the explanation as lines of text.

    Args:
        width: columns of the terminal.
        top_k: number of answers to show, at least ``_SHOWN``.
        color: whether to use escape sequences.
    """
    parts = [
        _answer(explanation),
        _context(explanation, width),
        _candidates(explanation, max(top_k, _SHOWN)),
        _layers(explanation),
        _heads(explanation),
        _parts(explanation),
    ]
    text = "\n\n".join("\n".join(part) for part in parts) + "\n"
    return text if color else _ESCAPE.sub("", text)  # those of the user are escaped already


def _paint(style: str, text: str) -> str:
    return f"{style}{text}{_RESET}"


def _heat(probability: float, text: str) -> str:
    """Color a piece of text with an intensity that increases with its probability."""
    step = min(len(_BLUES) - 1, int(probability**0.5 * len(_BLUES)))
    return _paint(f"\x1b[38;5;{_BLUES[step]}m", text) if step else text


def shown(candidate: Candidate | None) -> str:
    """Return an answer's text on one line with invisible characters escaped."""
    return visible(answer_text(candidate))


def _answer(e: Explanation) -> list[str]:
    answer = e.answer.answer
    if not e.is_in_fp32:
        other = f" (in {e.answered_in}; in fp32 {e.explained_score:+.3f})"
    else:
        other = f" (in {e.answered_in} {e.answered_score:+.3f})" * (e.answered_in != "fp32")
    lines = [
        _paint(_BOLD, on_one_line(e.question)),
        f"{_paint(_ANSWER, shown(e.answer))}  probability {answer.probability:.4f}, "
        f"characters {answer.start}-{answer.end}",
        f"S.T {answer.start_logit:+.3f}  E.T {answer.end_logit:+.3f}  sum {answer.score:+.3f}"
        f"{other}",
    ]
    if e.prediction.null_odds is not None and not e.prediction.best_span:
        lines.append("the context has no span")
    elif e.prediction.null_odds is not None:
        lines.append(
            f"null score minus best span's: {e.prediction.null_odds:+.3f}; no answer above "
            f"{e.decoding.null_score_diff_threshold:g}"
        )
    return lines


def _in_fp32(e: Explanation) -> str:
    """Return the suffix of a heading if the answer was found in another precision."""
    return "" if e.is_in_fp32 else " (in fp32)"


def _context(e: Explanation, width: int) -> list[str]:
    """Return the text around the answer, colored by probability, with the answer in brackets."""
    where = f", window {e.window + 1} of {len(e.null_scores)}" if len(e.null_scores) > 1 else ""
    kind = "" if e.is_in_fp32 else ", in fp32"
    title = _paint(_HEADING, f"Context (color: mean of P_start and P_end{kind}{where})")
    heat = e.probabilities.mean(dim=0)
    span = e.answer.tokens
    cells, text, closing = _around(e)
    for cell in cells:
        if not cell.text.strip() and not cell.tokens:
            text += " "
            continue
        inside = set(span) & set(cell.tokens)
        piece, probability = shortened(on_one_line(cell.text)), float(heat[list(cell.tokens)].sum())
        text += "[" if inside and span[0] in cell.tokens else ""
        text += _paint(_ANSWER, piece) if inside else _heat(probability, piece)
        text += "]" if inside and span[-1] in cell.tokens else ""
    return [title, *_wrapped((text + closing).split(), width)]


def _around(e: Explanation) -> tuple[list[Cell], str, str]:
    """Return the cells near the answer, and "…" for each side on which text is left out."""
    cells = list(e.cells())
    if not cells:
        return [], "", ""
    begins = list(accumulate((len(cell.text) for cell in cells), initial=e.window_start))
    answer = next((i for i, cell in enumerate(cells) if e.answer.first in cell.tokens), 0)
    near = [i for i in range(len(cells)) if abs(begins[i] - begins[answer]) <= _NEIGHBORHOOD]
    before, after = e.context[: begins[near[0]]], e.context[begins[near[-1] + 1] :]
    return [cells[i] for i in near], "…" * bool(before.strip()), "…" * bool(after.strip())


def _wrapped(words: Sequence[str], width: int) -> list[str]:
    """Wrap words into lines; escape sequences have no width."""
    lines, used = [""], 0
    for word in words:
        length = len(_ESCAPE.sub("", word))
        if used and used + 1 + length > width:
            lines.append("")
            used = 0
        lines[-1] += (" " if used else "") + word
        used += bool(used) + length
    return lines


def _candidates(e: Explanation, most: int) -> list[str]:
    kind = "" if e.is_in_fp32 else f" (in {e.answered_in})"
    lines = [_paint(_HEADING, "    S.T_i    E.T_j      sum  probability  answer" + kind)]
    for number, candidate in enumerate(e.candidates[: max(most, e.chosen + 1)]):
        answer = candidate.answer
        row = (
            f"{answer.start_logit:+9.3f}{answer.end_logit:+9.3f}{answer.score:+9.3f}"
            f"{answer.probability:13.4f}  {shown(candidate)}"
        )
        lines.append(_paint(_BOLD, f"{row}  <-") if number == e.chosen else row)
    return lines


def _layers(e: Explanation) -> list[str]:
    heading = "layer  P_start  P_end  best span of S and E after this layer"
    lines = [_paint(_HEADING, heading + _in_fp32(e))]
    for number, layer in enumerate(e.layers):
        text = wrap(shown(layer.best), 50, max_lines=1, placeholder=" …")
        name = f"{number - 1:5}" if number else "embed"
        lines.append(
            f"{name}  {layer.start_probability:7.4f}{layer.end_probability:7.4f}  "
            f"{text[0] if text else ''}"
        )
    return lines


def _heads(e: Explanation) -> list[str]:
    """Return the heads with the largest effects on the answer's negative log-likelihood."""
    heading = "increase of the loss without a head: the largest"
    lines = [_paint(_HEADING, heading + _in_fp32(e))]
    for layer, head, effect in e.inside.most_needed(_SHOWN):
        lines.append(f"{effect:+9.4f}  layer {layer}, head {head}")
    return lines


def _parts(e: Explanation) -> list[str]:
    """Return the tokens with the largest contributions to the answer's score."""
    inside = e.inside
    delta = inside.start_attribution.convergence_delta + inside.end_attribution.convergence_delta
    heading = f"contribution to the score (integrated gradients; convergence delta {delta:+.4f})"
    lines = [_paint(_HEADING, heading + _in_fp32(e))]
    for i in inside.attributions.abs().argsort(descending=True)[:_SHOWN].tolist():
        value = float(inside.attributions[i])
        lines.append(f"{value:+9.3f}  {on_one_line(e.tokens[i])}  ({e.part_of(i)})")
    return lines
