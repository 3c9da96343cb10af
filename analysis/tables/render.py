"""Tables as Markdown, LaTeX, CSV and HTML."""

from __future__ import annotations

import html
import re
from collections.abc import Sequence

from dynllava.errors import UserError
from dynllava.output import terminal
from dynllava.output.cells import escape_markdown, one_line
from dynllava.output.tables import Table, as_csv, as_text, markdown_lines

from .cells import Cell, TableData

FORMATS = ("text", "markdown", "latex", "csv", "html")


def render(table: TableData, kind: str, *, heading: bool = False) -> str:
    """Return ``table`` in one of :data:`FORMATS`.

    Parameters
    ----------
    table : TableData
    kind : str
    heading : bool
        Begin with a heading ``Table N`` (Markdown ``##``, HTML ``h2``).
    """
    if kind not in FORMATS:
        raise UserError(f"format {kind!r}: accepted are {', '.join(FORMATS)}")
    return {"text": _text, "markdown": _markdown, "latex": _latex, "csv": _csv, "html": _html}[
        kind
    ](table, heading)


def _text(table: TableData, heading: bool) -> str:
    """Return plain text no wider than the terminal; ``*`` is best, ``+`` second."""
    rows = []
    for row in table.rows:
        parts = [cell_parts(cell, index in table.exploded) for index, cell in enumerate(row)]
        ranks = [{1: "*", 2: "+"}.get(cell.rank, "") for cell in row]
        rows.append([f"{a}{mark}{b}" for (a, b), mark in zip(parts, ranks, strict=True)])
    left = next((i for i, side in enumerate(_alignment(table)) if side == "r"), len(table.headers))
    notes = [*table.notes, *missing_notes(table)]
    if any(cell.rank for row in table.rows for cell in row):
        notes.append("* best, + second best.")
    made = Table(f"{caption(table)}.", _headers(table), rows, notes, left)
    return as_text([made], terminal.columns())


def caption(table: TableData) -> str:
    """Return ``Table 3: title``, or the title alone for own runs."""
    title = one_line(table.title)
    return title if table.number == "ours" else f"Table {table.number}: {title}"


def markdown_caption(table: TableData) -> str:
    """Return :func:`caption` with Markdown's and HTML's own characters as plain text."""
    return escape_markdown(caption(table))


def cell_parts(cell: Cell, exploded: bool) -> tuple[str, str]:
    """Return (value, what follows it) as plain text."""
    if cell.origin == "missing":
        return "n/a", ""
    if cell.delta is not None:
        digits = len(re.match(r"-?\d*\.?(\d*)", cell.text).group(1))  # type: ignore[union-attr]
        return cell.text, f" ({cell.delta:+.{max(digits, 1)}f})"
    if cell.origin == "computed":
        ratio = cell.ratio
        if exploded and ratio is not None:
            return cell.text, f" / {cell.printed} / {ratio:.3f}"
        if not cell.agrees:
            return cell.text, f" [printed {cell.printed}]"
        if exploded:
            return cell.text, " / not printed / n/a"
    return cell.text, ""


def _headers(table: TableData) -> list[str]:
    return [
        f"{name}: computed / printed / ratio" if index in table.exploded else name
        for index, name in enumerate(table.headers)
    ]


def missing_notes(table: TableData) -> list[str]:
    """Return one line for each reason why cells are missing, with the columns."""
    reasons: dict[str, list[str]] = {}
    for row in table.rows:
        for header, cell in zip(table.headers, row, strict=True):
            if cell.origin == "missing" or (cell.origin == "published" and cell.reason):
                names = reasons.setdefault(cell.reason, [])
                if header not in names:
                    names.append(header)
    return [f"n/a, {reason}: {', '.join(names)}." for reason, names in reasons.items()]


def mismatches(tables: Sequence[TableData]) -> dict[str, list[list[str]]]:
    """Return the cells whose computed cost differs beyond rounding, by reason.

    Each is [table, row, column, computed, printed, ratio].
    """
    found: dict[str, list[list[str]]] = {}
    for table in tables:
        for label, header, cell in table.mismatches():
            numbers = [f"{cell.value:.4g}", cell.printed, f"{cell.ratio:.3f}"]
            found.setdefault(cell.reason, []).append([str(table.number), label, header, *numbers])
    return found


MISMATCH_HEADERS = ("table", "row", "cost", "computed", "printed", "ratio")


def mismatch_markdown(tables: Sequence[TableData]) -> str:
    """Return :func:`mismatches` as one Markdown table a reason."""
    found = mismatches(tables)
    if not found:
        return "None.\n"
    blocks = []
    for reason, rows in found.items():
        shown = [[escape_markdown(item) for item in row] for row in rows]
        lines = markdown_lines(MISMATCH_HEADERS, shown)
        blocks.append("\n".join([f"**{len(rows)} cells: {reason}.**", "", *lines]) + "\n")
    return "\n".join(blocks)


def _markdown(table: TableData, heading: bool) -> str:
    escape = escape_markdown
    heads = [f"## Table {table.number}", "", f"{escape(table.title)}.", ""]
    rows = []
    for row in table.rows:
        shown = []
        for index, cell in enumerate(row):
            value, rest = (escape(part) for part in cell_parts(cell, index in table.exploded))
            value = {1: f"**{value}**", 2: f"<u>{value}</u>"}.get(cell.rank, value)
            shown.append(f"{value} {rest.strip()}".strip())
        rows.append(shown)
    lines = heads if heading else []
    lines += markdown_lines([escape(name) for name in _headers(table)], rows)
    notes = [escape(note) for note in (*table.notes, *missing_notes(table))]
    return "\n".join([*lines, "", *(f"- {note}" for note in notes)]) + "\n"


_LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_",
    "{": r"\{", "}": r"\}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
    "|": r"\textbar{}", "<": r"\textless{}", ">": r"\textgreater{}", "±": r"$\pm$",
}  # fmt: skip


def _latex(table: TableData, heading: bool) -> str:
    def escape(text: str) -> str:
        # A line break would end a comment and make live TeX of what follows.
        return "".join(_LATEX.get(letter, letter) for letter in one_line(text))

    lines = [
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{escape(table.title)}}}",
        r"\begin{tabular}{" + "".join(_alignment(table)) + "}",
        r"\toprule",
        " & ".join(escape(name) for name in _headers(table)) + r" \\",
        r"\midrule",
    ]
    for row in table.rows:
        shown = []
        for index, cell in enumerate(row):
            value, rest = (escape(part) for part in cell_parts(cell, index in table.exploded))
            value = {1: rf"\textbf{{{value}}}", 2: rf"\underline{{{value}}}"}.get(cell.rank, value)
            shown.append(f"{value} {rest.strip()}".strip())
        lines.append(" & ".join(shown) + r" \\")
    lines += [r"\bottomrule", r"\end{tabular}", r"\end{table}"]
    notes = [*table.notes, *missing_notes(table)]
    return "\n".join([*(f"% {one_line(note)}" for note in notes), *lines]) + "\n"


def _alignment(table: TableData) -> list[str]:
    text = [
        all(row[index].origin == "text" for row in table.rows)
        for index in range(len(table.headers))
    ]
    return ["l" if is_text else "r" for is_text in text]


def _csv(table: TableData, heading: bool) -> str:
    """Return plain values: cost columns also as printed and ratio, scores also as difference."""
    costs = {
        index
        for index in range(len(table.headers))
        if any(row[index].origin == "computed" for row in table.rows)
    }
    scores = {
        index
        for index in range(len(table.headers))
        if any(row[index].delta is not None for row in table.rows)
    }
    names: list[str] = []
    for index, name in enumerate(table.headers):
        names.append(name)
        names += [f"{name} printed", f"{name} ratio"] if index in costs else []
        names += [f"{name} difference"] if index in scores else []
    rows = []
    for row in table.rows:
        values: list[str] = []
        for index, cell in enumerate(row):
            exact = cell.origin == "computed" and cell.value is not None
            values.append(f"{cell.value:.6g}" if exact else cell.text)
            if index in costs:
                ratio = cell.ratio
                printed = cell.printed if cell.origin == "computed" else cell.text
                values += [printed, "" if ratio is None else f"{ratio:.4f}"]
            if index in scores:
                values.append("" if cell.delta is None else f"{cell.delta:.6g}")
        rows.append(values)
    return as_csv(names, rows)


def _html(table: TableData, heading: bool) -> str:
    alignment = _alignment(table)
    parts = [f"<h2>Table {table.number}</h2>"] if heading else []
    headers = _headers(table)
    whole = ("", tuple(range(1, len(headers))))
    for title, columns in table.parts or (whole,):
        name = f"{caption(table)}: {title}" if title else caption(table)
        parts += ['<div class="scroll"><table>', f"<caption>{html.escape(name)}</caption>"]
        shown = (0, *columns)
        cells = "".join(
            f'<th scope="col" class="{alignment[index]}">{html.escape(headers[index])}</th>'
            for index in shown
        )
        parts.append(f"<thead><tr>{cells}</tr></thead><tbody>")
        for row in table.rows:
            cells = "".join(
                _html_cell(row[index], alignment[index], index in table.exploded) for index in shown
            )
            parts.append(f"<tr>{cells}</tr>")
        parts.append("</tbody></table></div>")
    notes = [*table.notes, *missing_notes(table)]
    items = "".join(f"<li>{html.escape(note)}</li>" for note in notes)
    parts.append(f'<ul class="notes">{items}</ul>')
    return "\n".join(parts) + "\n"


def _html_cell(cell: Cell, side: str, exploded: bool) -> str:
    value, rest = (html.escape(part) for part in cell_parts(cell, exploded))
    if cell.origin == "measured":
        # A narrow cell breaks between value, spread and difference, not within one.
        for text in (" ± ", ", ", " (n"):
            value = value.replace(text, text.replace(" ", "\u00a0"))
    value = {1: f"<b>{value}</b>", 2: f"<u>{value}</u>"}.get(cell.rank, value)
    title = html.escape(cell.reason, quote=True)
    hint = f' title="{title}"' if title else ""
    follow = f' <span class="delta">{rest.strip()}</span>' if rest else ""
    return f'<td class="{side} {cell.origin}"{hint}>{value}{follow}</td>'


def document(tables: Sequence[TableData], kind: str) -> str:
    """Return all tables in one document that ends with the cells that differ from print."""
    if kind == "text":
        return "\n".join(render(table, kind) for table in tables)
    if kind == "csv":
        return "\n".join(f"# {caption(table)}\n{render(table, kind)}" for table in tables)
    body = "\n".join(render(table, kind, heading=True) for table in tables)
    title = "Cells whose computed cost differs from the printed one by more than rounding"
    if kind == "markdown":
        return f"{body}\n## {title}\n\n{mismatch_markdown(tables)}"
    rows = [
        f"{', '.join(row)}: {why}" for why, cells in mismatches(tables).items() for row in cells
    ]
    rows = [", ".join(MISMATCH_HEADERS), *rows]
    if kind == "latex":
        return body + "\n" + "\n".join(f"% {one_line(row)}" for row in [title, *rows]) + "\n"
    items = "".join(f"<li>{html.escape(row)}</li>" for row in rows)
    return (
        '<!doctype html>\n<html lang="en"><meta charset="utf-8"><title>Tables</title>\n'
        f"{body}\n<h2>{title}</h2>\n<ul>{items}</ul>\n</html>\n"
    )
