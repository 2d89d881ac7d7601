"""Slices are widened to whole grapheme clusters, and not further."""

import re
import unicodedata
from itertools import accumulate

import pytest
import regex
from hypothesis import example, given, settings
from hypothesis import strategies as st

from bertqa.data.graphemes import (
    _CLUSTERS,
    _SINGLE,
    grapheme_clusters,
    joined_clusters,
    snap_to_graphemes,
)

FAMILY = "\U0001f468\u200d\U0001f469\u200d\U0001f467"
COOK = "\U0001f469\U0001f3fe\u200d\U0001f373"
ENGLAND = "\U0001f3f4\U000e0067\U000e0062\U000e0065\U000e006e\U000e0067\U000e007f"

# Each is one grapheme cluster.
CHARACTERS = (
    *("a", "Z", "1", " ", "\n", "-", "[", "\u00a0", "é", "ß", "中", "か", "각", "н", "\U00020000"),
    *("e\u0301", "e\u0302\u0323", "E\u0301\u0302\u0303\u0304", "x\u20d7", "l\u0336", "n\u0303"),
    *("か\u3099", "и\u0306", "ש\u05c1\u05b8", "ك\u064e", "ก\u0e34\u0e48", "क\u093e"),
    *("क\u094d", "\u1100\u1161", "\u1112\u1161\u11ab", "\u1100\u119e\u11bc"),
    *(
        "\u1100\ud7b0\ud7fb",
        "\u1100\u1160\u11ff",
        "👍",
        "👍\U0001f3fb",
        "👍\U0001f3ff",
        FAMILY,
        COOK,
        ENGLAND,
        "\u2764\ufe0f",
    ),
    *("🇫🇷", "ก\u0e33", "\u0601\u0661", "\u1100각", "\r\n"),
    *(
        "1\ufe0f\u20e3",
        "\U0001f3f3\ufe0f\u200d\U0001f308",
        "\U0001f642\u200d\u2194\ufe0f",
        "\u200b",
        "\u00ad",
        "\ufeff",
        "\x00",
    ),
)


def plain_snap(characters, start, end):
    """Widen a slice to the bounds of the joined characters."""
    bounds = list(accumulate(map(len, characters), initial=0))
    return max(b for b in bounds if b <= start), min(b for b in bounds if b >= end)


@st.composite
def texts_and_slices(draw, characters):
    parts = draw(st.lists(st.sampled_from(characters), min_size=1, max_size=8))
    length = len("".join(parts))
    start = draw(st.integers(0, length - 1))
    return parts, start, draw(st.integers(start + 1, length))


@settings(derandomize=True, max_examples=300)
@given(texts_and_slices(CHARACTERS))
def test_slices_end_at_grapheme_clusters(case):
    characters, start, end = case
    ours = snap_to_graphemes("".join(characters), start, end)
    assert ours == plain_snap(characters, start, end)


COMPOSED = "àéîõüçñøžůṩệặửẫỹǖΐϋήйёўがぱゔヷ가각힣뷁\ufb1d\ufb2c\u0929"


@settings(derandomize=True, max_examples=300)
@given(texts_and_slices([unicodedata.normalize("NFD", character) for character in COMPOSED]))
def test_decomposed_text_is_cut_where_composed_text_is(case):
    characters, start, end = case
    text = "".join(characters)
    first, last = snap_to_graphemes(text, start, end)
    assert (first, last) == plain_snap(characters, start, end)
    # No composed character was cut.
    parts = text[:first], text[first:last], text[last:]
    composed = [unicodedata.normalize("NFC", part) for part in parts]
    assert "".join(composed) == unicodedata.normalize("NFC", text)


@pytest.mark.parametrize("character", CHARACTERS)
def test_every_cut_inside_a_character_includes_all_of_it(character):
    text = f"b{character}b"
    for start in range(1, len(character) + 1):
        for end in range(start + 1, len(character) + 2):
            assert snap_to_graphemes(text, start, end) == (1, 1 + len(character))
    assert snap_to_graphemes(text, 0, 1) == (0, 1)
    assert snap_to_graphemes(text, len(text) - 1, len(text)) == (len(text) - 1, len(text))


@pytest.mark.parametrize(
    ("text", "start", "end", "expected"),
    [
        # A stripped accent: the offsets of "cafe" end before it.
        ("un cafe\u0301 noir", 3, 7, "cafe\u0301"),
        ("un cafe\u0301 noir", 3, 8, "cafe\u0301"),
        ("un cafe\u0301", 3, 7, "cafe\u0301"),
        # A mark at the start is a cluster.
        ("\u0301a", 0, 1, "\u0301"),
        ("\u0301a", 1, 2, "a"),
        # Digits, signs and ASCII do not join.
        ("a1+`^", 1, 3, "1+"),
        # A joiner joins emoji, but not letters.
        ("a\u200db", 0, 1, "a\u200d"),
        ("a\u200db", 2, 3, "b"),
        ("а\u200dб", 0, 1, "а\u200d"),
        ("а\u200dб", 2, 3, "б"),
        ("", 0, 0, ""),
    ],
)
def test_cases(text, start, end, expected):
    first, last = snap_to_graphemes(text, start, end)
    assert text[first:last] == expected


# Characters for every rule except viramas, which join consonants only since Unicode 15.1.
ANY = st.sampled_from(
    [
        *"a1 \r\n\x00\u0300\u0301\u00ad\u200b\u200c\u200d\u2028\ufe0f\u20e3👍👩🍳❤\U0001f3fb",
        *"🇦🇧🇨\u0e33\u0eb3ก\uff9eｶ\u1100\ua960\u1161\ud7b0\u11ab\ud7cb가각कष\u093e\u093cക",
        *"\u0601\u06dd\u0d4e\u0661\U000e0067\U000e007f\ufeff中“…",
    ]
)


@settings(derandomize=True, max_examples=1000, deadline=None)
@given(st.lists(ANY, max_size=8).map("".join))
@example("a\u0301b\u0301bc\r\n\r\nd\u0301")
@example("🇦" * 199 + "\u0301🇧🇨")
def test_the_clusters_are_those_of_unicode(text):
    """Compare with \\X of the regex package, another implementation of UAX 29."""
    theirs = [match.span() for match in regex.finditer(r"\X", text)]
    assert list(grapheme_clusters(text)) == theirs
    assert list(joined_clusters(text)) == [(i, j) for i, j in theirs if j - i > 1]
    for start in range(len(text)):
        for end in range(start + 1, len(text) + 1):
            expected = [(i, j) for i, j in theirs if j > start and i < end]
            assert snap_to_graphemes(text, start, end) == (expected[0][0], expected[-1][1])


def test_code_points_that_are_not_segmented_do_not_join():
    """Each of these code points next to itself and to others of them."""
    single = [chr(i) for i in range(0x10000) if re.fullmatch(f"[{_SINGLE}]", chr(i))]
    for one in single:
        text = one.join("a1 \n\xa9\xadжדاか가각中！") + one + one
        assert len(regex.findall(r"\X", text)) == len(text), f"{ord(one):04x}"


def test_a_virama_ends_a_cluster():
    """The rules are older than Unicode 15.1."""
    assert list(grapheme_clusters("क\u094dष")) == [(0, 2), (2, 3)]


@settings(derandomize=True, max_examples=300, deadline=None)
@given(st.text(min_size=1, max_size=12), st.data())
def test_any_text_at_all(text, data):
    start = data.draw(st.integers(0, len(text) - 1))
    end = data.draw(st.integers(start + 1, len(text)))
    first, last = snap_to_graphemes(text, start, end)
    assert 0 <= first <= start < end <= last <= len(text)
    assert snap_to_graphemes(text, first, last) == (first, last)


def test_a_lone_surrogate_is_a_cluster():
    assert list(grapheme_clusters("a\ud83d\u0301e\u0301")) == [(0, 1), (1, 2), (2, 3), (3, 5)]


RUNS = ("🇫🇷", "🇫", "\u0301", "👍\u200d", "©\u200d", "\u1100", "\u0601", "a\u0301", "\r\n")


@pytest.mark.parametrize("run", RUNS)
def test_a_long_run_takes_linear_time(run, monkeypatch):
    """The library gets only short runs of flags (see _FLAGS)."""
    pieces = []

    class Recorder:
        def pre_tokenize_str(self, text):
            pieces.append(text)
            return _CLUSTERS.pre_tokenize_str(text)

    monkeypatch.setattr("bertqa.data.graphemes._CLUSTERS", Recorder())
    text = run * (3000 // len(run))
    theirs = [match.span() for match in regex.finditer(r"\X", text)]
    assert list(grapheme_clusters(text)) == theirs
    assert max(len(re.findall("[🇦-🇿]", piece)) for piece in pieces) <= 66
