"""Release of a fine-tuned model: a folder with weights in half precision and a model card.

The card, README.md, is rendered from card.md.jinja with the run's command, settings, versions,
commit and log, and with EM and F1 of the released file.
"""

import hashlib
import re
import shlex
import shutil
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jinja2
import torch

from bertqa.answering.answerer import QuestionAnswerer, load_folder
from bertqa.answering.calibration import CALIBRATION_FILE, CALIBRATION_PICTURE, read_calibration
from bertqa.answering.decoding_file import read_decoding_file
from bertqa.answering.metrics import question_scores
from bertqa.data.readers import read_examples
from bertqa.data.squad import Example, check_answers, check_examples, data_fingerprint
from bertqa.data.text import is_blank, visible
from bertqa.errors import UserError, counted
from bertqa.files import (
    DECODING_FILE,
    WEIGHTS_FILE,
    json_lines,
    new_folder,
    read_json_object,
    write_text,
)
from bertqa.model.checkpoint import save_model
from bertqa.report.analysis import Group, bootstrap_interval, breakdown
from bertqa.report.calibration import reliability_diagram
from bertqa.report.training_page import draw_series, format_duration, run_figures
from bertqa.runtime import limit_onednn_cache
from bertqa.settings import DecodingSettings, WindowSettings

_SUREST = 5  # number of wrong answers that the card names
# Shown instead of the machine's folders; a name without a folder is shown.
_SHOWN_AS = {"--model": "ENCODER", "--teacher": "TEACHER", "--output_dir": "RUN"}


@dataclass(frozen=True)
class Metrics:
    """EM and F1 of some questions in percent, with 95 % intervals by the bootstrap."""

    count: int
    exact_match: float
    f1: float
    exact_match_interval: tuple[float, float]
    f1_interval: tuple[float, float]

    @classmethod
    def of(cls, scores: Iterable[tuple[float, float]]) -> "Metrics":
        """Compute them from the EM and F1 of each question, from 0 to 1."""
        exact, overlap = ([100 * value for value in part] for part in zip(*scores, strict=True))
        return cls(
            len(exact), statistics.fmean(exact), statistics.fmean(overlap),
            bootstrap_interval(exact), bootstrap_interval(overlap),
        )  # fmt: skip


@dataclass(frozen=True)
class FileReport:
    """Figures of the card on one file of questions.

    Attributes:
        name: the file's name.
        is_forced: whether "no answer" was excluded from a model that supports it.
        every: metrics of all questions.
        answerable, unanswerable: metrics of each kind, if the file has both and the model
            supports "no answer".
        groups: EM and F1 by group.
        wrong: number of answers that share no word with a gold answer.
        surest: ids of the wrong answers with the highest probability.
        precision: dtype of the model.
    """

    name: str
    is_forced: bool
    every: Metrics
    answerable: Metrics | None
    unanswerable: Metrics | None
    groups: Sequence[Group]
    wrong: int
    surest: Sequence[str]
    precision: str


def release(
    source: Path, output_dir: Path, *, encoder: str, data: str, eval_files: Sequence[Path]
) -> list[FileReport]:
    """Write the released model, evaluate it, and add the card.

    A model with "no answer" must return a span for each question of a file without unanswerable
    questions, such as dev of SQuAD v1.1: its published metrics are defined so.

    Args:
        source: output folder of training, or another folder with a fine-tuned model.
        encoder, data: pretrained encoder and training data, with their licenses, for the card.
        eval_files: files of questions with gold answers on which the model was not trained; their
            names differ.

    Returns:
        The figures on each file.

    Raises:
        UserError: a file or folder is missing or invalid.
    """
    if output_dir.exists():
        raise UserError(f"--output_dir: must be a new folder, got {output_dir}: name another")
    if not source.is_dir():
        raise UserError(f"{source}: must be an existing folder, got none: check the path")
    for name, text in (("encoder", encoder), ("data", data)):
        if is_blank(text):
            raise UserError(
                f"--{name}: must have a visible character, got {text!r}: name it and its license"
            )
    names = [file.name for file in eval_files]
    if len(set(names)) < len(names):
        raise UserError(
            "--eval_file: the files must have different names, as the card calls them by name, got "
            f"{', '.join(names)}: rename one"
        )
    run = read_run(source)
    windows, decoding = read_decoding_file(source)
    asked = {file: _questions(file, source, decoding) for file in eval_files}
    fingerprints = {file: data_fingerprint(examples) for file, examples in asked.items()}
    for file, fingerprint in fingerprints.items():
        if run and run["train"] == fingerprint:
            raise UserError(
                f"--eval_file: must not contain the training questions, got {file}: pass another "
                "file"
            )
    limit_onednn_cache()
    with new_folder(output_dir) as folder:
        model, tokenizer, _ = load_folder(source, allow_bin=False, require_head=True)
        save_model(folder, model, torch.float16)
        tokenizer.save(folder)
        for name in (DECODING_FILE, "threshold.json", "threshold.svg", CALIBRATION_FILE):
            if (source / name).exists():
                shutil.copyfile(source / name, folder / name)
        if calibration := read_calibration(folder):
            write_text(folder / CALIBRATION_PICTURE, reliability_diagram(calibration))
        if run:
            windows = run["windows"]
        reports = [measure(folder, file.name, asked[file], windows) for file in asked]
        card = _template("card.md.jinja").render(
            reports=reports, decoding=decoding, counted=counted, format_duration=format_duration,
            name=output_dir.name, encoder=encoder, data=data,
            run=run, curves=write_curves(folder, run["log"]) if run else [], weights=WEIGHTS_FILE,
            calibration=calibration, diagram=CALIBRATION_PICTURE,
            chose_step=[
                file.name for file in asked if run and run["validation"] == fingerprints[file]
            ],
            digest=hashlib.sha256((folder / WEIGHTS_FILE).read_bytes()).hexdigest(),
        )  # fmt: skip
        write_text(folder / "README.md", card)
    return reports


def _questions(file: Path, source: Path, decoding: DecodingSettings) -> list[Example]:
    """Read the questions for evaluating the model in ``source``."""
    examples = read_examples(file)
    check_examples(examples, str(file))
    check_answers(examples, str(file))
    if not decoding.version_2_with_negative and any(example.is_impossible for example in examples):
        raise UserError(
            f"--eval_file: every question must have an answer, as {source} was trained without "
            f'"no answer", got unanswerable questions in {file}: pass another file'
        )
    return examples


def _template(name: str) -> jinja2.Template:
    """Load a Markdown template of this folder; its filter ``literal`` escapes."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), undefined=jinja2.StrictUndefined,
        trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True,
    )  # fmt: skip
    environment.filters["literal"] = _literal
    return environment.get_template(name)


def _literal(text: str) -> str:
    """Escape untrusted text for Markdown."""
    return re.sub(r"[\\`*_\[\]<>|~&]", r"\\\g<0>", visible(text))


def measure(
    folder: Path, name: str, examples: Sequence[Example], windows: WindowSettings | None
) -> FileReport:
    """Evaluate the model in a folder on the questions of a file, as ``bertqa infer`` does."""
    qa = QuestionAnswerer.from_pretrained(folder, windows=windows)
    has_null = any(not example.answers for example in examples)
    knows_null = qa.decoding.version_2_with_negative
    v2 = knows_null and has_null
    qa.decoding = replace(qa.decoding, version_2_with_negative=v2)
    predictions = list(qa.answer(examples))
    texts = {prediction.id: prediction.text for prediction in predictions}
    scores = question_scores(texts, {e.id: e.answers or () for e in examples}, v2=v2)
    wrong = [prediction for prediction in predictions if scores[prediction.id][1] == 0]
    wrong.sort(key=lambda p: max((a.probability for a in p.answers), default=0.0), reverse=True)
    kinds = [
        [scores[e.id] for e in examples if bool(e.answers) is has_answer]
        for has_answer in (True, False)
    ]
    answerable, unanswerable = (Metrics.of(kind) if v2 and all(kinds) else None for kind in kinds)
    return FileReport(
        name,
        is_forced=knows_null and not v2,
        every=Metrics.of(scores[e.id] for e in examples),
        answerable=answerable,
        unanswerable=unanswerable,
        groups=breakdown(examples, texts, v2=v2),
        wrong=len(wrong),
        surest=[prediction.id for prediction in wrong[:_SUREST]],
        precision=str(qa.runtime.dtype).removeprefix("torch."),
    )


# --- the run -------------------------------------------------------------------------------------


def read_run(folder: Path) -> dict[str, Any] | None:
    """Read run.json and log.jsonl for the card; None if there is no run.json.

    Raises:
        UserError: one of them is not as bertqa train writes it.
    """
    file, log_file = folder / "run.json", folder / "log.jsonl"
    if not file.exists():
        return None
    description = read_json_object(file)
    log = [line for _, line in json_lines(log_file, "step", "epoch")]
    try:
        data, settings = description["data"], description["settings"]
        keys = ("git_commit", "versions", "device", "processes")
        # Runs of 0.1 have no processor and threads.
        machine = {key: description.get(key) for key in ("processor", "threads")}
        return {
            **{key: description[key] for key in keys},
            **machine,
            "settings": settings | data["windows"],
            "windows_per_step": settings["windows_per_step"],
            "precision": settings["precision"].removeprefix("torch."),
            "windows": WindowSettings(**data["windows"]),
            "train": data["train"],
            "validation": data["validation"],
            "command": _command(description["command"], description["processes"]),
            **run_figures(log),
            "log": log,
            "epochs": max(line["epoch"] for line in log),
        }
    except (LookupError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise UserError(
            f"{file} and {log_file.name}: must be as bertqa train writes them after the first "
            f"logged step, got {type(error).__name__} ({error}): copy the run again, or name "
            "another"
        ) from error


def _command(words: Sequence[str], processes: int) -> str:
    """Return the command of a run to repeat it, without the machine's folders.

    ``words[0]`` is train.py in a clone, the script ``bertqa``, or __main__.py of ``python -m
    bertqa``.
    """
    program = Path(words[0]).name
    shown = ["torchrun", f"--nproc_per_node={processes}"] if processes > 1 else ["python"]
    if program == "train.py":
        shown.append(program)
    elif program == "__main__.py" or processes > 1:
        shown += ["-m", "bertqa", "train"]
    else:
        shown = ["bertqa", "train"]
    flag = ""
    for word in words[2:] if words[1:2] == ["train"] else words[1:]:
        given, equals, value = word.partition("=") if word.startswith("--") else ("", "", word)
        flag = "--" + given[2:].replace("-", "_") if given else flag
        if value and flag in ("--train_file", "--validation_file"):
            value = Path(value).name
        if Path(value).name != value:
            value = _SHOWN_AS.get(flag, value)
        shown.append(given + equals + value)
    return shlex.join(word for word in shown if word != "--resume")


def write_curves(folder: Path, log: Sequence[dict[str, Any]]) -> list[str]:
    """Draw the loss, and EM and F1 if the run has them; return the names of all pictures."""
    accuracy = "Exact match and F1 on held-out questions, %"
    charts = {
        "loss.svg": draw_series("Training loss, start + end", log, {"loss": "loss"}),
        "accuracy.svg": draw_series(accuracy, log, {"f1": "F1", "exact_match": "exact match"}),
    }
    for name, chart in charts.items():
        if chart:
            write_text(folder / name, chart)
    return [name for name in (*charts, "threshold.svg") if (folder / name).exists()]
