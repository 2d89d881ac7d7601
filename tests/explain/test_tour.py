"""docs/tour.md says what the code prints, quotes what it says, and shows what it computes."""

import re
from collections import Counter
from typing import Any
from xml.etree import ElementTree

import pytest

from bertqa.answering import answerer as answering
from bertqa.model import hub
from docs import tour
from docs.tour import FOLDER, PAGE, ROOT, Quote, blocks_of, difference, stands_in
from docs.tour_pictures import pictures
from tests.helpers import DATA, their_model

GATE = DATA / "gate.json"
TEXT = PAGE.read_text(encoding="utf-8")
BLOCKS = blocks_of(TEXT)
PROSE = "\n".join(block.text for block in BLOCKS if block.kind == "prose")
QUOTES = list(tour.quotes(BLOCKS))
SHOWN = re.findall(r"!\[([^\]]*)\]\(([^)]*)\)", PROSE)
LINKS = re.findall(r"(?<!!)\[[^\]]*\]\(([^)]*)\)", PROSE)


@pytest.fixture(scope="module")
def ran() -> tuple[list[str], dict[str, Any]]:
    """The snippets run with the model of the page."""
    assert f"`{tour.model_digest()}`" in PROSE, "write the page again: python -m docs.tour"
    return tour.run(BLOCKS)


def test_with_any_model_the_snippets_run_and_the_formulas_hold(tmp_path, monkeypatch):
    """A random one here: its numbers are others, but what is equal by a formula is equal."""
    folder = tmp_path / "tiny"
    words = sorted(set(re.findall(r"\w+|[^\w\s]", f"{TEXT} {GATE.read_text()}".lower())))
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words]
    their_model(vocab_size=len(tokens), max_position_embeddings=384).save_pretrained(folder)
    (folder / "vocab.txt").write_text("\n".join(tokens), encoding="utf-8")
    for module in (hub, answering):  # the page asks the one, its QuestionAnswerer the other
        monkeypatch.setattr(module, "find_folder", lambda name, **_: folder)
    printed, names = tour.run(BLOCKS)
    drawn = pictures(names)
    said = tour.said(BLOCKS)
    assert [bool(text) for text in printed] == [bool(text) for text in said]
    for old, new in zip(said, printed, strict=True):
        assert re.findall("True|False", new) == re.findall("True|False", old)
    assert drawn.keys() == {name for _, name in SHOWN}
    for text in drawn.values():
        ElementTree.fromstring(text)


# --- snippets and their outputs ------------------------------------------------------------------


def test_the_page_is_made_of_its_blocks():
    assert "".join(map(str, BLOCKS)) == TEXT
    kinds = Counter(block.kind for block in BLOCKS)
    assert kinds.keys() == {"prose", "python", "text", "py", ""}
    assert TEXT.count("```") == 2 * sum(count for kind, count in kinds.items() if kind != "prose")


def test_the_snippets_print_what_the_page_says(ran):
    printed, _ = ran
    said = tour.said(BLOCKS)
    assert len(printed) == len(said)
    wrong = [difference(old, new) for old, new in zip(said, printed, strict=True)]
    assert [text for text in wrong if text] == []
    # Every output on the page is one of a snippet, and every formula that was checked held.
    assert len([text for text in said if text]) == sum(block.kind == "text" for block in BLOCKS)
    assert not any("False" in text for text in said)


def test_the_page_can_be_written_again():
    said = tour.said(BLOCKS)
    without = re.sub(r"\n```text\n.*?^```\n", "", TEXT, flags=re.MULTILINE | re.DOTALL)
    assert len(without) < len(TEXT)
    for page in (TEXT, without):
        assert tour.with_outputs(blocks_of(page), said) == TEXT


def test_numbers_in_the_prose_were_printed():
    number = r"(?<![\w.])\d+\.\d+(?![\w.]*\w)"
    printed = {n for text in tour.said(BLOCKS) for n in re.findall(number, text)}
    assert re.findall(number, "1.5, v1.1 of 2.25. And 3.5.1") == ["1.5", "2.25"]
    assert len(printed) > 30
    assert set(re.findall(number, PROSE)) <= printed


@pytest.mark.parametrize(
    ("old", "new", "same"),
    [
        ("a 1.25 b", "a 1.26 b", True),
        ("a 1.25 b", "a 1.24  b\n", True),
        ("a  9.99", "a 10.00", True),
        ("a -0.00", "a 0.00", True),
        ("a 1.25 b", "a 1.27 b", False),
        ("a 1.25 b", "a 1.2 b", False),
        ("a 1.25 b", "a 1.25 c", False),
        ("a 1.25", "a 1.25 1.25", False),
        ("a 44", "a 45", False),
        ("a 44", "a 44.0", False),
        ("a 1.25", "", False),
        ("True", "False", False),
    ],
)
def test_what_counts_as_different(old, new, same):
    assert (difference(old, new) == "") == same


def test_a_snippet_that_fails_is_found_on_the_page():
    blocks = blocks_of("one\n\n```python\nprint(1)\n```\n\n```python\n\n1 / 0\n```\n")
    with pytest.raises(ZeroDivisionError) as caught:
        tour.run(blocks)
    assert caught.traceback[-1].lineno == 9 - 1
    assert str(caught.traceback[-1].path) == str(PAGE)


# --- lines of code, links ------------------------------------------------------------------------


@pytest.mark.parametrize("quote", QUOTES, ids=lambda quote: quote.function)
def test_quoted_lines_stand_in_the_code(quote):
    assert stands_in(quote, (ROOT / quote.path).read_text(encoding="utf-8"))


def test_quotes_that_went_stale_are_noticed():
    source = "class A:\n    def f(self):\n        x = 1\n        return x\n\ndef g():\n    y = 2\n"
    assert stands_in(Quote("a.py", "A.f", "x = 1\nreturn x\n"), source)
    assert stands_in(Quote("a.py", "g", "    y = 2\n"), source)
    for function, text in (("A.f", "y = 2"), ("A.f", "x = 1\nx = 1"), ("f", "x = 1"), ("g", "y")):
        assert not stands_in(Quote("a.py", function, text), source)
    with pytest.raises(ValueError, match=r"tour.md:4"):
        list(tour.quotes(blocks_of("prose\n\n```py\nx = 1\n```\n")))


def test_links_lead_to_files():
    assert len(LINKS) >= len(QUOTES)
    assert [link for link in LINKS if not (FOLDER / link).is_file()] == []
    for path in re.findall(r"`(tests/[\w./]+|bertqa/[\w./]+)`", PROSE):
        assert (ROOT / path).is_file()


def test_sections_are_numbered():
    numbers = [int(n) for n in re.findall(r"^## (\d+)\. ", PROSE, re.MULTILINE)]
    assert numbers == list(range(len(numbers)))
    mentioned = re.findall(r"[Ss]ection (\d+)", PROSE)
    assert mentioned and {int(n) for n in mentioned} <= set(numbers)


# --- pictures ------------------------------------------------------------------------------------


def test_pictures_are_drawn_of_what_was_computed(ran):
    drawn = pictures(ran[1])
    kept = {path.name: path.read_text(encoding="utf-8") for path in FOLDER.glob("tour-*.svg")}
    assert drawn.keys() == kept.keys() == {name for _, name in SHOWN}
    wrong = {name: difference(kept[name], drawn[name]) for name in drawn}
    assert {name: text for name, text in wrong.items() if text} == {}
    for name, text in drawn.items():
        moved = re.sub(r' x="(\d+)\.(\d)"', r' x="1\1.\2"', text, count=1)
        assert difference(kept[name], moved) and difference(kept[name], text.replace("the", "a"))


@pytest.mark.parametrize(("alternative", "name"), SHOWN, ids=[name for _, name in SHOWN])
def test_pictures_are_whole_and_said_in_words(alternative, name):
    assert len(alternative.split()) > 8  # for those who do not see it
    text = (FOLDER / name).read_text(encoding="utf-8")
    root = ElementTree.fromstring(text)
    space = "{http://www.w3.org/2000/svg}"
    assert root.tag == f"{space}svg" and root.get("role") == "img"
    assert (root.findtext(f"{space}title") or "") == root.get("aria-label") != ""
    used = {element.tag.removeprefix(space) for element in root.iter()}
    assert used <= {"svg", "title", "style", "rect", "text", "polyline", "polygon"}
    # Nothing from outside: the one address is the name of the format.
    assert re.findall(r"\w+://[^\"' ]*", text) == ["http://www.w3.org/2000/svg"]
    assert not re.search(r"url\(|@import|href|\bon\w+=", text)
    # A ground of its own, as large as the picture, and all that stands on it within.
    _, _, width, height = map(float, (root.get("viewBox") or "").split())
    rects = root.findall(f"{space}rect")
    ground = rects[0]
    assert (ground.get("width"), ground.get("fill")) == (root.get("width"), "#fff")
    for rect in rects[1:]:
        x, y, w, h = (float(rect.get(key, "")) for key in ("x", "y", "width", "height"))
        assert x >= 0 and y >= 0 and x + w <= width and y + h <= height
    for line in root.findall(f"{space}text"):
        if line.get("x"):
            assert 0 <= float(line.get("x", "")) <= width
            assert 0 <= float(line.get("y", "")) <= height
