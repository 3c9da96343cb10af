"""The gate's outcome: a short text for a terminal, Markdown for a pull request, JSON for tools."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence

from dynllava.output.tables import markdown_lines

from .checks import Check, exit_code, largest_drops, outcome
from .policy import Policy

_ORDER = (
    "regression", "refused", "undecided", "improvement", "untested", "no regression", "ok",
)  # fmt: skip
_FAMILIES = {
    "method": "methods, tasks pooled",
    "accuracy": "accuracy",
    "counted": "counted costs",
    "measured": "times",
    "identity": "not comparable",
}
_WIDTH = 100


def text(
    checks: Sequence[Check], policy: Policy, base: str, candidate: str, strict: bool = False
) -> str:
    """Return the outcome in at most 25 lines."""
    lines = [
        f"{outcome(checks).upper()} (exit {exit_code(checks, strict)}): {candidate} against {base}"
    ]
    for family, title in _FAMILIES.items():
        told = _counts([check for check in checks if check.family == family])
        lines += [f"{title}: {told}"] if told else []
    lines += _findable(checks, policy)
    lines += _listed("regressions", checks, "regression", 5)
    lines += _listed("cannot compare", checks, "refused", 3)
    drops = largest_drops(checks)
    if drops:
        lines.append("largest drops (mean difference of samples, raw p, drop that would be found):")
        lines += [_drop(check) for check in drops]
    return "\n".join(lines)


def _counts(checks: Sequence[Check]) -> str:
    counts = {name: sum(check.verdict == name for check in checks) for name in _ORDER}
    return ", ".join(f"{count} {name}" for name, count in counts.items() if count)


def _findable(checks: Sequence[Check], policy: Policy) -> list[str]:
    parts = []
    for family, where in (("method", "over all tasks of a method"), ("accuracy", "in one cell")):
        items = [check for check in checks if check.family == family and check.verdict != "refused"]
        if not items:
            continue
        known = [check.findable for check in items if check.findable is not None]
        if len(known) < len(items):
            parts.append(f"nothing {where} ({len(items) - len(known)} too small)")
        else:
            parts.append(f"{max(known):.3g} {where}")
    if not parts:
        return []
    return [
        f"drops found at power {policy.power:g} after correction, worst case: {', '.join(parts)}; "
        f"'no regression' needs {policy.findable_drop:g}"
    ]


def _listed(title: str, checks: Sequence[Check], verdict: str, most: int) -> list[str]:
    found = [check for check in checks if check.verdict == verdict]
    if not found:
        return []
    lines = [f"{title}:"]
    for check in found[:most]:
        p = "" if check.adjusted is None else f", p {check.adjusted:.2g} (Holm)"
        change = "" if check.change is None else f", {_number(check.base)} -> "
        change += "" if check.change is None else _number(check.candidate)
        where = f"{check.cell} {check.quantity}".strip()
        why = f": {check.detail}" if verdict == "refused" or check.effect is None else ""
        effect = "" if check.effect is None else f", {check.effect:+.3g} a sample"
        lines.append(_cut(f"  {where}{change}{effect}{p}{why}"))
    if len(found) > most:
        lines.append(f"  and {len(found) - most} more")
    return lines


def _drop(check: Check) -> str:
    p = "-" if check.p is None else f"{check.p:.2g}"
    found = "none" if check.findable is None else f"{check.findable:.3g}"
    return _cut(f"  {check.effect:+.3g}, p {p}, found from {found}: {check.cell}, {check.verdict}")


def _cut(line: str) -> str:
    line = " ".join(line.split("\n"))
    return line if len(line) <= _WIDTH else f"{line[: _WIDTH - 3]}..."


def as_json(
    checks: Sequence[Check], policy: Policy, base: str, candidate: str, strict: bool = False
) -> str:
    """Return everything as one JSON object."""
    return json.dumps(
        {
            "outcome": outcome(checks),
            "exit_code": exit_code(checks, strict),
            "base": base,
            "candidate": candidate,
            "policy": dataclasses.asdict(policy),
            "largest_drops": [dataclasses.asdict(check) for check in largest_drops(checks)],
            "checks": [dataclasses.asdict(check) for check in checks],
        },
        indent=1,
        ensure_ascii=False,
    )


def markdown(
    checks: Sequence[Check], policy: Policy, base: str, candidate: str, strict: bool = False
) -> str:
    """Return the summary: verdict first, what matters next, everything in a folded table."""
    head, *rest = text(checks, policy, base, candidate, strict).split("\n")
    counts = [line for line in rest if not line.startswith(" ") and not line.endswith(":")]
    lines = [f"## {_escape(head)}", "", *(f"- {_escape(line)}" for line in counts)]
    urgent = [check for check in checks if check.verdict in ("regression", "refused")]
    if urgent:
        lines += ["", *_table(sorted(urgent, key=_position))]
    drops = largest_drops(checks)
    if drops:
        lines += ["", "Largest drops, flagged or not:", "", *_table(drops)]
    lines += ["", "<details><summary>All comparisons</summary>", ""]
    lines += [*_table(sorted(checks, key=_position)), "", "</details>", ""]
    return "\n".join(lines)


def _position(check: Check) -> int:
    return _ORDER.index(check.verdict)


def _table(checks: Sequence[Check]) -> list[str]:
    columns = (
        "verdict", "cell", "quantity", "base", "candidate", "change", "difference [95 %]", "p",
        "p (Holm)", "found from", "detail",
    )  # fmt: skip
    rows = []
    for check in checks:
        cells = [
            check.verdict.upper() if check.verdict == "regression" else check.verdict,
            check.cell,
            f"{check.family} {check.quantity}".strip(),
            *(_number(value) for value in (check.base, check.candidate)),
            "-" if check.change is None else f"{check.change:+.6g}",
            _effect(check),
            "-" if check.p is None else f"{check.p:.3g}",
            "-" if check.adjusted is None else f"{check.adjusted:.3g}",
            "-" if check.findable is None else f"{check.findable:.3g}",
            check.detail,
        ]
        rows.append([_escape(cell) for cell in cells])
    return markdown_lines(columns, rows)


def _effect(check: Check) -> str:
    if check.effect is None:
        return "-"
    if check.interval is None:
        return f"{check.effect:+.4g}"
    return f"{check.effect:+.4g} [{check.interval[0]:+.4g}, {check.interval[1]:+.4g}]"


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return str(int(value)) if value == int(value) and abs(value) < 1e16 else f"{value:.6g}"


def _escape(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ").replace("<", "&lt;")
