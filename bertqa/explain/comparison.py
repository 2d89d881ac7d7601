"""Differences between two models by quantity, with a table and a verdict."""

import math
from dataclasses import dataclass

from torch import Tensor


@dataclass
class Row:
    """Largest difference between the two models in one quantity.

    Attributes:
        bound: upper limit for ``largest``.
        largest: the largest difference relative to the largest magnitude of the tensor. Elements
            near zero are sums of large terms and have the rounding errors of those, so differences
            are not relative to single elements. For token ids and answers: the number of questions
            that differ.
        first: where the bound was first exceeded, in the order of computation; "" if never.
        order: position of ``first`` in the computation.
    """

    quantity: str
    bound: float
    largest: float = 0.0
    first: str = ""
    order: float = math.inf

    def see(
        self, ours: Tensor, theirs: Tensor, where: str, order: int = -1, magnitude: float = 0.0
    ) -> None:
        """Compare two tensors of the same shape and update the row.

        Args:
            order: position of ``where`` in the computation; -1 is before any forward pass.
            magnitude: divisor of the difference; 0 uses the largest magnitude of ``theirs``.
        """
        difference = largest(ours - theirs)
        if difference:
            scale = magnitude or largest(theirs)
            share = difference / scale if 0 < scale < math.inf else math.inf
            self.note(share, where, order)

    def note(self, difference: float, where: str, order: int = -1) -> None:
        """Update the row with a difference."""
        self.largest = max(self.largest, difference)
        if difference > self.bound and order < self.order:
            self.first, self.order = where, order


def largest(values: Tensor) -> float:
    """Return the largest absolute value; infinity if there is a NaN."""
    found = float(values.detach().abs().max())
    return math.inf if math.isnan(found) else found


@dataclass(frozen=True)
class Comparison:
    """Result of a comparison: facts about it, one per line, and a row per quantity."""

    facts: tuple[str, ...]
    rows: tuple[Row, ...]

    @property
    def is_equal(self) -> bool:
        """Whether all quantities are within their bounds."""
        return not any(row.first for row in self.rows)

    @property
    def verdict(self) -> str:
        """The result in one sentence, with the first difference."""
        wrong = [row for row in self.rows if row.first]
        if not wrong:
            return f"equal: all {len(self.rows)} quantities are within their bounds"
        names = ", ".join(row.quantity for row in wrong)
        first = min(wrong, key=lambda row: row.order)
        return f"NOT equal in {names}; first: {first.quantity}, {first.first}"

    def report(self) -> str:
        """Return facts, table and verdict as Markdown, aligned for a terminal."""
        cells = [["quantity", "largest difference", "bound", "result", "differs first at"]]
        for row in self.rows:
            figures = [f"{row.largest:.2g}", f"{row.bound:.2g}"]
            cells.append([row.quantity, *figures, "DIFFERS" if row.first else "ok", row.first])
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        cells.insert(1, ["-" * width for width in widths])
        table = (
            " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
            for row in cells
        )
        facts = "\n".join(f"- {fact}" for fact in self.facts)
        return "\n\n".join([facts, "\n".join(f"| {row} |" for row in table), self.verdict]) + "\n"
