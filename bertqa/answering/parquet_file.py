"""predictions.jsonl <-> predictions.parquet: parquet cannot be continued, and a file of lines can.

So the answers to a parquet file are lines until there are all of them, and lines again where a run
that was done is resumed, with an input that has grown.
"""

from collections.abc import Iterator
from itertools import chain, groupby
from pathlib import Path
from typing import Any

from bertqa.answering.blocks import BLOCK
from bertqa.answering.line_files import PREDICTIONS
from bertqa.errors import UserError, reason
from bertqa.files import append_json_lines, json_lines, said_plainly, write_file

PARQUET = "predictions.parquet"
_COLUMNS = {  # of a file without a row; else they are those of the lines
    "row": "int64", "id": "string", "digest": "string", "score": "float64", "start": "int64",
    "end": "int64", "answer": "string",
}  # fmt: skip


def pack(folder: Path) -> None:
    """Put predictions.parquet in the place of predictions.jsonl; a row group for each block.

    Raises:
        UserError: it cannot be written; the lines stay.
    """
    import pyarrow  # late: for parquet only
    from pyarrow import parquet  # late: as above

    entries = (entry for _, entry in json_lines(folder / PREDICTIONS, "row"))
    blocks = (list(block) for _, block in groupby(entries, lambda entry: entry["row"] // BLOCK))
    first = next(blocks, [])
    schema = pyarrow.schema([(key, getattr(pyarrow, kind)()) for key, kind in _COLUMNS.items()])
    if first:
        schema = pyarrow.Table.from_pylist(first).schema

    def write(partial: Path) -> None:
        with parquet.ParquetWriter(partial, schema) as writer:
            for block in chain([first], blocks):  # no more than one in memory
                writer.write_table(pyarrow.Table.from_pylist(block, schema))

    write_file(folder / PARQUET, write)
    with said_plainly(folder / PREDICTIONS, "removed"):
        (folder / PREDICTIONS).unlink()


def unpack(folder: Path) -> None:
    """Write predictions.jsonl again, if there is only predictions.parquet, which stays.

    Raises:
        UserError: that cannot be read.
    """
    if (folder / PREDICTIONS).exists() or not (folder / PARQUET).exists():
        return
    write_file(folder / PREDICTIONS, lambda path: append_json_lines(path, _rows(folder / PARQUET)))


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    from pyarrow import parquet  # late: for parquet only

    try:
        for batch in parquet.ParquetFile(path).iter_batches(batch_size=BLOCK):
            yield from batch.to_pylist()
    except Exception as error:  # The library's errors have no common class.
        raise UserError(
            f"{path} is not readable as parquet ({reason(error)}): restore the file, or name "
            "another folder"
        ) from error
