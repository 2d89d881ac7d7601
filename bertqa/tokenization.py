"""The WordPiece tokenizer of a checkpoint folder.

The ``tokenizers`` library does the work; here it is loaded from any of the forms that BERT
folders have, told not to cut, pad or obey special tokens in a user's text, and made to give its
results as flat arrays.
"""

import json
import re
from array import array
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from tokenizers import Encoding, Tokenizer, models, normalizers, pre_tokenizers
from torch import Tensor

from bertqa.errors import UserError
from bertqa.files import read_json_object, write_json, write_text

_AT_ONCE = 4096  # texts that are encoded together: bounds the memory, keeps the threads busy
_SURROGATES = re.compile("[\ud800-\udfff]")
_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


@dataclass(frozen=True)
class TokenTable:
    """The tokens of many texts in flat arrays; text ``i`` has rows ``bounds[i]:bounds[i + 1]``.

    Attributes:
        ids: ``(tokens,)`` int32.
        starts, ends: ``(tokens,)`` int32, the code points of its text that a token covers.
        bounds: ``(texts + 1,)`` int64.
    """

    ids: Tensor
    starts: Tensor
    ends: Tensor
    bounds: Tensor

    @property
    def lengths(self) -> Tensor:
        """``(texts,)`` int64, tokens of each text."""
        return self.bounds.diff()

    def rows(self, text: int) -> slice:
        """Where the tokens of one text stand."""
        return slice(int(self.bounds[text]), int(self.bounds[text + 1]))


class BertTokenizer:
    """Texts to WordPiece ids with offsets into the text.

    Attributes:
        cls_id, sep_id: ids of the special tokens that frame a question and its context.
        vocab_size: number of ids; the word embedding needs as many rows.
        source: the file it was read from.
    """

    def __init__(self, backend: Tokenizer, settings: dict[str, Any], source: Path) -> None:
        self.source = source
        self.settings = settings
        self.cls_id = _special_id(backend, settings.get("cls_token", "[CLS]"), source)
        self.sep_id = _special_id(backend, settings.get("sep_token", "[SEP]"), source)
        self.vocab_size = max(backend.get_vocab(with_added_tokens=True).values()) + 1
        backend.no_truncation()
        backend.no_padding()
        backend.encode_special_tokens = True  # a user's "[SEP]" stays five characters of text
        self._backend = backend

    @classmethod
    def load(cls, folder: Path) -> "BertTokenizer":
        """Read tokenizer.json, or vocab.txt with tokenizer_config.json.

        Raises:
            UserError: neither is there, or they hold no WordPiece tokenizer.
        """
        path = folder / "tokenizer_config.json"
        settings = read_json_object(path) if path.exists() else {}
        settings = {key: _content(value) for key, value in settings.items()}
        if (folder / "tokenizer.json").exists():
            return cls(_from_json(folder / "tokenizer.json"), settings, folder / "tokenizer.json")
        if (folder / "vocab.txt").exists():
            backend = _from_vocabulary(folder / "vocab.txt", settings)
            return cls(backend, settings, folder / "vocab.txt")
        raise UserError(f"{folder} holds no tokenizer: put tokenizer.json or vocab.txt there")

    def encode(self, texts: Sequence[str]) -> TokenTable:
        """The tokens of each text, without special tokens, and where they stand in it."""
        ids, spans, lengths = array("i"), array("i"), array("q")
        parts = [texts[first : first + _AT_ONCE] for first in range(0, len(texts), _AT_ONCE)]
        for encodings in _one_ahead(self._encode_part, parts):
            for encoding in encodings:
                ids.fromlist(encoding.ids)
                spans.extend(chain.from_iterable(encoding.offsets))
                lengths.append(len(encoding))
        starts, ends = _tensor(spans, torch.int32).view(-1, 2).unbind(dim=1)
        bounds = torch.zeros(len(texts) + 1, dtype=torch.int64)
        torch.cumsum(_tensor(lengths, torch.int64), 0, out=bounds[1:])
        return TokenTable(_tensor(ids, torch.int32), starts.contiguous(), ends.contiguous(), bounds)

    def _encode_part(self, texts: Sequence[str]) -> list[Encoding]:
        whole = [_SURROGATES.sub("\ufffd", text) for text in texts]
        encodings: list[Encoding] = self._backend.encode_batch(whole, add_special_tokens=False)
        return encodings

    def tokens(self, ids: Sequence[int]) -> list[str]:
        """The pieces that ids stand for, such as ``play`` and ``##ing``."""
        return [self._backend.id_to_token(int(i)) or "[?]" for i in ids]

    def fingerprint(self) -> str:
        """All that decides which ids a text gets, as text."""
        return str(self._backend.to_str())

    def save(self, folder: Path) -> None:
        """Write tokenizer.json and tokenizer_config.json so that transformers opens the folder.

        Raises:
            UserError: the folder cannot be written.
        """
        text = self._backend.to_str(pretty=False)
        write_text(folder / "tokenizer.json", text)
        settings = {"model_max_length": 512, **self.settings, **_normalization(text)}
        settings["tokenizer_class"] = "BertTokenizer"
        write_json(folder / "tokenizer_config.json", settings)


def _one_ahead(
    encode: Callable[[Sequence[str]], list[Encoding]], parts: Sequence[Sequence[str]]
) -> Iterator[list[Encoding]]:
    """What ``encode`` makes of each part; it works on the next while Python reads out the last."""
    if len(parts) < 2:
        yield from map(encode, parts)
        return
    with ThreadPoolExecutor(1) as thread:
        begun = thread.submit(encode, parts[0])
        for part in parts[1:]:
            following = thread.submit(encode, part)
            yield begun.result()
            begun = following
        yield begun.result()


def _tensor(values: "array[int]", dtype: torch.dtype) -> Tensor:
    """The numbers of an array as a tensor that shares their memory."""
    return torch.frombuffer(values, dtype=dtype) if values else torch.empty(0, dtype=dtype)


def _content(value: Any) -> Any:
    """A token that tokenizer_config.json describes with its flags, as plain text."""
    return value["content"] if isinstance(value, dict) and "content" in value else value


def _special_id(backend: Tokenizer, token: Any, source: Path) -> int:
    number = backend.token_to_id(token) if isinstance(token, str) else None
    if number is None:
        raise UserError(f"{source} has no token {token!r}: it is no BERT tokenizer")
    return int(number)


def _normalization(serialised: str) -> dict[str, Any]:
    """What transformers sets its normalizer up by; that of tokenizer.json it passes over."""
    normalizer = json.loads(serialised).get("normalizer") or {}
    return {
        "do_lower_case": normalizer.get("lowercase", False),
        "strip_accents": normalizer.get("strip_accents"),
        "tokenize_chinese_chars": normalizer.get("handle_chinese_chars", True),
    }


def _from_json(path: Path) -> Tokenizer:
    """tokenizer.json, if it holds a WordPiece model."""
    try:
        backend = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises bare Exception
        raise UserError(f"{path} is no tokenizer ({error}): copy it again") from error
    if not isinstance(backend.model, models.WordPiece):
        kind = type(backend.model).__name__
        raise UserError(f"{path} holds a {kind} tokenizer, but BERT reads WordPiece")
    return backend


def _from_vocabulary(path: Path, settings: dict[str, Any]) -> Tokenizer:
    """The published BERT tokenizer around a vocab.txt: one token a line, the line is its id."""
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read as UTF-8 text ({error}): copy it again") from error
    tokens = [line.rstrip("\r") for line in lines]
    while tokens and not tokens[-1]:
        tokens.pop()
    vocabulary = {token: number for number, token in enumerate(tokens)}
    unknown = settings.get("unk_token", "[UNK]")
    if not isinstance(unknown, str) or unknown not in vocabulary:
        raise UserError(f"{path} has no token {unknown!r}: it is no BERT vocabulary")
    backend = Tokenizer(models.WordPiece(vocab=vocabulary, unk_token=unknown))
    settings_file = path.with_name("tokenizer_config.json")
    backend.normalizer = normalizers.BertNormalizer(
        clean_text=True,
        handle_chinese_chars=_flag(settings, "tokenize_chinese_chars", True, settings_file),
        strip_accents=_flag(settings, "strip_accents", None, settings_file),
        lowercase=_flag(settings, "do_lower_case", True, settings_file),
    )
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.add_special_tokens([token for token in _SPECIAL if token in vocabulary])
    return backend


def _flag(settings: dict[str, Any], key: str, default: bool | None, source: Path) -> Any:
    """One setting that is true or false, or null where that is the default."""
    value = settings.get(key, default)
    if not isinstance(value, bool) and value is not default:
        raise UserError(f"{source}: {key} is {value!r}, but must be true or false")
    return value
