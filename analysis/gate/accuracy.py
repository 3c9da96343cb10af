"""The gate's accuracy: a pooled test a method and a test a cell, each with half of alpha.

Holm corrects within either family; a method is flagged if one of the two rejects.  "No
regression" is said only where a drop of a stated size would have been found after correction.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np

from dynllava.records import RunRecord
from dynllava.records.reading import Stored, cluster_key
from dynllava.uncertainty import Comparison, compare_paired, holm_adjusted
from dynllava.uncertainty.clustered import design_effect, sums_of
from dynllava.uncertainty.design import Design, observed_design
from dynllava.uncertainty.power import detection_power, either_power, smallest_drop

from ..points.evidence import caveat
from .checks import Check
from .policy import Policy


@dataclass(frozen=True)
class Samples:
    """Paired scores with a direction: a higher one is better.

    Attributes
    ----------
    old, new : array
        [n] scores of base and candidate, as stored.
    clusters : list
        [n] what samples share, unique over all tasks of a model.
    higher_is_better : bool
    """

    old: np.ndarray
    new: np.ndarray
    clusters: list[Hashable]
    higher_is_better: bool

    @property
    def bounded(self) -> bool:
        """Whether all scores lie from 0 to 1, so that they can be pooled with others."""
        both = np.concatenate([self.old, self.new])
        return bool(both.min() >= 0 and both.max() <= 1)

    def compare(self, margin: float = 0.0, alpha: float = 0.05) -> Comparison:
        """Return the paired comparison, improvements positive."""
        first, second = (self.old, self.new) if self.higher_is_better else (self.new, self.old)
        return compare_paired(first, second, self.clusters, margin, alpha)

    def design(self) -> Design:
        """Return what the comparison can find."""
        effect = design_effect(self.old, self.clusters)
        found = observed_design(sums_of(self.new - self.old, self.clusters), effect)
        return dataclasses.replace(found, bounded=self.bounded)


@dataclass
class _Cell:
    check: Check
    method: tuple[str, str]
    samples: Samples | None = None
    design: Design | None = None
    p_better: float = 1.0


def judge(pairs: Sequence[tuple[Stored, Stored]], policy: Policy) -> list[Check]:
    """Return the checks of all methods and cells, verdicts included.

    Parameters
    ----------
    pairs : sequence of (Stored, Stored)
        Comparable records of base and candidate; those without a metric are left out.
    policy : Policy
    """
    cells = [cell for pair in pairs if (cell := _cell(*pair, policy)) is not None]
    tested = [cell for cell in cells if cell.check.verdict != "refused"]
    methods: dict[tuple[str, str], list[_Cell]] = {}
    for cell in tested:
        if cell.samples is not None and cell.samples.bounded:
            methods.setdefault(cell.method, []).append(cell)
    pooled = [_pooled(method, members, policy) for method, members in methods.items()]
    shares = _shares(policy, len(pooled), len(tested))
    designs = {item.method: item.design for item in pooled}
    for cell in tested:
        cell.check = dataclasses.replace(
            cell.check, findable=_findable(cell, designs.get(cell.method), shares, policy)
        )
    for item in pooled:
        found = None
        if item.design:
            found = smallest_drop(item.design, shares[0], policy.power, policy.tolerated_drop)
        item.check = dataclasses.replace(item.check, findable=found)
    _decide(pooled, policy)
    _decide(tested, policy)
    return [item.check for item in (*pooled, *cells)]


def without_evidence(pairs: Sequence[tuple[Stored, Stored]], policy: Policy) -> list[Check]:
    """Return checks without a verdict, of pairs whose accuracy is evidence about nothing."""
    return [
        _untested(cell.check, caveat(old.record))
        for old, new in pairs
        if (cell := _cell(old, new, policy)) is not None
    ]


def _untested(check: Check, reason: str) -> Check:
    return Check(
        check.family, check.cell, check.quantity, "untested", check.base, check.candidate, reason
    )


def _shares(policy: Policy, methods: int, cells: int) -> tuple[float, float]:
    """Return the level of Holm's first step for a pooled test and for a cell."""
    half = policy.alpha / 2
    return half / max(methods, 1), half / max(cells, 1)


def _decide(items: Sequence[_Cell], policy: Policy) -> None:
    """Set corrected p values and verdicts of one family."""
    half = policy.alpha / 2
    worse = holm_adjusted([1.0 if item.check.p is None else item.check.p for item in items])
    better = holm_adjusted([item.p_better for item in items])
    for item, low, high in zip(items, worse, better, strict=True):
        check = item.check
        if low <= half:
            verdict = "regression"
        elif check.findable is None or check.findable > policy.findable_drop:
            verdict = "undecided"
        else:
            verdict = "no regression"
        if high <= half and verdict != "regression":
            verdict = "improvement"
        item.check = dataclasses.replace(check, adjusted=low, verdict=verdict)


def _cell(old: Stored, new: Stored, policy: Policy) -> _Cell | None:
    task = old.record.task
    if task is None or task.metric is None or {task.name, task.metric} & set(policy.ignore):
        return None
    label = old.record.method.shown
    check = Check(
        "accuracy",
        f"{old.record.model.name} / {label} / {task.name}",
        task.metric,
        "refused",
        old.record.scores[task.metric].value,
        new.record.scores[task.metric].value,
    )
    cell = _Cell(check, (old.record.model.name, label))
    first, second = old.scored_samples(), new.scored_samples()
    if not first and not second:
        cell.check = _from_summaries(check, old.record, new.record, policy)
        return cell
    if set(first) != set(second):
        missing = len(set(first) ^ set(second))
        reason = f"different samples: {missing} have a finite score on one side only"
        cell.check = dataclasses.replace(check, detail=reason)
        return cell
    keys = sorted(first)
    cell.samples = Samples(
        np.array([first[key].score for key in keys]),
        np.array([second[key].score for key in keys]),
        [cluster_key(task.name, key, first[key].cluster) for key in keys],
        task.higher_is_better,
    )
    return _tested(cell, policy)


def _tested(cell: _Cell, policy: Policy) -> _Cell:
    """Fill in what the samples of ``cell`` say."""
    samples = cell.samples
    assert samples is not None
    result = samples.compare(policy.tolerated_drop, policy.alpha)
    better = samples.compare() if policy.tolerated_drop else result
    parts = [f"{result.test}, {result.samples} samples"]
    if result.clusters < result.samples:
        parts.append(f"{result.clusters} clusters")
    parts.append(f"{100 * result.discordance:.3g} % differ")
    cell.p_better = better.p_not_inferior
    cell.design = samples.design()
    cell.check = dataclasses.replace(
        cell.check,
        verdict="undecided",
        detail="; ".join([", ".join(parts), *([result.reason] if result.reason else [])]),
        p=result.p_worse,
        effect=result.difference,
        interval=result.interval,
    )
    return cell


def _pooled(method: tuple[str, str], members: Sequence[_Cell], policy: Policy) -> _Cell:
    """Return the test of all bounded scores of a method together, each sample with one weight."""
    parts = [cell.samples for cell in members if cell.samples is not None]
    samples = Samples(
        np.concatenate([_upward(part.old, part) for part in parts]),
        np.concatenate([_upward(part.new, part) for part in parts]),
        [key for part in parts for key in part.clusters],
        True,
    )
    check = Check("method", " / ".join(method), f"{len(members)} tasks pooled", "undecided")
    return _tested(_Cell(check, method, samples), policy)


def _upward(scores: np.ndarray, part: Samples) -> np.ndarray:
    return scores if part.higher_is_better else 1 - scores


def _findable(
    cell: _Cell, pooled: Design | None, shares: tuple[float, float], policy: Policy
) -> float | None:
    """Return the smallest drop in this cell alone that one of its two tests finds."""
    margin, power = policy.tolerated_drop, policy.power
    own = cell.design
    if own is None:
        return cell.check.findable and _summary_drop(cell.check.findable, shares[1], policy)
    if pooled is None or cell.samples is None or not cell.samples.bounded:
        return smallest_drop(own, shares[1], power, margin)
    share = own.samples / pooled.samples
    others = max(pooled.variance(0.0) - own.variance(0.0), 0.0)

    if not others:
        # Nothing else differs: both tests see the same counts, so the higher level decides.
        return smallest_drop(own, max(shares), power, margin)

    def found(drop: float) -> float:
        variance = own.variance(drop)
        correlation = math.sqrt(variance / (variance + others)) if variance else 1.0
        return either_power(
            detection_power(pooled, drop * share, shares[0], margin),
            detection_power(own, drop, shares[1], margin),
            correlation,
        )

    return own.smallest(found, power)


def _from_summaries(check: Check, old: RunRecord, new: RunRecord, policy: Policy) -> Check:
    """Compare two stored scores without samples: an unpaired, less sensitive z test.

    ``findable`` holds the standard error until the number of cells is known.
    """
    from scipy import stats

    errors = [record.scores[check.quantity].stderr for record in (old, new)]
    if None in errors or check.change is None:
        reason = "no samples and no standard errors: accuracy cannot be tested"
        return dataclasses.replace(check, detail=reason)
    stderr = math.hypot(*(error or 0.0 for error in errors))
    if not stderr:
        reason = "no samples and standard errors of 0: accuracy cannot be tested"
        return dataclasses.replace(check, detail=reason)
    better = 1 if old.task is None or old.task.higher_is_better else -1
    gain = better * check.change
    return dataclasses.replace(
        check,
        verdict="undecided",
        detail="unpaired z from standard errors (no samples stored)",
        p=float(stats.norm.cdf((gain + policy.tolerated_drop) / stderr)),
        effect=gain,
        findable=stderr,
    )


def _summary_drop(stderr: float, level: float, policy: Policy) -> float:
    from scipy import stats

    reach = float(stats.norm.isf(level) + stats.norm.ppf(policy.power))
    return policy.tolerated_drop + reach * stderr
