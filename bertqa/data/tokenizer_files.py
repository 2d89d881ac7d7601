"""Reading of tokenizer files, with the same result as transformers 5.

    tokenizer.json, or vocab.txt                     the vocabulary; the first also has added tokens
    tokenizer_config.json                            class, rules, names of the special tokens
    special_tokens_map.json, added_tokens.json       special and added tokens of older versions

The files are untrusted. Only checked data is used: if the library loaded tokenizer.json itself, it
would compile the author's regular expressions, which may take for ever or shift offsets.
"""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from tokenizers import AddedToken

from bertqa.errors import UserError, reason, shown
from bertqa.files import (
    CONFIG_FILE,
    TOKENIZER_CONFIG_FILE,
    TOKENIZER_FILE,
    parse_json,
    path_exists,
    read_json_object,
    read_whole,
)

# The classes of transformers with BERT's rules, and those whose rules are in tokenizer.json.
_NAMES = "Bert ConvBert DistilBert Electra LayoutLM Lxmert MobileBert SqueezeBert".split()
_CLASSES = [f"{name}Tokenizer{fast}" for name in _NAMES for fast in ("", "Fast")]
_GENERIC = ("PreTrainedTokenizerFast", "TokenizersBackend")

# Defaults of tokenizer_config.json: the rules, and the names of special tokens.
_RULES = {"do_lower_case": True, "strip_accents": None, "tokenize_chinese_chars": True}
_DEFAULTS = _RULES | {
    "unk_token": "[UNK]", "sep_token": "[SEP]", "pad_token": "[PAD]", "cls_token": "[CLS]",
    "mask_token": "[MASK]",
}  # fmt: skip
_NORMALIZER_KEYS = ("lowercase", "strip_accents", "handle_chinese_chars")  # the rules' names there
# Special tokens that structure a sequence, in transformers' order. Others, such as [E1], mark
# something in a text.
_STRUCTURE = [f"{name}_token" for name in "bos eos unk sep pad cls mask".split()]
_MARKERS = ("extra_special_tokens", "additional_special_tokens")  # the second is the old name

_LARGEST_ID = (1 << 31) - 1  # ids are stored in 32 bits
_MOST_TOKENS = 1 << 20  # twice the largest known vocabulary of a BERT
_MOST_ADDED = 1 << 20  # characters of all added tokens; the library needs 70 bytes for each
_ADDED_KEYS = ("content", "single_word", "lstrip", "rstrip", "normalized", "special")
# Required values in the tokenizer.json of a BERT.
_MODEL = {"type": "WordPiece", "continuing_subword_prefix": "##", "max_input_chars_per_word": 100}
_PARTS = {
    "normalizer": ("BertNormalizer",),
    "pre_tokenizer": ("BertPreTokenizer",),
    "post_processor": ("TemplateProcessing", "BertProcessing"),
    "decoder": ("WordPiece",),
}


class Added(NamedTuple):
    """A token added to the vocabulary.

    Attributes:
        token: the token; ``token.special`` marks those of ``_STRUCTURE``, which are not recognized
            in a user's text.
        number: its id in the file; None for the next free one.
        is_special: whether transformers omits it in decoding.
        file: the file that describes it.
    """

    token: AddedToken
    number: int | None
    is_special: bool
    file: Path


@dataclass(frozen=True)
class TokenizerFiles:
    """The contents of a folder's tokenizer files.

    Attributes:
        source: the file with the vocabulary.
        vocabulary: token -> id.
        added: added tokens, in the order of their ids.
        settings: tokenizer_config.json, with defaults for missing rules and special tokens.
    """

    source: Path
    vocabulary: dict[str, int]
    added: list[Added]
    settings: dict[str, Any]


def read_tokenizer_files(folder: Path) -> TokenizerFiles:
    """Read tokenizer.json or vocab.txt, and the other tokenizer files.

    Raises:
        UserError: both are missing, a file is invalid, or the tokenizer is not BERT's WordPiece.
    """
    settings = _read_settings(folder)
    is_generic = _check_class(folder, settings)
    listed: Any = []
    if path_exists(source := folder / TOKENIZER_FILE):
        entries = _read_json(source)
        vocabulary, listed = entries["model"]["vocab"], entries.get("added_tokens") or []
        if is_generic:
            settings |= _own_rules(entries, source)
    elif path_exists(source := folder / "vocab.txt"):
        vocabulary = _read_vocabulary(source)
    else:
        raise UserError(
            f"{folder}: must contain tokenizer.json or vocab.txt, got no tokenizer: copy one there"
        )
    _check_rules(settings, source if is_generic else folder / TOKENIZER_CONFIG_FILE)
    added = _added_tokens(folder, settings, vocabulary, listed, is_generic)
    if (characters := sum(len(each.token.content) for each in added)) > _MOST_ADDED:
        raise UserError(
            f"{source}: added tokens must have at most {_MOST_ADDED} characters in total, got "
            f"{characters}: use a BERT tokenizer"
        )
    settings = {key: _text(value) for key, value in settings.items()}
    return TokenizerFiles(source, vocabulary, added, settings)


# --- settings ------------------------------------------------------------------------------------


def _read_settings(folder: Path) -> dict[str, Any]:
    """Read tokenizer_config.json, completed by an old special_tokens_map.json and defaults."""
    files = (folder / TOKENIZER_CONFIG_FILE, folder / "special_tokens_map.json")
    settings, old = (read_json_object(file) if path_exists(file) else {} for file in files)
    if "added_tokens_decoder" not in settings:  # otherwise transformers ignores the old file
        settings |= old | {key: settings[key] for key in _MARKERS if settings.get(key)}
    return {**_DEFAULTS, **settings}


def _text(value: Any) -> Any:
    """Return the text of a token given with flags."""
    return value["content"] if isinstance(value, dict) and "content" in value else value


def _structure(settings: dict[str, Any]) -> list[Any]:
    """Return the special tokens of ``_STRUCTURE`` in the settings."""
    named = map(settings.get, _STRUCTURE)
    return [token for token in named if isinstance(_text(token), str)]


def _check_class(folder: Path, settings: dict[str, Any]) -> bool:
    """Check that the tokenizer's class is BERT's; return whether its rules are in tokenizer.json.

    Raises:
        UserError: it is another class, or the model's own code.
    """
    source, config = folder / TOKENIZER_CONFIG_FILE, folder / CONFIG_FILE
    own = settings.get("auto_map")
    if own := own.get("AutoTokenizer") if isinstance(own, dict) else own:
        raise UserError(
            f"{source}: must have no AutoTokenizer in auto_map, got {shown(own)}, code that bertqa "
            "does not run: choose a BERT whose tokenizer_class is BertTokenizer"
        )
    name = settings.get("tokenizer_class")
    if name is None and path_exists(config):
        source, name = config, read_json_object(config).get("tokenizer_class")
    if name is None or name in _CLASSES:
        return False
    if name not in _GENERIC:
        raise UserError(
            f"{source}: tokenizer_class must be BertTokenizer, got {shown(name)}: choose a BERT "
            "that has it"
        )
    if not path_exists(folder / TOKENIZER_FILE):
        raise UserError(
            f"{source}: tokenizer_class {shown(name)} requires tokenizer.json, got none: copy it, "
            "too"
        )
    return True


def _check_rules(settings: dict[str, Any], source: Path) -> None:
    """Check that each rule is a bool, or its default."""
    names = _NORMALIZER_KEYS if source.name == TOKENIZER_FILE else _RULES
    for name, (rule, default) in zip(names, _RULES.items(), strict=True):
        value = settings[rule]
        if not isinstance(value, bool) and value is not default:
            raise UserError(
                f"{source}: {name} must be true or false, got {shown(value)}: correct it"
            )


# --- vocabulary ----------------------------------------------------------------------------------


def _read_json(path: Path) -> dict[str, Any]:
    """Read the tokenizer.json of a BERT; reject any other."""
    with _errors_of(path):
        entries = parse_json(read_whole(path), unique=False)
        if not isinstance(entries, dict):
            raise ValueError(f"must be a JSON object, got {type(entries).__name__}")
        model = entries.get("model")
        if not isinstance(model, dict):
            raise ValueError("no model")
        _check_parts(entries, path)
        if not isinstance(model.get("vocab"), dict) or not model["vocab"]:
            raise ValueError("no vocabulary")
    _check_numbers(model["vocab"], path)
    return entries


def _check_parts(entries: dict[str, Any], path: Path) -> None:
    """Check that all parts of a tokenizer.json are BERT's."""
    for key, value in _MODEL.items():
        found = entries["model"].get(key, value)
        if found != value:
            raise UserError(
                f"{path}: {key} must be {value}, got {shown(found)}: use a BERT tokenizer"
            )
    for name, kinds in _PARTS.items():
        part = entries.get(name)
        if part is not None and (not isinstance(part, dict) or part.get("type") not in kinds):
            raise UserError(
                f"{path}: {name} must be {kinds[0]}, got {shown(part)}: use a BERT tokenizer"
            )


def _check_numbers(vocabulary: dict[str, Any], path: Path) -> None:
    numbers = vocabulary.values()
    if set(map(type, numbers)) - {int} or not 0 <= min(numbers) <= max(numbers) < _LARGEST_ID:
        raise UserError(
            f"{path}: ids must be whole numbers from 0 to {_LARGEST_ID - 1}: copy the file again"
        )
    if len(set(numbers)) < len(vocabulary):
        number, count = Counter(numbers).most_common(1)[0]
        raise UserError(
            f"{path}: ids must be unique, got {count} tokens with the id {number}: use another "
            "tokenizer"
        )


def _own_rules(entries: dict[str, Any], path: Path) -> dict[str, Any]:
    """Return the rules in tokenizer.json, for a generic class."""
    normalizer = entries.get("normalizer") or {}
    if normalizer.get("clean_text") is not True or not entries.get("pre_tokenizer"):
        raise UserError(
            f"{path}: must have BERT's normalizer, with clean_text, and pre_tokenizer: use a BERT "
            "tokenizer"
        )
    rules = dict(zip(_RULES, map(normalizer.get, _NORMALIZER_KEYS), strict=True))
    return rules | {"unk_token": entries["model"].get("unk_token")}


def _read_vocabulary(path: Path) -> dict[str, int]:
    """Read vocab.txt: one token per line, its id is the line number."""
    try:
        lines = read_whole(path).decode("utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: must be UTF-8 text ({reason(error)}): copy it again") from error
    tokens = [line.rstrip("\r") for line in lines]
    while tokens and not tokens[-1]:
        tokens.pop()
    if len(tokens) > _MOST_TOKENS:
        raise UserError(
            f"{path}: must have at most {_MOST_TOKENS} tokens, got {len(tokens)}: use a BERT "
            "vocabulary"
        )
    return {token: number for number, token in enumerate(tokens)}


# --- added tokens --------------------------------------------------------------------------------


def _added_tokens(
    folder: Path, settings: dict[str, Any], vocabulary: dict[str, int], listed: Any, generic: bool
) -> list[Added]:
    """Return the added tokens in transformers' order: those with an id, then the others.

    Args:
        folder: the checkpoint folder.
        settings: contents of tokenizer_config.json.
        vocabulary: token -> id.
        listed: the added tokens of tokenizer.json. If tokenizer_config.json lists tokens too,
            transformers 5 uses ``listed`` only for generic classes, 4.57 always.
        generic: whether the class is generic.
    """
    source, decoder = folder / TOKENIZER_CONFIG_FILE, settings.get("added_tokens_decoder")
    with _errors_of(source):
        structure, markers = (
            [*map(_token, part)] for part in (_structure(settings), _markers(settings))
        )
        names = {token.content for token in structure}
    found: dict[int, tuple[AddedToken, Path]] = {}
    if decoder is None and path_exists(old := folder / "added_tokens.json"):
        special = names | {marker.content for marker in markers}
        numbers = read_json_object(old).items()
        rows = [{"id": n, "content": text, "special": text in special} for text, n in numbers]
        found |= _by_number(rows, old)
    if decoder is None or generic:
        found |= _by_number(listed, folder / TOKENIZER_FILE)
    found |= _by_number(decoder or {}, source)

    known = {token.content for token, _ in found.values()}
    unnumbered = [*structure, *markers]
    if known.union(vocabulary).issuperset(marker.content for marker in markers):
        # A token that the vocabulary lacks, such as an unused [MASK], must not shift markers' ids.
        unnumbered = [token for token in unnumbered if token.content in vocabulary]
    ordered: list[tuple[int | None, AddedToken, Path]]
    ordered = [(number, *found[number]) for number in sorted(found)]
    for token in unnumbered:
        if token.content not in known:
            known.add(token.content)
            ordered.append((None, token, source))
    added = [Added(token, number, token.special, file) for number, token, file in ordered]
    for each in added:
        each.token.special = each.token.content in names
    return added


def _markers(settings: dict[str, Any]) -> list[Any]:
    """Return the special tokens in the settings other than those of ``_STRUCTURE``."""
    named = [v for k, v in settings.items() if k.endswith("_token") and k not in _STRUCTURE]
    extra: Any = next((settings[key] for key in _MARKERS if settings.get(key)), [])
    extra = extra.values() if isinstance(extra, dict) else extra
    return [*(value for value in named if isinstance(value, str)), *extra]


def _by_number(described: Any, file: Path) -> dict[int, tuple[AddedToken, Path]]:
    """Return added tokens by id, from a list of tokens with ids or an object id -> token."""
    with _errors_of(file):
        if not isinstance(described, dict):
            described = {token["id"]: token for token in described}
        return {int(str(number)): (_token(token), file) for number, token in described.items()}


def _token(described: Any) -> AddedToken:
    """Make a token from its description: a dict with flags, or the text of a special token."""
    if isinstance(described, str):
        described = {"content": described, "special": True}
    flags = {"content": described["content"], "normalized": not described.get("special", False)}
    return AddedToken(**flags | {key: described[key] for key in _ADDED_KEYS if key in described})


@contextmanager
def _errors_of(file: Path) -> Iterator[None]:
    """Turn any error in an untrusted file into a UserError."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{file}: must be a tokenizer ({reason(error)}): copy it again") from error
