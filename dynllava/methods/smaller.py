"""What controls share that make the picture smaller before the language model sees it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..errors import UserError
from .base import Method, PromptShape, Schedule
from .random import static_schedule
from .uniform import square_rows


@dataclass
class Smaller(Method):
    """Gives the language model ``rows`` x ``columns`` image tokens, at positions without holes.

    Parameters
    ----------
    rows, columns : int or None
        Grid of image tokens that is left; None = half of the picture's.
    """

    prunes: ClassVar[str] = "image tokens"
    saves: ClassVar[tuple[str, ...]] = ("prefill", "decode with cache", "decode without cache")
    positions: ClassVar[str] = "as of a smaller picture"
    sets_grid: ClassVar[bool] = True

    rows: int | None = None
    columns: int | None = None

    def validate(self, num_layers: int) -> None:
        """See :meth:`Method.validate`."""
        for name in ("rows", "columns"):
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or value < 1):
                raise UserError(f"{name}={value!r}: accepted is None or a number from 1")

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

    def schedule(self, shape: PromptShape, num_layers: int) -> Schedule:
        """See :meth:`Method.schedule`; the patches are taken as the most nearly square grid."""
        if not shape.image:
            return static_schedule(shape, num_layers, 0, 0, 1.0)
        before = square_rows(shape.image)
        rows, columns = self.grid(before, shape.image // before)
        return static_schedule(shape, num_layers, 0, rows * columns, 1.0)
