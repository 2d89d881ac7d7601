"""The question-answering pipeline of transformers 4.57, as a script for a separate environment.

python benchmarks/peer_pipeline.py MODEL FILE ANSWERS BATCH_SIZE PRECISION     a SQuAD file
python benchmarks/peer_pipeline.py MODEL --ask QUESTION CONTEXT                one question
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForQuestionAnswering, AutoTokenizer, pipeline

# align_to_words extends an answer to whole words, which infer.py does not do.
_OPTIONS = {"align_to_words": False}


_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def load(model: str, batch_size: int, precision: str) -> Any:
    """Load the pipeline on its default device."""
    return pipeline(
        "question-answering",
        model=AutoModelForQuestionAnswering.from_pretrained(model, dtype=_DTYPES[precision]),
        tokenizer=AutoTokenizer.from_pretrained(model),
        batch_size=batch_size,
    )


def answer_file(model: str, source: Path, target: Path, batch_size: int, precision: str) -> None:
    """Answer all questions of a SQuAD file and write a mapping from id to answer."""
    articles = json.loads(source.read_text(encoding="utf-8"))["data"]
    paragraphs = [paragraph for article in articles for paragraph in article["paragraphs"]]
    asked = [
        (entry, paragraph["context"]) for paragraph in paragraphs for entry in paragraph["qas"]
    ]
    found = load(model, batch_size, precision)(
        question=[entry["question"] for entry, _ in asked],
        context=[context for _, context in asked],
        **_OPTIONS,
    )
    answers = {entry["id"]: each["answer"] for (entry, _), each in zip(asked, found, strict=True)}
    target.write_text(json.dumps(answers, ensure_ascii=False, indent=2), encoding="utf-8")


def main(arguments: Sequence[str]) -> None:
    """Answer one question or a file."""
    if arguments[1] == "--ask":
        model, _, question, context = arguments
        print(json.dumps(load(model, 1, "fp32")(question=question, context=context, **_OPTIONS)))
    else:
        model, source, target, batch_size, precision = arguments
        answer_file(model, Path(source), Path(target), int(batch_size), precision)


if __name__ == "__main__":
    main(sys.argv[1:])
