"""A finished run as a folder to hand on: weights in half precision, and a model card.

python -m bertqa.release RUN --output_dir weights/NAME --encoder TEXT --data TEXT --eval_file FILE

The card, README.md, is written from what the run left behind: its settings, versions, commit and
curves, and EM and F1 of the very file that is handed on, loaded as infer.py loads it. A model that
was trained in several runs, each from the result of the one before, has them named in order.
"""

import argparse
import hashlib
import json
import math
import shlex
import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, NamedTuple

import torch

from bertqa.analysis import Group, breakdown
from bertqa.answering import QuestionAnswerer
from bertqa.charts import Line, line_chart
from bertqa.checkpoint import load_checkpoint, save_model
from bertqa.cli import Parser, run_script
from bertqa.errors import UserError
from bertqa.evaluation import score
from bertqa.files import new_folder, read_json_object, said_plainly, write_text
from bertqa.folders import WEIGHTS_FILE
from bertqa.readers import read_examples
from bertqa.runtime import forget_kernels
from bertqa.squad import Example, check_answers, check_examples, check_version
from bertqa.tokenization import BertTokenizer
from bertqa.training import TrainingSettings

_SMOOTHED = 10  # log lines that one point of the loss curve is the mean of


def parse_flags(arguments: Sequence[str]) -> argparse.Namespace:
    """The flags of ``python -m bertqa.release``."""
    # fmt: off
    parser = Parser(__doc__ or "")
    add = parser.add_argument
    add("runs", nargs="+", type=Path, metavar="RUN",
        help="output folder of train.py; several, if one went on from the model of another")
    add("--output_dir", type=Path, required=True, metavar="DIR", help="new folder for the model")
    add("--encoder", required=True, metavar="TEXT", help="what was fine-tuned, and its licence")
    add("--data", required=True, metavar="TEXT", help="what it was trained on, and its licence")
    add("--eval_file", type=Path, required=True, metavar="FILE",
        help="questions to measure it on, with gold answers")
    # fmt: on
    return parser.parse(arguments)


def main(flags: argparse.Namespace) -> None:
    """Write the folder, measure what is in it, and add the card."""
    if flags.output_dir.exists():
        raise UserError(f"--output_dir {flags.output_dir} is there already: name a new folder")
    stages = [read_stage(run) for run in flags.runs]
    examples = read_examples(flags.eval_file)
    check_examples(examples, str(flags.eval_file))
    check_answers(examples, str(flags.eval_file))
    check_version(examples, str(flags.eval_file), with_negative=False)
    forget_kernels()
    with new_folder(flags.output_dir) as folder:
        model, _ = load_checkpoint(flags.runs[-1])
        save_model(folder, model, torch.float16)
        BertTokenizer.load(flags.runs[-1]).save(folder)
        curves = write_curves(folder, stages)
        measured = measure(folder, examples)
        card = model_card(
            flags.output_dir.name, flags.encoder, flags.data, stages, curves, measured,
            file_digest(folder / WEIGHTS_FILE), flags.eval_file.name,
        )  # fmt: skip
        write_text(folder / "README.md", card)
    figures = measured[0]
    print(f"EM {figures['exact_match']:.2f}, F1 {figures['f1']:.2f}: wrote {flags.output_dir}")


class Stage(NamedTuple):
    """A run as its folder tells of it: run.json, and the lines of log.jsonl."""

    description: dict[str, Any]
    log: list[dict[str, Any]]


def read_stage(run: Path) -> Stage:
    """What run.json and log.jsonl of a run hold.

    Raises:
        UserError: it is no run's folder.
    """
    description = read_json_object(run / "run.json")
    with said_plainly(run / "log.jsonl", "read"):
        lines = (run / "log.jsonl").read_text(encoding="utf-8").splitlines()
    try:
        return Stage(description, [json.loads(line) for line in lines])
    except ValueError as error:
        raise UserError(
            f"{run / 'log.jsonl'} is not JSON lines ({error}): copy it again"
        ) from error


def file_digest(path: Path) -> str:
    """SHA-256 of a file, hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while part := file.read(2**20):
            digest.update(part)
    return digest.hexdigest()


# --- figures -------------------------------------------------------------------------------------

Measured = tuple[dict[str, float], list[Group], str]


def measure(folder: Path, examples: Sequence[Example]) -> Measured:
    """EM and F1 of the model in a folder, the same by group, and the precision."""
    qa = QuestionAnswerer.from_pretrained(folder)
    predictions = list(qa.answer(examples))
    groups = breakdown(examples, {p.id: p.text for p in predictions})
    precision = str(qa.runtime.dtype).removeprefix("torch.")
    return score(examples, predictions, qa.decoding), groups, precision


def write_curves(folder: Path, stages: Sequence[Stage]) -> list[str]:
    """Pictures of loss, and of EM and F1 where the runs measured them; their file names."""
    losses, exact, f1 = [], [], []
    before = 0
    for stage in stages:
        steps = [(before + line["step"], line) for line in stage.log]
        losses += [(step, line["loss"]) for step, line in steps if "loss" in line]
        exact += [(step, line["exact_match"]) for step, line in steps if "exact_match" in line]
        f1 += [(step, line["f1"]) for step, line in steps if "f1" in line]
        before = max((step for step, _ in steps), default=before)
    charts = {}
    if losses:
        charts["loss.svg"] = line_chart(
            "Training loss, start + end", "step", [Line("loss", smoothed(losses))]
        )
    if f1:
        charts["accuracy.svg"] = line_chart(
            "Exact match and F1 on held-out questions, %", "step",
            [Line("F1", f1), Line("exact match", exact)],
        )  # fmt: skip
    for name, chart in charts.items():
        write_text(folder / name, chart)
    return list(charts)


def smoothed(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Means of neighbouring points, where there are many."""
    size = _SMOOTHED if len(points) > 5 * _SMOOTHED else 1
    parts = [points[i : i + size] for i in range(0, len(points), size)]
    return [(part[-1][0], math.fsum(y for _, y in part) / len(part)) for part in parts]


# --- the card ------------------------------------------------------------------------------------


def model_card(
    name: str,
    encoder: str,
    data: str,
    stages: Sequence[Stage],
    curves: Sequence[str],
    measured: Measured,
    digest: str,
    eval_name: str,
) -> str:
    """The text of the card, in Markdown."""
    figures, groups, precision = measured
    last = stages[-1].description
    versions = ", ".join(f"{package} {version}" for package, version in last["versions"].items())
    parts = [
        f"# {name}",
        f"BERT for extractive question answering, made by bertqa's `train.py`.\n\n"
        f"- encoder: {encoder}\n- trained on: {data}\n"
        f"- {eval_name}: **EM {figures['exact_match']:.2f}, F1 {figures['f1']:.2f}** on "
        f"{figures['total']:,.0f} questions, in {precision}\n"
        f"- file: `{WEIGHTS_FILE}`, float16, SHA-256 `{digest}`",
        "It finds answers that stand in the text word for word, in English, and answers every "
        "question, also one that the text does not answer. Its tokenizer is the encoder's.",
        f'```bash\npython infer.py --model {name} --question "..." --context "..."\n```',
        "## Training",
        "```bash\n"
        + "\n".join(_command(number, stage) for number, stage in enumerate(stages))
        + "\n```",
        "\n".join(_stage_line(number, stage) for number, stage in enumerate(stages, start=1)),
        f"Commit `{last['git_commit']}`; {versions}; on {last['device']}, "
        f"{last['processes']} process.",
        *(f"![{curve.removesuffix('.svg')}]({curve})" for curve in curves),
        f"## Where it fails\n\nBy kind, on {eval_name}:",
        _group_table(groups),
    ]
    return "\n\n".join(parts) + "\n"


def _command(number: int, stage: Stage) -> str:
    """The command of a run: its settings, where they are not the defaults."""
    settings = stage.description["settings"]
    flags = ["python", "train.py", "--model", f"runs/{number}" if number else "ENCODER"]
    flags += ["--train_file", "TRAIN", "--output_dir", f"runs/{number + 1}"]
    for field in fields(TrainingSettings):
        value = settings.get(field.name, field.default)
        if value != field.default:
            flags += [f"--{field.name}", f"{value:g}" if isinstance(value, float) else str(value)]
    return shlex.join(flags)


def _stage_line(number: int, stage: Stage) -> str:
    description, log = stage.description, stage.log
    done = max((line["step"] for line in log), default=0)
    epochs = max((line["epoch"] for line in log), default=0)
    losses = [line["loss"] for line in log if "loss" in line]
    rates = [line["tokens_per_second"] for line in log if "tokens_per_second" in line]
    ended = f", the last logged loss {losses[-1]:.3f}" if losses else ""
    speed = f", {sorted(rates)[len(rates) // 2]:,} tokens/s" if rates else ""
    windows = description["settings"]["windows_per_step"]
    precision = description["settings"]["precision"].removeprefix("torch.")
    return (
        f"- run {number}: {done:,} steps of {windows} windows ({epochs:.2f} epochs) in "
        f"{precision}{speed}{ended}"
    )


def _group_table(groups: Sequence[Group]) -> str:
    rows = ["| by | group | questions | EM | F1 |", "| --- | --- | ---: | ---: | ---: |"]
    rows += [
        f"| {g.by} | {g.name} | {g.count:,} | {g.exact_match:.1f} | {g.f1:.1f} |" for g in groups
    ]
    return "\n".join(rows)


if __name__ == "__main__":
    sys.exit(run_script(main, parse_flags(sys.argv[1:])))
