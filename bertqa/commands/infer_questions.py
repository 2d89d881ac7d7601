"""``bertqa infer`` for single questions: one, the demo's, or questions from the terminal."""

import argparse
import codecs
import json
import sys
from collections.abc import Sequence
from typing import Any

from bertqa.answering.answerer import QuestionAnswerer
from bertqa.commands.infer_output import say
from bertqa.commands.question_flags import load_answerer
from bertqa.data.text import on_one_line, other_offsets
from bertqa.errors import UserError

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


def answer_question(flags: argparse.Namespace, context: str) -> None:
    """Answer --question."""
    answer_one(load_answerer(flags), flags, flags.question, context)


def converse(flags: argparse.Namespace, context: str | None, in_terminal: bool) -> None:
    """Show the demo if no text is given, then answer questions from the terminal."""
    qa = load_answerer(flags)
    if context is None:
        demonstrate(qa, flags)
    if in_terminal:
        answer_many(qa, flags, ask_context() if context is None else context)
    elif not flags.demo:
        say("stdin is not a terminal and was not read: pass --question and --context, or --input")


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
    """Print one answer, or a list of them, as lines or as JSON."""
    answers = found if isinstance(found, list) else [found]
    if flags.all_offsets:
        for answer in answers:
            answer |= other_offsets(context, answer["start"], answer["end"])
    if flags.json:
        print_json(found)
    else:
        print_answers(answers)


def print_json(found: Any) -> None:
    """Print JSON, with escapes where the terminal's encoding is not UTF-8."""
    is_utf8 = codecs.lookup(sys.stdout.encoding or "ascii").name == "utf-8"
    print(json.dumps(found, ensure_ascii=not is_utf8))


def print_answers(answers: Sequence[dict[str, Any]]) -> None:
    """Print a line for each answer: probability, offsets, text."""
    for answer in answers:
        offsets = f"{answer['start']}-{answer['end']}"
        text = on_one_line(answer["answer"]) or "(no answer)"
        print(f"{answer['score']:8.4f}  {offsets:>11}  {text}")


def demonstrate(qa: QuestionAnswerer, flags: argparse.Namespace) -> None:
    """Answer four questions, the last with its n-best list."""
    if not flags.json:
        print(f"{DEMO_CONTEXT}\n")
    for question in DEMO_QUESTIONS:
        if not flags.json:
            print(question)
        answer_one(qa, flags, question, DEMO_CONTEXT)
    if not flags.json:
        print(f"\n{DEMO_HISTORY}\n\n{DEMO_HISTORY_QUESTION}")
    answer_one(qa, flags, DEMO_HISTORY_QUESTION, DEMO_HISTORY, max(flags.top_k, 5))


def answer_many(qa: QuestionAnswerer, flags: argparse.Namespace, context: str) -> None:
    """Answer questions about a text until the end of input."""
    while question := ask("question> "):
        try:
            if question.strip():
                answer_one(qa, flags, question.strip(), context)
        except UserError as error:  # such as a question that is too long: go on with the next
            print(f"error: {error}", file=sys.stderr)


def ask_context() -> str:
    """Read lines up to an empty one."""
    print("Paste a text and end it with an empty line. Ctrl-D quits.")
    lines: list[str] = []
    while line := ask("text> "):
        if line.strip():
            lines.append(line)
        elif lines:
            break
    return "".join(lines).strip("\n")


def ask(prompt: str) -> str:
    """Read one line with its line break; "" is the end of input."""
    try:
        return input(prompt) + "\n"
    except EOFError:
        print()
        return ""
