"""The report for those who read in a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from dynllava.output.cells import escape_markdown
from dynllava.output.tables import markdown_lines

from .. import style
from ..pareto.data import panel, summarise
from ..points import names as benchmarks
from ..tables import render as table_render
from .data import ReportData
from .provenance import provenance_rows
from .summary import facts


def markdown(data: ReportData) -> str:
    """Return summary, own runs, fronts, shares, crossovers, table 10, mismatches, provenance."""
    parts = ["# Token sparsification for LLaVA", ""]
    parts += [
        f"- **{escape_markdown(figure)}** {escape_markdown(text)}" for figure, text in facts(data)
    ]
    for table in (*data.verdicts, *data.own_tables, *data.serving, *data.elastic):
        title = table_render.markdown_caption(table)
        parts += ["", f"## {title}", "", table_render.render(table, "markdown")]
    parts += ["", "## Fronts, prefill compute", ""]
    rows: list[tuple[str, ...]] = []
    for (source, model), points in data.pages.items():
        shown = panel(points, "average", "prefill_flops")
        for row in summarise(shown):
            volume = "-" if row.hypervolume is None else f"{row.hypervolume:.4f}"
            area = "-" if row.area is None else f"{row.area:.4f}"
            rows.append((source, model, style.name(row.curve), str(row.budgets), volume, area))
    headers = ("study", "model", "method", "budgets", "hypervolume", "mean score over costs")
    parts += [_table(headers, rows), "", f"Score: {benchmarks.title('average').lower()}.", ""]
    parts += ["## Realised share of savings (counted; published rows: Eq. 13)", ""]
    shares: list[tuple[str, ...]] = [
        (s.setting, s.label, "undefined" if s.value is None else f"{s.value:.0%}", s.note, s.origin)
        for s in data.shares
    ]
    parts += [_table(("setting", "method", "realised", "change", "origin"), shares), ""]
    parts += ["## KV cache: crossover points", ""]
    parts += [
        f"- from {item.outputs} output tokens on {item.after} stores less than {item.before}"
        for item in data.crossovers
    ] or ["None."]
    ten = next(table for table in data.tables if table.number == 10)
    parts += ["", table_render.render(ten, "markdown", heading=True)]
    parts += ["## Cells whose computed cost differs from print", ""]
    parts += [table_render.mismatch_markdown(data.tables), "## Provenance", ""]
    names, records = provenance_rows(data)
    parts += [_table(names, records) if records else "No records."]
    parts += ["", *(f"- skipped: {escape_markdown(note)}" for note in data.notes)]
    return "\n".join(parts).rstrip() + "\n"


def _table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    shown = [[escape_markdown(cell) for cell in row] for row in rows]
    return "\n".join(markdown_lines([escape_markdown(name) for name in headers], shown))
