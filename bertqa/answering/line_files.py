"""Output files of a job that answers row by row: predictions.jsonl, rejects.jsonl, settings.json.

Each line has the number of its row, so that a killed job can be resumed and no row is lost. The
rejects of a block are written before its answers: everything up to the last complete answer is
final, and the rest is done again.
"""

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bertqa.answering.blocks import digest
from bertqa.answering.metrics import evaluate_pairs
from bertqa.data.formats import is_parquet
from bertqa.data.readers import MissingValues, iter_rows
from bertqa.errors import Say, UserError, ignore, shown
from bertqa.files import (
    append_json_lines,
    json_lines,
    os_errors_as_user_errors,
    read_json_object,
    write_json,
)
from bertqa.settings import DecodingSettings

PREDICTIONS, REJECTS, SETTINGS = "predictions.jsonl", "rejects.jsonl", "settings.json"


def unit_of(source: Path) -> str:
    """Return the name of a row in the file's format, which is the key of its number."""
    return "row" if is_parquet(source) else "line"


@dataclass(frozen=True)
class LineFiles:
    """The output files of a job; ``unit`` is the key of a row's number."""

    folder: Path
    unit: str

    def begin(self, sizes: tuple[int, int], settings: Mapping[str, Any]) -> None:
        """Truncate answers and rejects to these sizes in bytes, and write the settings."""
        answers, rejects = sizes
        with os_errors_as_user_errors(self.folder, "created"):
            self.folder.mkdir(parents=True, exist_ok=True)
        append_json_lines(self.folder / PREDICTIONS, (), answers)
        if rejects:
            append_json_lines(self.folder / REJECTS, (), rejects)
        else:
            with os_errors_as_user_errors(self.folder / REJECTS, "removed"):
                (self.folder / REJECTS).unlink(missing_ok=True)
        write_json(self.folder / SETTINGS, settings)  # after old answers are removed

    def append(self, entries: Sequence[Mapping[str, Any]]) -> tuple[int, int]:
        """Write the entries of a block; return the numbers of answers and rejects."""
        good = [entry for entry in entries if "fault" not in entry]
        bad = [entry for entry in entries if "fault" in entry]
        if bad:
            append_json_lines(self.folder / REJECTS, bad)
        append_json_lines(self.folder / PREDICTIONS, good)
        return len(good), len(bad)

    def earlier_run(self, source: Path, settings: Mapping[str, Any]) -> tuple[int, tuple[int, int]]:
        """Return the last row that an earlier run answered, and the complete sizes of its files.

        Raises:
            UserError: the settings or the input differ from the earlier run, or it is a pipe.
        """
        if source.is_fifo():
            raise UserError(f"--resume: --input must be a file, got the pipe {source}")
        answers, unit = self.folder / PREDICTIONS, self.unit
        newest = deque(json_lines(answers, unit, "id", "digest"), maxlen=1)
        self._check_settings(settings, bool(newest))
        if not newest:
            return -1, (0, 0)
        size, last = newest[0]
        number: int = last[unit]
        rows = iter_rows(source, one_by_one=True)
        row = next((row for row in rows if row.number == number), None)
        if row is None or digest(row) != last["digest"]:
            raise UserError(
                f"--resume: {unit} {number} of {source} must be the question {shown(last['id'])}, "
                f"the last of {answers}, got another: pass the input file of the earlier run"
            )
        rejects = json_lines(self.folder / REJECTS, unit)
        return number, (size, max((end for end, e in rejects if e[unit] < number), default=0))

    def _check_settings(self, settings: Mapping[str, Any], has_answers: bool) -> None:
        path = self.folder / SETTINGS
        if not path.exists():
            if has_answers:
                raise UserError(
                    f"--resume: {self.folder} must contain the {SETTINGS} of its answers, got "
                    "none: name another --output_dir"
                )
            return
        before = read_json_object(path)
        if isinstance(before.get("decoding"), dict):  # new settings had their defaults then
            before["decoding"] = asdict(DecodingSettings()) | before["decoding"]
        for key, value in settings.items():
            if before.get(key) != value:
                raise UserError(
                    f"--resume: {key} must be {shown(before.get(key))} as in the earlier run of "
                    f"{self.folder}, got {shown(value)}: pass the same, or another --output_dir"
                )


def score_lines(source: Path, folder: Path, *, v2: bool, say: Say = ignore) -> dict[str, float]:
    """Compute the metrics of ``evaluate_pairs`` for the answers in a folder, row by row.

    Args:
        say: called with a line about generated ids and questions without gold answers, if any.
    """
    rows, unit = iter_rows(source, one_by_one=True), unit_of(source)
    missing = MissingValues(str(source))

    def golds(number: int) -> Sequence[str] | None:
        row = next(row for row in rows if row.number == number)
        missing.count(row)
        return row.example.answers if row.example else None

    entries = (entry for _, entry in json_lines(folder / PREDICTIONS, unit, "id", "digest"))
    pairs = ((entry["answer"], golds(entry[unit])) for entry in entries)
    figures = evaluate_pairs(pairs, v2=v2)
    missing.report(say)
    return figures
