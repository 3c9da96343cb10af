"""What a run or a published row loses against its dense model, in points of 0-100 scores."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from dynllava.uncertainty import NOT_WORSE, UNDECIDED, WORSE, compare_paired, holm_adjusted

from ..points import names
from ..points.values import Point, Value

NOT_PUBLISHED = "published, no interval"
MME = "mme"


@dataclass(frozen=True)
class Loss:
    """Loss against dense; a gain is negative.

    Attributes
    ----------
    tasks : dict
        Task to points (MME: percent of dense).
    asked : int
        Tasks that could have been there; none is ever filled in.
    interval : tuple of float or None
        95 % interval of the mean over tasks, samples paired and clustered.
    verdict : str
        Whether the mean is within the margin that was asked for, corrected for all own runs that
        were compared; :data:`NOT_PUBLISHED` without samples.
    p_worse, p_close : float
        One-sided p values of it, uncorrected.
    """

    tasks: dict[str, float]
    asked: int
    interval: tuple[float, float] | None = None
    verdict: str = NOT_PUBLISHED
    p_worse: float = 1.0
    p_close: float = 1.0

    @property
    def mean(self) -> float:
        """Mean over the tasks that are there."""
        return sum(self.tasks.values()) / len(self.tasks)

    @property
    def worst(self) -> tuple[str, float]:
        """The task that loses most, and how much."""
        return max(self.tasks.items(), key=lambda item: item[1])

    def text(self) -> str:
        """Return how sure the mean is."""
        if self.interval is None:
            return self.verdict
        low, high = self.interval
        return ", ".join(filter(None, (f"95 % interval {low:+.2f} to {high:+.2f}", self.verdict)))


def comparable(dense: Point, wanted: Sequence[str]) -> list[str]:
    """Return the tasks of 0-100 scores that the dense point has, MME only where it is wanted."""
    if wanted:
        return list(wanted)
    return [name for name, value in dense.scores.items() if name != MME and _is_score(dense, value)]


def loss(point: Point, dense: Point, wanted: Sequence[str], margin: float) -> Loss | None:
    """Return what ``point`` loses, None where no task can be compared.

    Parameters
    ----------
    point, dense : Point
        Of the same study and model.
    wanted : sequence of str
        Tasks; empty: all that the dense point has.
    margin : float
        Points that may be lost, for the verdict.
    """
    asked = comparable(dense, wanted)
    found = {}
    for name in asked:
        ours, theirs = point.scores.get(name), dense.scores.get(name)
        if ours is None or theirs is None or ours.protocol != theirs.protocol:
            continue
        if name == MME:
            found[name] = 100 * (1 - ours.value / theirs.value)
        elif _is_score(dense, theirs):
            sign = 1 if theirs.higher_is_better else -1
            found[name] = sign * (theirs.value - ours.value)
    if not found:
        return None
    if point.origin == "published":
        return Loss(found, len(asked))
    return _measured(point, dense, found, len(asked), margin)


def _is_score(dense: Point, value: Value) -> bool:
    """Return whether a score runs from 0 to 100: published columns but for MME do."""
    return dense.origin == "published" or value.perfect == 100


def _measured(
    point: Point, dense: Point, found: dict[str, float], asked: int, margin: float
) -> Loss:
    """Add what the samples say: tasks weigh the same, questions about one image are one unit."""
    pairs = []
    for name in found:
        ours, theirs = point.samples.get(name, {}), dense.samples.get(name, {})
        shared = [key for key in theirs if key in ours]
        if not shared:
            return Loss(found, asked, verdict="own run, no samples stored: no interval")
        sign = 1 if dense.scores[name].higher_is_better else -1
        clusters = point.clusters.get(name, {})
        pairs.append(
            [(sign * theirs[k], sign * ours[k], clusters.get(k, (name, k))) for k in shared]
        )
    total = sum(len(task) for task in pairs)
    weights = np.concatenate([[total / (len(pairs) * len(task))] * len(task) for task in pairs])
    rows = [row for task in pairs for row in task]
    first, second = (np.array([row[i] for row in rows], float) for i in (0, 1))
    if not np.allclose(weights, 1):
        first, second = first * weights, second * weights
    done = compare_paired(first, second, [row[2] for row in rows], max(margin, 0.0) / 100)
    interval = done.interval and (-100 * done.interval[1], -100 * done.interval[0])
    return Loss(found, asked, interval, done.reason or UNDECIDED, done.p_worse, done.p_not_inferior)


def decided(losses: Sequence[Loss], margin: float | None, alpha: float = 0.05) -> list[Loss]:
    """Return the losses with verdicts that hold for all of them together (Holm).

    Without a margin there is nothing to decide.
    """
    own = [item for item in losses if item.interval is not None]
    if margin is None:
        return [replace(item, verdict="") if item.interval else item for item in losses]
    worse = dict(zip(map(id, own), holm_adjusted([item.p_worse for item in own]), strict=True))
    close = dict(zip(map(id, own), holm_adjusted([item.p_close for item in own]), strict=True))
    return [
        item
        if id(item) not in worse
        else _with(item, worse[id(item)] <= alpha, close[id(item)] <= alpha, margin)
        for item in losses
    ]


def _with(item: Loss, worse: bool, close: bool, margin: float) -> Loss:
    words = {
        WORSE: f"shown to lose more than {margin:g}",
        NOT_WORSE: f"shown to lose at most {margin:g}",
        UNDECIDED: f"not shown to lose at most {margin:g}",
    }
    return replace(item, verdict=words[WORSE if worse else NOT_WORSE if close else UNDECIDED])


def task_names(wanted: Iterable[str]) -> list[str]:
    """Return the analysis' names of tasks, each once."""
    return list(dict.fromkeys(names.canonical(name.strip().lower()) for name in wanted))
