"""The regression gate: whether a candidate scores worse or costs more than a base."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from dynllava.analysis import stats, timing_gate
from dynllava.analysis.measured_points import Stored, latest, method_label
from dynllava.analysis.policy import Policy

from dynllava.errors import UserError
from dynllava.records import Counted, RunRecord

PASS, REGRESSION, CANNOT_COMPARE = 0, 1, 2


@dataclass(frozen=True)
class Check:
    """One comparison.

    Attributes
    ----------
    family : str
        ``"accuracy"``, ``"counted"``, ``"measured"`` or ``"identity"``.
    cell : str
        Model, method and task.
    quantity : str
        Metric or cost.
    verdict : str
        ``"ok"``, ``"regression"``, ``"improvement"``, ``"refused"`` or ``"untested"``.
    base, candidate : float or None
    detail : str
        Test and sample size, or the reason of a refusal.
    p : float or None
        One-sided p value for "candidate is worse"; Holm-adjusted once all are known.
    mde : float or None
        Minimum detectable effect at the policy's power.
    effect : float or None
        The tested difference (of samples, where there are some; else ``change``).
    """

    family: str
    cell: str
    quantity: str
    verdict: str
    base: float | None = None
    candidate: float | None = None
    detail: str = ""
    p: float | None = None
    mde: float | None = None
    effect: float | None = None

    @property
    def change(self) -> float | None:
        """Candidate - base."""
        if self.base is None or self.candidate is None:
            return None
        return self.candidate - self.base


def compare(base: Iterable[Stored], candidate: Iterable[Stored], policy: Policy) -> list[Check]:
    """Compare two stores record by record.

    Raises
    ------
    UserError
        If one of them holds no successful record.
    """
    base, candidate = list(base), list(candidate)
    first, second = latest(base), latest(candidate)
    for name, items in (("base", first), ("candidate", second)):
        if not items:
            raise UserError(f"{name}: no successful run record to compare", CANNOT_COMPARE)
    checks: list[Check] = []
    compared = []
    for old, new in _pairs(first, second):
        if new is None:
            checks.append(_refusal(old.record, "the candidate has no such record"))
            continue
        wrong = _differences(old.record, new.record)
        if wrong:
            checks.append(_refusal(old.record, f"different {', '.join(wrong)}"))
            continue
        checks += _accuracy(old, new, policy)
        checks += _counted(old.record, new.record, policy)
        compared.append((old, new))
    return _adjust(checks, policy) + _timings(compared, base, candidate, policy)


def exit_code(checks: Sequence[Check]) -> int:
    """Return 1 if anything regressed, else 2 if anything could not be compared, else 0."""
    verdicts = {check.verdict for check in checks}
    if "regression" in verdicts:
        return REGRESSION
    return CANNOT_COMPARE if "refused" in verdicts or not verdicts else PASS


def _pairs(first: Sequence[Stored], second: Sequence[Stored]) -> list[tuple[Stored, Stored | None]]:
    """Pair records of equal cell; among several of one cell, those of equal parameters."""
    unused = list(second)
    pairs = []
    for old in first:
        same = [item for item in unused if _key(item.record) == _key(old.record)]
        exact = [
            item for item in same if item.record.method.parameters == old.record.method.parameters
        ]
        new = next(iter(exact or same), None)
        if new is not None:
            unused.remove(new)
        pairs.append((old, new))
    return pairs


def _key(record: RunRecord) -> str:
    task = record.task and (record.task.name, record.task.suite)
    label = record.method.label if record.kind == "bench" else ""
    return json.dumps(
        [record.kind, record.model.name, record.method.name, label, record.method.budget, task]
    )


def cell_name(record: RunRecord) -> str:
    """Return the name of a record's cell: model, method, task or kind."""
    what = record.task.name if record.task else record.kind
    return f"{record.model.name} / {method_label(record)} / {what}"


def _refusal(record: RunRecord, reason: str) -> Check:
    return Check("identity", cell_name(record), "", "refused", detail=reason)


def _differences(old: RunRecord, new: RunRecord) -> list[str]:
    """Return what makes two records of one cell incomparable, in words."""
    pairs: dict[str, tuple[object, object]] = {
        "checkpoint": (old.model.checkpoint_hash, new.model.checkpoint_hash),
        "method parameters": (old.method.parameters, new.method.parameters),
        "device": (old.environment.device, new.environment.device),
        "dtype": (old.environment.dtype, new.environment.dtype),
        "attention kernel": (old.environment.attention, new.environment.attention),
        "image back-end": (old.environment.image_backend, new.environment.image_backend),
    }
    if old.task is not None and new.task is not None:
        pairs |= {
            "data set": (old.task.dataset_hash, new.task.dataset_hash),
            "split": (old.task.split, new.task.split),
            "metric": (old.task.metric, new.task.metric),
            "score scale": (old.task.scale, new.task.scale),
            "number of samples": (old.task.samples, new.task.samples),
        }
    if old.measured and new.measured:
        pairs["number of threads"] = (old.environment.threads, new.environment.threads)
    return [f"{name} ({_short(a)} / {_short(b)})" for name, (a, b) in pairs.items() if a != b]


def _short(value: object) -> str:
    text = "unknown" if value is None else str(value)
    limit = 19 if text.startswith("sha256:") else 60
    return text if len(text) <= limit else f"{text[:limit]}..."


def _accuracy(old: Stored, new: Stored, policy: Policy) -> list[Check]:
    task = old.record.task
    if task is None or task.metric is None or {task.name, task.metric} & set(policy.ignore):
        return []
    check = Check(
        "accuracy",
        cell_name(old.record),
        task.metric,
        "refused",
        old.record.scores[task.metric].value,
        new.record.scores[task.metric].value,
    )
    first, second = old.sample_scores(), new.sample_scores()
    if not first and not second:
        return [_from_summaries(check, old.record, new.record, policy)]
    if set(first) != set(second):
        missing = len(set(first) ^ set(second))
        reason = f"different samples: {missing} have a finite score on one side only"
        return [dataclasses.replace(check, detail=reason)]
    keys = sorted(first)
    outcome = stats.compare_paired([first[k] for k in keys], [second[k] for k in keys])
    worse = outcome.p_worse if task.higher_is_better else _upper(outcome)
    mde = stats.minimum_detectable_effect(outcome.stderr, alpha=policy.alpha, power=policy.power)
    detail = f"{outcome.test}, {outcome.n} samples, mean difference {outcome.difference:+.4g}"
    if outcome.stderr == 0:
        # No discordant pair: the rule of three bounds what could have been missed.
        mde = 3 / outcome.n
        detail += ", no spread of differences"
    return [
        dataclasses.replace(
            check, verdict="ok", detail=detail, p=worse, mde=mde, effect=outcome.difference
        )
    ]


def _upper(outcome: stats.Comparison) -> float:
    """Return the one-sided p for "candidate has higher values"."""
    if outcome.difference > 0:
        return outcome.p_two_sided / 2
    return 1 - outcome.p_two_sided / 2


def _from_summaries(check: Check, old: RunRecord, new: RunRecord, policy: Policy) -> Check:
    """Compare two stored scores without samples: an unpaired, less sensitive z test."""
    from scipy import stats as scipy_stats

    errors = [record.scores[check.quantity].stderr for record in (old, new)]
    if None in errors or check.change is None:
        reason = "no samples and no standard errors: accuracy cannot be tested"
        return dataclasses.replace(check, detail=reason)
    stderr = math.hypot(*(error or 0.0 for error in errors))
    better = 1 if old.task is None or old.task.higher_is_better else -1
    gain = better * check.change
    z = gain / stderr if stderr else math.copysign(math.inf, gain) if gain else 0.0
    p = float(scipy_stats.norm.cdf(z))
    mde = stats.minimum_detectable_effect(stderr, alpha=policy.alpha, power=policy.power)
    detail = "unpaired z from standard errors (no samples stored)"
    return dataclasses.replace(check, verdict="ok", detail=detail, p=p, mde=mde)


def _counted(old: RunRecord, new: RunRecord, policy: Policy) -> list[Check]:
    checks = []
    for name, before in old.counted.items():
        if name in policy.ignore:
            continue
        after = new.counted.get(name)
        check = Check("counted", cell_name(old), name, "refused", before.value)
        if after is None:
            checks.append(dataclasses.replace(check, detail="the candidate did not count it"))
            continue
        check = dataclasses.replace(check, candidate=after.value)
        if _meaning(before) != _meaning(after):
            reason = f"{_meaning(before)} against {_meaning(after)}"
            checks.append(dataclasses.replace(check, detail=f"different convention: {reason}"))
            continue
        rise = after.value - before.value
        if name.endswith(("_saved_share", "_saved")):
            rise = -rise
        allowed = policy.counted_tolerance * abs(before.value)
        verdict = "regression" if rise > allowed else "improvement" if rise < 0 else "ok"
        detail = f"{before.unit}, {before.convention}, {before.mode}"
        checks.append(dataclasses.replace(check, verdict=verdict, detail=detail))
    return checks


def _meaning(item: Counted) -> str:
    return f"{item.unit}, {item.convention}, {item.mode}"


def _timings(
    pairs: Sequence[tuple[Stored, Stored]],
    base: Sequence[Stored],
    candidate: Sequence[Stored],
    policy: Policy,
) -> list[Check]:
    """Compare measured costs; processes of one cell may lie in several records of a store."""
    timings = []
    for old, new in pairs:
        sides = _same_code(old.record, base), _same_code(new.record, candidate)
        timings += timing_gate.collect(cell_name(old.record), *sides, policy.ignore)
    outcomes = timing_gate.judge(
        timings,
        alpha=policy.alpha,
        power=policy.power,
        margin=policy.measured_rise,
        least=policy.least_processes,
    )
    return [
        Check(
            "measured",
            item.timing.cell,
            item.timing.quantity,
            item.verdict,
            item.base,
            item.candidate,
            item.detail,
            item.p,
            item.detectable,
        )
        for item in outcomes
    ]


def _same_code(record: RunRecord, stored: Sequence[Stored]) -> list[RunRecord]:
    """Return the successful records of ``record``'s cell and code, newest last."""

    def code(one: RunRecord) -> list[object]:
        found = one.environment
        return [_key(one), one.method.parameters, found.commit, found.dirty, found.versions]

    same = [
        item.record
        for item in stored
        if item.record.status == "ok"
        and code(item.record) == code(record)
        and not _differences(record, item.record)
    ]
    return sorted(same, key=lambda one: (one.created, one is record))


def _adjust(checks: list[Check], policy: Policy) -> list[Check]:
    """Turn the accuracy's p values into verdicts, with Holm's correction over all of them."""
    tested = [
        i for i, item in enumerate(checks) if item.family == "accuracy" and item.p is not None
    ]
    result = list(checks)
    adjusted = stats.holm([checks[i].p or 0.0 for i in tested])
    improved = stats.holm([1 - (checks[i].p or 0.0) for i in tested])
    for i, worse, better in zip(tested, adjusted, improved, strict=True):
        check = dataclasses.replace(checks[i], p=worse)
        size = abs((check.change if check.effect is None else check.effect) or 0.0)
        matters = size > policy.tolerated_drop
        blind = policy.largest_mde is not None and (check.mde or 0.0) > policy.largest_mde
        if worse <= policy.alpha and matters:
            check = dataclasses.replace(check, verdict="regression")
        elif better <= policy.alpha and matters:
            check = dataclasses.replace(check, verdict="improvement")
        elif blind:
            detail = f"{check.detail}; could miss a drop of {policy.largest_mde:g}"
            check = dataclasses.replace(check, verdict="refused", detail=detail)
        result[i] = check
    return result
