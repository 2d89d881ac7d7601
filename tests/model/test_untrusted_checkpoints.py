"""Untrusted checkpoints are loaded correctly or rejected with one sentence.

Accidental errors are tested in test_checkpoint.py and test_tokenization.py, deliberate ones here.
"""

import json
import os
import pickle
import random
import signal
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer

from bertqa.answering.answerer import QuestionAnswerer, load_folder
from bertqa.answering.decoding_file import read_decoding_file
from bertqa.data.tokenization import BertTokenizer
from bertqa.errors import UserError
from tests.fuzz_checkpoints import BATCH, WORDS, read_files, write_good

ROOT = Path(__file__).parents[2]
WEIGHTS, INDEX, BIN = "model.safetensors", "model.safetensors.index.json", "pytorch_model.bin"
FILES = [WEIGHTS, "config.json", "tokenizer.json", "tokenizer_config.json", "decoding.json"]
NAME = "bert.encoder.layer.0.output.dense.bias"


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of a valid folder."""
    return read_files(write_good(tmp_path_factory.mktemp("strangers") / "good"))


@pytest.fixture
def folder(tmp_path: Path, good: dict[str, bytes]) -> Path:
    """A valid folder, to be damaged."""
    for name, content in good.items():
        (tmp_path / name).write_bytes(content)
    return tmp_path


@pytest.fixture
def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in load_file(folder / WEIGHTS).items()}


@pytest.fixture(autouse=True)
def no_hang() -> Iterator[None]:
    """If a test hangs, SIGALRM ends the process."""
    before = signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(60)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def load(folder: Path, allow_bin: bool = False) -> Any:
    model, tokenizer, report = load_folder(folder, allow_bin, True)
    read_decoding_file(folder)
    tokenizer.encode(["the quick"])
    return model, tokenizer, report


def refusal(folder: Path, name: str, *words: str, allow_bin: bool = False) -> str:
    """Return the error message of a folder; it contains the file and these words."""
    with pytest.raises(UserError) as caught:
        load(folder, allow_bin)
    message = str(caught.value)
    for word in (str(folder / name), *words):
        assert word in message
    assert message.isprintable()
    assert len(message) < 600
    return message


def put(path: Path, content: bytes | str) -> None:
    """Replace a file; weights that are mapped from the old one stay valid."""
    path.unlink(missing_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())


def change_json(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    entries = json.loads(path.read_bytes())
    change(entries)
    put(path, json.dumps(entries))


# --- not a regular file --------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*FILES, INDEX, BIN, "vocab.txt"])
@pytest.mark.parametrize("kind", ["pipe", "device", "folder", "loop", "nowhere", "link to a pipe"])
def test_not_a_regular_file(folder, name, kind):
    """Opening a pipe could block for ever, and /dev/zero would fill the memory."""
    if name in (INDEX, BIN):
        (folder / WEIGHTS).unlink()
    if name == "vocab.txt":
        (folder / "tokenizer.json").unlink()
    path = folder / name
    path.unlink(missing_ok=True)
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "link to a pipe":
        os.mkfifo(folder / "pipe")
        path.symlink_to("pipe")
    else:
        path.symlink_to({"device": "/dev/zero", "loop": name, "nowhere": "nowhere"}[kind])
    refusal(folder, name, allow_bin=True)


def test_links_are_followed(folder, tmp_path_factory):
    """The hub's cache consists of them: snapshots/COMMIT/NAME -> ../../blobs/DIGEST."""
    blobs = tmp_path_factory.mktemp("blobs")
    for i, name in enumerate(FILES):
        (folder / name).rename(blobs / str(i))
        (folder / name).symlink_to(blobs / str(i))
    before = read_files(blobs)
    load(folder)
    (folder / WEIGHTS).rename(folder / "a.safetensors")
    weight_map = dict.fromkeys(load_file(blobs / "0"), "a.safetensors")
    put(folder / INDEX, json.dumps({"weight_map": weight_map}))
    load(folder)
    assert read_files(blobs) == before


def test_a_link_to_a_secret_shows_nothing_of_it(folder, tmp_path_factory):
    secret = tmp_path_factory.mktemp("home") / "secret"
    secret.write_text("hunter2 hunter2\n")
    (folder / "tokenizer.json").unlink()
    for name in [*FILES, "vocab.txt"]:
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(secret)
        assert "hunter" not in refusal(folder, "")


@pytest.mark.parametrize("shards", [False, True])
def test_no_file_outside_the_folder_is_opened(folder, shards):
    """Python's audit hook reports every file it opens; safetensors gets its files by name."""
    if shards:
        put(folder / "a.safetensors", (folder / WEIGHTS).read_bytes())
        names = load_file(folder / WEIGHTS)
        put(folder / INDEX, json.dumps({"weight_map": dict.fromkeys(names, "a.safetensors")}))
        (folder / WEIGHTS).unlink()
    code = f"""
import sys
from pathlib import Path
from bertqa.model import weights
from tests.model.test_untrusted_checkpoints import load

folder, opened, open_there = Path({str(folder)!r}), [], weights.safe_open
load(folder, True)  # imports modules, which also open files
sys.addaudithook(lambda event, args: opened.append(args[0]) if event == "open" else None)
weights.safe_open = lambda path, framework: [opened.append(path), open_there(path, framework)][1]
load(folder, True)
print(*opened, sep="\\n")
"""
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    opened = {Path(line) for line in result.stdout.splitlines()}
    weights = {"a.safetensors", INDEX} if shards else {WEIGHTS}
    assert opened == {folder / name for name in {*FILES[1:], *weights}}


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json", "decoding.json"])
@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b'{"a": ' + b"[" * 2_500_000 + b"]" * 2_500_000 + b"}", "nested too deeply"),
        (b'{"a": ' + b"[" * 900 + b"]" * 900 + b"}", "nested too deeply"),
        (b'{"a": ' * 100 + b"1" + b"}" * 100, "nested too deeply"),
        (b'{"a": ' + b"1" * 1_000_000 + b"}", "must be valid JSON"),
        (b'{"a": [' + b"1," * (1 << 23) + b"1]}", "at most 16777216 bytes"),
        (b'{"a": 1, "b": {"c": 1, "c": 2}}', "repeated key 'c'"),
        (b'\xef\xbb\xbf{"a": 1}', "BOM"),
        ('{"a": 1}'.encode("utf-16"), "must be valid JSON"),
        (b'{"a": "\xff"}', "must be valid JSON"),
        (b'{"a": 1}\x00', "must be valid JSON"),
        (b"null", "must be a JSON object, got NoneType"),
        (b"[{}]", "must be a JSON object, got list"),
        *((content, "must be valid JSON") for content in (b"", b"{", b'{"hidden_size": 36,}')),
    ],
)
def test_json_bombs(folder, name, content, words):
    put(folder / name, content)
    refusal(folder, name, words)


@pytest.mark.parametrize("content", [b"[" * 100_000, b'{"a": ' * 1000, b'{"a": ' + b"9" * 10**6])
def test_tokenizer_bombs(folder, content):
    put(folder / "tokenizer.json", content)
    refusal(folder, "tokenizer.json", "must be a tokenizer")


# --- config.json ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(("num_hidden_layers", value) for value in (10**9, (1 << 24) - 1, 2)),
        *(("hidden_size", value) for value in (10**12, 1 << 23, 10**4000, "x" * 10**6)),
        *((f"{what}_size", 1 << 23) for what in ("intermediate", "vocab", "type_vocab")),
        ("max_position_embeddings", 1 << 23),
        ("hidden_act", ["gelu"] * 10**5),
        ("layer_norm_eps", 10**400),
    ],
)
def test_a_config_with_huge_sizes(folder, key, value):
    """Rejected by the file's header, before a model is built or memory allocated."""
    change_json(folder / "config.json", lambda entries: entries.update({key: value}))
    assert "config" in refusal(folder, "")


def test_a_report_is_printable(folder, tensors):
    change_json(folder / "config.json", lambda e: e.update({"\ud800": 1, "\x1b[2J": 2}))
    tensors |= {"cls.\x1b[2J\n": torch.ones(1), "pooler.\x07": torch.ones(1)}
    save_file(tensors, folder / WEIGHTS)
    report = str(load(folder)[2])
    assert all(line.isprintable() for line in report.splitlines())
    assert len(report.splitlines()) == 3
    report.encode()


# --- safetensors ---------------------------------------------------------------------------------


def header_of(content: bytes) -> tuple[dict[str, Any], bytes]:
    size = int.from_bytes(content[:8], "little")
    return json.loads(content[8 : 8 + size]), content[8 + size :]


def packed(header: bytes, body: bytes) -> bytes:
    return struct.pack("<Q", len(header)) + header + body


def with_entries(content: bytes, change: Callable[[dict[str, Any]], object]) -> bytes:
    """Change the header of a safetensors file, with the right length."""
    header, body = header_of(content)
    change(header)
    return packed(json.dumps(header).encode(), body)


SHARES = [0.1, 0.3, 0.5, 0.9]
SIZES = [0, 1, 100, 1 << 20, 99_999_999, 1 << 31, 1 << 60, (1 << 63) - 1, (1 << 64) - 1]
HEADERS = [
    b"",
    b"{not json}",
    b"[]",
    b"7",
    b"\xff\xfe",
    b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    b'{"a": {"dtype": "F32", "shape": [], "data_offsets": [0, 4]}, "a": 1}',
    b'{"__metadata__": {"a": "b", "a": "c"}}',
]
OF_OTHER_KINDS = [
    b"PK\x03\x04" + b"\0" * 100,
    pickle.dumps({"a": 1}),
    b"\x80\x02}q\x00.",
    b"GIF89a" * 10,
    b"\x89HDF\r\n\x1a\n" + b"\0" * 100,
    b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
    b"<!DOCTYPE html><title>404</title>",
    struct.pack(">Q", 2) + b"{}",
]


@pytest.mark.parametrize(
    "spoil",
    [
        *(lambda c, n=n: c[:n] for n in (0, 1, 7, 8, 9, -8, -1)),
        *(lambda c, share=share: c[: int(share * len(c))] for share in SHARES),
        *(lambda c, size=size: struct.pack("<Q", size) + c[8:] for size in SIZES),
        *(lambda c, header=header: packed(header, b"") for header in HEADERS),
        *(lambda c, other=other: other for other in OF_OTHER_KINDS),
        lambda c: c + b"\0",
        lambda c: with_entries(c, lambda header: header.pop(NAME)),  # a hole between tensors
        lambda c: with_entries(
            c, lambda header: header.update(__metadata__={"a": " " * 5 * 10**6})
        ),
    ],
)
def test_corrupt_safetensors(folder, spoil):
    put(folder / WEIGHTS, spoil((folder / WEIGHTS).read_bytes()))
    refusal(folder, WEIGHTS, "corrupt")


def test_a_tensor_twice_in_a_header(folder):
    """The library would use the last, other readers the first."""
    header, body = header_of((folder / WEIGHTS).read_bytes())
    twice = json.dumps(header)[:-1] + f', "{NAME}": {json.dumps(header[NAME])}}}'
    put(folder / WEIGHTS, packed(twice.encode(), body))
    refusal(folder, WEIGHTS, "corrupt", NAME, "repeated")


@pytest.mark.parametrize(
    "change",
    [
        {"data_offsets": [0, 48]},  # those of another tensor
        {"data_offsets": [10**9, 10**9 + 48]}, {"data_offsets": [1 << 63, (1 << 63) + 48]},
        {"data_offsets": [48, 0]}, {"data_offsets": [-48, 0]}, {"data_offsets": [0]},
        {"data_offsets": None}, {"shape": [13]}, {"shape": [1 << 40]}, {"shape": [-12]},
        {"shape": [1 << 62, 4, 3]},  # overflows 64 bits to 12
        {"shape": [0]}, {"shape": "12"}, {"shape": [12.0]},
        {"dtype": "F16"}, {"dtype": "F64"}, {"dtype": "f32"}, {"dtype": 7},
        {"dtype": "\x1b[31mF32"},
    ],
)  # fmt: skip
def test_a_wrong_entry(folder, change):
    content = (folder / WEIGHTS).read_bytes()
    put(folder / WEIGHTS, with_entries(content, lambda header: header[NAME].update(change)))
    refusal(folder, WEIGHTS, "corrupt")


@pytest.mark.parametrize(
    ("dtype", "number"),
    [
        ("I64", 8), ("U8", 1), ("F8_E4M3", 1), ("I16", 2), ("BOOL", 1), ("F4", 0.5),
        ("F8_E8M0", 1), ("F8_E4M3FNUZ", 1), ("C64", 8),
    ],
)  # fmt: skip
@pytest.mark.parametrize("name", [NAME, "bert.embeddings.position_ids"])
def test_dtypes_that_are_not_for_weights(folder, dtype, number, name):
    """torch does not support some of them."""
    header, body = header_of((folder / WEIGHTS).read_bytes())
    shape = [64] if name != NAME else [12]
    added = b"\x01" * int(shape[0] * number)
    if name == NAME:  # the new tensor is appended; the old one is kept under another name
        old = header.pop(NAME)
        header["cls.old"] = old
    header[name] = {
        "dtype": dtype, "shape": shape, "data_offsets": [len(body), len(body) + len(added)],
    }  # fmt: skip
    put(folder / WEIGHTS, packed(json.dumps(header).encode(), body + added))
    refusal(folder, WEIGHTS, name)


@pytest.mark.parametrize("value", [1e300, 3.4e38, 1e30, -1e5, 65536.0, float("nan"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.half])
def test_invalid_weights(folder, tensors, value, dtype):
    """One flipped bit of an exponent turns 0.1 into 1e38, and all scores into NaN."""
    tensors[NAME] = tensors[NAME].double()
    tensors[NAME][3] = value
    tensors[NAME] = tensors[NAME].to(dtype)
    save_file(tensors, folder / WEIGHTS)
    refusal(folder, WEIGHTS, NAME, "must be finite and in the range of float16")


def test_the_largest_weights_still_give_scores(folder, tensors):
    save_file({k: torch.full_like(t, 65504.0) for k, t in tensors.items()}, folder / WEIGHTS)
    model, _, _ = load(folder)
    with torch.no_grad():
        assert model(BATCH).start_logits.isfinite().all()


def test_scores_that_are_not_finite(folder):
    qa = QuestionAnswerer.from_pretrained(folder, device="cpu", precision="fp32")
    with torch.no_grad():
        qa.model.head.weight.fill_(float("nan"))
    with pytest.raises(UserError, match="scores must be finite"):
        qa("who", "the quick brown fox")


def test_names_of_any_length(folder, tensors):
    save_file(tensors | {"z" * 10**6: torch.ones(1)}, folder / WEIGHTS)
    refusal(folder, WEIGHTS, "'zzz", "only tensors of a BERT")


def test_tensors_that_do_not_fit_in_memory(folder, monkeypatch):
    def no_memory(tensor: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(torch.Tensor, "float", no_memory)
    refusal(folder, WEIGHTS, "must fit in memory")


# --- shards --------------------------------------------------------------------------------------


@pytest.fixture
def sharded(folder: Path, tensors: dict[str, Any]) -> Callable[[dict[str, str]], Path]:
    """Writes an index: all tensors in a.safetensors, except for changes."""
    (folder / WEIGHTS).rename(folder / "a.safetensors")

    def write(changes: dict[str, str]) -> Path:
        weight_map = dict.fromkeys(tensors, "a.safetensors") | changes
        put(folder / INDEX, json.dumps({"weight_map": weight_map}))
        return folder

    return write


@pytest.mark.parametrize(
    "shard",
    [
        "../a.safetensors", "./a.safetensors", "sub/a.safetensors", "a\n.safetensors", ".", "..",
        "x/../a.safetensors", "/etc/a.safetensors", "~/a.safetensors", "..\\a.safetensors",
        "C:\\a.safetensors", "a.safetensors\0", "\0.safetensors", "\ud800.safetensors",
        "\x1b.safetensors", "a.safetensors/", "a.SAFETENSORS", "config.json",
        "x" * 300 + ".safetensors", "",
    ],
)  # fmt: skip
def test_names_that_lead_elsewhere(sharded, shard):
    """Rejected before any shard is opened: a pipe outside the folder would hang."""
    folder = sharded({NAME: shard})
    refusal(folder, INDEX, "plain file names")


def test_all_names_are_checked_before_a_shard_is_opened(sharded, monkeypatch):
    opened: list[object] = []
    monkeypatch.setattr("bertqa.model.weights.open_safetensors", opened.append)
    refusal(sharded({NAME: "z/../../x.safetensors"}), INDEX)
    assert opened == []


def test_thousands_of_shards(sharded):
    folder = sharded({f"cls.{i}": f"{i}.safetensors" for i in range(3000)})
    for i in range(3000):
        (folder / f"{i}.safetensors").write_bytes(packed(b"{}", b""))
    refusal(folder, INDEX, "lacks 'cls.0'")


# --- the tokenizer -------------------------------------------------------------------------------


def added(**changes: Any) -> dict[str, Any]:
    token = {"id": len(WORDS), "content": "zork", "single_word": False, "lstrip": False}
    return token | {"rstrip": False, "normalized": True, "special": False} | changes


def replacing(pattern: str) -> dict[str, Any]:
    return {"type": "Replace", "pattern": {"Regex": pattern}, "content": ""}


TOO_OFTEN = {"type": "TemplateProcessing", "special_tokens": {}} | {
    form: [{"Sequence": {"id": "A", "type_id": 0}}] * 50 for form in ("single", "pair")
}


@pytest.mark.parametrize(
    ("part", "change", "words"),
    [
        ("", {"normalizer": replacing("(x+x+)+y")}, "normalizer"),
        ("", {"normalizer": {"type": "Sequence", "normalizers": []}}, "normalizer"),
        ("", {"normalizer": {"type": "Prepend", "prepend": "x" * 10**6}}, "normalizer"),
        ("", {"normalizer": "BertNormalizer"}, "normalizer"),
        ("", {"pre_tokenizer": replacing("(a|a)*b") | {"type": "Split"}}, "pre_tokenizer"),
        ("", {"pre_tokenizer": [1]}, "pre_tokenizer"),
        ("", {"decoder": replacing("(x{1000}){1000}")}, "decoder"),
        ("", {"post_processor": {"type": "ByteLevel", "trim_offsets": True}}, "post_processor"),
        ("", {"added_tokens": [added(content="ab" * 10**6)]}, "got 2000026"),
        ("", {"added_tokens": [added(id=7)]}, "got 7"),
        ("", {"added_tokens": [added(id=-1)]}, "got -1"),
        ("", {"added_tokens": [added(content=7)]}, "must be a tokenizer"),
        ("", {"added_tokens": [added(novelty=7)]}, f"({len(WORDS)}), got {len(WORDS) + 1}"),
        ("", {"added_tokens": [{}]}, "must be a tokenizer"),
        ("", {"added_tokens": {"a": 1}}, "must be a tokenizer"),
        ("", {"added_tokens": [added()]}, f"({len(WORDS)}), got {len(WORDS) + 1}"),
        ("", {"model": None}, "no model"),
        ("", {"model": {"type": "WordPiece"}}, "no vocabulary"),
        ("", {"model": {"type": ["BPE"]}}, "type must be WordPiece, got ['BPE']"),
        ("model", {"max_input_chars_per_word": 10**9}, "must be 100, got 1000000000"),
        ("model", {"max_input_chars_per_word": 0}, "max_input_chars_per_word must be 100, got 0"),
        ("model", {"max_input_chars_per_word": -1}, "must be 100, got -1"),
        ("model", {"continuing_subword_prefix": "#" * 10**6}, "must be ##, got '###"),
        ("model", {"vocab": {"a": 0, "[CLS]": 1, "[SEP]": 2}}, "the token '[UNK]'"),
        ("model", {"vocab": "/etc/passwd"}, "no vocabulary"),
        ("model", {"vocab": ["a"]}, "no vocabulary"),
        ("model", {"vocab": {}}, "no vocabulary"),
        ("model", {"vocab": {"[UNK]": 0, "[CLS]": 1}}, "the token '[SEP]'"),
    ],
)  # fmt: skip
def test_a_tokenizer_of_another_model(folder, part, change, words, capfd):
    def spoil(entries: dict[str, Any]) -> None:
        (entries[part] if part else entries).update(change)
        if "vocab" in change:
            entries["added_tokens"] = []

    change_json(folder / "tokenizer.json", spoil)
    refusal(folder, "tokenizer.json", words)
    assert capfd.readouterr() == ("", "")  # the library prints nothing


@pytest.mark.parametrize(
    "change",
    [
        {"normalizer": {"type": "BertNormalizer", "lowercase": 7}},
        {"post_processor": TOO_OFTEN},
        {"post_processor": {"type": "TemplateProcessing", "single": 7}},
        {"truncation": {"max_length": -7}, "padding": []},
    ],
)
def test_parts_that_are_not_read(folder, change):
    change_json(folder / "tokenizer.json", lambda entries: entries.update(change))
    tokenizer = load(folder)[1]
    assert tokenizer.encode(["a b"]).ids.tolist() == [5, 6]
    tokenizer.save(folder / "saved")
    saved = json.loads((folder / "saved" / "tokenizer.json").read_bytes())
    assert not any(saved[key] == value for key, value in change.items())


@pytest.mark.parametrize(
    ("number", "words"),
    [
        *(
            (number, "ids must be whole numbers")
            for number in (-1, 7.5, True, "7", None, 10**30, (1 << 31) - 1)
        ),
        (8, "got 2 tokens with the id 8"),
        (len(WORDS), f"({len(WORDS)}), got {len(WORDS) + 1}"),  # no embedding
    ],
)
def test_an_invalid_token_id(folder, number, words):
    change_json(folder / "tokenizer.json", lambda e: e["model"]["vocab"].update(a=number))
    refusal(folder, "tokenizer.json", words)


def test_an_unused_token_id(folder):
    """It is allowed: one row of the embedding is not used."""
    change_json(folder / "tokenizer.json", lambda e: [e["model"]["vocab"].pop("a")])
    _, tokenizer, _ = load(folder)
    assert tokenizer.vocab_size == len(WORDS)
    assert tokenizer.encode(["a b"]).ids.tolist() == [1, 6]


def test_a_key_twice_is_read_as_it_was_checked(folder):
    """The first of two normalizers never reaches the library, which would compile it."""
    content = (folder / "tokenizer.json").read_bytes()
    evil = b'{"normalizer": {"type": "Replace", "pattern": {"Regex": "("}, "content": ""},'
    put(folder / "tokenizer.json", content.replace(b"{", evil, 1))
    assert load(folder)[1].encode(["A"]).ids.tolist() == [5]


def test_a_saved_tokenizer_equals_the_librarys(folder):
    """Loading and saving a tokenizer.json does not change it."""
    extra = [added(), added(id=len(WORDS) + 1, content="</x>", special=True, normalized=False)]
    change_json(folder / "tokenizer.json", lambda e: e["added_tokens"].extend(extra))
    theirs = json.loads(Tokenizer.from_file(str(folder / "tokenizer.json")).to_str())
    ours = BertTokenizer.load(folder)
    ours.save(folder)
    assert json.loads((folder / "tokenizer.json").read_bytes()) == theirs
    assert ours.vocab_size == len(WORDS) + 2


@pytest.mark.parametrize("settings", [{"cls_token": "[SEP]"}, {"sep_token": "[CLS]"}])
def test_equal_special_tokens(folder, settings):
    change_json(folder / "tokenizer_config.json", lambda entries: entries.update(settings))
    refusal(folder, "tokenizer.json", "must be different", "cls_token")


@pytest.mark.parametrize(
    "content",
    [
        random.Random(0).randbytes(10_000),
        b"a" * 20_000_000,
        b"a" * 1_000_000,
        b"[UNK]\n[CLS]\n[SEP]\n" + b"\n".join(b"%x" % i for i in range(1 << 20)),
        "[UNK]\n[CLS]\n[SEP]\n".encode("utf-16"),
    ],
    ids=["binary", "one giant line", "one long line", "a million lines", "UTF-16"],
)
def test_invalid_vocabularies(folder, content):
    (folder / "tokenizer.json").unlink()
    put(folder / "vocab.txt", content)
    refusal(folder, "vocab.txt")


# --- pickles -------------------------------------------------------------------------------------


class Payload:
    """Creates a file when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return Path.touch, (self.marker,)


@pytest.fixture
def put_bin(folder: Path) -> Callable[..., Path]:
    """Saves a value as the folder's only weights, a pickle."""

    def write(value: object, **options: Any) -> Path:
        (folder / WEIGHTS).unlink()
        torch.save(value, folder / BIN, **options)
        return folder / BIN

    return write


def plain_pickle(value: object, path: Path) -> None:
    path.write_bytes(pickle.dumps(value, protocol=2))  # torch's own


@pytest.mark.parametrize(
    "save",
    [torch.save, partial(torch.save, _use_new_zipfile_serialization=False), plain_pickle],
    ids=["zip", "old", "plain"],
)
@pytest.mark.parametrize("allow_bin", [True, False])
@pytest.mark.parametrize("position", ["value", "key", "around"])
def test_a_pickle_runs_nothing(folder, tensors, save, allow_bin, position):
    marker = folder / "was-here"
    payload = Payload(marker)
    value = {"value": tensors | {"x": payload}, "key": {**tensors, payload: 1}, "around": payload}
    (folder / WEIGHTS).unlink()
    save(value[position], folder / BIN)
    refusal(folder, BIN, "--allow_bin" if not allow_bin else "only tensors", allow_bin=allow_bin)
    assert not marker.exists()
    # An unsafe load does run the payload.
    if save is plain_pickle:
        pickle.loads((folder / BIN).read_bytes())
    else:
        torch.load(folder / BIN, weights_only=False)
    assert marker.exists()


def test_a_pickle_beside_safetensors_is_not_opened(folder):
    os.mkfifo(folder / BIN)
    load(folder, allow_bin=True)


@pytest.mark.parametrize(
    "make",
    [
        lambda t: t.to("meta"),
        lambda t: t.to_sparse(),
        lambda t: t.view(3, 4).to_sparse_csr(),
        lambda t: t.to(torch.complex64),
        lambda t: t[:1].expand(1 << 40),
        lambda t: t[:1].expand(1 << 20, 1 << 20),
    ],
    ids=["meta", "sparse", "csr", "complex", "expanded", "expanded matrix"],
)
@pytest.mark.parametrize("name", [NAME, "bert.embeddings.position_ids", "cls.x"])
@pytest.mark.filterwarnings("ignore")
def test_tensors_of_other_kinds(folder, tensors, put_bin, make, name):
    tensors[name] = make(tensors[NAME])
    put_bin(tensors)
    if name == "cls.x" and tensors[name].dtype == torch.complex64:
        load(folder, allow_bin=True)  # not read
    else:
        message = refusal(folder, BIN, allow_bin=True)
        assert name in message or "is not needed for tensors" in message


def test_a_huge_model_expanded_from_one_number(folder, tensors, put_bin):
    """2 ** 27 numbers, from a file with a few thousand."""
    change_json(folder / "config.json", lambda e: e.update(vocab_size=1 << 23))
    name = "bert.embeddings.word_embeddings.weight"
    put_bin(tensors | {name: tensors[name].half()[:1].expand(1 << 23, 12)})
    refusal(folder, BIN, name, "larger than the file", allow_bin=True)


def test_two_names_of_one_tensor(folder, tensors, put_bin):
    """As in pretraining checkpoints."""
    words = tensors["bert.embeddings.word_embeddings.weight"]
    put_bin(tensors | {"cls.predictions.decoder.weight": words})
    load(folder, allow_bin=True)


@pytest.mark.parametrize("part", ["data.pkl", "data/0"])
@pytest.mark.parametrize("compression", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2])
def test_zip_bombs(folder, tensors, put_bin, part, compression):
    """A hundred million zeros in a few kilobytes; torch's reader would decompress them."""
    valid_file = put_bin(tensors).rename(folder / "valid")
    with zipfile.ZipFile(valid_file) as valid, zipfile.ZipFile(folder / BIN, "w") as bomb:
        for entry in valid.infolist():
            content = valid.read(entry)
            if entry.filename.endswith(part):
                bomb.writestr(entry.filename, content + bytes(10**8), compression, 1)
            else:
                bomb.writestr(entry.filename, content)
    refusal(folder, BIN, "is compressed", allow_bin=True)


@pytest.mark.parametrize("is_zip", [True, False])
@pytest.mark.parametrize(
    ("instructions", "words"),
    [
        (b"]" * (1 << 25), "pickle of more than 1048576 bytes"),
        # A billion tuples in one, as the key of a dictionary.
        (b")q\x00" + b"h\x00h\x00\x86q\x00" * 30 + b"}h\x00Ns.", "nested too deeply"),
        (b"(" * 10_000 + b"t" * 10_000 + b".", "nested too deeply"),
        (b"]" + b"]a" * 10 + b".", "dictionary of tensors"),  # a list of ten
        (b"t.", "must contain only tensors"),
        # Five tuples of a thousand references each to the previous one: shallow, 10^15 parts.
        (
            b")q\x00" + (b"(" + b"h\x00" * 1000 + b"tq\x00") * 5 + b"}h\x00Ns.",
            "more than 1048576 parts",
        ),
        # The same with a list that grows after it was memoized.
        (
            b"]q\x00" + (b"(" + b"h\x00" * 1000 + b"e") * 3 + b".",
            "more than 1048576 parts",
        ),
        # A list of a thousand, a thousand times in a tuple, which is a hundred times in another.
        (
            b"]q\x00(" + b")" * 1000 + b"e0(" + b"h\x00" * 1000 + b"tq\x010("
            + b"h\x01" * 100 + b"t.",
            "more than 1048576 parts",
        ),
        # A hundred gigabytes of zeros, by a function that torch allows.
        (b"cbuiltins\nbytearray\n(L100000000000L\ntR.", "'builtins bytearray' is not needed"),
        (b"\x8c\x08builtins\x8c\x09bytearray\x93.", "STACK_GLOBAL is not an instruction"),
        (b"ctorch._utils\n_rebuild_device_tensor_from_cpu_tensor\n.", "is not needed for tensors"),
    ],
    ids=["long", "a billion", "deep", "a list", "no mark", "wide", "a list that grows",
         "a list of many", "bytearray", "another way to it", "a tensor of a tensor"],
)  # fmt: skip
def test_pickle_bombs(folder, put_bin, is_zip, instructions, words):
    legacy = put_bin({}, _use_new_zipfile_serialization=False).read_bytes()
    empty = pickle.dumps({}, protocol=2)
    state = b"\x80\x02" + instructions
    put(folder / BIN, legacy[: legacy.rindex(empty)] + state + pickle.dumps([], protocol=2))
    if is_zip:
        with zipfile.ZipFile(folder / BIN, "w") as archive:
            archive.writestr("archive/data.pkl", state)
            archive.writestr("archive/version", "3\n")
    refusal(folder, BIN, words, allow_bin=True)


@pytest.mark.parametrize("share", [0, 1, 4, 100, 0.2, 0.5, 0.9, -1])
@pytest.mark.parametrize("is_zip", [True, False])
def test_truncated_pickles(folder, tensors, put_bin, share, is_zip):
    content = put_bin(tensors, _use_new_zipfile_serialization=is_zip).read_bytes()
    put(folder / BIN, content[: int(share * len(content)) if isinstance(share, float) else share])
    refusal(folder, BIN, "must contain only tensors", allow_bin=True)


# --- thousands of damaged folders ----------------------------------------------------------------


def test_thousands_of_damaged_folders():
    """Run more with BERTQA_FUZZ_ROUNDS=50000."""
    rounds = int(os.environ.get("BERTQA_FUZZ_ROUNDS", "2000"))
    result = subprocess.run(
        [sys.executable, "-m", "tests.fuzz_checkpoints", str(rounds)],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    outcomes = json.loads(result.stdout)  # nothing else is printed
    assert sum(outcomes.values()) == rounds
    # Each format occurs often, with both outcomes.
    for form in ("whole", "shards", "bin", "old bin"):
        for end in ("loaded", "refused"):
            ends = (n for key, n in outcomes.items() if key.startswith(f"{form}/") and end in key)
            assert sum(ends) > rounds / 100, (form, end)


def test_the_check_of_the_fuzz_can_fail(folder, good):
    from tests.fuzz_checkpoints import Loaded, check_loaded

    whole = Loaded(folder)
    check_loaded(whole, whole, good)
    other = dict(good)
    other[WEIGHTS] = good[WEIGHTS][:-1] + bytes([good[WEIGHTS][-1] ^ 0x10])
    with pytest.raises(AssertionError, match="is not the file's"):
        check_loaded(whole, whole, other)
