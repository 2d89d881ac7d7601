"""The explanation page: well-formed, self-contained, and functional in a browser."""

import json
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch

from bertqa.answering.answerer import QuestionAnswerer
from bertqa.answering.answers import Prediction
from bertqa.explain import page_data
from bertqa.explain.explanation import Explanation
from bertqa.explain.page import page
from bertqa.explain.page_data import BUDGET, compressed_attention, direction_of, percent, quantized
from bertqa.explain.sources import sources
from bertqa.report.page import clean
from bertqa.settings import WindowSettings
from tests import helpers
from tests.browser import CHROMIUM, Browser, Page
from tests.commands.world import call
from tests.explain.conftest import CONTEXT, NEGATIVE, NEVER, NO_TOKENS, QUESTION, Explain

HOSTILE = (
    '</script><script>alert(1)</script><!-- <b title="x\'y">&amp;amp; \x00\x1b[2J\x85 \u202eturned '
    "שלום עולם, مرحبا ]]> \ufffe <style>*{display:none}</style> ]"
)
SVG = "http://www.w3.org/2000/svg"  # XML namespace

Pages, Explanations = dict[str, str], dict[str, Explanation]


@pytest.fixture(scope="module")
def explanations(explained: Explain, rough: Prediction, other_answer: Prediction) -> Explanations:
    short = WindowSettings(128, 8)
    # Question, text, model and vocabulary contain markup and control characters.
    hostile = explained(HOSTILE, HOSTILE, windows=WindowSettings(384, 128), model_name=HOSTILE)
    tokens = tuple(f"{token}'\"></span><b>\x1b" for token in hostile.tokens)
    return {
        "plain": explained(model_name="tiny", answered_in="bf16", prediction=rough),
        "other": explained(model_name="tiny", answered_in="bf16", prediction=other_answer),
        "negative": explained(decoding=NEGATIVE),
        "never": explained(decoding=NEVER, windows=short),
        "hostile": replace(hostile, tokens=tokens),
        "no tokens": explained(NO_TOKENS, NO_TOKENS),
        "no tokens, v2": explained(NO_TOKENS, NO_TOKENS, decoding=NEGATIVE),
        "top20": explained(decoding=replace(NEGATIVE, decoder="top20")),
        "accents": explained(context="e\u0301"),
        "flat": explained(decoding=replace(NEGATIVE, temperature=2.5)),
    }


@pytest.fixture(scope="module")
def pages(explanations: Explanations) -> Pages:
    return {name: page(explanation) for name, explanation in explanations.items()}


def read(text: str) -> str:
    """Return the text of a page without tags."""
    return " ".join(re.sub("<[^>]+>", " ", text).split())


def section_of(text: str, key: str) -> str:
    """Return a section of a page."""
    return text.partition(f'<section id="{key}"')[2].partition("</section>")[0]


# --- structure -----------------------------------------------------------------------------------


KINDS = [
    "plain", "other", "negative", "never", "hostile", "no tokens", "no tokens, v2", "top20",
    "accents",
]  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_the_page_is_well_formed_and_self_contained(pages, kind):
    found = helpers.Page(pages[kind])
    attributes = [a for _, a in found.seen]
    ids = Counter(a["id"] for a in attributes if "id" in a)
    assert max(ids.values()) == 1
    for a in attributes:
        for key in ("for", "aria-labelledby", "aria-describedby"):
            assert key not in a or a[key] in ids, a
        assert not {"src", "srcset", "data", "action"} & set(a)
        link = a.get("href", "#")
        assert link.startswith("#") and (link == "#" or link[1:] in ids)
        assert not any(name.startswith("on") for name in a)  # no inline event handlers
    labelled = {a["for"] for a in found.all("label")}
    for control in [*found.all("input"), *found.all("select")]:
        assert control["id"] in labelled
    assert found.all("html") == [{"lang": "en"}]
    assert len(found.all("h1")) == len(found.all("main")) == len(found.all("title")) == 1
    assert len(found.all("caption")) == len(found.all("table"))
    assert all(a.get("scope") in ("row", "col") for a in found.all("th"))
    assert len(found.all("section")) == len(found.all("h2")) == 8
    style = "".join(found.inside["style"])
    assert "url(" not in style and "@import" not in style
    assert "://" not in pages[kind].replace(SVG, "")
    assert "default-src 'none'" in found.all("meta")[1]["content"]


@pytest.mark.parametrize("kind", KINDS)
def test_texts_are_escaped(pages, explanations, kind):
    found, e = helpers.Page(pages[kind]), explanations[kind]
    assert [a.get("type") for a in found.all("script")] == ["application/json", None]
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\ufffe\uffff\ud800-\udfff]", pages[kind])
    assert "".join(found.inside["h1"]) == clean(e.question)
    tokens = [clean(token) for token in e.tokens]
    assert json.loads(found.inside["script"][0])["tokens"] == tokens
    titles = [a["title"] for a in found.all("span") if a.get("class", "").startswith("t ")]
    assert [title.rpartition(": ")[0] for title in titles] == 3 * tokens
    assert len(found.all("b")) == 2  # probability and score; none from the vocabulary


@pytest.mark.parametrize("kind", KINDS)
def test_every_section_has_a_formula_and_code(pages, explanations, kind):
    for key, group in sources(explanations[kind].decoding).items():
        section = section_of(pages[kind], key)
        assert "<math" in section
        for source in group:
            assert source.location in section and f'href="#{source.anchor}"' in section
            assert f'id="{source.anchor}"' in section_of(pages[kind], "code")


def test_formulas_are_valid_mathml(pages):
    formulas = set(re.findall(r"<math.*?</math>", pages["negative"], re.DOTALL))
    assert len(formulas) == 10
    assert formulas - set(re.findall(r"<math.*?</math>", pages["plain"], re.DOTALL)) == {
        next(text for text in formulas if "<mi>null</mi>" in text)
    }
    arity = {"mfrac": 2, "msub": 2, "msup": 2, "munder": 2, "msubsup": 3}
    for node in (node for text in formulas for node in ElementTree.fromstring(text).iter()):
        assert len(node) == arity.get(node.tag, len(node)), node.tag
        assert node.tag not in ("mi", "mo", "mn") or node.text


def test_the_page_has_the_numbers(pages, explanations):
    text, e = pages["plain"], explanations["plain"]
    plain, answer = read(text).replace("−", "-"), e.answer.answer
    start, end = float(e.logits[0, e.answer.first]), float(e.logits[1, e.answer.last])
    # The numbers at the top are those of the figures below; infer's is named beside them.
    assert f"{start:+.3f} {end:+.3f} = {start + end:+.3f}" in plain
    assert f"bf16 gives the same answer with the score {e.answered_score:+.3f}" in plain
    assert f"{answer.score:+.3f}" != f"{e.answered_score:+.3f}"
    assert re.search(rf"\b{e.window + 1} of {len(e.null_scores)}\b", plain)
    assert len(re.findall(r'<tr id="c(\d+)"', text)) == min(20, len(e.candidates))
    matrix = e.span_matrix()
    assert text.count('class="never"') == int(matrix.scores.isneginf().sum())
    for value in e.inside.head_effects.flatten():
        assert f"{float(value):+.6f}".replace("-", "−") in text
    null_score = min(explanations["negative"].null_scores)
    assert f"here {null_score:+.3f}".replace("-", "−") in read(pages["negative"])


@pytest.mark.parametrize("kind", ["plain", "accents", "never"])
def test_the_answer_is_marked_in_its_text(pages, explanations, kind):
    """Whitespace is unchanged, and an accent stays with its letter."""
    text, e = pages[kind], explanations[kind]
    shown = re.search(r'<p class="text"[^>]*>(.*?)</p>', text, re.DOTALL)
    assert shown and re.sub("<[^>]+>", "", shown[1]) == e.context
    marked = re.findall(r'<mark class="answer">(.*?)</mark>', text, re.DOTALL)
    assert [re.sub("<[^>]+>", "", m) for m in marked] == [e.answer.answer.text] * (not e.is_null)
    assert ('class="outside"' in text) == (kind == "plain")


NOTES = {
    # The precision is named if there are two.
    "plain": ["all numbers are in fp32"],
    "other": [
        "explained in fp32, which gives another answer", "best first, in bf16 ",
        "the other best spans are in bf16",
        "including the table of windows, are in fp32.", "(k, l) of all windows: those with",
    ],
    "negative": [
        "best first Answer", "(no answer)", "The null score is", "all windows, “no answer” among",
    ],
    "top20": ["its rows only, “no answer” among", "the 20 best starts and the 20 best ends"],
    "no tokens, v2": ["The context has no span", "The window has no span."],
    "flat": ["divided by the model's temperature, 2.5, before"],
}  # fmt: skip


@pytest.mark.parametrize("kind", NOTES)
def test_notes_on_the_numbers(pages, kind):
    found = read(pages[kind])
    assert [text for text in NOTES[kind] if text not in found] == []
    assert ("The null score" in found) == (kind in ("negative", "top20", "flat"))
    assert ("are in fp32." in found) == (kind == "other")
    assert not re.search(r"\d{12}\.", found)


@pytest.mark.parametrize(
    ("most", "decimals", "sure"),
    [(5, 2, False), (0.5, 2, False), (0.05, 3, False), (0.005, 3, True), (1e-6, 3, True),
     (0, 3, True)],
)  # fmt: skip
def test_decimals_of_head_effects(explanations, most, decimals, sure):
    """Small effects have more decimals; effects that round to zero are "0", without a color."""
    inside = explanations["plain"].inside
    heads = inside.head_effects / inside.head_effects.abs().max() * most
    layers = inside.layer_effects / inside.layer_effects.abs().max() * (0.5 if most else 0)
    changed = replace(inside, head_effects=heads, layer_effects=layers)
    text = section_of(page(replace(explanations["plain"], inside=changed)), "heads")
    cells = [
        cell
        for kind, cell in re.findall(r'<td class="effect( zero| minus)?"[^>]*>([^<]*)</td>', text)
        if kind == (" zero" if cell == "0" else " minus" if cell.startswith("−") else "")
    ]
    assert len(cells) == heads.numel()
    assert {len(cell.partition(".")[2]) for cell in cells} <= {0, decimals}
    assert not {cell for cell in cells if cell != "0" and not cell.strip("+−0.")}
    assert (set(cells) == {"0"}) == (most < 1e-3)
    assert ("No head changes" in text) == sure
    assert ("The answer depends most on" in text) != sure
    whole = re.findall(r'<td class="effect whole[^>]*>([^<]*)</td>', text)
    assert {len(cell.partition(".")[2]) for cell in whole} <= {0, 2}  # independent of the heads
    assert (set(whole) == {"0"}) == (most == 0)


@pytest.fixture(scope="module")
def large(explained: Explain) -> Explanation:
    return explained(context=CONTEXT * 12, windows=WindowSettings(384, 128), steps=1)


def test_the_page_of_a_large_window_is_small(large):
    assert len(large.tokens) == 384
    text = page(large)
    assert len(text.encode()) < 3_000_000
    attention = sum(map(len, re.findall(r'"[A-Za-z0-9+/=]{200,}"', text)))
    # The same with as much attention as the budget allows; the tables of 24 layers are small.
    assert len(text.encode()) - attention + BUDGET < 2_900_000
    assert text.count('class="t ') == 3 * 384


def test_percent_and_direction():
    assert [percent(p) for p in (0, 1e-9, 0.0123, 0.5, 1)] == ["0%", "<0.1%", "1.2%", "50%", "100%"]
    assert direction_of("12 שלום abc") == "rtl" and direction_of("12") == "ltr"


# --- commands ------------------------------------------------------------------------------------

Ask = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(folder: Path, capsys: pytest.CaptureFixture[str]) -> Ask:
    """Run a command in this process; its exit code and output."""

    def run(command: str, *flags: object) -> tuple[int, str, str]:
        flags = tuple(folder if flag == "FOLDER" else flag for flag in flags)
        code = call(command, *flags)
        return code, *capsys.readouterr()

    return run


ASKED = [
    "--model", "FOLDER", "--device", "cpu", "--precision", "fp32", "--max_seq_length", 48,
    "--doc_stride", 8, "--question", QUESTION, "--context", CONTEXT,
]  # fmt: skip


@pytest.mark.parametrize(
    "flags", [[], ["--json"], ["--top_k", 3], ["--json", "--top_k", 2, "--all_offsets"]]
)
def test_infer_writes_the_page_and_prints_the_answer(run, tmp_path, flags):
    file = tmp_path / "answer.html"
    code, plain, _ = run("infer", *ASKED, *flags)
    assert code == 0
    # No progress bar without a terminal.
    assert run("infer", *ASKED, *flags, "--explain", file) == (0, plain, f"wrote {file}\n")
    helpers.Page(file.read_text(encoding="utf-8"))
    assert [path.name for path in tmp_path.iterdir()] == ["answer.html"]


def test_the_command_explains_as_infer_does(run, tmp_path):
    first, second = tmp_path / "infer.html", tmp_path / "new" / "folder" / "explain.html"
    _, printed, _ = run("infer", *ASKED, "--explain", first, "--top_k", 2)
    assert run("explain", *ASKED, second, "--top_k", 2) == (0, printed, f"wrote {second}\n")
    assert first.read_bytes() == second.read_bytes()
    code, _, message = run("explain", *ASKED, second)
    assert code == 2 and second.name in message and "--overwrite" in message
    assert run("explain", *ASKED, second, "--overwrite")[0] == 0
    code, _, message = run("explain", *ASKED, tmp_path / "answer.txt")
    assert code == 2 and "answer.txt: must end in .html" in message
    in_terminal = run("explain", *ASKED)
    assert in_terminal[1].startswith(QUESTION) and "\x1b" not in in_terminal[1]
    assert (
        run("infer", *ASKED, "--explain") == run("infer", *ASKED, "--explain", "-") == in_terminal
    )
    code, _, message = run("explain", *ASKED[:-4])
    assert code == 2 and "--question" in message


@pytest.mark.parametrize("name", ["new.html", "there.html"])
def test_a_page_without_write_permission_is_rejected_before_the_work(
    run, tmp_path, monkeypatch, name
):
    (tmp_path / "there.html").write_text("mine")
    page = tmp_path / name
    locked = page if page.exists() else tmp_path
    monkeypatch.setattr(os, "access", lambda path, mode: path != locked)  # also for root
    monkeypatch.setattr(QuestionAnswerer, "from_pretrained", lambda *_, **__: pytest.fail("loaded"))
    code, _, message = run("explain", *ASKED, page, "--overwrite")
    assert code == 2 and str(page) in message and "no write permission" in message
    assert [path.read_text() for path in tmp_path.iterdir()] == ["mine"]


@pytest.mark.parametrize("variable", ["NO_COLOR", ""])
def test_colors_in_a_terminal(run, variable, monkeypatch):
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    if variable:
        monkeypatch.setenv(variable, "1")
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    code, out, _ = run("infer", *ASKED, "--explain")
    assert code == 0 and ("\x1b[" in out) == (not variable)


@pytest.mark.parametrize(
    ("flags", "facts"),
    [
        ([*ASKED, "--explain", "there.html"], ["--explain", "there.html"]),
        ([*ASKED, "--explain", "there.html/a.html"], ["--explain", "there.html must be a folder"]),
        ([*ASKED, "--explain", "."], ["--explain", "folder"]),
        ([*ASKED, "--explain", "--json"], ["--explain"]),
        (["--model", "FOLDER", "--demo", "--explain", "new.html"], ["--explain"]),
        (["--model", "FOLDER", "--explain", "new.html"], ["--explain"]),
        (["--input", "there.html", "--output_dir", "o", "--explain", "new.html"], ["--explain"]),
        ([*ASKED[:-1], " ", "--explain", "new.html"], ["context", "' '"]),
    ],
)
def test_infer_refuses_what_it_cannot_explain(run, tmp_path, monkeypatch, flags, facts):
    monkeypatch.chdir(tmp_path)
    Path("there.html").write_text("mine")
    code, out, message = run("infer", *flags)
    assert code == 2 and message.count("\n") == 1 and out == ""
    assert all(fact in message for fact in facts), message
    assert Path("there.html").read_text() == "mine"
    assert [path.name for path in tmp_path.iterdir()] == ["there.html"]


# --- browser -------------------------------------------------------------------------------------

in_browser = pytest.mark.skipif(not CHROMIUM, reason="Chromium is not installed")
Show = Callable[..., Page]
CHOSEN = "#attention-tokens [aria-selected=true]"


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    chromium = Browser(tmp_path_factory.mktemp("profile"))
    yield chromium
    chromium.close()


@pytest.fixture
def show(browser: Browser, tmp_path: Path) -> Show:
    """Open a page and wait for its script."""

    def opened(text: str, *, scripts: bool = True, dark: bool = False) -> Page:
        (tmp_path / "page.html").write_text(text, encoding="utf-8")
        tab = browser.open(tmp_path / "page.html", scripts=scripts, dark=dark)
        if scripts:
            tab.wait("document.querySelector('.live') && !document.querySelector('[aria-busy]')")
        return tab

    return opened


@pytest.fixture
def tab(show: Show, pages: Pages) -> Iterator[Page]:
    """The plain page in a browser tab."""
    tab = show(pages["plain"])
    yield tab


@pytest.fixture
def e(explanations: Explanations) -> Explanation:
    return explanations["plain"]


def text_of(tab: Page, selector: str) -> str:
    return str(tab.run(f"document.querySelector({json.dumps(selector)}).textContent"))


def wait_for_head(tab: Page, layer: int, head: int) -> None:
    summary = "document.getElementById('attention-summary').textContent"
    tab.wait(f"{summary}.startsWith('Layer {layer}, head {head},')")


@in_browser
@pytest.mark.parametrize("kind", KINDS)
def test_the_page_loads_without_errors(show, pages, kind):
    tab = show(pages[kind])
    for width in (1280, 390):
        tab.resize(width, 900)
        assert tab.run("document.documentElement.scrollWidth") <= width  # no horizontal scrolling
    assert tab.complaints() == []
    assert tab.run("document.querySelectorAll('script').length") == 2


# For each table: whether it overflows its frame, whether its end is visible after scrolling, and
# how many shadows indicate that it can be scrolled.
TABLES = """[...document.querySelectorAll('.scroll')].map(frame => {
  frame.scrollLeft = frame.scrollWidth
  const heads = frame.querySelectorAll('thead th'), last = heads[heads.length - 1]
  const ends = last.getBoundingClientRect().right <= frame.getBoundingClientRect().right + 1
  const shadows = getComputedStyle(frame).backgroundAttachment.split('scroll').length - 1
  return [frame.firstElementChild.className, frame.scrollWidth > frame.clientWidth, ends, shadows]
})"""


@in_browser
def test_all_columns_are_reachable_on_a_phone(tab: Page) -> None:
    tab.resize(420, 900)
    tables = tab.run(TABLES)
    assert len(tables) > 5
    assert all(ends and shadows == 2 for _, _, ends, shadows in tables)
    overflows = {kind: more for kind, more, _, _ in tables}
    assert not overflows["numbers readings"] and not overflows["numbers spans"]
    assert overflows["matrix"]  # scrolled to its end by TABLES, with its title in view
    title = "document.querySelector('.matrix caption span').getBoundingClientRect()"
    assert tab.run(f"{title}.left") >= 0 and tab.run(f"{title}.right") <= 420
    texts = "[...document.querySelectorAll('.chart text')].map(t => t.getBoundingClientRect())"
    assert tab.run(f"Math.min(...{texts}.map(box => box.height))") > 10
    assert tab.run(f"Math.max(...{texts}.map(box => box.right))") <= 420


@in_browser
def test_the_effects_of_twelve_heads_fit_beside_their_formulas(show: Show, e: Explanation) -> None:
    effects = torch.full((6, 12), -0.001)
    effects[0, 0] = 0.008
    wide = replace(e, inside=replace(e.inside, head_effects=effects, layer_effects=effects[:, 0]))
    tab = show(page(wide))
    tab.resize(1100, 900)
    assert {kind: more for kind, more, _, _ in tab.run(TABLES)}["effects"] is False


@in_browser
@pytest.mark.parametrize(
    ("old", "new"), [('id="lens-summary"', 'id="x"'), ("</main>", "<script>1</script>")]
)
def test_errors_are_detected(browser, pages, tmp_path, old, new):
    """The tests above rely on this: a broken script, and one that the page's policy forbids."""
    (tmp_path / "broken.html").write_text(pages["plain"].replace(old, new, 1), encoding="utf-8")
    assert browser.open(tmp_path / "broken.html").complaints() != []


@in_browser
def test_the_layer_slider_works_with_the_keyboard(tab, e):
    tab.run("document.getElementById('lens-layer').focus()")
    for layer in (2, 1, 0):
        tab.press("ArrowLeft")
        tab.wait(f"document.querySelector('.now').id === 'layer-{layer}'")
        assert " ".join(e.layers[layer].best.answer.text.split()) in text_of(tab, "#lens-summary")
        shares = tab.run(
            "[...document.querySelectorAll('#lens-tokens .t')]"
            ".map((t) => Number(t.style.getPropertyValue('--s')))"
        )
        expected = e.layer_logits[layer][0].softmax(dim=0).sqrt()
        assert shares == pytest.approx(expected.tolist(), abs=0.01)


@in_browser
def test_attention_of_any_head_and_token(tab, e):
    words = [*e.question_tokens, *e.context_tokens]
    token = 3
    for layer, head in ((0, 2), (2, 1)):
        tab.run(
            f"for (const [id, value] of [['layer', {layer}], ['head', {head}]]) {{"
            "const select = document.getElementById(`attention-${id}`); select.value = value;"
            "select.dispatchEvent(new Event('change')) }"
        )
        wait_for_head(tab, layer, head)
        tab.run("document.querySelectorAll('#attention-tokens .t')[2].click()")
        tab.press("ArrowRight")
        assert tab.run(f"document.activeElement === document.querySelector('{CHOSEN}')")
        assert f"“\u2068{e.tokens[token]}\u2069”" in text_of(tab, "#attention-summary")
        square = e.inside.attentions[layer, head]
        for key, values in (("from", square[token]), ("to", square[:, token])):
            bytes_ = quantized(values)
            most = max(bytes_[i] for i in words)
            best = next(i for i in words if bytes_[i] == most)  # the first of a tie
            row = text_of(tab, f"#attention-{key} tr")
            assert row.startswith(e.tokens[best])
            shown = float(row.removeprefix(e.tokens[best]).strip("<%"))
            assert shown == pytest.approx(100 * float(values[best]), abs=0.9)
    tab.run("document.getElementById('attention-way-to').click()")
    assert "attention to" in text_of(tab, "#attention-summary")
    tab.run("document.getElementById('attention-words').click()")
    tab.run("document.querySelector('[data-preset=question]').click()")
    assert tab.run(f"document.querySelectorAll('{CHOSEN}').length") == len(e.question_tokens)
    assert "the question" in text_of(tab, "#attention-summary")


@in_browser
def test_a_key_press_changes_each_of_384_tokens_a_few_times(show, large):
    """The cost is linear in the tokens. It counts changes, so it holds on a busy machine."""
    tab = show(page(large))
    tab.run("document.querySelectorAll('#attention-tokens .t')[40].click()")
    changes = tab.run(
        "(() => { const seen = new MutationObserver(() => {}); seen.observe(document, "
        "{subtree: true, childList: true, attributes: true, characterData: true}); "
        "return ['ArrowRight', 'ArrowDown', 'ArrowLeft', 'ArrowUp'].map((key) => { "
        "document.activeElement.dispatchEvent(new KeyboardEvent('keydown', {key, bubbles: true})); "
        "return seen.takeRecords().length }) })()"
    )
    assert tab.run(f"document.querySelectorAll('{CHOSEN}').length") == 1
    assert "“" in text_of(tab, "#attention-summary")
    assert all(len(large.tokens) <= count <= 5 * len(large.tokens) for count in changes)
    assert tab.complaints() == []


@in_browser
def test_the_summary_states_that_attention_is_incomplete(show, e, monkeypatch):
    monkeypatch.setattr(page_data, "compressed_attention", lambda a: compressed_attention(a, 1))
    summary = text_of(show(page(e)), "#attention-summary")
    assert re.search(r"At least .* the page contains \d+% of it\.$", summary), summary


@in_browser
def test_links_of_heads_show_their_attention(tab, e):
    tab.run("document.querySelectorAll('a[data-head]')[1].focus()")
    tab.press("Enter")
    wait_for_head(tab, *e.inside.most_needed(2)[1][:2])
    assert tab.run("location.hash") == "#attention"


@in_browser
def test_a_focused_candidate_is_highlighted_in_the_text(tab, e):
    number, candidate = next(
        (i, c) for i, c in enumerate(e.candidates) if i != e.chosen and c.window == e.window
    )
    lit = (
        "[...document.querySelectorAll('.w')]"
        ".filter((w) => getComputedStyle(w).getPropertyValue('--on') == 1).map((w) => w.id)"
    )
    assert tab.run(lit) == []
    tab.run(f"document.querySelector('#c{number} a').focus()")
    shown = tab.run(lit)
    assert shown[0] == f"w{candidate.first}" and len(shown) <= candidate.last - candidate.first + 1


@in_browser
def test_attributions_of_start_and_end(tab, e):
    ends = e.inside.end_attribution.tokens
    strongest = int(ends.abs().argmax())
    tab.run("document.getElementById('parts-of-end').click()")
    token = f"document.querySelectorAll('#parts-tokens .t')[{strongest}]"
    assert tab.run(f"{token}.style.getPropertyValue('--v')") == "1.00"
    assert tab.run(f"{token}.classList.contains('minus')") == bool(ends[strongest] < 0)


@in_browser
def test_the_page_is_complete_without_javascript(show, pages):
    tab = show(pages["plain"], scripts=False)
    for controls in ("#lens-controls", "#attention-controls", "#parts-controls"):
        assert not tab.is_shown(controls)
    for figure in (
        ".text", ".spans", ".matrix", ".chart", ".effects", "#attention-from", "#parts-tokens",
        "noscript p",
    ):  # fmt: skip
        assert tab.is_shown(figure), figure


@in_browser
def test_every_control_has_an_accessible_name(tab):
    controls = (
        "button", "combobox", "slider", "radio", "checkbox", "link", "listbox", "option", "table",
    )  # fmt: skip
    roles: Counter[str] = Counter()
    for node in tab.send("Accessibility.getFullAXTree")["nodes"]:
        role = node.get("role", {}).get("value")
        if role in controls and not node.get("ignored"):
            assert node.get("name", {}).get("value"), node
            roles[role] += 1
    assert roles["combobox"] == 2 and roles["slider"] == 1 and roles["radio"] == 5
    assert roles["option"] > 20 and roles["button"] == 2 and roles["table"] >= 8


@in_browser
@pytest.mark.parametrize("dark", [False, True])
def test_light_and_dark_screenshots(show, pages, tmp_path, dark):
    tab = show(pages["plain"], dark=dark)
    tab.picture(tmp_path / "page.png")
    assert (tmp_path / "page.png").stat().st_size > 50_000
    color = tab.run("getComputedStyle(document.body).backgroundColor")
    assert (int(re.findall(r"\d+", color)[0]) < 128) == dark
