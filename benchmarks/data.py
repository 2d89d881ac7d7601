"""SQuAD files for the benchmarks, and flags for the model and the peer."""

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

# A question with its context: (context, entry of "qas").
_Pair = tuple[str, dict[str, Any]]


def squad_file(split: str, data: Path | None, folder: Path) -> Path:
    """Return the JSON file of a split, "train" or "dev", in ``data``; else the tests' stories.

    Raises:
        SystemExit: ``data`` does not contain the file.
    """
    if data is None:
        return STORIES
    given = data / f"{split}-v1.1.json"
    if given.exists():
        return given
    packed = given.with_name(f"{given.name}.gz")
    if not packed.exists():
        raise SystemExit(f"--data: must contain {given.name} or {packed.name}, got {data}")
    path = folder / given.name
    if not path.exists():
        path.write_bytes(gzip.decompress(packed.read_bytes()))
    return path


def first_questions(source: Path, target: Path, count: int) -> Path:
    """Write the first questions of a file, repeated with new ids if it has too few."""
    pairs = list(read_pairs(source))
    repeated = (
        (context, {**entry, "id": f"{entry['id']}-{turn}"} if turn else entry)
        for turn in range(-(-count // len(pairs)))
        for context, entry in pairs
    )
    return _write(target, [pair for pair, _ in zip(repeated, range(count), strict=False)])


def random_questions(source: Path, target: Path, count: int, seed: int = 0) -> Path:
    """Write a random sample of the questions of a file, in random order."""
    pairs = list(read_pairs(source))
    return _write(target, random.Random(seed).sample(pairs, min(count, len(pairs))))


def read_pairs(source: Path) -> Iterator[_Pair]:
    """Yield all questions of a SQuAD file in order."""
    for article in json.loads(source.read_text(encoding="utf-8"))["data"]:
        for paragraph in article["paragraphs"]:
            for entry in paragraph["qas"]:
                yield paragraph["context"], entry


def _write(target: Path, pairs: Sequence[_Pair]) -> Path:
    """Write a SQuAD file; consecutive questions with the same context share a paragraph."""
    paragraphs = [
        {"context": context, "qas": [entry for _, entry in group]}
        for context, group in groupby(pairs, key=lambda pair: pair[0])
    ]
    content = {"version": "1.1", "data": [{"title": "", "paragraphs": paragraphs}]}
    target.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    return target


def _checkpoint(text: str) -> Path:
    if not (Path(text) / "config.json").is_file():
        raise argparse.ArgumentTypeError(f"must be a folder with config.json, got {text}")
    return Path(text)


def add_model_flag(flags: argparse.ArgumentParser, *, required: bool = False) -> None:
    """Add --model."""
    flags.add_argument(
        "--model", type=_checkpoint, required=required,
        help="fine-tuned checkpoint folder" + " (a small one, random head)" * (not required),
    )  # fmt: skip


def add_peer_flag(flags: argparse.ArgumentParser) -> None:
    """Add --peer_python."""
    flags.add_argument("--peer_python", type=Path, help="python with transformers 4.57")
