"""Where a grapheme cluster ends: what a reader sees as one character may be several code points.

The rules are those of Unicode's UAX 29, "extended grapheme clusters", as the tokenizers library has
them. Consonants of Indic scripts that a virama joins, one cluster since Unicode 15.1, are several.
"""

import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from functools import lru_cache

from tokenizers import Regex
from tokenizers.pre_tokenizers import Split

SURROGATES = re.compile("[\ud800-\udfff]")  # halves of a pair: no text, and no UTF-8

_CLUSTERS = Split(Regex(r"\X"), "isolated")

# Most text is of these code points, none of which joins another of them: only what is around the
# others is taken apart.
_ALONE = (
    "\x00-\x0c\x0e-\u02ff\u0370-\u0482\u048a-\u052f"  # not \r, for \r\n; Latin, Greek, Cyrillic
    "\u05d0-\u05ea\u060c-\u060f\u061b-\u064a\u0660-\u066f\u0671-\u06d3"  # Hebrew, Arabic
    "\u2010-\u2027\u3001-\u3020\u3041-\u3096\u30a1-\u30ff\u4e00-\u9fff\uac00-\ud7a3\uff01-\uff60"
)
_STRETCH = re.compile(f".?[^{_ALONE}]+(?:[{_ALONE}][^{_ALONE}]+)*.?", re.DOTALL)

# The library's time grows with the square of a run of flag letters. Each two of them are a flag,
# from the first of the run on, so a run may be cut after any even number.
_FLAGS = re.compile("(?:[\U0001f1e6-\U0001f1ff]{2}){32}(?=[\U0001f1e6-\U0001f1ff])")


@lru_cache(maxsize=64)  # neighbouring questions ask about the same text
def joined_clusters(text: str) -> tuple[tuple[int, int], ...]:
    """Start and end of each grapheme cluster of several code points, in order."""
    # The library takes no half of a surrogate pair; to these rules it is like a control character.
    stretches = _STRETCH.finditer(SURROGATES.sub("\x00", text))
    return tuple(
        (part + start, part + end)
        for stretch in stretches
        for part, part_end in _parts(stretch)
        for _, (start, end) in _CLUSTERS.pre_tokenize_str(stretch.string[part:part_end])
        if end - start > 1
    )


def _parts(stretch: re.Match[str]) -> Iterator[tuple[int, int]]:
    """Cut a stretch of text within long runs of flags."""
    begin = stretch.start()
    for run in _FLAGS.finditer(stretch.string, *stretch.span()):
        yield begin, run.end()
        begin = run.end()
    yield begin, stretch.end()


def snap_to_graphemes(text: str, start: int, end: int) -> tuple[int, int]:
    """Widen ``text[start:end]`` until it cuts no grapheme cluster in two.

    Tokenizers that drop accents give offsets that end before a decomposed accent: the slice of
    "e" + U+0301 would lose it.
    """
    clusters = joined_clusters(text)
    before = bisect_right(clusters, start, key=lambda cluster: cluster[0]) - 1
    if before >= 0 and start < clusters[before][1]:
        start = clusters[before][0]
    behind = bisect_left(clusters, end, key=lambda cluster: cluster[1])
    if start < end and behind < len(clusters) and clusters[behind][0] < end:
        end = clusters[behind][1]
    return start, end


def grapheme_clusters(text: str) -> Iterator[tuple[int, int]]:
    """Yield start and end of every grapheme cluster, in order."""
    position = 0
    for start, end in (*joined_clusters(text), (len(text), len(text))):
        yield from ((single, single + 1) for single in range(position, start))
        if start < end:
            yield start, end
        position = end
