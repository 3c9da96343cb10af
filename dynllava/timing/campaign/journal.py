"""The campaign's diary: one JSON line an event, durable as soon as it is written."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..speed import Times

FILE_NAME = "rounds.jsonl"
ATTEMPTS = 2
"""A step that failed so often is given up."""


class Journal:
    """Append events, and say from them what is done and which rounds there are.

    Parameters
    ----------
    folder : Path
        Of the campaign.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / FILE_NAME
        self.events: list[dict[str, Any]] = list(self._read())

    def _read(self) -> Iterator[dict[str, Any]]:
        if not self.path.exists():
            return
        for line in self.path.read_bytes().split(b"\n"):
            try:
                event = json.loads(line)
            except ValueError:
                continue  # torn by a kill: the round being made
            if isinstance(event, dict):
                yield event

    def add(self, event: str, step: str, **fields: Any) -> None:
        """Append one event and wait until it is on disk."""
        entry = {"event": event, "step": step, **fields}
        line = json.dumps(entry, allow_nan=False).encode() + b"\n"
        descriptor = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            size = os.fstat(descriptor).st_size
            if size and os.pread(descriptor, 1, size - 1) != b"\n":
                line = b"\n" + line  # end a line that a kill tore
            os.write(descriptor, line)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        self.events.append(json.loads(line))

    def of(self, event: str, step: str | None = None) -> list[dict[str, Any]]:
        """Return the events of a kind (of one step), oldest first."""
        return [
            entry
            for entry in self.events
            if entry["event"] == event and (step is None or entry["step"] == step)
        ]

    def finished(self) -> set[str]:
        """Return the steps that are done or were given up."""
        done = {entry["step"] for entry in self.of("done")}
        failed = [entry["step"] for entry in self.of("failed")]
        return done | {step for step in failed if failed.count(step) >= ATTEMPTS}

    def running(self) -> str | None:
        """Return the step that was started and neither done nor stopped, None if there is none."""
        last = None
        for entry in self.events:
            if entry["event"] == "start":
                last = entry["step"]
            elif entry["event"] in ("done", "failed", "stopped") and entry["step"] == last:
                last = None
        return last

    def add_round(self, step: str, cell: str, times: dict[str, Times]) -> None:
        """Append the times of one round of a cell, by subject."""
        self.add("round", step, cell=cell, subjects={k: vars(v) for k, v in times.items()})

    def rounds(self, step: str, cell: str) -> list[dict[str, Times]]:
        """Return every stored round of a cell."""
        from ..speed import Times

        return [
            {name: Times(**found) for name, found in entry["subjects"].items()}
            for entry in self.of("round", step)
            if entry["cell"] == cell
        ]
