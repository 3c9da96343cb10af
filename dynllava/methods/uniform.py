"""Uniform grid: keeps image tokens spread evenly over the picture, whatever the question."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from dynllava.errors import UserError
from dynllava.plan import Cut, Plan, Share

from .base import Method, check_fraction, check_layer, check_number, share

if TYPE_CHECKING:
    import torch

    from dynllava.engine.view import View


@dataclass(frozen=True)
class Uniform(Method):
    """Keeps ``int(n * image_keep_rate)`` image tokens on a regular grid over the picture.

    Parameters
    ----------
    image_keep_rate : float
        Share of image tokens kept.
    layer : int
        First layer that sees the reduced set.
    columns : int or None
        Patches in a row of the picture; None = the most nearly square grid of the image tokens.
    """

    name: ClassVar[str] = "uniform"
    summary: ClassVar[str] = "image tokens on a regular grid over the picture"
    source: ClassVar[str] = "static control"

    image_keep_rate: float = share(0.2)
    layer: int = 2
    columns: int | None = None

    def plan(self, layers: int) -> Plan:
        """See :meth:`Method.plan`."""
        check_layer("layer", self.layer, layers)
        check_fraction("image_keep_rate", self.image_keep_rate)
        check_number("columns", self.columns, optional=True)
        return Plan((Cut(self.layer, Share(self.image_keep_rate)),))

    def choose(self, view: View) -> torch.Tensor:
        """Keep the image tokens at the grid's places."""
        import torch

        index, is_image = view.stream.image_index, view.is_image
        keep = torch.zeros_like(is_image)
        for row, count in enumerate(is_image.sum(1).tolist()):
            grids = view.grids[row] if view.grids is not None else None
            places = torch.tensor(self.places(count, grids), dtype=index.dtype, device=index.device)
            keep[row] = torch.isin(index[row], places)
        return keep

    def places(self, count: int, grids: list[tuple[int, int]] | None = None) -> list[int]:
        """Return which of ``count`` image tokens are kept, ascending.

        ``grids`` are the (rows, columns) of each picture or crop, which share the kept tokens in
        proportion to their size.
        """
        if grids and self.columns is None and sum(a * b for a, b in grids) == count:
            return self._places_in(grids)
        kept = int(count * self.image_keep_rate + 1e-9)
        if kept == 0:
            return []
        columns = self.columns or count // square_rows(count)
        if count % columns:
            raise UserError(f"columns={columns}: {count} image tokens do not fill such rows")
        return grid_places(kept, count // columns, columns)

    def _places_in(self, grids: list[tuple[int, int]]) -> list[int]:
        """Return the places in several grids; their counts add up to the share of all tokens."""
        found: list[int] = []
        first = 0
        for rows, columns in grids:
            behind = first + rows * columns
            kept = int(behind * self.image_keep_rate + 1e-9) - len(found)
            if kept:
                found += [first + place for place in grid_places(kept, rows, columns)]
            first = behind
        return found


def grid_places(kept: int, rows: int, columns: int) -> list[int]:
    """Return ``kept`` raster indices spread evenly over a grid of ``rows`` x ``columns``.

    The points lie in rows at equal distances, about as far apart as the points within a row; rows
    differ by at most one point.  From 4 points on there are two rows and two points in the first
    and the last row at least, so that every quadrant of the picture is seen.

    Parameters
    ----------
    kept : int
        Number of points, from 1 to ``rows * columns``.
    rows, columns : int
        The grid.

    Returns
    -------
    list of int
        Ascending, all different.
    """
    few = -(-kept // columns)
    lines = max(few, round(math.sqrt(kept * rows / columns)))
    if kept >= 4:
        lines = max(2, few, min(lines, kept // 2))
    lines = min(lines, rows)
    # Rounded half up, so that a point less falls to a row in the middle, not at the edge.
    ends = [(2 * line * kept + lines) // (2 * lines) for line in range(lines + 1)]
    places = []
    for line, (start, end) in enumerate(itertools.pairwise(ends)):
        row = (2 * line + 1) * rows // (2 * lines)
        count = end - start
        places += [
            row * columns + (2 * point + 1) * columns // (2 * count) for point in range(count)
        ]
    return places


def square_rows(count: int) -> int:
    """Return the rows of the most nearly square grid of ``count`` tokens."""
    return next(rows for rows in range(math.isqrt(count), 0, -1) if count % rows == 0)
