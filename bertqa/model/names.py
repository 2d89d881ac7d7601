"""Parameter names: those of bert.py and those of checkpoint files, which are transformers'."""

import re
from collections.abc import Iterator
from itertools import chain

# Module name in bert.py -> in checkpoint files; "{}" is the layer's index.
NAMES = {
    "embeddings.word": "bert.embeddings.word_embeddings",
    "embeddings.position": "bert.embeddings.position_embeddings",
    "embeddings.token_type": "bert.embeddings.token_type_embeddings",
    "embeddings.norm": "bert.embeddings.LayerNorm",
    "layers.{}.attention.query": "bert.encoder.layer.{}.attention.self.query",
    "layers.{}.attention.key": "bert.encoder.layer.{}.attention.self.key",
    "layers.{}.attention.value": "bert.encoder.layer.{}.attention.self.value",
    "layers.{}.attention.output": "bert.encoder.layer.{}.attention.output.dense",
    "layers.{}.attention_norm": "bert.encoder.layer.{}.attention.output.LayerNorm",
    "layers.{}.feed_forward.up": "bert.encoder.layer.{}.intermediate.dense",
    "layers.{}.feed_forward.down": "bert.encoder.layer.{}.output.dense",
    "layers.{}.feed_forward_norm": "bert.encoder.layer.{}.output.LayerNorm",
    "head": "qa_outputs",  # row 0 is S, row 1 is E
}


def checkpoint_name(name: str) -> str:
    """Convert the name of a parameter of ``BertForQuestionAnswering`` to a checkpoint's name."""
    module, _, leaf = name.rpartition(".")
    theirs = NAMES[re.sub(r"\d+", "{}", module)].format(*re.findall(r"\d+", module))
    return f"{theirs}.{leaf}"


def checkpoint_names(num_layers: int) -> Iterator[str]:
    """Yield the checkpoint names of all tensors of a model, layer by layer."""
    single = [theirs for theirs in NAMES.values() if "{}" not in theirs]
    repeated = [theirs for theirs in NAMES.values() if "{}" in theirs]
    layers = (theirs.format(i) for i in range(num_layers) for theirs in repeated)
    for module in chain(single, layers):
        yield f"{module}.weight"
        if not module.endswith("_embeddings"):
            yield f"{module}.bias"


def current_name(name: str) -> str:
    """Return the current form of an old name: gamma, beta (TensorFlow), or without ``bert.``."""
    if name.startswith(("embeddings.", "encoder.", "pooler.")):
        name = f"bert.{name}"
    name = name.replace("LayerNorm.gamma", "LayerNorm.weight")
    return name.replace("LayerNorm.beta", "LayerNorm.bias")
