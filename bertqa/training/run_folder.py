"""The folder of a training run: what it holds, and whether a run may go on in it.

    config.json, model.safetensors, tokenizer.json ...   the best model so far, ready to answer
    decoding.json, threshold.json                        when it says "no answer", and how well
    calibration.json                                     what the temperature in decoding.json does
    predictions.json, nbest_predictions.json ...         its answers to the validation questions
    run.json                                             settings, data, versions: what was run
    labels.json                                          labels that do not give back their answer
    log.jsonl                                            one line for each logged step
    evaluations/step-00000500.json                       the answers of the last two evaluations
    checkpoints/step-00000500/                           see checkpoints.py
    failure.json                                         the step whose loss was no number

All but the log, which grows line by line, is written whole or not at all; nothing is pickled.
Pages and pictures are for an observer, see evaluations.py.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from bertqa.answering.answers import Prediction
from bertqa.answering.calibration import CALIBRATION_FILE, Calibration, write_calibration
from bertqa.answering.decoding_file import (
    keep_temperature,
    read_decoding_file,
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
    read_json_object,
    said_plainly,
    write_json,
    write_json_map,
)
from bertqa.model.bert import BertForQuestionAnswering
from bertqa.model.checkpoint import save_model
from bertqa.settings import DecodingSettings, TrainingSettings, WindowSettings

# A run may be resumed with other values of these: batches and recipe stay the same, because
# windows_per_step must stay. Another split of a step (over batches, processes or threads) draws
# other dropout, though. With more patience a run that was stopped early continues.
_FREE_SETTINGS = (
    "logging_steps", "save_steps", "save_total_limit", "per_device_train_batch_size",
    "gradient_accumulation_steps", "early_stopping_patience",
    "teachers",  # their names; what they are is told by their digests
)  # fmt: skip

# What a run did that is older than a setting: a new setting defaults to what was done before it.
_BEFORE: dict[str, dict[str, Any]] = {
    "settings": asdict(TrainingSettings()) | {"teacher_digests": []},
    "data": {
        "windows": asdict(WindowSettings()),
        "decoding": asdict(DecodingSettings()),
        "chooses_threshold": False,
        "labels": FIRST_GOLD,
        "added_tokens": 0,  # which were text
    },
}


def began_unweighted(path: Path) -> bool:
    """Whether a folder has a run of a version that knew no ``unanswerable_share``.

    It goes on as it began: its threshold is chosen for the held-out questions as they are.
    """
    run = path / "run.json"
    return run.exists() and "unanswerable_share" not in read_json_object(run).get("settings", {})


def check_free(path: Path, resume: bool) -> None:
    """See that a run can begin in a folder, or with ``resume`` go on there.

    Raises:
        UserError: the folder holds something else, or a run that is not to be resumed.
    """
    with said_plainly(path, "looked at"):  # a closed folder, a name that is too long
        is_run = (path / "run.json").exists()
        has_more = path.is_dir() and any(path.iterdir())
    if is_run and resume:
        return
    if is_run:
        raise UserError(
            f"--output_dir {path} holds a run: pass --resume to go on with it, or name another "
            "folder"
        )
    if path.exists() and not path.is_dir():
        raise UserError(f"--output_dir {path} is a file: name a folder")
    if has_more:
        raise UserError(
            f"--output_dir {path} is not empty and holds no run (there is no run.json): name "
            "another folder"
        )


def _difference(key: str, then: Any, now: Any, before: Any) -> str:
    """What a run had that is another now, "" for nothing; ``before`` is what it had if unsaid."""
    if isinstance(now, dict):
        then, before = (value if isinstance(value, dict) else {} for value in (then, before))
        parts = (_difference(k, then.get(k, before.get(k)), now[k], None) for k in now)
        return next(filter(None, parts), "")
    if then == now:
        return ""
    if key in ("train", "validation"):  # known by their digests, which say nothing
        return (
            f"began with other {key} questions than are read now, from other data or by another "
            "version of bertqa"
        )
    if key == "teacher_digests":
        return "began with other teachers than are given now"
    hint = f" (--revision {then} takes that)" if key == "model_commit" and then else ""
    return f"has {key} {then!r}, not {now!r}{hint}"


class RunFolder:
    """One run's folder.

    Args:
        path: it is made by ``open``.
        description: goes into run.json; its parts "settings" and "data" decide whether a run that
            is resumed is the same run.
    """

    def __init__(self, path: Path, description: dict[str, Any]) -> None:
        self.path, self.description = path, description

    def check_same_run(self) -> None:
        """See that the run in the folder, if there is one, is the one described.

        Raises:
            UserError: it had other settings or data.
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
                        f"--resume: the run in {self.path} {difference}: give the same settings "
                        "and data, or another --output_dir"
                    )

    def open(self, step: int) -> None:
        """Make the folder, or drop what tells of steps after ``step``, which will be done again."""
        if not (self.path / "run.json").exists():  # first: it marks the folder as a run's
            write_json(self.path / "run.json", self.description)
        with said_plainly(self.path, "written"):
            (self.path / "failure.json").unlink(missing_ok=True)
        for answers in (self.path / "evaluations").glob("step-*.json"):
            if answers > _answers_of(answers.parent, step):  # they will be given again
                with said_plainly(answers, "removed"):
                    answers.unlink()
        lines = json_lines(self.path / "log.jsonl", "step")
        kept = max((end for end, line in lines if line["step"] <= step), default=0)
        append_json_lines(self.path / "log.jsonl", (), kept)

    def append_log(self, line: Mapping[str, Any]) -> None:
        """Add one line to log.jsonl."""
        append_json_lines(self.path / "log.jsonl", [line])

    def keep_labels(self, reports: dict[str, LabelReport]) -> None:
        """List in labels.json every label that does not give back its answer, by cause."""
        listed = {
            name: {outcome.name.lower(): ids for outcome, ids in report.listed.items()}
            | {"cut_questions": report.cut_questions}
            for name, report in reports.items()
        }
        write_json(self.path / "labels.json", listed)

    def keep_decoding(self, settings: DecodingSettings, windows: WindowSettings) -> None:
        """Let the model say "no answer" as the flags say, until a threshold is chosen."""
        if settings.version_2_with_negative and not (self.path / DECODING_FILE).exists():
            write_decoding_file(self.path, settings, windows)

    def keep_best(self, model: BertForQuestionAnswering, tokenizer: BertTokenizer) -> None:
        """Put a model at the folder's top, in place of the one before.

        The temperature goes that was fitted to that one, where a run that was at its end goes on.
        """
        if (self.path / CALIBRATION_FILE).exists():
            windows, decoding = read_decoding_file(self.path)
            fresh = replace(decoding, temperature=DecodingSettings.temperature)
            keep_temperature(self.path, fresh, windows or WindowSettings())
            with said_plainly(self.path / CALIBRATION_FILE, "removed"):
                (self.path / CALIBRATION_FILE).unlink()
        tokenizer.save(self.path)
        save_model(self.path, model)

    def keep_predictions(self, evaluation: Evaluation, settings: DecodingSettings) -> None:
        """Put the best model's answers to the validation questions beside it."""
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
        """Keep the temperature of the best model, and its answers with the probabilities by it.

        Args:
            settings: with that temperature.
        """
        write_predictions(self.path, predictions, settings)
        write_calibration(self.path, calibration)
        keep_temperature(self.path, settings, windows)

    def keep_answers(self, step: int, predictions: Sequence[Prediction]) -> None:
        """Keep the answers of an evaluation beside those of the one before."""
        folder = self.path / "evaluations"
        write_json_map(_answers_of(folder, step), ((p.id, p.text) for p in predictions))
        for old in sorted(folder.glob("step-*.json"))[:-2]:
            with said_plainly(old, "removed"):
                old.unlink()

    def keep_failure(self, failure: Mapping[str, Any]) -> Path:
        """Write what is known of a step that failed; the file."""
        write_json(self.path / "failure.json", failure)
        return self.path / "failure.json"


def read_description(path: Path) -> dict[str, Any]:
    """What run.json says in a run's folder."""
    return _own(path / "run.json")


def read_log(path: Path) -> list[dict[str, Any]]:
    """The lines of the log in a run's folder."""
    return [line for _, line in json_lines(path / "log.jsonl")]


def last_answers(path: Path) -> list[tuple[int, dict[str, Any]]]:
    """Step and answers, id -> text, of the last two evaluations in a run's folder, in order."""
    files = sorted((path / "evaluations").glob("step-*.json"))[-2:]
    return [(int(file.stem.removeprefix("step-")), _own(file)) for file in files]


def kept_answers(path: Path) -> dict[str, Any] | None:
    """The answers of the model that is kept in a run's folder, id -> text; None without one."""
    file = path / "predictions.json"
    return _own(file) if file.exists() else None


def _own(file: Path) -> dict[str, Any]:
    """A file that a run has written, however large: as many answers as there are questions."""
    return read_json_object(file, largest=file.stat().st_size)


def _answers_of(folder: Path, step: int) -> Path:
    return folder / f"step-{step:08d}.json"
