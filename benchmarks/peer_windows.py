"""The peer's windows, as run_qa and transformers' notebook make them.

datasets.map over batches of 1,000 questions, the tokenizer with overflow, every window padded, a
loop over offsets that finds the labels.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.data import read_pairs

MAX_LENGTH, STRIDE = 384, 128


def rows_of_file(source: Path) -> list[dict[str, Any]]:
    """The questions of a SQuAD file as load_dataset gives them."""
    return [
        {
            "id": entry["id"],
            "question": entry["question"],
            "context": context,
            "answers": {
                key: [answer[key] for answer in entry["answers"]]
                for key in ("text", "answer_start")
            },
        }
        for context, entry in read_pairs(source)
    ]


class Prepare:
    """The function given to datasets.map: a batch of rows to padded, labelled windows."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer

    def __call__(self, rows: dict[str, list[Any]]) -> dict[str, list[Any]]:
        """Windows of a batch of rows."""
        encoded = self.tokenizer(
            rows["question"],
            rows["context"],
            truncation="only_second",
            max_length=MAX_LENGTH,
            stride=STRIDE,
            return_overflowing_tokens=True,
            return_offsets_mapping=True,
            padding="max_length",
        )
        row_of = encoded.pop("overflow_to_sample_mapping")
        offsets = encoded.pop("offset_mapping")
        labels = [
            _label(encoded.sequence_ids(window), offsets[window], rows["answers"][row])
            for window, row in enumerate(row_of)
        ]
        encoded["start_positions"] = [start for start, _ in labels]
        encoded["end_positions"] = [end for _, end in labels]
        return encoded


def _label(
    sides: Sequence[int | None], offsets: Sequence[tuple[int, int]], answers: dict[str, list[Any]]
) -> tuple[int, int]:
    """First and last token of the answer; (0, 0), which is [CLS], if the window lacks it."""
    if not answers["text"]:
        return 0, 0
    begin = answers["answer_start"][0]
    stop = begin + len(answers["text"][0])
    first = sides.index(1)
    last = len(sides) - 1
    while sides[last] != 1:
        last -= 1
    if offsets[first][0] > begin or offsets[last][1] < stop:
        return 0, 0
    while first <= last and offsets[first][0] <= begin:
        first += 1
    while offsets[last][1] >= stop:
        last -= 1
    return first - 1, last + 1
