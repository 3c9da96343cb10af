"""Reading a results folder for a command: problems go to standard error, one line each."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from dynllava.records.reading import Stored, read_stores

DEFAULT = "results"


def read_results(folder: str | os.PathLike[str]) -> list[Stored]:
    """Return the records under ``folder`` and report skipped lines on standard error.

    The default folder need not exist: published numbers are there without it.

    Raises
    ------
    UserError
        If another folder does not exist.
    """
    if Path(folder) == Path(DEFAULT) and not Path(folder).exists():
        return []
    stored, notes = read_stores(folder)
    for note in notes:
        print(f"warning: {note}", file=sys.stderr)
    failed = sum(item.record.status == "failed" for item in stored)
    if failed:
        print(f"note: {failed} failed runs are left out", file=sys.stderr)
    return stored
