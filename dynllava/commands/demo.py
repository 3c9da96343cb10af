"""Compare methods on the embedded model and suite, then write plots, tables and a report.

One command, no download, some minutes on two CPU cores.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dynllava.errors import UserError
from dynllava.methods.presets import DEMO, DEMO_PARAMETERS
from dynllava.plan.names import FULL

if TYPE_CHECKING:
    from dynllava.costs.spec import ModelSpec
    from dynllava.evaluation.runner import ModelRunner
    from dynllava.evaluation.sweep import Cell
    from dynllava.records import RunRecord

HELP = "compare methods on the embedded suite: curves, tables, report"
EXAMPLE = "dynllava demo --out demo"
BUDGETS = (60.0, 96.0)
SHOWN = (("caption", 0), ("attribute", 0), ("counting", 1))
"""Samples of the test split (family, number) whose kept tokens the report shows."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument(
        "--pretrained", default="embedded", help="model for the embedded suite (default: embedded)"
    )
    parser.add_argument("--out", type=Path, default=Path("demo"), help="folder to write to")
    parser.add_argument("--limit", type=int, default=60, help="samples per task family")
    parser.add_argument("--methods", nargs="+", default=list(DEMO), help="methods besides dense")
    parser.add_argument(
        "--budgets",
        nargs="+",
        type=float,
        default=list(BUDGETS),
        help="mean image tokens per layer",
    )
    parser.add_argument("--quiet", action="store_true", help="no progress lines")
    parser.add_argument("--json", action="store_true", help="print one JSON row a run, no table")


def run(args: argparse.Namespace) -> int:
    """Run the comparison, write everything, and print where to look."""
    from dynllava.evaluation import before, weights
    from dynllava.evaluation.grid import cells
    from dynllava.evaluation.runner import ModelRunner
    from dynllava.evaluation.summary import as_row, summary
    from dynllava.evaluation.sweep import run_sweep
    from dynllava.output import terminal
    from dynllava.records import RecordStore

    start = time.perf_counter()
    before.check_request(["embedded"], args.budgets, args.limit, [], args.out)
    methods = args.methods
    parameters = {name: DEMO_PARAMETERS[name] for name in methods if name in DEMO_PARAMETERS}
    store = args.out / "results"

    def load(part: weights.Part) -> ModelRunner:
        return ModelRunner(part.source, device="cpu", name=args.pretrained, weights=part.role)

    def grid(part: weights.Part, spec: ModelSpec) -> list[Cell]:
        return cells(part.methods, args.budgets, parameters, spec)

    def sweep(runner: ModelRunner, grid: list[Cell]) -> list[RunRecord]:
        found = run_sweep(
            args.pretrained,
            grid,
            ["embedded"],
            limit=args.limit,
            store=store,
            progress=not args.quiet,
            suite="embedded",
            runner=runner,
        )
        _overlays(runner, grid, store)
        return found

    chosen = weights.parts(args.pretrained, [FULL, *methods])
    records = weights.run_parts(chosen, load, grid, sweep)
    written = _write(args.out, store)
    if args.json:
        rows = [as_row(record) for record in records]
        paths = {what: str(path) for what, path in written.items()}
        print(json.dumps({"runs": rows, "written": paths}, indent=2))
    else:
        print(summary(records, RecordStore(store), terminal.columns()))
        print(f"\n{len(records)} runs in {time.perf_counter() - start:.0f} s. Look at:")
        for what, path in written.items():
            print(f"  {what:<8} {path}")
    return int(any(record.status == "failed" for record in records))


def _overlays(runner: Any, grid: list[Cell], store: Path) -> None:
    """Store what each method keeps of some samples, at its smallest budget."""
    from dynllava.analysis.report.overlay import FOLDER
    from dynllava.analysis.report.visualise import look_at
    from dynllava.embedded import load_split

    cheapest: dict[str, Cell] = {}
    for cell in grid:
        best = cheapest.get(cell.method)
        if best is None or (cell.budget or 0) < (best.budget or 0):
            cheapest[cell.method] = cell
    for cell in cheapest.values():
        try:
            runner.set_method(cell.method, cell.params)
        except UserError as error:
            # The sweep has recorded the failure; a picture less is no reason to stop.
            print(f"warning: no pictures of {cell}: {error}", file=sys.stderr)
            continue
        for family, number in SHOWN:
            row = load_split("test", family, limit=number + 1)[number]
            overlay = look_at(
                runner.model,
                runner.processor,
                row["image"],
                row["question"],
                label=str(cell),
                model_name=runner.info.name,
                expected=str(row["answer"]),
            )
            overlay.write(store / FOLDER / f"{family}-{number}-{cell.method}.json")


def _write(out: Path, store: Path) -> dict[str, Path]:
    """Write plots, tables and report; return what a reader should open."""
    from dynllava.analysis.pareto.overview import write_overview
    from dynllava.analysis.pareto.report import collections, write_pages
    from dynllava.analysis.points.measured import measured_points
    from dynllava.analysis.report.overlay import read_all
    from dynllava.analysis.report.write import write_report
    from dynllava.analysis.tables import paper as tables
    from dynllava.analysis.tables import render as table_render
    from dynllava.output.files import write_text
    from dynllava.published import tables as published
    from dynllava.records.reading import read_stores

    own = measured_points(read_stores(store)[0])
    pages = {key: points for key, points in collections(own).items() if key[0] == "own"}
    plots = write_pages(pages, out / "pareto", ["image_tokens", "prefill_flops", "kv_bytes"])
    made = [tables.build(number) for number in published.TABLES]
    text = table_render.document(made, "markdown")
    for table in tables.ours(own):
        title = table_render.markdown_caption(table)
        text = f"## {title}\n\n{table_render.render(table, 'markdown')}\n{text}"
    report, markdown = write_report(out / "report.html", store)
    figure = write_overview(out / "figure.png", own, read_all(store)[0])
    return {
        **({"figure": figure} if figure else {}),
        "report": report,
        "markdown": markdown,
        "plots": plots[0].parent,
        "tables": write_text(out / "tables.md", text),
        "records": store / "records.jsonl",
    }
