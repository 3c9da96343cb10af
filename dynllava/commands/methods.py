"""List the compression methods: parameters, what they prune, when they save, certificates."""

from __future__ import annotations

import argparse
import dataclasses
import json
from typing import Any

HELP = "list the compression methods"
EXAMPLE = "dynllava methods"

LAYERS = 32
"""Decoder layers of the model that the defaults are read for (LLaVA-1.5-7B)."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    """Print one block a method."""
    from dynllava.methods import registry
    from dynllava.output import terminal

    rows: list[dict[str, Any]] = []
    for name, method in registry().items():
        plan = method().plan(LAYERS)
        rows.append(
            {
                "name": name,
                "summary": method.summary,
                "parameters": dataclasses.asdict(method()),
                "prunes": plan.prunes,
                "saves": list(plan.saves),
                "positions": plan.positions,
                "certificate": method.certificate or "none (no official code)",
                "source": method.source,
            }
        )
    if args.json:
        print(json.dumps(rows, indent=2))
        return 0
    width = terminal.columns()
    for row in rows:
        parameters = ", ".join(f"{key}={value!r}" for key, value in row["parameters"].items())
        lines = terminal.paragraph(f"{row['name']}: {row['summary']}", width, "", "  ")
        facts = {
            "parameters": parameters or "none",
            "prunes": row["prunes"],
            "saves in": ", ".join(row["saves"]) or "nothing",
            "positions": row["positions"],
            "certificate": row["certificate"],
            "source": row["source"],
        }
        for title, fact in facts.items():
            lines += terminal.paragraph(fact, width, f"  {title:<13}", " " * 15)
        print("\n".join(lines))
    return 0
