"""A complete training: from the names of model and data to a fine-tuned model's folder.

    data = DataSettings(train_file=Path("my.json"), validation_split_percentage=10)
    train("bert-base-uncased", data, Path("runs/mine"), settings=TrainingSettings(seed=1))

``bertqa train`` calls it with its flags.
"""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from bertqa.answering.answerer import check_window_fits
from bertqa.data.labels import label_rule
from bertqa.data.squad import data_fingerprint
from bertqa.data.tokenization import BertTokenizer
from bertqa.errors import Say, counted, ignore
from bertqa.model.bert import BertForQuestionAnswering
from bertqa.model.checkpoint import LoadReport
from bertqa.model.hub import commit_of
from bertqa.runtime import Runtime, local_runtime
from bertqa.settings import DataSettings, DecodingSettings, TrainingSettings, WindowSettings
from bertqa.training.checkpoints import Progress, load_for_training
from bertqa.training.data import Part, label_part, load_data
from bertqa.training.distillation import Teacher, load_teachers
from bertqa.training.evaluations import Observer
from bertqa.training.provenance import run_metadata
from bertqa.training.run import Run
from bertqa.training.run_folder import RunFolder, check_free, lacks_unanswerable_share
from bertqa.training.validation import calibrate_best, check_patience, make_evaluator


def train(
    model: str,
    data: DataSettings,
    output_dir: str | Path,
    *,
    settings: TrainingSettings | None = None,
    windows: WindowSettings | None = None,
    decoding: DecodingSettings | None = None,
    runtime: Runtime | None = None,
    choose_threshold: bool = True,
    resume: bool = False,
    revision: str | None = None,
    allow_bin: bool = False,
    teachers: Sequence[str] = (),
    observer: Observer | None = None,
    say: Say = print,
) -> Progress:
    """Fine-tune a model, and save the best one by F1 in ``output_dir``.

    With validation questions, its probabilities are calibrated on them at the end.

    Args:
        model: a checkpoint folder, a name under weights/, or one on the hub.
        data: training and validation data.
        output_dir: a new folder; run_folder.py lists its files.
        settings, windows, decoding: settings; None for the defaults.
        runtime: device, precision and processes; None for one process on the best device.
        choose_threshold: with ``decoding.version_2_with_negative`` and
            ``validation_split_percentage``, choose the threshold of "no answer" on the held-out
            part, which training does not use, weighted to ``settings.unanswerable_share``.
        resume: continue the run in ``output_dir``, if there is one.
        revision: branch, tag or commit of a model on the hub; None is its newest commit.
        allow_bin: allow pytorch_model.bin, which is a pickle (only tensors are unpickled).
        teachers: names of fine-tuned models for distillation, with the model's tokenizer. See
            distillation.py.
        observer: callbacks for log lines, evaluations and the end; ``RunReport(output_dir)`` of
            report/training_page.py writes report.html, as ``bertqa train`` does.
        say: called with each line to print, except the evaluations, which the progress bar prints.

    Raises:
        UserError: data, model or folder are invalid, a file cannot be written, or a loss is not
            finite.
        Stopped: SIGINT or SIGTERM was received; the step was finished and a checkpoint saved.
    """
    output_dir = Path(output_dir)
    settings, runtime = settings or TrainingSettings(), runtime or local_runtime()
    windows, decoding = windows or WindowSettings(), decoding or DecodingSettings()
    say = say if runtime.is_main else ignore
    check_free(output_dir, resume)
    if resume and not (output_dir / "run.json").exists():
        say(f"--resume: no run in {output_dir} yet, starting a new one")

    negative = decoding.version_2_with_negative
    parts = runtime.main_first(lambda: load_data(data, version_2_with_negative=negative, say=say))
    check_patience(settings, parts[1])
    loaded = runtime.main_first(
        lambda: _load(model, teachers, settings, windows, negative, revision, allow_bin)
    )
    say(str(loaded.report))
    training, validation = (label_part(part, loaded.tokenizer, windows, runtime) for part in parts)
    say(f"training: {training}")
    chooses = bool(choose_threshold and data.validation_split_percentage and negative)
    share = None if lacks_unanswerable_share(output_dir) else settings.unanswerable_share
    evaluator = make_evaluator(validation, decoding, runtime, chooses, share, say)

    chosen = bool(evaluator and evaluator.chooses_threshold)
    description = _description(
        model, teachers, loaded, training, validation, settings, windows, decoding, runtime, chosen
    )
    folder = RunFolder(output_dir, description)
    run = Run(
        model=loaded.model, tokenizer=loaded.tokenizer, windows=training.windows,
        evaluator=evaluator, settings=settings, runtime=runtime, folder=folder,
        example_ids=[example.id for example in training.examples], observer=observer,
        teachers=loaded.teachers,
    )  # fmt: skip
    run.start(resume)
    if runtime.is_main:
        folder.keep_labels({"training": training.labels, "validation": validation.labels})
        folder.keep_decoding(decoding, windows)
    say(_first_line(run, runtime))
    progress = run.train()
    if progress.step < run.loop.plan.total_steps:
        say(_why_early(run))
    del run, loaded  # free the optimizer before calibration loads the best model
    if runtime.is_main and validation.examples:
        observer = observer or Observer()
        calibrate_best(folder, validation.examples, windows, decoding, runtime, observer, say)
    runtime.wait_for_all()
    return progress


class _Loaded(NamedTuple):
    """The model to train, and its teachers."""

    model: BertForQuestionAnswering
    tokenizer: BertTokenizer
    report: LoadReport
    teachers: list[Teacher]


def _load(
    model: str, teachers: Sequence[str], settings: TrainingSettings, windows: WindowSettings,
    negative: bool, revision: str | None, allow_bin: bool,
) -> _Loaded:  # fmt: skip
    """Load a model and its teachers; check that they accept the windows."""
    student, tokenizer, report = load_for_training(
        model, seed=settings.seed, revision=revision, allow_bin=allow_bin
    )
    check_window_fits(student.config, windows)
    loaded = load_teachers(teachers, settings, tokenizer, windows, negative, allow_bin=allow_bin)
    return _Loaded(student, tokenizer, report, loaded)


def _first_line(run: Run, runtime: Runtime) -> str:
    """Describe the steps to run."""
    plan = run.loop.plan
    steps, windows = counted(plan.total_steps, "step"), counted(plan.windows_per_step, "window")
    first = run.progress.step
    return f"{steps} of {windows} on {runtime.device} in {runtime.dtype}, from step {first}"


def _why_early(run: Run) -> str:
    """Return the reason for early stopping."""
    progress, total = run.progress, run.loop.plan.total_steps
    return (
        f"stopped early after step {progress.step} of {total}: F1 has not improved in "
        f"{counted(progress.evaluations_since_best, 'evaluation')}; kept the best model"
    )


def _description(
    model: str, teachers: Sequence[str], loaded: _Loaded, training: Part, validation: Part,
    settings: TrainingSettings, windows: WindowSettings, decoding: DecodingSettings,
    runtime: Runtime, chooses_threshold: bool,
) -> dict[str, Any]:  # fmt: skip
    """Return the contents of run.json."""
    return {
        "settings": asdict(settings)
        | {
            "windows_per_step": settings.windows_per_step(runtime.world_size),
            "precision": str(runtime.dtype),
            "model": model,
            "model_commit": commit_of(loaded.report.source.parent),
            "teachers": list(teachers),
            "teacher_digests": [teacher.digest for teacher in loaded.teachers],
        },
        "data": {
            "train": data_fingerprint(training.examples),
            "validation": data_fingerprint(validation.examples),
            "labels": label_rule(training.windows),
            "windows": asdict(windows),
            "decoding": asdict(decoding),
            "chooses_threshold": chooses_threshold,
            "added_tokens": loaded.tokenizer.markers,
        },
        **run_metadata(runtime),
    }
