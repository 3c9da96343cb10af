"""Control: adaptive average pooling of the projected image tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from .smaller import Smaller, projected

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Pool(Smaller):
    """Averages the projected tokens to a grid of ``rows`` x ``columns``; the tower runs whole."""

    name: ClassVar[str] = "pool"
    summary: ClassVar[str] = "control: image tokens averaged to a smaller grid behind the projector"
    source: ClassVar[str] = "control"

    def encode_images(self, model: Any, pixel_values: torch.Tensor) -> torch.Tensor:
        """Return the pooled tokens [images, rows * columns, D]."""
        import torch

        features = projected(model, pixel_values)
        patch = model.config.vision_config.patch_size
        rows, columns = (edge // patch for edge in pixel_values.shape[-2:])
        images, _, width = features.shape
        grid = features.transpose(1, 2).reshape(images, width, rows, columns)
        pooled = torch.nn.functional.adaptive_avg_pool2d(grid, self.grid(rows, columns))
        return pooled.flatten(2).transpose(1, 2)
