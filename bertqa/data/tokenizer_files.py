"""The files of a checkpoint folder that describe its tokenizer, read as transformers 5 reads them.

    tokenizer.json, or vocab.txt                     the vocabulary; the first also has added tokens
    tokenizer_config.json                            class, rules, names of the special tokens
    special_tokens_map.json, added_tokens.json       more of these, as older versions wrote them

They may come from anybody. All that is used of them is data, checked here: the library would
compile patterns of the author's, which may take time without end or move offsets.
"""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from tokenizers import AddedToken

from bertqa.errors import UserError, reason, shown
from bertqa.files import CONFIG_FILE, is_there, parse_json, read_json_object, read_whole

# The classes of transformers whose rules are BERT's, and those that find theirs in tokenizer.json.
_NAMES = "Bert ConvBert DistilBert Electra LayoutLM Lxmert MobileBert SqueezeBert".split()
_CLASSES = [f"{name}Tokenizer{fast}" for name in _NAMES for fast in ("", "Fast")]
_GENERIC = ("PreTrainedTokenizerFast", "TokenizersBackend")

# What holds where tokenizer_config.json says nothing: the rules, and the names of special tokens.
_RULES = {"do_lower_case": True, "strip_accents": None, "tokenize_chinese_chars": True}
_DEFAULTS = _RULES | {
    "unk_token": "[UNK]", "sep_token": "[SEP]", "pad_token": "[PAD]", "cls_token": "[CLS]",
    "mask_token": "[MASK]",
}  # fmt: skip
_NORMALIZER_KEYS = ("lowercase", "strip_accents", "handle_chinese_chars")  # of the rules
# The tokens that make a sequence of texts, in transformers' order. Whatever else the author of a
# checkpoint added, such as [E1], marks something in a text.
_STRUCTURE = [f"{name}_token" for name in "bos eos unk sep pad cls mask".split()]
_MARKERS = ("extra_special_tokens", "additional_special_tokens")  # the second is the old name

_LARGEST_ID = (1 << 31) - 1  # ids are kept in 32 bits
_MOST_TOKENS = 1 << 20  # the largest known vocabulary of a BERT has half of it
_MOST_ADDED = 1 << 20  # characters of all added tokens; the automaton takes 70 bytes for each
_ADDED_KEYS = ("content", "single_word", "lstrip", "rstrip", "normalized", "special")
# What a tokenizer.json of a BERT has; with anything else it is another tokenizer.
_MODEL = {"type": "WordPiece", "continuing_subword_prefix": "##", "max_input_chars_per_word": 100}
_PARTS = {
    "normalizer": ("BertNormalizer",),
    "pre_tokenizer": ("BertPreTokenizer",),
    "post_processor": ("TemplateProcessing", "BertProcessing"),
    "decoder": ("WordPiece",),
}


class Added(NamedTuple):
    """A token beside the vocabulary.

    Attributes:
        token: to the library special, that is text in a user's text, if it makes the sequence.
        number: its id by the file; None where it is the next one.
        is_special: as transformers means it, which leaves such tokens out when it decodes.
        file: what describes it.
    """

    token: AddedToken
    number: int | None
    is_special: bool
    file: Path


@dataclass(frozen=True)
class TokenizerFiles:
    """What a folder says of its tokenizer.

    Attributes:
        source: the file that holds the vocabulary.
        vocabulary: token -> id.
        added: tokens beside it, in the order in which they get ids.
        settings: all else, with a value for each rule and each token that a BERT has.
    """

    source: Path
    vocabulary: dict[str, int]
    added: list[Added]
    settings: dict[str, Any]


def read_tokenizer_files(folder: Path) -> TokenizerFiles:
    """Read tokenizer.json, or vocab.txt, and the files beside it.

    Raises:
        UserError: neither is there, a file is faulty, or the tokenizer is not BERT's WordPiece.
    """
    settings = _read_settings(folder)
    is_generic = _check_class(folder, settings)
    listed: Any = []
    if is_there(source := folder / "tokenizer.json"):
        entries = _read_json(source)
        vocabulary, listed = entries["model"]["vocab"], entries.get("added_tokens") or []
        if is_generic:
            settings |= _own_rules(entries, source)
    elif is_there(source := folder / "vocab.txt"):
        vocabulary = _read_vocabulary(source)
    else:
        raise UserError(f"{folder} holds no tokenizer: put tokenizer.json or vocab.txt there")
    _check_rules(settings, source if is_generic else folder / "tokenizer_config.json")
    added = _added_tokens(folder, settings, vocabulary, listed, is_generic)
    if (characters := sum(len(each.token.content) for each in added)) > _MOST_ADDED:
        raise UserError(
            f"{source}: the added tokens have {characters} characters, but {_MOST_ADDED} at most "
            "are read: take a BERT's tokenizer"
        )
    settings = {key: _text(value) for key, value in settings.items()}
    return TokenizerFiles(source, vocabulary, added, settings)


# --- settings ------------------------------------------------------------------------------------


def _read_settings(folder: Path) -> dict[str, Any]:
    """tokenizer_config.json, and what an old special_tokens_map.json has beside it."""
    files = (folder / "tokenizer_config.json", folder / "special_tokens_map.json")
    settings, old = (read_json_object(file) if is_there(file) else {} for file in files)
    if "added_tokens_decoder" not in settings:  # else transformers passes the old file over
        settings |= old | {key: settings[key] for key in _MARKERS if settings.get(key)}
    return {**_DEFAULTS, **settings}


def _text(value: Any) -> Any:
    """A token that is described with its flags, as plain text."""
    return value["content"] if isinstance(value, dict) and "content" in value else value


def _structure(settings: dict[str, Any]) -> list[Any]:
    """The tokens that make a sequence of texts, those that there are."""
    named = map(settings.get, _STRUCTURE)
    return [token for token in named if isinstance(_text(token), str)]


def _check_class(folder: Path, settings: dict[str, Any]) -> bool:
    """See that the tokenizer's class has BERT's rules; whether it finds them in tokenizer.json.

    Raises:
        UserError: it has others, or is code of the model's own.
    """
    source, config = folder / "tokenizer_config.json", folder / CONFIG_FILE
    own = settings.get("auto_map")
    if own := own.get("AutoTokenizer") if isinstance(own, dict) else own:
        raise UserError(
            f"{source}: auto_map names {shown(own)}, code of the model's own, which is not run "
            "here: take a BERT whose tokenizer_class is BertTokenizer"
        )
    name = settings.get("tokenizer_class")
    if name is None and is_there(config):
        source, name = config, read_json_object(config).get("tokenizer_class")
    if name is None or name in _CLASSES:
        return False
    if name not in _GENERIC:
        raise UserError(
            f"{source}: tokenizer_class is {shown(name)}, but must be BertTokenizer, whose rules "
            "are the only ones here: take a BERT that has it"
        )
    if not is_there(folder / "tokenizer.json"):
        raise UserError(
            f"{source}: tokenizer_class is {shown(name)}, whose rules are in tokenizer.json, but "
            "there is none: copy it, too"
        )
    return True


def _check_rules(settings: dict[str, Any], source: Path) -> None:
    """See that each rule is on or off, or as it is where nothing is said of it."""
    names = _NORMALIZER_KEYS if source.name == "tokenizer.json" else _RULES
    for name, (rule, default) in zip(names, _RULES.items(), strict=True):
        value = settings[rule]
        if not isinstance(value, bool) and value is not default:
            raise UserError(
                f"{source}: {name} is {shown(value)}, but must be true or false: correct it"
            )


# --- vocabulary ----------------------------------------------------------------------------------


def _read_json(path: Path) -> dict[str, Any]:
    """tokenizer.json, if it is a BERT's: WordPiece, and nothing else around."""
    with _said_of(path):
        entries = parse_json(read_whole(path), unique=False)
        if not isinstance(entries, dict):
            raise ValueError(f"no JSON object but a {type(entries).__name__}")
        model = entries.get("model")
        if not isinstance(model, dict):
            raise ValueError("no model in it")
        _check_parts(entries, path)
        if not isinstance(model.get("vocab"), dict) or not model["vocab"]:
            raise ValueError("no vocabulary in it")
    _check_numbers(model["vocab"], path)
    return entries


def _check_parts(entries: dict[str, Any], path: Path) -> None:
    """See that nothing of a tokenizer.json is another than BERT's."""
    for key, value in _MODEL.items():
        found = entries["model"].get(key, value)
        if found != value:
            raise UserError(
                f"{path}: {key} is {shown(found)}, but BERT's is {value}: take a BERT's tokenizer"
            )
    for name, kinds in _PARTS.items():
        part = entries.get(name)
        if part is not None and (not isinstance(part, dict) or part.get("type") not in kinds):
            raise UserError(
                f"{path}: {name} is {shown(part)}, but BERT's is {kinds[0]}: take a BERT's "
                "tokenizer"
            )


def _check_numbers(vocabulary: dict[str, Any], path: Path) -> None:
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


def _own_rules(entries: dict[str, Any], path: Path) -> dict[str, Any]:
    """The settings that a generic class finds in tokenizer.json."""
    normalizer = entries.get("normalizer") or {}
    if normalizer.get("clean_text") is not True or not entries.get("pre_tokenizer"):
        raise UserError(
            f"{path}: normalizer and pre_tokenizer must be BERT's, with clean_text, as no class "
            "has them: take a BERT's tokenizer"
        )
    rules = dict(zip(_RULES, map(normalizer.get, _NORMALIZER_KEYS), strict=True))
    return rules | {"unk_token": entries["model"].get("unk_token")}


def _read_vocabulary(path: Path) -> dict[str, int]:
    """vocab.txt: one token a line, the line is its id."""
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
    return {token: number for number, token in enumerate(tokens)}


# --- added tokens --------------------------------------------------------------------------------


def _added_tokens(
    folder: Path, settings: dict[str, Any], vocabulary: dict[str, int], listed: Any, generic: bool
) -> list[Added]:
    """The tokens beside the vocabulary in transformers' order: those with an id, then the others.

    Args:
        listed: those of tokenizer.json. Where tokenizer_config.json lists tokens too, transformers
            5 takes them for the generic classes alone; 4.57 takes them always.
    """
    source, decoder = folder / "tokenizer_config.json", settings.get("added_tokens_decoder")
    with _said_of(source):
        structure, markers = (
            [*map(_token, part)] for part in (_structure(settings), _markers(settings))
        )
        names = {token.content for token in structure}
    found: dict[int, tuple[AddedToken, Path]] = {}
    if decoder is None and is_there(old := folder / "added_tokens.json"):
        special = names | {marker.content for marker in markers}
        numbers = read_json_object(old).items()
        rows = [{"id": n, "content": text, "special": text in special} for text, n in numbers]
        found |= _by_number(rows, old)
    if decoder is None or generic:
        found |= _by_number(listed, folder / "tokenizer.json")
    found |= _by_number(decoder or {}, source)

    known = {token.content for token, _ in found.values()}
    unnumbered = [*structure, *markers]
    if known.union(vocabulary).issuperset(marker.content for marker in markers):
        # A name that the vocabulary lacks, such as an unused [MASK], takes no id from a marker.
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
    """The special tokens that settings name beside those of ``_STRUCTURE``."""
    named = [v for k, v in settings.items() if k.endswith("_token") and k not in _STRUCTURE]
    extra: Any = next((settings[key] for key in _MARKERS if settings.get(key)), [])
    extra = extra.values() if isinstance(extra, dict) else extra
    return [*(value for value in named if isinstance(value, str)), *extra]


def _by_number(described: Any, file: Path) -> dict[int, tuple[AddedToken, Path]]:
    """Added tokens by their ids: from a list of tokens with ids, or from an object id -> token."""
    with _said_of(file):
        if not isinstance(described, dict):
            described = {token["id"]: token for token in described}
        return {int(str(number)): (_token(token), file) for number, token in described.items()}


def _token(described: Any) -> AddedToken:
    """A token that is described with its flags, or special and given by its text alone."""
    if isinstance(described, str):
        described = {"content": described, "special": True}
    flags = {"content": described["content"], "normalized": not described.get("special", False)}
    return AddedToken(**flags | {key: described[key] for key in _ADDED_KEYS if key in described})


@contextmanager
def _said_of(file: Path) -> Iterator[None]:
    """Turn whatever goes wrong with a file, which may hold anything, into one sentence."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{file} is no tokenizer ({reason(error)}): copy it again") from error
