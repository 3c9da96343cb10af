"""Thresholds for asked keep rates, measured on held-out samples and stored in the checkpoint.

A predictor keeps a token if its margin logit0 - logit1 exceeds a threshold.  Training sets the
share that *sampled* decisions keep; which threshold keeps a share without sampling has to be
measured.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from dynllava.errors import UserError

CURVES = ("rates", "thresholds", "realised")


@dataclass(frozen=True)
class Calibration:
    """Threshold of one predictor as a function of the asked keep rate.

    Attributes
    ----------
    rates : tuple of float
        Asked shares, rising.
    thresholds : tuple of float
        Margin above which a token stays, one a rate.
    realised : tuple of float
        Share that each threshold kept on samples that did not set it.
    data : str
        What it was measured on.
    samples, tokens : int
        How much of it set the thresholds; as much again was left for ``realised``.
    """

    rates: tuple[float, ...]
    thresholds: tuple[float, ...]
    realised: tuple[float, ...]
    data: str = ""
    samples: int = 0
    tokens: int = 0

    def __post_init__(self) -> None:
        curves = {name: getattr(self, name) for name in CURVES}
        sizes = {len(values) for values in curves.values()}
        if len(sizes) > 1 or len(self.rates) < 2:
            raise UserError("calibration: accepted are at least two rates, each with its threshold")
        for name, values in curves.items():
            if not all(isinstance(value, int | float) and math.isfinite(value) for value in values):
                raise UserError(f"calibration: {name} holds what is no finite number")
        if any(low >= high for low, high in zip(self.rates, self.rates[1:], strict=False)):
            raise UserError("calibration: rates are not rising")

    @property
    def lowest(self) -> float:
        """Lowest rate that can be asked."""
        return self.rates[0]

    @property
    def highest(self) -> float:
        """Highest rate that can be asked."""
        return self.rates[-1]

    def covers(self, rate: float) -> bool:
        """Return whether ``rate`` lies within what was measured."""
        return self.lowest <= rate <= self.highest

    def threshold(self, rate: float) -> float:
        """Return the threshold for a rate, linear between the measured ones.

        Raises
        ------
        UserError
            If the rate lies outside them.
        """
        if not self.covers(rate):
            raise UserError(
                f"keep rate {rate:g}: accepted is {self.lowest:g} to {self.highest:g} (calibrated)"
            )
        right = max(1, bisect_left(self.rates, rate))
        low, high = self.rates[right - 1], self.rates[right]
        weight = (rate - low) / (high - low)
        return (1 - weight) * self.thresholds[right - 1] + weight * self.thresholds[right]

    def worst(self) -> float:
        """Return the largest distance of a realised share from the asked one."""
        return max(abs(one - two) for one, two in zip(self.rates, self.realised, strict=True))

    @classmethod
    def from_dict(cls, values: Mapping[str, Any] | None) -> Calibration | None:
        """Return what a checkpoint's configuration stores, None if nothing.

        Raises
        ------
        UserError
            If it is no calibration.
        """
        if values is None:
            return None
        try:
            rates, thresholds, realised = (tuple(values[name]) for name in CURVES)
            told = values.get("data", ""), values.get("samples", 0), values.get("tokens", 0)
            return cls(rates, thresholds, realised, *told)
        except (KeyError, TypeError) as error:
            raise UserError(f"calibration: not rates, thresholds and realised ({error})") from None

    def to_dict(self) -> dict[str, Any]:
        """Return plain values."""
        return {name: list(v) if isinstance(v, tuple) else v for name, v in asdict(self).items()}
