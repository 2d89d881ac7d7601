"""WordPiece tokenization with the tokenizer of a checkpoint folder.

This module builds BERT's tokenizer of the ``tokenizers`` library from the folder's files, so that
special tokens in a user's text are plain text, and returns tokens as flat arrays.
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
from bertqa.files import TOKENIZER_CONFIG_FILE, TOKENIZER_FILE, write_json, write_text

_BATCH_SIZE = 4096  # texts encoded together: bounds memory, and uses all threads
KEPT_CONTEXTS, KEPT_CHARACTERS = 1024, 2**20  # maximum size of a tokenizer's cache


@dataclass(frozen=True)
class TokenTable:
    """The tokens of many texts in flat arrays; text ``i`` has rows ``bounds[i]:bounds[i + 1]``.

    Attributes:
        ids: ``(tokens,)`` int32.
        starts, ends: ``(tokens,)`` int32, offsets of each token in its text, in code points.
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
        """Return the slice of one text's tokens."""
        return slice(int(self.bounds[text]), int(self.bounds[text + 1]))

    def split(self) -> Iterable[Tensor]:
        """Return ids, starts and ends of each text as views, ``(3, tokens)`` int32."""
        return torch.stack([self.ids, self.starts, self.ends]).split(self.lengths.tolist(), dim=1)

    @classmethod
    def joined(cls, parts: list[Tensor]) -> "TokenTable":
        """Join at least one of the parts returned by ``split`` to a table."""
        bounds = torch.tensor([0, *(part.shape[1] for part in parts)]).cumsum(0)
        ids, starts, ends = torch.cat(parts, dim=1)
        return cls(ids, starts, ends, bounds)


class BertTokenizer:
    """BERT's WordPiece tokenizer, with offsets into the text.

    Attributes:
        cls_id, sep_id: ids of [CLS] and [SEP].
        mask_id: id of [MASK], or of [UNK] if the vocabulary has no [MASK].
        vocab_size: number of ids; the word embedding needs as many rows.
        settings: tokenizer_config.json, completed by defaults.
        source: the file with the vocabulary.
        markers: number of added tokens that are recognized in a text.
    """

    def __init__(self, files: TokenizerFiles) -> None:
        self.source, self.settings = files.source, files.settings
        self._special = {each.token.content for each in files.added if each.is_special}
        self.markers = sum(not each.token.special for each in files.added)
        self._backend = backend = _build_backend(files)
        self.cls_id = _special_id(backend, files, "cls_token")
        self.sep_id = _special_id(backend, files, "sep_token")
        if self.cls_id == self.sep_id:
            raise UserError(
                f"{files.source}: [CLS] and [SEP] must be different tokens, got id {self.cls_id} "
                "for both: correct cls_token or sep_token in tokenizer_config.json"
            )
        mask = backend.token_to_id(str(files.settings["mask_token"]))
        self.mask_id = _special_id(backend, files, "unk_token") if mask is None else mask
        # The library's get_vocab would take a third of the loading time.
        ids = chain(files.vocabulary.values(), backend.get_added_tokens_decoder())
        self.vocab_size = max(ids) + 1
        self._kept: dict[str, Tensor] = {}  # by text, the least recently used first

    @classmethod
    def load(cls, folder: Path) -> "BertTokenizer":
        """Load the tokenizer of a checkpoint folder, see ``read_tokenizer_files``.

        Raises:
            UserError: there is none, or it is not BERT's WordPiece.
        """
        return cls(read_tokenizer_files(folder))

    def encode(self, texts: Sequence[str]) -> TokenTable:
        """Tokenize texts, without adding special tokens; return ids and offsets."""
        ids, spans, lengths = array("i"), array("i"), array("q")
        parts = [texts[first : first + _BATCH_SIZE] for first in range(0, len(texts), _BATCH_SIZE)]
        for encodings in _prefetch(self._encode_part, parts):
            for encoding in encodings:
                ids.fromlist(encoding.ids)
                spans.extend(chain.from_iterable(encoding.offsets))
                lengths.append(len(encoding))
        starts, ends = _tensor(spans, torch.int32).view(-1, 2).unbind(dim=1)
        bounds = torch.zeros(len(texts) + 1, dtype=torch.int64)
        torch.cumsum(_tensor(lengths, torch.int64), 0, out=bounds[1:])
        return TokenTable(_tensor(ids, torch.int32), starts.contiguous(), ends.contiguous(), bounds)

    def encode_contexts(self, texts: Sequence[str]) -> TokenTable:
        """Encode distinct texts with a cache of the most recently used.

        A context is tokenized once for consecutive questions about it, also in several calls. The
        cache has at most ``KEPT_CONTEXTS`` texts with ``KEPT_CHARACTERS`` characters in total.
        """
        kept = dict(self._kept)  # a copy, since several threads may call this at once
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
        """Convert ids to tokens, such as ``play`` and ``##ing``."""
        return [self._backend.id_to_token(int(i)) or "[?]" for i in ids]

    def is_equivalent_to(self, other: "BertTokenizer") -> bool:
        """Return whether both tokenizers give the same ids: vocabulary and rules are equal."""
        return self._identity() == other._identity()

    def _identity(self) -> tuple[Any, ...]:
        """Return all that determines ids: of special tokens only [CLS] and [SEP]."""
        entries = json.loads(self._backend.to_str())
        added = [token for token in entries["added_tokens"] if not token["special"]]
        return entries["model"], entries["normalizer"], added, self.cls_id, self.sep_id

    def save(self, folder: Path) -> None:
        """Write tokenizer.json and tokenizer_config.json, which transformers can load.

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
        write_text(folder / TOKENIZER_FILE, text)
        settings = {"model_max_length": 512, **self.settings}
        settings.pop("added_tokens_decoder", None)  # tokenizer.json has them
        if isinstance(markers := settings.get("extra_special_tokens"), list):
            del settings["extra_special_tokens"]  # transformers 4.57 cannot read it as a list
            settings["additional_special_tokens"] = markers
        settings["tokenizer_class"] = "BertTokenizer"
        write_json(folder / TOKENIZER_CONFIG_FILE, settings)


def _prefetch(
    encode: Callable[[Sequence[str]], list[Encoding]], parts: Sequence[Sequence[str]]
) -> Iterator[list[Encoding]]:
    """Yield ``encode(part)`` of each part; encode the next part in a thread meanwhile."""
    if len(parts) < 2:
        yield from map(encode, parts)
        return
    with ThreadPoolExecutor(1) as thread:
        current = thread.submit(encode, parts[0])
        for part in parts[1:]:
            following = thread.submit(encode, part)
            yield current.result()
            current = following
        yield current.result()


def _tensor(values: "array[int]", dtype: torch.dtype) -> Tensor:
    """Return a tensor that shares the memory of an array."""
    return torch.frombuffer(values, dtype=dtype) if values else torch.empty(0, dtype=dtype)


def _special_id(backend: Tokenizer, files: TokenizerFiles, key: str) -> int:
    token = files.settings[key]
    number = backend.token_to_id(token) if isinstance(token, str) else None
    if number is None:
        raise UserError(
            f"{files.source}: must contain the token {shown(token)} of a BERT tokenizer: use the "
            "model's tokenizer"
        )
    return int(number)


def _build_backend(files: TokenizerFiles) -> Tokenizer:
    """Build BERT's tokenizer with the vocabulary, rules and added tokens of a folder."""
    unknown, rules = files.settings["unk_token"], files.settings
    if not isinstance(unknown, str) or unknown not in files.vocabulary:
        raise UserError(
            f"{files.source}: must contain the token {shown(unknown)} of a BERT vocabulary: use "
            "the model's tokenizer"
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
    backend.encode_special_tokens = True  # "[SEP]" in a user's text is five characters
    for token, number, _, file in files.added:
        found = backend.token_to_id(token.content)
        if number not in (None, found) and token.content:
            raise UserError(
                f"{file}: the added token {shown(token.content)} must have the id {found} by its "
                f"position, got {number}: use the model's tokenizer"
            )
    return backend
