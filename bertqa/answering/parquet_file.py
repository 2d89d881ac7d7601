"""Conversion between predictions.jsonl and predictions.parquet.

Parquet files cannot be appended to. So the answers to a parquet file are JSON lines until all are
there, and again when a finished run is resumed with a longer input.
"""

from collections.abc import Iterator
from itertools import chain, groupby
from pathlib import Path
from typing import Any

from bertqa.answering.blocks import ROWS_PER_BLOCK
from bertqa.answering.line_files import PREDICTIONS
from bertqa.errors import UserError, reason
from bertqa.files import append_json_lines, json_lines, os_errors_as_user_errors, write_file

PARQUET = "predictions.parquet"
_COLUMNS = {  # of a file without rows; otherwise the columns are those of the lines
    "row": "int64", "id": "string", "digest": "string", "score": "float64", "start": "int64",
    "end": "int64", "answer": "string",
}  # fmt: skip


def to_parquet(folder: Path) -> None:
    """Replace predictions.jsonl by predictions.parquet, with a row group for each block.

    Raises:
        UserError: predictions.parquet cannot be written; predictions.jsonl is kept.
    """
    import pyarrow  # late: for parquet only
    from pyarrow import parquet  # late: as above

    entries = (entry for _, entry in json_lines(folder / PREDICTIONS, "row"))
    blocks = (
        list(block) for _, block in groupby(entries, lambda entry: entry["row"] // ROWS_PER_BLOCK)
    )
    first = next(blocks, [])
    schema = pyarrow.schema([(key, getattr(pyarrow, kind)()) for key, kind in _COLUMNS.items()])
    if first:
        schema = pyarrow.Table.from_pylist(first).schema

    def write(partial: Path) -> None:
        with parquet.ParquetWriter(partial, schema) as writer:
            for block in chain([first], blocks):  # one in memory at a time
                writer.write_table(pyarrow.Table.from_pylist(block, schema))

    write_file(folder / PARQUET, write)
    with os_errors_as_user_errors(folder / PREDICTIONS, "removed"):
        (folder / PREDICTIONS).unlink()


def from_parquet(folder: Path) -> None:
    """Write predictions.jsonl from predictions.parquet, which is kept, if only the latter exists.

    Raises:
        UserError: predictions.parquet cannot be read.
    """
    if (folder / PREDICTIONS).exists() or not (folder / PARQUET).exists():
        return
    write_file(folder / PREDICTIONS, lambda path: append_json_lines(path, _rows(folder / PARQUET)))


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    from pyarrow import parquet  # late: for parquet only

    try:
        for batch in parquet.ParquetFile(path).iter_batches(batch_size=ROWS_PER_BLOCK):
            yield from batch.to_pylist()
    except Exception as error:  # the library's errors have no common class
        raise UserError(
            f"{path}: must be a valid parquet file, got an error ({reason(error)}): restore the "
            "file, or name another folder"
        ) from error
