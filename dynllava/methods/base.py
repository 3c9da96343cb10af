"""What a compression method is: parameters, a plan, and at most four verbs.

The plan (:mod:`dynllava.plan`) says where tokens leave, how many, and what decides; everything that
can be derived from it is.  The verbs say *which* tokens: the engine (:mod:`dynllava.engine`) owns
the loop, the ranking, the gathering and the cache.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from dynllava.plan import Plan

from .checks import check_choice, check_fraction, check_layer, check_number

if TYPE_CHECKING:
    import torch

    from dynllava.engine.ranking import Dropped
    from dynllava.engine.rows import ImageView, Rows
    from dynllava.engine.view import View
    from dynllava.plan import ModelDims, Operation, Schedule, Shape

__all__ = [
    "Method",
    "check_choice",
    "check_fraction",
    "check_layer",
    "check_number",
    "instead",
    "share",
]

VERBS = ("score", "choose", "merge", "rows")


def share(default: Any) -> Any:
    """Return a dataclass field that a budget sets: the share of tokens kept at a cut."""
    return dataclasses.field(default=default, metadata={"budget": "share"})


def instead(default: Any) -> Any:
    """Return a dataclass field that says the same as a share and cannot stand beside a budget."""
    return dataclasses.field(default=default, metadata={"budget": "instead"})


@dataclass(frozen=True)
class Method:
    """Base class: keeps every token everywhere.

    Subclasses are frozen dataclasses whose fields are the method's parameters.  They define
    :meth:`plan` and the verbs that their cuts need: one that ranks (:meth:`score`) or one that
    decides (:meth:`choose`; for output tokens always), :meth:`merge` where new tokens stand for
    dropped ones, :meth:`rows` before layer 0 where rows change.
    """

    name: ClassVar[str] = ""
    summary: ClassVar[str] = ""
    source: ClassVar[str] = ""
    certificate: ClassVar[str] = ""
    #: Whether trained predictors of the checkpoint decide.
    learned: ClassVar[bool] = False

    def plan(self, layers: int) -> Plan:
        """Return what the method promises for a model of ``layers`` decoder layers.

        Raises
        ------
        UserError
            If a parameter does not fit.
        """
        return Plan()

    def score(self, view: Any) -> torch.Tensor:
        """Return [B, L] float (before layer 0: [N], one image); the highest stay.

        Columns of other than image tokens are ignored; of equal scores the earlier token stays.
        """
        raise NotImplementedError

    def choose(self, view: Any) -> torch.Tensor:
        """Return [B, L] bool (before layer 0: [N], one image): which tokens of the cut stay.

        Columns of other than the cut's tokens are ignored.
        """
        raise NotImplementedError

    def choose_all(self, views: Sequence[ImageView]) -> Sequence[torch.Tensor]:
        """Return what :meth:`choose` does for each of several images before layer 0.

        They have as many patches and as large a budget, so that a method may take them together.
        """
        return [self.choose(view) for view in views]

    def merge(self, view: View, dropped: Dropped) -> torch.Tensor:
        """Return [B, C, D]: ``dropped.new`` tokens a row that stand for the dropped ones."""
        raise NotImplementedError

    def rows(self, view: ImageView) -> Rows:
        """Return the rows of one image that reach the language model."""
        raise NotImplementedError

    # ------------------------------------------------------------------ derived; not overridden

    @property
    def parts(self) -> tuple[Method, ...]:
        """The methods that decide: this one, or those that it is composed of."""
        return (self,)

    @property
    def title(self) -> str:
        """What tables and plots call it: its name, and which of its published forms it is."""
        return self.name

    def has(self, verb: str) -> bool:
        """Return whether the class defines a verb."""
        return getattr(type(self), verb) is not getattr(Method, verb)

    def validate(self, layers: int) -> None:
        """Raise :class:`UserError` if a parameter does not fit a model of ``layers``."""
        self.plan(layers)

    def schedule(self, shape: Shape, layers: int) -> Schedule:
        """Return the plan's tokens per layer for one row."""
        return self.plan(layers).schedule(shape, layers)

    def overhead(self, shape: Shape, dims: ModelDims) -> list[Operation]:
        """Return all that is computed beside the stock layers (predictors, scores, clustering)."""
        return self.plan(dims.layers).operations(shape, dims)

    def parameters(self) -> dict[str, Any]:
        """Return the parameters as plain values."""
        return dataclasses.asdict(self)


_MOVED = {
    **dict.fromkeys(("PromptShape", "ModelDims", "Operation", "Schedule"), "dynllava.plan"),
    **dict.fromkeys(("Probe", "Observed"), "dynllava.engine.attention"),
    "Selection": "dynllava.engine.program",
    "keep_highest": "dynllava.engine.ranking",
}


def __getattr__(name: str) -> Any:
    """Find what moved, with a warning, for one more minor version."""
    if name not in _MOVED:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    warnings.warn(f"{name} is now in {_MOVED[name]}", DeprecationWarning, stacklevel=2)
    return getattr(importlib.import_module(_MOVED[name]), name)
