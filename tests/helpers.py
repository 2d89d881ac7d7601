"""Helpers of several tests: a tiny BERT with odd sizes, theirs and ours, and a small vocabulary."""

import json
from collections.abc import Iterable
from html.parser import HTMLParser
from pathlib import Path

import torch
from transformers import BertConfig as TheirConfig
from transformers import BertForQuestionAnswering as TheirModel

from bertqa.data.squad import Example
from bertqa.data.tokenization import BertTokenizer
from bertqa.model.bert import BertForQuestionAnswering
from bertqa.model.checkpoint import load_checkpoint
from bertqa.model.packing import PackedBatch
from tests.corpus import TEXTS

DATA = Path(__file__).parent / "fixtures"
STORIES = DATA / "stories.json"
STORIES_V2 = DATA / "stories_v2.json"

# Odd sizes, all different, so that a transposed axis or a wrong width fails.
TINY = {
    "vocab_size": 101,
    "hidden_size": 36,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 37,
    "max_position_embeddings": 64,
    "type_vocab_size": 2,
}
LENGTHS = (5, 33, 1, 18, 64)


def their_model(attention: str = "eager", seed: int = 0, **changes: object) -> TheirModel:
    """Make transformers' model with random weights, so large that every part affects the output."""
    torch.manual_seed(seed)
    config = TheirConfig(**(TINY | {"attn_implementation": attention} | changes))
    model = TheirModel(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(mean=1.0 if "LayerNorm.weight" in name else 0.0, std=0.2)
    return model


def our_model(theirs: TheirModel, folder: Path) -> BertForQuestionAnswering:
    """Load the same weights with our loader."""
    theirs.save_pretrained(folder)
    model, _ = load_checkpoint(folder)
    return model


def random_windows(
    lengths: tuple[int, ...] = LENGTHS, vocab_size: int = 101, seed: int = 1
) -> tuple[list[list[int]], list[list[int]]]:
    """Make ids and token types of windows of the given lengths."""
    generator = torch.Generator().manual_seed(seed)
    ids = [torch.randint(1, vocab_size, (n,), generator=generator).tolist() for n in lengths]
    return ids, [[0] * (n // 3) + [1] * (n - n // 3) for n in lengths]


def our_batch(ids: list[list[int]], types: list[list[int]]) -> PackedBatch:
    """Pack windows."""
    return PackedBatch.from_windows(ids, types)


def their_batch(ids: list[list[int]], types: list[list[int]]) -> dict[str, torch.Tensor]:
    """Pad windows, with an attention mask."""
    longest = max(map(len, ids))
    return {
        "input_ids": torch.tensor([row + [0] * (longest - len(row)) for row in ids]),
        "token_type_ids": torch.tensor([row + [0] * (longest - len(row)) for row in types]),
        "attention_mask": torch.tensor([[1] * len(r) + [0] * (longest - len(r)) for r in ids]),
    }


def unpadded(values: torch.Tensor, lengths: tuple[int, ...] = LENGTHS) -> torch.Tensor:
    """Remove the padding: ``(N, S, ...)`` to ``(T, ...)``."""
    return torch.cat([row[:length] for row, length in zip(values, lengths, strict=True)])


def vocabulary(lowercase: bool = True) -> list[str]:
    """Make a small WordPiece vocabulary: special tokens, common pieces, letters of the corpus."""
    words = "the of and in was is to a who when where how many what did river ship town".split()
    pieces = ["##ing", "##ed", "##er", "##s", "##ly", "##tion", "in", "un", "re", "port", "man"]
    text = "".join(TEXTS) + STORIES.read_text(encoding="utf-8")
    letters = sorted({c for c in (text.lower() if lowercase else text) if c.isprintable()} - {" "})
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words, *pieces]
    tokens += [*letters, *(f"##{letter}" for letter in letters)]
    return list(dict.fromkeys(tokens))


def write_tokenizer(folder: Path, lowercase: bool = True) -> BertTokenizer:
    """Write a tokenizer in the oldest format: vocab.txt and tokenizer_config.json."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join(vocabulary(lowercase)) + "\n", encoding="utf-8")
    settings = {"do_lower_case": lowercase, "tokenizer_class": "BertTokenizer"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    return BertTokenizer.load(folder)


def write_checkpoint(folder: Path, seed: int = 0, **changes: object) -> Path:
    """Write a tiny checkpoint folder, model and tokenizer, with 384 position embeddings."""
    tokenizer = write_tokenizer(folder)
    sizes = {"vocab_size": tokenizer.vocab_size, "max_position_embeddings": 384}
    their_model(seed=seed, **(sizes | changes)).save_pretrained(folder)
    return folder


def write_questions(path: Path, examples: Iterable[Example]) -> Path:
    """Write questions in the format of the datasets library, with all gold answers."""
    rows = [
        {
            "id": e.id, "question": e.question, "context": e.context,
            "answers": {"text": list(e.answers or ()), "answer_start": list(e.answer_starts)},
        }
        for e in examples
    ]  # fmt: skip
    path.write_text(json.dumps({"data": rows}), encoding="utf-8")
    return path


def contents(folder: Path) -> dict[str, bytes]:
    """Read all files in a folder, recursively."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


class Page(HTMLParser):
    """Elements and texts of a page; asserts that every element is closed."""

    VOID = ("meta", "input")
    SHAPES = ("rect", "path", "circle", "polyline")

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.inside: dict[str, list[str]] = {}  # the texts by their element
        self.feed(page)
        self.close()
        assert self.open == []

    def all(self, tag: str) -> list[dict[str, str | None]]:
        """Return the attributes of all elements with this tag."""
        return [attributes for name, attributes in self.seen if name == tag]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._see(tag, attrs)
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in (*self.VOID, *self.SHAPES), f"{tag} must have an end tag"
        self._see(tag, attrs)

    def _see(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len(dict(attrs)) == len(attrs), f"{tag}: an attribute twice"
        self.seen.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.texts.append(data)
        self.inside.setdefault(self.open[-1] if self.open else "", []).append(data)
