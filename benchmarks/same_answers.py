"""Comparison of the answers of bertqa and transformers 5 to the same questions.

transformers: its model in float32, its tokenizer with overflow, and the decoding of its notebook
and of run_qa: the pair with the largest sum of logits among the 20 best starts and the 20 best ends
of each window. bertqa: the code of infer.py, in float32 and in the default precision, with both
decoders. Both are scored with the official EM and F1, and every different answer has a cause:

    tie          in float32 the scores of the two answers differ only by rounding
    search       in float32 our score is higher: the span is not among the 20 x 20 pairs
    characters   their answer, extended to whole grapheme clusters
    bf16         in float32 both give the same answer
    other        none of these
"""

import argparse
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks.data import add_model_flag, first_questions, squad_file
from benchmarks.harness import plain_parser, positive, run, table
from bertqa.answering.answerer import QuestionAnswerer
from bertqa.answering.metrics import evaluate_v1
from bertqa.data.graphemes import snap_to_graphemes
from bertqa.data.readers import read_examples
from bertqa.data.squad import Example
from bertqa.settings import DecodingSettings

MAX_LENGTH, STRIDE, N_BEST, LONGEST = 384, 128, 20, 30
_TIE = 1e-3  # bound of the rounding error of a sum of two logits up to about 10


class Found(NamedTuple):
    """An answer: text, offsets, and S.T_i + E.T_j as computed by its model."""

    text: str
    start: int
    end: int
    score: float


NOTHING = Found("", 0, 0, -math.inf)  # no pair of the best starts and ends is a span


def theirs(model: Path, examples: Sequence[Example]) -> dict[str, Found]:
    """Answer with transformers and the decoding of its notebook."""
    from transformers import AutoModelForQuestionAnswering, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    network = AutoModelForQuestionAnswering.from_pretrained(model, dtype=torch.float32).eval()
    best = {}
    for example in examples:
        encoded = tokenizer(
            example.question, example.context, truncation="only_second", max_length=MAX_LENGTH,
            stride=STRIDE, return_overflowing_tokens=True, return_offsets_mapping=True,
            padding=True, return_tensors="pt",
        )  # fmt: skip
        del encoded["overflow_to_sample_mapping"]
        offsets = encoded.pop("offset_mapping").tolist()
        with torch.inference_mode():
            output = network(**encoded)
        found = [
            span
            for i, length in enumerate(encoded["attention_mask"].sum(1).tolist())
            for span in _spans(
                output.start_logits[i, :length], output.end_logits[i, :length], offsets[i],
                encoded.sequence_ids(i), example.context,
            )
        ]  # fmt: skip
        best[example.id] = max(found, key=lambda span: span.score, default=NOTHING)
    return best


def _spans(
    start: Tensor, end: Tensor, offsets: Sequence[Any], sides: Sequence[int | None], context: str
) -> Iterator[Found]:
    """Yield the valid spans from the best starts and the best ends of one window."""
    best = (x.argsort(descending=True)[:N_BEST].tolist() for x in (start, end))
    for i, j in product(*best):
        if sides[i] == sides[j] == 1 and 0 <= j - i < LONGEST:
            first, last = offsets[i][0], offsets[j][1]
            yield Found(context[first:last], first, last, float(start[i]) + float(end[j]))


def cause(context: str, ours: Found, of_theirs: Found) -> str:
    """Return the cause of two different answers, both in float32."""
    if snap_to_graphemes(context, of_theirs.start, of_theirs.end) == (ours.start, ours.end):
        return "characters"
    if abs(ours.score - of_theirs.score) <= _TIE:
        return "tie"
    return "search" if ours.score > of_theirs.score else "other"


def work(flags: argparse.Namespace, folder: Path) -> str:
    """Answer with both; return the table."""
    source = squad_file("dev", flags.data, folder)
    if flags.questions:
        source = first_questions(source, folder / "first.json", flags.questions)
    examples = read_examples(source)
    references = {example.id: example.answers or () for example in examples}
    contexts = {example.id: example.context for example in examples}
    reference = theirs(flags.model, examples)

    def row(name: str, answers: dict[str, Found], counts: str) -> list[str]:
        figures = evaluate_v1({key: found.text for key, found in answers.items()}, references)
        return [name, f"{figures['exact_match']:.2f}", f"{figures['f1']:.2f}", counts]

    rows = [row("transformers 5, fp32, the notebook's decoding", reference, "")]
    for decoder in ("top20", "exact"):
        in_fp32: dict[str, str] = {}  # causes of differences in float32
        for precision in ("fp32", "auto"):
            qa = QuestionAnswerer.from_pretrained(
                flags.model, precision=precision, decoding=DecodingSettings(decoder=decoder)
            )
            answers = {
                p.id: Found(p.text, *p.answers[0][1:3], p.answers[0].score)
                for p in qa.answer(examples)
            }
            differ = [key for key, found in answers.items() if found.text != reference[key].text]
            if precision == "fp32":
                in_fp32 = {
                    key: cause(contexts[key], answers[key], reference[key]) for key in differ
                }
            causes = Counter(in_fp32.get(key, "bf16") for key in differ)
            listed = ", ".join(f"{kind} {count}" for kind, count in causes.most_common())
            shown = str(qa.runtime.dtype).removeprefix("torch.")
            counts = f"{len(differ)} ({listed})" if differ else "0"
            rows.append(row(f"bertqa, {shown}, {decoder}", answers, counts))
    header = ["answers of", "EM", "F1", f"of {len(examples):,} differ from the first row"]
    return table(header, rows)


def main() -> None:
    """Compare and print the table."""
    flags_parser = plain_parser(__doc__)
    add_model_flag(flags_parser, required=True)
    flags_parser.add_argument(
        "--questions", type=positive, help="number of questions, from the start (all)"
    )
    run(flags_parser, work, "same answers")


if __name__ == "__main__":
    main()
