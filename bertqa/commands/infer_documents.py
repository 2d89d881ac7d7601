"""``bertqa infer --documents``: one question about many documents."""

import argparse
from collections import Counter
from collections.abc import Sequence

from tqdm.auto import tqdm

from bertqa.answering.answerer import make_examples
from bertqa.answering.documents import ReadEntry
from bertqa.commands.infer_questions import print_json
from bertqa.commands.question_flags import load_answerer
from bertqa.data.documents import iter_documents
from bertqa.data.text import on_one_line, visible
from bertqa.errors import UserError


def answer_from_documents(flags: argparse.Namespace) -> None:
    """Search --documents for the answer to --question, and print the best answers."""
    make_examples(flags.question, "any")  # reject an empty question before anything is read
    number = sum(1 for _ in iter_documents(flags.documents))  # and an invalid document
    qa = load_answerer(flags)
    documents = tqdm(iter_documents(flags.documents), total=number, unit="doc", disable=None)
    found = qa.read(flags.question, documents, top_k=flags.top_k)
    if not found:
        raise UserError(
            f"--documents {flags.documents} must contain visible text, got none: name others"
        )
    if flags.json:
        print_json(found)
    else:
        print_table(found)


def print_table(found: Sequence[ReadEntry]) -> None:
    """Print two lines per answer: probability, document and offsets, answer; and the snippet.

    Documents with the same id also show their number, from 0.
    """
    shown = {(str(entry["document"]), entry["number"]) for entry in found}
    counts = Counter(name for name, _ in shown)
    for entry in found:
        if not entry["answer"]:
            print(f"{entry['score']:8.4f}  (no answer)")
            continue
        name = str(entry["document"])
        name += f" (number {entry['number']})" * (counts[name] > 1)
        location = f"{name}:{entry['start']}-{entry['end']}"
        print(f"{entry['score']:8.4f}  {visible(location)}  {on_one_line(entry['answer'])}")
        first, last = entry["snippet_start"], entry["snippet_end"]
        snippet = entry["snippet"]
        marked = f"{snippet[:first]}[{snippet[first:last]}]{snippet[last:]}"
        print(f"          {on_one_line(marked)}")
