"""Tokenizer files are read as transformers reads them, or rejected."""

import json
import re

import pytest
from transformers import AutoTokenizer
from transformers import BertTokenizer as TheirTokenizer

from bertqa.data.tokenization import BertTokenizer
from bertqa.files import write_json
from tests.corpus import TEXTS
from tests.data.test_tokenization import LOWERCASE, refusal, rows
from tests.helpers import vocabulary, write_tokenizer

SIZES = {lowercase: len(vocabulary(lowercase)) for lowercase in LOWERCASE}
SIZE = 10**6  # placeholder for the id of the first added token, one of SIZES
# Contains all tokens that the folders below add, and similar texts that are not tokens.
TEXT = "The river [E1] was ZORK[E1]a zork,zorks [un1]  <q> in[E2] [E3]zórk [unused] Ångström"
# Texts without special tokens, which transformers recognizes by default.
PLAIN_TEXTS = [TEXT, *(t for t in TEXTS if not re.search(r"\[(PAD|UNK|CLS|SEP|MASK)\]", t))]


def token(content, **flags):
    usual = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    return {"content": content, **usual, "special": True} | flags


PLAIN = token("zork", special=False, normalized=True)
TYPED = token("[E2]", rstrip=True) | {"__type": "AddedToken"}
CONFIG, OLD_MAP, OLD_ADDED = "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"
FOLDERS = {
    "added_tokens.json": {OLD_ADDED: {"zork": SIZE, "[E1]": SIZE + 1}},
    "out of order": {OLD_ADDED: {"[E1]": SIZE + 1, "zork": SIZE}},
    "special by all": {
        OLD_ADDED: {"ZORK": SIZE, "[E1]": SIZE + 1},
        OLD_MAP: {"additional_special_tokens": ["[E1]", "[E2]"], "sep_token": "[SEP]"},
        CONFIG: {"additional_special_tokens": ["[E1]", "[E2]"]},
    },
    "a map with flags": {
        OLD_MAP: {"mask_token": token("[MASK]", lstrip=True), "cls_token": "[CLS]"}
    },
    "added_tokens_decoder": {
        CONFIG: {"added_tokens_decoder": {SIZE + 1: token("[E1]"), SIZE: PLAIN, 3: token("[SEP]")}}
    },
    "a map beside a decoder": {
        CONFIG: {"added_tokens_decoder": {SIZE: token("[E1]", lstrip=True)}},
        OLD_MAP: {"additional_special_tokens": ["[E2]"]},
        OLD_ADDED: {"zork": SIZE},
    },
    "additional_special_tokens": {CONFIG: {"additional_special_tokens": ["[E1]", "[E2]", "river"]}},
    "extra_special_tokens": {CONFIG: {"extra_special_tokens": ["[E1]", TYPED, "[E1]"]}},
    "both names": {
        CONFIG: {"extra_special_tokens": ["[E1]"], "additional_special_tokens": ["[E2]"]}
    },
    "two lists": {
        CONFIG: {"additional_special_tokens": ["[E1]"]},
        OLD_MAP: {"additional_special_tokens": ["[E2]"]},
    },
    "named markers": {
        CONFIG: {"extra_special_tokens": {"first_token": "[E1]"}, "query_token": "<q>"}
    },
    "all at once": {
        CONFIG: {
            "added_tokens_decoder": {SIZE: token("zork", special=False, single_word=True)},
            "additional_special_tokens": ["[E1]", "[E2]"], "bos_token": "<s>",
        }
    },
}  # fmt: skip


def add(path, **entries):
    """Add entries to a JSON file, or create it."""
    write_json(path, (json.loads(path.read_text()) if path.exists() else {}) | entries)


def write(folder, files, lowercase=True):
    """Write a folder with vocab.txt, and these files or additions to them."""
    write_tokenizer(folder, lowercase)
    text = json.dumps(files)
    for i in (0, 1):
        text = text.replace(str(SIZE + i), str(SIZES[lowercase] + i))
    for name, entries in json.loads(text).items():
        add(folder / name, **entries)
    return folder


def their_default_rows(tokenizer, texts):
    """Return their ids and offsets with default arguments."""
    encoding = tokenizer(texts, add_special_tokens=False, return_offsets_mapping=True)
    return list(zip(encoding["input_ids"], encoding["offset_mapping"], strict=True))


@pytest.mark.parametrize("form", ["vocab.txt", "tokenizer.json"])
@pytest.mark.parametrize("lowercase", LOWERCASE, ids=LOWERCASE.get)
@pytest.mark.parametrize("name", FOLDERS)
def test_added_tokens(tmp_path, name, lowercase, form):
    folder = write(tmp_path / "words", FOLDERS[name], lowercase)
    theirs = AutoTokenizer.from_pretrained(folder)
    if form == "tokenizer.json":
        folder = tmp_path / "json"
        theirs.save_pretrained(folder)
    ours = BertTokenizer.load(folder)
    assert rows(ours.encode([TEXT])) == their_default_rows(theirs, [TEXT])
    assert ours.vocab_size == len(theirs)
    assert (ours.cls_id, ours.sep_id, ours.mask_id) == (
        theirs.cls_token_id, theirs.sep_token_id, theirs.mask_token_id,
    )  # fmt: skip
    ours.save(tmp_path / "saved")
    theirs_again = AutoTokenizer.from_pretrained(tmp_path / "saved")
    assert their_default_rows(theirs_again, [TEXT]) == rows(ours.encode([TEXT]))
    assert theirs_again.added_tokens_decoder == theirs.added_tokens_decoder
    assert set(theirs_again.all_special_tokens) == set(theirs.all_special_tokens)
    BertTokenizer.load(tmp_path / "saved").save(tmp_path / "twice")
    for file in ("tokenizer.json", CONFIG):
        assert (tmp_path / "twice" / file).read_bytes() == (tmp_path / "saved" / file).read_bytes()


@pytest.mark.parametrize(
    ("kind", "number"), [("BertTokenizer", SIZES[True]), ("TokenizersBackend", SIZES[True] + 1)]
)
def test_two_files_with_tokens(tmp_path, kind, number):
    """A class with rules uses only those of tokenizer_config.json, a generic class uses both."""
    BertTokenizer.load(write(tmp_path / "words", FOLDERS["added_tokens.json"])).save(tmp_path)
    listed = {number: token("[E1]", lstrip=True)}
    add(tmp_path / CONFIG, added_tokens_decoder=listed, tokenizer_class=kind)
    ours, theirs = BertTokenizer.load(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    assert rows(ours.encode([TEXT])) == their_default_rows(theirs, [TEXT])
    assert ours.vocab_size == len(theirs) == number + 1


def test_special_tokens_are_text_in_a_text(tmp_path):
    """Whatever the files declare; an added marker is one token."""
    files = {CONFIG: {"additional_special_tokens": ["[E1]", "[SEP]"], "bos_token": "[CLS]"}}
    ours = BertTokenizer.load(write(tmp_path, files))
    ids = ours.encode(["the [SEP][E1] in [CLS]"]).ids.tolist()
    assert ours.tokens(ids[:7]) == ["the", "[", "s", "##e", "##p", "]", "[E1]"]
    assert not {ours.cls_id, ours.sep_id} & set(ids)


def test_a_vocabulary_without_a_mask(tmp_path):
    """transformers adds it, then the marker; without a marker its row is not needed."""
    files = {CONFIG: {"additional_special_tokens": ["[E1]"]}}
    for name, more in (("marked", files), ("plain", {})):
        folder = write(tmp_path / name, more)
        lines = (folder / "vocab.txt").read_text(encoding="utf-8").replace("[MASK]\n", "")
        (folder / "vocab.txt").write_text(lines, encoding="utf-8")
    theirs = AutoTokenizer.from_pretrained(tmp_path / "marked")
    ours = BertTokenizer.load(tmp_path / "marked")
    assert rows(ours.encode([TEXT])) == their_default_rows(theirs, [TEXT])
    plain = BertTokenizer.load(tmp_path / "plain")
    assert (plain.vocab_size, plain.mask_id) == (SIZES[True] - 1, 1)


# --- rules ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", [{}, {"do_lower_case": True}, {"do_lower_case": False}])
@pytest.mark.parametrize("kind", ["BertTokenizer", "PreTrainedTokenizerFast", None])
@pytest.mark.parametrize("lowercase", LOWERCASE, ids=LOWERCASE.get)
def test_two_files_with_rules(tmp_path, lowercase, kind, settings):
    """tokenizer_config.json and its defaults apply; for a generic class those of tokenizer.json."""
    write_tokenizer(tmp_path / "words", lowercase).save(tmp_path)
    write_json(tmp_path / CONFIG, settings | ({"tokenizer_class": kind} if kind else {}))
    write_json(tmp_path / "config.json", {"model_type": "bert"})
    ours, theirs = BertTokenizer.load(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    assert rows(ours.encode(PLAIN_TEXTS)) == their_default_rows(theirs, PLAIN_TEXTS)
    ours.save(tmp_path / "saved")
    theirs = AutoTokenizer.from_pretrained(tmp_path / "saved")
    assert rows(ours.encode(PLAIN_TEXTS)) == their_default_rows(theirs, PLAIN_TEXTS)


@pytest.mark.parametrize("file", [CONFIG, "config.json"])
@pytest.mark.parametrize(
    "kind",
    """BertTokenizer BertTokenizerFast ConvBertTokenizer DistilBertTokenizer ElectraTokenizerFast
    LayoutLMTokenizer LxmertTokenizer MobileBertTokenizer SqueezeBertTokenizer""".split(),
)
def test_classes_with_the_same_rules(tmp_path, kind, file):
    write_tokenizer(tmp_path, lowercase=False)
    write_json(tmp_path / CONFIG, {"do_lower_case": False, "additional_special_tokens": ["[E1]"]})
    add(tmp_path / file, tokenizer_class=kind)
    add(tmp_path / "config.json", model_type="bert")
    ours, theirs = BertTokenizer.load(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    assert isinstance(theirs, TheirTokenizer)
    assert rows(ours.encode(PLAIN_TEXTS)) == their_default_rows(theirs, PLAIN_TEXTS)


@pytest.mark.parametrize("file", [CONFIG, "config.json"])
@pytest.mark.parametrize(
    "kind", ["BertJapaneseTokenizer", "TapasTokenizer", "MPNetTokenizerFast", "Mine", ["x"], 7]
)
def test_classes_with_other_rules(tmp_path, kind, file):
    for form in ("vocab.txt", "tokenizer.json"):
        tokenizer = write_tokenizer(tmp_path)
        if form == "tokenizer.json":
            tokenizer.save(tmp_path)
        write_json(tmp_path / CONFIG, {})
        add(tmp_path / file, tokenizer_class=kind)
        refusal(tmp_path, file, repr(kind), "BertTokenizer")


@pytest.mark.parametrize(
    "own", [{"AutoTokenizer": ["mine.Slow", None]}, ["mine.Slow", "mine.Fast"]]
)
def test_custom_code(tmp_path, own):
    write_tokenizer(tmp_path)
    add(tmp_path / CONFIG, auto_map=own)
    refusal(tmp_path, CONFIG, "auto_map", "mine.Slow")
    add(tmp_path / CONFIG, auto_map={"AutoModel": "mine.Model"})
    BertTokenizer.load(tmp_path)


def test_a_class_without_rules(tmp_path):
    """A generic class requires a tokenizer.json with BERT's rules."""
    tokenizer = write_tokenizer(tmp_path)
    add(tmp_path / CONFIG, tokenizer_class="PreTrainedTokenizerFast")
    refusal(tmp_path, CONFIG, "'PreTrainedTokenizerFast'", "tokenizer.json")
    for part in ("normalizer", "pre_tokenizer"):
        tokenizer.save(tmp_path)
        add(tmp_path / CONFIG, tokenizer_class="PreTrainedTokenizerFast")
        add(tmp_path / "tokenizer.json", **{part: None})
        refusal(tmp_path, "tokenizer.json", part)
    rules = {"type": "BertNormalizer", "clean_text": True, "lowercase": "yes"}
    tokenizer.save(tmp_path)
    add(tmp_path / CONFIG, tokenizer_class="PreTrainedTokenizerFast")
    add(tmp_path / "tokenizer.json", normalizer=rules)
    refusal(tmp_path, "tokenizer.json: lowercase must be true or false, got 'yes'")


# --- faulty files --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "entries", "words"),
    [
        (OLD_ADDED, {"zork": 7}, "got 7"),
        (OLD_ADDED, {"zork": "x"}, "must be a tokenizer"),
        (OLD_ADDED, {"zork": None}, "must be a tokenizer"),
        (CONFIG, {"added_tokens_decoder": {"7": PLAIN}}, "'zork' must have the id"),
        (CONFIG, {"added_tokens_decoder": {"x": PLAIN}}, "must be a tokenizer"),
        (CONFIG, {"added_tokens_decoder": {"7": ["zork"]}}, "must be a tokenizer"),
        (CONFIG, {"added_tokens_decoder": {"7": {"special": True}}}, "must be a tokenizer"),
        (CONFIG, {"added_tokens_decoder": 7}, "must be a tokenizer"),
        (CONFIG, {"additional_special_tokens": 7}, "must be a tokenizer"),
        (CONFIG, {"additional_special_tokens": [7]}, "must be a tokenizer"),
        (CONFIG, {"additional_special_tokens": [{"content": ["x"]}]}, "must be a tokenizer"),
        (CONFIG, {"extra_special_tokens": [{"content": "x", "special": 7}]}, "must be a tokenizer"),
        (OLD_MAP, {"additional_special_tokens": [None]}, "must be a tokenizer"),
        (OLD_MAP, {"cls_token": ["[CLS]"]}, "the token ['[CLS]']"),
    ],
)  # fmt: skip
def test_invalid_added_tokens(tmp_path, name, entries, words):
    refusal(write(tmp_path, {name: entries}), words)
