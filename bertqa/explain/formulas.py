"""The formulas on the page of an answer, and the functions and classes that compute them.

Where one stands is looked up in the source when the page is written, so no number goes stale.
"""

import inspect
from dataclasses import dataclass
from pathlib import Path
from textwrap import dedent
from typing import Any

from bertqa.answering.answers import Answer, Prediction
from bertqa.answering.decoding import exact_spans
from bertqa.answering.top20 import top20_spans
from bertqa.explain.attribution import integrated_gradients, intervention_effects
from bertqa.explain.explanation import Explanation, LayerReading
from bertqa.explain.hooks import intervene, logit_lens
from bertqa.model.bert import AttentionProbabilities, SpanHead, window_losses
from bertqa.settings import DecodingSettings

_ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Source:
    """A function or class of this project that a formula stands for.

    Attributes:
        key: its name, for a link.
        path: of the file, from the root of the repository.
        first: number of its first line.
        lines: its lines.
    """

    key: str
    path: str
    first: int
    lines: tuple[str, ...]

    @property
    def place(self) -> str:
        """Path and line, as editors and compilers write them."""
        return f"{self.path}:{self.first}"


def source_of(named: Any) -> Source:
    """Where a function or class stands in the code."""
    lines, first = inspect.getsourcelines(named)
    path = Path(inspect.getsourcefile(inspect.unwrap(named)) or "").resolve()
    shown = dedent("".join(lines)).splitlines()
    return Source(named.__qualname__, path.relative_to(_ROOT).as_posix(), first, tuple(shown))


def sources(decoding: DecodingSettings) -> dict[str, tuple[Source, ...]]:
    """For each picture of the page what computes it."""
    start_probabilities = Explanation.start_probabilities.fget  # type: ignore[attr-defined]
    search = top20_spans if decoding.decoder == "top20" else exact_spans
    null = (Prediction, DecodingSettings) if decoding.version_2_with_negative else ()
    found: dict[str, tuple[Any, ...]] = {
        "context": (SpanHead, start_probabilities),
        "candidates": (search, Answer, *null),
        "matrix": (Explanation.span_matrix,),
        "lens": (logit_lens, LayerReading),
        "heads": (intervention_effects, intervene, window_losses),
        "attention": (AttentionProbabilities,),
        "parts": (integrated_gradients,),
    }
    return {key: tuple(map(source_of, group)) for key, group in found.items()}


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
