"""This BERT beside transformers' on any checkpoint: each number on the way, and the answers.

bertqa verify MODEL

Both sides read the folder by their own code, in float32 on the CPU, without dropout. Theirs takes
the windows one by one (attn_implementation="eager"), ours as streams of several, with both of its
implementations of attention: the reference in bert.py and the fused one in kernels.py. A row of the
table is one quantity at one layer, counted from 0 as in the names of checkpoints: the largest
absolute difference, and the largest as a share of the largest magnitude in the tensor, which its
bound is for. Gradients and steps are measured parameter by parameter, and the worst is named.

The bound is 5e-5, some hundred times the rounding of one float32 operation (6e-8). Numbers that
were summed in another order are up to 3e-6 apart after 6 layers, and farther after 24; a wrong
constant, a transposed axis or the other GELU is 2e-4 and more. Gradients go through twice as many
layers and sum over all tokens, so for them, and for the step, it is ten times that. Token ids,
weights and answers must be the same; of answers, two whose scores are equal within the bound count
as such.

The labels of the loss are drawn at random. The right ones would leave a model that knows the
answers with gradients of nothing but rounding.

Exit code 0: all within their bounds; 1: a row FAILED; 2: bad input.
"""

import argparse
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bertqa.answering.answerer import check_window_fits, usual_windows
from bertqa.answering.decoding_file import read_decoding_file
from bertqa.commands.flags import Parser, add_bin_flag, add_window_flags, overrides
from bertqa.data.readers import read_examples
from bertqa.data.squad import Example, check_examples
from bertqa.data.windows import make_windows
from bertqa.errors import UserError
from bertqa.explain.comparison import Sides, compare
from bertqa.explain.differences import Differences
from bertqa.files import write_text
from bertqa.model.bert import BertForQuestionAnswering
from bertqa.model.names import find_folder
from bertqa.runtime import limit_onednn_cache
from bertqa.training.checkpoints import load_for_training

BOUND = 5e-5

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


def parse_flags(arguments: Sequence[str], prog: str | None = None) -> argparse.Namespace:
    """Parse the flags of ``bertqa verify``."""
    # fmt: off
    parser = Parser(__doc__ or "", prog)
    parser.group("model")("model", metavar="MODEL",
        help="checkpoint folder, name under weights/, or name on the hub; one without S and E gets "
        "random ones, the same for both sides")
    add_bin_flag(parser)
    add_window_flags(parser)
    add = parser.group("data")
    add("--input", type=Path, metavar="FILE",
        help="questions to compare on (default: six that come with this command, one of them about "
        "a text longer than a window)")
    add("--max_samples", type=int, default=32, metavar="N",
        help="the first of them (default: %(default)s)")
    add = parser.group("output")
    add("--bound", type=float, default=BOUND, metavar="X",
        help="largest relative difference of a forward pass; ten times that of gradients and of "
        "the step (default: %(default)s)")
    add("--markdown", type=Path, metavar="FILE", help="write the report in Markdown")
    # fmt: on
    return parser.parse(arguments)


def main(flags: argparse.Namespace) -> int:
    """Load both, compare, tell; the exit code."""
    check_flags(flags)
    examples = read_questions(flags)
    library = their_library()
    folder = find_folder(flags.model, allow_bin=flags.allow_bin)
    limit_onednn_cache()
    ours, tokenizer, report = load_for_training(str(folder), allow_bin=flags.allow_bin)
    stored = read_decoding_file(folder)[0] or usual_windows(ours.config)
    settings = overrides(flags).windows(stored)
    check_window_fits(ours.config, settings)
    windows = make_windows(examples, tokenizer, settings)
    theirs, their_tokenizer = load_theirs(library, folder)
    if report.initialised:
        copy_head(ours, theirs)
    sides = Sides(ours, tokenizer, theirs, their_tokenizer)
    found = compare(sides, examples, windows, settings, flags.bound)
    lengths = windows.lengths.tolist()
    heading = [
        f"{report.source}: {len(report.loaded)} tensors; torch {torch.__version__}, "
        f"transformers {library.__version__}, float32 on the CPU",
        f"S and E: {'drawn, the checkpoint has none' if report.initialised else 'its own'}",
        f"asked: {len(examples)} questions, {len(lengths)} windows of {min(lengths)} to "
        f"{max(lengths)} tokens, from {flags.input or 'this command'}",
    ]
    print("\n".join([*heading, "", found.as_text(), "", verdict(found)]))
    if flags.markdown:
        title = "# Beside transformers"
        parts = [title, "\n".join(f"- {line}" for line in heading), found.as_markdown()]
        write_text(flags.markdown, "\n\n".join([*parts, f"**{verdict(found)}**"]) + "\n")
    return 1 if found.failed else 0


def check_flags(flags: argparse.Namespace) -> None:
    """Refuse before the work what would be refused after it."""
    if not (math.isfinite(flags.bound) and flags.bound > 0):
        raise UserError(
            f"--bound {flags.bound} is no bound: give a number above 0, such as {BOUND}"
        )
    if flags.max_samples < 1:
        raise UserError(f"--max_samples {flags.max_samples} leaves no question: give 1 or more")
    if flags.markdown and flags.markdown.exists():
        raise UserError(f"--markdown {flags.markdown} is there already: name a new file")
    overrides(flags).check()


def read_questions(flags: argparse.Namespace) -> list[Example]:
    """The questions of --input, or those that come with this module."""
    if not flags.input:
        return list(SAMPLES)[: flags.max_samples]
    examples = read_examples(flags.input)
    check_examples(examples, str(flags.input))
    return examples[: flags.max_samples]


def verdict(found: Differences) -> str:
    """One sentence."""
    if not found.failed:
        return f"equal: all {len(found.rows)} rows are within their bounds"
    names = [f"{row.quantity} {row.layer}".strip() for row in found.failed]
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"NOT equal: {len(names)} of {len(found.rows)} rows FAILED: {', '.join(names[:3])}{more}"


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
