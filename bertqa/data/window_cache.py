"""Windows kept on disk as Arrow files, found again by what they were made from.

The key is a digest of the examples, the tokenizer, the settings and the code that makes windows:
the same data under another file name is found, and a changed comma is not. The files are mapped
into memory, not read.
"""

import hashlib
import json
import os
import shutil
import warnings
from collections.abc import Sequence
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

import datasets
import tokenizers
import torch
from datasets.arrow_writer import ArrowWriter
from torch import Tensor

from bertqa.data.labels import LabelledWindows, make_labelled_windows
from bertqa.data.squad import Example, data_fingerprint
from bertqa.data.tokenization import BertTokenizer, TokenTable
from bertqa.errors import UserError
from bertqa.files import new_folder
from bertqa.settings import WindowSettings

# Whose code decides what the windows are: whoever edits it gets new ones.
_MAKERS = ("window_cache.py", "windows.py", "labels.py", "graphemes.py", "tokenization.py")

# The columns of each file; all columns of a file have the same number of rows.
_TABLES = ("questions", "contexts")
_PER_EXAMPLE = ("context_of", "outcome", "cut_questions")
_PER_WINDOW = ("example", "first", "count", "start_position", "end_position")

_END = b"\xff\xff\xff\xff\x00\x00\x00\x00"  # the last bytes of every Arrow stream


def default_cache_dir() -> Path:
    """Beside what the datasets library caches; HF_DATASETS_CACHE or HF_HOME move it."""
    return Path(datasets.config.HF_DATASETS_CACHE) / "bertqa-features"


def cached_windows(
    examples: Sequence[Example], tokenizer: BertTokenizer, settings: WindowSettings, cache_dir: Path
) -> LabelledWindows:
    """``make_labelled_windows``, or what it made of the same input before.

    Raises:
        UserError: a question is too long, or the cache cannot be written.
    """
    parts = (_code(), data_fingerprint(examples), tokenizer.fingerprint(), asdict(settings))
    key = hashlib.blake2b(json.dumps(parts).encode(), digest_size=16).hexdigest()
    folder = cache_dir / key
    if folder.exists():
        try:
            return _load(folder, tokenizer)
        except Exception:  # a file that was cut short or deleted: Arrow raises many kinds
            shutil.rmtree(folder, ignore_errors=True)
    windows = make_labelled_windows(examples, tokenizer, settings)
    try:
        with new_folder(folder) as partial:
            _save(partial, windows)
    except UserError as error:
        if not folder.exists():  # else another process was faster with the same windows
            raise UserError(f"{error}, by the variable HF_DATASETS_CACHE") from error
    return windows


@cache
def _code() -> str:
    """A digest of all code that windows come from, the tokenizers library's version included."""
    digest = hashlib.blake2b(tokenizers.__version__.encode(), digest_size=16)
    for name in _MAKERS:
        digest.update(Path(__file__).with_name(name).read_bytes())
    return digest.hexdigest()


def _save(folder: Path, windows: LabelledWindows) -> None:
    for name in _TABLES:
        table: TokenTable = getattr(windows, name)
        _write(folder, name, {"ids": table.ids, "starts": table.starts, "ends": table.ends})
        _write(folder, f"{name}-bounds", {"bounds": table.bounds})
    _write(folder, "examples", {name: getattr(windows, name) for name in _PER_EXAMPLE})
    _write(folder, "windows", {name: getattr(windows, name) for name in _PER_WINDOW})


def _load(folder: Path, tokenizer: BertTokenizer) -> LabelledWindows:
    columns: dict[str, Any] = {**_read(folder, "examples"), **_read(folder, "windows")}
    for name in _TABLES:
        columns[name] = TokenTable(**_read(folder, name), **_read(folder, f"{name}-bounds"))
    return LabelledWindows(**columns, cls_id=tokenizer.cls_id, sep_id=tokenizer.sep_id)


def _write(folder: Path, name: str, columns: dict[str, Tensor]) -> None:
    """One Arrow file in one piece, so that mapped columns are plain arrays."""
    table = datasets.Dataset.from_dict({key: value.numpy() for key, value in columns.items()})
    rows = max(1, len(table))
    with ArrowWriter(path=str(folder / f"{name}.arrow"), writer_batch_size=rows) as writer:
        writer.write_table(table.data.table, writer_batch_size=rows)
        writer.finalize()


def _read(folder: Path, name: str) -> dict[str, Tensor]:
    """The columns of one Arrow file, mapped."""
    path = folder / f"{name}.arrow"
    with path.open("rb") as file:
        file.seek(-len(_END), os.SEEK_END)
        if file.read() != _END:  # Arrow takes some files that were cut short for empty tables
            raise ValueError(f"{path} was cut short")
    table = datasets.Dataset.from_file(str(path)).data.table
    with warnings.catch_warnings():
        # torch warns that the mapped file cannot be written to; nobody writes to windows.
        warnings.simplefilter("ignore", UserWarning)
        return {
            key: torch.from_numpy(table.column(key).combine_chunks().to_numpy(zero_copy_only=True))
            if len(table)
            else torch.empty(0, dtype=torch.int32)
            for key in table.column_names
        }
