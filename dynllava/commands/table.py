"""Print the paper's tables: costs computed and compared with print, scores with differences."""

from __future__ import annotations

import argparse

from dynllava.errors import UserError

HELP = "regenerate a table of the paper (1-17, all, or ours)"


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument("number", metavar="N", help="1 to 17, all, or ours (own runs only)")
    parser.add_argument(
        "--format", choices=("markdown", "latex", "csv", "html"), default="markdown"
    )
    parser.add_argument("--with-ours", action="store_true", help="append rows of own runs")
    parser.add_argument("--results", default="results", help="folder of run records")
    parser.add_argument("--out", help="write to this file instead of standard output")


def run(args: argparse.Namespace) -> int:
    """Print or write the table."""
    text = _text(args)
    if args.out:
        from dynllava.output.files import write_text

        print(write_text(args.out, text))
    else:
        print(text, end="")
    return 0


def _text(args: argparse.Namespace) -> str:
    from dynllava.analysis.tables import paper as tables
    from dynllava.analysis.tables import render as table_render
    from dynllava.published import tables as published

    own = []
    if args.with_ours or args.number == "ours":
        from dynllava.analysis.points.measured import measured_points
        from dynllava.analysis.points.stores import read_results

        own = measured_points(read_results(args.results), samples=False)
    if args.number == "ours":
        made = tables.ours(own)
        if not made:
            raise UserError(f"{args.results}: no evaluation record to make a table of", 1)
        return "\n".join(
            f"{table_render.markdown_caption(table)}\n\n{table_render.render(table, args.format)}"
            if args.format == "markdown"
            else table_render.render(table, args.format)
            for table in made
        )
    if args.number == "all":
        made = [tables.build(n, own, with_ours=args.with_ours) for n in published.TABLES]
        return table_render.document(made, args.format)
    if not args.number.isdecimal():
        raise UserError(f"table {args.number!r}: accepted are 1 to 17, all and ours")
    table = tables.build(int(args.number), own, with_ours=args.with_ours)
    text = table_render.render(table, args.format)
    if args.format == "markdown" and table.mismatches():
        text += "\nDiffers from print by more than rounding:\n\n"
        text += table_render.mismatch_markdown([table])
    return text
