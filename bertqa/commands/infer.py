"""Answer questions about texts with a fine-tuned BERT.

python infer.py                                                  four questions, then your own
python infer.py --question "Who?" --context "Ada did."           one question
python infer.py --question "Who?" --context_file text.txt --top_k 5
python infer.py --context_file text.txt                          many, asked in the terminal
python infer.py --question "Who?" --context "Ada did." --explain answer.html    why this answer
python infer.py --input dev-v1.1.json --output_dir answers       a whole file, with EM and F1
"""

import argparse
import json
import os
import shutil
import sys
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from bertqa.answering.answerer import QuestionAnswerer, as_pipeline, asked
from bertqa.answering.answers import Prediction
from bertqa.answering.evaluation import PREDICTION_FILES, score, write_predictions
from bertqa.answering.json_lines import (
    LINE_FILES,
    PREDICTIONS,
    LineOutput,
    answer_lines,
    score_lines,
)
from bertqa.commands.flags import (
    Parser,
    add_decoding_flags,
    add_model_flags,
    add_window_flags,
    decoding_settings,
    load_answerer,
    window_settings,
)
from bertqa.data.readers import is_json_lines, iter_json_lines, read_examples
from bertqa.data.squad import Example, check_examples, check_version
from bertqa.data.text import other_offsets
from bertqa.errors import UserError
from bertqa.explain.explainer import explain, passes
from bertqa.explain.page import page
from bertqa.explain.terminal import render
from bertqa.files import said_plainly, write_json, write_text
from bertqa.model.checkpoint import load_checkpoint
from bertqa.model.folders import SHIPPED_MODEL
from bertqa.model.names import find_folder
from bertqa.runtime import limit_onednn_cache
from bertqa.settings import DecodingSettings

METRICS = "metrics.json"
LARGEST_CONTEXT = 2**26  # bytes of a text that is read; a long novel has a fiftieth of that
TERMINAL = Path("-")  # where an explanation goes that is given no file

DEMO_CONTEXT = (
    "🤗 Transformers, once called pytorch-transformers, provides general-purpose architectures "
    "(BERT, GPT-2, RoBERTa and others) for understanding and generating language. It comes with "
    "32+ pretrained models in many languages. It offers close interoperability between TensorFlow "
    "2.0 and PyTorch."
)
DEMO_QUESTIONS = (
    "How many pretrained models are available in 🤗 Transformers?",
    "What does 🤗 Transformers provide?",
    "🤗 Transformers provides interoperability between which frameworks?",
)
DEMO_HISTORY = (
    "George Washington, who had led the army in the war of independence, was the first president "
    "of the United States, from 1789 to 1797. His vice president was John Adams, who became "
    "president after him. Thomas Jefferson followed in 1801."
)
DEMO_HISTORY_QUESTION = "Who was the first president of the United States?"


def parse_flags(arguments: Sequence[str]) -> argparse.Namespace:
    """The flags; their names are run_qa's where it has them."""
    # fmt: off
    parser = Parser(__doc__ or "")
    add_model_flags(parser, default=SHIPPED_MODEL, answers_only=True)
    add = parser.add_argument
    add("--question", metavar="TEXT", help="what to ask")
    add("--context", metavar="TEXT", help="where the answer stands")
    add("--context_file", type=Path, metavar="FILE", help="the same, from a UTF-8 text file")
    add("--top_k", type=int, default=1, metavar="N", help="answers to show (default: %(default)s)")
    add("--json", action="store_true", help="print JSON")
    add("--explain", type=Path, nargs="?", const=TERMINAL, metavar="FILE",
        help="with --question: write a page, such as answer.html, of what the answer was made of; "
        "without a file print that in short")
    add("--input", type=Path, metavar="FILE",
        help="answer all questions of a file: SQuAD JSON, JSON lines, CSV, parquet")
    add("--output_dir", type=Path, metavar="DIR",
        help="with --input: where the answers go; of JSON lines predictions.jsonl, else "
        "run_qa's predictions.json, nbest_predictions.json and, with "
        "--version_2_with_negative, null_odds.json; with gold answers also metrics.json")
    add("--overwrite_output_dir", action="store_true",
        help="replace predictions that are in --output_dir already, or the page of --explain")
    add("--resume", action="store_true",
        help="with --input of JSON lines: go on after the last line that is answered")
    add("--skip_bad", action="store_true",
        help="with --input of JSON lines: put a line that cannot be answered into rejects.jsonl "
        "and go on (default: stop there)")
    add("--all_offsets", action="store_true",
        help="in JSON: places also in UTF-16 units and in UTF-8 bytes")
    add("--demo", action="store_true",
        help="answer four questions about two short texts, and ask for no others")
    add_window_flags(parser)
    add_decoding_flags(parser, answers_only=True)
    # fmt: on
    return parser.parse(arguments)


def main(flags: argparse.Namespace) -> None:
    """Choose among the ways to ask."""
    has_terminal = sys.stdin.isatty()
    check_flags(flags, has_terminal)
    if flags.input:
        answer_file(flags)
    elif flags.explain is not None:
        explain_one(flags)
    elif flags.question is not None:
        context = read_context(flags)
        answer_one(load_answerer(flags), flags, flags.question, context)
    else:
        qa = load_answerer(flags)
        has_context = flags.context is not None or flags.context_file
        if not has_context:
            demonstrate(qa, flags)
        if has_terminal and not flags.demo:
            converse(qa, flags)


def check_flags(flags: argparse.Namespace, has_terminal: bool) -> None:
    """Refuse flags that contradict each other or ask for nothing."""
    ways = {"--input": flags.input, "--question": flags.question, "--demo": flags.demo or None}
    given = [flag for flag, value in ways.items() if value is not None]
    if len(given) > 1:
        raise UserError(f"{given[0]} and {given[1]} exclude each other: pass one")
    if flags.context is not None and flags.context_file:
        raise UserError("--context and --context_file exclude each other: pass one")
    has_context = flags.context is not None or flags.context_file
    if flags.question is not None and not has_context:
        raise UserError("--question needs a text to look in: add --context or --context_file")
    if has_context and given and given[0] != "--question":
        raise UserError(f"--context goes with --question, not with {given[0]}: drop one")
    if has_context and not given and not has_terminal:
        raise UserError("--context goes with --question, or with a terminal to ask in: add one")
    if bool(flags.input) != bool(flags.output_dir):
        raise UserError("--input and --output_dir go together: pass both or neither")
    for name in ("resume", "skip_bad"):
        if getattr(flags, name) and not flags.input:
            raise UserError(f"--{name} goes with --input and JSON lines: drop it")
    if flags.all_offsets and not flags.input and not flags.json:
        raise UserError("--all_offsets goes with --json, or with --input and JSON lines: add one")
    if flags.top_k < 1:
        raise UserError(f"--top_k {flags.top_k} asks for no answer: give 1 or more")
    if flags.explain is not None:
        check_explain_flags(flags)
    # Before a model is fetched, of which nobody knows yet whether it says "no answer".
    window_settings(flags)
    decoding_settings(flags, DecodingSettings(version_2_with_negative=True))


def check_explain_flags(flags: argparse.Namespace) -> None:
    """Refuse what cannot be explained, and a page that has no place, before the work."""
    if flags.question is None:
        raise UserError("--explain explains one answer: add --question and a text, or drop it")
    file = flags.explain
    if file == TERMINAL:
        if flags.json:
            raise UserError(
                "--explain without a file prints text, and --json prints JSON: name a file, such "
                "as answer.html, or drop one"
            )
        return
    if file.is_dir():
        raise UserError(f"--explain {file} is a folder: name a file in it, such as answer.html")
    if not file.parent.is_dir():
        raise UserError(
            f"--explain {file}: there is no folder {file.parent}: name another, or add it"
        )
    if file.exists() and not flags.overwrite_output_dir:
        raise UserError(
            f"--explain {file} is there already: name another file, or pass --overwrite_output_dir"
        )


def read_context(flags: argparse.Namespace) -> str:
    """The text of --context or --context_file."""
    if flags.context_file is None:
        return str(flags.context)
    try:
        with flags.context_file.open("rb") as file:
            content = file.read(LARGEST_CONTEXT + 1)  # a device such as /dev/zero has no end
        if len(content) > LARGEST_CONTEXT:
            raise UserError(
                f"--context_file {flags.context_file} holds more than {LARGEST_CONTEXT >> 20} MiB: "
                "name a text, or cut it into several"
            )
        text = content.decode("utf-8")  # line ends stay as they are: offsets count them
        # A byte order mark is no text; where places are told in bytes as well, it counts.
        return text if flags.all_offsets else text.removeprefix("\ufeff")
    except OSError as error:
        raise UserError(
            f"--context_file {flags.context_file} cannot be read: {error.strerror}; check the path"
        ) from error
    except UnicodeDecodeError as error:
        raise UserError(f"--context_file {flags.context_file} is not UTF-8: convert it") from error


def answer_one(
    qa: QuestionAnswerer,
    flags: argparse.Namespace,
    question: str,
    context: str,
    top_k: int | None = None,
) -> None:
    """Ask one question and print its answers."""
    print_found(flags, context, qa(question, context, top_k=top_k or flags.top_k))


def print_found(flags: argparse.Namespace, context: str, found: Any) -> None:
    """One answer, or a list of them, as lines or as JSON."""
    answers = found if isinstance(found, list) else [found]
    if flags.all_offsets:
        for answer in answers:
            answer |= other_offsets(context, answer["start"], answer["end"])
    if flags.json:
        print(json.dumps(found, ensure_ascii=False))
    else:
        print_answers(answers)


def print_answers(answers: Sequence[dict[str, Any]]) -> None:
    """A line for each answer: probability, place, text."""
    for answer in answers:
        place = f"{answer['start']}-{answer['end']}"
        text = " ".join(answer["answer"].split()) or "(no answer)"
        print(f"{answer['score']:8.4f}  {place:>11}  {text}")


def explain_one(flags: argparse.Namespace) -> None:
    """Ask one question, print its answers, and show what the answer was made of."""
    context = read_context(flags)
    qa = load_answerer(flags)
    prediction = predict_one(qa, flags, context)
    if flags.explain != TERMINAL:
        found = as_pipeline(prediction, flags.top_k)
        print_found(flags, context, found)
    windows, decoding, tokenizer, runtime = qa.windows, qa.decoding, qa.tokenizer, qa.runtime
    del qa  # its layers are packed and give no gradients; there is to be room for the others
    folder = find_folder(flags.model, allow_bin=flags.allow_bin)
    model = load_checkpoint(folder, allow_bin=flags.allow_bin)[0].to(runtime.device)
    with tqdm(total=passes(model), unit="pass", disable=None, desc="explaining") as bar:
        explanation = explain(
            model, tokenizer, flags.question, context, windows=windows, decoding=decoding,
            prediction=prediction, model_name=folder.resolve().name,
            answered_in=runtime.precision, progress=bar.update,
        )  # fmt: skip
    if flags.explain == TERMINAL:
        width = shutil.get_terminal_size().columns
        print(render(explanation, width, flags.top_k, colour=has_colours()), end="")
    else:
        write_text(flags.explain, page(explanation))
        print(f"wrote {flags.explain}", file=sys.stderr)


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


def demonstrate(qa: QuestionAnswerer, flags: argparse.Namespace) -> None:
    """Four questions, the last with its n-best list."""
    if not flags.json:
        print(f"{DEMO_CONTEXT}\n")
    for question in DEMO_QUESTIONS:
        if not flags.json:
            print(question)
        answer_one(qa, flags, question, DEMO_CONTEXT)
    if not flags.json:
        print(f"\n{DEMO_HISTORY}\n\n{DEMO_HISTORY_QUESTION}")
    answer_one(qa, flags, DEMO_HISTORY_QUESTION, DEMO_HISTORY, max(flags.top_k, 5))


def converse(qa: QuestionAnswerer, flags: argparse.Namespace) -> None:
    """Ask for a text, then answer questions about it until the end of input."""
    has_context = flags.context is not None or flags.context_file
    context = read_context(flags) if has_context else ask_context()
    while question := ask("question> "):
        try:
            if question.strip():
                answer_one(qa, flags, question.strip(), context)
        except UserError as error:  # a question too long: the next may do
            print(f"error: {error}", file=sys.stderr)


def ask_context() -> str:
    """Lines up to an empty one."""
    print("Paste a text and end it with an empty line.")
    lines: list[str] = []
    while line := ask("text> "):
        if line.strip():
            lines.append(line)
        elif lines:
            break
    return "".join(lines).strip("\n")


def ask(prompt: str) -> str:
    """One line with its end, so that "" is the end of input."""
    try:
        return input(prompt) + "\n"
    except EOFError:
        print()
        return ""


def answer_file(flags: argparse.Namespace) -> None:
    """Answer all questions of --input and write the files into --output_dir."""
    in_lines = is_json_lines(flags.input)
    check_file_flags(flags, in_lines)
    limit_onednn_cache()
    if in_lines:
        answer_json_lines(flags)
    else:
        answer_whole_file(flags)


def check_file_flags(flags: argparse.Namespace, in_lines: bool) -> None:
    """Refuse what would overwrite, and flags that are for the other kind of file."""
    # All that would be replaced or removed: the folder may be a model's, with figures of its own.
    names = LINE_FILES if in_lines else PREDICTION_FILES
    existing = next((f for n in (*names, METRICS) if (f := flags.output_dir / n).exists()), None)
    if existing and not flags.overwrite_output_dir and not flags.resume:
        going_on = ", --resume to go on" if in_lines and existing.name in LINE_FILES else ""
        raise UserError(
            f"{existing} is there already: name another --output_dir{going_on}, or pass "
            "--overwrite_output_dir"
        )
    if flags.resume and flags.overwrite_output_dir:
        raise UserError("--resume and --overwrite_output_dir exclude each other: pass one")
    if in_lines:
        return
    for name in ("resume", "skip_bad", "all_offsets"):
        if getattr(flags, name):
            raise UserError(
                f"--{name} is for JSON lines, and --input {flags.input} is read whole: drop the "
                "flag, or write the questions as .jsonl"
            )
    if flags.top_k != 1:
        raise UserError(
            f"--top_k {flags.top_k} is for one question and for JSON lines: pass --n_best_size"
        )


def answer_json_lines(flags: argparse.Namespace) -> None:
    """A line of output for a line of input, however many there are."""
    first = next(iter_json_lines(flags.input), None)  # before the model is read
    if first and first.fault and not (flags.skip_bad or flags.resume):
        raise UserError(f"{first.fault}; or pass --skip_bad")
    qa = load_answerer(flags)
    qa.decoding = replace(qa.decoding, n_best_size=max(flags.top_k, qa.decoding.n_best_size))
    with said_plainly(flags.output_dir, "made"):
        flags.output_dir.mkdir(parents=True, exist_ok=True)
    output = LineOutput(flags.top_k, flags.all_offsets, flags.skip_bad)
    with tqdm(unit="line", disable=None) as bar:
        counts = answer_lines(
            qa, flags.input, flags.output_dir, output, model=flags.model, resume=flags.resume,
            progress=bar.update,
        )  # fmt: skip
    v2 = qa.decoding.version_2_with_negative
    keep_metrics(flags, score_lines(flags.input, flags.output_dir, v2=v2))
    print(
        f"{counts.answered} lines answered in {flags.output_dir / PREDICTIONS}, "
        f"{counts.rejected} rejected",
        file=sys.stderr,
    )


def answer_whole_file(flags: argparse.Namespace) -> None:
    """run_qa's files."""
    examples = read_examples(flags.input)
    check_examples(examples, str(flags.input))
    has_gold = all(example.answers is not None for example in examples)
    qa = load_answerer(flags)
    if has_gold:
        check_version(examples, str(flags.input), qa.decoding.version_2_with_negative)
    with said_plainly(flags.output_dir, "made"):  # before the work that is to go there
        flags.output_dir.mkdir(parents=True, exist_ok=True)
    predictions, files = write_predictions(flags.output_dir, predict_all(qa, examples), qa.decoding)
    files += keep_metrics(flags, score(examples, predictions, qa.decoding) if has_gold else None)
    print(f"wrote {', '.join(str(file) for file in files)}", file=sys.stderr)


def keep_metrics(flags: argparse.Namespace, metrics: dict[str, float] | None) -> list[Path]:
    """Write and print the figures, or drop those of other answers; the file, if there is one."""
    path = flags.output_dir / METRICS
    if metrics is None:
        with said_plainly(path, "removed"):
            path.unlink(missing_ok=True)
        return []
    write_json(path, metrics)
    print(json.dumps(metrics, indent=None if flags.json else 2))
    return [path]


def predict_all(qa: QuestionAnswerer, examples: Sequence[Example]) -> Iterable[Prediction]:
    """The answers to all examples; where stderr is a terminal, with a progress bar."""
    return tqdm(qa.answer(examples), total=len(examples), unit="question", disable=None)
