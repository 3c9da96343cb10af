"""What the regression gate found: single checks, the outcome of all of them, the exit code."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

NO_REGRESSION, REGRESSION, CANNOT_COMPARE = 0, 1, 2

OUTCOMES = ("regression", "cannot compare", "undecided", "no regression")


@dataclass(frozen=True)
class Check:
    """One comparison.

    Attributes
    ----------
    family : str
        ``"method"`` (all tasks of a method pooled), ``"accuracy"`` (one cell), ``"counted"``,
        ``"measured"`` or ``"identity"``.
    cell : str
        Model, method and task.
    quantity : str
        Metric or cost.
    verdict : str
        Of the accuracy: ``"regression"``, ``"improvement"``, ``"no regression"`` or
        ``"undecided"``; of costs ``"ok"``, ``"regression"``, ``"improvement"`` or
        ``"untested"``; ``"refused"`` where nothing can be compared.
    base, candidate : float or None
        As stored.
    detail : str
        Test and sample size, or the reason of a refusal.
    p, adjusted : float or None
        One-sided p value for "candidate is worse" (by more than the margin): raw, and corrected
        by Holm over its family.
    findable : float or None
        Smallest true drop (of times: rise) found at the policy's power after correction; of
        accuracy in the unit of a sample's score.
    effect : float or None
        Mean difference of the samples, positive where the candidate is better.
    interval : tuple of float or None
        95 % interval of ``effect``.
    """

    family: str
    cell: str
    quantity: str
    verdict: str
    base: float | None = None
    candidate: float | None = None
    detail: str = ""
    p: float | None = None
    adjusted: float | None = None
    findable: float | None = None
    effect: float | None = None
    interval: tuple[float, float] | None = None

    @property
    def change(self) -> float | None:
        """Candidate - base."""
        if self.base is None or self.candidate is None:
            return None
        return self.candidate - self.base


def outcome(checks: Sequence[Check]) -> str:
    """Return one of :data:`OUTCOMES`; a regression outweighs a refusal, that an open question."""
    verdicts = {check.verdict for check in checks}
    if "regression" in verdicts:
        return "regression"
    if "refused" in verdicts or not verdicts:
        return "cannot compare"
    return "undecided" if "undecided" in verdicts else "no regression"


def exit_code(checks: Sequence[Check], strict: bool = False) -> int:
    """Return 1 for a regression (``strict``: or an undecided check), 2 for a refusal, else 0."""
    found = outcome(checks)
    if found == "cannot compare":
        return CANNOT_COMPARE
    return REGRESSION if found == "regression" or (strict and found == "undecided") else 0


def largest_drops(checks: Sequence[Check], count: int = 5) -> list[Check]:
    """Return the cells whose samples fell most, largest first, whatever their verdict."""
    fallen = [item for item in checks if item.family == "accuracy" and (item.effect or 0) < 0]
    return sorted(fallen, key=lambda item: item.effect or 0)[:count]
