"""How many samples decide whether a method is worse by more than a margin.

Without RESULTS: from --discordance (share of samples whose answer changes), --per-image and --icc.
With RESULTS: from what the samples of each stored run show beside its dense model.
"""

from __future__ import annotations

import argparse
import json

from dynllava.errors import UserError
from dynllava.output import terminal
from dynllava.output.tables import Table, as_text

HELP = "samples that decide a margin at a power, alone and in a family of comparisons"
EXAMPLE = "dynllava plan-samples --margin 0.01 --discordance 0.03"


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument("results", nargs="?", help="folder of run records, or a records.jsonl")
    parser.add_argument(
        "--margin", type=float, default=0.01, help="tolerated drop of a 0/1 score (default: 0.01)"
    )
    parser.add_argument("--power", type=float, default=0.8, help="wanted power (default: 0.8)")
    parser.add_argument("--alpha", type=float, default=0.05, help="level (default: 0.05)")
    parser.add_argument(
        "--family",
        type=int,
        nargs="+",
        default=[1, 12, 98],
        metavar="K",
        help="comparisons that are corrected together (default: 1 12 98)",
    )
    parser.add_argument(
        "--discordance",
        type=float,
        nargs="+",
        metavar="SHARE",
        help="share of samples whose answer changes (default without RESULTS: 0.01 0.03 0.1 0.3)",
    )
    parser.add_argument(
        "--per-image", type=float, default=1.0, help="questions on one image (default: 1)"
    )
    parser.add_argument(
        "--icc", type=float, default=0.0,
        help="correlation of the changes within an image, 0 to 1 (default: 0)",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    """Print one line a design: samples for each size of family."""
    _check(args)
    rows = _observed(args) if args.results else _assumed(args)
    if args.json:
        found = [
            {"design": name, "family": k, **_needed(design, args, k)}
            for name, design in rows
            for k in args.family
        ]
        print(json.dumps(found, indent=2))
        return 0
    title = (
        f"Samples that decide 'not worse by more than {args.margin:g}' at power {args.power:g} and "
        f"level {args.alpha:g} (Holm), if nothing else changes; images in brackets where they "
        "hold several samples."
    )
    heads = ["design", *(f"{k} comparison{'s' * (k > 1)}" for k in args.family)]
    cells = [[name, *(_cell(design, args, k) for k in args.family)] for name, design in rows]
    print(as_text([Table(title, heads, cells, left=1)], terminal.columns()), end="")
    return 0


def _check(args: argparse.Namespace) -> None:
    if args.results and args.discordance:
        raise UserError("--discordance: with RESULTS it is read from their samples")
    for name in ("margin", "power", "alpha"):
        if not 0 < getattr(args, name) < 1:
            raise UserError(f"--{name} {getattr(args, name):g}: accepted is more than 0, under 1")
    if min(args.family) < 1:
        raise UserError(f"--family {min(args.family)}: accepted are numbers from 1")
    if args.discordance and not all(0 <= value < 1 for value in args.discordance):
        raise UserError("--discordance: accepted are shares from 0 to under 1")
    if args.per_image < 1 or not 0 <= args.icc <= 1:
        raise UserError("--per-image: accepted is 1 or more; --icc: 0 to 1")


def _needed(design, args: argparse.Namespace, family: int) -> dict[str, int | None]:
    """Return samples and images that decide, None where over 10^8 images would be needed."""
    from dynllava.uncertainty.power import plan_clusters

    clusters = plan_clusters(design, args.margin, args.alpha / family, args.power)
    samples = None if clusters is None else round(clusters * design.per_cluster)
    return {"samples": samples, "images": clusters}


def _cell(design, args: argparse.Namespace, family: int) -> str:
    found = _needed(design, args, family)
    if found["samples"] is None:
        return "over 10^8"
    samples = f"{found['samples']:,}"
    return samples if design.per_cluster == 1 else f"{samples} ({found['images']:,})"


def _assumed(args: argparse.Namespace) -> list:
    from dynllava.uncertainty.design import binary_design

    rows = []
    for share in args.discordance or (0.01, 0.03, 0.1, 0.3):
        name = f"{100 * share:g} % differ"
        if args.per_image > 1:
            name += f", {args.per_image:g} an image, ICC {args.icc:g}"
        rows.append((name, binary_design(100, share, args.per_image, args.icc)))
    return rows


def _observed(args: argparse.Namespace) -> list:
    from dynllava.analysis.points.measured import measured_points
    from dynllava.analysis.report.against_dense import against_dense
    from dynllava.records.reading import read_stores

    rows = against_dense(measured_points(read_stores(args.results)[0]), args.margin)
    if not rows:
        raise UserError(
            f"{args.results}: no run with samples scored from 0 to 1 beside its dense one", 1
        )
    return [
        (f"{row.label} ({100 * row.comparison.discordance:.2g} % differ)", row.design)
        for row in rows
    ]
