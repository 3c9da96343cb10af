"""Write one self-contained HTML page of everything known, and report.md beside it.

The page loads nothing from the network. Without run records it shows the published numbers.
"""

from __future__ import annotations

import argparse

from dynllava.output import said

HELP = "write the HTML report (and report.md)"
EXAMPLE = "dynllava report report.html --results results"


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument("out", metavar="OUT.html", help="file to write")
    parser.add_argument("--results", default="results", help="folder of run records")
    said.configure(parser)


def run(args: argparse.Namespace) -> int:
    """Write the page and the Markdown report, and print their paths."""
    from dynllava.analysis.report.write import write_report

    said.wrote(args, write_report(args.out, args.results))
    return 0
