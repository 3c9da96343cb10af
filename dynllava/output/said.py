"""What a command says when it is done: what it wrote, in lines, as JSON, or not at all."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

QUIET = "print nothing but warnings and errors"


def configure(parser: argparse.ArgumentParser) -> None:
    """Add ``--json`` and ``--quiet``, of which one may be given."""
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print JSON")
    form.add_argument("--quiet", action="store_true", help=QUIET)


def wrote(args: argparse.Namespace, paths: Sequence[Path], note: str = "", **more: Any) -> None:
    """Say which files and folders were written.

    Parameters
    ----------
    args : Namespace
        With what :func:`configure` added.
    paths : sequence of Path
        A line each; in JSON the list ``written``.
    note : str
        Stands behind each path in brackets.
    **more
        Further values of the JSON object.
    """
    if args.json:
        print(json.dumps({"written": [str(path) for path in paths], **more}, indent=2))
    elif not args.quiet:
        for path in paths:
            print(f"wrote {path}" + (f" ({note})" if note else ""))
