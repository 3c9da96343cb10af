"""How many tokens stay at a cut."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from .shapes import Shape

#: Shares of whole tokens such as 0.29 * 100 come out a rounding error too low.
TOLERANCE = 1e-9


@dataclass(frozen=True)
class Share:
    """A share of the tokens.

    Attributes
    ----------
    rate : float
        In [0, 1].
    of : str
        ``"original"``: of the tokens that reach layer 0; ``"present"``: of those at the cut.
    rounding : str
        ``"floor"`` (a product within 1e-9 below a whole number is that number), ``"truncate"``
        (plain ``int()``), ``"half_even"`` (Python's ``round``).
    spare : int
        At least so many of the tokens at the cut leave.
    """

    rate: float
    of: str = "original"
    rounding: str = "floor"
    spare: int = 0

    def count(self, shape: Shape, original: int, present: int) -> int:
        """Return the tokens that stay."""
        wanted = self.rate * (original if self.of == "original" else present)
        if self.rounding == "half_even":
            number = round(wanted)
        else:
            number = int(wanted + (TOLERANCE if self.rounding == "floor" else 0.0))
        return limited(number, present, self.spare)


@dataclass(frozen=True)
class Count:
    """A number of tokens; a row that has fewer keeps all but ``spare``.

    ``name`` is what a message calls it.
    """

    number: int
    spare: int = 0
    name: str = "keep"

    def count(self, shape: Shape, original: int, present: int) -> int:
        """Return the tokens that stay."""
        return limited(self.number, present, self.spare)


@dataclass(frozen=True)
class Alternate:
    """Every other token, the first one included."""

    def count(self, shape: Shape, original: int, present: int) -> int:
        """Return the tokens that stay."""
        return (present + 1) // 2


@dataclass(frozen=True)
class Rule:
    """A number that depends on the data.

    Attributes
    ----------
    function : callable
        ``function(view) -> [B] int64``, tokens to keep in each row.
    declared : callable
        ``declared(shape, present) -> int``, the estimate that closed forms use.
    spare : int
        At least so many of the tokens at the cut leave.
    """

    function: Callable[[Any], Any]
    declared: Callable[[Shape, int], int]
    spare: int = 0

    def count(self, shape: Shape, original: int, present: int) -> int:
        """Return the estimate."""
        return limited(self.declared(shape, present), present, self.spare)


Keep = Share | Count | Alternate | Rule


def limited(number: int, present: int, spare: int) -> int:
    """Return ``number`` within 0 and ``present - spare``."""
    return max(0, min(number, present - spare))
