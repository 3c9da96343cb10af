"""The model families that can be wrapped: where their text model is, and what is refused.

Everything is read from stock transformers classes; a family is one line of :data:`FAMILIES`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dynllava.errors import UserError
from dynllava.plan import Plan, Tower

if TYPE_CHECKING:
    from dynllava.methods.base import Method


@dataclass(frozen=True)
class Family:
    """One family of vision-language models.

    Attributes
    ----------
    model_type : str
        ``config.model_type`` of its checkpoints.
    text : str
        Name of the text model inside ``model.model``.
    axes : int
        Axes of a rotary position: 1, or 3 (time, height, width).
    crops : bool
        Pictures are cut into crops that the tower sees one by one.
    no_features : str
        Why methods cannot choose before the projector; empty = they can.
    """

    model_type: str
    text: str = "language_model"
    axes: int = 1
    crops: bool = False
    no_features: str = ""


MODEL_TYPE = "dynamic_llava"
"""``model_type`` of our own model class: LLaVA-1.5 with predictors."""

NO_CLASS = "its vision tower has no class token"
SHUFFLED = (
    "its class token attends to patches, and pixel shuffle makes one token of several before the "
    "projector"
)
FAMILIES = {
    family.model_type: family
    for family in (
        Family("llava"),
        Family("llava_next", crops=True),
        Family("llava_onevision", crops=True, no_features=NO_CLASS),
        Family("qwen2_vl", axes=3, no_features=NO_CLASS),
        Family("qwen2_5_vl", axes=3, no_features=NO_CLASS),
        Family("qwen3_vl", axes=3, no_features=NO_CLASS),
        Family("internvl", no_features=SHUFFLED),
        Family("smolvlm", text="text_model", no_features=NO_CLASS),
        Family("idefics3", text="text_model", no_features=NO_CLASS),
        Family("mistral3", no_features=NO_CLASS),
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
    if kind == MODEL_TYPE:
        kind = "llava"
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


def refusal(family: Family, method: Method, plan: Plan) -> str:
    """Return why a method is not defined for a family, empty if it is.

    Parameters
    ----------
    family : Family
    method : Method
    plan : Plan
        Its plan for some number of layers.
    """
    stages = {cut.stage: cut for cut in plan.cuts if cut.early}
    if "pixels" in stages and family.model_type != "llava":
        return (
            "it resizes pictures that all have one size; here the processor sets a picture's size"
        )
    if "features" in stages:
        cut = stages["features"]
        looks = any(isinstance(look, Tower) for look in cut.looks)
        if family.no_features:
            return family.no_features if looks else "rows before its projector cannot be chosen"
        if family.crops and method.has("rows") and not cut.crops:
            return "its merged rows have no place among the newline tokens of a grid of crops"
    if family.axes > 1 and plan.positions != "original":
        return (
            f"{plan.positions} positions are not defined where positions have {family.axes} axes; "
            "accepted are original positions"
        )
    return ""


def check_method(config: Any, method: Method, plan: Plan) -> None:
    """Refuse a method that is not defined for a model.

    Raises
    ------
    UserError
        With the reason.
    """
    family = family_of(config)
    reason = refusal(family, method, plan)
    if reason:
        raise UserError(f"{method.name} with {family.model_type}: {reason}")
    if getattr(config, "token_packer", None) and any(cut.stage == "pixels" for cut in plan.cuts):
        raise UserError(
            f"{method.name} with TokenPacker: its queries stand for blocks of patches of one size; "
            "accepted are methods that act behind the projector"
        )
    check_class_token(config, method, plan)


def check_class_token(config: Any, method: Method, plan: Plan) -> None:
    """Refuse a look at the tower's class token where it is not sent as one.

    Raises
    ------
    UserError
        If the model sends all rows of its tower.
    """
    looks = any(isinstance(look, Tower) for look in plan.looks)
    if looks and config.vision_feature_select_strategy != "default":
        raise UserError(
            f"{method.name} looks at the vision tower's class token, which this model has not or "
            "sends as a patch (vision_feature_select_strategy=full)"
        )


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
