"""Repeat a row of a published table: its exact commands, and a verdict on what they give."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from dynllava.errors import UserError

if TYPE_CHECKING:
    from dynllava.published.rows import Row
    from dynllava.reproduction.steps import Wanted

HELP = "commands, protocol and expected value of a published row; --run ends in a verdict"
EXAMPLE = "dynllava reproduce table1:full-7b"
RESUMES = True
"""Started again, it goes on where it was stopped."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument(
        "row", nargs="?", metavar="ROW", help="such as table1:full-7b; --list names them"
    )
    parser.add_argument("--list", action="store_true", help="name every row and what it ran")
    parser.add_argument(
        "--run",
        dest="execute",
        action="store_true",
        help="run the evaluation and give a verdict",
    )
    parser.add_argument(
        "--checkpoint",
        metavar="MODEL",
        help="weights to evaluate, such as those you trained (default: the row's published ones)",
    )
    parser.add_argument(
        "--tasks", nargs="+", default=[], metavar="TASK", help="default: all that the row prints"
    )
    parser.add_argument(
        "--data",
        nargs="+",
        type=Path,
        default=[],
        metavar="DIR",
        help="folders with task files that replace the downloads, as for compare",
    )
    parser.add_argument("--limit", type=int, help="documents per task (default: all)")
    parser.add_argument(
        "--margin",
        type=float,
        default=1.0,
        help="what still counts as the printed value: percent of a full score, of the printed "
        "value for perplexity; half a printed digit is added (default: 1)",
    )
    parser.add_argument(
        "--dtype",
        choices=("float16", "bfloat16", "float32"),
        default="float16",
        help="default: float16, as published",
    )
    parser.add_argument("--device", default="auto", help="default: CUDA where there is one")
    parser.add_argument("--batch-size", default="auto", help="a number, or auto (the default)")
    parser.add_argument("--out", type=Path, help="record store (default: runs/ROW)")


def run(args: argparse.Namespace) -> int:
    """Print the row, and run it where that is asked for."""
    from dynllava.published.rows import find
    from dynllava.reproduction.page import listing, plan
    from dynllava.reproduction.steps import Wanted, runnable
    from dynllava.tasks.loading import check_folders

    if args.list:
        print("\n".join(listing()))
        return 0
    if args.row is None:
        raise UserError("no row: accepted is a name such as table1:full-7b (--list names them)")
    if not 0 <= args.margin < 100:
        raise UserError(f"--margin {args.margin:g}: accepted is a number from 0 to below 100")
    if args.limit is not None and args.limit < 1:
        raise UserError(f"--limit {args.limit}: accepted is a number from 1")
    check_folders(args.data)
    row = runnable(find(args.row))
    wanted = Wanted(
        args.checkpoint,
        tuple(args.tasks),
        tuple(args.data),
        args.limit,
        args.dtype,
        args.device,
        args.batch_size,
        args.out,
        args.margin,
    )
    print("\n".join(plan(row, wanted)), flush=True)
    return _executed(row, wanted) if args.execute else 0


def _executed(row: Row, wanted: Wanted) -> int:
    """Run a row's evaluation, then print the verdict; 1 if a benchmark could not be run."""
    from dynllava.records import RecordStore
    from dynllava.reproduction import steps
    from dynllava.reproduction.page import result
    from dynllava.reproduction.verdict import outcomes

    from . import compare

    weights = steps.weights_of(row, wanted)
    if row.training is not None and wanted.checkpoint is None and not Path(weights).is_dir():
        raise UserError(
            f"{row.name}: its weights are trained first ({weights} is not there); run the training "
            "command above, or give --checkpoint"
        )
    parser = argparse.ArgumentParser(prog="dynllava compare")
    compare.configure(parser)
    code = compare.run(parser.parse_args(steps.evaluation(row, wanted)[1:]))
    tasks = steps.tasks_of(row, wanted)
    found = outcomes(row, tasks, RecordStore(steps.store_of(row, wanted)), wanted.margin)
    print("\n".join(result(row, found)))
    return code
