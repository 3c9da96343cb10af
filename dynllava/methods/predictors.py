"""Image predictor and output predictor of Dynamic-LLaVA (paper section A.4.1).

Both give two logits a token: index 0 = keep, index 1 = drop, as in the official checkpoints.
Module names inside a predictor are those of the official checkpoints, so conversion is a
change of prefix.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn import functional as F

from dynllava.errors import UserError
from dynllava.plan import Predictor

from .calibration import Calibration

if TYPE_CHECKING:
    from dynllava.models.config import SparsityConfig
    from dynllava.plan import Plan


KEEP_RATES = {"image": "vision_keep_rate", "output": "output_keep_rate"}
"""The method's parameter that says how much a predictor keeps."""


class PredictorAttention(nn.Module):
    """Bidirectional attention among the image tokens; fused qkv without bias."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        """Map [B, P, dim] to [B, P, dim]; ``mask`` [B, P] bool hides keys."""
        batch, count, dim = x.shape
        qkv = self.qkv(x).view(batch, count, 3, self.heads, dim // self.heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        key_mask = None if mask is None else mask[:, None, None, :]
        out = F.scaled_dot_product_attention(query, key, value, attn_mask=key_mask)
        return self.proj(out.transpose(1, 2).reshape(batch, count, dim))


class PredictorMLP(nn.Module):
    """Two linear layers with exact GELU."""

    def __init__(self, dim: int, feedforward: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, feedforward)
        self.fc2 = nn.Linear(feedforward, dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map [..., dim] to [..., dim]."""
        return self.fc2(F.gelu(self.fc1(x)))


class PredictorBlock(nn.Module):
    """Pre-norm transformer block."""

    def __init__(self, dim: int, heads: int, feedforward: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attn = PredictorAttention(dim, heads)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = PredictorMLP(dim, feedforward)

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        """Map [B, P, dim] to [B, P, dim]."""
        x = x + self.attn(self.norm1(x), mask)
        return x + self.mlp(self.norm2(x))


class RateShift(nn.Module):
    """Adds what a predictor is told about the keep rate: ``rate * w0 + log(rate) * w1``.

    Beyond the paper (``elastic: condition``).  Zero at first, and elementwise: no product of
    matrices is added.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(2, dim))

    def forward(self, x: torch.Tensor, rate: float | torch.Tensor) -> torch.Tensor:
        """Shift [B, ..., dim] by a rate, or by one for each of B rows."""
        told = torch.as_tensor(rate, dtype=torch.float32, device=x.device)
        told = told.reshape(-1, *[1] * (x.dim() - 1))
        return x + (told * self.weight[0] + told.log() * self.weight[1]).to(x.dtype)


class ImagePredictor(nn.Module):
    """Scores the image tokens jointly.

    Parameters
    ----------
    hidden_size : int
        Width of the language model.
    d_model, nhead, dim_feedforward, num_layers : int
        Sizes of the predictor's transformer.
    told_rate : bool
        Whether it is told the keep rate.
    """

    def __init__(
        self,
        hidden_size: int,
        d_model: int = 512,
        nhead: int = 8,
        dim_feedforward: int = 2048,
        num_layers: int = 2,
        told_rate: bool = False,
    ) -> None:
        super().__init__()
        self.down_mlp = nn.Sequential(
            nn.LayerNorm(hidden_size), nn.Linear(hidden_size, d_model), nn.GELU()
        )
        self.transformer = nn.ModuleList(
            PredictorBlock(d_model, nhead, dim_feedforward) for _ in range(num_layers)
        )
        self.output_mlp = nn.Sequential(
            nn.Linear(d_model, d_model // 2),
            nn.GELU(),
            nn.Linear(d_model // 2, d_model // 4),
            nn.GELU(),
            nn.Linear(d_model // 4, 2),
        )
        self.rate_shift = RateShift(d_model) if told_rate else None
        self.calibration: Calibration | None = None

    def forward(
        self,
        hidden: torch.Tensor,
        mask: torch.Tensor | None = None,
        rate: float | torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Return keep/drop logits.

        Parameters
        ----------
        hidden : Tensor [B, P, hidden_size]
            Image tokens at the input of the sparse layer.
        mask : Tensor [B, P] bool, optional
            False = no token (rows with fewer image tokens than P).
        rate : float or Tensor [B], optional
            Wanted keep rate; read by predictors that are told it.

        Returns
        -------
        Tensor [B, P, 2]
            Index 0 = keep, 1 = drop.
        """
        x = self.down_mlp(hidden)
        if self.rate_shift is not None:
            x = self.rate_shift(x, _told(rate))
        for block in self.transformer:
            x = block(x, mask)
        half = x.shape[-1] // 2
        local, shared = x[..., :half], x[..., half:]
        if mask is None:
            mean = shared.mean(1, keepdim=True)
        else:
            weight = mask[..., None].to(shared.dtype)
            mean = (shared * weight).sum(1, keepdim=True) / weight.sum(1, keepdim=True)
        return self.output_mlp(torch.cat([local, mean.expand_as(shared)], -1))


class OutputPredictor(nn.Module):
    """Judges each output token by itself.

    Parameters
    ----------
    hidden_size : int
        Width of the language model.
    d_model : int
        Width of the first hidden layer.
    told_rate : bool
        Whether it is told the keep rate.
    """

    def __init__(self, hidden_size: int, d_model: int = 512, told_rate: bool = False) -> None:
        super().__init__()
        self.output_mlp = nn.Sequential(
            nn.LayerNorm(hidden_size),
            nn.Linear(hidden_size, d_model),
            nn.GELU(),
            nn.Linear(d_model, d_model // 2),
            nn.GELU(),
            nn.Linear(d_model // 2, d_model // 4),
            nn.GELU(),
            nn.Linear(d_model // 4, 2),
        )

        self.rate_shift = RateShift(d_model) if told_rate else None
        self.calibration: Calibration | None = None

    def forward(
        self, hidden: torch.Tensor, rate: float | torch.Tensor | None = None
    ) -> torch.Tensor:
        """Map [..., hidden_size] to keep/drop logits [..., 2]; ``rate`` as for images."""
        if self.rate_shift is None:
            return self.output_mlp(hidden)
        down, rest = self.output_mlp[:2], self.output_mlp[2:]
        return rest(self.rate_shift(down(hidden), _told(rate)))


def _told(rate: float | torch.Tensor | None) -> float | torch.Tensor:
    if rate is None:
        raise ValueError("this predictor is told the keep rate: give it one")
    return rate


def build_predictors(
    sparsity: SparsityConfig, text_config: Any
) -> dict[str, ImagePredictor | OutputPredictor]:
    """Return fresh predictors for a text model's hidden size: ``image`` and ``output`` as asked."""
    hidden = text_config.hidden_size
    found: dict[str, ImagePredictor | OutputPredictor] = {}
    told = sparsity.elastic == "condition"
    if sparsity.use_vision_predictor:
        found["image"] = ImagePredictor(
            hidden,
            sparsity.d_model,
            sparsity.nhead,
            sparsity.dim_feedforward,
            sparsity.num_layers,
            told and sparsity.vision_keep_rates is not None,
        )
    if sparsity.use_output_text_predictor:
        found["output"] = OutputPredictor(
            hidden, sparsity.d_model, told and sparsity.output_text_keep_rates is not None
        )
    for name, calibration in calibrations_of(sparsity).items():
        if name in found:
            found[name].calibration = calibration
    return found


def check_predictors(plan: Plan, sparsity: SparsityConfig) -> None:
    """Refuse keep rates that the checkpoint's predictors were not trained or calibrated for."""
    calibrations = calibrations_of(sparsity)
    for look in plan.looks:
        if not isinstance(look, Predictor) or look.rate is None:
            continue
        calibration = calibrations[look.name]
        what = f"{KEEP_RATES[look.name]}={look.rate:g}"
        if calibration is not None:
            if not calibration.covers(look.rate):
                raise UserError(
                    f"{what}: the checkpoint's {look.name} predictor is calibrated for "
                    f"{calibration.lowest:g} to {calibration.highest:g}; accepted are these, or "
                    "1.0 (predictor off)"
                )
        elif look.calibrated:
            raise UserError(
                f"{what} with per_image: the checkpoint's {look.name} predictor is not calibrated; "
                "accepted is a checkpoint behind dynllava calibrate"
            )
        elif look.name == "output" and sparsity.use_output_text_predictor:
            trained = sparsity.output_text_keep_rate
            if look.rate != trained:
                raise UserError(
                    f"{what}: the checkpoint's output predictor was trained for {trained}; "
                    f"accepted are {trained}, 1.0 (predictor off), any rate together with a "
                    "calibrated output_threshold, or any rate behind dynllava calibrate"
                )


def calibrations_of(sparsity: SparsityConfig) -> dict[str, Calibration | None]:
    """Return what the checkpoint stores of each predictor's thresholds."""
    return {
        "image": Calibration.from_dict(sparsity.vision_calibration),
        "output": Calibration.from_dict(sparsity.output_calibration),
    }
