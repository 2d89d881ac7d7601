"""The audit finds every fault and no others, and the reports list them."""

import json
import re
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from bertqa.audit.causes import Cause
from bertqa.audit.findings import Audit, audit
from bertqa.audit.page import audit_page
from bertqa.audit.repair import repair
from bertqa.audit.text import audit_text, changes_text, save_json
from bertqa.data.labels import CAUSES, make_labelled_windows
from bertqa.data.readers import read_examples
from bertqa.data.squad import Example, check_answers, check_examples, check_version
from bertqa.data.text import NOWHERE, Excerpt, excerpt, shortened, visible
from bertqa.data.tokenization import BertTokenizer
from bertqa.errors import UserError
from bertqa.settings import WindowSettings
from tests.audit.test_repair import data_sets
from tests.helpers import STORIES, STORIES_V2, Page, write_tokenizer

QUAY = "Ada built the quay in 1642. Ben swept it, and Ben sang. "
SMALL = WindowSettings(24, 4)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> BertTokenizer:
    """Letters and a few whole words, so that an answer can end inside a token."""
    loaded = write_tokenizer(tmp_path_factory.mktemp("tokenizer"))
    loaded._backend.add_tokens(["japanese", "ada", "ben", "quay"])
    return loaded


def asked(text: str, start: int, context: str = QUAY, question: str = "Who?") -> Example:
    return Example(f"{question} {text}", question, context, (text,), (start,))


def details(found: Audit) -> list[tuple[Cause, int, str]]:
    return [(finding.cause, finding.row, finding.detail) for finding in found.findings]


FOUND: list[tuple[Example, Cause, str, str]] = [
    (asked("1642", 20), Cause.MISPLACED, "answer '1642' is not at its answer_start 20: it occurs "
     "once, at 22", "n 16"),
    (asked("Ben", -5), Cause.MISPLACED, "answer 'Ben' is not at its answer_start -5: it occurs 2 "
     "times, at 28, 46", ""),
    (asked("1642", -1), Cause.MISPLACED, "answer '1642' has no answer_start: it occurs once, at "
     "22", ""),
    (asked("n", 0), Cause.MISPLACED, "answer 'n' is not at its answer_start 0: it occurs 5 times, "
     "at 20, 30, 43, ...", "A"),
    (asked("Cora", 10**25), Cause.ABSENT, f"answer 'Cora' is not at its answer_start {10**25}: it "
     "is not in the context", ""),
    (asked("BEN", 28), Cause.ABSENT, "answer 'BEN' is not at its answer_start 28: the context has "
     "'Ben' at 28, and 1 more", "Ben"),
    (replace(asked("Ada", 0), answers=("Ada", "Cora"), answer_starts=(0, 3)), Cause.ABSENT,
     "answer 2 of 2, 'Cora', is not at its answer_start 3: it is not in the context", " bui"),
    (asked(" Ben", 27), Cause.BLANKS, "answer ' Ben' has leading or trailing whitespace", " Ben"),
    (asked("e", 0, "e\u0301te"), Cause.COMBINING, r"answer 'e', label 'e" + "\u0301'", "e"),
    (asked("\u200bAda", 0, "\u200bAda sang"), Cause.INVISIBLE,
     "answer '\\u200bAda', label 'Ada'", "\u200bAda"),
    (asked("Japan", 2, "A Japanese oak"), Cause.INSIDE_TOKEN, "answer 'Japan', label 'Japanese'",
     "Japan"),
    (replace(asked("Ada", 0, "a " * 30 + "Japanese"), answers=("a " * 25 + "a", "Japan"),
             answer_starts=(0, 60)), Cause.INSIDE_TOKEN, "answer 'Japan', label 'Japanese'",
     "Japan"),
    (asked("\u200b", 1, "A\u200b b"), Cause.NO_TOKENS, "answer '\\u200b'", "\u200b"),
    (asked("b c d e f g h", 26, "a " * 13 + "b c d e f g h"), Cause.CUT,
     "answer 'b c d e f g h', 7 tokens, which fit into a window with --doc_stride 6",
     "b c d e f g h"),
    (asked("a " * 25 + "a", 0, "a " * 30), Cause.CUT, f"answer '{'a ' * 25}a', 26 tokens, which "
     "exceed a window of --max_seq_length 24", "a " * 25 + "a"),
    (replace(asked("Ada", 0), answers=("Ada", " "), answer_starts=(0, 3)), Cause.EMPTY,
     "answer 2 of 2, ' ', is blank", ""),
    (asked("Ada", 0, question=" \n"), Cause.EMPTY, r"question is ' \n'", ""),
    (Example("x", "", "", fault="id is 1.5"), Cause.UNREADABLE, "id is 1.5", ""),
    (Example("x", "Who?", QUAY), Cause.NO_GOLD, "no answers", ""),
    (Example("x", "Who?", QUAY, ("Ada",)), Cause.UNEVEN, "answers: 1, answer_starts: 0", ""),
    (Example("x", "Who?", QUAY, ()), Cause.UNANSWERABLE, "no answer", ""),
    (asked("Ada", 0, question="a " * 19), Cause.LONG_QUESTION, "19 tokens, of which 16 fit", ""),
]  # fmt: skip


@pytest.mark.parametrize(
    ("example", "cause", "detail", "marked"), FOUND, ids=[f"{e[1].value}: {e[2]}" for e in FOUND]
)
def test_each_fault_is_found(example, cause, detail, marked, tokenizer):
    good = asked("Ada", 0, question="Who then?")
    found = audit([good, example], tokenizer, SMALL)
    assert details(found) == [(cause, 1, detail)]
    (finding,) = found.findings
    assert (finding.id, finding.question) == (example.id, example.question)
    assert finding.excerpt.marked == marked
    assert found.counts == {cause: 1}
    assert found.refused == int(cause in list(Cause)[:9])  # those that training refuses


def test_no_findings_without_faults(tokenizer):
    for path, negative in ((STORIES, False), (STORIES_V2, True)):
        examples = read_examples(path)
        found = audit(examples, tokenizer, version_2_with_negative=negative)
        assert found.findings == () and found.refused == 0
        assert found.exact == len(examples) - found.unanswerable
        assert (found.unanswerable > 0) == negative
        assert "bertqa train accepts it; there are no findings" in audit_text(found)


@pytest.mark.parametrize("example", [asked("Ada", 0), Example("x", "Who?", QUAY, ())])
def test_zeros_are_omitted(tokenizer, example):
    text = audit_text(audit([example], tokenizer, version_2_with_negative=True))
    assert not re.search(r"(?<![\d.])0(\.0%)? ", text)
    assert ("exact label for 1 question\n" in text) == bool(example.answers)
    # Except zeros that indicate a fault.
    text = audit_text(audit([replace(asked("x", 0), answers=("none",))], tokenizer, SMALL))
    assert "0 exact labels" in text and "0 windows with a whole answer; the others" in text
    assert not re.search(r"^ +$", text, re.MULTILINE)


def test_gold_answers_at_different_positions(tokenizer):
    twice = replace(asked("Ada", 0), answers=("Ada", "Ada"), answer_starts=(0, 0))
    several = replace(asked("Ben", 28), answers=("Ben", "Ben"), answer_starts=(28, 46))
    astray = replace(several, id="astray", answer_starts=(28, 10**25))
    found = audit([asked("quay", 14), twice, several, astray], tokenizer, SMALL)
    assert found.scattered == 2 and found.exact == 4
    assert " 2 questions with gold answers at different positions\n" in audit_text(found)


def test_repeated_ids(tokenizer):
    ada = asked("Ada", 0)
    found = audit([ada, replace(ada, question="Who sang?"), ada], tokenizer)
    assert details(found) == [
        (Cause.DUPLICATE_ID, 1, "row 0 has the same id, but differs"),
        (Cause.DUPLICATE_ID, 2, "row 0 is identical"),
    ]


def test_conflicts_are_same_questions_without_a_common_answer(tokenizer):
    def row(name: str, *answers: str, question: str = "Who sang?", context: str = QUAY) -> Example:
        return Example(name, question, context, answers, tuple(map(context.index, answers)))

    rows = [
        row("a", "Ada"), row("b", "Ben"), row("c", "Ben", "Ada", question="who  SANG?"),
        row("none"), row("elsewhere", "Ben", context=QUAY + "x"),
        row("other", "1642", question="When?"), row("the same", "the quay", question="What?"),
        row("still the same", "quay", question="What?"), replace(row("unknown"), answers=None),
    ]  # fmt: skip
    found = audit(rows, tokenizer, version_2_with_negative=True)
    conflicts = [entry[1:] for entry in details(found) if entry[0] is Cause.CONFLICT]
    assert conflicts == [
        (0, "here 'Ada'; in row 1, id 'b', 'Ben'"),
        (1, "here 'Ben'; in row 0, id 'a', 'Ada'"),
        (2, "here 'Ben'; in row 3, id 'none', no answer"),
        (3, "here no answer; in row 0, id 'a', 'Ada'"),
    ]
    assert {finding.excerpt.marked for finding in found.by_cause[Cause.CONFLICT]} == {
        "Ada", "Ben", "",
    }  # fmt: skip


def test_all_faults_of_a_question_are_found(tokenizer):
    answers = ("Ada ", "Cora", "Dan")
    example = Example("x", "a " * 30, QUAY, answers, (0, 1, 2))
    found = audit([example], tokenizer, SMALL)
    assert Counter(finding.cause for finding in found.findings) == {
        Cause.ABSENT: 2, Cause.LONG_QUESTION: 1, Cause.BLANKS: 1,
    }  # fmt: skip
    assert found.counts[Cause.ABSENT] == 1  # one question
    assert found.refused == 1


def test_a_long_question_that_needs_one_window_is_valid(tokenizer):
    """Training accepts it too: one window needs no overlap."""
    context = tokenizer.encode(["Ada"]).lengths.item()
    room = SMALL.max_seq_length - 3 - context
    assert room > SMALL.longest_question
    rows = [Example("x", "a " * tokens, "Ada", ("Ada",), (0,)) for tokens in (room, room + 1)]
    assert audit(rows[:1], tokenizer, SMALL).findings == ()
    detail = f"{room + 1} tokens, of which {SMALL.longest_question} fit"
    assert details(audit(rows[1:], tokenizer, SMALL)) == [(Cause.LONG_QUESTION, 0, detail)]


def test_max_query_length_makes_long_questions_valid(tokenizer):
    example = asked("Ada", 0, question="a " * 9)
    found = audit([example], tokenizer, replace(SMALL, max_query_length=5))
    assert details(found) == [(Cause.QUESTION_CUT, 0, "9 tokens, of which 5 fit")]
    assert found.refused == 0
    windows = found.windows
    assert (windows.question_limit, windows.longest_question) == (5, 9)
    assert (windows.long_questions, windows.lost_tokens) == (1, 4)


def test_figures_of_the_windows(tokenizer):
    """By hand: with a question of one token, a window has 20 context tokens and steps by 16."""
    long, short = "a " * 41, "b c"
    rows = [Example("1", "a", long, ("a",), (0,)), Example("2", "a", short, ("c",), (2,))]
    windows = audit(rows, tokenizer, SMALL).windows
    lengths = {n: count for n, count in enumerate(windows.lengths) if count}
    assert lengths == {24: 2, 13: 1, 6: 1}  # 20, 20, and 41 - 32 = 9 tokens; 2 tokens
    assert windows.count == 4 and windows.mean == (24 + 24 + 13 + 6) / 4
    assert (windows.shortest, windows.longest) == (6, 24)
    assert (windows.quantile(0.25), windows.quantile(0.5), windows.quantile(0.9)) == (6, 13, 24)
    assert (windows.split_questions, windows.most) == (1, 3)
    assert (windows.context_tokens, windows.repeated_tokens) == (51, 8)
    assert windows.labelled == 2
    assert windows.question_limit == 24 - 3 - 4 - 1


@pytest.mark.parametrize("tokens", [7, 12, 19, 20])
def test_the_suggested_doc_stride_is_sufficient(tokens, tokenizer):
    """A window fits 19 context tokens; for one more no overlap helps."""
    answer = " ".join("bcdefghijklmnopqrstuvwxyz"[:tokens])
    example = asked(answer, 26, "a " * 13 + answer + " a" * 9)
    found = audit([example], tokenizer, SMALL)
    assert found.counts == {Cause.CUT: 1}
    fits = f"fit into a window with --doc_stride {tokens - 1}" in found.findings[0].detail
    assert fits == (tokens <= 19)
    if fits:
        assert audit([example], tokenizer, replace(SMALL, doc_stride=tokens - 1)).findings == ()


def test_an_empty_data_set_raises(tokenizer):
    with pytest.raises(UserError, match=r"x\.json"):
        audit([], tokenizer, source="x.json")


def refuses(rows: list[Example], tokenizer: BertTokenizer, negative: bool) -> bool:
    """Return whether training refuses a dataset."""
    try:
        check_examples(rows, "x")
        check_answers(rows, "x")
        check_version(rows, "x", negative)
        make_labelled_windows(rows, tokenizer, WindowSettings(10, 2))
    except UserError:
        return True
    return False


@settings(max_examples=200)
@given(rows=data_sets(), negative=st.booleans())
def test_audit_and_training_refuse_the_same_data(rows, negative, tokenizer):
    windows = WindowSettings(10, 2)
    found = audit(rows, tokenizer, windows, version_2_with_negative=negative)
    assert bool(found.refused) == refuses(rows, tokenizer, negative)
    if not found.refused:
        outcome = make_labelled_windows(rows, tokenizer, windows).outcome.tolist()
        lost = {row for row, value in enumerate(outcome) if value in CAUSES}
        assert lost == {
            f.row for f in found.findings if f.cause is not Cause.CONFLICT
            and not (f.cause is Cause.BLANKS and rows[f.row].answers[0].strip()
                     == rows[f.row].answers[0])
        }  # fmt: skip
    assert [f for f in found.findings if f.row >= len(rows)] == []
    audit_page([found], repair(rows, tokenizer).changes)
    assert "\x1b" not in audit_text(found)


# --- excerpts ------------------------------------------------------------------------------------


def test_an_excerpt():
    assert excerpt("abc", 1, 2) == Excerpt("a", "b", "c")
    assert excerpt("abc", -7, 10**30) == Excerpt("", "abc", "")
    assert excerpt("abc", 50, 60) == Excerpt("abc", "", "")
    text = "x" * 100 + "mark" + "y" * 100
    assert excerpt(text, 100, 104) == Excerpt("..." + "x" * 40, "mark", "y" * 40 + "...")
    assert excerpt("e\u0301" + "x" * 40 + "m", 42, 43).before == "..." + "x" * 40
    assert excerpt("e\u0301" + "x" * 39 + "m", 41, 42).before == "e\u0301" + "x" * 39  # whole
    long = excerpt("z" * 500, 0, 500)
    assert len(long.marked) == 163 and "..." in long.marked
    # Long grapheme clusters are shortened too.
    accents = "e" + "\u0301" * 60_000
    around = excerpt(f"{accents} ab {accents}", len(accents) + 1, len(accents) + 3)
    assert around.marked == "ab" and len(around.before) < 300 and len(around.after) < 300


@given(st.text(alphabet="ab\u0301", min_size=400, max_size=900))
@example("e" + "\u0301" * 398 + "ab")
@example("e" + "\u0301" * 1000 + "x" * 1000)
@example("x" * 1000 + "e" + "\u0301" * 1000)
def test_shortened_text_is_never_longer(text):
    short = shortened(text)
    assert len(short) <= min(len(text), 2 * 400 + 3) + 3
    beginning, dots, end = short.partition("...")
    assert text.startswith(beginning) and text.endswith(end)
    assert (dots == "") == (len(text) <= 400)


def test_long_ids_and_questions_are_shortened_in_reports(tokenizer):
    examples = [Example("i" * 10_000, "why " * 20_000, "Ada built it.", ("nobody",), (0,))]
    found = audit(examples, tokenizer, WindowSettings(64, 16, 24))
    assert found.findings[0].id == examples[0].id  # complete in the JSON report
    assert len(audit_text(found)) < 5_000
    assert len(audit_page([found], None)) < 60_000


def test_invisible_characters_are_escaped():
    assert visible("a\tb\u200b\u202e\x1b[31m\u00a0\U000e0001") == (
        r"a\tb\u200b\u202e\x1b[31m\xa0\U000e0001"
    )
    plain = "é e\u0301 \u0645\u06cc\u200c\u062e 👩\u200d🚀 \u3000漢"
    assert visible(plain) == plain


# --- reports -------------------------------------------------------------------------------------

HOSTILE = '<b onclick="x">&amp;</b>\u202e\x07'
RTL = "עדה בנתה את המזח."


@pytest.fixture(scope="module")
def faulty(tokenizer: BertTokenizer) -> tuple[list[Example], Audit]:
    rows = [
        Example(
            f"{number} {HOSTILE}", f"Who? {HOSTILE}", f"{HOSTILE} Ada {HOSTILE}", ("Ada",), (3,)
        )
        for number in range(30)
    ]
    rows += [Example("rtl", "מי?", RTL, ("עדה ",), (0,)), Example("no", "Why?", RTL, ())]
    return rows, audit(rows, tokenizer, source=f"{HOSTILE}.json")


def test_the_text_report_shows_the_first_findings(faulty):
    found = faulty[1]
    text = audit_text(found)
    lines = text.splitlines()
    assert "bertqa train refuses it because of 31 questions" in lines
    i = lines.index("misplaced: 30")
    assert lines[i + 1].startswith(r'  row 0, 0 <b onclick="x">&amp;</b>\u202e\x07: answer ')
    assert "»onc«" in lines[i + 2]
    assert lines[i + 11] == "  and 25 more; --report FILE lists all"
    assert "blanks: 1\n  row 30, rtl: " in text and "unanswerable: 1\n  row 31, no: " in text
    assert all(character.isprintable() or character == "\n" for character in text)


def test_the_changes_as_text(faulty, tokenizer):
    changes = repair(faulty[0], tokenizer).changes
    assert len(changes) == 31
    lines = changes_text(changes).splitlines()
    assert lines[0] == "repaired: 31" and "»Ada«" in lines[2]
    assert sum(line.startswith("  row ") for line in lines) == 31
    assert changes_text([]) == "repaired: nothing"


def test_the_page(faulty, tokenizer):
    rows, found = faulty
    page = audit_page([found, found], repair(rows, tokenizer).changes)
    parsed = Page(page)
    tags = Counter(tag for tag, _ in parsed.seen)
    assert tags["script"] == tags["link"] == tags["img"] == tags["b"] == 0
    attributes = {name for _, attrs in parsed.seen for name in attrs}
    assert not attributes & {"src", "href", "onclick", "style"}
    assert "url(" not in page and "@import" not in page
    assert page.replace("http://www.w3.org/2000/svg", "").count("http") == 1  # http-equiv
    assert all(c.isprintable() or c == "\n" for c in page)
    # Every finding of both audits, and every change, is a row.
    assert tags["tr"] == 2 * (len(found.findings) + 3) + (31 + 1) + len(Cause) + 1
    assert tags["h1"] == 1 and tags["svg"] == 2 and tags["main"] == 1
    assert all(attrs.get("scope") in {"col", "row"} for tag, attrs in parsed.seen if tag == "th")
    assert all(
        attrs == {"dir": "auto"} for tag, attrs in parsed.seen if tag == "p" and "dir" in attrs
    )
    opened = ["open" in attrs for tag, attrs in parsed.seen if tag == "details"]
    assert opened == [False, True, True, False, True, True, False]  # more than 20 are collapsed
    text = "".join(parsed.texts)
    assert '29 <b onclick="x">&amp;</b>\\u202e\\x07' in text
    assert "prefers-color-scheme: dark" in page
    assert all(cause.meaning in text and cause.repair in text for cause in Cause)


def test_a_page_without_faults(tokenizer):
    found = audit([asked("Ada", 0)], tokenizer)
    text = "".join(Page(audit_page([found], [])).texts)
    assert "None." in text and "Nothing could be repaired." in text
    assert "Repairs in the copy" not in "".join(Page(audit_page([found])).texts)


def test_the_json_report_is_complete(faulty, tokenizer, tmp_path):
    rows, found = faulty
    changes = repair(rows, tokenizer).changes
    save_json(tmp_path / "r.json", [found], changes)
    document = json.loads((tmp_path / "r.json").read_text(encoding="utf-8"))
    (entry,) = document["audits"]
    assert entry["refused"] == 31
    assert entry["counts"] == {"misplaced": 30, "unanswerable": 1, "blanks": 1}
    assert len(entry["findings"]) == 32 and len(document["changes"]) == 31
    first = found.findings[0]
    assert entry["findings"][0] == {
        "cause": "misplaced", "row": 0, "id": first.id, "question": first.question,
        "detail": first.detail,
        "excerpt": {"before": first.excerpt.before, "marked": first.excerpt.marked,
                    "after": first.excerpt.after},
    }  # fmt: skip
    assert first.excerpt != NOWHERE
    assert entry["windows"]["count"] == 32 == sum(entry["windows"]["lengths"])
    assert document["rules"]["misplaced"]["refused"] is True
    assert set(document["rules"]) == {cause.value for cause in Cause}
