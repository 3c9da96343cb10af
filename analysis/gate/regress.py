"""The regression gate: whether a candidate scores worse or costs more than a base."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Sequence

from dynllava.errors import UserError
from dynllava.records import Counted, RunRecord
from dynllava.records.reading import LABELLED, Stored, latest

from ..points.evidence import caveat
from . import accuracy as accuracy_gate
from . import timing as timing_gate
from .checks import CANNOT_COMPARE, Check
from .policy import Policy


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
        checks += _counted(old.record, new.record, policy)
        compared.append((old, new))
    apart = [pair for pair in compared if caveat(pair[0].record)]
    return [
        *accuracy_gate.judge([pair for pair in compared if pair not in apart], policy),
        *accuracy_gate.without_evidence(apart, policy),
        *checks,
        *_timings(compared, base, candidate, policy),
    ]


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
    label = record.method.label if record.kind in LABELLED else ""
    return json.dumps(
        [record.kind, record.model.name, record.method.name, label, record.method.budget, task]
    )


def cell_name(record: RunRecord) -> str:
    """Return the name of a record's cell: model, method, task or kind."""
    what = record.task.name if record.task else record.kind
    return f"{record.model.name} / {record.method.shown} / {what}"


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
    before, after = old.environment, new.environment
    # Records of schemas 1 and 2 do not say, so they cannot differ.
    if before.image_aspect is not None and after.image_aspect is not None:
        pairs["image protocol"] = (before.image_aspect, after.image_aspect)
    if before.template is not None and after.template is not None:
        pairs["conversation template"] = (before.template, after.template)
    if old.measured and new.measured:
        pairs["number of threads"] = (old.environment.threads, new.environment.threads)
    return [f"{name} ({_short(a)} / {_short(b)})" for name, (a, b) in pairs.items() if a != b]


def _short(value: object) -> str:
    text = "unknown" if value is None else str(value)
    limit = 19 if text.startswith("sha256:") else 60
    return text if len(text) <= limit else f"{text[:limit]}..."


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
            item.raw_p,
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
