"""The work of ``bertqa explain``: answer, explain, and show it as a page or in the terminal."""

import argparse
import os
import shutil
import sys
from dataclasses import replace
from pathlib import Path

from tqdm import tqdm

from bertqa.answering.answerer import QuestionAnswerer, as_pipeline, asked
from bertqa.answering.answers import Prediction
from bertqa.commands.infer_questions import print_found
from bertqa.commands.question_flags import load_answerer
from bertqa.explain.explainer import explain, passes
from bertqa.explain.page import page
from bertqa.explain.terminal import render
from bertqa.files import write_text
from bertqa.model.checkpoint import load_checkpoint
from bertqa.model.hub import commit_of


def explain_one(flags: argparse.Namespace, context: str, file: Path | None) -> None:
    """Answer --question and explain the answer.

    Args:
        file: for a page of it, besides the printed answers; None prints the explanation instead.
    """
    qa = load_answerer(flags)
    prediction = predict_one(qa, flags, context)
    if file is not None:
        print_found(flags, context, as_pipeline(prediction, flags.top_k))
    windows, decoding, tokenizer, runtime = qa.windows, qa.decoding, qa.tokenizer, qa.runtime
    folder = qa.folder
    del qa  # its layers are prepacked and give no gradients; there is to be room for the others
    assert folder is not None  # it was loaded from one
    name = flags.model if commit_of(folder) else folder.resolve().name
    model = load_checkpoint(folder, allow_bin=flags.allow_bin)[0].to(runtime.device)
    with tqdm(total=passes(model), unit="pass", disable=None, desc="explaining") as bar:
        explanation = explain(
            model, tokenizer, flags.question, context, windows=windows, decoding=decoding,
            prediction=prediction, model_name=name,
            answered_in=runtime.precision, progress=bar.update,
        )  # fmt: skip
    if file is None:
        width = shutil.get_terminal_size().columns
        print(render(explanation, width, flags.top_k, colour=has_colours()), end="")
    else:
        write_text(file, page(explanation))
        print(f"wrote {file}", file=sys.stderr)


def predict_one(qa: QuestionAnswerer, flags: argparse.Namespace, context: str) -> Prediction:
    """The answer to --question with all its runners-up; as many are kept as --top_k asks for."""
    n_best = max(flags.top_k, qa.decoding.n_best_size)
    qa.decoding = replace(qa.decoding, n_best_size=n_best)
    (prediction,) = qa.answer(asked(flags.question, context))
    return prediction


def has_colours() -> bool:
    """Whether what is printed goes to a terminal that takes colours (see no-color.org)."""
    plain = os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb"
    return sys.stdout.isatty() and not plain
