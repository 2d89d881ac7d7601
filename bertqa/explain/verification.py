"""A checkpoint folder opened by this package and by transformers, and the two compared."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bertqa.answering.answerer import check_window_fits, usual_windows
from bertqa.answering.decoding_file import read_decoding_file
from bertqa.data.squad import Example
from bertqa.data.windows import make_windows
from bertqa.errors import UserError
from bertqa.explain.comparison import Sides, compare
from bertqa.explain.differences import Differences
from bertqa.model.bert import BertForQuestionAnswering
from bertqa.model.hub import find_folder
from bertqa.settings import Overrides
from bertqa.training.checkpoints import load_for_training

_TEXTS = (
    "The lighthouse of Skarvholm was lit for the first time on 3 October 1871. Its lamp burned "
    "rapeseed oil, and two keepers took turns to trim the wick every four hours. On clear nights "
    "the light was seen from boats 19 miles away; in fog a bell was rung by hand instead.",
    "In 1904 the oil lamp gave way to a mantle lamp that burned paraffin, four times as bright. "
    "The engineer Ingeborg Løvås, who planned the change, also moved the bell to a hut of its own "
    "and had it driven by a weight, so that nobody had to stand outside through the night. The "
    "works cost 2,350 kroner and were done within eleven days.",
    "A cable from the mainland brought electricity in the summer of 1938. It lay on the sea bed "
    "for 5.2 kilometres and was broken by an anchor in its second winter, so the keepers went back "
    "to paraffin until May. Since then a diesel engine has stood in the cellar, and it is started "
    "on the first Monday of each month to see that it still runs.",
    "The last keeper, Torvald Brekke, left the island in 1986 with his wife, their goat and about "
    "three hundred books. The lamp has been switched on and off by a sensor ever since. An "
    "association of 140 members now looks after the houses; it paints them each spring, lends "
    "the keeper's room to visitors, and keeps a diary of the birds that fly against the glass.",
    "Visitors come by boat from Eidvik, a crossing of forty minutes, and only while the wind is "
    "below seven metres per second. They are asked to carry drinking water, since the cistern "
    "holds no more than what the roof collects. Seals rest on the skerries to the north until "
    "June 🦭, and nobody may land there while they have their young.",
    "The lens is the pride of the place. It was cut in Paris, weighs 410 kilograms and floats in a "
    "bath of mercury, so that a child could turn it with one hand. It has been taken down twice: "
    "in 1940, when it was buried in a potato field, and in 1999, when one of its 36 prisms was "
    "replaced by a glass-blower from Bergen who worked from a drawing of the year it was made.",
)
_ASKED = (
    ("When was the lighthouse lit for the first time?", 0),
    ("Who planned the change to a mantle lamp?", 1),
    ("Why did the keepers go back to paraffin?", 2),
    ("How many members does the association have?", 3),
)
# The second question is about all texts in a row, which are longer than a window.
SAMPLES = (
    Example("short", "What did the lamp burn?", "Its lamp burned rapeseed oil."),
    Example("long", "Where was the lens buried in 1940?", "\n".join(_TEXTS)),
    *(Example(f"text {i + 1}", question, _TEXTS[i]) for question, i in _ASKED),
)


def compare_checkpoint(
    model: str,
    examples: Sequence[Example],
    *,
    overrides: Overrides,
    bound: float,
    revision: str | None = None,
    allow_bin: bool = False,
    questions_from: str = "",
) -> tuple[list[str], Differences]:
    """Load a checkpoint on both sides and compare every number on the way.

    Args:
        model: folder, name under weights/, or name on the hub; one without S and E gets random
            ones, the same for both sides.
        overrides: windows other than those that the model was trained with.
        revision, allow_bin: see ``find_folder``.
        bound: largest relative difference of a forward pass.
        questions_from: where the questions come from, for the facts.

    Returns:
        What was compared, a line for each fact, and the differences.

    Raises:
        UserError: transformers is not installed, or one side does not open the checkpoint.
    """
    library = their_library()
    folder = find_folder(model, revision=revision, allow_bin=allow_bin)
    ours, tokenizer, report = load_for_training(str(folder), allow_bin=allow_bin)
    stored = read_decoding_file(folder)[0] or usual_windows(ours.config)
    settings = overrides.windows(stored)
    check_window_fits(ours.config, settings)
    windows = make_windows(examples, tokenizer, settings)
    theirs, their_tokenizer = load_theirs(library, folder)
    if report.initialised:
        copy_head(ours, theirs)
    sides = Sides(ours, tokenizer, theirs, their_tokenizer)
    found = compare(sides, examples, windows, settings, bound)
    lengths = windows.lengths.tolist()
    facts = [
        f"{report.source}: {len(report.loaded)} tensors; torch {torch.__version__}, "
        f"transformers {library.__version__}, float32 on the CPU",
        f"S and E: {'drawn, the checkpoint has none' if report.initialised else 'its own'}",
        f"asked: {len(examples)} questions, {len(lengths)} windows of {min(lengths)} to "
        f"{max(lengths)} tokens, from {questions_from}",
    ]
    return facts, found


# --- the other side ------------------------------------------------------------------------------


def their_library() -> Any:
    """transformers, which is no dependency of this package; quiet from here on.

    Raises:
        UserError: it is not installed.
    """
    try:
        import transformers  # late: optional, and takes seconds
    except ImportError as error:
        raise UserError(
            f"transformers, which the model is compared with, cannot be imported ({error}): "
            'add it with pip install "transformers>=5.0"'
        ) from error
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    return transformers


def load_theirs(library: Any, folder: Path) -> tuple[Any, Any]:
    """Their model and their tokenizer of a checkpoint folder.

    Raises:
        UserError: transformers does not open what this package opened.
    """
    try:
        model = library.AutoModelForQuestionAnswering.from_pretrained(
            folder, attn_implementation="eager", dtype=torch.float32, num_labels=2,
            local_files_only=True,
        )  # fmt: skip
        tokenizer = library.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # of many kinds
        raise UserError(
            f"transformers cannot open {folder} ({type(error).__name__}: {error}), so there is "
            "nothing to compare with: complete config.json, weights and tokenizer"
        ) from error
    return model.eval(), tokenizer


def copy_head(ours: BertForQuestionAnswering, theirs: nn.Module) -> None:
    """Give their model our S and E."""
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            if name.startswith("qa_outputs."):
                parameter.copy_(getattr(ours.head, name.removeprefix("qa_outputs.")))
