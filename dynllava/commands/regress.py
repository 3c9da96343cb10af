"""Compare two stores of run records: accuracy by paired tests, counted costs exactly, times.

Exit code 0: no regression, or undecided (with --strict undecided is 1); 1: regression; 2: cannot
compare (it says why).
"""

from __future__ import annotations

import argparse
import sys

from dynllava.errors import UserError

HELP = "regression gate: candidate against base (exit 0, 1 or 2)"
EXAMPLE = "dynllava regress results/base results/candidate"


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument("base", nargs="?", help="folder of run records, or a records.jsonl")
    parser.add_argument("candidate", nargs="?", help="the same of the change to be judged")
    parser.add_argument("--policy", help="YAML file with thresholds (docs/regression_gate.md)")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print every comparison as JSON")
    form.add_argument("--markdown", action="store_true", help="print every comparison as Markdown")
    parser.add_argument("--summary", metavar="FILE", help="also write the Markdown to this file")
    parser.add_argument("--strict", action="store_true", help="undecided is exit 1, not 0")
    parser.add_argument("--history", metavar="FOLDER", help="draw every metric over commits")
    parser.add_argument("--out", default="history", help="folder for --history's pictures")


def run(args: argparse.Namespace) -> int:
    """Print the outcome and return the gate's exit code."""
    if args.history:
        return _history(args)
    if not args.base or not args.candidate:
        raise UserError("BASE and CANDIDATE are needed (or --history FOLDER)")
    from dynllava.analysis.gate import regress
    from dynllava.analysis.gate import report as regress_report
    from dynllava.analysis.gate.checks import exit_code
    from dynllava.analysis.gate.policy import load_policy
    from dynllava.output.files import write_text
    from dynllava.records.reading import read_stores

    policy = load_policy(args.policy)
    base, notes = read_stores(args.base)
    candidate, more = read_stores(args.candidate)
    for note in notes + more:
        print(f"warning: {note}", file=sys.stderr)
    checks = regress.compare(base, candidate, policy)
    shown = (checks, policy, args.base, args.candidate, args.strict)
    form = (
        regress_report.as_json
        if args.json
        else regress_report.markdown
        if args.markdown
        else regress_report.text
    )
    print(form(*shown))
    if args.summary:
        path = write_text(args.summary, regress_report.markdown(*shown))
        print(f"wrote {path}", file=sys.stderr)
    return exit_code(checks, args.strict)


def _history(args: argparse.Namespace) -> int:
    from dynllava.analysis.gate.history import draw
    from dynllava.analysis.points.stores import read_results

    for path in draw(read_results(args.history), args.out):
        print(f"wrote {path}")
    return 0
