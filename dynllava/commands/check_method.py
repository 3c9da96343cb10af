"""Run the invariants of this library on a method: batching, padding, cache, schedule, scoring."""

from __future__ import annotations

import argparse
import dataclasses
import json

HELP = "run the invariant matrix on a method, also one of your own"
EXAMPLE = "dynllava check-method my_method.py"


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument(
        "method", help="a file with methods (.py), or a method: fastv:k=2,keep_ratio=0.25"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    """Print one line an invariant; 1 if any is broken."""
    from dynllava import methods
    from dynllava.conformance.invariants import check_method
    from dynllava.methods.plugins import load_file

    if args.method.endswith(".py"):
        chosen = [cls() for cls in load_file(args.method)]
    else:
        chosen = [methods.create(args.method)]
    outcomes = {method.name: check_method(method) for method in chosen}
    if args.json:
        plain = {
            name: [dataclasses.asdict(item) for item in found] for name, found in outcomes.items()
        }
        print(json.dumps(plain, indent=2))
    else:
        for name, found in outcomes.items():
            print(name)
            for item in found:
                detail = f"  ({item.detail})" if item.detail else ""
                print(f"  {item.status:<15} {item.invariant}{detail}")
    return int(any(item.status == "failed" for found in outcomes.values() for item in found))
