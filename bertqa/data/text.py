"""Excerpts of text for reports, with hidden characters escaped; offsets in other units."""

import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass

from bertqa.data.graphemes import snap_to_graphemes

_AROUND = 40  # characters shown on either side of a span
_LONGEST = 160  # characters of a marked span; a longer one is shown without its middle

# Control characters, unusual blanks, zero-width and bidirectional marks, and noncharacters. Joiners
# (U+200C, U+200D) are not escaped: many scripts and emoji use them.
_NEVER = "".join(
    chr(plane + last) for plane in range(0, 0x110000, 0x10000) for last in (0xFFFE, 0xFFFF)
)
_HIDDEN = re.compile(
    "[\x00-\x1f\x7f-\xa0\xad\u034f\u061c\u1680\u180e\u2000-\u200b\u200e\u200f\u2028-\u202f"
    f"\u205f-\u206f\ud800-\udfff\ufdd0-\ufdef\ufeff\ufff9-\ufffb\U000e0001{_NEVER}]"
)
# Unicode categories that BERT's tokenizer drops: control, format, surrogate, private use,
# nonspacing mark, separators.
_UNSEEN = {"Cc", "Cf", "Cs", "Co", "Mn", "Zs", "Zl", "Zp"}


def is_blank(text: str) -> bool:
    """Return whether a text has only blanks and invisible characters, or is empty."""
    return all(c == "\ufffd" or unicodedata.category(c) in _UNSEEN for c in text)


@dataclass(frozen=True, slots=True)
class Excerpt:
    """A span of a text, with the text before and after it; all empty for no span."""

    before: str = ""
    marked: str = ""
    after: str = ""


NOWHERE = Excerpt()


def excerpt(text: str, start: int, end: int) -> Excerpt:
    """Return ``text[start:end]`` with its context; "..." marks omissions.

    Positions outside the text are clamped.
    """
    start = min(max(start, 0), len(text))
    end = min(max(end, start), len(text))
    begin, stop = snap_to_graphemes(text, max(0, start - _AROUND), min(len(text), end + _AROUND))
    return Excerpt(
        before="..." * (begin > 0) + shortened(text[begin:start], _LONGEST),
        marked=shortened(text[start:end], _LONGEST),
        after=shortened(text[end:stop], _LONGEST) + "..." * (stop < len(text)),
    )


def shortened(text: str, longest: int = 400) -> str:
    """Return the text, without its middle if it is longer than ``longest`` characters.

    A grapheme cluster is only cut if it is itself longer, such as a letter with a thousand accents.
    """
    if len(text) <= longest:
        return text
    half = longest // 2
    stop = snap_to_graphemes(text, 0, half)[1]
    start = snap_to_graphemes(text, len(text) - half, len(text))[0]
    stop = stop if stop <= longest else half
    start = start if len(text) - start <= longest else len(text) - half
    if stop >= start:  # one grapheme cluster spans the middle
        stop, start = half, len(text) - half
    return f"{text[:stop]}...{text[start:]}"


def visible(text: str, form: Callable[[str], str] = str) -> str:
    """Return the text on one line, with hidden characters escaped, such as \\n or \\u200b.

    Args:
        text: the text.
        form: function applied to each escape.
    """

    def escape(match: re.Match[str]) -> str:
        return form(match.group().encode("unicode_escape").decode("ascii"))

    return _HIDDEN.sub(escape, text)


def on_one_line(text: str) -> str:
    """Collapse whitespace and escape characters that control the terminal or text direction."""
    return visible(" ".join(text.split()))


def other_offsets(text: str, start: int, end: int) -> dict[str, int]:
    """Convert the slice ``text[start:end]`` from code points to UTF-16 units and UTF-8 bytes.

    Python counts code points. JavaScript, Java and most editors count UTF-16 units, two for a
    character beyond U+FFFF such as an emoji; files and C programs count UTF-8 bytes.

    Returns:
        ``start_utf16``, ``end_utf16``, ``start_byte``, ``end_byte``, each counted from 0.
    """
    before, inside = text[:start], text[start:end]
    start_utf16, start_byte = _utf16(before), _utf8(before)
    return {
        "start_utf16": start_utf16,
        "end_utf16": start_utf16 + _utf16(inside),
        "start_byte": start_byte,
        "end_byte": start_byte + _utf8(inside),
    }


def _utf16(text: str) -> int:
    return len(text.encode("utf-16-le", "surrogatepass")) // 2


def _utf8(text: str) -> int:
    return len(text.encode("utf-8", "surrogatepass"))
