"""A finished run as a folder to release: weights in half precision, and a model card.

The card, README.md, is written from what the run left behind: its settings, versions, commit and
curves, and EM and F1 of the very file that is released, asked with the run's windows. A model that
was trained in several runs, each from the result of one before, has them named in order, and the
means that ``bertqa average`` made of them as well.
"""

import hashlib
import json
import shlex
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from bertqa.answering.answerer import QuestionAnswerer
from bertqa.answering.decoding_file import read_decoding_file
from bertqa.answering.evaluation import score
from bertqa.data.readers import read_examples
from bertqa.data.squad import Example, check_answers, check_examples, data_fingerprint
from bertqa.data.tokenization import BertTokenizer
from bertqa.errors import UserError
from bertqa.files import DECODING_FILE, WEIGHTS_FILE, new_folder, read_json_object, write_text
from bertqa.model.checkpoint import load_checkpoint, save_model
from bertqa.report.analysis import Group, breakdown
from bertqa.report.average import AVERAGE_FILE, read_average
from bertqa.report.charts import Line, line_chart, smoothed
from bertqa.report.training_page import time_spent
from bertqa.runtime import limit_onednn_cache
from bertqa.settings import WindowSettings


def release(
    runs: Sequence[Path], output_dir: Path, *, encoder: str, data: str, eval_file: Path
) -> "Measured":
    """Write the folder, measure what is in it, and add the card.

    Args:
        runs: output folders of training or of averaging, in order; the last one is released.
        encoder, data: what was fine-tuned and on what, with the licences, for the card.
        eval_file: questions with gold answers, other ones than it was trained on.

    Raises:
        UserError: a file or folder is missing, or of another kind than it must be.
    """
    if output_dir.exists():
        raise UserError(f"--output_dir {output_dir} is there already: name a new folder")
    steps = [read_step(run) for run in runs]
    starts = starts_of(runs, steps)
    stages = [step for step in steps if isinstance(step, Stage)]
    released = runs[-1]
    _, decoding = read_decoding_file(released)
    examples = read_examples(eval_file)
    check_examples(examples, str(eval_file))
    check_answers(examples, str(eval_file))
    if not decoding.version_2_with_negative and any(example.is_impossible for example in examples):
        raise UserError(
            f"--eval_file {eval_file} has questions without an answer, and {released} "
            "was trained to answer all: give a file in which all have one"
        )
    seen = data_fingerprint(examples)
    if any(stage.description["data"]["train"] == seen for stage in stages):
        raise UserError(f"--eval_file {eval_file} is what the model was trained on: give another")
    limit_onednn_cache()
    with new_folder(output_dir) as folder:
        save_model(folder, load_checkpoint(released)[0], torch.float16)
        BertTokenizer.load(released).save(folder)
        curves = write_curves(folder, steps, starts)
        for name in (DECODING_FILE, "threshold.json", "threshold.svg"):
            if (released / name).exists():
                shutil.copyfile(released / name, folder / name)
        curves += ["threshold.svg"] * (folder / "threshold.svg").exists()
        windows = WindowSettings(**stages[-1].description["data"]["windows"])
        measured = measure(folder, examples, windows)
        elsewhere = stages[-1].description["data"]["validation"] != seen
        selected = any(stage.description["data"]["validation"] == seen for stage in stages)
        card = model_card(
            output_dir.name, encoder, data, steps, starts, curves, measured,
            file_digest(folder / WEIGHTS_FILE), eval_file.name, selected=selected,
            curves_elsewhere=elsewhere,
        )  # fmt: skip
        write_text(folder / "README.md", card)
    return measured


def starts_of(runs: Sequence[Path], steps: Sequence["Step"]) -> list[list[int]]:
    """For each step the numbers of those that it was made of, from 1; 0 is the encoder.

    Raises:
        UserError: one was made of a model that is none of those before it, or two have one name.
    """
    everyone = [run.resolve().name for run in runs]
    twice = [name for name in everyone if everyone.count(name) > 1]
    if twice:
        raise UserError(f"two of the runs are called {twice[0]!r}: rename one, or name it once")
    starts: list[list[int]] = []
    encoder = ""
    for number, (run, step) in enumerate(zip(runs, steps, strict=True)):
        before = everyone[:number]
        if isinstance(step, Mean):
            names, made = step.of, "is a mean with"
        else:
            model = str(step.description["settings"]["model"])
            if not encoder and is_step(Path(model)):
                raise UserError(f"{run} started from the run {model}: name that one before it")
            encoder = encoder or model
            if model == encoder:
                starts.append([0])
                continue
            names, made = [Path(model).name], "started from"
        away = [name for name in names if name not in before]
        if away:
            raise UserError(
                f"{run} {made} {away[0]}, which is not named before it: name all runs in order"
            )
        starts.append([1 + before.index(name) for name in names])
    return starts


class Mean(NamedTuple):
    """A folder of average.py: the names of the folders whose weights it is the mean of."""

    of: list[str]


class Stage(NamedTuple):
    """A run as its folder tells of it: run.json, and the lines of log.jsonl."""

    description: dict[str, Any]
    log: list[dict[str, Any]]

    @property
    def kept(self) -> int:
        """The step whose model was kept: the first with the best F1; without any, the last."""
        rows = [line for line in self.log if "f1" in line]
        last = max((line["step"] for line in self.log), default=0)
        return int(max(rows, key=lambda row: row["f1"])["step"] if rows else last)


Step = Stage | Mean

_NEEDED = {
    "settings": ("model", "windows_per_step", "precision"),
    "data": ("train", "validation", "windows"),
}


def is_step(folder: Path) -> bool:
    """Whether a model's folder tells of how the model was made."""
    return any((folder / name).exists() for name in ("run.json", AVERAGE_FILE))


def read_step(run: Path) -> Step:
    """A run, or a mean.

    Raises:
        UserError: it is neither.
    """
    if (run / AVERAGE_FILE).exists():
        return Mean(read_average(run))
    return read_stage(run)


def read_stage(run: Path) -> Stage:
    """What run.json and log.jsonl of a run hold.

    Raises:
        UserError: it is no run's folder.
    """
    if not (run / "run.json").exists():
        raise UserError(f"{run} holds no training run (there is no run.json): name one that does")
    description = read_json_object(run / "run.json")
    whole = all(
        isinstance(description.get(part), dict) and set(keys) <= description[part].keys()
        for part, keys in _NEEDED.items()
    )
    if (
        not whole
        or not {"versions", "git_commit", "command", "device", "processes"} <= description.keys()
    ):
        raise UserError(
            f"{run / 'run.json'} is not one that bertqa train writes: copy the run again"
        )
    try:
        lines = (run / "log.jsonl").read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise UserError(
            f"{run / 'log.jsonl'} cannot be read ({error.strerror}): name a run that has trained"
        ) from error
    log = []
    for number, line in enumerate(lines, start=1):
        try:
            log.append(json.loads(line))
        except (ValueError, RecursionError) as error:
            if number < len(lines):  # the last may be half a line, if the run was killed
                place = f"{run / 'log.jsonl'}, line {number}"
                raise UserError(f"{place} is not JSON ({error}): copy it again") from error
    if not log or not all(isinstance(line, dict) and "step" in line for line in log):
        raise UserError(f"{run / 'log.jsonl'} tells of no step: name a run that has trained")
    return Stage(description, log)


def file_digest(path: Path) -> str:
    """SHA-256 of a file, hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while part := file.read(2**20):
            digest.update(part)
    return digest.hexdigest()


# --- figures -------------------------------------------------------------------------------------


class Measured(NamedTuple):
    """What the model in the folder is worth: EM and F1 in per cent, also by group."""

    exact_match: float
    f1: float
    total: int
    groups: list[Group]
    precision: str
    says_no_answer: bool


def measure(folder: Path, examples: Sequence[Example], windows: WindowSettings) -> Measured:
    """Ask the model in a folder as ``bertqa infer`` asks it."""
    qa = QuestionAnswerer.from_pretrained(folder, windows=windows)
    predictions = list(qa.answer(examples))
    v2 = qa.decoding.version_2_with_negative
    figures = score(examples, predictions, qa.decoding)
    return Measured(
        figures["exact" if v2 else "exact_match"],
        figures["f1"],
        len(examples),
        breakdown(examples, {p.id: p.text for p in predictions}, v2=v2),
        str(qa.runtime.dtype).removeprefix("torch."),
        v2,
    )


def write_curves(folder: Path, steps: Sequence[Step], starts: Sequence[Sequence[int]]) -> list[str]:
    """Pictures of loss, and of EM and F1 where the runs measured them; their file names.

    Each run has a line of its own over the steps on the way from the encoder; where several began
    at one place, side by side, the losses have several colours. EM and F1 are those of the
    questions that the last run was measured on: those of others cannot be compared.
    """
    asked = [s.description["data"]["validation"] for s in steps if isinstance(s, Stage)][-1]
    names = _names_side_by_side(steps, starts)
    losses: list[Line] = []
    f1: list[Line] = []
    exact: list[Line] = []
    ends = [0]  # optimiser steps on the way from the encoder to each model
    for number, (step, start) in enumerate(zip(steps, starts, strict=True), start=1):
        begin = max(ends[i] for i in start)
        if isinstance(step, Mean):
            ends.append(begin)
            continue
        ends.append(begin + step.kept)  # from there the next run went on
        rows = [(begin + line["step"], line) for line in step.log]
        losses.append(
            Line(names[number], smoothed([(x, r["loss"]) for x, r in rows if "loss" in r]))
        )
        if step.description["data"]["validation"] == asked:
            f1.append(Line("F1", [(x, r["f1"]) for x, r in rows if "f1" in r]))
            exact.append(
                Line("exact match", [(x, r["exact_match"]) for x, r in rows if "exact_match" in r])
            )
    charts = {}
    for name, title, lines in (
        ("loss.svg", "Training loss, start + end", losses),
        ("accuracy.svg", "Exact match and F1 on held-out questions, %", f1 + exact),
    ):
        lines = [line for line in lines if line.points]
        if lines:
            charts[name] = line_chart(title, "step", lines)
    for name, chart in charts.items():
        write_text(folder / name, chart)
    return list(charts)


_LONGEST_NAME = 18  # letters that find a place beside the lines of a chart


def _names_side_by_side(steps: Sequence[Step], starts: Sequence[Sequence[int]]) -> dict[int, str]:
    """What the loss of each run, by its number, is called in the chart.

    Runs that share a name share its colour, and a chart has three: the first that began at a place,
    the second, and all further ones.
    """
    runs = [number for number, step in enumerate(steps, start=1) if isinstance(step, Stage)]
    rank = {
        number: min(2, sum(starts[other - 1] == starts[number - 1] for other in runs[:i]))
        for i, number in enumerate(runs)
    }
    if not any(rank.values()):
        return dict.fromkeys(runs, "loss")
    names = []
    for which in range(3):
        alike = [str(number) for number in runs if rank[number] == which]
        name = f"run{'s' * (len(alike) > 1)} {', '.join(alike)}"
        while len(name) > _LONGEST_NAME:
            alike.pop()
            name = f"runs {', '.join(alike)}, …"
        names.append(name)
    return {number: names[rank[number]] for number in runs}


# --- the card ------------------------------------------------------------------------------------


def model_card(
    name: str,
    encoder: str,
    data: str,
    steps: Sequence[Step],
    starts: Sequence[Sequence[int]],
    curves: Sequence[str],
    measured: Measured,
    digest: str,
    eval_name: str,
    *,
    selected: bool = False,
    curves_elsewhere: bool = False,
) -> str:
    """The text of the card, in Markdown.

    Args:
        starts: see ``starts_of``.
        selected: the questions chose the step as well.
        curves_elsewhere: the curves of EM and F1 are those of other questions.
    """
    last = [step.description for step in steps if isinstance(step, Stage)][-1]
    any_mean = any(isinstance(step, Mean) for step in steps)
    versions = ", ".join(f"{package} {version}" for package, version in last["versions"].items())
    parts = [
        f"# {name}",
        f"BERT for extractive question answering, made by `bertqa train`.\n\n"
        f"- encoder: {encoder}\n- trained on: {data}\n"
        f"- {eval_name}: **EM {measured.exact_match:.2f}, F1 {measured.f1:.2f}** on "
        f"{measured.total:,} questions, in {measured.precision}"
        + (", which also chose the best step of the run" if selected else "")
        + f"\n- file: `{WEIGHTS_FILE}`, float16, SHA-256 `{digest}`",
        "It finds answers that stand in the text word for word, in the language of its data. "
        + (
            'It says "no answer" from the null score in decoding.json on.'
            if measured.says_no_answer
            else "It answers every question, also one that the text does not answer."
        ),
        f'```bash\nbertqa infer --model {name} --question "..." --context "..."\n```',
        "## Training",
        "```bash\n"
        + "\n".join(
            _command(number, step, start)
            for number, (step, start) in enumerate(zip(steps, starts, strict=True), start=1)
        )
        + "\n```",
        "\n".join(
            _step_line(number, step, start)
            for number, (step, start) in enumerate(zip(steps, starts, strict=True), start=1)
        ),
        f"{versions}; on {last['device']}, {last['processes']} "
        f"process{'es' * (last['processes'] > 1)}.",
        *(f"![{curve.removesuffix('.svg')}]({curve})" for curve in curves),
        *(
            [
                "EM and F1 in the picture are those of the questions that the runs themselves were "
                f"measured on, other ones than {eval_name}'s: the figures cannot be compared."
                f"{' A mean has no points, as it was not trained.' * any_mean}"
            ]
            if "accuracy.svg" in curves and curves_elsewhere
            else []
        ),
        f"## Where it fails\n\nBy kind, on {eval_name}:",
        _group_table(measured.groups),
    ]
    return "\n\n".join(parts) + "\n"


_PATHS = {"--train_file", "--validation_file"}


def _command(number: int, step: Step, start: Sequence[int]) -> str:
    """The command of a run as it was given, but for the folders of the machine."""
    if isinstance(step, Mean):
        folders = " ".join(f"runs/{i}" for i in start)
        return f"bertqa average {folders} --output_dir runs/{number}"
    program, *words = [str(word) for word in step.description["command"]] or ["train.py"]
    shown = _program(Path(program).name, step.description["processes"])
    if words[:1] == ["train"]:  # the command of bertqa, not a flag
        del words[0]
    replaced = {"--output_dir": f"runs/{number}"}
    replaced["--model"] = f"runs/{start[0]}" if start[0] else "ENCODER"
    flag = ""
    for word in words:
        given, equals, value = word.partition("=")
        if given.startswith("--"):
            flag = "--" + given[2:].replace("-", "_")
        else:
            value = word
        if value and flag in replaced:
            value = replaced[flag]
        elif value and flag in _PATHS:
            value = Path(value).name
        shown.append(given + equals + value if given.startswith("--") else value)
    return shlex.join(word for word in shown if word != "--resume")


def _program(name: str, processes: int) -> list[str]:
    """How a run is started whose ``sys.argv[0]`` had that name.

    It was train.py in a clone, the script ``bertqa``, or __main__.py of ``python -m bertqa``.
    """
    launcher = ["torchrun", f"--nproc_per_node={processes}"] if processes > 1 else ["python"]
    if name == "train.py":
        return [*launcher, name]
    if name == "__main__.py" or processes > 1:
        return [*launcher, "-m", "bertqa", "train"]
    return ["bertqa", "train"]


def _step_line(number: int, step: Step, start: Sequence[int]) -> str:
    if isinstance(step, Mean):
        return f"- {number}: the mean of the weights of {_listed(start)}"
    description, log = step.description, step.log
    done = max((line["step"] for line in log), default=0)
    epochs = max((line["epoch"] for line in log), default=0)
    losses = [line["loss"] for line in log if "loss" in line and line["step"] <= step.kept]
    rates = [line["tokens_per_second"] for line in log if "tokens_per_second" in line]
    kept = f", kept: step {step.kept:,}" if step.kept != done else ""
    until = " until then" if kept else ""
    ended = f", the last logged loss{until} {losses[-1]:.3f}" if losses else ""
    speed = f", {sorted(rates)[len(rates) // 2]:,} tokens/s" if rates else ""
    spent = time_spent(log)
    time = f", {spent}" if spent else ""
    windows = description["settings"]["windows_per_step"]
    precision = description["settings"]["precision"].removeprefix("torch.")
    return (
        f"- run {number}: {done:,} steps of {windows} windows ({epochs:.2f} epochs) in "
        f"{precision}{time}{speed}{kept}{ended}; commit `{description['git_commit']}`"
    )


def _listed(numbers: Sequence[int]) -> str:
    """1, 2 and 3."""
    *most, last = map(str, numbers)
    return f"{', '.join(most)} and {last}" if most else last


def _group_table(groups: Sequence[Group]) -> str:
    rows = ["| by | group | questions | EM | F1 |", "| --- | --- | ---: | ---: | ---: |"]
    rows += [
        f"| {g.by} | {g.name} | {g.count:,} | {g.exact_match:.1f} | {g.f1:.1f} |" for g in groups
    ]
    return "\n".join(rows)
