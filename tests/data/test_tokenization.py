"""Ids and offsets equal transformers', for every format of a tokenizer."""

import json
from itertools import chain

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models
from transformers import AutoTokenizer
from transformers import BertTokenizer as TheirTokenizer

from bertqa.data import tokenization
from bertqa.data.tokenization import BertTokenizer
from bertqa.errors import UserError
from tests.corpus import PAIRS, TEXTS
from tests.helpers import vocabulary, write_tokenizer

LOWERCASE = {True: "uncased", False: "cased"}
SETTINGS = [
    {},
    {"strip_accents": True},
    {"strip_accents": False},
    {"strip_accents": None},
    {"tokenize_chinese_chars": False},
    {"tokenize_chinese_chars": False, "strip_accents": False},
]


def add_settings(folder, **changes):
    """Change tokenizer_config.json."""
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def rows(table):
    """Return ids and offsets of each text as lists."""
    columns = table.ids.tolist(), table.starts.tolist(), table.ends.tolist()
    texts = ([c[table.rows(i)] for c in columns] for i in range(len(table.lengths)))
    return [(ids, list(zip(starts, ends, strict=True))) for ids, starts, ends in texts]


def their_rows(tokenizer, texts):
    """Return those of transformers' tokenizer, with special tokens in a text as plain text."""
    encoding = tokenizer(
        texts, add_special_tokens=False, return_offsets_mapping=True, split_special_tokens=True
    )
    return list(zip(encoding["input_ids"], encoding["offset_mapping"], strict=True))


def refusal(folder, *words):
    with pytest.raises(UserError) as caught:
        BertTokenizer.load(folder)
    message = str(caught.value)
    assert "\n" not in message
    for word in (str(folder), *words):
        assert word in message
    return message


@pytest.fixture
def folder(tmp_path):
    """A folder with vocab.txt and tokenizer_config.json."""
    write_tokenizer(tmp_path)
    return tmp_path


# --- equal to transformers -----------------------------------------------------------------------


@pytest.mark.parametrize("changes", SETTINGS, ids=str)
@pytest.mark.parametrize("lowercase", LOWERCASE, ids=LOWERCASE.get)
def test_every_format_gives_the_same_tokens(tmp_path, lowercase, changes):
    """vocab.txt, transformers' tokenizer.json of it, and both saved again."""
    write_tokenizer(tmp_path / "words", lowercase)
    add_settings(tmp_path / "words", **changes)
    theirs = AutoTokenizer.from_pretrained(tmp_path / "words")
    assert isinstance(theirs, TheirTokenizer)
    texts = [*TEXTS, *chain(*PAIRS)] if not changes else TEXTS
    expected = their_rows(theirs, texts)
    theirs.save_pretrained(tmp_path / "json")
    for form, source in (("words", "vocab.txt"), ("json", "tokenizer.json")):
        ours = BertTokenizer.load(tmp_path / form)
        assert ours.source == tmp_path / form / source
        assert rows(ours.encode(texts)) == expected
        assert (ours.cls_id, ours.sep_id) == (theirs.cls_token_id, theirs.sep_token_id)
        assert ours.vocab_size == len(theirs)
        ours.save(tmp_path / "saved" / form)
        again = BertTokenizer.load(tmp_path / "saved" / form)
        assert rows(again.encode(texts)) == expected
        assert (again.cls_id, again.sep_id) == (ours.cls_id, ours.sep_id)
        assert their_rows(AutoTokenizer.from_pretrained(again.source.parent), texts) == expected
        again.save(tmp_path / "twice" / form)
        for name in ("tokenizer.json", "tokenizer_config.json"):
            saved = (tmp_path / "saved" / form / name).read_bytes()
            assert (tmp_path / "twice" / form / name).read_bytes() == saved


def test_the_settings_make_a_difference(tmp_path):
    # Otherwise the test above would pass for a reader that ignores them.
    found = {}
    for lowercase in LOWERCASE:
        for number, changes in enumerate(SETTINGS):
            folder = tmp_path / f"{lowercase}-{number}"
            write_tokenizer(folder, lowercase)
            add_settings(folder, **changes)
            found[lowercase, number] = str(rows(BertTokenizer.load(folder).encode(TEXTS)))
    # By default, accents are stripped only if text is lowercased.
    assert found[True, 0] == found[True, 1] == found[True, 3]
    assert found[False, 0] == found[False, 2] == found[False, 3]
    assert found[False, 4] == found[False, 5]
    assert len(set(found.values())) == 4 + 3


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    folder = tmp_path_factory.mktemp("both")
    return write_tokenizer(folder), AutoTokenizer.from_pretrained(folder)


pieces = st.one_of(
    st.text(max_size=6),
    st.sampled_from(
        ["the", " ", "River", "ing", "[SEP]", "[MASK]", "##s", "e\u0301", "中", "👍🏽"]
    ),
)


@settings(derandomize=True, max_examples=150)
@given(st.lists(pieces, max_size=12).map("".join))
def test_any_text_at_all(both, text):
    ours, theirs = both
    table = ours.encode([text])
    assert rows(table) == their_rows(theirs, [text])
    # Labels are found by binary search, so offsets must be sorted.
    assert (table.starts.diff() >= 0).all()
    assert (table.ends.diff() >= 0).all()
    assert (table.starts < table.ends).all()
    assert (table.ends <= len(text)).all()


# --- special tokens, truncation, padding ---------------------------------------------------------


def test_special_tokens_in_a_text_are_text(both):
    ours, theirs = both
    text = "the [SEP] in [MASK][CLS], [PAD]"
    ids, offsets = rows(ours.encode([text]))[0]
    special = {ours.cls_id, ours.sep_id, vocabulary().index("[MASK]")}
    assert not special & set(ids)
    assert ours.tokens(ids[:7]) == ["the", "[", "s", "##e", "##p", "]", "in"]
    assert offsets[1:6] == [(4, 5), (5, 6), (6, 7), (7, 8), (8, 9)]
    # By default, transformers recognizes special tokens in a user's text.
    assert theirs.sep_token_id in theirs(text, add_special_tokens=False)["input_ids"]


def test_special_tokens_declared_as_plain_are_still_special(tmp_path):
    write_tokenizer(tmp_path).save(tmp_path)
    (tmp_path / "vocab.txt").unlink()
    entries = json.loads((tmp_path / "tokenizer.json").read_text())
    assert any(token["content"] == "[SEP]" for token in entries["added_tokens"])
    for token in entries["added_tokens"]:
        token["special"] = False
    (tmp_path / "tokenizer.json").write_text(json.dumps(entries))
    tokenizer = BertTokenizer.load(tmp_path)
    assert tokenizer.sep_id not in tokenizer.encode(["the [SEP] in"]).ids.tolist()


def test_truncation_and_padding_are_switched_off(folder, tmp_path):
    expected = rows(BertTokenizer.load(folder).encode(TEXTS))
    backend = AutoTokenizer.from_pretrained(folder).backend_tokenizer
    backend.enable_truncation(5)
    backend.enable_padding(length=9)
    backend.save(str(folder / "tokenizer.json"))
    assert len(backend.encode("the river and the town and a ship").ids) == 9
    ours = BertTokenizer.load(folder)
    assert ours.source.name == "tokenizer.json"
    assert rows(ours.encode(TEXTS)) == expected
    ours.save(tmp_path / "saved")
    entries = json.loads((tmp_path / "saved" / "tokenizer.json").read_text())
    assert entries["truncation"] is None
    assert entries["padding"] is None


# --- tables --------------------------------------------------------------------------------------


def test_lone_surrogates_keep_offsets(folder):
    ours = BertTokenizer.load(folder)
    text = "the\ud83d river \udfff\udfff town\udc00"
    _, offsets = rows(ours.encode([text]))[0]
    assert rows(ours.encode([text])) == rows(ours.encode([text.replace("\ud83d", "\ufffd")]))
    words = [text[start:end] for start, end in offsets]
    assert "river" in words
    assert "the" in words
    assert "town" in words
    # Surrogate pairs are not affected.
    assert rows(ours.encode(["a 👍 b"]))[0][1] == [(0, 1), (2, 3), (4, 5)]


def test_many_texts_equal_single_texts(folder, monkeypatch):
    ours = BertTokenizer.load(folder)
    single = [rows(ours.encode([text]))[0] for text in TEXTS]
    assert rows(ours.encode(TEXTS)) == single
    for batch_size in (1, 3, len(TEXTS)):
        monkeypatch.setattr("bertqa.data.tokenization._BATCH_SIZE", batch_size)
        assert rows(ours.encode(TEXTS)) == single


def test_tokens(folder):
    ours = BertTokenizer.load(folder)
    table = ours.encode(["Shipping the zoo"])
    names = ["ship", "##p", "##ing", "the", "z", "##o", "##o"]
    assert ours.tokens(table.ids) == ours.tokens(table.ids.tolist()) == names
    assert ours.tokens([ours.vocab_size, 10**6, 0]) == ["[?]", "[?]", "[PAD]"]


# --- valid folders -------------------------------------------------------------------------------


@pytest.mark.parametrize(("end_of_line", "end"), [("\r\n", "\r\n\r\n\n"), ("\n", "")])
def test_the_line_number_is_the_id(folder, end_of_line, end):
    """Also with carriage returns, with or without blank lines at the end."""
    tokens, expected = vocabulary(), rows(BertTokenizer.load(folder).encode(TEXTS))
    (folder / "vocab.txt").write_bytes((end_of_line.join(tokens) + end).encode("utf-8"))
    ours = BertTokenizer.load(folder)
    assert rows(ours.encode(TEXTS)) == expected
    assert ours.tokens(range(len(tokens))) == tokens
    assert (ours.cls_id, ours.sep_id, ours.vocab_size) == (2, 3, len(tokens))


def test_without_settings_text_is_lowercased(folder):
    (folder / "tokenizer_config.json").unlink()
    ours, theirs = BertTokenizer.load(folder), TheirTokenizer.from_pretrained(folder)
    assert rows(ours.encode(TEXTS)) == their_rows(theirs, TEXTS)
    assert ours.tokens(ours.encode(["THE River"]).ids) == ["the", "river"]


def test_special_tokens_of_other_names(folder):
    tokens = vocabulary()
    tokens[1:4] = ["<unk>", "<s>", "</s>"]
    (folder / "vocab.txt").write_text("\n".join(tokens) + "\n", encoding="utf-8")
    refusal(folder, "vocab.txt", "[UNK]")
    described = {"content": "</s>", "lstrip": False, "special": True}
    add_settings(folder, unk_token="<unk>", cls_token="<s>", sep_token=described)
    ours = BertTokenizer.load(folder)
    assert (ours.cls_id, ours.sep_id) == (2, 3)
    assert ours.encode(["\u1234"]).ids.tolist() == [1]


# --- invalid folders -----------------------------------------------------------------------------


def test_no_tokenizer(tmp_path):
    refusal(tmp_path, "tokenizer.json", "vocab.txt")
    refusal(tmp_path / "none", "tokenizer.json", "vocab.txt")


LINES = "\n".join(vocabulary())


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        *(
            ("tokenizer.json", content, ["must be a tokenizer"])
            for content in (b"", b"{", b"{}", b"[]", b"\xff\xfe", b'{\n"version": "1.0"\n}')
        ),
        *(
            ("tokenizer.json", Tokenizer(model).to_str().encode(), ["WordPiece", repr(kind)])
            for kind, model in (
                ("BPE", models.BPE()),
                ("Unigram", models.Unigram()),
                ("WordLevel", models.WordLevel({"[UNK]": 0}, "[UNK]")),
            )
        ),
        *(
            ("vocab.txt", LINES.replace(f"{name}\n", "").encode(), [repr(name)])
            for name in ("[UNK]", "[CLS]", "[SEP]")
        ),
        ("vocab.txt", b"", []),
        ("vocab.txt", b"\n\n", []),
        ("vocab.txt", "Müller\n".encode("latin-1"), []),
        ("vocab.txt", LINES.encode("utf-16"), ["UTF-8"]),
        *(
            ("tokenizer_config.json", content, [])
            for content in (b"{", b"[]", b"\xff", b"[" * 99_999)
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_faulty_files(folder, name, content, words):
    (folder / name).write_bytes(content)
    refusal(folder, name, *words)


@pytest.mark.parametrize("name", ["[CLS]", "[SEP]"])
def test_a_tokenizer_json_that_lacks_a_special_token(folder, name):
    tokens = {token: i for i, token in enumerate(vocabulary()) if token != name}
    backend = Tokenizer(models.WordPiece(vocab=tokens, unk_token="[UNK]"))
    backend.save(str(folder / "tokenizer.json"))
    refusal(folder, "tokenizer.json", repr(name))


def test_a_folder_instead_of_a_vocabulary(folder):
    (folder / "vocab.txt").unlink()
    (folder / "vocab.txt").mkdir()
    refusal(folder, "vocab.txt")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("do_lower_case", "yes"),
        ("do_lower_case", None),
        ("strip_accents", "no"),
        ("tokenize_chinese_chars", 1),
        ("tokenize_chinese_chars", []),
    ],
)
def test_settings_that_are_neither_true_nor_false(folder, key, value):
    add_settings(folder, **{key: value})
    refusal(folder, "tokenizer_config.json", key, repr(value))


@pytest.mark.parametrize("key", ["unk_token", "cls_token", "sep_token"])
@pytest.mark.parametrize("value", [None, ["[UNK]"], 7, {"text": "[CLS]"}, "[none]"])
def test_invalid_special_tokens(folder, key, value):
    add_settings(folder, **{key: value})
    refusal(folder, repr(value))


# --- contexts that come again --------------------------------------------------------------------


def test_contexts_that_come_again_have_the_tokens_that_they_had(folder, monkeypatch):
    ours, encoded = BertTokenizer.load(folder), []
    encode = BertTokenizer.encode
    monkeypatch.setattr(
        BertTokenizer, "encode", lambda self, texts: encoded.extend(texts) or encode(self, texts)
    )
    texts = [*dict.fromkeys(TEXTS)]
    for part in (texts[:20], texts[5:30], texts[29::-1], [], texts[:1], texts):
        found, wanted = ours.encode_contexts(part), encode(ours, part)
        for name, column in vars(wanted).items():
            assert getattr(found, name).equal(column), name
            assert getattr(found, name).dtype == column.dtype
    assert encoded == texts


@pytest.mark.parametrize("most", [(3, 10**6), (100, 6)])
def test_the_contexts_that_were_used_last_are_kept(folder, monkeypatch, most):
    ours = BertTokenizer.load(folder)
    for name, number in zip(("KEPT_CONTEXTS", "KEPT_CHARACTERS"), most, strict=True):
        monkeypatch.setattr(tokenization, name, number)
    ours.encode_contexts(["aa", "bb", "cc"])
    ours.encode_contexts(["aa"])
    ours.encode_contexts(["dd"])
    assert [*ours._kept] == ["cc", "aa", "dd"]
    assert all(part.untyped_storage().nbytes() <= 3 * 4 * 2 for part in ours._kept.values())
    ours.encode_contexts([f"{number:02}" for number in range(50)])
    assert [*ours._kept] == ["47", "48", "49"]


# --- saving --------------------------------------------------------------------------------------


def test_a_saved_folder_frames_pairs(folder, tmp_path):
    ours = BertTokenizer.load(folder)
    ours.save(tmp_path / "saved")
    theirs = AutoTokenizer.from_pretrained(tmp_path / "saved")
    encoding = theirs("who", "the river")
    question, context = (ours.encode([text]).ids.tolist() for text in ("who", "the river"))
    framed = [ours.cls_id, *question, ours.sep_id, *context, ours.sep_id]
    assert encoding["input_ids"] == framed
    assert encoding["token_type_ids"] == [0, 0, 0, 1, 1, 1]


def test_settings_are_kept(folder, tmp_path):
    add_settings(folder, model_max_length=256, clean_up_tokenization_spaces=True)
    BertTokenizer.load(folder).save(tmp_path / "saved")
    settings = json.loads((tmp_path / "saved" / "tokenizer_config.json").read_text())
    assert settings["model_max_length"] == 256
    assert settings["clean_up_tokenization_spaces"] is True
    assert AutoTokenizer.from_pretrained(tmp_path / "saved").model_max_length == 256


def test_a_path_that_cannot_be_written(folder):
    with pytest.raises(UserError, match="cannot be written") as caught:
        BertTokenizer.load(folder).save(folder / "vocab.txt")
    assert str(folder / "vocab.txt" / "tokenizer.json") in str(caught.value)
