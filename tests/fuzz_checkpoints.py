"""Fuzzing of checkpoints: thousands of damaged folders must load correctly or be rejected.

``python -m tests.fuzz_checkpoints ROUNDS [FIRST]`` damages one file of a valid folder in each round
and loads the folder. Either the model equals an independent reading of the file, with finite
logits, which equal the valid folder's if weights and config do; or a ``UserError`` names the file
in one printable line. A round of more than ``SECONDS`` ends the process with a traceback; the
operating system limits memory. Each round has its own seed, so ``1 FIRST`` repeats it; the damaged
file stays in the folder.
"""

import faulthandler
import json
import math
import random
import resource
import shutil
import struct
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from bertqa.answering.answerer import check_window_fits, load_folder
from bertqa.answering.decoding_file import read_decoding_file, write_decoding_file
from bertqa.data.tokenization import BertTokenizer
from bertqa.errors import UserError
from bertqa.model.bert import BertForQuestionAnswering
from bertqa.model.checkpoint import save_model
from bertqa.model.config import BertConfig
from bertqa.model.names import checkpoint_name
from bertqa.model.packing import PackedBatch
from bertqa.settings import DecodingSettings, WindowSettings

SECONDS = 5
MEMORY = 1 << 30  # bytes of address space that all rounds together may add
LETTERS = "abcdefghijklmnopqrstuvwxyz"
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *LETTERS, *(f"##{c}" for c in LETTERS)]
CONFIG = BertConfig(
    vocab_size=len(WORDS), hidden_size=12, num_hidden_layers=1, num_attention_heads=2,
    intermediate_size=11, max_position_embeddings=64,
)  # fmt: skip
BATCH = PackedBatch.from_windows([[2, 5, 3, 9, 40, 11, 3], [2, 3, 56, 3]], [[0] * 7, [0] * 4])
TEXT = "The quick brown fox."

Folder = dict[str, bytes]  # the files of a folder
Tensors = dict[str, torch.Tensor]


# --- valid folders -------------------------------------------------------------------------------


def write_good(folder: Path) -> Path:
    """Write a small checkpoint folder as this project does."""
    folder.mkdir(parents=True)
    (folder / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    BertTokenizer.load(folder).save(folder)
    (folder / "vocab.txt").unlink()
    torch.manual_seed(0)
    model = BertForQuestionAnswering(CONFIG)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.5)
    save_model(folder, model)
    decoding = DecodingSettings(version_2_with_negative=True, null_score_diff_threshold=0.5)
    write_decoding_file(folder, replace(decoding, temperature=1.5), WindowSettings(48, 8), 0.5)
    return folder


def good_folders(parent: Path) -> dict[str, Folder]:
    """Make the same model in each supported format."""
    whole = read_files(write_good(parent / "whole"))
    tensors = safetensors(whole["model.safetensors"])
    rest = {name: content for name, content in whole.items() if name != "model.safetensors"}
    words = {name: content for name, content in rest.items() if name != "tokenizer.json"}
    words["vocab.txt"] = "\n".join(WORDS).encode()
    words["added_tokens.json"] = json.dumps({"a": 5, "b": 6}).encode()
    markers = {"sep_token": "[SEP]", "additional_special_tokens": ["c", {"content": "d"}]}
    words["special_tokens_map.json"] = json.dumps(markers).encode()
    names = sorted(tensors)
    held = {"a.safetensors": names[:12], "b.safetensors": names[12:]}
    shards = {}
    for shard, part in held.items():
        save_file({name: tensors[name] for name in part}, parent / shard)
        shards[shard] = (parent / shard).read_bytes()
    weight_map = {name: shard for shard, part in held.items() for name in part}
    shards["model.safetensors.index.json"] = json.dumps({"weight_map": weight_map}).encode()
    folders = {"whole": whole, "shards": words | shards}
    for form, is_zip in (("bin", True), ("old bin", False)):
        torch.save(tensors, parent / "pickled", _use_new_zipfile_serialization=is_zip)
        folders[form] = rest | {"pytorch_model.bin": (parent / "pickled").read_bytes()}
    return folders


def read_files(folder: Path) -> Folder:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


# --- an independent reading ----------------------------------------------------------------------

_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "F64": torch.float64}


def safetensors(content: bytes) -> Tensors:
    """Read a valid safetensors file, following the format's specification."""
    (size,) = struct.unpack("<Q", content[:8])
    header, body = json.loads(content[8 : 8 + size]), bytearray(content[8 + size :])
    header.pop("__metadata__", None)
    tensors = {}
    for name, entry in header.items():
        first, last = entry["data_offsets"]
        if entry["dtype"] in _DTYPES:
            numbers = torch.frombuffer(body[first:last], dtype=_DTYPES[entry["dtype"]])
            tensors[name] = numbers.view(entry["shape"])
    return tensors


def expected_tensors(files: Folder) -> Tensors | None:
    """Return the expected weights of a folder in float32; None for a pickle."""
    if "pytorch_model.bin" in files:
        return None
    found: Tensors = {}
    for name, content in files.items():
        if name.endswith(".safetensors"):
            found |= safetensors(content)
    return {name: tensor.float() for name, tensor in found.items()}


# --- damage --------------------------------------------------------------------------------------


def damage_bytes(content: bytes, random: random.Random) -> bytes:
    """Change, remove, repeat, move or add a few bytes."""
    if not content:
        return random.randbytes(3)
    first, last = sorted(random.choices(range(len(content) + 1), k=2))
    if random.random() < 0.5:  # prefer small pieces
        last = min(last, first + random.choice([1, 2, 4, 8, 100]))
    piece = content[first:last]
    position = random.randrange(len(content) + 1)
    match random.randrange(8):
        case 0:
            return content[:first]
        case 1:
            return content[:first] + content[last:]
        case 2:
            return content[:last] + piece + content[last:]
        case 3:
            return content[:position] + piece + content[position:]
        case 4:
            fill = random.choice([b"\0", b"\xff", b"[", b'"', b"9"])
            return content[:first] + fill * len(piece) + content[last:]
        case 5:
            return content[:first] + random.randbytes(len(piece)) + content[last:]
        case _:
            changed = bytearray(content)
            for _ in range(random.choice([1, 1, 1, 2, 8])):
                changed[random.randrange(len(changed))] ^= 1 << random.randrange(8)
            return bytes(changed)


ODD_VALUES: list[Any] = [
    0, 1, -1, 2, 3, 4, 6, 7, 12, 64, 2**31, 2**62, 2**64, 10**30, 10**400, 0.5, 1e-300, 1e300,
    math.nan, math.inf, "", "x", "../x", "F16", "BF16", "F8_E5M2", "F4", "I64", "\0", "\ud800",
    "\x1b[2J", "x" * 5000, None, True, False, [], {}, [[]], [0, 4], {"type": "Replace"},
]  # fmt: skip


def damage_json(content: bytes, random: random.Random) -> bytes:
    """Change, move, repeat, rename or remove one value of JSON."""
    document = json.loads(content)
    node, key = random.choice(list(_entries(document)))
    match random.randrange(6):
        case 0:
            del node[key]
        case 1 if isinstance(node, dict):
            node[random.choice([*node, "x", "\x1b", key + "x", "bert." + key])] = node.pop(key)
        case 2 if isinstance(node, list):
            node.insert(0, node[key])
        case 3:
            other, other_key = random.choice(list(_entries(document)))
            node[key] = json.loads(json.dumps(other[other_key]))
        case 4 if type(node[key]) in (int, float):
            node[key] += random.choice([-1, 1, 4, -4, 0.5])
        case _:
            node[key] = random.choice(ODD_VALUES)
    return json.dumps(document).encode()


def _entries(value: Any) -> Any:
    """Yield every container in a document with each of its keys."""
    keys = list(value) if isinstance(value, dict) else range(len(value))
    for key in keys:
        yield value, key
        if isinstance(value[key], dict | list):
            yield from _entries(value[key])


def damage_header(content: bytes, random: random.Random) -> bytes:
    """Damage the header of a safetensors file as JSON, with the right length."""
    (size,) = struct.unpack("<Q", content[:8])
    header = damage_json(content[8 : 8 + size], random)
    return struct.pack("<Q", len(header)) + header + content[8 + size :]


def damage(name: str, content: bytes, random: random.Random) -> bytes:
    ways: list[Callable[..., bytes]] = [damage_bytes]
    if name.endswith(".json"):
        ways += [damage_json] * 3
    if name.endswith(".safetensors"):
        ways += [damage_header]
    return random.choice(ways)(content, random)


# --- one round -----------------------------------------------------------------------------------


class Loaded:
    """A loaded folder."""

    def __init__(self, folder: Path) -> None:
        self.model, self.tokenizer, report = load_folder(folder, True, True)
        assert str(report).isprintable() or "\n" in str(report)
        str(report).encode()
        windows, _ = read_decoding_file(folder)
        check_window_fits(self.model.config, windows or WindowSettings(48, 8), str(folder))
        self.ids = self.tokenizer.encode([TEXT]).ids.tolist()
        with torch.inference_mode():
            output = self.model(BATCH)
        self.logits = torch.stack([output.start_logits, output.end_logits])
        self.weights = {checkpoint_name(n): p.detach() for n, p in self.model.named_parameters()}
        # Without the fields that do not affect inference.
        self.config = replace(
            self.model.config, hidden_dropout_prob=0, attention_probs_dropout_prob=0,
            initializer_range=1,
        )  # fmt: skip


def check_loaded(found: Loaded, good: Loaded, files: Folder) -> None:
    """Check that a damaged folder was loaded correctly."""
    assert found.logits.shape == good.logits.shape, "another shape"
    assert found.logits.isfinite().all(), "scores that are not finite"
    assert max(found.ids, default=0) < CONFIG.vocab_size, "ids without an embedding"
    entries = json.loads(files["config.json"])
    for field in fields(BertConfig):
        assert getattr(found.model.config, field.name) == entries.get(field.name, field.default)
    expected = expected_tensors(files)
    if expected is not None:
        for name, weight in found.weights.items():
            assert torch.equal(weight, expected[name]), f"{name} is not the file's"
    same = all(torch.equal(found.weights[name], good.weights[name]) for name in good.weights)
    if same and found.config == good.config:
        assert torch.equal(found.logits, good.logits), "other logits from the same model"


def check_refusal(error: UserError, folder: Path) -> None:
    message = str(error)
    assert str(folder) in message, f"no file is named: {message}"
    assert message.isprintable(), f"not printable: {message!r}"
    assert len(message) < 800, f"too long: {message}"


def replace_file(path: Path, content: bytes) -> None:
    """Replace a file without changing the old one, which may be mapped as a model's weights."""
    path.unlink()
    path.write_bytes(content)


def one_round(
    number: int, folders: dict[str, Folder], good: dict[str, Loaded], parent: Path
) -> str:
    """Damage one file and load the folder; return format, file and outcome."""
    numbers = random.Random(number)
    # Pickles are less frequent, because the unpickler is slow.
    form = numbers.choice(["whole", "whole", "whole", "shards", "shards", "bin", "old bin"])
    files = dict(folders[form])
    name = numbers.choice(list(files))
    files[name] = damage(name, files[name], numbers)
    folder = parent / form
    replace_file(folder / name, files[name])
    try:
        check_loaded(Loaded(folder), good[form], files)
        outcome = "loaded"
    except UserError as error:
        check_refusal(error, folder)
        outcome = "refused"
    except BaseException as error:
        raise AssertionError(f"round {number}, {folder / name}: {error!r}") from error
    replace_file(folder / name, folders[form][name])
    return f"{form}/{name}: {outcome}"


def main(rounds: int, first: int = 0) -> Counter[str]:
    """Run rounds and count their outcomes; raise on a failure."""
    torch.set_num_threads(1)
    warnings.simplefilter("error")  # warnings are failures
    parent = Path(tempfile.mkdtemp(prefix="fuzz-"))
    folders = good_folders(parent)
    good = {}
    for form, files in folders.items():
        (parent / form).mkdir(exist_ok=True)
        for name, content in files.items():
            (parent / form / name).write_bytes(content)
        good[form] = Loaded(parent / form)
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + MEMORY, size + MEMORY))
    outcomes: Counter[str] = Counter()
    for number in range(first, first + rounds):
        faulthandler.dump_traceback_later(SECONDS, exit=True)
        outcomes[one_round(number, folders, good, parent)] += 1
    faulthandler.cancel_dump_traceback_later()
    shutil.rmtree(parent)
    return outcomes


if __name__ == "__main__":
    print(json.dumps(main(*map(int, sys.argv[1:])), indent=1, sort_keys=True))
