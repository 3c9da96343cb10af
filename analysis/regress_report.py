"""The gate's outcome as a Markdown summary for a pull request."""

from __future__ import annotations

from collections.abc import Sequence

from dynllava.analysis.policy import Policy
from dynllava.analysis.regress import Check, exit_code

_HEADLINES = {
    0: "PASS: no regression found",
    1: "REGRESSION",
    2: "CANNOT COMPARE",
}
_ORDER = ("regression", "refused", "improvement", "untested", "ok")


def markdown(checks: Sequence[Check], policy: Policy, base: str, candidate: str) -> str:
    """Return the summary: verdict first, what matters next, everything in a folded table."""
    counts = {name: sum(check.verdict == name for check in checks) for name in _ORDER}
    told = ", ".join(f"{count} {name}" for name, count in counts.items() if count)
    lines = [
        f"## {_HEADLINES[exit_code(checks)]}",
        "",
        f"Candidate `{candidate}` against base `{base}`: {told or 'nothing to compare'}.",
    ]
    largest = max((c.mde for c in checks if c.family == "accuracy" and c.mde), default=None)
    if largest is not None:
        lines.append(
            f"Accuracy tests at alpha {policy.alpha:g} (Holm) find a true drop of {largest:.3g} or "
            f"more in each metric with a power of {policy.power:g} before correction; smaller "
            "drops can be missed."
        )
    urgent = [check for check in checks if check.verdict in ("regression", "refused")]
    if urgent:
        lines += ["", *_table(sorted(urgent, key=_position))]
    lines += ["", "<details><summary>All comparisons</summary>", ""]
    lines += [*_table(sorted(checks, key=_position)), "", "</details>", ""]
    return "\n".join(lines)


def _position(check: Check) -> int:
    return _ORDER.index(check.verdict)


def _table(checks: Sequence[Check]) -> list[str]:
    lines = [
        "| verdict | cell | quantity | base | candidate | change | p (Holm) | detects | detail |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for check in checks:
        cells = [
            check.verdict.upper() if check.verdict == "regression" else check.verdict,
            check.cell,
            f"{check.family} {check.quantity}".strip(),
            *(_number(value) for value in (check.base, check.candidate)),
            "-" if check.change is None else f"{check.change:+.6g}",
            "-" if check.p is None else f"{check.p:.3g}",
            "-" if check.mde is None else f"{check.mde:.3g}",
            check.detail,
        ]
        lines.append("| " + " | ".join(_escape(cell) for cell in cells) + " |")
    return lines


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return str(int(value)) if value == int(value) and abs(value) < 1e16 else f"{value:.6g}"


def _escape(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ").replace("<", "&lt;")
