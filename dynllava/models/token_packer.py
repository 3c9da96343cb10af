"""TokenPacker (arXiv 2407.02392): a projector that packs each block of patches into one token.

A coarse query per block of ``scale_factor`` x ``scale_factor`` patches (the selected features,
resized) attends to the block's patches, seen at four levels of the tower.  Sizes come from the
configuration; names are the official ones, so that its tensors load as they are.
"""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.nn import functional as F

from dynllava.errors import UserError

#: Hidden states of the tower that keys and values see, side by side in this order (0 = embeddings).
LEVELS = (12, 16, 22, 23)


class TokenPacker(nn.Module):
    """Four levels and the selected features in, packed tokens out.

    Parameters
    ----------
    channels : int
        Width C of the tower.
    hidden : int
        Width D of the language model.
    scale_factor : int
        Edge f of a block.
    width : int
        Width E inside, a multiple of ``heads``.
    heads : int
        Attention heads.
    """

    def __init__(
        self, channels: int, hidden: int, scale_factor: int, width: int = 1024, heads: int = 8
    ) -> None:
        super().__init__()
        self.channels, self.scale_factor = channels, scale_factor
        self.q_proj_1 = nn.Linear(channels, width, bias=False)
        self.k_proj_1 = _two_layers(channels * len(LEVELS), width)
        self.v_proj_1 = _two_layers(channels * len(LEVELS), width)
        self.ln_q_1, self.ln_k_1, self.ln_v_1 = (nn.LayerNorm(width, eps=1e-6) for _ in range(3))
        self.clip_attn = nn.MultiheadAttention(width, heads, batch_first=True)
        self.mlp = _two_layers(width, hidden)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Return tokens [I, (g / f)^2, D], row-major over the coarse grid.

        Parameters
        ----------
        features : Tensor [I, g * g, 5 C]
            Patches in raster order: the :data:`LEVELS`, then the selected layer's features.

        Raises
        ------
        UserError
            If the patches are no square grid that blocks divide.
        """
        images, patches, _ = features.shape
        region = regions(patches, self.scale_factor).to(features.device)
        levels, selected = features.split([self.channels * len(LEVELS), self.channels], -1)
        query = self.ln_q_1(self.q_proj_1(self.coarse(selected)))
        key = self.ln_k_1(self.k_proj_1(levels))[:, region].flatten(0, 1)
        value = self.ln_v_1(self.v_proj_1(levels))[:, region].flatten(0, 1)
        query = query.flatten(0, 1)[:, None]
        packed, _ = self.clip_attn(query, key, value, need_weights=False)
        return self.mlp(packed.view(images, len(region), -1))

    def coarse(self, selected: torch.Tensor) -> torch.Tensor:
        """Return features [I, g * g, C] resized to the coarse grid, in float32 inside."""
        edge = math.isqrt(selected.shape[1])
        grid = selected.float().transpose(1, 2).unflatten(2, (edge, edge))
        small = F.interpolate(grid, size=edge // self.scale_factor, mode="bilinear")
        return small.flatten(2).transpose(1, 2).to(selected.dtype)


def regions(patches: int, factor: int) -> torch.Tensor:
    """Return [t, f^2] int64: the patches of each block, both in raster order."""
    edge = math.isqrt(patches)
    if edge * edge != patches or edge % factor:
        raise UserError(
            f"TokenPacker packs blocks of {factor} x {factor} patches: {patches} are no square "
            "grid that they divide"
        )
    index = torch.arange(patches).view(edge // factor, factor, edge // factor, factor)
    return index.transpose(1, 2).reshape(-1, factor * factor)


def macs(channels: int, hidden: int, patches: int, factor: int, width: int) -> int:
    """Return the multiply-accumulates of one image's projector."""
    tokens = patches // factor**2
    keys_values = 2 * patches * (len(LEVELS) * channels * width + 2 * width * width)
    queries = tokens * (channels * width + 2 * width * width)
    return keys_values + queries + 2 * patches * width + tokens * (width + hidden) * hidden


def parameters(channels: int, hidden: int, width: int) -> int:
    """Return the numbers that the projector holds."""
    keys_values = 2 * (len(LEVELS) * channels + width + 2) * width
    attention = 4 * (width + 1) * width
    return (channels + 6) * width + keys_values + attention + (width + hidden + 2) * hidden


def _two_layers(width: int, out: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, out), nn.GELU(), nn.Linear(out, out))
