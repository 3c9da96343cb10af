"""Checkpoints of a run: complete or ignored, and tied to the configuration that wrote them."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

from dynllava.errors import UserError

from .config import differing_keys

MARKER = "complete"
IDENTITY = "training_identity.json"
# What may change between two sessions of one run: it has no influence on the weights.
_FREE_RUN_KEYS = ("output_dir", "workers", "logging_steps", "save_steps", "save_limit", "report_to")


def mark_complete(checkpoint: Path) -> None:
    """Say that a checkpoint is whole: its files reach the disk, then the marker appears."""
    for file in sorted(checkpoint.rglob("*")):
        if file.is_file():
            with file.open("rb") as handle:
                os.fsync(handle.fileno())
    marker = checkpoint / MARKER
    with marker.open("w", encoding="utf-8") as handle:
        handle.flush()
        os.fsync(handle.fileno())


def latest(folder: Path) -> Path | None:
    """Return the newest complete checkpoint of a run, None if there is none."""
    found = [path.parent for path in folder.glob(f"checkpoint-*/{MARKER}")]
    numbered = [path for path in found if path.name.rpartition("-")[2].isdigit()]
    return max(numbered, key=lambda path: int(path.name.rpartition("-")[2]), default=None)


def remove_torn(folder: Path) -> list[str]:
    """Delete checkpoints that were being written when the run died; return their names."""
    torn = [path for path in folder.glob("checkpoint-*") if not (path / MARKER).is_file()]
    for path in torn:
        shutil.rmtree(path)
    return sorted(path.name for path in torn)


def identity(config: dict[str, Any], data: dict[str, Any], processes: int) -> dict[str, Any]:
    """Return everything that decides the weights a run ends with.

    Parameters
    ----------
    config : dict
        The configuration as nested plain values.
    data : dict
        What the data were found to hold.
    processes : int
        Together with the configuration it gives the accumulation.
    """
    run = {key: value for key, value in config["run"].items() if key not in _FREE_RUN_KEYS}
    return {**config, "run": run, "data_found": data, "processes": processes}


def check_resume(folder: Path, wanted: dict[str, Any]) -> None:
    """Raise :class:`UserError` naming the keys in which ``folder``'s run was another one."""
    file = folder / IDENTITY
    try:
        stored = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{folder} cannot be resumed: {file.name} is not readable") from error
    keys = differing_keys(stored, json.loads(json.dumps(wanted)))
    if keys:
        raise UserError(f"{folder} was started with another configuration: {', '.join(keys)}")


def write_identity(folder: Path, values: dict[str, Any]) -> None:
    """Store the identity of a new run."""
    folder.mkdir(parents=True, exist_ok=True)
    scratch = folder / f".{IDENTITY}.tmp"
    scratch.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
    scratch.replace(folder / IDENTITY)
