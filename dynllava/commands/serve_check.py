"""Check a served model: answers beside our layer loop's, prompt tokens, times, faults.

Starts dynllava serve with a stock engine, asks questions of the embedded test split, and fails if
more than 1 % of the answers differ, if one differs at more than rounding, if the engine counts
other prompt tokens than the ledger, or if a request is lost.
"""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path

from dynllava.errors import UserError
from dynllava.methods.presets import SERVED, SERVED_TIMED

HELP = "check what an engine serves against our own loop, and time it"
EXAMPLE = "dynllava serve-check out/model --prompts 40 --store results/serving"


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument("folder", type=Path, help="written by dynllava export")
    parser.add_argument(
        "--methods",
        nargs="+",
        default=list(SERVED),
        metavar="NAME[:PARAMETER=VALUE,...]",
        help="whose answers are compared, besides the dense model's",
    )
    parser.add_argument(
        "--timed",
        nargs="+",
        default=list(SERVED_TIMED),
        metavar="NAME[:PARAMETER=VALUE,...]",
        help="that are timed, besides the dense model",
    )
    parser.add_argument(
        "--budgets",
        nargs="+",
        type=int,
        help="image tokens that a picture keeps (default: a half and a quarter)",
    )
    parser.add_argument(
        "--only",
        nargs="+",
        metavar="PART",
        choices=("answers", "load", "faults"),
        help="answers, load, faults (default: all)",
    )
    parser.add_argument("--prompts", type=int, default=40, help="of each method")
    parser.add_argument("--tokens", type=int, default=32, help="most tokens of a compared answer")
    parser.add_argument(
        "--concurrency", nargs="+", type=int, default=[1, 4, 16], help="requests at a time"
    )
    parser.add_argument("--rounds", type=int, default=10, help="that count, one more warms up")
    parser.add_argument("--requests", type=int, default=16, help="of a method in a round, at least")
    parser.add_argument("--seed", type=int, default=0, help="of the order within the rounds")
    parser.add_argument(
        "--no-stock", action="store_true", help="do not time the engine with its own tower"
    )
    parser.add_argument("--store", type=Path, help="append records to this store")
    parser.add_argument("--logs", type=Path, metavar="DIR", help="keep what the servers print")
    parser.add_argument(
        "--serve-args", default="", metavar="TEXT", help="more arguments of dynllava serve"
    )


def run(args: argparse.Namespace) -> int:
    """Run the parts that are wanted."""
    for name in ("prompts", "tokens", "rounds", "requests"):
        if getattr(args, name) < 1:
            raise UserError(f"--{name} {getattr(args, name)}: accepted is a number from 1")
    for name in ("budgets", "concurrency"):
        for value in getattr(args, name) or ():
            if value < 1:
                raise UserError(f"--{name} {value}: accepted is a number from 1")
    try:
        options = shlex.split(args.serve_args)
    except ValueError as error:
        raise UserError(f"--serve-args: {error}") from None
    from dynllava.serving.selection import Bundle

    from .serve import need_packages

    Bundle.read(args.folder).check([*args.methods, *args.timed])
    need_packages()
    from dynllava.serving.check.load import LoadPlan
    from dynllava.serving.check.run import PARTS, Check, check

    plan = LoadPlan(tuple(args.concurrency), args.rounds, args.requests, seed=args.seed)
    return check(
        Check(
            folder=args.folder,
            methods=args.methods,
            budgets=args.budgets or [],
            parts=tuple(args.only or PARTS),
            prompts=args.prompts,
            tokens=args.tokens,
            plan=plan,
            timed=args.timed,
            stock=not args.no_stock,
            store=args.store,
            options=options,
            logs=args.logs,
        )
    )
