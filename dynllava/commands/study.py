"""Run a study of the embedded model: train, score, and say what follows."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from dynllava.errors import UserError
from dynllava.output import said

HELP = "run a study of the embedded model (train, score, say what follows)"
EXAMPLE = "dynllava study elastic --work runs --out results/elastic --seeds 0"
RESUMES = True
"""Started again, it trains and scores what is missing."""
STAGES = ("train", "score", "tell")


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument("study", choices=("elastic",), help="which one")
    parser.add_argument("--work", type=Path, default=Path("runs"), help="folder of the models")
    parser.add_argument("--out", default="results/elastic", help="folder of the records")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], metavar="N")
    parser.add_argument(
        "--stages",
        nargs="+",
        choices=STAGES,
        default=list(STAGES),
        help="default: train score tell",
    )
    parser.add_argument("--variant", default="mixed", help="which elastic training")
    parser.add_argument(
        "--elastic-only", action="store_true", help="train the elastic checkpoint alone"
    )
    parser.add_argument(
        "--ablations", action="store_true", help="also predictors alone, and twice the steps"
    )
    parser.add_argument("--split", default="holdout", help="of the embedded data")
    parser.add_argument("--limit", type=int, help="samples a family")
    said.configure(parser)


def run(args: argparse.Namespace) -> int:
    """Carry out the stages asked for."""
    from dynllava.analysis.elastic.tables import elastic_tables
    from dynllava.analysis.tables.render import markdown_caption, render
    from dynllava.records.reading import read_stores
    from dynllava.studies.elastic import models, runs

    if args.variant not in models.ELASTIC:
        known = ", ".join(models.ELASTIC)
        raise UserError(f"--variant {args.variant}: accepted are {known}")
    elastic = models.ELASTIC[args.variant]
    if min(args.seeds) < 0:
        raise UserError(f"--seeds {min(args.seeds)}: accepted are numbers from 0")
    if args.limit is not None and args.limit < 6:
        raise UserError(f"--limit {args.limit}: accepted is a number from 6")
    silent = args.quiet or args.json
    wanted = list(runs.runs(elastic)) + (list(runs.ablations()) if args.ablations else [])
    if "train" in args.stages:
        needed = [elastic] if args.elastic_only else list(
            dict.fromkeys(run.variant for run in wanted if run.variant is not None)
        )  # fmt: skip
        for seed in args.seeds:
            for variant in needed:
                folder = models.trained(variant, seed, args.work)
                if not silent:
                    print(f"seed {seed}: {folder}")
    if "score" in args.stages:
        runs.score_all(wanted, args.seeds, args.work, args.out, args.split, args.limit, not silent)
    if "tell" in args.stages:
        tables = elastic_tables(read_stores(args.out)[0])
        if args.json:
            shown = [
                {
                    "title": table.title,
                    "headers": table.headers,
                    "rows": [[cell.text for cell in row] for row in table.rows],
                }
                for table in tables
            ]
            print(json.dumps({"tables": shown}, indent=2))
        elif not args.quiet:
            for table in tables:
                print(f"## {markdown_caption(table)}\n\n{render(table, 'markdown')}")
    return 0
