"""Part files of several processes that share an input file, one for each block.

Parts are written atomically. Any number of processes can resume the work of any other number. The
output is the concatenation of the parts.
"""

import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from bertqa.answering.blocks import BlockAnswerer, RowBlock, digest, iter_blocks
from bertqa.answering.rows import checked
from bertqa.errors import UserError
from bertqa.files import append_json_lines, json_lines, os_errors_as_user_errors, write_file
from bertqa.interrupts import Interrupts
from bertqa.runtime import Runtime

PARTS = "predictions.parts"


@dataclass(frozen=True)
class Parts:
    """The part files in ``folder``, which exists while there are parts."""

    folder: Path

    def numbers(self) -> set[int]:
        """Return the numbers of the blocks that have a part."""
        return {int(path.stem) for path in self.folder.glob("*.jsonl") if path.stem.isdecimal()}

    def read(self, number: int) -> list[dict[str, Any]]:
        """Read the entries of a block; none if it has no part."""
        return [entry for _, entry in json_lines(self._path(number))]

    def write(self, number: int, entries: Iterable[dict[str, Any]]) -> None:
        """Write the entries of a block."""
        write_file(self._path(number), lambda path: append_json_lines(path, entries))

    def check(self, source: Path) -> None:
        """Check that all parts are of this file, and remove a part whose block has grown since.

        Raises:
            UserError: the rows of a part are not those of its block.
        """
        numbers = self.numbers()
        for block in iter_blocks(source) if numbers else ():
            if block.number not in numbers:
                continue
            path, entries = self._path(block.number), self.read(block.number)
            if not _begins(entries, block):
                raise UserError(
                    f"--resume: {path} must have the answers to questions of {source}, got other "
                    "questions: pass the input file of the earlier run"
                )
            if len(entries) < len(block.rows):
                with os_errors_as_user_errors(path, "removed"):
                    path.unlink()

    def remove(self) -> None:
        """Remove all parts."""
        if self.folder.exists():
            with os_errors_as_user_errors(self.folder, "removed"):
                shutil.rmtree(self.folder)

    def _path(self, number: int) -> Path:
        return self.folder / f"{number:08}.jsonl"


def _begins(entries: list[dict[str, Any]], block: RowBlock) -> bool:
    """Return whether these are the answers to the first rows of a block, or to all of them."""
    return len(entries) <= len(block.rows) and all(
        entry.get(row.unit) == row.number and entry.get("digest", digest(row)) == digest(row)
        for entry, row in zip(entries, block.rows, strict=False)
    )


def answer_parts(
    parts: Parts,
    answer: BlockAnswerer,
    source: Path,
    last: int,
    runtime: Runtime,
    progress: Callable[[int], object],
) -> None:
    """Answer this process's share of the blocks without a part; return when all have one.

    Args:
        last: number of the last row that is already answered.
        progress: called with the number of rows that this process answered, block by block.

    Raises:
        Stopped: at once by SIGINT or SIGTERM, which torchrun sends when another process has died.
    """
    done = runtime.gather(parts.numbers())[0]  # before any process writes one
    stopped = "stopped; finished blocks are kept: continue with --resume"
    with Interrupts(stopped):
        left = (b for b in iter_blocks(source) if b.ends_after(last) and b.number not in done)
        for block in islice(left, runtime.rank, None, runtime.world_size):
            parts.write(block.number, answer(checked(block.rows, answer.qa)))
            progress(len(block.rows))
        runtime.wait_for_all()
