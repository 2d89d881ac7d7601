"""Offsets in UTF-16 units and UTF-8 bytes."""

from hypothesis import given
from hypothesis import strategies as st

from bertqa.data.text import other_offsets


def test_an_emoji_has_two_units_and_four_bytes():
    text = "😀 naïve 日本"
    start = text.index("日")
    assert other_offsets(text, start, start + 2) == {
        "start_utf16": 9, "end_utf16": 11, "start_byte": 12, "end_byte": 18,
    }  # fmt: skip
    assert other_offsets(text, 0, 0) == dict.fromkeys(
        ["start_utf16", "end_utf16", "start_byte", "end_byte"], 0
    )


@given(st.text(st.characters(exclude_categories=()), max_size=20), st.data())
def test_each_gives_the_same_slice_in_its_encoding(text: str, data: st.DataObject):
    """Also next to lone surrogates, which JSON can contain."""
    start = data.draw(st.integers(0, len(text)))
    end = data.draw(st.integers(start, len(text)))
    found = other_offsets(text, start, end)
    for coding, width, name in (("utf-16-le", 2, "utf16"), ("utf-8", 1, "byte")):
        raw = text.encode(coding, "surrogatepass")
        cut = raw[width * found[f"start_{name}"] : width * found[f"end_{name}"]]
        assert cut == text[start:end].encode(coding, "surrogatepass")
