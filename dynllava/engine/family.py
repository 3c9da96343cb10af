"""A family of models before layer 0: features of its tower, the projector."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch

from dynllava.errors import UserError
from dynllava.plan import NEXT, PRODUCING, Tower


@dataclass(frozen=True)
class TowerFeatures:
    """What a vision tower gives for a batch of images.

    Attributes
    ----------
    patches : Tensor [I, N, C]
        Selected features in raster order.
    class_token : Tensor [I, C] or None
        The class token's, where the tower has one.
    seen : dict
        Tower look -> what it saw, images first.
    """

    patches: torch.Tensor
    class_token: torch.Tensor | None
    seen: dict[Tower, torch.Tensor]


class Family(Protocol):
    """What the engine needs of a model before layer 0."""

    def features(self, pixels: torch.Tensor, looks: tuple[Tower, ...]) -> TowerFeatures:
        """Return the selected features of images, and what looks into the tower saw."""

    def project(self, rows: torch.Tensor) -> torch.Tensor:
        """Return rows [..., C] behind the projector [..., D]."""


class Llava:
    """LLaVA-1.5: a CLIP tower, one crop an image, a projector that maps each row by itself.

    Parameters
    ----------
    model : Module
        Holds ``vision_tower`` and ``multi_modal_projector``.
    config : LlavaConfig
    """

    def __init__(self, model: Any, config: Any) -> None:
        self.tower, self.projector, self.config = (
            model.vision_tower,
            model.multi_modal_projector,
            config,
        )

    def features(self, pixels: torch.Tensor, looks: tuple[Tower, ...]) -> TowerFeatures:
        """See :meth:`Family.features`.

        The tower runs as always; looks are computed beside it from its hidden states.
        """
        out = self.tower(pixels, output_hidden_states=True)
        states, chosen = out.hidden_states, self.config.vision_feature_layer
        layers = chosen if isinstance(chosen, (list, tuple)) else [chosen]
        parts = [states[layer] for layer in layers]
        selected = torch.cat(parts, -1)
        has_class = self.config.vision_feature_select_strategy == "default"
        if looks and not has_class:
            raise UserError(
                "the method looks at the vision tower's class token, which this model has not or "
                "sends as a patch (vision_feature_select_strategy=full)"
            )
        last = layers[-1] % len(states)
        seen = {look: self._look(look, states, last) for look in looks}
        return TowerFeatures(
            selected[:, 1:] if has_class else selected,
            selected[:, 0] if has_class else None,
            seen,
        )

    def project(self, rows: torch.Tensor) -> torch.Tensor:
        """See :meth:`Family.project`."""
        return self.projector(rows)

    def _look(self, look: Tower, states: tuple[torch.Tensor, ...], selected: int) -> torch.Tensor:
        layers = self.tower.encoder.layers
        producing = max(selected - 1, 0)
        named: dict[str | int, int | str] = {
            PRODUCING: producing,
            NEXT: min(selected, len(layers) - 1),
        }
        number = named.get(look.layer, look.layer)
        if not isinstance(number, int) or not 0 <= number < len(layers):
            raise UserError(f"tower layer {look.layer!r}: accepted are 0 to {len(layers) - 1}")
        layer = layers[number]
        attention: Any = layer.self_attn
        hidden = layer.layer_norm1(states[number])
        if look.what == "class_query":
            return attention.q_proj(hidden[:, 0])
        keys = attention.k_proj(hidden)
        if look.what == "keys":
            return keys
        query = attention.q_proj(hidden[:, :1])
        heads = attention.num_heads
        query, keys = (part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in (query, keys))
        scores = query.float() @ keys.float().transpose(-1, -2) * query.shape[-1] ** -0.5
        # Softmax over all rows; the class token's own column is left out.
        return scores.softmax(-1)[:, :, 0, 1:]


class Packed(Llava):
    """A TokenPacker projector: a token stands for a block of patches seen at several levels."""

    def features(self, pixels: torch.Tensor, looks: tuple[Tower, ...]) -> TowerFeatures:
        """See :meth:`Family.features`; no rows may leave here."""
        raise UserError(
            "TokenPacker packs blocks of patches: no method may drop patches before it; accepted "
            "are methods that act behind the projector"
        )


def family_of(model: Any, config: Any) -> Family:
    """Return the family of a model."""
    packed = getattr(config, "token_packer", None)
    return Packed(model, config) if packed else Llava(model, config)
