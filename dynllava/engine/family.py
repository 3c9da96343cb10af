"""A family of models before layer 0: features of its tower, the projector."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import nn

from dynllava.errors import UserError
from dynllava.plan import NEXT, PRODUCING, Tower

from .projections import outputs_of
from .rows import Picture

PROJECTIONS = {
    "class_row": ("q_proj", "k_proj"),
    "keys": ("k_proj",),
    "class_query": ("q_proj",),
}
"""What a look needs -> projections of the attention that it is about."""


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

    def crops(
        self, pixels: torch.Tensor, sizes: torch.Tensor | None
    ) -> tuple[torch.Tensor, list[Picture]]:
        """Return what the tower takes [crops, 3, S, S], and how it becomes pictures."""

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

    def crops(
        self, pixels: torch.Tensor, sizes: torch.Tensor | None
    ) -> tuple[torch.Tensor, list[Picture]]:
        """See :meth:`Family.crops`: a picture is one crop."""
        return pixels, [Picture() for _ in range(len(pixels))]

    def features(self, pixels: torch.Tensor, looks: tuple[Tower, ...]) -> TowerFeatures:
        """See :meth:`Family.features`.

        The tower runs as always; looks take what its own projections give on the way.
        """
        chosen = self.config.vision_feature_layer
        layers = chosen if isinstance(chosen, (list, tuple)) else [chosen]
        has_class = self.config.vision_feature_select_strategy == "default"
        if looks and not has_class:
            raise UserError(
                "the method looks at the vision tower's class token, which this model has not or "
                "sends as a patch (vision_feature_select_strategy=full)"
            )
        looked_at = {look: self._attention(look, layers[-1]) for look in looks}
        asked = [
            getattr(attention, name)
            for look, attention in looked_at.items()
            for name in PROJECTIONS[look.what]
        ]
        with outputs_of(asked) as made:
            states = self.tower(pixels, output_hidden_states=True).hidden_states
        selected = torch.cat([states[layer] for layer in layers], -1)
        seen = {look: _seen(look, attention, made) for look, attention in looked_at.items()}
        return TowerFeatures(
            selected[:, 1:] if has_class else selected,
            selected[:, 0] if has_class else None,
            seen,
        )

    def project(self, rows: torch.Tensor) -> torch.Tensor:
        """See :meth:`Family.project`."""
        return self.projector(rows)

    def _attention(self, look: Tower, selected: int) -> Any:
        """Return the attention that a look is about; ``selected`` numbers the hidden states."""
        layers = self.tower.encoder.layers
        selected = selected % (len(layers) + 1)
        producing = max(selected - 1, 0)
        named: dict[str | int, int | str] = {
            PRODUCING: producing,
            NEXT: min(selected, len(layers) - 1),
        }
        number = named.get(look.layer, look.layer)
        if not isinstance(number, int) or not 0 <= number < len(layers):
            raise UserError(f"tower layer {look.layer!r}: accepted are 0 to {len(layers) - 1}")
        return layers[number].self_attn


def _seen(look: Tower, attention: Any, made: dict[nn.Module, torch.Tensor]) -> torch.Tensor:
    """Return what a look saw, of what the tower's projections gave."""
    if look.what == "class_query":
        return made[attention.q_proj][:, 0]
    keys = made[attention.k_proj]
    if look.what == "keys":
        return keys
    query = made[attention.q_proj][:, :1]
    heads = attention.num_heads
    query, keys = (part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in (query, keys))
    scores = query.float() @ keys.float().transpose(-1, -2) * query.shape[-1] ** -0.5
    # Softmax over all rows; the class token's own column is left out.
    return scores.softmax(-1)[:, :, 0, 1:]


class LlavaNext(Llava):
    """LLaVA-NeXT: the whole picture and a grid of crops, without the padding of the grid."""

    def __init__(self, model: Any, config: Any) -> None:
        super().__init__(model, config)
        self.pack = model.pack_image_features

    def crops(
        self, pixels: torch.Tensor, sizes: torch.Tensor | None
    ) -> tuple[torch.Tensor, list[Picture]]:
        """See :meth:`Family.crops`; the stock model's own packing says where patches go."""
        from transformers.image_processing_utils import select_best_resolution

        if sizes is None:
            raise UserError("image_sizes is missing: pass all that the processor returns")
        vision = self.config.vision_config
        side = vision.image_size // vision.patch_size
        pinpoints = [tuple(point) for point in self.config.image_grid_pinpoints]
        inputs, pictures = [], []
        for given, size in zip(pixels, sizes.tolist(), strict=True):
            height, width = select_best_resolution(tuple(size), pinpoints)
            rows, columns = height // vision.image_size, width // vision.image_size
            number = rows * columns + 1
            inputs.append(given[:number])
            # The packing of numbers, from 1 on, says where each patch goes; a newline is 0.
            marks = torch.arange(1, number * side**2 + 1, dtype=torch.float64)
            packed, _ = self.pack(
                [marks.view(number, side**2, 1)],
                torch.tensor([size]),
                vision_feature_select_strategy=self.config.vision_feature_select_strategy,
                image_newline=torch.zeros(1, dtype=torch.float64),
            )
            order = packed[0].flatten().long()
            high = int((order == 0).sum())
            order = order[order > 0] - 1
            shape = high, (len(order) - side**2) // high
            pictures.append(Picture(number, order, (rows, columns), shape, tuple(size)))
        return torch.cat(inputs), pictures


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
    if getattr(config, "token_packer", None):
        return Packed(model, config)
    return LlavaNext(model, config) if config.model_type == "llava_next" else Llava(model, config)
