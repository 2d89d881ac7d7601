"""Grapheme clusters: user-perceived characters, which may be several code points.

The rules are the extended grapheme clusters of Unicode's UAX 29, as in the tokenizers library.
Consonants of Indic scripts joined by a virama, one cluster since Unicode 15.1, are several here.
"""

import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from functools import lru_cache

from tokenizers import Regex
from tokenizers.pre_tokenizers import Split

SURROGATES = re.compile("[\ud800-\udfff]")  # lone surrogates cannot be encoded as UTF-8

_CLUSTERS = Split(Regex(r"\X"), "isolated")

# Most text consists of these code points, which never join each other: only stretches around other
# code points are segmented.
_SINGLE = (
    "\x00-\x0c\x0e-\u02ff\u0370-\u0482\u048a-\u052f"  # not \r, for \r\n; Latin, Greek, Cyrillic
    "\u05d0-\u05ea\u060c-\u060f\u061b-\u064a\u0660-\u066f\u0671-\u06d3"  # Hebrew, Arabic
    "\u2010-\u2027\u3001-\u3020\u3041-\u3096\u30a1-\u30ff\u4e00-\u9fff\uac00-\ud7a3\uff01-\uff60"
)
_STRETCH = re.compile(f".?[^{_SINGLE}]+(?:[{_SINGLE}][^{_SINGLE}]+)*.?", re.DOTALL)

# The library takes quadratic time for a run of regional indicators. Each pair of them is a flag,
# counted from the start of the run, so a run may be cut after any even number.
_FLAGS = re.compile("(?:[\U0001f1e6-\U0001f1ff]{2}){32}(?=[\U0001f1e6-\U0001f1ff])")


@lru_cache(maxsize=64)  # neighboring questions ask about the same text
def joined_clusters(text: str) -> tuple[tuple[int, int], ...]:
    """Return start and end of each grapheme cluster of several code points, in order."""
    # The library rejects lone surrogates; these rules treat them like control characters.
    stretches = _STRETCH.finditer(SURROGATES.sub("\x00", text))
    return tuple(
        (part + start, part + end)
        for stretch in stretches
        for part, part_end in _parts(stretch)
        for _, (start, end) in _CLUSTERS.pre_tokenize_str(stretch.string[part:part_end])
        if end - start > 1
    )


def _parts(stretch: re.Match[str]) -> Iterator[tuple[int, int]]:
    """Cut a stretch of text inside long runs of flags."""
    begin = stretch.start()
    for run in _FLAGS.finditer(stretch.string, *stretch.span()):
        yield begin, run.end()
        begin = run.end()
    yield begin, stretch.end()


def snap_to_graphemes(text: str, start: int, end: int) -> tuple[int, int]:
    """Widen ``text[start:end]`` to whole grapheme clusters.

    Tokenizers that strip accents give offsets that end before a decomposed accent: the slice of
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
