"""With which probability a point is on the Pareto front, from its samples."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from dynllava.uncertainty.bootstrap import cluster_draws, front_probability

from ..points.values import Point, Value


class Plotted(Protocol):
    """What is needed of a plotted point."""

    @property
    def point(self) -> Point:
        """The point."""

    @property
    def cost(self) -> float:
        """Its place on the axis of cost."""

    @property
    def value(self) -> Value:
        """Its score."""


def front_shares(
    marks: Sequence[Plotted], names: Sequence[str], relative: bool
) -> list[float | None]:
    """Return for each mark the share of cluster bootstrap draws that see it on the front.

    The same clusters (images, over all benchmarks that share them) are drawn for every point, so
    what is common to all methods cancels.  A benchmark's score is the mean of its samples.

    Parameters
    ----------
    marks : sequence of Mark
        All points of a panel.
    names : sequence of str
        Benchmarks of the panel.
    relative : bool
        Whether the panel shows the mean of score / dense score.

    Returns
    -------
    list of float or None
        All None unless every point has samples of every benchmark, and (``relative``) one is
        dense.
    """
    nothing: list[float | None] = [None] * len(marks)
    dense = [number for number, mark in enumerate(marks) if mark.point.is_dense]
    complete = all(mark.point.samples.get(name) for mark in marks for name in names)
    if len(marks) < 2 or not complete or (relative and len(dense) != 1):
        return nothing
    keys = {
        name: sorted(set.intersection(*(set(mark.point.samples[name]) for mark in marks)))
        for name in names
    }
    if not all(keys.values()):
        return nothing
    clusters = marks[0].point.clusters
    order: dict[object, int] = {}
    for name in names:
        for key in keys[name]:
            order.setdefault(clusters[name][key], len(order))
    drawn = cluster_draws(len(order))
    scores = np.zeros((len(drawn), len(marks)))
    for name in names:
        place = [order[clusters[name][key]] for key in keys[name]]
        sizes = np.bincount(place, minlength=len(order))
        values = [[mark.point.samples[name][key] for key in keys[name]] for mark in marks]
        totals = np.stack([np.bincount(place, row, minlength=len(order)) for row in values], 1)
        means = (drawn @ totals) / np.maximum(drawn @ sizes, 1)[:, None]
        higher = marks[0].point.scores[name].higher_is_better
        if relative:
            base = means[:, dense]
            first, second = (means, base) if higher else (base, means)
            scores += np.divide(first, second, out=np.ones_like(means), where=second != 0)
        else:
            scores += means if higher else -means
    return list(front_probability(np.array([mark.cost for mark in marks]), scores))
