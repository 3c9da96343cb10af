"""Is a checkpoint's projector a TokenPacker?  Its tensors tell, its configuration does not."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from .files import WeightFiles

if TYPE_CHECKING:
    from .layouts import Checkpoint

PREFIX = "model.mm_projector."
#: Width and width of a head in the official class, where the files do not say.
WIDTH, HEAD = 1024, 128
#: Layers of the tower that its four levels need.
DEPTH = 23


def packer_of(config: Mapping[str, Any], weights: WeightFiles | None) -> dict[str, int] | None:
    """Return ``width`` and ``heads`` of a TokenPacker projector, None for another one."""
    names = weights.names if weights else None
    if names is None:
        there = config.get("mm_projector_type") == "tokenpacker"
    else:
        there = f"{PREFIX}clip_attn.in_proj_weight" in names
    if not there:
        return None
    shape = (weights.shapes if weights else {}).get(f"{PREFIX}ln_q_1.weight", (WIDTH,))
    return {"width": shape[0], "heads": max(1, shape[0] // HEAD)}


def packer_problems(checkpoint: Checkpoint) -> list[str]:
    """Return what is wrong with the projector of a checkpoint in the original format."""
    folder, config = checkpoint.folder, checkpoint.config
    if checkpoint.packer is None:
        kind = config.get("mm_projector_type", "linear")
        accepted = f"{folder}: mm_projector_type={kind!r}; accepted is 'mlp2x_gelu'"
        return [] if kind == "mlp2x_gelu" else [accepted + ", or the tensors of a TokenPacker"]
    found, factor = [], config.get("scale_factor")
    if type(factor) is not int or factor < 1:
        # The tensors have the same shapes for every factor.
        found.append(
            f"{folder}: scale_factor={factor!r}: a TokenPacker needs the edge of its blocks in "
            "config.json; published are 2, 3 and 4"
        )
    elif _edge(checkpoint) % factor:
        found.append(
            f"{folder}: scale_factor={factor}: does not divide the tower's {_edge(checkpoint)} "
            "patches a row"
        )
    if config.get("image_aspect_ratio") == "slice":
        found.append(f"{folder}: image_aspect_ratio='slice' (TokenPacker-HD): not supported")
    if config.get("mm_vision_select_feature", "patch") != "patch":
        found.append(f"{folder}: mm_vision_select_feature: a TokenPacker needs 'patch'")
    if isinstance(checkpoint.tower_layers, int) and checkpoint.tower_layers < DEPTH:
        found.append(
            f"{folder}: the vision tower has {checkpoint.tower_layers} layers: a TokenPacker looks "
            f"at states up to {DEPTH}"
        )
    return found


def _edge(checkpoint: Checkpoint) -> int:
    vision = checkpoint.tower.config if checkpoint.tower else None
    size, patch = ((vision or {}).get(key) for key in ("image_size", "patch_size"))
    if isinstance(size, int) and isinstance(patch, int) and min(size, patch) > 0:
        return size // patch
    return math.lcm(2, 3, 4)
