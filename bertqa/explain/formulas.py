"""The formulas on the page of an answer, and the lines of code that compute them.

Where a line stands is looked up in the source when the page is written, so no number goes stale.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from textwrap import dedent
from typing import Any

from bertqa.answering.answers import _among_themselves, _with_null, prediction_of
from bertqa.answering.decoding import exact_spans, top20_spans
from bertqa.answering.evaluation import _window_results
from bertqa.explain.attribution import _effects, integrated_gradients
from bertqa.explain.explainer import _reading
from bertqa.explain.explanation import Explanation
from bertqa.explain.hooks import Interventions
from bertqa.model.bert import BertForQuestionAnswering, SpanHead, attention, window_losses
from bertqa.settings import DecodingSettings

_ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Source:
    """A function of this project, and the line of it that a formula stands for.

    Attributes:
        key: of the function, for a link.
        path: of the file, from the root of the repository.
        first: number of the function's first line.
        lines: its lines.
        line: the number of the line that matters.
    """

    key: str
    path: str
    first: int
    lines: tuple[str, ...]
    line: int

    @property
    def place(self) -> str:
        """Path and line, as editors and compilers write them."""
        return f"{self.path}:{self.line}"


def source_of(function: Callable[..., Any], words: str) -> Source:
    """The line of a function that holds some words.

    Raises:
        ValueError: no line does, or several.
    """
    lines, first = inspect.getsourcelines(function)
    found = [number for number, line in enumerate(lines) if words in line]
    if len(found) != 1:
        raise ValueError(f"{len(found)} lines of {function.__qualname__} have {words!r}")
    path = Path(inspect.getsourcefile(inspect.unwrap(function)) or "").resolve()
    relative = path.relative_to(_ROOT).as_posix()
    shown = dedent("".join(lines)).splitlines()
    return Source(function.__qualname__, relative, first, tuple(shown), first + found[0])


def sources(decoding: DecodingSettings) -> dict[str, tuple[Source, ...]]:
    """For each picture of the page the lines that compute it."""
    probability = source_of(Explanation.start_probabilities.fget, "softmax(dim=0)")  # type: ignore[attr-defined]
    head = source_of(SpanHead.forward, "F.linear(")
    spans = (
        source_of(top20_spans, "scores = all_starts[window, start] + all_ends[window, end]")
        if decoding.decoder == "top20"
        else source_of(exact_spans, "scores = start[window, first, None]")
    )
    loss = source_of(window_losses, "return start_loss + end_loss")
    share = (
        source_of(_among_themselves, "weight / total")
        if decoding.decoder == "top20"
        else source_of(_window_results, "weights = (scores - spans.log_total")
    )
    null = (
        source_of(_with_null, "share = math.exp(of_spans - total)"),
        source_of(prediction_of, 'text = "" if odds >'),
    )
    return {
        "context": (head, probability),
        "candidates": (spans, share, *(null if decoding.version_2_with_negative else ())),
        "matrix": (source_of(Explanation.span_matrix, "self.start_logits[i]"),),
        "lens": (
            source_of(BertForQuestionAnswering.forward, "self.head(state) for state"),
            source_of(_reading, "start.softmax(dim=0)[answer.first]"),
        ),
        "heads": (
            source_of(_effects, "effects.append(loss(change) - plain)"),
            source_of(Interventions.of_layer, "torch.zeros_like(gathered)"),
            source_of(BertForQuestionAnswering.forward, "not in interventions.skip_layers"),
            loss,
        ),
        "attention": (source_of(attention, "probability = scores.softmax"),),
        "parts": (source_of(integrated_gradients, "tokens = ((x - x0)"),),
    }


# --- MathML, which browsers draw and screen readers speak ----------------------------------------


def _row(*parts: str) -> str:
    """Parts side by side; what is no element is a name or a sign."""
    return f"<mrow>{''.join(map(_leaf, parts))}</mrow>"


def _leaf(part: str) -> str:
    if part.startswith("<"):
        return part
    if part == "x′":
        return f"<mi>{part}</mi>"
    if part.isdecimal():
        return f"<mn>{part}</mn>"
    if not part.isalpha():
        return f"<mo>{part.replace('<', '&lt;').replace('>', '&gt;')}</mo>"
    return f"<mi>{part}</mi>" if len(part) < 2 else f"<mtext>{part}</mtext>"


def _sub(base: str, index: str) -> str:
    return f"<msub>{_leaf(base)}{_leaf(index)}</msub>"


def _sup(base: str, power: str) -> str:
    return f"<msup>{_leaf(base)}{_leaf(power)}</msup>"


def _over(above: str, below: str) -> str:
    return f"<mfrac>{_leaf(above)}{_leaf(below)}</mfrac>"


def _sum(under: str) -> str:
    return f"<munder><mo>∑</mo>{_leaf(under)}</munder>"


def _math(*parts: str) -> str:
    return f'<math display="block">{_row(*parts)}</math>'


def _dot(vector: str, index: str) -> str:
    """S.T_i."""
    return _row(vector, "·", _sub("T", index))


_SCORE = _row(_dot("S", "i"), "+", _dot("E", "j"))

FORMULAS = {
    "context": _math(
        _sub("P", "start"), "(", "i", ")", "=",
        _over(_sup("e", _dot("S", "i")), _row(_sum("k"), _sup("e", _dot("S", "k")))),
    ),
    "candidates": _math("score", "(", "i", ",", "j", ")", "=", _SCORE, ",", "j", "≥", "i"),
    "probability": _math(
        "P", "(", "i", ",", "j", ")", "=",
        _over(
            _sup("e", _row("score", "(", "i", ",", "j", ")")),
            _row(_sum(_row("k", "≤", "l")), _sup("e", _row("score", "(", "k", ",", "l", ")"))),
        ),
    ),
    "null": _math(
        "score", "(", "null", ")", "=", _row("S", "·", _sub("T", "CLS")), "+",
        _row("E", "·", _sub("T", "CLS")),
    ),
    "matrix": _math(_sub("M", _row("i", "j")), "=", _SCORE, ",", "j", "≥", "i"),
    "lens": _math(
        _sup(_sub("score", "i"), _row("(", "l", ")")), "=",
        "S", "·", "<msubsup><mi>T</mi><mi>i</mi><mrow><mo>(</mo><mi>l</mi><mo>)</mo></mrow>"
        "</msubsup>",
    ),
    "heads": _math(
        "effect", "(", "h", ")", "=",
        _sub("loss", _row("without", '<mspace width=".3em"></mspace>', "h")), "−", "loss",
    ),
    "loss": _math(
        "loss", "=", "−", "log", _sub("P", "start"), "(", "i", ")", "−",
        "log", _sub("P", "end"), "(", "j", ")",
    ),
    "attention": _math(
        "A", "=", "softmax", "(",
        _over(_row("Q", _sup("K", "T")), _row("√", _sub("d", "k"))), ")",
    ),
    "parts": _math(
        _sub("part", "i"), "=", _sum("d"), _sub(_row("(", "x", "−", "x′", ")"), _row("i", "d")),
        "<msubsup><mo>∫</mo><mn>0</mn><mn>1</mn></msubsup>",
        _over(_row("∂", "score"), _row("∂", _sub("x", _row("i", "d")))), "d", "a",
    ),
}  # fmt: skip
