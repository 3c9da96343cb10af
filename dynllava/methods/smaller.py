"""What controls share that make the picture smaller before the language model sees it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dynllava.errors import UserError
from dynllava.plan import Cut, Plan, Rule, Shape

from .base import Method
from .uniform import square_rows

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Smaller(Method):
    """Gives the language model ``rows`` x ``columns`` image tokens, at positions without holes.

    Parameters
    ----------
    rows, columns : int or None
        Grid of image tokens that is left; None = half of the picture's.
    """

    # The verb of this name is not needed: the picture is smaller before there are rows.
    rows: int | None = None  # type: ignore[assignment]
    columns: int | None = None

    def plan(self, layers: int) -> Plan:
        """See :meth:`Method.plan`."""
        for name in ("rows", "columns"):
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or value < 1):
                raise UserError(f"{name}={value!r}: accepted is None or a number from 1")
        keep = Rule(_resized, self._declared)
        return Plan((Cut(0, keep, stage="pixels", positions="compact"),))

    def _declared(self, shape: Shape, present: int) -> int:
        """Return the tokens left; the patches are taken as the most nearly square grid."""
        if not present:
            return 0
        before = square_rows(present)
        rows, columns = self.grid(before, present // before)
        return rows * columns

    def grid(self, rows: int, columns: int) -> tuple[int, int]:
        """Return the grid that is left of ``rows`` x ``columns``.

        Raises
        ------
        UserError
            If it would be larger than the picture's.
        """
        left = (self.rows or max(1, rows // 2), self.columns or max(1, columns // 2))
        if left[0] > rows or left[1] > columns:
            raise UserError(
                f"{self.name}: {left[0]} x {left[1]} tokens of a picture of {rows} x {columns}"
            )
        return left

    def encode_images(self, model: Any, pixel_values: torch.Tensor) -> torch.Tensor:
        """Return the image tokens [images, P, D] that enter layer 0, in the prompt's first places.

        Placeholders beyond P of them hold nothing, as if the prompt had been written for a smaller
        picture.

        Parameters
        ----------
        model : DynamicLlavaForConditionalGeneration
        pixel_values : Tensor [images, 3, S, S]
        """
        raise NotImplementedError

    def tower_grid(self, rows: int, columns: int) -> tuple[int, int]:
        """Return the patches (rows, columns) that the vision tower processes."""
        return rows, columns


def projected(model: Any, pixel_values: torch.Tensor, **options: Any) -> torch.Tensor:
    """Return the image tokens [images, P, D] behind tower and projector."""
    import torch

    found = model.model.get_image_features(pixel_values=pixel_values, return_dict=True, **options)
    return torch.stack(list(found.pooler_output))


def sizing(method: Method) -> Smaller | None:
    """Return the part of a method that makes pictures smaller, None without one."""
    return next((part for part in method.parts if isinstance(part, Smaller)), None)


def _resized(view: Any) -> Any:
    raise RuntimeError("the picture itself was made smaller: nothing is left to count")
