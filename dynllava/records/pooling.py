"""Speed records of several processes as one: every round of every process, by process."""

from __future__ import annotations

import dataclasses
import json
import statistics
from collections.abc import Iterable, Sequence

from .schema import Measured, RunRecord

CALIBRATED = ("output_threshold",)
"""Parameters that untrained predictors are calibrated to anew in every process."""


def pooled(records: Iterable[RunRecord]) -> list[RunRecord]:
    """Return one record per cell, code and machine: the newest, with the rounds of all.

    Quantities whose rounds are not stored (schema 1) are the newest record's alone.  Records that
    differ in code, versions, device, dtype, kernel or threads are never pooled.
    """
    groups: dict[str, list[RunRecord]] = {}
    for record in sorted(records, key=lambda one: one.created):
        groups.setdefault(_key(record), []).append(record)
    return [_merged(group) for group in groups.values()]


def _key(record: RunRecord) -> str:
    method, found = record.method, record.environment
    chosen = {key: value for key, value in method.parameters.items() if key not in CALIBRATED}
    machine = [found.device, found.dtype, found.attention, found.threads]
    code = [found.commit, found.dirty, found.versions]
    cell = [record.kind, record.status, record.model.name, record.task and record.task.name]
    own = [method.name, method.label, method.budget, chosen]
    return json.dumps([cell, own, machine, code], sort_keys=True)


def _merged(group: Sequence[RunRecord]) -> RunRecord:
    newest = group[-1]
    counted = {name: item for record in group for name, item in record.counted.items()}
    names = {name: None for record in group for name in record.measured}
    measured = {
        name: merged_rounds([one.measured[name] for one in group if name in one.measured])
        for name in names
    }
    return dataclasses.replace(newest, measured=measured, counted=counted)


def merged_rounds(items: Sequence[Measured]) -> Measured:
    """Return a quantity over the rounds of all its processes, newest item last."""
    newest = items[-1]
    rounds: dict[str, list[float]] = {}
    for item in items:
        if item.unit == newest.unit:
            # A later record of a process holds its earlier rounds too.
            rounds |= item.rounds
    values = [value for found in rounds.values() for value in found]
    if len(rounds) < 2 or not values:
        return newest
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    median = statistics.median(values)
    return dataclasses.replace(
        newest, median=median, iqr=high - low, repeats=len(values), rounds=rounds
    )
