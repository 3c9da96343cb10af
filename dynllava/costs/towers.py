"""Vision towers and projectors of the families: sizes, rules for pictures, and their products."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dynllava.plan import Image, Text
from dynllava.plan.shapes import Span

from . import pictures
from .pictures import Size


@dataclass(frozen=True)
class Product:
    """A matrix product: ``count`` times m x k x n, of which k x n are weights if ``learned``."""

    m: int
    k: int
    n: int
    count: int = 1
    learned: bool = True

    @property
    def macs(self) -> int:
        """Multiply-accumulate operations."""
        return self.count * self.m * self.k * self.n


@dataclass(frozen=True)
class FamilyTower:
    """A family's vision tower and how it treats a picture.

    Attributes
    ----------
    family : str
        ``model_type``.
    hidden, layers, heads, intermediate, patch : int
    text : int
        Width of the language model.
    side : int
        Pixels of a crop's side; 0: pictures keep their own size.
    merge : int
        Patches of an image token's side.
    channels, frames : int
        Input channels, and frames of a patch (Qwen repeats a picture).
    class_token : bool
    gated : bool
        Whether the MLP has three matrices.
    window : int
        Pixels of an attention window's side; 0: none.
    full_layers : tuple of int
        Layers without windows.
    deep : int
        Further mergers (Qwen3-VL's deep features).
    pinpoints : tuple of (int, int)
    most_crops : int or None
    pixels : (int, int)
        Least and most pixels of a picture (Qwen).
    longest : int
        Longest side of a picture (SmolVLM, Idefics3, Mistral 3).
    tiles : (int, int)
        Least and most tiles (InternVL).
    """

    family: str
    hidden: int
    layers: int
    heads: int
    intermediate: int
    patch: int
    text: int
    side: int = 0
    merge: int = 1
    channels: int = 3
    frames: int = 1
    class_token: bool = False
    gated: bool = False
    window: int = 0
    full_layers: tuple[int, ...] = ()
    deep: int = 0
    pinpoints: tuple[Size, ...] = ()
    most_crops: int | None = None
    pixels: Size = (0, 0)
    longest: int = 0
    tiles: Size = (1, 12)

    def picture(self, height: int, width: int) -> Picture:
        """Return a picture of this size as the tower and the language model see it."""
        size, step = (height, width), self.patch * self.merge
        crop = self.side // self.patch, self.side // self.patch
        inner = crop[0] // self.merge, crop[1] // self.merge
        if self.family in ("llava_next", "llava_onevision"):
            best = pictures.best_pinpoint(size, self.pinpoints)
            grid = best[0] // self.patch, best[1] // self.patch
            if self.family == "llava_onevision":
                grid = best[0] // self.side * crop[0], best[1] // self.side * crop[1]
            rows, columns = pictures.unpadded(grid, size, crop[0], self.most_crops)
            count = 1 + (best[0] // self.side) * (best[1] // self.side)
            # A newline token behind each row is kept as text is.
            spans = (Image(*crop), Text(rows), Image(rows, columns))
            return Picture(self, (crop,) * count, spans)
        if self.family == "internvl":
            rows, columns = pictures.tiles(size, self.side, *self.tiles)
            count = rows * columns + (rows * columns > 1)
            return Picture(self, (crop,) * count, (Image(*inner, crops=count),))
        if self.family in ("smolvlm", "idefics3"):
            rows, columns = pictures.splits(size, self.longest, self.side)
            count = rows * columns + 1
            return Picture(self, (crop,) * count, (Image(*inner, crops=count),))
        if self.family == "mistral3":
            size = pictures.within(size, self.longest, step)
        else:
            size = pictures.smart_resize(size, step, *self.pixels)
        grid = size[0] // self.patch, size[1] // self.patch
        return Picture(self, (grid,), (Image(grid[0] // self.merge, grid[1] // self.merge),))

    def parameters(self) -> dict[str, int]:
        """Return parameters of tower and projector (biases of the blocks counted once a width)."""
        wide = self.channels * self.frames * self.patch**2
        block = 4 * self.hidden * (self.hidden + 1) + 4 * self.hidden
        block += (2 + self.gated) * self.hidden * self.intermediate
        block += (1 + self.gated) * self.intermediate + self.hidden
        side = self.side // self.patch
        places = (side * side + self.class_token) * self.hidden
        projector = sum((item.k + 1) * item.n for item in self._projector(1) if item.learned)
        return {"vision_tower": self.layers * block + wide * self.hidden + places,
                "projector": projector}  # fmt: skip

    def _projector(self, tokens: int) -> list[Product]:
        """Return the projector's products on ``tokens`` of its output rows."""
        wide = self.hidden * self.merge**2
        if self.family.startswith("qwen"):
            one = [Product(tokens, wide, wide), Product(tokens, wide, self.text)]
            return one * (1 + self.deep)
        if self.family in ("smolvlm", "idefics3"):
            return [Product(tokens, wide, self.text)]
        first = [Product(tokens, wide, self.hidden)] if self.family == "mistral3" else []
        width = self.hidden if first else wide
        return [*first, Product(tokens, width, self.text), Product(tokens, self.text, self.text)]

    def tower(self, crops: tuple[Size, ...]) -> list[Product]:
        """Return the tower's products on grids of patches."""
        found = []
        for rows, columns in crops:
            patches = rows * columns
            tokens = patches + self.class_token
            wide = self.channels * self.frames * self.patch**2
            found.append(Product(patches, wide, self.hidden))
            found.append(Product(tokens, self.hidden, 4 * self.hidden, self.layers))
            matrices = 2 + self.gated
            found.append(Product(tokens, self.hidden, self.intermediate, matrices * self.layers))
            whole = self.layers
            if self.window:
                whole = len(self.full_layers)
                units = rows // self.merge, columns // self.merge
                side = self.window // self.patch // self.merge
                for size in pictures.windows(units, side):
                    own = size * self.merge**2
                    among = 2 * (self.layers - whole)
                    found.append(Product(own, self.hidden, own, among, learned=False))
            found.append(Product(tokens, self.hidden, tokens, 2 * whole, learned=False))
        return found


@dataclass(frozen=True)
class Picture:
    """One picture of a size: what the tower runs on, and its tokens in the language model.

    Attributes
    ----------
    of : FamilyTower
    crops : tuple of (int, int)
        Grids of patches that the tower runs on.
    spans : tuple of Span
        The picture's tokens in order; newline tokens are text, as methods treat them.
    """

    of: FamilyTower
    crops: tuple[Size, ...]
    spans: tuple[Span, ...]

    @property
    def hidden(self) -> int:
        """Width of the tower."""
        return self.of.hidden

    @property
    def layers(self) -> int:
        """Layers of the tower."""
        return self.of.layers

    @property
    def heads(self) -> int:
        """Heads of the tower."""
        return self.of.heads

    @property
    def patches(self) -> int:
        """Patches of all crops."""
        return sum(rows * columns for rows, columns in self.crops)

    @property
    def tokens(self) -> int:
        """Rows of the tower, class tokens included."""
        return self.patches + self.of.class_token * len(self.crops)

    @property
    def image_tokens(self) -> int:
        """Image tokens in the language model, newline tokens left out."""
        return sum(span.tokens for span in self.spans if isinstance(span, Image))

    @property
    def projected(self) -> int:
        """Rows that leave the projector: padding of the crops is taken away behind it."""
        return self.patches // self.of.merge**2

    def tower_macs(self) -> int:
        """Return MACs of the tower."""
        return sum(item.macs for item in self.of.tower(self.crops))

    def projector_macs(self, rows: int | None = None) -> int:
        """Return MACs of the projector, on ``rows`` of its output rows where a method cut them."""
        count = self.projected if rows is None else rows
        return sum(item.macs for item in self.of._projector(count))

    def activations(self) -> int:
        """Return elements that the tower's layers read and write."""
        per_row = 8 * self.of.hidden + (2 + self.of.gated) * self.of.intermediate
        return self.of.layers * self.tokens * per_row


def tower_from_config(
    kind: str, vision: Mapping[str, Any], top: Mapping[str, Any], text: int,
    images: Mapping[str, Any],
) -> FamilyTower:  # fmt: skip
    """Return a family's tower from complete configurations.

    Parameters
    ----------
    kind : str
        ``model_type``.
    vision, top : mapping
        ``vision_config`` and the whole configuration, every field present.
    text : int
        Width of the language model.
    images : mapping
        ``preprocessor_config.json``; fields that it leaves out have the published values.
    """
    size = images.get("size") or {}
    patch = _one(vision["patch_size"])
    values: dict[str, Any] = {
        "family": kind,
        "hidden": vision.get("embed_dim") if kind == "qwen2_vl" else vision["hidden_size"],
        "layers": vision.get("num_hidden_layers") or vision.get("depth"),
        "heads": vision.get("num_attention_heads") or vision.get("num_heads"),
        "patch": patch,
        "text": text,
        "channels": vision.get("num_channels") or vision.get("in_channels") or 3,
    }
    if kind == "qwen2_vl":
        values["intermediate"] = int(values["hidden"] * vision["mlp_ratio"])
    else:
        values["intermediate"] = vision["intermediate_size"]
    if kind.startswith("qwen"):
        least = images.get("min_pixels") or size.get("shortest_edge") or 56 * 56
        most = images.get("max_pixels") or size.get("longest_edge") or 28 * 28 * 1280
        values |= {
            "merge": vision["spatial_merge_size"],
            "frames": vision["temporal_patch_size"],
            "pixels": (least, most),
        }
        if kind == "qwen2_5_vl":
            full = tuple(vision["fullatt_block_indexes"])
            values |= {"gated": True, "window": vision["window_size"], "full_layers": full}
        if kind == "qwen3_vl":
            values["deep"] = len(vision["deepstack_visual_indexes"])
        return FamilyTower(**values)
    if kind == "mistral3":
        longest = size.get("longest_edge", 1540)
        merge = top["spatial_merge_size"]
        return FamilyTower(**values, gated=True, merge=merge, longest=longest)
    values["side"] = _one(vision["image_size"])
    if kind in ("llava_next", "llava_onevision"):
        pinpoints = images.get("image_grid_pinpoints") or top["image_grid_pinpoints"]
        values["pinpoints"] = tuple((row[0], row[1]) for row in pinpoints)
        values["class_token"] = kind == "llava_next"
        if kind == "llava_onevision":
            aspect = str(top.get("vision_aspect_ratio") or "anyres_max_9")
            values["most_crops"] = int(aspect.removeprefix("anyres_max_"))
        return FamilyTower(**values)
    if kind == "internvl":
        tiles = images.get("min_patches", 1), images.get("max_patches", 12)
        merge = round(1 / top["downsample_ratio"])
        return FamilyTower(**values, class_token=True, merge=merge, tiles=tiles)
    longest = size.get("longest_edge", 4 * values["side"])
    return FamilyTower(**values, merge=top["scale_factor"], longest=longest)


def _one(value: Any) -> int:
    return int(value[0] if isinstance(value, list | tuple) else value)
