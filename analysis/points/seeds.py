"""Runs that differ in the seed of a draw alone, as one point."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from .values import Point, Value


def merge(points: Sequence[Point]) -> Point:
    """Return the mean of runs that differ in their seed alone.

    Scores are means over seeds, as are the scores of single samples, so that a paired test compares
    the expected draw; the seeds' own scores stay in ``Value.draws``.  The standard error is the
    mean one: that of a single draw, which the mean of several undercuts.

    Parameters
    ----------
    points : sequence of Point
        At least one; scores of a benchmark that a seed misses are left out.
    """
    if len(points) == 1:
        return points[0]
    names = [name for name in points[0].scores if all(name in point.scores for point in points)]
    scores = {name: _mean([point.scores[name] for point in points]) for name in names}
    samples = {}
    for name in names:
        runs = [point.samples.get(name, {}) for point in points]
        shared = [key for key in runs[0] if all(key in run for run in runs)]
        if shared:
            samples[name] = {key: sum(run[key] for run in runs) / len(runs) for key in shared}
    return replace(points[0], scores=scores, samples=samples)


def _mean(values: Sequence[Value]) -> Value:
    draws = tuple(value.value for value in values)
    errors = [value.stderr for value in values if value.stderr is not None]
    stderr = sum(errors) / len(errors) if len(errors) == len(values) else None
    return replace(values[0], value=sum(draws) / len(draws), stderr=stderr, draws=draws)
