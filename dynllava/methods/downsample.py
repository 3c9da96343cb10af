"""Control: the picture is shrunk before the vision tower sees it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from .smaller import Smaller, projected

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Downsample(Smaller):
    """Shrinks the picture to ``rows`` x ``columns`` patches; position embeddings are interpolated.

    The tower and the projector then process fewer patches too, which costs count.
    """

    name: ClassVar[str] = "downsample"
    summary: ClassVar[str] = "control: picture shrunk before the vision tower"
    source: ClassVar[str] = "control"

    def encode_images(self, model: Any, pixel_values: torch.Tensor) -> torch.Tensor:
        """Return the tokens [images, rows * columns, D] of the shrunk pictures."""
        import torch

        patch = model.config.vision_config.patch_size
        rows, columns = (edge // patch for edge in pixel_values.shape[-2:])
        size = [patch * edge for edge in self.grid(rows, columns)]
        if size == list(pixel_values.shape[-2:]):
            return projected(model, pixel_values)
        small = torch.nn.functional.interpolate(
            pixel_values.float(), size, mode="bilinear", antialias=True
        )
        small = small.to(pixel_values.dtype)
        return projected(model, small, interpolate_pos_encoding=True)

    def tower_grid(self, rows: int, columns: int) -> tuple[int, int]:
        """See :meth:`Smaller.tower_grid`."""
        return self.grid(rows, columns)
