"""decoding.json of a model: "no answer", its threshold, and the temperature.

A threshold is valid for the windows with which it was chosen, as the null score of a question is
the minimum over its windows. So with "no answer", the file also has the settings of the windows,
and for information the share of unanswerable questions. The temperature, which older files lack,
divides the scores before the softmax.
"""

import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from bertqa.answering.metrics import ThresholdPoint
from bertqa.errors import UserError, shown
from bertqa.files import DECODING_FILE, path_exists, read_json_object, write_json
from bertqa.settings import DecodingSettings, WindowSettings

_KINDS = {
    "version_2_with_negative": "true or false",
    "null_score_diff_threshold": "a finite number",
    "max_seq_length": "a whole number",
    "doc_stride": "a whole number",
    "max_query_length": "a whole number",  # or null
    "unanswerable_share": "a finite number",  # or null
    "temperature": "a finite number",  # or null
}
_MAY_LACK = ("max_query_length", "unanswerable_share", "temperature")
_IS_OF: dict[str, Callable[[Any], bool]] = {
    "true or false": lambda value: isinstance(value, bool),
    "a finite number": lambda value: (
        type(value) in (int, float) and abs(value) <= sys.float_info.max
    ),
    # torch's integers have 64 bits.
    "a whole number": lambda value: type(value) is int and abs(value) < 2**63,
}


def write_decoding_file(
    folder: Path,
    settings: DecodingSettings,
    windows: WindowSettings,
    unanswerable_share: float | None = None,
) -> None:
    """Write decoding.json of a model.

    Args:
        settings: "no answer", its threshold and the temperature are written.
        unanswerable_share: fraction of unanswerable questions for which the threshold was chosen;
            None if unknown.

    Raises:
        UserError: the threshold is not finite, or the folder cannot be written.
    """
    threshold = settings.null_score_diff_threshold
    if not math.isfinite(threshold):
        raise UserError(f"null_score_diff_threshold must be finite, got {threshold}")
    kept = ("version_2_with_negative", "null_score_diff_threshold", "temperature")
    entries: dict[str, Any] = {name: getattr(settings, name) for name in kept}
    if settings.version_2_with_negative:
        entries |= asdict(windows) | {"unanswerable_share": unanswerable_share}
    write_json(folder / DECODING_FILE, entries)


def stored_unanswerable_share(folder: Path | None, settings: DecodingSettings) -> float | None:
    """Return the share of unanswerable questions of a threshold, if decoding.json has it.

    Raises:
        UserError: the file is corrupt.
    """
    if folder is None or not path_exists(folder / DECODING_FILE):
        return None
    stored = read_decoding_file(folder)[1]
    if stored.null_score_diff_threshold != settings.null_score_diff_threshold:
        return None
    share: float | None = read_json_object(folder / DECODING_FILE).get("unanswerable_share")
    return share


def update_temperature(folder: Path, settings: DecodingSettings, windows: WindowSettings) -> None:
    """Update the temperature in decoding.json; its other entries stay.

    Raises:
        UserError: the file cannot be read or written.
    """
    path = folder / DECODING_FILE
    if path_exists(path):
        write_json(path, read_json_object(path) | {"temperature": settings.temperature})
    else:
        write_decoding_file(folder, settings, windows)


def read_decoding_file(folder: Path) -> tuple[WindowSettings | None, DecodingSettings]:
    """Read decoding.json; without the file, return None and the default decoding.

    Raises:
        UserError: the file is invalid.
    """
    path = folder / DECODING_FILE
    if not path_exists(path):
        return None, DecodingSettings()
    entries = read_json_object(path)
    names = {field.name for field in fields(WindowSettings)}
    has_windows = bool(entries.get("version_2_with_negative") or names & entries.keys())
    for key, kind in _KINDS.items():
        if key in names and not has_windows:
            continue
        value = entries.get(key)
        if not _IS_OF[kind](value) and not (value is None and key in _MAY_LACK):
            raise UserError(f"{path}: {key} must be {kind}, got {shown(value)}")
    try:
        sizes: dict[str, Any] = {name: entries.get(name) for name in names}
        temperature = entries.get("temperature")
        return WindowSettings(**sizes) if has_windows else None, DecodingSettings(
            version_2_with_negative=entries["version_2_with_negative"],
            null_score_diff_threshold=float(entries["null_score_diff_threshold"]),
            temperature=1.0 if temperature is None else float(temperature),
        )
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def write_curve(
    folder: Path, curve: Sequence[ThresholdPoint], unanswerable_share: float | None = None
) -> None:
    """Write threshold.json: EM and F1 at every distinct threshold.

    Args:
        unanswerable_share: fraction to which the questions were weighted.

    Raises:
        UserError: the folder cannot be written.
    """
    columns = list(ThresholdPoint._fields)
    about = {"unanswerable_share": unanswerable_share, "columns": columns}
    write_json(folder / "threshold.json", about | {"rows": [list(point) for point in curve]})
