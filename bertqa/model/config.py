"""Configuration of a BERT encoder, with the names of a checkpoint's ``config.json``.

bertqa implements the published BERT (Devlin et al. 2019): absolute position embeddings, exact GELU,
post-norm, bidirectional. A config.json that requires anything else is rejected, because its weights
would silently give wrong results here.
"""

from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from bertqa.errors import UserError, shown
from bertqa.files import CONFIG_FILE, read_json_object


@dataclass(frozen=True)
class BertConfig:
    """Architecture of the encoder, as in config.json; the defaults are BERT-base's."""

    vocab_size: int = 30522
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    hidden_dropout_prob: float = 0.1
    attention_probs_dropout_prob: float = 0.1
    layer_norm_eps: float = 1e-12
    initializer_range: float = 0.02

    def __post_init__(self) -> None:
        for field in fields(self):
            _check_number(field.name, getattr(self, field.name), whole=field.type is int)
        if self.hidden_size % self.num_attention_heads:
            raise UserError(
                "hidden_size must be a multiple of num_attention_heads "
                f"({self.num_attention_heads}), got {self.hidden_size}: correct it"
            )
        if self.type_vocab_size < 2:
            raise UserError(
                "type_vocab_size must be at least 2 (question and context), got "
                f"{self.type_vocab_size}: choose another checkpoint"
            )

    @property
    def head_size(self) -> int:
        """K, the width of one attention head."""
        return self.hidden_size // self.num_attention_heads


# The supported values of keys that change what the encoder computes; the first is the default.
_REQUIRED_VALUES: dict[str, tuple[Any, ...]] = {
    "model_type": ("bert",),
    "hidden_act": ("gelu",),
    "position_embedding_type": ("absolute", None),
    "is_decoder": (False, None),
    "add_cross_attention": (False, None),
    "is_encoder_decoder": (False, None),
    "pruned_heads": ({}, None),
    "quantization_config": (None,),
}

# Keys that do not affect what the encoder computes.
_HARMLESS_KEYS = set(
    """
    _name_or_path architectures attn_implementation _attn_implementation_autoset
    bos_token_id chunk_size_feed_forward classifier_dropout cross_attention_hidden_size
    directionality dtype eos_token_id finetuning_task gradient_checkpointing id2label label2id
    language model_id name num_labels output_attentions output_hidden_states output_past
    pad_token_id pooler_fc_size pooler_num_attention_heads pooler_num_fc_layers
    pooler_size_per_head pooler_type prefix problem_type return_dict sep_token_id
    task_specific_params tie_word_embeddings tokenizer_class torch_dtype torchscript
    transformers_version use_bfloat16 use_cache
    """.split()
)

_TOO_LARGE = 1 << 24  # larger than any BERT; torch's element counts do not overflow below it


def _check_number(name: str, value: Any, whole: bool) -> None:
    """Check a number of a config.

    Raises:
        UserError: it is not a number, not positive, or a dropout rate outside [0, 1).
    """
    kinds = (int,) if whole else (int, float)
    if isinstance(value, bool) or not isinstance(value, kinds):
        kind = "a whole number" if whole else "a number"
        raise UserError(f"{name} must be {kind}, got {shown(value)}: correct it")
    if name.endswith("_prob"):
        if not 0 <= value < 1:
            raise UserError(f"{name} must be in [0, 1), got {shown(value)}: correct it")
    elif not 0 < value < _TOO_LARGE:
        raise UserError(
            f"{name} must be positive and below {_TOO_LARGE}, got {shown(value)}: correct it"
        )


def parse_config(entries: dict[str, Any], source: str) -> tuple[BertConfig, list[str]]:
    """Return the config described by ``entries``, and its unknown keys.

    Raises:
        UserError: a value is not supported; the message names ``source`` and the key.
    """
    check_architecture(entries, source)
    names = {field.name for field in fields(BertConfig)}
    unknown = sorted(set(entries) - names - set(_REQUIRED_VALUES) - _HARMLESS_KEYS)
    try:
        return BertConfig(**{k: v for k, v in entries.items() if k in names}), unknown
    except UserError as error:
        raise UserError(f"{source}: {error}") from error


def check_architecture(entries: dict[str, Any], source: str) -> None:
    """Check that a config.json describes the published BERT.

    Raises:
        UserError: it describes another model, such as DistilBERT or RoBERTa.
    """
    for key, allowed in _REQUIRED_VALUES.items():
        if key in entries and entries[key] not in allowed:
            raise UserError(
                f"{source}: {key} must be {allowed[0]!r}, got {shown(entries[key])}: choose a "
                "checkpoint of the published BERT"
            )


def load_config(folder: Path) -> tuple[BertConfig, list[str]]:
    """Read ``config.json`` of a checkpoint folder; return the config and its unknown keys.

    Raises:
        UserError: the file is missing, malformed or describes an unsupported model.
    """
    path = folder / CONFIG_FILE
    return parse_config(read_json_object(path), str(path))


def config_entries(config: BertConfig) -> dict[str, Any]:
    """Return the contents of a ``config.json`` that transformers can load."""
    return {
        "architectures": ["BertForQuestionAnswering"],
        "model_type": "bert",
        "hidden_act": "gelu",
        "position_embedding_type": "absolute",
        "pad_token_id": 0,
        **asdict(config),
    }
