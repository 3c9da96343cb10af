"""Reading stores: records with their samples, the newest of each kind."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

from dynllava.errors import UserError

from .schema import RunRecord
from .store import FILE_NAME, Problem, RecordStore

LABELLED = ("bench", "serving")
"""Kinds of records whose label tells two runs of one method apart."""
_SAMPLE_KEYS = ("sample_id", "doc_id", "id", "key", "index")


@dataclass(frozen=True)
class Stored:
    """A record and the store that its samples lie in.

    Attributes
    ----------
    record : RunRecord
    store : RecordStore
    written : str
        When it was stored: the latest ``created`` up to its line.  A later line is never older,
        whatever the clock of the machine that wrote it says.
    """

    record: RunRecord
    store: RecordStore
    written: str = ""

    def sample_scores(self) -> dict[str, float]:
        """Return {sample key: score of the task's metric}; empty without a samples file."""
        return {key: item.score for key, item in self.scored_samples().items()}

    def scored_samples(self) -> dict[str, ScoredSample]:
        """Return {sample key: score and cluster}; empty without a samples file.

        Samples whose score is missing or not finite are left out.
        """
        task = self.record.task
        if task is None or task.metric is None:
            return {}
        scores = {}
        for number, sample in enumerate(self.store.samples(self.record)):
            value = sample_score(sample, task.metric)
            if value is not None and math.isfinite(value):
                scores[sample_key(sample, number)] = ScoredSample(value, sample.get("cluster"))
        return scores


@dataclass(frozen=True)
class ScoredSample:
    """A sample's score and what it shares with others (an image), None if nothing."""

    score: float
    cluster: Any = None


def cluster_key(task: str, sample: str, cluster: Any) -> Hashable:
    """Return what a sample shares with others of its model, over all tasks.

    An image's hash means the same image in every task; a data set's own id only within it.
    """
    if cluster is None:
        return (task, "sample", sample)
    text = cluster if isinstance(cluster, str) else json.dumps(cluster)
    return text if text.startswith("image:") else (task, text)


def sample_key(sample: dict[str, Any], number: int) -> str:
    """Return the identity of a sample within its data set."""
    return next((str(sample[key]) for key in _SAMPLE_KEYS if key in sample), str(number))


def sample_score(sample: dict[str, Any], metric: str) -> float | None:
    """Return a sample's score: of ``metric``, else of its only ``score``; None if it has none."""
    nested = sample.get("scores") or sample.get("metrics")
    for holder in (nested, sample):
        if isinstance(holder, dict):
            for key in (metric, metric.partition(",")[0], "score"):
                value = holder.get(key)
                if isinstance(value, (bool, int, float)):
                    return float(value)
    return None


def read_tree(folder: str | os.PathLike[str]) -> tuple[list[RunRecord], list[Problem]]:
    """Return the records and problems of every ``records.jsonl`` under ``folder``, by path.

    ``folder`` may also be one file.

    Raises
    ------
    UserError
        If ``folder`` does not exist, or as :meth:`RecordStore.read`.
    """
    records: list[RunRecord] = []
    problems: list[Problem] = []
    for store in _stores(folder):
        found, wrong = store.read()
        records += found
        problems += wrong
    return records, problems


def _stores(folder: str | os.PathLike[str]) -> list[RecordStore]:
    root = Path(folder)
    if not root.exists():
        raise UserError(f"{root}: no such file or folder")
    paths = [root] if root.is_file() else sorted(root.rglob(FILE_NAME))
    return [RecordStore(path) for path in paths]


def read_stores(folder: str | os.PathLike[str]) -> tuple[list[Stored], list[str]]:
    """Return every readable record under ``folder`` with its store, and what was skipped and why.

    Raises
    ------
    UserError
        If ``folder`` does not exist or a record is of an unknown schema version.
    """
    stored: list[Stored] = []
    notes: list[str] = []
    for store in _stores(folder):
        records, problems = store.read()
        times = accumulate((record.created for record in records), max)
        stored += [
            Stored(record, store, written) for record, written in zip(records, times, strict=True)
        ]
        notes += [str(problem) for problem in problems]
    return stored, notes


def latest(stored: Iterable[Stored]) -> list[Stored]:
    """Return the newest successful record of every model, method, task and kind."""
    newest: dict[str, Stored] = {}
    for item in stored:
        if item.record.status == "ok":
            record = item.record
            key = json.dumps([configuration(record), record.task and record.task.name, record.kind])
            if key not in newest or newest[key].written <= item.written:
                newest[key] = item
    return list(newest.values())


def configuration(record: RunRecord) -> list[Any]:
    """Return what makes two records the same model, method and budget.

    Speed records tell compiled steps from eager ones by their label alone, those of serving an
    engine with a tower of its own.
    """
    method = record.method
    parameters = json.dumps(method.parameters, sort_keys=True)
    label = method.label if record.kind in LABELLED else ""
    model = [record.model.name, record.model.checkpoint_hash, record.model.weights]
    return [*model, method.name, parameters, method.budget, label]
