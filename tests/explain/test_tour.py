"""docs/tour.md: its outputs, quoted lines of code and figures are current."""

import re
from collections import Counter
from typing import Any
from xml.etree import ElementTree

import pytest

from bertqa.answering import answerer as answering
from bertqa.model import hub
from docs import tour
from docs.tour import FOLDER, PAGE, ROOT, Quote, blocks_of, contains_quote, difference
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
    """Run the snippets with the model of the page."""
    assert f"`{tour.model_digest()}`" in PROSE, "write the page again: python -m docs.tour"
    return tour.run(BLOCKS)


def test_the_snippets_run_and_the_formulas_hold_with_any_model(tmp_path, monkeypatch):
    """With a random model the numbers differ, but all checked equalities hold."""
    folder = tmp_path / "tiny"
    words = sorted(set(re.findall(r"\w+|[^\w\s]", f"{TEXT} {GATE.read_text()}".lower())))
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words]
    their_model(vocab_size=len(tokens), max_position_embeddings=384).save_pretrained(folder)
    (folder / "vocab.txt").write_text("\n".join(tokens), encoding="utf-8")
    for module in (hub, answering):  # the page uses the one, its QuestionAnswerer the other
        monkeypatch.setattr(module, "find_folder", lambda name, **_: folder)
    printed, names = tour.run(BLOCKS)
    drawn = pictures(names)
    expected = tour.outputs_of(BLOCKS)
    assert [bool(text) for text in printed] == [bool(text) for text in expected]
    for old, new in zip(expected, printed, strict=True):
        assert re.findall("True|False", new) == re.findall("True|False", old)
    assert drawn.keys() == {name for _, name in SHOWN}
    for text in drawn.values():
        ElementTree.fromstring(text)


# --- snippets and their outputs ------------------------------------------------------------------


def test_the_blocks_make_up_the_page():
    assert "".join(map(str, BLOCKS)) == TEXT
    kinds = Counter(block.kind for block in BLOCKS)
    assert kinds.keys() == {"prose", "python", "text", "py", ""}
    assert TEXT.count("```") == 2 * sum(count for kind, count in kinds.items() if kind != "prose")


def test_the_snippets_print_what_the_page_says(ran):
    printed, _ = ran
    expected = tour.outputs_of(BLOCKS)
    assert len(printed) == len(expected)
    wrong = [difference(old, new) for old, new in zip(expected, printed, strict=True)]
    assert [text for text in wrong if text] == []
    # Every output on the page belongs to a snippet, and every checked equality holds.
    assert len([text for text in expected if text]) == sum(block.kind == "text" for block in BLOCKS)
    assert not any("False" in text for text in expected)


def test_outputs_can_be_inserted_again():
    expected = tour.outputs_of(BLOCKS)
    without = re.sub(r"\n```text\n.*?^```\n", "", TEXT, flags=re.MULTILINE | re.DOTALL)
    assert len(without) < len(TEXT)
    for page in (TEXT, without):
        assert tour.with_outputs(blocks_of(page), expected) == TEXT


def test_numbers_in_the_prose_are_in_an_output():
    number = r"(?<![\w.])\d+\.\d+(?![\w.]*\w)"
    printed = {n for text in tour.outputs_of(BLOCKS) for n in re.findall(number, text)}
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
def test_difference_tolerates_rounding_only(old, new, same):
    assert (difference(old, new) == "") == same


def test_a_traceback_names_the_line_of_the_page():
    blocks = blocks_of("one\n\n```python\nprint(1)\n```\n\n```python\n\n1 / 0\n```\n")
    with pytest.raises(ZeroDivisionError) as caught:
        tour.run(blocks)
    assert caught.traceback[-1].lineno == 9 - 1
    assert str(caught.traceback[-1].path) == str(PAGE)


# --- lines of code, links ------------------------------------------------------------------------


@pytest.mark.parametrize("quote", QUOTES, ids=lambda quote: quote.function)
def test_quoted_lines_are_in_the_code(quote):
    assert contains_quote(quote, (ROOT / quote.path).read_text(encoding="utf-8"))


def test_stale_quotes_are_detected():
    source = "class A:\n    def f(self):\n        x = 1\n        return x\n\ndef g():\n    y = 2\n"
    assert contains_quote(Quote("a.py", "A.f", "x = 1\nreturn x\n"), source)
    assert contains_quote(Quote("a.py", "g", "    y = 2\n"), source)
    for function, text in (("A.f", "y = 2"), ("A.f", "x = 1\nx = 1"), ("f", "x = 1"), ("g", "y")):
        assert not contains_quote(Quote("a.py", function, text), source)
    with pytest.raises(ValueError, match=r"tour.md:4"):
        list(tour.quotes(blocks_of("prose\n\n```py\nx = 1\n```\n")))


def test_link_targets_exist():
    assert len(LINKS) >= len(QUOTES)
    assert [link for link in LINKS if not (FOLDER / link).is_file()] == []
    for path in re.findall(r"`(tests/[\w./]+|bertqa/[\w./]+)`", PROSE):
        assert (ROOT / path).is_file()


def test_sections_are_numbered():
    numbers = [int(n) for n in re.findall(r"^## (\d+)\. ", PROSE, re.MULTILINE)]
    assert numbers == list(range(len(numbers)))
    mentioned = re.findall(r"[Ss]ection (\d+)", PROSE)
    assert mentioned and {int(n) for n in mentioned} <= set(numbers)


# --- figures -------------------------------------------------------------------------------------


def test_figures_are_current(ran):
    drawn = pictures(ran[1])
    kept = {path.name: path.read_text(encoding="utf-8") for path in FOLDER.glob("tour-*.svg")}
    assert drawn.keys() == kept.keys() == {name for _, name in SHOWN}
    wrong = {name: difference(kept[name], drawn[name]) for name in drawn}
    assert {name: text for name, text in wrong.items() if text} == {}
    for name, text in drawn.items():
        moved = re.sub(r' x="(\d+)\.(\d)"', r' x="1\1.\2"', text, count=1)
        assert difference(kept[name], moved) and difference(kept[name], text.replace("the", "a"))


@pytest.mark.parametrize(("alternative", "name"), SHOWN, ids=[name for _, name in SHOWN])
def test_figures_are_self_contained_and_have_alternative_text(alternative, name):
    assert len(alternative.split()) > 8
    text = (FOLDER / name).read_text(encoding="utf-8")
    root = ElementTree.fromstring(text)
    space = "{http://www.w3.org/2000/svg}"
    assert root.tag == f"{space}svg" and root.get("role") == "img"
    assert (root.findtext(f"{space}title") or "") == root.get("aria-label") != ""
    used = {element.tag.removeprefix(space) for element in root.iter()}
    assert used <= {"svg", "title", "style", "rect", "text", "polyline", "polygon"}
    # No external resources: the only URL is the XML namespace.
    assert re.findall(r"\w+://[^\"' ]*", text) == ["http://www.w3.org/2000/svg"]
    assert not re.search(r"url\(|@import|href|\bon\w+=", text)
    # A background as large as the figure, and all elements inside it.
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
