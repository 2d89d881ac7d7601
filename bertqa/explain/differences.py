"""How far two computations of the same thing are apart: rows with bounds, as text and Markdown."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor


@dataclass
class Part:
    """One tensor of a row, as far as it was seen.

    Attributes:
        magnitude: the largest of the reference, in absolute value.
        differences: variant -> the largest absolute difference from the reference.
    """

    magnitude: float = 0.0
    differences: dict[str, float] = field(default_factory=dict)

    def relative(self, variant: str) -> float:
        """The largest difference, as a share of the largest magnitude.

        The magnitude is the whole tensor's, not that of the number at the same place: a number
        near zero is a sum of large ones, and its rounding is theirs.
        """
        difference = self.differences.get(variant, 0.0)
        if not math.isfinite(difference):
            return math.inf  # even where the reference is no number either
        if difference == 0:
            return 0.0
        return difference / self.magnitude if self.magnitude else math.inf


@dataclass
class Row:
    """One quantity at one layer, in each variant in which it was computed.

    Attributes:
        bound: what the relative difference of no part may pass.
        parts: what the row is made of, by name: the parameters of a layer, or one tensor without
            a name.
    """

    quantity: str
    layer: str
    bound: float
    parts: dict[str, Part] = field(default_factory=dict)

    def see(
        self,
        variant: str,
        ours: Tensor,
        reference: Tensor,
        *,
        part: str = "",
        magnitude: float | None = None,
    ) -> None:
        """Take two tensors of one shape into account; of a part that was seen before, as well.

        Args:
            magnitude: what the difference is measured by, where it is not the reference's own.
        """
        own = _largest(reference) if magnitude is None else magnitude
        seen = self.parts.setdefault(part, Part())
        seen.magnitude = max(seen.magnitude, own)
        difference = _largest(ours - reference)
        seen.differences[variant] = max(seen.differences.get(variant, 0.0), difference)

    def count(self, variant: str, different: Sequence[str], total: int) -> None:
        """Take ``total`` things into account, of which those named differ."""
        names = ", ".join(different[:3]) + ", ..." * (len(different) > 3)
        self.parts.setdefault(names, Part(total)).differences[variant] = len(different)

    def absolute(self, variant: str) -> float | None:
        """The largest difference of all parts; None where the row has no such variant."""
        found = [p.differences[variant] for p in self.parts.values() if variant in p.differences]
        return max(found, default=None)

    def relative(self, variant: str) -> float:
        """The largest relative difference of all parts."""
        return max((part.relative(variant) for part in self.parts.values()), default=0.0)

    @property
    def variants(self) -> list[str]:
        """The variants in which the row was seen."""
        return list(dict.fromkeys(f for part in self.parts.values() for f in part.differences))

    @property
    def is_ok(self) -> bool:
        """Whether no variant passes the bound."""
        return all(self.relative(variant) <= self.bound for variant in self.variants)

    @property
    def worst(self) -> str:
        """The part with the largest relative difference; "" where there is none."""
        shares = {n: max(map(part.relative, self.variants)) for n, part in self.parts.items()}
        return max(shares, key=shares.__getitem__) if any(shares.values()) else ""


def _largest(values: Tensor) -> float:
    """The largest absolute value; infinite where one is no number, which ``max`` would hide."""
    largest = float(values.detach().abs().max()) if values.numel() else 0.0
    return math.inf if math.isnan(largest) else largest


class Differences:
    """Rows in the order in which they were first asked for.

    Attributes:
        bound: the usual one of a row.
        variants: the columns of the table.
    """

    def __init__(self, bound: float, variants: Sequence[str]) -> None:
        self.bound, self.variants = bound, tuple(variants)
        self._rows: dict[tuple[str, str], Row] = {}

    def row(self, quantity: str, layer: str = "", times: float = 1) -> Row:
        """The row of a quantity at a layer; ``times`` the usual bound is its own."""
        return self._rows.setdefault(
            (quantity, layer), Row(quantity, layer, bound=times * self.bound)
        )

    @property
    def rows(self) -> list[Row]:
        """All rows."""
        return list(self._rows.values())

    @property
    def failed(self) -> list[Row]:
        """The rows that passed their bound."""
        return [row for row in self.rows if not row.is_ok]

    def as_text(self) -> str:
        """The table in columns of one width."""
        cells = self._cells()
        widths = [max(len(row[i]) for row in cells) for i in range(len(cells[0]))]
        lines = []
        for row in cells:
            padded = [
                cell.ljust(width) if i in self._left else cell.rjust(width)
                for i, (cell, width) in enumerate(zip(row, widths, strict=True))
            ]
            lines.append("  ".join(padded).rstrip())
        return "\n".join(lines)

    def as_markdown(self) -> str:
        """The table in Markdown."""
        header, *rows = self._cells()
        marks = ["---" if i in self._left else "---:" for i in range(len(header))]
        lines = ["| " + " | ".join(row) + " |" for row in (header, marks, *rows)]
        return "\n".join(lines)

    @property
    def _left(self) -> set[int]:
        """The columns of words: quantity, layer, result and worst part."""
        last = 3 + 2 * len(self.variants)
        return {0, 1, last, last + 1}

    def _cells(self) -> list[list[str]]:
        measures = [
            f"{variant}, {kind}" for variant in self.variants for kind in ("largest", "relative")
        ]
        header = ["quantity", "layer", *measures, "bound", "result", "largest at"]
        return [header, *map(self._cells_of, self.rows)]

    def _cells_of(self, row: Row) -> list[str]:
        figures = []
        for variant in self.variants:
            absolute = row.absolute(variant)
            seen = absolute is not None
            figures += (
                [_shown(absolute or 0.0), _shown(row.relative(variant))] if seen else ["", ""]
            )
        result = "ok" if row.is_ok else "FAILED"
        return [row.quantity, row.layer, *figures, _shown(row.bound), result, row.worst]


def _shown(number: float) -> str:
    return f"{number:.2g}"
