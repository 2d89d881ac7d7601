"""decoding.json beside a model: that "no answer" is one of its answers, and from which score on.

A threshold holds for the windows that it was chosen with, since the null score of a question is the
lowest of its windows'. So their settings stand in the file as well.
"""

import math
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from bertqa.errors import UserError
from bertqa.evaluation import DecodingSettings
from bertqa.features import WindowSettings
from bertqa.files import read_json_object, write_json
from bertqa.folders import DECODING_FILE


def write_decoding_file(folder: Path, threshold: float, windows: WindowSettings) -> None:
    """Let the model in a folder say "no answer" from a threshold on.

    Raises:
        UserError: the threshold is infinite or no number, or the folder cannot be written.
    """
    if not math.isfinite(threshold):
        raise UserError(f"the threshold {threshold} is no finite number: give one")
    entries = {"version_2_with_negative": True, "null_score_diff_threshold": threshold}
    write_json(folder / DECODING_FILE, entries | asdict(windows))


def read_decoding_file(folder: Path) -> tuple[WindowSettings | None, DecodingSettings]:
    """How the model in a folder is to be asked; None and the defaults where it has no such file.

    Raises:
        UserError: the file is there and holds something else.
    """
    path = folder / DECODING_FILE
    if not path.exists():
        return None, DecodingSettings()
    entries = read_json_object(path)
    negative: Any = entries.get("version_2_with_negative")
    threshold: Any = entries.get("null_score_diff_threshold")
    sizes = {field.name: entries.get(field.name) for field in fields(WindowSettings)}
    numbers = [threshold, *(size for size in sizes.values() if size is not None)]
    sound = isinstance(negative, bool) and all(
        type(number) in (int, float) and math.isfinite(number) for number in numbers
    )
    whole = all(size is None or type(size) is int for size in sizes.values())
    if not sound or not whole or sizes["max_seq_length"] is None or sizes["doc_stride"] is None:
        raise UserError(
            f"{path} holds {entries!r}, but must have version_2_with_negative true or false, a "
            "number as null_score_diff_threshold, and the window's max_seq_length, doc_stride and "
            "max_query_length: correct or remove it"
        )
    try:
        windows = WindowSettings(**sizes)  # type: ignore[arg-type]
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    return windows, DecodingSettings(
        version_2_with_negative=negative, null_score_diff_threshold=float(threshold)
    )
