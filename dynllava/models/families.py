"""The model families that can be wrapped: where their text model is, and what is refused.

Everything is read from stock transformers classes; a family is one line of :data:`FAMILIES`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from dynllava.errors import UserError


@dataclass(frozen=True)
class Family:
    """One family of vision-language models.

    Attributes
    ----------
    model_type : str
        ``config.model_type`` of its checkpoints.
    text : str
        Name of the text model inside ``model.model``.
    early : bool
        Whether cuts before the projector are supported.
    """

    model_type: str
    text: str = "language_model"
    early: bool = False


FAMILIES = {
    family.model_type: family
    for family in (
        Family("llava", early=True),
        Family("llava_next"),
        Family("llava_onevision"),
        Family("qwen2_vl"),
        Family("qwen2_5_vl"),
        Family("qwen3_vl"),
        Family("internvl"),
        Family("smolvlm", text="text_model"),
        Family("idefics3", text="text_model"),
        Family("mistral3"),
    )
}

REFUSED = {
    "gemma3": "its image tokens see each other in both directions",
    "mllama": "images enter by cross-attention, not as tokens",
    "paligemma": "its prompt tokens see each other in both directions",
    "llava_next_video": "videos are not supported",
    "video_llava": "videos are not supported",
    "llama4": "its layers attend to chunks",
    "blip-2": "images enter as queries of a Q-Former",
    "instructblip": "images enter as queries of a Q-Former",
}


def family_of(config: Any) -> Family:
    """Return the family of a model's configuration.

    Raises
    ------
    UserError
        For a model type that is not supported, with the reason where it is known.
    """
    kind = getattr(config, "model_type", None)
    if kind in FAMILIES:
        return FAMILIES[kind]
    reason = f" ({REFUSED[kind]})" if kind in REFUSED else ""
    raise UserError(
        f"model_type={kind!r} is not supported{reason}: accepted are {', '.join(sorted(FAMILIES))}"
    )


def image_token(config: Any) -> int:
    """Return the id that stands for an image token in ``input_ids``."""
    for name in ("image_token_id", "image_token_index"):
        value = getattr(config, name, None)
        if value is not None:
            return int(value)
    raise UserError(f"{config.model_type}: the configuration names no image token")


def rotary_axes(text_config: Any) -> int:
    """Return how many axes a rotary position has: 1, or 3 (time, height, width)."""
    rope = getattr(text_config, "rope_parameters", None) or {}
    return 3 if "mrope_section" in rope else 1


def check_text_model(text_config: Any) -> None:
    """Refuse text models whose layers do not all attend to the whole sequence.

    Raises
    ------
    UserError
        For sliding windows, chunks, linear attention.
    """
    kinds = set(getattr(text_config, "layer_types", None) or ["full_attention"])
    others = sorted(kinds - {"full_attention"})
    if not getattr(text_config, "layer_types", None) and (
        getattr(text_config, "sliding_window", None) is not None
        and getattr(text_config, "use_sliding_window", True)
    ):
        others = ["sliding_attention"]
    if others:
        raise UserError(
            f"text model with {', '.join(others)} layers: accepted are models whose layers all "
            "attend to the whole sequence"
        )
