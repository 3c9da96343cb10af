"""Configuration: predictor sizes and training targets, saved inside the model's config.json."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any

from transformers import LlavaConfig

from dynllava.errors import UserError
from dynllava.methods.base import check_fraction
from dynllava.plan import ModelDims, TowerDims

from .families import MODEL_TYPE

NO_PREDICTORS = {"use_vision_predictor": False, "use_output_text_predictor": False}
"""``sparse_config`` of a plain LLaVA."""


@dataclass
class SparsityConfig:
    """What a Dynamic-LLaVA checkpoint carries beside LLaVA (official key ``sparse_config``).

    Parameters
    ----------
    sparse_layer : int
        First layer (from 0) that sees the reduced set.
    vision_keep_rate, output_text_keep_rate : float
        Shares the predictors were trained for.
    use_vision_predictor, use_output_text_predictor : bool
        Which predictors the checkpoint has.
    d_model, nhead, dim_feedforward, num_layers : int
        Predictor sizes (paper A.4.1).
    mask_loss_weight : float
        Lambda of Eq. 10.
    output_text_len_for_training : int
        LEN_OT: shorter answers do not train the output predictor.
    output_threshold : float or None
        Calibrated margin on logit0 - logit1, if any.
    elastic : str
        ``"rank"`` or ``"condition"`` where the predictors were trained for every rate of a range
        (beyond the paper), see :mod:`dynllava.training.elastic`.
    vision_keep_rates, output_text_keep_rates : list of float or None
        Lowest and highest rate of that range.
    vision_calibration, output_calibration : dict or None
        Thresholds for any rate, see :class:`dynllava.methods.calibration.Calibration`.
    """

    sparse_layer: int = 2
    vision_keep_rate: float = 0.2
    output_text_keep_rate: float = 0.5
    use_vision_predictor: bool = True
    use_output_text_predictor: bool = True
    d_model: int = 512
    nhead: int = 8
    dim_feedforward: int = 2048
    num_layers: int = 2
    mask_loss_weight: float = 100.0
    output_text_len_for_training: int = 50
    output_threshold: float | None = None
    elastic: str = "none"
    vision_keep_rates: list[float] | None = None
    output_text_keep_rates: list[float] | None = None
    vision_calibration: dict[str, Any] | None = None
    output_calibration: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        check_fraction("vision_keep_rate", self.vision_keep_rate)
        check_fraction("output_text_keep_rate", self.output_text_keep_rate)
        if self.d_model % self.nhead or self.d_model % 4:
            raise UserError(
                f"d_model={self.d_model}: must be a multiple of nhead={self.nhead} and of 4"
            )

    @classmethod
    def from_dict(cls, values: dict[str, Any] | None) -> SparsityConfig:
        """Read an official or own ``sparse_config``; keys of unused features are ignored."""
        known = {field.name for field in fields(cls)}
        values = dict(values or {})
        if values.get("use_text_predictor") is False:
            values["use_output_text_predictor"] = False
        return cls(**{key: value for key, value in values.items() if key in known})

    def to_dict(self) -> dict[str, Any]:
        """Return plain values."""
        return asdict(self)


class DynamicLlavaConfig(LlavaConfig):
    """:class:`transformers.LlavaConfig` with a ``sparse_config``.

    Parameters
    ----------
    sparse_config : dict
        See :class:`SparsityConfig`; unknown keys of official checkpoints are kept as they are.
    token_packer : dict
        ``scale_factor``, ``width`` and ``heads`` of a TokenPacker projector
        (:mod:`dynllava.models.token_packer`); None = LLaVA-1.5's own.
    """

    model_type = MODEL_TYPE
    sparse_config: dict | None = None
    token_packer: dict | None = None

    def sparsity(self) -> SparsityConfig:
        """Return the validated sparsity configuration."""
        return SparsityConfig.from_dict(self.sparse_config)


def model_dims(config: LlavaConfig) -> ModelDims:
    """Return the sizes that closed-form costs need from a LLaVA configuration."""
    text, vision = config.text_config, config.vision_config
    sparsity = SparsityConfig.from_dict(getattr(config, "sparse_config", None))
    tower = TowerDims(
        vision.num_hidden_layers,
        vision.hidden_size,
        vision.num_attention_heads,
        (vision.image_size // vision.patch_size) ** 2,
    )
    head_dim = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    return ModelDims(
        layers=text.num_hidden_layers,
        hidden=text.hidden_size,
        heads=text.num_attention_heads,
        kv_heads=text.num_key_value_heads,
        head_dim=head_dim,
        intermediate=text.intermediate_size,
        vocab=text.vocab_size,
        predictor_dim=sparsity.d_model,
        predictor_heads=sparsity.nhead,
        predictor_feedforward=sparsity.dim_feedforward,
        predictor_blocks=sparsity.num_layers,
        tower=tower,
    )
