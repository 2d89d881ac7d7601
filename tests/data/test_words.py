"""The tokens of each word equal those of the tokenizers library."""

import pytest
from transformers import AutoTokenizer

from bertqa.data.words import as_words, word_bounds
from tests.corpus import PAIRS, TEXTS
from tests.helpers import write_tokenizer


@pytest.mark.parametrize("lowercase", [True, False])
def test_words_equal_the_librarys(tmp_path, lowercase):
    texts = [text for text in [*TEXTS, *(context for _, context in PAIRS)] if "[" not in text]
    ours = write_tokenizer(tmp_path, lowercase)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    tokens = ours.encode(texts)
    first, last = word_bounds(tokens, ours)
    aligned = as_words(tokens, ours)
    several = 0
    for number, text in enumerate(texts):
        rows = tokens.rows(number)
        encoding = theirs(text, add_special_tokens=False)
        for token, row in enumerate(range(rows.start, rows.stop)):
            pieces = encoding.word_to_tokens(encoding.token_to_word(token))
            assert (int(first[row]), int(last[row])) == (
                rows.start + pieces.start, rows.start + pieces.end - 1,
            )  # fmt: skip
            characters = encoding.word_to_chars(encoding.token_to_word(token))
            assert (int(aligned.starts[row]), int(aligned.ends[row])) == tuple(characters)
            several += pieces.end - pieces.start > 1
    assert several > 1000


def test_a_word_does_not_reach_into_the_next_text(tmp_path):
    tokenizer = write_tokenizer(tmp_path)
    tokens = tokenizer.encode(["", "zq", "", "zq zq", ""])
    first, last = word_bounds(tokens, tokenizer)
    assert first.tolist() == [0, 0, 2, 2, 4, 4]
    assert last.tolist() == [1, 1, 3, 3, 5, 5]
    assert [bound.tolist() for bound in word_bounds(tokenizer.encode([]), tokenizer)] == [[], []]
