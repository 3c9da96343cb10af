"""What methods share that keep some patches of an image before layer 0."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from dynllava.plan import Count, Cut, Keep, Look, Plan, Share
from dynllava.plan.plan import Work

from .base import Method, check_choice, check_fraction, check_number, instead, share

POSITIONS = ("compact", "original")

if TYPE_CHECKING:
    import torch

    from dynllava.engine.rows import ImageView


@dataclass(frozen=True)
class Patches(Method):
    """Keeps patches of each image by itself.

    Parameters
    ----------
    keep_ratio : float
        Share of the patches that is kept.
    keep : int or None
        Number of patches kept; replaces ``keep_ratio``.
    positions : str
        ``"compact"`` (as the official programs): numbered anew, without holes; ``"original"``:
        every token keeps the position it had in the whole prompt.
    """

    keep_ratio: float = share(0.25)
    keep: int | None = instead(None)
    positions: str = "compact"

    def keeps(self, rounding: str = "floor") -> Keep:
        """Return how many patches of an image stay."""
        check_fraction("keep_ratio", self.keep_ratio)
        check_number("keep", self.keep, optional=True)
        if self.keep is not None:
            return Count(self.keep)
        return Share(self.keep_ratio, rounding=rounding)

    def before(
        self,
        keep: Keep,
        *looks: Look,
        stage: str = "features",
        work: tuple[Work, ...] = (),
        crops: bool = False,
    ) -> Plan:
        """Return the plan of one cut before layer 0."""
        check_choice("positions", self.positions, POSITIONS)
        cut = Cut(0, keep, by=looks, stage=stage, positions=self.positions, crops=crops)
        return Plan((cut,), work=work)


@dataclass(frozen=True)
class AlikePatches(Patches):
    """A method that chooses from several images at once (``choose_all``), or from one."""

    def choose(self, view: ImageView) -> torch.Tensor:  # type: ignore[override]
        """Return [N] bool."""
        return self.choose_all([view])[0]
