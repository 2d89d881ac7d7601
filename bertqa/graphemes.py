"""Where a written character ends: what a reader sees as one may be several code points."""

import unicodedata
from functools import lru_cache

_ZERO_WIDTH_JOINER = "\u200d"


def snap_to_graphemes(text: str, start: int, end: int) -> tuple[int, int]:
    """Widen ``text[start:end]`` until it cuts no written character in two.

    Tokenizers that drop accents give offsets that end before a decomposed accent: the slice of
    "e" + U+0301 would lose it. The rule is the part of Unicode's UAX 29 that bears on the inside
    of words: marks, joiners, emoji modifiers, decomposed Korean syllables.
    """
    while 0 < start < len(text) and _continues(text, start):
        start -= 1
    while start < end < len(text) and _continues(text, end):
        end += 1
    return start, end


@lru_cache(maxsize=64)  # neighbouring questions ask about the same text
def has_joins(text: str) -> bool:
    """Whether any two code points of a text may be one written character."""
    return not text.isascii() and any(map(_attaches, set(text)))


def _continues(text: str, place: int) -> bool:
    """Whether the code point at ``place`` belongs to the written character before it."""
    character, before = text[place], text[place - 1]
    if before == _ZERO_WIDTH_JOINER and unicodedata.category(character) == "So":
        return True  # the next emoji of a joined one
    return _attaches(character)


def _attaches(character: str) -> bool:
    """Whether a code point belongs to the written character before it, whatever that is."""
    if character < "\u0300":  # the common case: nothing below attaches to anything
        return False
    return (
        unicodedata.category(character) in ("Mn", "Me", "Mc")
        or character in "\u200c\u200d"
        or "\U0001f3fb" <= character <= "\U0001f3ff"  # skin tones
        or "\U000e0020" <= character <= "\U000e007f"  # the letters of regional flags
        or "\u1160" <= character <= "\u11ff"  # vowels and finals of decomposed Korean syllables
        or "\ud7b0" <= character <= "\ud7fb"
    )
