"""Flips, agreement and visual gain retained of own runs, from their samples.

Each run is compared with the dense run of the same model, on the dense weights where there are
several, and with the dense model that never sees the picture (``no_image`` at layer 0) on the same
weights.  Only tasks with a bounded score take part.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

from dynllava.methods.presets import BLIND
from dynllava.records import RunRecord
from dynllava.records.reading import Stored, configuration, sample_key, sample_score
from dynllava.uncertainty.flips import agreement, flips
from dynllava.uncertainty.retained import Retained, Triple, retained_gain


@dataclass(frozen=True)
class Beside:
    """What stands beside the accuracy of one method at one budget.

    Attributes
    ----------
    lost, won : float
        Share of samples with a lower and a higher score than the dense run, mean over tasks (and
        seeds).
    agreement : float
        Share of samples with the dense run's answer, mean over tasks (and seeds).
    retained : Retained or None
        None without a run that never sees the picture.
    tasks : int
    """

    lost: float
    won: float
    agreement: float
    retained: Retained | None
    tasks: int

    def texts(self) -> tuple[str, str, str]:
        """Return cells for flips, agreement and visual gain retained."""
        changed = f"{100 * self.lost:.1f} / {100 * self.won:.1f}"
        return changed, f"{100 * self.agreement:.1f}", retained_text(self.retained)


HEADERS = ("flips % (lost / won)", "agrees with dense %", "visual gain retained %")

NOTE = (
    "Flips: samples with a lower / higher score than the dense run. Visual gain retained: (method "
    "- no image at layer 0) / (dense - no image at layer 0), 95 % interval by a cluster bootstrap "
    "of both; not formed where the picture adds under 10 points. All three: mean over tasks."
)


def retained_text(retained: Retained | None) -> str:
    """Return the share with its interval, or why there is none."""
    if retained is None:
        return "- (no run of no_image at layer 0)"
    if retained.share is None or retained.interval is None:
        return f"- ({retained.reason})"
    low, high = retained.interval
    return f"{100 * retained.share:.0f} [{100 * low:.0f}, {100 * high:.0f}]"


@dataclass(frozen=True)
class Run:
    """Scores, answers and clusters of a run's samples by their key."""

    scores: dict[str, float]
    answers: dict[str, str]
    clusters: dict[str, Any]


def key(record: RunRecord) -> str:
    """Return what groups the runs of one method at one budget, whatever their seed."""
    method = replace(record.method, parameters=record.method.without_seed())
    return json.dumps(configuration(replace(record, method=method)))


def beside_accuracy(stored: Iterable[Stored]) -> dict[str, Beside]:
    """Return {key of the method and budget: figures} of all runs with samples and a dense run.

    Parameters
    ----------
    stored : iterable of Stored
        The newest evaluation of each configuration and task.
    """
    read = reader()
    items = [item for item in stored if takes_part(item.record)]
    dense = {task_of(item.record): item for item in items if _is_dense(item.record)}
    blind = {task_of(item.record): item for item in items if _is_blind(item.record)}
    groups: dict[str, dict[tuple[Any, ...], list[Stored]]] = {}
    for item in items:
        if task_of(item.record) in dense:
            tasks = groups.setdefault(key(item.record), {})
            tasks.setdefault(task_of(item.record), []).append(item)
    found = {}
    for name, tasks in groups.items():
        figures = _figures(tasks, dense, blind, read)
        if figures is not None:
            found[name] = figures
    return found


def _figures(
    tasks: dict[tuple[Any, ...], list[Stored]],
    dense: dict[tuple[Any, ...], Stored],
    blind: dict[tuple[Any, ...], Stored],
    read: Callable[[Stored], Run],
) -> Beside | None:
    rows: list[tuple[float, float, float]] = []
    triples: list[Triple] = []
    count = 0
    for task, items in tasks.items():
        reference, runs = read(dense[task]), [read(item) for item in items]
        keys = [name for name in reference.scores if all(name in run.scores for run in runs)]
        if not keys:
            continue
        count += 1
        first = [reference.scores[name] for name in keys]
        for run in runs:
            changed = flips(first, [run.scores[name] for name in keys])
            same = agreement(
                [reference.answers[name] for name in keys], [run.answers[name] for name in keys]
            )
            share = 1 / (len(runs) * len(keys))
            rows.append((changed.lost * share, changed.won * share, (same or 0.0) / len(runs)))
        if task in blind:
            without = read(blind[task]).scores
            shared = [name for name in keys if name in without]
            triples.append(
                Triple(
                    [sum(run.scores[name] for run in runs) / len(runs) for name in shared],
                    [reference.scores[name] for name in shared],
                    [without[name] for name in shared],
                    [reference.clusters[name] for name in shared],
                    items[0].record.task.scale or 1.0 if items[0].record.task else 1.0,
                )
            )
    if not rows:
        return None
    lost, won, same = (sum(column) / count for column in zip(*rows, strict=True))
    whole = len(triples) == count
    return Beside(lost, won, same, retained_gain(triples) if whole else None, count)


def takes_part(record: RunRecord) -> bool:
    """Return whether the record is a finished evaluation with a bounded score."""
    task = record.task
    bounded = task is not None and task.scale is not None and task.higher_is_better
    return record.kind == "evaluation" and record.status == "ok" and bounded


def task_of(record: RunRecord) -> tuple[Any, ...]:
    """Return what must be equal for two runs' samples to pair."""
    task = record.task
    assert task is not None
    return record.model.name, task.name, task.dataset_hash, task.samples


def _is_dense(record: RunRecord) -> bool:
    return record.method.is_dense and record.model.weights != "tuned"


def _is_blind(record: RunRecord) -> bool:
    name, parameters = BLIND
    own = record.method.parameters
    blind = record.method.name == name and parameters.items() <= own.items()
    return blind and record.model.weights != "tuned"


def reader() -> Callable[[Stored], Run]:
    """Return a function that reads a run's samples, each file once."""
    known: dict[str, Run] = {}

    def read(item: Stored) -> Run:
        record = item.record
        if record.record_id not in known:
            scores, answers, clusters = {}, {}, {}
            metric = record.task.metric if record.task and record.task.metric else ""
            for number, sample in enumerate(item.store.samples(record)):
                value = sample_score(sample, metric)
                if value is None:
                    continue
                name = sample_key(sample, number)
                scores[name] = value
                answers[name] = _text(sample.get("answer"))
                own = sample.get("cluster")
                clusters[name] = ("sample", name) if own is None else ("cluster", str(own))
            known[record.record_id] = Run(scores, answers, clusters)
        return known[record.record_id]

    return read


def _text(answer: Any) -> str:
    return " ".join(map(str, answer)) if isinstance(answer, list) else str(answer)
