"""Cells and tables as data, before any output format."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from dynllava.costs.conventions import agrees_as_printed
from dynllava.published.tables import Printed


@dataclass(frozen=True)
class Cell:
    """One cell.

    Attributes
    ----------
    text : str
        The value as shown; empty if there is none.
    origin : str
        ``"text"``, ``"published"``, ``"computed"``, ``"measured"`` or ``"missing"``.
    value : float or None
        For ranking and differences.
    printed : str
        Of a computed cell: what the paper prints (empty if nothing).
    delta : float or None
        Difference to the dense model of the same group.
    reason : str
        Why a cell is missing, or why computed and printed values differ.
    rank : int
        1 best, 2 second, 0 other.
    """

    text: str
    origin: str = "text"
    value: float | None = None
    printed: str = ""
    delta: float | None = None
    reason: str = ""
    rank: int = 0

    @property
    def ratio(self) -> float | None:
        """Computed / printed, where both exist."""
        if self.origin != "computed" or not self.printed or self.value is None:
            return None
        printed = float(self.printed)
        return self.value / printed if printed else None

    @property
    def agrees(self) -> bool:
        """Whether a computed value equals the printed one at its printed precision."""
        if self.origin != "computed" or not self.printed or self.value is None:
            return True
        return agrees_as_printed(self.value, self.printed)


def published(value: Printed | str | None, reason: str = "not reported") -> Cell:
    """Return a cell that shows a published value as printed."""
    if value is None:
        return Cell("", "missing", reason=reason)
    if isinstance(value, str):
        return Cell(value)
    number = value.value if math.isfinite(value.value) else None
    return Cell(value.text, "published", number)


def computed(
    value: float | str,
    printed: Printed | None,
    reason: Callable[[float], str] = lambda ratio: "",
) -> Cell:
    """Return a computed cost at the printed precision (two decimals if nothing is printed).

    Parameters
    ----------
    value : float or str
        The number, or why it cannot be computed.
    printed : Printed or None
    reason : callable
        Computed / printed to why they differ; asked only if they do.
    """
    if isinstance(value, str):
        if printed is None:
            return Cell("", "missing", reason=value)
        text = f"{printed.text} (printed)"
        return Cell(text, "published", printed.value, reason=f"as printed: {value}")
    if printed is None:
        return Cell(f"{value:.2f}", "computed", value)
    cell = Cell(f"{value:.{printed.decimals}f}", "computed", value, printed.text)
    if cell.agrees:
        # Half-up as the comparison rounds, where format() would round half to even.
        return replace(cell, text=printed.text)
    text = cell.text if cell.text != printed.text else f"{value:.{printed.decimals + 1}f}"
    return replace(cell, text=text, reason=reason(cell.ratio or 0.0) or "the cause is not known")


@dataclass(frozen=True)
class TableData:
    """A table ready to be written.

    Attributes
    ----------
    number : int or str
    title : str
    headers : tuple of str
    rows : tuple of tuple of Cell
    exploded : tuple of int
        Columns whose cells show computed, printed and ratio.
    notes : tuple of str
    parts : tuple of (str, tuple of int)
        Titles and columns of the tables that a page shows in its place, as one would be too wide;
        the first column belongs to each.
    """

    number: int | str
    title: str
    headers: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    exploded: tuple[int, ...] = ()
    notes: tuple[str, ...] = field(default=())
    parts: tuple[tuple[str, tuple[int, ...]], ...] = ()

    def mismatches(self) -> list[tuple[str, str, Cell]]:
        """Return (row label, column, cell) of computed costs that differ beyond rounding."""
        found = []
        for row in self.rows:
            names = [cell.text for cell in row if cell.origin == "text"]
            label = ", ".join(name for name in names if name and not name.isdecimal())
            for header, cell in zip(self.headers, row, strict=True):
                if not cell.agrees:
                    found.append((label, header, cell))
        return found


def compare(
    rows: list[list[Cell]],
    columns: Sequence[int],
    group: Callable[[int], object],
    is_dense: Callable[[int], bool],
    lower_is_better: Callable[[int], bool],
) -> list[list[Cell]]:
    """Return ``rows`` with differences to dense, and best and second marked, per group.

    Dense rows take no part in the ranking: it is among the methods.  Ties share a rank.
    """
    result = [list(row) for row in rows]
    for column in columns:
        for name in dict.fromkeys(group(index) for index in range(len(rows))):
            members = [index for index in range(len(rows)) if group(index) == name]
            dense = next((rows[i][column].value for i in members if is_dense(i)), None)
            others = {i: rows[i][column].value for i in members if not is_dense(i)}
            ranked = {i: value for i, value in others.items() if value is not None}
            values = sorted(set(ranked.values()), reverse=not lower_is_better(column))
            for i, value in ranked.items():
                delta = None if dense is None else value - dense
                rank = values.index(value) + 1 if len(ranked) > 1 else 0
                rank = rank if rank < 3 else 0
                result[i][column] = replace(rows[i][column], delta=delta, rank=rank)
    return result
