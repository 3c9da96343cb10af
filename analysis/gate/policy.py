"""What the regression gate tolerates: a small YAML file, every key optional."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dynllava.errors import UserError


@dataclass(frozen=True)
class Policy:
    """Thresholds of the gate.

    Attributes
    ----------
    alpha : float
        Family-wise error rate of all accuracy tests (half for the pooled test a method, half for
        the single cells), and again of all timing tests.
    power : float
        Power at which the smallest findable drop is stated.
    tolerated_drop : float
        Margin of the accuracy tests, in the unit of a sample's score (0.01 = a point of a 0/1
        score): they ask whether the candidate is worse by more than this.
    findable_drop : float
        "No regression" is said only where a true drop of this size (same unit) would have been
        found at ``power`` after correction; else the outcome is "undecided".
    counted_tolerance : float
        Relative rise of a counted cost that passes; 0 = exact.
    measured_rise : float
        Relative slow-down that is tolerated: the margin of the timings' test.
    least_processes : int
        Processes a side that a timing needs; never fewer than its family needs (8, or 10 among
        more than 100 timings).
    ignore : tuple of str
        Quantities, metrics or tasks that are not looked at.
    """

    alpha: float = 0.05
    power: float = 0.8
    tolerated_drop: float = 0.0
    findable_drop: float = 0.01
    counted_tolerance: float = 0.0
    measured_rise: float = 0.0
    least_processes: int = 8
    ignore: tuple[str, ...] = field(default=())

    def __post_init__(self) -> None:
        for name in ("alpha", "power"):
            if not 0 < getattr(self, name) < 1:
                raise UserError(f"policy: {name}={getattr(self, name)!r}: accepted is (0, 1)")
        for name in (
            "tolerated_drop",
            "findable_drop",
            "counted_tolerance",
            "measured_rise",
            "least_processes",
        ):
            if getattr(self, name) < 0:
                raise UserError(f"policy: {name}={getattr(self, name)!r}: accepted is 0 or more")


def load_policy(path: str | None) -> Policy:
    """Return the policy of a YAML file, or the default one for None.

    Raises
    ------
    UserError
        If the file cannot be read, or a key is unknown or of the wrong type.
    """
    if path is None:
        return Policy()
    import yaml

    try:
        data = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        first = str(error).splitlines()[0]
        raise UserError(f"cannot read the policy {path}: {first}") from None
    if data is None:
        return Policy()
    if not isinstance(data, dict):
        raise UserError(f"{path}: a mapping is expected")
    known = {item.name for item in dataclasses.fields(Policy)}
    for key, value in data.items():
        if key not in known:
            raise UserError(f"{path}: {key!r} is unknown; accepted are {', '.join(sorted(known))}")
        if not _fits(key, value):
            raise UserError(f"{path}: {key}={value!r} is of the wrong type")
    if "ignore" in data:
        data["ignore"] = tuple(data["ignore"])
    return Policy(**data)


def _fits(key: str, value: Any) -> bool:
    if key == "ignore":
        return isinstance(value, list) and all(isinstance(item, str) for item in value)
    wanted = int if key == "least_processes" else (int, float)
    return isinstance(value, wanted) and not isinstance(value, bool) and math.isfinite(value)
