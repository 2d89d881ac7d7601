"""BERT for extractive question answering, written from scratch in PyTorch.

The core, in reading order:

    model/packing         batches without padding: one row of tokens and the length of each window
    model/bert            BERT: embeddings, layers, the vectors S and E, the loss
    data/squad            a question, its context, its answers
    data/windows          long contexts -> overlapping windows of tokens (sliding window, stride)
    data/labels           answers -> start and end tokens
    data/batching         windows -> batches
    answering/decoding    logits -> best spans
    answering/answers     spans -> answers
    training/optim        AdamW and learning rate schedules
    training/loop         the training loop

Public names, which are stable; everything else may change in any version:

    bertqa                       QuestionAnswerer, pipeline, AnswerBatch, Example, UserError
    bertqa                       __version__
    bertqa.settings              WindowSettings, DecodingSettings, Overrides
    bertqa.settings              TrainingSettings, DataSettings
    bertqa.model.bert            BertForQuestionAnswering, BertOutput
    bertqa.model.config          BertConfig
    bertqa.model.checkpoint      load_checkpoint, save_model
    bertqa.model.packing         PackedBatch
    bertqa.data.readers          read_examples
    bertqa.data.tokenization     BertTokenizer
    bertqa.data.windows          make_windows
    bertqa.data.batching         collate
    bertqa.answering.answerer    make_examples
    bertqa.training.job          train
    bertqa.explain.explainer     explain
    bertqa.explain.hooks         record, intervene, patch_from, logit_lens
    bertqa.explain.page          page
    bertqa.audit.findings        audit
"""

from importlib import import_module

from bertqa import process as process  # not lazy: records the pid before any fork

TYPE_CHECKING = False  # not imported from typing, which would delay the handling of Ctrl-C
if TYPE_CHECKING:
    from bertqa.answering.answerer import QuestionAnswerer  # late: for type checkers and editors
    from bertqa.answering.batch import AnswerBatch  # late: for type checkers and editors
    from bertqa.answering.pipeline import pipeline  # late: for type checkers and editors
    from bertqa.data.squad import Example  # late: for type checkers and editors
    from bertqa.errors import UserError  # late: for type checkers and editors

__version__ = "0.1.0"

# Imported on first use, so that --help does not spend seconds on importing torch.
_LAZY = {
    "AnswerBatch": "bertqa.answering.batch",
    "Example": "bertqa.data.squad",
    "QuestionAnswerer": "bertqa.answering.answerer",
    "UserError": "bertqa.errors",
    "pipeline": "bertqa.answering.pipeline",
}

__all__ = ["AnswerBatch", "Example", "QuestionAnswerer", "UserError", "__version__", "pipeline"]


def __getattr__(name: str) -> object:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(import_module(_LAZY[name]), name)
    globals()[name] = value  # __getattr__ is not called again for this name
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
