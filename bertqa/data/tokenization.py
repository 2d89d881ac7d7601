"""The WordPiece tokenizer of a checkpoint folder.

The ``tokenizers`` library does the work; here it is loaded from any of the forms that BERT
folders have, told not to cut, pad or obey special tokens in a user's text, and made to give its
results as flat arrays.
"""

import json
from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain, groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Encoding, Tokenizer, models, normalizers, pre_tokenizers
from torch import Tensor

from bertqa.data.graphemes import SURROGATES
from bertqa.errors import UserError, reason, shown
from bertqa.files import is_there, parse_json, read_json_object, read_whole, write_json, write_text

_AT_ONCE = 4096  # texts that are encoded together: bounds the memory, keeps the threads busy
_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")

_LARGEST_ID = (1 << 31) - 1  # ids are kept in 32 bits
_MOST_TOKENS = 1 << 20  # the largest known vocabulary of a BERT has half of it
_LONGEST_WORD = 1000  # characters; looking for its pieces takes time with their square
_LONGEST_PREFIX = 16  # characters; it is put before each piece that is looked for
_ADDED_KEYS = ("content", "single_word", "lstrip", "rstrip", "normalized", "special")
_MOST_ADDED = 1 << 20  # characters of all added tokens; the automaton takes 70 bytes for each
# The parts that a tokenizer.json of a BERT has. Others obey patterns of its author, which may take
# time without end, or move offsets.
_PARTS = {
    "normalizer": ("BertNormalizer",),
    "pre_tokenizer": ("BertPreTokenizer",),
    "post_processor": ("TemplateProcessing", "BertProcessing"),
    "decoder": ("WordPiece",),
}


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

    def __init__(
        self,
        backend: Tokenizer,
        vocabulary: dict[str, int],
        settings: dict[str, Any],
        source: Path,
    ) -> None:
        self.source = source
        self.settings = settings
        self.cls_id = _special_id(backend, settings.get("cls_token", "[CLS]"), source)
        self.sep_id = _special_id(backend, settings.get("sep_token", "[SEP]"), source)
        if self.cls_id == self.sep_id:
            raise UserError(
                f"{source}: [CLS] and [SEP] are one token, number {self.cls_id}, by "
                "tokenizer_config.json: correct cls_token or sep_token there"
            )
        # Asking the library for the whole vocabulary would take a third of the time of loading.
        ids = chain(vocabulary.values(), backend.get_added_tokens_decoder())
        self.vocab_size = max(ids) + 1
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
        settings = read_json_object(path) if is_there(path) else {}
        settings = {key: _content(value) for key, value in settings.items()}
        if is_there(path := folder / "tokenizer.json"):
            return cls(*_from_json(path), settings, path)
        if is_there(path := folder / "vocab.txt"):
            return cls(*_from_vocabulary(path, settings), settings, path)
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
        whole = [SURROGATES.sub("\ufffd", text) for text in texts]
        encodings: list[Encoding] = self._backend.encode_batch(whole, add_special_tokens=False)
        return encodings

    def tokens(self, ids: Sequence[int]) -> list[str]:
        """The pieces that ids stand for, such as ``play`` and ``##ing``."""
        return [self._backend.id_to_token(int(i)) or "[?]" for i in ids]

    def mask_id(self) -> int:
        """The id of [MASK]; of [UNK] where the vocabulary has none.

        Raises:
            UserError: it has neither.
        """
        mask = self._backend.token_to_id(str(self.settings.get("mask_token", "[MASK]")))
        unknown = self.settings.get("unk_token", "[UNK]")
        return mask if mask is not None else _special_id(self._backend, unknown, self.source)

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
        raise UserError(
            f"{source} has no token {shown(token)}: it is no BERT tokenizer, take the model's own"
        )
    return int(number)


def _normalization(serialised: str) -> dict[str, Any]:
    """What transformers sets its normalizer up by; that of tokenizer.json it passes over."""
    normalizer = json.loads(serialised).get("normalizer") or {}
    return {
        "do_lower_case": normalizer.get("lowercase", False),
        "strip_accents": normalizer.get("strip_accents"),
        "tokenize_chinese_chars": normalizer.get("handle_chinese_chars", True),
    }


def _from_json(path: Path) -> tuple[Tokenizer, dict[str, int]]:
    """tokenizer.json and its vocabulary, if it is a BERT's: WordPiece, and nothing else around."""
    content = read_whole(path)
    try:
        # The library is given what was looked at here, not the file: of a key that stands there
        # twice it might take the other one.
        entries = parse_json(content, unique=False)
        _check_parts(entries, path)
        vocabulary, added = entries["model"].pop("vocab"), entries.pop("added_tokens", None) or []
        entries["model"]["vocab"] = {}
        backend = Tokenizer.from_str(json.dumps({**entries, "added_tokens": []}))
        _check_model(backend.model, vocabulary, path)
        backend.model = models.WordPiece(vocab=vocabulary, **_options(backend.model))
        _add_tokens(backend, added, path)
    except UserError:
        raise
    except Exception as error:  # the library raises bare Exception
        raise UserError(f"{path} is no tokenizer ({reason(error)}): copy it again") from error
    return backend, vocabulary


def _options(model: models.WordPiece) -> dict[str, Any]:
    names = ("unk_token", "max_input_chars_per_word", "continuing_subword_prefix")
    return {name: getattr(model, name) for name in names}


def _add_tokens(backend: Tokenizer, added: list[dict[str, Any]], path: Path) -> None:
    """Add tokens, among them the special ones, in the order of the file."""
    # A text that says "[SEP]" is no separator, whatever the file thinks of its tokens.
    added = [
        token | {"special": token["special"] or token["content"] in _SPECIAL} for token in added
    ]
    for special, group in groupby(added, key=itemgetter("special")):
        add = backend.add_special_tokens if special else backend.add_tokens
        add([AddedToken(**{k: token[k] for k in _ADDED_KEYS}) for token in group])
    for token in added:
        number = backend.token_to_id(token["content"])
        if number != token["id"] and token["content"]:
            raise UserError(
                f"{path}: the added token {shown(token['content'])} has the number "
                f"{shown(token['id'])}, but by its place {number}: take the model's own tokenizer"
            )


def _check_parts(entries: Any, path: Path) -> None:
    """See that a tokenizer.json has a BERT's parts; here, since the library compiles patterns."""
    if not isinstance(entries, dict):
        raise ValueError(f"no JSON object but a {type(entries).__name__}")
    model = entries.get("model")
    if not isinstance(model, dict):
        raise ValueError("no model in it")
    kind = model.setdefault("type", "WordPiece")
    if kind != "WordPiece":
        raise UserError(
            f"{path} holds a {shown(kind)} tokenizer, but BERT reads WordPiece: take a BERT's"
        )
    # The library would take a text for the name of a file.
    if not isinstance(model.get("vocab"), dict) or not model["vocab"]:
        raise ValueError("no vocabulary in it")
    for name, kinds in _PARTS.items():
        part = entries.get(name)
        if part is not None and (not isinstance(part, dict) or part.get("type") not in kinds):
            raise UserError(
                f"{path}: {name} is {shown(part)}, but BERT's is {kinds[0]}: take a BERT's "
                "tokenizer"
            )
    template = entries.get("post_processor") or {}
    if "single" in template and _texts_of(template["single"]) != ["A"]:
        raise UserError(
            f"{path}: post_processor puts {shown(template['single'])} for one text, but BERT's has "
            "the text once: take a BERT's tokenizer"
        )
    added = sum(len(token["content"]) for token in entries.get("added_tokens") or [])
    if added > _MOST_ADDED:
        raise UserError(
            f"{path}: added_tokens have {added} characters, but {_MOST_ADDED} at most are read: "
            "take a BERT's tokenizer"
        )


def _texts_of(template: Any) -> list[str]:
    """The texts that a template has beside special tokens; each makes tokens, even if repeated."""
    return [piece["Sequence"]["id"] for piece in template if "Sequence" in piece]


def _check_model(model: models.WordPiece, vocabulary: dict[str, int], path: Path) -> None:
    """See that WordPiece with this vocabulary can be asked anything."""
    if len(model.continuing_subword_prefix) > _LONGEST_PREFIX:
        raise UserError(
            f"{path}: continuing_subword_prefix is {shown(model.continuing_subword_prefix)}, but "
            f"may have {_LONGEST_PREFIX} characters at most: take a BERT's tokenizer, with ##"
        )
    if not 0 < model.max_input_chars_per_word <= _LONGEST_WORD:
        raise UserError(
            f"{path}: max_input_chars_per_word is {model.max_input_chars_per_word}, but must be 1 "
            f"to {_LONGEST_WORD}: take a BERT's tokenizer, with 100"
        )
    numbers = vocabulary.values()
    if set(map(type, numbers)) - {int} or not 0 <= min(numbers) <= max(numbers) < _LARGEST_ID:
        raise UserError(
            f"{path}: a token's number is not a whole number from 0 to {_LARGEST_ID}: copy it again"
        )
    if len(set(numbers)) < len(vocabulary):
        number, count = Counter(numbers).most_common(1)[0]
        raise UserError(
            f"{path}: {count} tokens have the number {number}: take a tokenizer in which each has "
            "its own"
        )
    if model.unk_token not in vocabulary:
        raise UserError(
            f"{path}: the vocabulary lacks unk_token {shown(model.unk_token)}: take a BERT's "
            "tokenizer"
        )


def _from_vocabulary(path: Path, settings: dict[str, Any]) -> tuple[Tokenizer, dict[str, int]]:
    """The published BERT tokenizer around a vocab.txt: one token a line, the line is its id."""
    try:
        lines = read_whole(path).decode("utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path} cannot be read as UTF-8 text ({reason(error)}): copy it again"
        ) from error
    tokens = [line.rstrip("\r") for line in lines]
    while tokens and not tokens[-1]:
        tokens.pop()
    if len(tokens) > _MOST_TOKENS:
        raise UserError(
            f"{path} has {len(tokens)} lines, but {_MOST_TOKENS} tokens at most are read: it is no "
            "BERT vocabulary, take the model's own"
        )
    vocabulary = {token: number for number, token in enumerate(tokens)}
    unknown = settings.get("unk_token", "[UNK]")
    if not isinstance(unknown, str) or unknown not in vocabulary:
        raise UserError(
            f"{path} has no token {shown(unknown)}: it is no BERT vocabulary, take the model's own"
        )
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
    return backend, vocabulary


def _flag(settings: dict[str, Any], key: str, default: bool | None, source: Path) -> Any:
    """One setting that is true or false, or null where that is the default."""
    value = settings.get(key, default)
    if not isinstance(value, bool) and value is not default:
        raise UserError(f"{source}: {key} is {shown(value)}, but must be true or false: correct it")
    return value
