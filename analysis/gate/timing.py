"""The gate's times: processes that took turns, an exact test, Holm over all timings of the call."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from dynllava.records import Measured, RunRecord
from dynllava.uncertainty.families import holm_adjusted
from dynllava.uncertainty.times import detectable_rise, interleaved, needed_processes, slower_p


@dataclass(frozen=True)
class Timing:
    """One measured quantity of one cell on both sides.

    Attributes
    ----------
    cell, quantity, unit : str
    higher_is_better : bool or None
        As stored.
    base, candidate : dict
        Process -> median of its rounds; names sort by when a process started.
    reason : str
        Why it cannot be compared, if so.
    """

    cell: str
    quantity: str
    unit: str
    higher_is_better: bool | None
    base: dict[str, float]
    candidate: dict[str, float]
    reason: str = ""


@dataclass(frozen=True)
class Outcome:
    """What the gate says about a timing.

    Attributes
    ----------
    timing : Timing
    verdict : str
        ``"ok"``, ``"regression"``, ``"improvement"``, ``"refused"`` or ``"untested"``.
    detail : str
    base, candidate : float or None
        Medians of the processes.
    p : float or None
        One-sided, "the candidate is slower by more than the margin", Holm-adjusted.
    raw_p : float or None
        The same before correction.
    detectable : float or None
        Change, in the unit, that is found at the power after correction.
    """

    timing: Timing
    verdict: str
    detail: str
    base: float | None = None
    candidate: float | None = None
    p: float | None = None
    raw_p: float | None = None
    detectable: float | None = None


def collect(
    cell: str,
    base: Sequence[RunRecord],
    candidate: Sequence[RunRecord],
    ignore: Iterable[str] = (),
) -> list[Timing]:
    """Return the timings of one cell, its processes pooled over all records of either side.

    Parameters
    ----------
    cell : str
        What the summary calls it.
    base, candidate : sequence of RunRecord
        Records of the same cell, newest last.
    ignore : iterable of str
        Quantities that are left out.
    """
    found = []
    for name, before in base[-1].measured.items():
        if name in ignore:
            continue
        after = candidate[-1].measured.get(name)
        reason = ""
        if after is None:
            reason = "the candidate did not measure it"
        elif before.unit != after.unit:
            reason = f"different unit: {before.unit} against {after.unit}"
        elif before.higher_is_better != after.higher_is_better:
            reason = "different direction"
        old, new = (_processes(side, name, before.unit) for side in (base, candidate))
        found.append(Timing(cell, name, before.unit, before.higher_is_better, old, new, reason))
    return found


def _processes(records: Sequence[RunRecord], name: str, unit: str) -> dict[str, float]:
    rounds: dict[str, list[float]] = {}
    for record in records:
        item: Measured | None = record.measured.get(name)
        if item is not None and item.unit == unit:
            # A later record of a process holds its earlier rounds too.
            rounds |= {key: values for key, values in item.rounds.items() if values}
    return {process: statistics.median(values) for process, values in rounds.items()}


def judge(
    timings: Sequence[Timing],
    *,
    alpha: float = 0.05,
    power: float = 0.8,
    margin: float = 0.0,
    least: int = 8,
) -> list[Outcome]:
    """Return one outcome a timing, in order; all that can be tested are one family.

    Parameters
    ----------
    timings : sequence of Timing
    alpha : float
        Family-wise error rate, of the timings alone.
    power : float
        At which ``detectable`` is stated.
    margin : float
        Relative slow-down that is tolerated; the test's own margin, no threshold on top of it.
    least : int
        Processes a side, if more are asked for than the family needs.
    """
    reasons = [_untestable(timing) for timing in timings]
    family = [item for item, reason in zip(timings, reasons, strict=True) if not reason]
    needed = max(least, needed_processes(len(family), alpha)) if family else least
    few = [item for item in family if _count(item) < needed]
    tested = [item for item in family if item not in few]
    worse = [_p(item, margin, turned=False) for item in tested]
    better = [_p(item, margin, turned=True) for item in tested]
    # Refused timings stay in the family: the correction must not depend on what was measured well.
    padding = [1.0] * len(few)
    adjusted = holm_adjusted([*worse, *padding]), holm_adjusted([*better, *padding])
    outcomes = []
    for item, reason in zip(timings, reasons, strict=True):
        if reason:
            verdict = "refused" if item.reason else "untested"
            outcomes.append(Outcome(item, verdict, reason, *_medians(item)))
        elif item in few:
            detail = (
                f"needs {needed} processes a side (has {_count(item)}): "
                f"{len(family)} timings are corrected together"
            )
            outcomes.append(Outcome(item, "refused", detail, *_medians(item)))
        else:
            place = tested.index(item)
            found = (worse[place], adjusted[0][place], adjusted[1][place])
            outcomes.append(_tested(item, found, len(family), alpha, power))
    return outcomes


def _tested(
    item: Timing, found: tuple[float, float, float], family: int, alpha: float, power: float
) -> Outcome:
    raw, slower, faster = found
    verdict = "regression" if slower <= alpha else "improvement" if faster <= alpha else "ok"
    old, new = _medians(item)
    # A tested timing has rounds on both sides.
    assert old is not None
    assert new is not None
    base, candidate = list(item.base.values()), list(item.candidate.values())
    rise = detectable_rise(base, candidate, alpha=alpha / family, power=power)
    detail = (
        f"{item.unit}, {len(base)} and {len(candidate)} processes in turns, "
        f"{new / old - 1:+.1%}; a slow-down of {rise:.0%} would be found"
    )
    return Outcome(item, verdict, detail, old, new, slower, raw, rise * old)


def _untestable(item: Timing) -> str:
    """Return why a timing cannot be tested, empty if it can."""
    if item.reason:
        return item.reason
    if item.higher_is_better is None:
        return "the record does not say which direction is better"
    if min(len(item.base), len(item.candidate)) < 2:
        return "measured in one process, or its rounds are not stored"
    values = [*item.base.values(), *item.candidate.values()]
    if min(values) <= 0:
        return "not a time or rate: it can be zero or negative"
    if max(values) == min(values):
        return "the same constant on both sides"
    if not interleaved(list(item.base), list(item.candidate)):
        return "base and candidate did not take turns: drift of the machine would decide"
    return ""


def _count(item: Timing) -> int:
    return min(len(item.base), len(item.candidate))


def _medians(item: Timing) -> tuple[float | None, float | None]:
    sides = (item.base, item.candidate)
    old, new = (statistics.median(side.values()) if side else None for side in sides)
    return old, new


def _p(item: Timing, margin: float, *, turned: bool) -> float:
    """Return the raw p value of "slower", or of "faster" (``turned``)."""
    higher = bool(item.higher_is_better) != turned
    base, candidate = list(item.base.values()), list(item.candidate.values())
    return float(slower_p(base, candidate, higher_is_better=higher, margin=margin))
