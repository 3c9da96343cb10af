"""Pareto fronts, their hypervolume and area, and groups of indistinguishable methods."""

from __future__ import annotations

import itertools
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

from dynllava.uncertainty import compare_paired, holm_adjusted

Pair = tuple[float, float]


def front(pairs: Sequence[Pair]) -> list[int]:
    """Return the indices of the non-dominated (cost, score) pairs, by rising cost.

    Lower cost and higher score are better; of equal pairs all stay.
    """
    order = sorted(range(len(pairs)), key=lambda index: (pairs[index][0], -pairs[index][1]))
    chosen: list[int] = []
    for index in order:
        if (
            not chosen
            or pairs[index][1] > pairs[chosen[-1]][1]
            or pairs[index] == pairs[chosen[-1]]
        ):
            chosen.append(index)
    return chosen


def hypervolume(pairs: Sequence[Pair], reference: Pair) -> float:
    """Return the area that ``pairs`` dominate, bounded by ``reference`` = (cost, score)."""
    area, best = 0.0, reference[1]
    for index in front(pairs):
        cost, score = pairs[index]
        if cost < reference[0] and score > best:
            area += (reference[0] - cost) * (score - best)
            best = score
    return area


def area_under_front(pairs: Sequence[Pair], low: float, high: float) -> float | None:
    """Return the mean score of the front over costs [low, high], linear between its points.

    To the right of the last point the front stays at its score.  None if the front begins to the
    right of ``low``: a method has no score at budgets that it was not run at.
    """
    points = [pairs[index] for index in front(pairs)]
    if high <= low or not points or points[0][0] > low * (1 + 1e-9):
        return None
    xs = [item[0] for item in points]
    inner = [x for x in xs if low < x < high]
    grid = [low, *inner, high]
    values = [_interpolate(points, x) for x in grid]
    total = sum(
        (right - left) * (first + second) / 2
        for (left, right), (first, second) in zip(
            itertools.pairwise(grid), itertools.pairwise(values), strict=True
        )
    )
    return total / (high - low)


def _interpolate(points: Sequence[Pair], x: float) -> float:
    for (x0, y0), (x1, y1) in itertools.pairwise(points):
        if x0 <= x <= x1:
            return y0 if x1 == x0 else y0 + (y1 - y0) * (x - x0) / (x1 - x0)
    return points[0][1] if x <= points[0][0] else points[-1][1]


@dataclass(frozen=True)
class Grouping:
    """Which methods the samples cannot tell apart.

    Attributes
    ----------
    letters : dict
        Label to letters; labels that share a letter are not distinguishable.
    adjusted : dict
        Pair of labels to the Holm-adjusted two-sided p value.
    samples : int
        Samples that all methods share.
    """

    letters: dict[str, str]
    adjusted: dict[tuple[str, str], float]
    samples: int


def group(
    samples: Mapping[str, Mapping[str, float]],
    clusters: Mapping[str, Hashable] | None = None,
    alpha: float = 0.05,
) -> Grouping | None:
    """Group methods by pairwise paired tests of clusters with Holm's correction.

    Parameters
    ----------
    samples : mapping
        Label to {sample key: score}.  Tests use the samples that all labels share.
    clusters : mapping, optional
        Sample key to what the sample shares with others (an image); None: all are independent.
    alpha : float
        Family-wise error rate.

    Returns
    -------
    Grouping or None
        None if fewer than two labels or two shared samples exist.
    """
    labels = list(samples)
    if len(labels) < 2:
        return None
    shared = sorted(set.intersection(*(set(item) for item in samples.values())))
    if len(shared) < 2:
        return None
    scores = {label: [samples[label][key] for key in shared] for label in labels}
    pairs = list(itertools.combinations(labels, 2))
    images = None if clusters is None else [clusters[key] for key in shared]
    raw = [compare_paired(scores[a], scores[b], images).p_two_sided for a, b in pairs]
    adjusted = dict(zip(pairs, holm_adjusted(raw), strict=True))
    means = {label: sum(scores[label]) / len(shared) for label in labels}
    order = sorted(labels, key=lambda label: -means[label])
    alike = {label: {label} for label in labels}
    for (a, b), p in adjusted.items():
        if p > alpha:
            alike[a].add(b)
            alike[b].add(a)
    cliques: list[set[str]] = []
    _cliques(set(), set(order), set(), alike, cliques)
    cliques.sort(key=lambda clique: sorted(order.index(label) for label in clique))
    letters = dict.fromkeys(labels, "")
    for letter, clique in zip(_letters(), cliques, strict=False):
        for label in clique:
            letters[label] += letter
    return Grouping({label: letters[label] for label in order}, adjusted, len(shared))


def _letters() -> itertools.chain[str]:
    alphabet = "abcdefghijklmnopqrstuvwxyz"
    return itertools.chain(alphabet, (a + b for a in alphabet for b in alphabet))


def _cliques(
    chosen: set[str],
    candidates: set[str],
    done: set[str],
    alike: Mapping[str, set[str]],
    found: list[set[str]],
) -> None:
    """Collect the maximal sets of pairwise indistinguishable labels (Bron-Kerbosch)."""
    if not candidates and not done:
        found.append(chosen)
        return
    for label in sorted(candidates):
        others = alike[label] - {label}
        _cliques(chosen | {label}, candidates & others, done & others, alike, found)
        candidates = candidates - {label}
        done = done | {label}
