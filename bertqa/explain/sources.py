"""Source code of the functions and classes that compute the figures of an explanation.

It is read when the page is written, so line numbers are always current.
"""

import inspect
from pathlib import Path
from textwrap import dedent
from typing import Any, NamedTuple

from bertqa.answering.answers import Answer, Prediction
from bertqa.answering.decoding import exact_spans
from bertqa.answering.top20 import top20_spans
from bertqa.explain.attribution import integrated_gradients, intervention_effects
from bertqa.explain.explanation import Explanation, LayerReading
from bertqa.explain.hooks import intervene, logit_lens
from bertqa.model.bert import AttentionProbabilities, SpanHead, window_losses
from bertqa.settings import DecodingSettings

_ROOT = Path(__file__).resolve().parents[2]


class Source(NamedTuple):
    """A function or class of this package; ``path`` is relative to the root of the repository."""

    key: str
    path: str
    first: int  # number of its first line
    lines: tuple[str, ...]

    @property
    def location(self) -> str:
        """``path:line``, as editors and compilers write it."""
        return f"{self.path}:{self.first}"

    @property
    def anchor(self) -> str:
        """Its id on the page."""
        return f"code-{self.key.replace('.', '-')}"


def source_of(named: Any) -> Source:
    """Return the file and the lines of a function or class."""
    lines, first = inspect.getsourcelines(named)
    path = Path(inspect.getsourcefile(inspect.unwrap(named)) or "").resolve()
    shown = dedent("".join(lines)).splitlines()
    return Source(named.__qualname__, path.relative_to(_ROOT).as_posix(), first, tuple(shown))


def sources(decoding: DecodingSettings) -> dict[str, tuple[Source, ...]]:
    """Return the code that computes each section of the page."""
    probabilities = Explanation.probabilities.fget  # type: ignore[attr-defined]
    search = top20_spans if decoding.decoder == "top20" else exact_spans
    null = (Prediction, DecodingSettings) if decoding.version_2_with_negative else ()
    found: dict[str, tuple[Any, ...]] = {
        "context": (SpanHead, probabilities),
        "candidates": (search, Answer, *null),
        "matrix": (Explanation.span_matrix,),
        "lens": (logit_lens, LayerReading),
        "heads": (intervention_effects, intervene, window_losses),
        "attention": (AttentionProbabilities,),
        "parts": (integrated_gradients,),
    }
    return {key: tuple(map(source_of, group)) for key, group in found.items()}
