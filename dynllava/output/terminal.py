"""Text that is no wider than the terminal it is printed on."""

from __future__ import annotations

import re
import shutil
import textwrap
from collections.abc import Sequence

UNKNOWN = 100
"""Columns where output goes to a file or a pipe and ``COLUMNS`` says nothing."""

NARROWEST = 30
LEAST_COLUMN = 6
GAP = 2
MOST_PARTS = 4
WIDEST_TITLE = 10


def columns() -> int:
    """Return the terminal's width in columns (``COLUMNS`` where it is set)."""
    return max(NARROWEST, shutil.get_terminal_size((UNKNOWN, 24)).columns)


def paragraph(text: str, width: int, indent: str = "", hang: str | None = None) -> list[str]:
    """Return ``text`` as lines of at most ``width`` columns; long words break behind a mark."""
    later = indent if hang is None else hang
    words = []
    for word in text.split():
        room = width - max(len(indent), len(later))
        words += [word] if len(word) <= room else _pieces(word, room)
    return textwrap.wrap(
        " ".join(words),
        width,
        initial_indent=indent,
        subsequent_indent=later,
        break_on_hyphens=False,
    ) or [indent.rstrip()]


def wrap_cell(text: str, width: int) -> list[str]:
    """Return a cell as lines of at most ``width`` columns."""
    lines: list[str] = []
    for word in text.split():
        for piece in [word] if len(word) <= width else _pieces(word, width):
            if lines and len(lines[-1]) + 1 + len(piece) <= width and len(word) <= width:
                lines[-1] += f" {piece}"
            else:
                lines.append(piece)
    return lines or [""]


def _pieces(word: str, width: int) -> list[str]:
    """Split a long word behind commas, colons, slashes and the like, else anywhere."""
    found: list[str] = []
    for part in re.findall(r"[^,:;/_=+]*[,:;/_=+]?", word):
        while part:
            if found and len(found[-1]) + len(part) <= width:
                found[-1] += part
                part = ""
            else:
                found.append(part[:width])
                part = part[width:]
    return found


def fit_widths(natural: Sequence[int], room: int) -> list[int] | None:
    """Return column widths that sum to at most ``room``, None where they would be too narrow.

    The widest columns give first.
    """
    widths = list(natural)
    least = [min(width, LEAST_COLUMN) for width in natural]
    while sum(widths) > room:
        place = max(range(len(widths)), key=lambda i: widths[i] - least[i])
        if widths[place] <= least[place]:
            return None
        widths[place] -= 1
    return widths


def grid(header: Sequence[str], rows: Sequence[Sequence[str]], left: int, width: int) -> list[str]:
    """Return a table as lines of at most ``width`` columns, indented by two.

    Cells wrap within their column; where not even that fits, the columns stand in several tables
    below each other, the first column in each; and where that is too narrow too, every row
    becomes a block of ``column: value`` lines.
    """
    cells = [list(header), *[list(row) for row in rows]]
    natural = [max(len(row[i]) for row in cells) for i in range(len(header))]
    room = width - GAP * len(header)
    widths = natural if sum(natural) <= room else fit_widths(natural, room)
    if widths is None or _breaks_words(rows, widths):
        return _parts(header, rows, left, width)
    return _lines(cells, widths, left)


def _lines(cells: Sequence[Sequence[str]], widths: Sequence[int], left: int) -> list[str]:
    lines = []
    for number, row in enumerate(cells):
        wrapped = [wrap_cell(cell, widths[i]) for i, cell in enumerate(row)]
        for line in range(max(map(len, wrapped))):
            parts = [cell[line] if line < len(cell) else "" for cell in wrapped]
            padded = [
                part.ljust(widths[i]) if i < left else part.rjust(widths[i])
                for i, part in enumerate(parts)
            ]
            lines.append(("  " + "  ".join(padded)).rstrip())
        if number == 0:
            lines.append("  " + "  ".join("-" * size for size in widths))
    return lines


def _breaks_words(rows: Sequence[Sequence[str]], widths: Sequence[int]) -> bool:
    """Return whether a word of another than the first column would be cut in two."""
    return any(
        len(word) > widths[i]
        for row in rows
        for i, cell in enumerate(row)
        if i
        for word in cell.split()
    )


def _parts(
    header: Sequence[str], rows: Sequence[Sequence[str]], left: int, width: int
) -> list[str]:
    """Return the columns in tables below each other, or blocks where too few fit beside each."""
    first = min(max(len(row[0]) for row in [header, *rows]), width // 3)
    needed = [first]
    for i in range(1, len(header)):
        words = [word for row in rows for word in row[i].split()]
        title = max(map(len, header[i].split()), default=0)
        needed.append(max([LEAST_COLUMN, min(title, WIDEST_TITLE), *map(len, words)]))
    parts: list[list[int]] = [[0]]
    for i in range(1, len(header)):
        used = sum(GAP + needed[k] for k in parts[-1])
        if used + GAP + needed[i] > width and len(parts[-1]) > 1:
            parts.append([0])
        parts[-1].append(i)
    if any(sum(GAP + needed[k] for k in part) > width for part in parts) or len(parts) > MOST_PARTS:
        return _blocks(header, rows, width)
    lines: list[str] = []
    for part in parts:
        cells = [[row[k] for k in part] for row in [header, *rows]]
        widths = [needed[k] for k in part]
        lines += [""] * bool(lines)
        lines += _lines(cells, widths, sum(k < left for k in part))
    return lines


def _blocks(header: Sequence[str], rows: Sequence[Sequence[str]], width: int) -> list[str]:
    lines = []
    for row in rows:
        lines += paragraph(row[0] or "-", width, "  ", "    ")
        for name, cell in zip(header[1:], row[1:], strict=True):
            if cell and cell != "-":
                lines += paragraph(f"{name}: {cell}" if name else cell, width, "    ", "      ")
    return lines
