"""Tables as text, Markdown, CSV; numbers with readable units."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from . import terminal
from .cells import csv_cell

BINARY = ((2**40, "Ti"), (2**30, "Gi"), (2**20, "Mi"), (2**10, "Ki"))
PREFIXES = ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


@dataclass
class Table:
    """A titled table of text cells; ``left`` columns are left-aligned, notes follow below."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    notes: list[str] = field(default_factory=list)
    left: int = 1


def quantity(value: float, unit: str) -> str:
    """Return a number with its unit, e.g. ``"8.86 TFLOP"``, ``"1.25 GiB"``, ``"71.5 %"``.

    Bytes are binary everywhere in this project (1 KiB = 1024), all else is decimal.
    """
    if unit == "1":
        text = f"{100 * value:.1f}"
        return f"{'0.0' if text == '-0.0' else text} %"
    if unit == "s":
        return f"{value:.3g} s" if value >= 1 else f"{1000 * value:.3g} ms"
    if unit in ("token", "sequence"):
        return f"{int(value)}"
    symbol, steps = ("B", BINARY) if unit == "byte" else (unit, PREFIXES)
    for size, prefix in steps:
        if abs(value) >= size:
            return f"{value / size:.4g} {prefix}{symbol}"
    return f"{value:.4g} {symbol}"


def as_text(tables: Sequence[Table], width: int | None = None) -> str:
    """Return aligned plain text.

    Parameters
    ----------
    tables : sequence of Table
    width : int, optional
        Most columns (:func:`dynllava.output.terminal.columns`); default: as wide as it gets.
    """
    return "\n\n".join(_text(table, width or 10**6) for table in tables) + "\n"


def _text(table: Table, width: int) -> str:
    lines = terminal.paragraph(table.title, width)
    lines += terminal.grid(table.columns, table.rows, table.left, width)
    for note in table.notes:
        lines += terminal.paragraph(note, width, "  ")
    return "\n".join(lines)


def as_markdown(tables: Sequence[Table]) -> str:
    """Return GitHub-flavoured Markdown."""
    return "\n\n".join(_markdown(table) for table in tables) + "\n"


def _markdown(table: Table) -> str:
    columns, *rows = [
        [cell.replace("|", "\\|") for cell in row] for row in [table.columns, *table.rows]
    ]
    lines = [f"### {table.title}", "", *markdown_lines(columns, rows, table.left)]
    for note in table.notes:
        lines += ["", note]
    return "\n".join(lines)


def markdown_lines(
    columns: Sequence[str], rows: Iterable[Sequence[str]], left: int | None = None
) -> list[str]:
    """Return the lines of a Markdown table of escaped cells; right-aligned from ``left`` on."""
    left = len(columns) if left is None else left
    rule = ["---"] * left + ["---:"] * (len(columns) - left)
    lines = ["| " + " | ".join(row) + " |" for row in [columns, *rows]]
    return [lines[0], "|" + "|".join(rule) + "|", *lines[1:]]


def as_csv(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Return CSV text with a header line."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow([csv_cell(name) for name in columns])
    writer.writerows([csv_cell(value) for value in row] for row in rows)
    return stream.getvalue()
