"""What benchmarks/windows.py times: making windows, and finding them made.

python -m benchmarks.feature_tasks bertqa FILE MODEL CACHE     a second start; prints the seconds
python -m benchmarks.feature_tasks datasets TABLE MODEL        from the call to windows at hand

The peer is what run_qa and transformers' notebook do: datasets.map over batches of 1,000 questions,
the tokenizer with overflow, every window padded, a loop over offsets that finds the labels.
"""

import shutil
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

MAX_LENGTH, STRIDE = 384, 128
_SAMPLE = 500  # windows that are compared


def _spread(count: int) -> list[int]:
    """Some windows, evenly over all."""
    return sorted({number * count // _SAMPLE for number in range(_SAMPLE)})


# --- ours ----------------------------------------------------------------------------------------


class OurWindows:
    """make_labelled_windows, or cached_windows with an empty cache.

    Args:
        source: a SQuAD file.
        model: a checkpoint folder, for its tokenizer.
        cache: the folder for what is kept, emptied before each round; None keeps nothing.
    """

    def __init__(self, source: str, model: str, cache: str | None) -> None:
        from bertqa.data.labels import make_labelled_windows
        from bertqa.data.readers import read_examples
        from bertqa.data.tokenization import BertTokenizer
        from bertqa.data.window_cache import cached_windows
        from bertqa.settings import WindowSettings

        examples = read_examples(Path(source))
        tokenizer = BertTokenizer.load(Path(model))
        self.cache = None if cache is None else Path(cache)
        job = (examples, tokenizer, WindowSettings(MAX_LENGTH, STRIDE))
        self.made: Callable[[], Any] = (
            partial(make_labelled_windows, *job)
            if self.cache is None
            else partial(cached_windows, *job, self.cache)
        )

    def work(self) -> float:
        """Seconds from the examples to windows; emptying the cache does not count."""
        if self.cache is not None:
            shutil.rmtree(self.cache, ignore_errors=True)
        started = time.perf_counter()
        self.made()
        return time.perf_counter() - started

    def result(self) -> dict[str, list[Any]]:
        """How many windows, and the token ids of some."""
        windows = self.made()
        ids = [token for number in _spread(len(windows)) for token in windows[number].input_ids]
        return {"windows": [len(windows)], "ids": ids}


# --- the peer ------------------------------------------------------------------------------------


def save_table(source: str, folder: str) -> str:
    """A SQuAD file as an Arrow table on disk, as load_dataset leaves one; in a call of its own."""
    from datasets import Dataset

    from benchmarks.data import read_pairs

    rows = [
        {
            "id": entry["id"],
            "question": entry["question"],
            "context": context,
            "answers": {
                "text": [answer["text"] for answer in entry["answers"]],
                "answer_start": [answer["answer_start"] for answer in entry["answers"]],
            },
        }
        for context, entry in read_pairs(Path(source))
    ]
    Dataset.from_list(rows).save_to_disk(folder)
    return folder


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


class MappedWindows:
    """datasets.map with an empty cache.

    Args:
        table: the folder from ``save_table``, where the library puts its cache too.
        model: a checkpoint folder, for its tokenizer.
        processes: that share the work; 1 is none beside this one.
    """

    def __init__(self, table: str, model: str, processes: int = 1) -> None:
        from datasets import disable_progress_bars, load_from_disk
        from transformers import AutoTokenizer

        disable_progress_bars()
        self.tokenizer = AutoTokenizer.from_pretrained(model)
        self.table = load_from_disk(table)
        self.processes = processes if processes > 1 else None

    def made(self) -> Any:
        """The table of windows."""
        columns = self.table.column_names
        return self.table.map(
            Prepare(self.tokenizer), batched=True, remove_columns=columns, num_proc=self.processes
        )

    def work(self) -> float:
        """Seconds from rows to windows; emptying the cache does not count."""
        self.table.cleanup_cache_files()
        started = time.perf_counter()
        self.made()
        return time.perf_counter() - started

    def result(self) -> dict[str, list[Any]]:
        """How many windows, and the token ids of some, without padding."""
        windows = self.made()
        some = windows.select(_spread(len(windows)))
        rows = zip(some["input_ids"], some["attention_mask"], strict=True)
        ids = [token for tokens, mask in rows for token in tokens[: sum(mask)]]
        return {"windows": [len(windows)], "ids": ids}


# --- a second start ------------------------------------------------------------------------------


def _second_start(kind: str, source: str, model: str, *cache: str) -> float:
    """Seconds from the call to windows at hand."""
    task = OurWindows(source, model, *cache) if kind == "bertqa" else MappedWindows(source, model)
    started = time.perf_counter()
    task.made()
    return time.perf_counter() - started


if __name__ == "__main__":
    print(_second_start(*sys.argv[1:]))
