"""What a job that answers row by row writes: predictions.jsonl, rejects.jsonl, settings.json.

Each line says from which row it comes: that is how a job which was killed knows where to go on, and
how nothing vanishes. Of a block the rejects are written first, then the answers. So all that
precedes the last whole answer is complete, and what comes after it is done again.
"""

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bertqa.answering.blocks import digest
from bertqa.answering.metrics import evaluate_pairs
from bertqa.data.formats import is_parquet
from bertqa.data.readers import Lacks, iter_rows
from bertqa.errors import UserError, shown
from bertqa.files import append_json_lines, json_lines, read_json_object, write_json
from bertqa.settings import DecodingSettings

PREDICTIONS, REJECTS, SETTINGS = "predictions.jsonl", "rejects.jsonl", "settings.json"


def unit_of(source: Path) -> str:
    """What the rows of a file are called, and the key of their number: "line" or "row"."""
    return "row" if is_parquet(source) else "line"


@dataclass(frozen=True)
class LineFiles:
    """The files of a job; ``unit`` is the key of a row's number."""

    folder: Path
    unit: str

    def begin(self, sizes: tuple[int, int], settings: Mapping[str, Any]) -> None:
        """Keep so many bytes of answers and rejects, and the settings of what is to follow."""
        for name, size in zip((PREDICTIONS, REJECTS), sizes, strict=True):
            append_json_lines(self.folder / name, (), size)
        write_json(self.folder / SETTINGS, settings)  # once no answers of others are left

    def append(self, entries: Sequence[Mapping[str, Any]]) -> tuple[int, int]:
        """Write the entries of a block; how many are answers and how many rejects."""
        good = [entry for entry in entries if "fault" not in entry]
        bad = [entry for entry in entries if "fault" in entry]
        append_json_lines(self.folder / REJECTS, bad)
        append_json_lines(self.folder / PREDICTIONS, good)
        return len(good), len(bad)

    def earlier_run(self, source: Path, settings: Mapping[str, Any]) -> tuple[int, tuple[int, int]]:
        """The last row that an earlier run answered, and the sizes of what is whole of its files.

        Raises:
            UserError: it had other settings or another input, or that is a pipe.
        """
        if source.is_fifo():
            raise UserError(f"--resume: {source} is a pipe, which is read once: pass a file")
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
                f"--resume: {unit} {number} of {source} is not the question {shown(last['id'])} "
                f"with which {answers} ends: pass the file that it was begun with"
            )
        rejects = json_lines(self.folder / REJECTS, unit)
        return number, (size, max((end for end, e in rejects if e[unit] < number), default=0))

    def _check_settings(self, settings: Mapping[str, Any], has_answers: bool) -> None:
        path = self.folder / SETTINGS
        if not path.exists():
            if has_answers:
                raise UserError(
                    f"--resume: {self.folder} has answers but no {SETTINGS} that says what they "
                    "were made with: name another --output_dir"
                )
            return
        before = read_json_object(path)
        if isinstance(before.get("decoding"), dict):  # what is new did not change answers before
            before["decoding"] = asdict(DecodingSettings()) | before["decoding"]
        for key, value in settings.items():
            if before.get(key) != value:
                raise UserError(
                    f"--resume: {self.folder} was begun with {key} {shown(before.get(key))}, now "
                    f"it is {shown(value)}: pass the same, or another --output_dir"
                )


def score_lines(
    source: Path, folder: Path, *, v2: bool, say: Callable[[str], object] = lambda line: None
) -> dict[str, float]:
    """The figures of the answers in a folder, as ``evaluate_pairs`` gives them, row by row.

    ``say`` is told, in one line, of ids that were made up and of questions without gold.
    """
    rows, lacks, unit = iter_rows(source, one_by_one=True), Lacks(str(source)), unit_of(source)

    def golds(number: int) -> Sequence[str] | None:
        row = next(row for row in rows if row.number == number)
        lacks.count(row)
        return row.example.answers if row.example else None

    entries = (entry for _, entry in json_lines(folder / PREDICTIONS, unit, "id", "digest"))
    pairs = ((entry["answer"], golds(entry[unit])) for entry in entries)
    figures = evaluate_pairs(pairs, v2=v2)
    lacks.tell(say)
    return figures
