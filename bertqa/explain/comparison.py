"""How far two models are apart, quantity by quantity, as a table and a verdict."""

import math
from dataclasses import dataclass

from torch import Tensor


@dataclass
class Row:
    """How far apart the two sides are in one quantity.

    Attributes:
        bound: what ``largest`` may reach.
        largest: the largest difference, as a share of the largest magnitude of the tensor. A number
            near zero is a sum of large ones, and its rounding is theirs, so it is not measured by
            its own magnitude. Of token ids and answers it is the number of questions that differ.
        first: where the bound was first exceeded, in the order of computation; "" if it was not.
        order: of ``first``.
    """

    quantity: str
    bound: float
    largest: float = 0.0
    first: str = ""
    order: float = math.inf

    def see(
        self, ours: Tensor, theirs: Tensor, where: str, order: int = -1, magnitude: float = 0.0
    ) -> None:
        """Take two tensors of one shape into account.

        Args:
            order: of ``where`` in the computation; -1 is before any forward pass.
            magnitude: what the difference is measured by; 0 takes the largest of ``theirs``.
        """
        difference = largest(ours - theirs)
        if difference:
            scale = magnitude or largest(theirs)
            share = difference / scale if 0 < scale < math.inf else math.inf
            self.note(share, where, order)

    def note(self, difference: float, where: str, order: int = -1) -> None:
        """Take a difference into account."""
        self.largest = max(self.largest, difference)
        if difference > self.bound and order < self.order:
            self.first, self.order = where, order


def largest(values: Tensor) -> float:
    """The largest absolute value; infinite where one is not a number."""
    found = float(values.detach().abs().max())
    return math.inf if math.isnan(found) else found


@dataclass(frozen=True)
class Comparison:
    """What was compared, a line for each fact, and a row for each quantity."""

    facts: tuple[str, ...]
    rows: tuple[Row, ...]

    @property
    def is_equal(self) -> bool:
        """Whether all quantities are within their bounds."""
        return not any(row.first for row in self.rows)

    @property
    def verdict(self) -> str:
        """One sentence, which names the first difference."""
        wrong = [row for row in self.rows if row.first]
        if not wrong:
            return f"equal: all {len(self.rows)} quantities are within their bounds"
        names = ", ".join(row.quantity for row in wrong)
        first = min(wrong, key=lambda row: row.order)
        return f"NOT equal in {names}; first: {first.quantity}, {first.first}"

    def report(self) -> str:
        """Facts, table and verdict, in Markdown that is aligned for a terminal."""
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
