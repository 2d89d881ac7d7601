"""The same file, the same questions: the answers of bertqa beside those of transformers 5.

Theirs is transformers' model in float32, fed by its own tokenizer with overflow, and the decoding
that the blog post and run_qa share: in every window the 20 best starts with the 20 best ends, the
pair with the largest sum of scores wins. Ours is infer.py's path, in float32 and in the default
precision, with both decoders. Both sides are scored by the official rules, and every answer that
differs is put down to a cause:

    close        the two answers' scores lie within what float32 and bf16 round
    search       ours scores higher: the 20 x 20 pairs did not hold it
    characters   the tokens are the same; ours ends with whole written characters
    other        none of these
"""

import argparse
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from benchmarks.data import first_questions, squad_file
from benchmarks.harness import command_line, page, positive, publish, table
from bertqa.answering import QuestionAnswerer
from bertqa.evaluation import DecodingSettings
from bertqa.metrics import evaluate_v1
from bertqa.readers import read_examples
from bertqa.squad import Example

MAX_LENGTH, STRIDE, N_BEST, LONGEST = 384, 128, 20, 30
BATCH = 16
# Two scores are sums of two numbers up to about 10: so far apart may rounding bring them.
_CLOSE = {torch.float32: 1e-3, torch.bfloat16: 0.3}


class Found(NamedTuple):
    """An answer: its text, and S.T_i + E.T_j as the side that found it has it."""

    text: str
    score: float


def theirs(model: Path, examples: Sequence[Example]) -> dict[str, Found]:
    """transformers and the blog post's decoding."""
    from transformers import AutoModelForQuestionAnswering, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    network = AutoModelForQuestionAnswering.from_pretrained(model, dtype=torch.float32).eval()
    best: dict[str, Found] = {}
    for rows in _batched(examples, 500):
        encoded = tokenizer(
            [row.question for row in rows], [row.context for row in rows],
            truncation="only_second", max_length=MAX_LENGTH, stride=STRIDE,
            return_overflowing_tokens=True, return_offsets_mapping=True,
        )  # fmt: skip
        owners = encoded["overflow_to_sample_mapping"]
        order = sorted(range(len(owners)), key=lambda i: len(encoded["input_ids"][i]))
        for chosen in _batched(order, BATCH):
            names = ("input_ids", "token_type_ids", "attention_mask")
            batch = tokenizer.pad(
                {name: [encoded[name][i] for i in chosen] for name in names}, return_tensors="pt"
            )
            with torch.inference_mode():
                output = network(**batch)
            for i, start, end in zip(chosen, output.start_logits, output.end_logits, strict=True):
                row = rows[owners[i]]
                sides = encoded.sequence_ids(i)
                offsets = [
                    offset if side == 1 else None
                    for offset, side in zip(encoded["offset_mapping"][i], sides, strict=True)
                ]
                for found in _spans(start[: len(sides)], end[: len(sides)], offsets, row.context):
                    if row.id not in best or found.score > best[row.id].score:
                        best[row.id] = found
    return best


def _spans(start: Any, end: Any, offsets: Sequence[Any], context: str) -> Iterator[Found]:
    """The pairs of the best starts and the best ends of one window that are answers."""
    starts, ends = start.tolist(), end.tolist()
    best_starts = start.argsort(descending=True)[:N_BEST].tolist()
    best_ends = end.argsort(descending=True)[:N_BEST].tolist()
    for i in best_starts:
        for j in best_ends:
            if offsets[i] is None or offsets[j] is None or not 0 <= j - i < LONGEST:
                continue
            yield Found(context[offsets[i][0] : offsets[j][1]], starts[i] + ends[j])


def _batched(items: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    for first in range(0, len(items), size):
        yield items[first : first + size]


def cause(ours: Found, of_theirs: Found, dtype: torch.dtype) -> str:
    """Why two answers differ."""
    apart = ours.score - of_theirs.score
    if abs(apart) <= _CLOSE[dtype]:
        same_tokens = abs(apart) <= _CLOSE[torch.float32] and of_theirs.text in ours.text
        return "characters" if same_tokens and not _is_cut(ours.text, of_theirs.text) else "close"
    return "search" if apart > 0 else "other"


def _is_cut(ours: str, theirs: str) -> bool:
    """Whether ours has letters or digits that theirs has not."""
    return sum(map(str.isalnum, ours)) != sum(map(str.isalnum, theirs))


def main() -> None:
    """Ask both, print the table."""
    flags_parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = flags_parser.add_argument
    add("--model", type=Path, required=True, help="fine-tuned checkpoint folder")
    add("--data", type=Path, help="folder with dev-v1.1.json")
    add("--questions", type=positive, help="the first of them (all)")
    add("--page", type=page, help="a page whose table is replaced")
    flags = flags_parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source = squad_file("dev", flags.data, folder)
        if flags.questions:
            source = first_questions(source, folder / "first.json", flags.questions)
        examples = read_examples(source)
    references = {example.id: example.answers or () for example in examples}
    reference = theirs(flags.model, examples)

    def row(name: str, answers: dict[str, Found], counts: str) -> list[str]:
        figures = evaluate_v1({key: found.text for key, found in answers.items()}, references)
        return [name, f"{figures['exact_match']:.2f}", f"{figures['f1']:.2f}", counts]

    rows = [row("transformers 5, fp32, the blog post's decoding", reference, "")]
    for decoder in ("top20", "exact"):
        for precision in ("fp32", "auto"):
            qa = QuestionAnswerer.from_pretrained(
                flags.model, precision=precision, decoding=DecodingSettings(decoder=decoder)
            )
            answers = {p.id: Found(p.text, p.answers[0].score) for p in qa.answer(examples)}
            causes = Counter(
                cause(found, reference[key], qa.runtime.dtype)
                for key, found in answers.items()
                if found.text != reference[key].text
            )
            told = ", ".join(f"{kind} {count}" for kind, count in causes.most_common())
            shown = str(qa.runtime.dtype).removeprefix("torch.")
            differ = f"{causes.total()} ({told})" if causes else "0"
            rows.append(row(f"bertqa, {shown}, {decoder}", answers, differ))
    header = ["answers of", "EM", "F1", f"of {len(examples):,} differ from the first row"]
    command = command_line("benchmarks.same_answers", flags_parser, flags)
    publish("same answers", command, table(header, rows), flags.page)


if __name__ == "__main__":
    main()
