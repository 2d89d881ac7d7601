"""Places in a text as other programs count them.

Python counts code points. JavaScript, Java and most editors count UTF-16 units, of which a
character beyond U+FFFF, such as an emoji, has two; files and C programs count the bytes of UTF-8.
"""


def other_offsets(text: str, start: int, end: int) -> dict[str, int]:
    """The slice ``text[start:end]``, given in code points, in UTF-16 units and in UTF-8 bytes.

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
