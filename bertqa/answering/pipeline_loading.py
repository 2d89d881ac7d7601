"""Loading of the arguments of ``pipeline``: a folder, a name, or objects of transformers.

transformers is not imported; its models and tokenizers are recognized by their methods.
"""

import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from bertqa.answering.answerer import QuestionAnswerer, check_vocabulary
from bertqa.answering.pipeline_settings import LoadSettings
from bertqa.data.tokenization import BertTokenizer
from bertqa.errors import UserError, shown
from bertqa.model.bert import BertForQuestionAnswering
from bertqa.model.checkpoint import convert_model
from bertqa.model.hub import find_folder
from bertqa.runtime import local_runtime

# The answerer, and a function that loads its model again, as the answerer's own is prepacked.
Loaded = tuple[QuestionAnswerer, Callable[[], BertForQuestionAnswering]]


def load_name(
    name: str,
    tokenizer: Any,
    loading: LoadSettings,
    revision: str | None,
    allow_bin: bool,
    token: str | bool | None,
) -> Loaded:
    """Load a checkpoint by path or name."""
    answerer = QuestionAnswerer.from_pretrained(
        name,
        device=loading.device,
        precision=loading.precision,
        revision=revision,
        allow_bin=allow_bin,
        token=token,
    )
    if tokenizer is not None and str(tokenizer) != name:
        answerer.tokenizer = _load_tokenizer(tokenizer, revision, token)
        check_vocabulary(answerer.tokenizer, answerer.model.config, f"the model {name}")
    return answerer, answerer.stored_model


def load_object(
    model: Any,
    tokenizer: Any,
    loading: LoadSettings,
    revision: str | None,
    token: str | bool | None,
) -> Loaded:
    """Convert a model of transformers."""
    if tokenizer is None:
        raise UserError(f"a {type(model).__name__} requires a tokenizer: pass tokenizer=")

    own = convert_model(model)
    runtime = local_runtime(loading.device, loading.precision)
    read = _load_tokenizer(tokenizer, revision, token)
    return QuestionAnswerer(own, read, runtime=runtime), partial(convert_model, model)


def _load_tokenizer(
    tokenizer: Any, revision: str | None, token: str | bool | None
) -> BertTokenizer:
    """Load a tokenizer from a folder, a name, or a tokenizer of transformers."""
    if isinstance(tokenizer, BertTokenizer):
        return tokenizer
    if isinstance(tokenizer, str | Path):
        return BertTokenizer.load(find_folder(str(tokenizer), revision=revision, token=token))
    if hasattr(tokenizer, "save_pretrained"):
        with tempfile.TemporaryDirectory(prefix="tokenizer-") as folder:
            tokenizer.save_pretrained(folder)
            return BertTokenizer.load(Path(folder))
    raise UserError(
        f"tokenizer must be a folder, a name or a tokenizer of transformers, got {shown(tokenizer)}"
    )
