"""The command line of a training run."""

from __future__ import annotations

import argparse

from dynllava.output import said


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of ``dynllava train`` and ``python -m dynllava.training``."""
    parser.add_argument("config", help="YAML file, or the name of a shipped configuration")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="e.g. data.path=mix.json")
    parser.add_argument("--dry-run", action="store_true", help="print the plan and stop")
    parser.add_argument(
        "--processes", type=int, default=1, help="processes that the dry run plans for"
    )
    parser.add_argument(
        "--resume", action="store_true", help="continue from the last complete checkpoint"
    )
    said.configure(parser)
