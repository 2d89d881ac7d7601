"""SQuAD files for the benchmarks, and the flags that say which file and which model."""

import argparse
import gzip
import json
import random
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from benchmarks.harness import ROOT

STORIES = ROOT / "tests" / "fixtures" / "stories.json"

# One question with its context: (context, entry of "qas").
_Pair = tuple[str, dict[str, Any]]


def squad_file(split: str, data: Path | None, folder: Path) -> Path:
    """The plain JSON file of a split, "train" or "dev", of ``data``; else the tests' stories.

    Raises:
        SystemExit: ``data`` has no such file.
    """
    if data is None:
        return STORIES
    given = data / f"{split}-v1.1.json"
    if given.exists():
        return given
    packed = given.with_name(f"{given.name}.gz")
    if not packed.exists():
        raise SystemExit(f"{data} has neither {given.name} nor {packed.name}")
    path = folder / given.name
    if not path.exists():
        path.write_bytes(gzip.decompress(packed.read_bytes()))
    return path


def first_questions(source: Path, target: Path, count: int) -> Path:
    """The first questions of a file; from its beginning again, with new ids, if it has too few."""
    pairs = list(read_pairs(source))
    repeated = (
        (context, {**entry, "id": f"{entry['id']}-{turn}"} if turn else entry)
        for turn in range(-(-count // len(pairs)))
        for context, entry in pairs
    )
    return _write(target, [pair for pair, _ in zip(repeated, range(count), strict=False)])


def random_questions(source: Path, target: Path, count: int, seed: int = 0) -> Path:
    """Some questions of a file, drawn and shuffled."""
    pairs = list(read_pairs(source))
    return _write(target, random.Random(seed).sample(pairs, min(count, len(pairs))))


def read_pairs(source: Path) -> Iterator[_Pair]:
    """Every question of a SQuAD file, in order."""
    for article in json.loads(source.read_text(encoding="utf-8"))["data"]:
        for paragraph in article["paragraphs"]:
            for entry in paragraph["qas"]:
                yield paragraph["context"], entry


def _write(target: Path, pairs: Sequence[_Pair]) -> Path:
    """A SQuAD file; neighbouring questions about the same text share a paragraph."""
    paragraphs = [
        {"context": context, "qas": [entry for _, entry in group]}
        for context, group in groupby(pairs, key=lambda pair: pair[0])
    ]
    content = {"version": "1.1", "data": [{"title": "", "paragraphs": paragraphs}]}
    target.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    return target


def _checkpoint(text: str) -> Path:
    if not (Path(text) / "config.json").is_file():
        raise argparse.ArgumentTypeError(f"{text} is no checkpoint folder: it has no config.json")
    return Path(text)


def add_model_flag(flags: argparse.ArgumentParser, *, required: bool = False) -> None:
    """Which model."""
    flags.add_argument(
        "--model", type=_checkpoint, required=required,
        help="fine-tuned checkpoint folder" + " (a small one, head at random)" * (not required),
    )  # fmt: skip


def add_peer_flag(flags: argparse.ArgumentParser) -> None:
    """Where the last transformers with question answering is."""
    flags.add_argument("--peer_python", type=Path, help="the python that has transformers 4.57")
