"""Print the paper's tables: costs computed and compared with print, scores with differences."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from dynllava.errors import UserError

if TYPE_CHECKING:
    from dynllava.analysis.tables.cells import TableData

HELP = "regenerate a table of the paper (1-17, all), or of own runs (ours, across)"
EXAMPLE = "dynllava table 1 --with-ours"


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument(
        "number",
        metavar="N",
        help="1 to 17, all, ours (own runs only), or across (own runs that differ in --parameter)",
    )
    parser.add_argument(
        "--parameter",
        metavar="NAME",
        default="positions",
        help="for across: paired verdicts of its values against the default one",
    )
    parser.add_argument(
        "--format",
        choices=("text", "markdown", "latex", "csv", "html"),
        help="default: text on a terminal, else markdown",
    )
    parser.add_argument("--with-ours", action="store_true", help="append rows of own runs")
    parser.add_argument("--results", default="results", help="folder of run records")
    parser.add_argument("--out", help="write to this file instead of standard output")


def run(args: argparse.Namespace) -> int:
    """Print or write the table."""
    if args.format is None:
        shown = sys.stdout.isatty() and not args.out
        args.format = "text" if shown else "markdown"
    text = _text(args)
    if args.out:
        from dynllava.output.files import write_text

        print(f"wrote {write_text(args.out, text)}")
    else:
        print(text, end="")
    return 0


def _text(args: argparse.Namespace) -> str:
    from dynllava.analysis.tables import paper as tables
    from dynllava.analysis.tables import render as table_render
    from dynllava.published import tables as published

    if args.number == "across":
        from dynllava.analysis.points.stores import read_results
        from dynllava.analysis.report.across import across

        return _texts(across(read_results(args.results), args.parameter), args.format)
    own = []
    if args.with_ours or args.number == "ours":
        from dynllava.analysis.points.measured import measured_points
        from dynllava.analysis.points.stores import read_results

        own = measured_points(read_results(args.results), samples=False)
    if args.number == "ours":
        made = tables.ours(own)
        if not made:
            raise UserError(f"{args.results}: no evaluation record to make a table of", 1)
        return _texts(made, args.format)
    if args.number == "all":
        made = [tables.build(n, own, with_ours=args.with_ours) for n in published.TABLES]
        return table_render.document(made, args.format)
    if not args.number.isdecimal():
        raise UserError(f"table {args.number!r}: accepted are 1 to 17, all, ours and across")
    table = tables.build(int(args.number), own, with_ours=args.with_ours)
    text = table_render.render(table, args.format)
    if args.format == "markdown" and table.mismatches():
        text += "\nDiffers from print by more than rounding:\n\n"
        text += table_render.mismatch_markdown([table])
    return text


def _texts(made: Sequence[TableData], kind: str) -> str:
    from dynllava.analysis.tables import render as table_render

    return "\n".join(
        f"{table_render.markdown_caption(table)}\n\n{table_render.render(table, kind)}"
        if kind == "markdown"
        else table_render.render(table, kind)
        for table in made
    )
