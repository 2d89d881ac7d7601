"""The folder of a training run.

    config.json, model.safetensors, tokenizer.json ...   the best model so far
    decoding.json, threshold.json                        its threshold of "no answer" and curve
    calibration.json                                     effect of the temperature in decoding.json
    predictions.json, nbest_predictions.json ...         its answers to the validation questions
    run.json                                             settings, data and versions of the run
    labels.json                                          labels that do not reproduce their answer
    log.jsonl                                            one line for each logged step
    evaluations/step-00000500.json                       answers of the last two evaluations
    checkpoints/step-00000500/                           see checkpoints.py
    failure.json                                         a step with a NaN or infinite loss

All files except the log, which is appended to, are written atomically; nothing is pickled.
Observers write pages and charts, see evaluations.py.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from bertqa.answering.answers import Prediction
from bertqa.answering.calibration import CALIBRATION_FILE, Calibration, write_calibration
from bertqa.answering.decoding_file import (
    read_decoding_file,
    update_temperature,
    write_curve,
    write_decoding_file,
)
from bertqa.answering.evaluation import Evaluation, best_point, write_predictions
from bertqa.data.labels import FIRST_GOLD, LabelReport
from bertqa.data.tokenization import BertTokenizer
from bertqa.errors import UserError
from bertqa.files import (
    DECODING_FILE,
    append_json_lines,
    json_lines,
    os_errors_as_user_errors,
    read_json_object,
    write_json,
    write_json_map,
)
from bertqa.model.bert import BertForQuestionAnswering
from bertqa.model.checkpoint import save_model
from bertqa.settings import DecodingSettings, TrainingSettings, WindowSettings

# Settings that a resumed run may change. Steps keep their windows, because windows_per_step must
# not change; another split of a step (over batches, processes or threads) changes the dropout
# masks, though. More patience continues a run that was stopped early.
_FREE_SETTINGS = (
    "logging_steps", "save_steps", "save_total_limit", "per_device_train_batch_size",
    "gradient_accumulation_steps", "early_stopping_patience",
    "teachers",  # their names; teacher_digests must not change
)  # fmt: skip

# The values for runs older than a setting or an entry.
_BEFORE: dict[str, dict[str, Any]] = {
    "settings": asdict(TrainingSettings()) | {"teacher_digests": []},
    "data": {
        "windows": asdict(WindowSettings()),
        "decoding": asdict(DecodingSettings()),
        "chooses_threshold": False,
        "labels": FIRST_GOLD,
        "added_tokens": 0,  # they were read as text
    },
}


def lacks_unanswerable_share(path: Path) -> bool:
    """Return whether a folder has a run of a version without ``unanswerable_share``.

    Such a run is resumed without weights: the threshold fits the held-out questions as they are.
    """
    run = path / "run.json"
    return run.exists() and "unanswerable_share" not in read_json_object(run).get("settings", {})


def check_free(path: Path, resume: bool) -> None:
    """Check that a run can start, or with ``resume`` continue, in a folder.

    Raises:
        UserError: the folder contains other files, or a run and ``resume`` is False.
    """
    with os_errors_as_user_errors(path, "accessed"):  # no permission, or a name that is too long
        is_run = (path / "run.json").exists()
        has_more = path.is_dir() and any(path.iterdir())
    if is_run and resume:
        return
    if is_run:
        raise UserError(
            f"--output_dir: must be a new or empty folder, got {path}, which contains a run: pass "
            "--resume to continue it, or another folder"
        )
    if path.exists() and not path.is_dir():
        raise UserError(f"--output_dir: must be a folder, got the file {path}: pass another path")
    if has_more:
        raise UserError(
            f"--output_dir: must be a new or empty folder, got {path}, which contains files but no "
            "run (no run.json): pass another folder"
        )


def _difference(key: str, then: Any, now: Any, before: Any) -> str:
    """Describe the change of a run's entry, "" if there is none.

    Args:
        key: name of the entry.
        then, now: its value in run.json, and in the resumed run.
        before: its value for a run that lacks it.
    """
    if isinstance(now, dict):
        then, before = (value if isinstance(value, dict) else {} for value in (then, before))
        parts = (_difference(k, then.get(k, before.get(k)), now[k], None) for k in now)
        return next(filter(None, parts), "")
    if then == now:
        return ""
    if key in ("train", "validation"):  # their values are digests: do not show them
        return f"{key} questions must be the same: the data or the version of bertqa changed"
    if key == "teacher_digests":
        return "teachers must be the same: their files changed"
    hint = f" (--revision {then} selects it)" if key == "model_commit" and then else ""
    return f"{key} must be {then!r}{hint}, got {now!r}"


class RunFolder:
    """The folder of one run.

    Args:
        path: the folder; ``open`` creates it.
        description: contents of run.json; "settings" and "data" must be the same in a resumed run.
    """

    def __init__(self, path: Path, description: dict[str, Any]) -> None:
        self.path, self.description = path, description

    def check_same_run(self) -> None:
        """Check that the run in the folder, if any, has this description.

        Raises:
            UserError: it has other settings or data.
        """
        if not (self.path / "run.json").exists():
            return
        run = read_json_object(self.path / "run.json")
        for part in ("settings", "data"):
            decisive = {k: v for k, v in self.description[part].items() if k not in _FREE_SETTINGS}
            for key, now in decisive.items():
                before = _BEFORE[part].get(key)
                then = run.get(part, {}).get(key, before)
                if difference := _difference(key, then, now, before):
                    raise UserError(
                        f"--resume: to continue the run in {self.path}, {difference}: pass the "
                        "same settings and data, or another --output_dir"
                    )

    def open(self, step: int) -> None:
        """Create the folder, or remove results of steps after ``step``, which will be repeated."""
        if not (self.path / "run.json").exists():  # first, since it marks the folder as a run's
            write_json(self.path / "run.json", self.description)
        with os_errors_as_user_errors(self.path, "written"):
            (self.path / "failure.json").unlink(missing_ok=True)
        for answers in (self.path / "evaluations").glob("step-*.json"):
            if answers > _answers_of(answers.parent, step):
                with os_errors_as_user_errors(answers, "removed"):
                    answers.unlink()
        lines = json_lines(self.path / "log.jsonl", "step")
        kept = max((end for end, line in lines if line["step"] <= step), default=0)
        append_json_lines(self.path / "log.jsonl", (), kept)

    def append_log(self, line: Mapping[str, Any]) -> None:
        """Append one line to log.jsonl."""
        append_json_lines(self.path / "log.jsonl", [line])

    def keep_labels(self, reports: dict[str, LabelReport]) -> None:
        """Write labels.json: all labels that do not reproduce their answer, by cause."""
        listed = {
            name: {outcome.name.lower(): ids for outcome, ids in report.listed.items()}
            | {"cut_questions": report.cut_questions}
            for name, report in reports.items()
        }
        write_json(self.path / "labels.json", listed)

    def keep_decoding(self, settings: DecodingSettings, windows: WindowSettings) -> None:
        """Write decoding.json with the settings of "no answer", until a threshold is chosen."""
        if settings.version_2_with_negative and not (self.path / DECODING_FILE).exists():
            write_decoding_file(self.path, settings, windows)

    def keep_best(self, model: BertForQuestionAnswering, tokenizer: BertTokenizer) -> None:
        """Save a model in the folder, replacing the previous one.

        If a finished run was continued, also remove the temperature fitted to the previous one.
        """
        if (self.path / CALIBRATION_FILE).exists():
            windows, decoding = read_decoding_file(self.path)
            default = replace(decoding, temperature=DecodingSettings.temperature)
            update_temperature(self.path, default, windows or WindowSettings())
            with os_errors_as_user_errors(self.path / CALIBRATION_FILE, "removed"):
                (self.path / CALIBRATION_FILE).unlink()
        tokenizer.save(self.path)
        save_model(self.path, model)

    def keep_predictions(self, evaluation: Evaluation, settings: DecodingSettings) -> None:
        """Write the best model's answers to the validation questions, metrics and threshold."""
        write_predictions(self.path, evaluation.predictions, settings)
        write_json(self.path / "metrics.json", evaluation.metrics)
        if evaluation.curve:
            windows, _ = read_decoding_file(self.path)
            threshold, share = best_point(evaluation.curve).threshold, evaluation.unanswerable_share
            chosen = replace(settings, null_score_diff_threshold=threshold)
            write_decoding_file(self.path, chosen, windows or WindowSettings(), share)
            write_curve(self.path, evaluation.curve, share)

    def keep_calibration(
        self,
        calibration: Calibration,
        predictions: Sequence[Prediction],
        settings: DecodingSettings,
        windows: WindowSettings,
    ) -> None:
        """Write the temperature of the best model, and its answers with calibrated probabilities.

        Args:
            calibration: the temperature and its effect.
            predictions: the answers.
            settings: decoding settings with that temperature.
            windows: window settings.
        """
        write_predictions(self.path, predictions, settings)
        write_calibration(self.path, calibration)
        update_temperature(self.path, settings, windows)

    def keep_answers(self, step: int, predictions: Sequence[Prediction]) -> None:
        """Write the answers of an evaluation; keep those of the previous one."""
        folder = self.path / "evaluations"
        write_json_map(_answers_of(folder, step), ((p.id, p.text) for p in predictions))
        for old in sorted(folder.glob("step-*.json"))[:-2]:
            with os_errors_as_user_errors(old, "removed"):
                old.unlink()

    def keep_failure(self, failure: Mapping[str, Any]) -> Path:
        """Write failure.json and return its path."""
        write_json(self.path / "failure.json", failure)
        return self.path / "failure.json"


def read_description(path: Path) -> dict[str, Any]:
    """Return the contents of a run's run.json."""
    return _read_written(path / "run.json")


def read_log(path: Path) -> list[dict[str, Any]]:
    """Return the lines of a run's log."""
    return [line for _, line in json_lines(path / "log.jsonl")]


def last_answers(path: Path) -> list[tuple[int, dict[str, Any]]]:
    """Return step and answers, id -> text, of a run's last two evaluations, in order."""
    files = sorted((path / "evaluations").glob("step-*.json"))[-2:]
    return [(int(file.stem.removeprefix("step-")), _read_written(file)) for file in files]


def kept_answers(path: Path) -> dict[str, Any] | None:
    """Return the answers of a run's best model, id -> text; None if there is none."""
    file = path / "predictions.json"
    return _read_written(file) if file.exists() else None


def _read_written(file: Path) -> dict[str, Any]:
    """Read a JSON file written by a run, of any size."""
    return read_json_object(file, largest=file.stat().st_size)


def _answers_of(folder: Path, step: int) -> Path:
    return folder / f"step-{step:08d}.json"
