"""Where a grapheme cluster ends: what a reader sees as one may be several code points.

The rules are those of Unicode's UAX 29, "extended grapheme clusters", by their numbers there. The
classes of code points come from Python's unicodedata, so that a few marks of Burmese, which UAX 29
counts as characters of their own, are taken along with the one before.
"""

import re
import unicodedata
from array import array
from collections.abc import Iterator
from functools import lru_cache

_JOINER, _NON_JOINER = "\u200d", "\u200c"
_FLAG_LETTERS = "[\U0001f1e6-\U0001f1ff]"  # two of them are a flag
_JAMO = "[\u1100-\u11ff\ua960-\ua97c\ud7b0-\ud7fb]"  # the parts of decomposed Korean syllables

# GB9b: signs that belong to the character after them, most of them signs above Arabic numbers.
_PREPENDED = (
    "[\u0600-\u0605\u06dd\u070f\u0890\u0891\u08e2\u0d4e\U000110bd\U000110cd\U000111c2\U000111c3"
    "\U0001193f\U00011941\U00011a3a\U00011a84-\U00011a89\U00011d46]"
)

# Code points beyond ASCII that attach without being marks, by regular expression.
_ATTACHED = re.compile(
    "[\u200c\u200d\u0e33\u0eb3\uff9e\uff9f"
    "\U0001f3fb-\U0001f3ff"  # skin tones
    "\U000e0020-\U000e007f]"  # the letters of regional flags
)

# GB9c, for the scripts of India that join consonants by a virama: the viramas, the consonants.
_VIRAMA = re.compile("[\u094d\u09cd\u0acd\u0b4d\u0c4d\u0d4d]")
_CONSONANT = re.compile(
    "[\u0915-\u0939\u0958-\u095f\u0978-\u097f"
    "\u0995-\u09a8\u09aa-\u09b0\u09b2\u09b6-\u09b9\u09dc\u09dd\u09df\u09f0\u09f1"
    "\u0a95-\u0aa8\u0aaa-\u0ab0\u0ab2\u0ab3\u0ab5-\u0ab9\u0af9"
    "\u0b15-\u0b28\u0b2a-\u0b30\u0b32\u0b33\u0b35-\u0b39\u0b5c\u0b5d\u0b5f\u0b71"
    "\u0c15-\u0c28\u0c2a-\u0c39\u0c58-\u0c5a"
    "\u0d15-\u0d3a]"
)

# GB6 to GB8: what may follow a leading consonant, a vowel, a final one, a syllable without or with
# a final consonant.
_KOREAN = {
    "L": ("L", "V", "LV", "LVT"), "V": ("V", "T"), "LV": ("V", "T"), "T": ("T",), "LVT": ("T",),
}  # fmt: skip

# Emoji that are no symbols by their category, or younger than Python's tables.
_OTHER_EMOJI = re.compile(
    "[\u203c\u2049\u2139\u2194\u25fb-\u25fe\u2934\u2935\u3030\u303d"
    "\U0001f000-\U0001f1e5\U0001f200-\U0001f3fa\U0001f400-\U0001faff\U0001fc00-\U0001fffd]"
)

# Whatever of a text may be tied to the character beside it without attaching to any other.
_TIES = re.compile(f"{_FLAG_LETTERS}|{_PREPENDED}|{_JAMO}|\r\n")


_LONG_RUN = 64  # code points that may join, in a row


def written_characters(text: str) -> Iterator[tuple[int, int]]:
    """Start and end of every grapheme cluster, in order."""
    joined = _joined(text)
    start = 0
    while start < len(text):
        end = joined.find(0, start + 1)
        end = end if end >= 0 else len(text)
        yield start, end
        start = end


def snap_to_graphemes(text: str, start: int, end: int) -> tuple[int, int]:
    """Widen ``text[start:end]`` until it cuts no grapheme cluster in two.

    Tokenizers that drop accents give offsets that end before a decomposed accent: the slice of
    "e" + U+0301 would lose it.
    """
    if has_long_runs(text):
        joined = _joined(text)
        if 0 < start < len(text):
            start = joined.rfind(0, 0, start + 1)
        if start < end < len(text):
            following = joined.find(0, end)
            end = following if following >= 0 else len(text)
        return start, end
    look = _LookBack(text)
    while 0 < start < len(text) and _continues(text, start, look):
        start -= 1
    while start < end < len(text) and _continues(text, end, look):
        end += 1
    return start, end


@lru_cache(maxsize=64)  # neighbouring questions ask about the same text
def has_joins(text: str) -> bool:
    """Whether any two code points of a text may be one grapheme cluster."""
    if text.isascii():
        return "\r\n" in text
    return bool(_TIES.search(text)) or any(map(_attaches, set(text)))


@lru_cache(maxsize=64)
def has_long_runs(text: str) -> bool:
    """Whether so many code points that may join stand in a row as hardly any writing has.

    A hundred thousand accents on one letter, or flags, may be in a stranger's file. To walk back
    over them from each place would take for ever.
    """
    if len(text) <= _LONG_RUN or text.isascii():
        return False
    joining = "".join(c for c in set(text) if c >= "\x80" and _may_join(c))
    return bool(joining and re.search(f"[{re.escape(joining)}]{{{_LONG_RUN}}}", text))


@lru_cache(maxsize=4)
def _joined(text: str) -> bytes:
    """``_continues`` of every place of a text, 1 or 0, in time that grows as the text does."""
    look = _Table(text)
    return bytes(place > 0 and _continues(text, place, look) for place in range(len(text)))


class _LookBack:
    """What stands before a place of a text, found by walking back from it."""

    def __init__(self, text: str) -> None:
        self.text = text

    def flag_letters(self, place: int) -> int:
        """How many flag letters stand right before a place."""
        first = place
        while first and re.match(_FLAG_LETTERS, self.text[first - 1]):
            first -= 1
        return place - first

    def base(self, place: int, tie: str) -> int:
        """The last code point before a place that extends none; a tie counts as such."""
        base = place - 1
        while base > 0 and _extends(self.text[base]) and self.text[base] != tie:
            base -= 1
        return base


class _Table(_LookBack):
    """The same, looked up: each entry comes from the one before it."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._flags = array("q", [0])
        self._bases = {tie: array("q", [-1]) for tie in (_JOINER, _NON_JOINER)}
        for place, character in enumerate(text):
            is_flag = re.match(_FLAG_LETTERS, character)
            self._flags.append(self._flags[-1] + 1 if is_flag else 0)
            extends = place > 0 and _extends(character)
            for tie, bases in self._bases.items():
                bases.append(bases[-1] if extends and character != tie else place)

    def flag_letters(self, place: int) -> int:
        return self._flags[place]

    def base(self, place: int, tie: str) -> int:
        return self._bases[tie][place]


def _continues(text: str, place: int, look: _LookBack) -> bool:
    """Whether the code point at ``place`` belongs to the grapheme cluster before it."""
    before, character = text[place - 1], text[place]
    if before < "\x7f" and character < "\x7f":  # the common case; GB3
        return before == "\r" and character == "\n"
    if re.match(_PREPENDED, before):
        return not _is_control(character)
    if _is_control(before):  # GB4
        return False
    return (
        _attaches(character)  # GB9, GB9a
        or _korean(character) in _KOREAN.get(_korean(before), ())
        or _is_second_flag_letter(text, place, look)
        or _is_joined_emoji(text, place, look)
        or _is_joined_consonant(text, place, look)
    )


def _attaches(character: str) -> bool:
    """Whether a code point belongs to the grapheme cluster before it, whatever that is."""
    if character < "\u0300":  # nothing below attaches to anything
        return False
    return unicodedata.category(character) in ("Mn", "Me", "Mc") or bool(_ATTACHED.match(character))


def _is_control(character: str) -> bool:
    """Whether nothing attaches to a code point: line ends, controls, invisible signs."""
    category = unicodedata.category(character)
    if category == "Cf":
        return not _ATTACHED.match(character) and not re.match(_PREPENDED, character)
    return category in ("Cc", "Zl", "Zp", "Cs")


def _korean(character: str) -> str:
    """What part of a Korean syllable a code point is; "" for all others."""
    if "\uac00" <= character <= "\ud7a3":
        return "LVT" if (ord(character) - 0xAC00) % 28 else "LV"
    if not re.match(_JAMO, character):
        return ""
    if character < "\u1160" or "\ua960" <= character <= "\ua97c":
        return "L"
    return "V" if character < "\u11a8" or "\ud7b0" <= character <= "\ud7c6" else "T"


def _may_join(character: str) -> bool:
    """Whether a code point may be part of a grapheme cluster of any length."""
    return (
        _attaches(character)
        or _is_emoji(character)
        or bool(re.match(_FLAG_LETTERS, character) or re.match(_PREPENDED, character))
        or bool(_CONSONANT.match(character) or re.match(_JAMO, character))
    )


def _is_second_flag_letter(text: str, place: int, look: _LookBack) -> bool:
    """GB12, GB13: flag letters pair from the first of them on."""
    return bool(re.match(_FLAG_LETTERS, text[place])) and look.flag_letters(place) % 2 == 1


def _is_joined_emoji(text: str, place: int, look: _LookBack) -> bool:
    """GB11: an emoji that a joiner ties to an emoji."""
    if text[place - 1] != _JOINER or not _is_emoji(text[place]):
        return False
    base = look.base(place - 1, _JOINER)
    return base >= 0 and _is_emoji(text[base])


def _extends(character: str) -> bool:
    """Whether a code point attaches without taking room of its own, as spacing vowels do."""
    spacing = unicodedata.category(character) == "Mc" or character in "\u0e33\u0eb3"
    return _attaches(character) and not spacing


def _is_emoji(character: str) -> bool:
    """A symbol; which of them are emoji does not matter, since nobody joins the others."""
    is_symbol = unicodedata.category(character) == "So" and not re.match(_FLAG_LETTERS, character)
    return is_symbol or bool(_OTHER_EMOJI.match(character))


def _is_joined_consonant(text: str, place: int, look: _LookBack) -> bool:
    """GB9c: a consonant that a virama ties to a consonant."""
    if not _CONSONANT.match(text[place]):
        return False
    base = look.base(place, _NON_JOINER)
    return bool(_CONSONANT.match(text[base]) and _VIRAMA.search(text, base + 1, place))
