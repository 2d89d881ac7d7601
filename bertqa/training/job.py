"""A whole training: from the names of a model and of data to a folder that answers questions.

    data = DataSettings(train_file=Path("my.json"), validation_split_percentage=10)
    train("bert-base-uncased", data, Path("runs/mine"), settings=TrainingSettings(seed=1))

``bertqa train`` is this with flags.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from bertqa.answering.answerer import QuestionAnswerer, check_window_fits, load_folder
from bertqa.answering.calibration import calibrate
from bertqa.answering.decoding_file import read_decoding_file
from bertqa.answering.evaluation import Evaluator
from bertqa.data.labels import (
    LabelledWindows,
    LabelReport,
    label_report,
    label_rule,
    make_labelled_windows,
)
from bertqa.data.readers import load_hub_dataset, read_examples
from bertqa.data.squad import (
    Example,
    check_answers,
    check_examples,
    check_version,
    data_fingerprint,
    has_both_kinds,
    split_by_article,
)
from bertqa.data.tokenization import BertTokenizer
from bertqa.errors import UserError, counted
from bertqa.model.hub import commit_of
from bertqa.runtime import Runtime, local_runtime
from bertqa.settings import DataSettings, DecodingSettings, TrainingSettings, WindowSettings
from bertqa.training.checkpoints import Progress, load_for_training
from bertqa.training.distillation import load_teachers
from bertqa.training.evaluations import Observer, evaluation_table
from bertqa.training.provenance import surroundings
from bertqa.training.run import Run
from bertqa.training.run_folder import RunFolder, check_free

Say = Callable[[object], object]


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
    """Fine-tune a model; it is in ``output_dir`` afterwards, the best one by F1.

    Where there are validation questions, its probabilities are calibrated on them at the end.

    Args:
        model: a checkpoint folder, a name under weights/, or one on the hub.
        data: what to train on, and what to evaluate on.
        output_dir: a new folder; see run_folder.py for what it will hold.
        settings, windows, decoding: how; their defaults where None.
        runtime: device, precision and processes; None settles them for one process.
        choose_threshold: where some questions have no answer and a part is held out by
            ``validation_split_percentage``, let it choose the threshold of "no answer" in place
            of ``decoding``. Of questions that training never saw that may be learned. They are
            weighted to ``settings.unanswerable_share``.
        resume: go on with the run in ``output_dir``, if there is one.
        revision: branch, tag or commit of a model on the hub; None is its newest commit.
        allow_bin: read pytorch_model.bin, which is a pickle (only tensors are unpickled).
        teachers: fine-tuned models to learn from besides the labels, named as ``model`` is; their
            tokenizer must be the model's. See distillation.py.
        observer: is told of log lines, evaluations and the end; ``RunReport(output_dir)`` of
            report/training_page.py draws report.html from them, as ``bertqa train`` does.
        say: is given each line to print.

    Raises:
        UserError: data, model, folder or disk are not as they must be, or a loss is not finite.
        Stopped: SIGINT or SIGTERM came; the step was finished and everything is saved.
    """
    output_dir = Path(output_dir)
    settings, runtime = settings or TrainingSettings(), runtime or local_runtime()
    windows, decoding = windows or WindowSettings(), decoding or DecodingSettings()
    tell: Say = say if runtime.is_main else lambda what: None
    check_free(output_dir, resume)
    if resume and not (output_dir / "run.json").exists():
        tell(f"--resume: {output_dir} holds no run yet, so one begins there")

    negative = decoding.version_2_with_negative
    parts = runtime.main_first(lambda: load_data(data, version_2_with_negative=negative, say=tell))
    _check_patience(settings, parts[1])
    seed = settings.seed
    loaded, tokenizer, report = runtime.main_first(
        lambda: load_for_training(model, seed=seed, revision=revision, allow_bin=allow_bin)
    )
    check_window_fits(loaded.config, windows)
    taught = runtime.main_first(
        lambda: load_teachers(teachers, settings, tokenizer, windows, allow_bin=allow_bin)
    )
    tell(report)
    training, validation = (_cut(examples, tokenizer, windows, runtime) for examples in parts)
    tell(f"training: {training}")
    chooses = bool(choose_threshold and data.validation_split_percentage and negative)
    share = settings.unanswerable_share if chooses else None
    evaluator = _evaluator(validation, decoding, runtime, share, tell)

    ran = _description(settings, runtime, training, validation, windows, decoding)
    ran["settings"] |= {
        "model": model,
        "model_commit": commit_of(report.source.parent),
        "teachers": list(teachers),
        "teacher_digests": [teacher.digest for teacher in taught],
    }
    ran["data"] |= {
        "chooses_threshold": bool(evaluator and evaluator.chooses_threshold),
        "added_tokens": tokenizer.markers,
    }
    folder = RunFolder(output_dir, ran)
    ids = [example.id for example in training.examples]
    run = Run(
        loaded, tokenizer, training.windows, evaluator, settings, runtime, folder, ids, observer,
        [teacher.model for teacher in taught],
    )  # fmt: skip
    run.start(resume)
    if runtime.is_main:
        folder.keep_labels({"training": training.labels, "validation": validation.labels})
        folder.keep_decoding(decoding, windows)
    plan = run.loop.plan
    tell(
        f"{counted(plan.total_steps, 'step')} of {counted(plan.windows_per_step, 'window')} on "
        f"{runtime.device} in "
        f"{runtime.dtype}, from step {run.progress.step}"
    )
    progress = run.train()
    tell(evaluation_table(progress.evaluations))
    if progress.step < plan.total_steps:
        tell(
            f"stopped early after step {progress.step} of {plan.total_steps}: F1 has not improved "
            f"in {counted(progress.evaluations_since_best, 'evaluation')}; the best model is kept"
        )
    if runtime.is_main and validation.examples:
        examples, told = validation.examples, observer or Observer()
        _calibrate(folder, examples, windows, decoding, runtime, told, tell)
    runtime.wait_for_all()
    return progress


def _calibrate(
    folder: RunFolder,
    examples: Sequence[Example],
    windows: WindowSettings,
    decoding: DecodingSettings,
    runtime: Runtime,
    observer: Observer,
    tell: Say,
) -> None:
    """Fit the temperature of the best model to the validation questions; it changes no answer."""
    model, tokenizer, _ = load_folder(folder.path, allow_bin=False, require_head=True)
    threshold = read_decoding_file(folder.path)[1].null_score_diff_threshold
    settings = replace(decoding, null_score_diff_threshold=threshold)
    qa = QuestionAnswerer(model, tokenizer, windows, settings, runtime)
    try:
        calibration, predictions = calibrate(qa, examples, "the validation data")
    except UserError as error:
        tell(f"the probabilities are not calibrated: {error}")
        return
    settings = replace(settings, temperature=calibration.temperature)
    folder.keep_calibration(calibration, predictions, settings, windows)
    before, after, number = calibration.before, calibration.after, calibration.fitted_on
    tell(
        f"temperature {after.temperature:.3f}, fitted on {counted(number, 'question')}: expected "
        f"calibration error {before.ece:.4f} before, {after.ece:.4f} after, on "
        f"{counted(after.questions, 'question')} about other articles"
    )
    observer.after_calibration(calibration, examples, settings)


def _check_patience(settings: TrainingSettings, validation: Sequence[Example]) -> None:
    """Refuse to stop early without questions that tell when.

    Raises:
        UserError: there are none.
    """
    if settings.early_stopping_patience and not validation:
        raise UserError(
            f"--early_stopping_patience {settings.early_stopping_patience} needs questions to "
            "evaluate on: pass --validation_file or --validation_split_percentage beside it"
        )


def _evaluator(
    validation: "_Part",
    decoding: DecodingSettings,
    runtime: Runtime,
    share: float | None,
    tell: Say,
) -> Evaluator | None:
    """What measures the model; None without questions.

    Args:
        share: of unanswerable questions, to choose a threshold for if that can be; None for not.
    """
    examples = validation.examples
    if share is not None and not has_both_kinds(examples):
        tell("the held-out part cannot choose a threshold: it lacks one kind of question")
        share = None
    if not examples:
        return None
    tell(f"validation: {validation}")
    if share is not None:
        own = sum(example.is_impossible for example in examples) / len(examples)
        tell(
            f'the threshold of "no answer" is chosen for {100 * share:g} % unanswerable questions; '
            f"{100 * own:.1f} % of the held-out ones are"
        )
    chooses = share is not None
    return Evaluator(examples, validation.windows, decoding, runtime, chooses, share)


def _description(
    settings: TrainingSettings,
    runtime: Runtime,
    training: "_Part",
    validation: "_Part",
    windows: WindowSettings,
    decoding: DecodingSettings,
) -> dict[str, Any]:
    """What run.json says of a run, but for its model, tokenizer and choice of a threshold."""
    return {
        "settings": asdict(settings)
        | {
            "windows_per_step": settings.windows_per_step(runtime.world_size),
            "precision": str(runtime.dtype),
        },
        "data": {
            "train": data_fingerprint(training.examples),
            "validation": data_fingerprint(validation.examples),
            "labels": label_rule(training.windows),
            "windows": asdict(windows),
            "decoding": asdict(decoding),
        },
        **surroundings(runtime),
    }


# --- data ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Part:
    """Examples, their windows, and what became of their labels."""

    examples: Sequence[Example]
    windows: LabelledWindows
    labels: LabelReport

    def __str__(self) -> str:
        return f"{counted(len(self.windows), 'window')} of {self.labels}"


def _cut(
    examples: list[Example], tokenizer: BertTokenizer, settings: WindowSettings, runtime: Runtime
) -> _Part:
    """Cut examples into labelled windows; each process does it for itself, in seconds."""
    windows = runtime.main_first(lambda: make_labelled_windows(examples, tokenizer, settings))
    return _Part(examples, windows, label_report(examples, windows.outcome, windows.cut_questions))


def load_data(
    data: DataSettings, *, version_2_with_negative: bool, say: Say = lambda what: None
) -> tuple[list[Example], list[Example]]:
    """Training and validation examples, checked; the second is empty where there are none.

    ``say`` is told what the data do not give.

    Raises:
        UserError: they cannot be read, or training cannot use them.
    """
    parts = read_data(data, say=say)
    for source, examples in parts:
        try:
            check_examples(examples, source)
            check_answers(examples, source)
        except UserError as error:
            hint = "; bertqa check finds all faults" if examples else ""
            raise UserError(f"{error}{hint}") from error
        check_version(examples, source, version_2_with_negative)
    train = parts[0][1]
    validation = parts[1][1] if len(parts) > 1 else []
    if data.validation_split_percentage:
        train, validation = split_by_article(train, data.validation_split_percentage)
    return train[: data.max_train_samples], validation[: data.max_eval_samples]


def read_data(
    data: DataSettings, *, say: Callable[[str], object], keep_faulty: bool = False
) -> list[tuple[str, list[Example]]]:
    """The training data, then those to evaluate on, if any, each with its name; not yet checked.

    ``say`` and ``keep_faulty`` are those of ``read_examples``.
    """
    if data.train_file:
        paths = [Path(path) for path in (data.train_file, data.validation_file) if path]
        return [(str(p), read_examples(p, say=say, keep_faulty=keep_faulty)) for p in paths]
    name = data.dataset or "squad"
    splits = ("train",) if data.validation_split_percentage else ("train", "validation")
    return [
        (f"{name}, {split}", load_hub_dataset(name, split, say=say, keep_faulty=keep_faulty))
        for split in splits
    ]
