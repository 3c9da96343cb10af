"""Plot accuracy against cost: curves per method, Pareto front, data as CSV.

Works on the published numbers alone; own runs under --results are added.
"""

from __future__ import annotations

import argparse

from dynllava.output import said

HELP = "plot accuracy against any cost (PNG, SVG, CSV)"
EXAMPLE = "dynllava pareto pareto --cost prefill_flops kv_bytes"


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument("out", nargs="?", default="pareto", help="folder to write to")
    parser.add_argument("--results", default="results", help="folder of run records")
    parser.add_argument(
        "--cost",
        nargs="+",
        default=["prefill_flops"],
        help="prefill_flops, decode_flops, kv_bytes, image_tokens, ttft, tpot; or all",
    )
    parser.add_argument(
        "--source", nargs="+", help="published studies: dynamic-llava, restore, fastv (default all)"
    )
    parser.add_argument("--model", nargs="+", default=[], help="only these models")
    parser.add_argument(
        "--average",
        choices=("common", "all"),
        default="common",
        help="average over the benchmarks that most methods report, or over all",
    )
    said.configure(parser)


def run(args: argparse.Namespace) -> int:
    """Write the figures and print their paths."""
    from dynllava.analysis.pareto.data import axis_of
    from dynllava.analysis.pareto.report import collections, write_pages
    from dynllava.analysis.points.measured import measured_points
    from dynllava.analysis.points.published import SOURCES
    from dynllava.analysis.points.stores import read_results
    from dynllava.analysis.points.values import AXES

    costs = list(AXES) if args.cost == ["all"] else [axis_of(name) for name in args.cost]
    own = measured_points(read_results(args.results))
    pages = collections(own, args.source or SOURCES, args.model)
    said.wrote(args, write_pages(pages, args.out, costs, args.average))
    return 0
