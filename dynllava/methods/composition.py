"""Two methods at once, such as one that drops image tokens and one that manages the cache.

``create("fastv+h2o", fastv_k=2, h2o_heavy=0.25)``: each part keeps its own parameters, prefixed
with its name.  The parts' plans are joined; a cache method works on each layer's own tokens, so its
shares count what the other part left there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

from dynllava.errors import UserError
from dynllava.plan import Plan

from .base import Method


@dataclass(frozen=True)
class Composition(Method):
    """Runs two methods in one pass.

    Parameters
    ----------
    first, second : Method
        Whose plans are joined.
    """

    summary: ClassVar[str] = "two methods in one pass"

    first: Method
    second: Method

    def __post_init__(self) -> None:
        # An instance has the name that creates it, which is no class's.
        vars(self)["name"] = f"{self.first.name}+{self.second.name}"

    @property
    def parts(self) -> tuple[Method, ...]:
        """Both methods."""
        return self.first, self.second

    @property
    def title(self) -> str:
        """Both titles."""
        return "+".join(part.title for part in self.parts)

    def plan(self, layers: int) -> Plan:
        """Return both plans joined; parts that get in each other's way are refused."""
        plans = [part.plan(layers) for part in self.parts]
        try:
            return plans[0] | plans[1]
        except UserError as error:
            raise UserError(f"{self.name}: {error}") from None

    def parameters(self) -> dict[str, Any]:
        """Return both parts' parameters, prefixed with their names."""
        return {
            f"{part.name}_{key}": value
            for part in self.parts
            for key, value in part.parameters().items()
        }


def compose(name: str, parameters: dict[str, Any], create: Callable[..., Method]) -> Composition:
    """Return the composition ``a+b`` with parameters ``a_x`` and ``b_y``.

    Raises
    ------
    UserError
        For other than two parts, or a parameter without a part's prefix.
    """
    names = name.split("+")
    if len(names) != 2 or names[0] == names[1]:
        raise UserError(f"method={name!r}: accepted are two different methods, as in fastv+h2o")
    own: dict[str, dict[str, Any]] = {part: {} for part in names}
    for key, value in parameters.items():
        # The longest matching name wins, should one be the beginning of the other.
        owner = max((part for part in names if key.startswith(f"{part}_")), key=len, default=None)
        if owner is None:
            raise UserError(
                f"{name} has no parameter {key!r}: accepted are the parts' parameters with prefix "
                f"{names[0]}_ or {names[1]}_"
            )
        own[owner][key.removeprefix(f"{owner}_")] = value
    return Composition(*(create(part, **own[part]) for part in names))
