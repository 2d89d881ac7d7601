"""bertqa.shorten: short contexts that keep their answers; where in them says nothing."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bertqa.cli import run_script
from bertqa.errors import UserError
from bertqa.mending import save_examples
from bertqa.readers import read_examples
from bertqa.shorten import main, parse_flags, shorten
from bertqa.squad import Example, check_answers, check_examples, split_by_article
from tests.helpers import STORIES, STORIES_V2

TEXT = " ".join(f"word{i}" for i in range(200))


def at(word: int, last: int | None = None) -> Example:
    """A question whose answer is a word of the text, or a stretch of words."""
    start = TEXT.index(f"word{word} ")
    answer = " ".join(f"word{i}" for i in range(word, (last or word) + 1))
    return Example("a", "Which?", TEXT, (answer,), (start,))


@given(
    word=st.integers(0, 198), more=st.integers(0, 120), words=st.integers(1, 150),
    seed=st.integers(0, 2**32),
)  # fmt: skip
def test_the_answer_stays_whole_in_a_stretch_of_the_right_length(
    word: int, more: int, words: int, seed: int
) -> None:
    example = at(word, min(198, word + more))
    (short,) = shorten([example], words, seed)
    check_answers([short], "short")
    assert short.context in TEXT
    assert short.answers == example.answers
    length, answer = len(short.context.split()), len(example.answers[0].split())  # type: ignore[index]
    assert max(answer, (words + 1) // 2) <= length <= max(answer, words)


def test_where_the_answer_stands_says_nothing() -> None:
    examples = [at(100)] * 4000
    places = [e.context.split().index("word100") for e in shorten(examples, 10, seed=1)]
    counts = [places.count(place) for place in range(10)]
    # Of lengths 5 to 10 a place is equally likely: the first five are in all of them.
    expected = [sum(4000 / 6 / n for n in range(max(5, place + 1), 11)) for place in range(10)]
    for count, mean in zip(counts, expected, strict=True):
        assert abs(count - mean) < 5 * mean**0.5
    assert sum(counts) == 4000


def test_at_the_ends_of_a_text_the_stretch_turns_inwards() -> None:
    for word in (0, 1, 198):
        for short in shorten([at(word)] * 50, 20, seed=2):
            assert 10 <= len(short.context.split()) <= 20


def test_a_text_that_is_short_already_stays() -> None:
    example = Example("a", "Which?", "one two three", ("two",), (4,))
    assert shorten([example], 60, seed=3) == [replace(example, title="context 0")]


def test_all_answers_stay_and_blanks_that_belong_to_one() -> None:
    text = "aa bb  cc dd ee ff gg hh ii jj kk"
    example = Example("a", "Which?", text, ("bb  cc ", "ee"), (3, 13))
    (short,) = shorten([example], 1, seed=4)
    assert short.context == "bb  cc dd ee"
    assert short.answer_starts == (0, 10)
    ends_in_a_blank = Example("b", "Which?", text, ("bb  ",), (3,))
    assert shorten([ends_in_a_blank], 1, seed=4)[0].context == "bb  "


def test_a_question_without_an_answer_keeps_some_stretch() -> None:
    examples = [Example("a", "Which?", TEXT, ())] * 100
    short = shorten(examples, 10, seed=5)
    assert all(e.is_impossible and 5 <= len(e.context.split()) <= 10 for e in short)
    assert len({e.context for e in short}) > 50


def test_the_same_questions_are_held_out_as_of_the_whole_texts() -> None:
    for titled in (True, False):
        examples = [e if titled else replace(e, title="") for e in read_examples(STORIES)]
        parts = [split_by_article(each, 30) for each in (examples, shorten(examples, 12, seed=1))]
        ids = [[[example.id for example in part] for part in both] for both in parts]
        assert ids[0] == ids[1] and len(ids[0][1]) > 10


def test_the_seed_decides() -> None:
    examples = read_examples(STORIES)
    assert shorten(examples, 12, seed=1) == shorten(examples, 12, seed=1)
    assert shorten(examples, 12, seed=1) != shorten(examples, 12, seed=2)


@pytest.mark.parametrize("stories", [STORIES, STORIES_V2])
@pytest.mark.parametrize("ending", [".json", ".jsonl"])
def test_the_copy_is_a_data_set_of_the_same_questions(
    stories: Path, ending: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / f"short{ending}"
    main(parse_flags([str(stories), str(copy), "--words", "12"]))
    examples, short = read_examples(stories), read_examples(copy)
    check_examples(short, "short")
    check_answers(short, "short")
    same = ("id", "question", "answers", "title")
    for before, after in zip(examples, short, strict=True):
        assert all(getattr(before, name) == getattr(after, name) for name in same)
        assert after.context in before.context
    assert sum(len(e.context) for e in short) < sum(len(e.context) for e in examples) / 2
    assert f"{len(examples)} questions" in capsys.readouterr().out


def test_what_cannot_be_shortened_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    far_apart = Example("a", "Which?", TEXT, ("word3", "word150"), (18, TEXT.index("word150")))
    file, copy = tmp_path / "far.jsonl", tmp_path / "short.jsonl"
    save_examples(
        file, [far_apart, replace(at(9), id="b"), Example("c", "?", "字" * 90, ("字",), (7,))]
    )
    main(parse_flags([str(file), str(copy), "--words", "10"]))
    assert "1 of them longer than 10 for the answers' sake" in capsys.readouterr().out
    lengths = [len(example.context.split()) for example in read_examples(copy)]
    assert lengths[0] == 148 and 5 <= lengths[1] <= 10 and lengths[2] == 1


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"answers": {"text": ["b"], "answer_start": [3]}}, "but its context has"),
        ({}, "has no gold answers"),
        ({"context": " "}, "blank context"),
    ],
)
def test_a_data_set_with_a_fault_is_refused(
    row: dict[str, Any], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text(json.dumps({"question": "Who?", "context": "b c d"} | row))
    flags = parse_flags([str(file), str(tmp_path / "b.json")])
    assert run_script(main, flags) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "b.json").exists()


def test_what_it_refuses(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--words 0 would leave no context"):
        main(parse_flags([str(STORIES), str(tmp_path / "a.json"), "--words", "0"]))
    with pytest.raises(UserError, match="--seed -1 is not possible"):
        main(parse_flags([str(STORIES), str(tmp_path / "a.json"), "--seed", "-1"]))
    with pytest.raises(UserError, match=r"must end in \.json or \.jsonl"):
        main(parse_flags([str(STORIES), str(tmp_path / "a.csv")]))
    with pytest.raises(UserError, match="is there already"):
        main(parse_flags([str(STORIES), str(STORIES)]))
