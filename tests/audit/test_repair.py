"""Repairs: what is changed, what is not, and that the copy can be read."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bertqa.audit.repair import loose_occurrences, occurrences, occurs_at, repair, save_examples
from bertqa.data.readers import read_examples
from bertqa.data.squad import Example
from bertqa.data.tokenization import BertTokenizer
from bertqa.errors import UserError
from tests.helpers import write_tokenizer

QUAY = "Ada built the quay in 1642. Ben swept it, and Ben sang at the café."


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> BertTokenizer:
    return write_tokenizer(tmp_path_factory.mktemp("tokenizer"))


def asked(*answers: tuple[str, int], context: str = QUAY, id_: str = "q") -> Example:
    texts, starts = zip(*answers, strict=True)
    return Example(id_, "Who?", context, texts, starts)


def repaired_answers(example: Example, tokenizer: BertTokenizer) -> list[tuple[str, int]]:
    (repaired,) = repair([example], tokenizer).examples
    return list(zip(repaired.answers, repaired.answer_starts, strict=True))


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (("1642", 20), ("1642", 22)),  # occurs once, elsewhere
        (("1642", -3), ("1642", 22)),
        (("1642", 10**20), ("1642", 22)),
        ((" 1642", 0), ("1642", 22)),  # occurs once with its space
        ((" 1642 ", 0), ("1642", 22)),  # does not occur with its spaces, once without
        (("Ada ", 0), ("Ada", 0)),
        ((" \tBen", 36), (" \tBen", 36)),  # occurs twice without its whitespace
        ((" Ben ", 27), ("Ben", 28)),
        (("ADA  Built", 0), ("Ada built", 0)),
        (("CAFE\u0301.", 0), ("café.", 62)),
        (("the\u00a0QUAY", 1), ("the quay", 10)),
    ],
)
def test_an_answer_is_moved_to_its_only_occurrence(answer, expected, tokenizer):
    assert repaired_answers(asked(answer), tokenizer) == [expected]


@pytest.mark.parametrize(
    "answer",
    [
        ("Ben", 27),  # occurs twice, though once nearby
        ("BEN", 3),  # twice in another case
        ("Cora", 0),  # absent
        ("cafe", 0),  # absent: a different letter
        ("quaint", 14),
        ("wep", 0),  # once, but inside a token, so no label reproduces it
        (" ", 3),
        ("", 0),
    ],
)
def test_ambiguous_faults_are_unchanged(answer, tmp_path):
    write_tokenizer(tmp_path)
    with (tmp_path / "vocab.txt").open("a", encoding="utf-8") as file:
        file.write("swept\nben\ncafe\n")  # whole words, so that "wep" is inside one
    example = asked(answer)
    result = repair([example], BertTokenizer.load(tmp_path))
    assert result.examples[0] is example
    assert result.changes == ()


def test_changes_are_described(tokenizer):
    rows = [
        asked(("1642", 20), ("", 0), ("Ada ", 0), id_="many"),
        asked(("THE QUAY", 0), id_="case"),
    ]
    result = repair(rows, tokenizer)
    assert [(change.row, change.id, change.what) for change in result.changes] == [
        (0, "many", "answer '1642' at 20 is now '1642' at 22: moved to its only occurrence"),
        (0, "many", "answer '' at 0: removed, because it is blank"),
        (0, "many", "answer 'Ada ' at 0 is now 'Ada' at 0: stripped of whitespace"),
        (1, "case", "answer 'THE QUAY' at 0 is now 'the quay' at 10: replaced by its only similar "
         "text in the context"),
    ]  # fmt: skip
    assert result.changes[0].excerpt.before.endswith("the quay in ")
    assert result.changes[0].excerpt.marked == "1642"
    assert result.examples[0].answers == ("1642", "Ada")


def test_missing_starts_are_found_if_all_are_unambiguous(tokenizer):
    found = Example("a", "Who?", QUAY, ("Ada", "1642 "))
    also = Example("b", "Who?", QUAY, ("Ada", "1642"), (5,))
    one = Example("f", "Who?", QUAY, ("Ben", "1642"), (28, -1))
    not_all = Example("c", "Who?", QUAY, ("Ada", "Ben"))
    nothing = Example("d", "Who?", QUAY, (), (3,))
    without = Example("e", "Who?", QUAY)
    result = repair([found, also, not_all, nothing, without, one], tokenizer).examples
    assert [(e.answers, e.answer_starts) for e in result[:2]] == [(("Ada", "1642"), (0, 22))] * 2
    assert result[2] is not_all and result[3] is nothing and result[4] is without
    assert result[5].answer_starts == (28, 22)


def test_ids_become_unique_and_exact_duplicates_are_removed(tokenizer):
    ada, ben = asked(("Ada", 0)), asked(("Ben", 28))
    rows = [ada, ben, asked(("Ada ", 0)), asked(("it", 38)), ben, asked(("Ada", 0), id_="q-2")]
    result = repair(rows, tokenizer)
    assert [(e.id, e.answers[0]) for e in result.examples] == [
        ("q", "Ada"), ("q-3", "Ben"), ("q-4", "it"), ("q-2", "Ada"),
    ]  # fmt: skip
    assert [(change.row, change.what) for change in result.changes] == [
        (1, "id is now 'q-3': row 0 has the same id, but differs"),
        (2, "answer 'Ada ' at 0 is now 'Ada' at 0: stripped of whitespace"),
        (2, "removed: exact duplicate of an earlier row"),
        (3, "id is now 'q-4': row 0 has the same id, but differs"),
        (4, "removed: exact duplicate of an earlier row"),
    ]


def test_occurrences():
    assert occurrences("aaab", "aa") == [0, 1]
    assert occurrences("aaab", "c") == []
    assert occurs_at("aab", "ab", 1)
    assert not occurs_at("aab", "b", -1) and not occurs_at("b", "b", 9)


@pytest.mark.parametrize(
    ("context", "text", "found"),
    [
        ("Straße 5", "STRASSE", [(0, 6)]),
        ("Straßs", "STRAS", []),  # it would end inside a letter
        ("a \n b", "A B", [(0, 5)]),
        ("\ufb01ne", "fin", [(0, 2)]),
        ("\ufb01ne", "f", []),
        ("e\u0301t", "ét", [(0, 3)]),
        ("e\u0301t", "e", []),
        ("été", "T", [(1, 2)]),
        ("abc", " \n", []),
    ],
)
def test_loose_occurrences(context, text, found):
    assert loose_occurrences(context, text) == found


# --- random datasets ----------------------------------------------------------------------------

LETTERS = st.text(st.sampled_from('aAb \u00e9e\u0301\u00a0\n\u2028"\\'), max_size=6)
TEXTS = LETTERS | st.text(st.characters(exclude_categories=["Cs"]), max_size=6)


@st.composite
def data_sets(draw: st.DrawFn) -> list[Example]:
    contexts = draw(st.lists(TEXTS, min_size=1, max_size=2))
    rows = []
    for _ in range(draw(st.integers(1, 4))):
        context = draw(st.sampled_from(contexts))
        answers = draw(st.none() | st.lists(TEXTS | st.sampled_from(context or "x"), max_size=2))
        count = len(answers or ())
        starts = draw(
            st.lists(st.integers(-1, 7), min_size=count, max_size=count)
            | st.lists(st.integers(-1, 7), max_size=2)
        )
        # Normalize as the readers do.
        if not any(map(str.strip, answers or ())) and max(starts, default=0) <= 0:
            answers, starts = answers and [], []
        if set(starts) == {-1}:
            starts = []
        rows.append(
            Example(
                draw(st.sampled_from(["a", "b", "a-2"])), draw(TEXTS).lstrip(), context,
                None if answers is None else tuple(answers), tuple(starts),
                draw(st.sampled_from(["", "T"])),
            )
        )  # fmt: skip
    return rows


@settings(max_examples=150)
@given(rows=data_sets(), ending=st.sampled_from([".json", ".jsonl"]))
def test_the_copy_can_be_read_and_needs_no_repair(rows, ending, tokenizer, tmp_path_factory):
    result = repair(rows, tokenizer)
    path = tmp_path_factory.mktemp("copy") / f"copy{ending}"
    save_examples(path, result.examples)
    assert read_examples(path) == result.examples
    again = repair(result.examples, tokenizer)
    assert again.changes == () and again.examples == result.examples
    assert len({example.id for example in result.examples}) == len(result.examples)
    removed = [change for change in result.changes if change.what.startswith("removed")]
    assert len(result.examples) + len(removed) == len(rows)
    assert {example.context for example in result.examples} == {row.context for row in rows}
    if not result.changes:
        assert all(ours is row for ours, row in zip(result.examples, rows, strict=True))


@pytest.mark.parametrize("ending", [".json", ".jsonl"])
def test_a_lone_surrogate_in_a_title_is_copied(tmp_path, ending):
    example = replace(asked(("Ada", 0)), title="half \ud83d")
    save_examples(tmp_path / f"copy{ending}", [example])
    (copy,) = read_examples(tmp_path / f"copy{ending}")
    assert copy.title == "half \ud83d"


def test_the_suffix_of_the_copy_is_checked(tmp_path):
    with pytest.raises(UserError, match=r"c\.csv.* must end in \.json or \.jsonl"):
        save_examples(tmp_path / "c.csv", [asked(("Ada", 0))])
    assert list(tmp_path.iterdir()) == []
