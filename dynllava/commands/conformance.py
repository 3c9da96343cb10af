"""Compare the library with tensors recorded from official implementations.

Exit code 0: every compared quantity is within its tolerance.  1: something failed (or, with
--require-all, a case is not covered).  2: usage or internal error.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dynllava.conformance import CaseResult

HELP = "certificate of faithfulness: compare with recorded official tensors"
EXAMPLE = "dynllava conformance tests/data/golden/baselines"


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument("folder", type=Path, help="golden folder with a cases.json")
    parser.add_argument("--json", type=Path, metavar="OUT", help="write the certificate as JSON")
    parser.add_argument("--case", help="run one case only")
    parser.add_argument(
        "--require-all", action="store_true", help="cases that are not covered are a failure"
    )


def run(args: argparse.Namespace) -> int:
    """Print one row a quantity and return the exit code."""
    from dynllava.conformance import check_folder
    from dynllava.errors import UserError
    from dynllava.output.files import check_output_file, write_text

    if args.json:
        check_output_file(args.json, "--json")
    header = f"{'case':26s} {'quantity':44s} {'max abs diff':>12s} {'tolerance':>10s}  verdict"
    print(header)
    try:
        certificate = check_folder(args.folder, args.case, print_result)
    except UserError:
        raise
    except Exception as error:
        # Not a verdict on the port: an error of ours or of the data must not read as "failed".
        raise UserError(f"internal error: {type(error).__name__}: {error}") from error
    for name in certificate.not_covered:
        print(f"{name:26s} not covered")
    values = certificate.to_dict()
    excluded = sum(len(names) for names in values["excluded"].values())
    print(
        f"{values['passed']} passed, {values['failed']} failed, {excluded} tensors excluded, "
        f"{len(certificate.not_covered)} cases not covered"
    )
    if args.json:
        write_text(args.json, json.dumps(values, indent=2) + "\n")
        print(f"wrote {args.json}")
    incomplete = args.require_all and certificate.not_covered
    return 1 if certificate.failed or incomplete or not certificate.rows else 0


def print_result(result: CaseResult) -> None:
    """Print the rows of one case."""
    for row in result.rows:
        verdict = "passed" if row.passed else "FAILED"
        print(
            f"{row.case:26s} {row.quantity:44s} {row.max_abs_diff:12.3g} {row.tolerance:10.3g}  "
            f"{verdict}"
        )
    for quantity, reason in result.excluded.items():
        print(f"{result.case:26s} {quantity:44s} excluded: {reason}")
