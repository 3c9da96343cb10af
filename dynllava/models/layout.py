"""Where each image token lies in its picture: crops, grids, newline tokens, by family.

The rules are those of the stock models' own packing (``pack_image_features``, ``grid_thw``, pixel
shuffle); they need the picture's size only, so they serve the cost ledger too.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from dynllava.errors import UserError

from .calls import PromptImages
from .families import MODEL_TYPE


@dataclass(frozen=True)
class Grid:
    """Patch tokens in raster order, with one newline token behind each row if ``newlines``.

    ``tail`` further tokens that are no patches follow the grid.
    """

    rows: int
    columns: int
    newlines: bool = False
    tail: int = 0

    @property
    def patches(self) -> int:
        """Tokens that stand for a part of the picture."""
        return self.rows * self.columns

    @property
    def tokens(self) -> int:
        """All tokens."""
        return self.patches + (self.rows if self.newlines else 0) + self.tail


@dataclass(frozen=True)
class ImageLayout:
    """One picture: its grids (crops, frames) in token order."""

    grids: tuple[Grid, ...]

    @property
    def tokens(self) -> int:
        """Tokens of the picture, newline tokens included."""
        return sum(grid.tokens for grid in self.grids)

    @property
    def patches(self) -> int:
        """Tokens that stand for a part of the picture."""
        return sum(grid.patches for grid in self.grids)

    def places(self) -> list[tuple[int, int, int]]:
        """Return (grid, row, column) of each token; column -1 marks a newline token."""
        found = []
        for index, grid in enumerate(self.grids):
            for row in range(grid.rows):
                found += [(index, row, column) for column in range(grid.columns)]
                if grid.newlines:
                    found.append((index, row, -1))
            found += [(index, grid.rows, -1)] * grid.tail
        return found


def square(tokens: int) -> Grid:
    """Return the grid of a square picture, or one row where the number is no square."""
    side = math.isqrt(tokens)
    return Grid(side, side) if side * side == tokens else Grid(1, tokens)


def any_resolution(
    size: tuple[int, int],
    pinpoints: Sequence[Sequence[int]],
    crop: int,
    side: int,
    most_crops: int | None = None,
) -> ImageLayout:
    """Return the layout of LLaVA-NeXT (and OneVision, with ``most_crops``) for one picture.

    Parameters
    ----------
    size : tuple of int
        (height, width) in pixels.
    pinpoints : sequence
        Resolutions (height, width) that a picture may be resized to.
    crop : int
        Pixels of a crop's side.
    side : int
        Patches of a crop's side.
    most_crops : int, optional
        OneVision: grids of more than this many crops' patches are scaled down.
    """
    from transformers.image_processing_utils import select_best_resolution

    best = select_best_resolution(tuple(size), [tuple(pinpoint) for pinpoint in pinpoints])
    rows, columns = best[0] // crop * side, best[1] // crop * side
    rows, columns = _unpadded(rows, columns, size)
    if most_crops is not None:
        ratio = math.sqrt(rows * columns / (most_crops * side**2))
        if ratio > 1.1:
            rows, columns = int(rows // ratio), int(columns // ratio)
    return ImageLayout((Grid(side, side), Grid(rows, columns, newlines=True)))


def _unpadded(rows: int, columns: int, size: tuple[int, int]) -> tuple[int, int]:
    """Return the grid without the padding that kept the picture's proportions."""
    height, width = size
    if width / height > columns / rows:
        kept = int(round(height * columns / width, 7))
        return rows - 2 * ((rows - kept) // 2), columns
    kept = int(round(width * rows / height, 7))
    return rows, columns - 2 * ((columns - kept) // 2)


def layouts(config: Any, given: dict[str, Any], runs: Sequence[int]) -> list[ImageLayout]:
    """Return the layout of every picture of a call, in order.

    Parameters
    ----------
    config : PretrainedConfig
        The outer model's.
    given : dict
        What the model is called with (``pixel_values``, ``image_sizes``, ``image_grid_thw``).
    runs : sequence of int
        Lengths of the unbroken runs of image placeholders, all rows in order; families whose
        tensors do not say which crop belongs to which picture are read from these.
    """
    kind = config.model_type
    if kind.startswith("qwen"):
        merge = config.vision_config.spatial_merge_size
        grids = _needed(given, "image_grid_thw").tolist()
        for number, (_, rows, columns) in enumerate(grids):
            if rows < merge or columns < merge:
                raise UserError(
                    f"image {number} has {rows} x {columns} patches: accepted are at least "
                    f"{merge} x {merge}, one image token"
                )
        return [
            ImageLayout((Grid(rows // merge, columns // merge),) * frames)
            for frames, rows, columns in grids
        ]
    if kind in ("llava_next", "llava_onevision"):
        return _any_resolution_layouts(config, given)
    if kind == "mistral3":
        step = config.vision_config.patch_size * config.spatial_merge_size
        sizes = _needed(given, "image_sizes").tolist()
        return [ImageLayout((Grid(height // step, width // step),)) for height, width in sizes]
    if kind == "internvl":
        return [ImageLayout(_crops(run, config.image_seq_length)) for run in runs]
    if kind in ("smolvlm", "idefics3"):
        vision = config.vision_config
        tile = (vision.image_size // vision.patch_size // config.scale_factor) ** 2
        return [ImageLayout(_crops(run, tile)) for run in runs]
    if kind in ("llava", MODEL_TYPE):
        one = llava_tokens(config)
        if sum(runs) % one:
            return [ImageLayout((Grid(1, run),)) for run in runs]
        return [ImageLayout((square(one),))] * (sum(runs) // one)
    raise UserError(f"no image layout is known for model_type={kind!r}")


def llava_tokens(config: Any) -> int:
    """Return the tokens of a LLaVA-1.5 picture.

    They follow from the tower: image_seq_length is left out of published files, and its default is
    one tower's.
    """
    side = config.vision_config.image_size // config.vision_config.patch_size
    packer = getattr(config, "token_packer", None)
    if packer:
        side //= packer["scale_factor"]
    return side * side + (config.vision_feature_select_strategy == "full")


def check_llava_images(config: Any, is_image: torch.Tensor, images: int) -> None:
    """Refuse rows whose image placeholders [B, L] do not fit ``images`` pictures of LLaVA-1.5."""
    tokens, counts = llava_tokens(config), is_image.sum(1).tolist()
    for row, count in enumerate(counts):
        if count % tokens:
            raise UserError(
                f"row {row} has {count} image positions: accepted are whole images of {tokens}"
            )
    wanted = sum(counts) // tokens
    if wanted != images:
        raise UserError(f"the rows have places for {wanted} images but {images} were given")


def image_map(config: Any, given: dict[str, Any], is_image: torch.Tensor) -> PromptImages:
    """Return where the images of a call lie.

    Parameters
    ----------
    config : PretrainedConfig
    given : dict
        What the model is called with.
    is_image : Tensor [B, L] bool
        Image placeholders, newline tokens included.

    Raises
    ------
    UserError
        If a row's placeholders are not those of whole pictures, in order.
    """
    marks = is_image.tolist()
    pictures = iter(layouts(config, given, [run for row in marks for run in _runs(row)]))
    patches, grids, found_in = [], [], []
    for number, row in enumerate(marks):
        wanted = sum(row)
        found: list[ImageLayout] = []
        while sum(layout.tokens for layout in found) < wanted:
            picture = next(pictures, None)
            if picture is None:
                raise UserError(f"row {number} has more image placeholders than images were given")
            found.append(picture)
        tokens = sum(layout.tokens for layout in found)
        if tokens != wanted:
            raise UserError(
                f"row {number} has {wanted} image placeholders: its images have {tokens} tokens"
            )
        kinds = iter([place[2] >= 0 for layout in found for place in layout.places()])
        patches.append([mark and next(kinds) for mark in row])
        grids.append([(grid.rows, grid.columns) for layout in found for grid in layout.grids])
        found_in.append([layout.patches for layout in found])
    if next(pictures, None) is not None:
        raise UserError("more images were given than rows have placeholders for")
    return PromptImages(torch.tensor(patches, device=is_image.device), grids, found_in)


def _needed(given: dict[str, Any], name: str) -> torch.Tensor:
    value = given.get(name)
    if value is None:
        raise UserError(f"{name} is missing: pass all that the processor returns")
    return value


def _runs(row: Sequence[bool]) -> list[int]:
    """Return the lengths of a row's unbroken runs of placeholders."""
    return [sum(1 for _ in group) for mark, group in itertools.groupby(row) if mark]


def _crops(run: int, tile: int) -> tuple[Grid, ...]:
    return (square(tile),) * (run // tile) if run % tile == 0 else (Grid(1, run),)


def _any_resolution_layouts(config: Any, given: dict[str, Any]) -> list[ImageLayout]:
    vision = config.vision_config
    side = vision.image_size // vision.patch_size
    one_vision = config.model_type == "llava_onevision"
    aspect = given.get("vision_aspect_ratio") or getattr(config, "vision_aspect_ratio", None) or ""
    most = int(aspect.removeprefix("anyres_max_")) if one_vision else None
    sizes = _needed(given, "image_sizes").tolist()
    counts = given.get("batch_num_images")
    alone = [True] * len(sizes)
    if counts is not None:
        alone = [count == 1 for count in counts.tolist() for _ in range(count)]
    return [
        any_resolution(size, config.image_grid_pinpoints, vision.image_size, side, most)
        if single
        else ImageLayout((Grid(side, side, tail=1),))
        for size, single in zip(sizes, alone, strict=True)
    ]
