"""Texts to WordPiece tokens, by the tokenizer of a checkpoint folder.

The ``tokenizers`` library does the work; here the published tokenizer is made of what the folder's
files say, told to leave the special tokens in a user's text alone, and made to give its results as
flat arrays.
"""

import json
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from tokenizers import (
    Encoding,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
)
from torch import Tensor

from bertqa.data.graphemes import SURROGATES
from bertqa.data.tokenizer_files import TokenizerFiles, read_tokenizer_files
from bertqa.errors import UserError, shown
from bertqa.files import write_json, write_text

_AT_ONCE = 4096  # texts that are encoded together: bounds the memory, keeps the threads busy
KEPT_CONTEXTS, KEPT_CHARACTERS = 1024, 2**20  # most that a tokenizer keeps the tokens of


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

    def split(self) -> Iterable[Tensor]:
        """The tokens of each text: ids, starts and ends as views, ``(3, tokens)`` int32."""
        return torch.stack([self.ids, self.starts, self.ends]).split(self.lengths.tolist(), dim=1)

    @classmethod
    def joined(cls, parts: list[Tensor]) -> "TokenTable":
        """The table that ``split`` gives these parts of; there must be one or more."""
        bounds = torch.tensor([0, *(part.shape[1] for part in parts)]).cumsum(0)
        ids, starts, ends = torch.cat(parts, dim=1)
        return cls(ids, starts, ends, bounds)


class BertTokenizer:
    """Texts to WordPiece ids with offsets into the text.

    Attributes:
        cls_id, sep_id: ids of the special tokens that frame a question and its context.
        mask_id: the id of [MASK]; of [UNK] where the vocabulary has none.
        vocab_size: number of ids; the word embedding needs as many rows.
        settings: what tokenizer_config.json says, or has for what it leaves unsaid.
        source: the file that the vocabulary was read from.
        markers: number of added tokens that are one token in a text.
    """

    def __init__(self, files: TokenizerFiles) -> None:
        self.source, self.settings = files.source, files.settings
        self._special = {each.token.content for each in files.added if each.is_special}
        self.markers = sum(not each.token.special for each in files.added)
        self._backend = backend = _published(files)
        self.cls_id = _special_id(backend, files, "cls_token")
        self.sep_id = _special_id(backend, files, "sep_token")
        if self.cls_id == self.sep_id:
            raise UserError(
                f"{files.source}: [CLS] and [SEP] are one token, number {self.cls_id}, by "
                "tokenizer_config.json: correct cls_token or sep_token there"
            )
        mask = backend.token_to_id(str(files.settings["mask_token"]))
        self.mask_id = _special_id(backend, files, "unk_token") if mask is None else mask
        # Asking the library for the whole vocabulary would take a third of the time of loading.
        ids = chain(files.vocabulary.values(), backend.get_added_tokens_decoder())
        self.vocab_size = max(ids) + 1
        self._kept: dict[str, Tensor] = {}  # by text, the least recently used first

    @classmethod
    def load(cls, folder: Path) -> "BertTokenizer":
        """Read the tokenizer of a folder, as ``read_tokenizer_files`` does.

        Raises:
            UserError: there is none, or it is not BERT's WordPiece.
        """
        return cls(read_tokenizer_files(folder))

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

    def encode_contexts(self, texts: Sequence[str]) -> TokenTable:
        """Encode distinct texts; the tokens of those that were encoded last are kept.

        So a context is tokenised once for all consecutive questions about it, also where these are
        encoded in several calls. The least recently used go first: ``KEPT_CONTEXTS`` texts of
        together ``KEPT_CHARACTERS`` characters stay, at most.
        """
        kept = dict(self._kept)  # a copy, since several threads may do this at once
        known = {text: kept.pop(text) for text in texts if text in kept}
        new = [text for text in texts if text not in known]
        table = self.encode(new)
        parts = known | dict(zip(new, table.split(), strict=True))
        kept |= {text: parts[text] for text in texts}
        size = sum(map(len, kept))
        for text in list(kept):
            if len(kept) <= KEPT_CONTEXTS and size <= KEPT_CHARACTERS:
                break
            size -= len(text)
            del kept[text]
        # Copies, since a view would keep the memory of the whole table.
        self._kept = kept | {text: kept[text].clone() for text in new if text in kept}
        return TokenTable.joined([parts[text] for text in texts]) if known else table

    def _encode_part(self, texts: Sequence[str]) -> list[Encoding]:
        whole = [SURROGATES.sub("\ufffd", text) for text in texts]
        encodings: list[Encoding] = self._backend.encode_batch(whole, add_special_tokens=False)
        return encodings

    def tokens(self, ids: Sequence[int]) -> list[str]:
        """The pieces that ids stand for, such as ``play`` and ``##ing``."""
        return [self._backend.id_to_token(int(i)) or "[?]" for i in ids]

    def gives_the_ids_of(self, other: "BertTokenizer") -> bool:
        """Whether both make the same ids of every text: vocabulary and rules are the same."""
        return self._identity() == other._identity()

    def _identity(self) -> tuple[Any, ...]:
        """All that decides on ids; special tokens are text in a text, but for those of a window."""
        entries = json.loads(self._backend.to_str())
        added = [token for token in entries["added_tokens"] if not token["special"]]
        return entries["model"], entries["normalizer"], added, self.cls_id, self.sep_id

    def save(self, folder: Path) -> None:
        """Write tokenizer.json and tokenizer_config.json so that transformers opens the folder.

        Raises:
            UserError: the folder cannot be written.
        """
        entries = json.loads(self._backend.to_str())
        for token in entries["added_tokens"]:
            token["special"] = token["content"] in self._special
        frame = {"sep": self.sep_id, "cls": self.cls_id}
        entries["post_processor"] = {"type": "BertProcessing"} | {
            name: [self._backend.id_to_token(number), number] for name, number in frame.items()
        }
        text = json.dumps(entries, ensure_ascii=False, separators=(",", ":"))
        write_text(folder / "tokenizer.json", text)
        settings = {"model_max_length": 512, **self.settings}
        settings.pop("added_tokens_decoder", None)  # tokenizer.json has them
        if isinstance(markers := settings.get("extra_special_tokens"), list):
            del settings["extra_special_tokens"]  # a list of that name 4.57 cannot read
            settings["additional_special_tokens"] = markers
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


def _special_id(backend: Tokenizer, files: TokenizerFiles, key: str) -> int:
    token = files.settings[key]
    number = backend.token_to_id(token) if isinstance(token, str) else None
    if number is None:
        raise UserError(
            f"{files.source} has no token {shown(token)}: it is no BERT tokenizer, take the "
            "model's own"
        )
    return int(number)


def _published(files: TokenizerFiles) -> Tokenizer:
    """BERT's tokenizer with the vocabulary, the rules and the added tokens of a folder."""
    unknown, rules = files.settings["unk_token"], files.settings
    if not isinstance(unknown, str) or unknown not in files.vocabulary:
        raise UserError(
            f"{files.source} has no token {shown(unknown)}: it is no BERT vocabulary, take the "
            "model's own"
        )
    backend = Tokenizer(models.WordPiece(vocab=files.vocabulary, unk_token=unknown))
    backend.normalizer = normalizers.BertNormalizer(
        clean_text=True,
        handle_chinese_chars=rules["tokenize_chinese_chars"],
        strip_accents=rules["strip_accents"],
        lowercase=rules["do_lower_case"],
    )
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    backend.add_tokens([each.token for each in files.added])
    backend.encode_special_tokens = True  # a user's "[SEP]" stays five characters of text
    for token, number, _, file in files.added:
        found = backend.token_to_id(token.content)
        if number not in (None, found) and token.content:
            raise UserError(
                f"{file}: the added token {shown(token.content)} has the number {number}, but by "
                f"its place {found}: take the model's own tokenizer"
            )
    return backend
