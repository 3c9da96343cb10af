"""The vision tower of a checkpoint in LLaVA's original format: named there, kept elsewhere."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dynllava.errors import UserError

from .files import NoWeights, WeightFiles, read_config, weight_files
from .hub import SMALL_FILES, Location, download_hint, fetch, missing_sizes, offline

INSIDE = ("model.vision_tower.", "vision_tower.")
#: Vision towers that checkpoints name and whose sizes are known without their repository.
KNOWN_TOWERS = {
    "openai/clip-vit-large-patch14-336": {
        "model_type": "clip_vision_model",
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "image_size": 336,
        "patch_size": 14,
        "projection_dim": 768,
    }
}


@dataclass(frozen=True)
class Tower:
    """A vision tower.

    Attributes
    ----------
    name : str
        As the checkpoint, or the caller, names it.
    inside : bool
        Its weights are in the checkpoint's own files.
    folder : Path or None
        Where its configuration (and, unless ``inside``, its weights) were found.
    source : str
        ``"checkpoint"``, ``"folder"``, ``"hub"``, or ``"missing"``.
    config : dict or None
        Its vision configuration.
    weights : WeightFiles or None
    downloads : mapping of str to int or None
        Weight files that loading would download, with their bytes where known.
    problem : str or None
        Why it cannot be used: one line that says what to do.
    """

    name: str
    inside: bool
    folder: Path | None
    source: str
    config: dict[str, Any] | None
    weights: WeightFiles | None
    downloads: Mapping[str, int | None]
    problem: str | None = None


def find_tower(
    config: Mapping[str, Any],
    location: Location,
    names: frozenset[str] | None,
    override: str | Path | None,
) -> Tower:
    """Return the vision tower of a checkpoint in the original format.

    Looked for in this order: ``override``; inside the checkpoint; a folder of its name in, beside
    or (last part of the name) beside the checkpoint, or in the working directory; the hub's cache
    that the checkpoint lies in; the hub.

    Parameters
    ----------
    config : mapping
        The checkpoint's ``config.json``.
    location : Location
        Of the checkpoint.
    names : frozenset of str or None
        Its tensors, where known.
    override : str or Path or None
        Folder or hub name to use instead.
    """
    name = str(override or config.get("mm_vision_tower") or config.get("vision_tower") or "")
    inside = override is None and any(item.startswith(INSIDE) for item in names or ())
    folder, source, error = _folder_of(name, location, override is not None)
    if folder is None:
        known = KNOWN_TOWERS.get(name)
        if inside and known:
            return Tower(name, True, None, "checkpoint", dict(known), None, {})
        return Tower(name, inside, None, "missing", known, None, {}, _missing(name, inside, error))
    try:
        stored = read_config(folder)
        vision = stored.get("vision_config", stored)
        if inside:
            return Tower(name, True, folder, "checkpoint", vision, None, {})
        weights, downloads = _weights(name, folder, source)
    except UserError as bad:
        return Tower(name, inside, folder, source, None, None, {}, f"vision tower {name!r}: {bad}")
    return Tower(name, False, folder, source, vision, weights, downloads)


def _folder_of(name: str, location: Location, override: bool) -> tuple[Path | None, str, str]:
    """Return folder, source, and why there is none."""
    here = location.folder
    places = [Path(name).expanduser()]
    if not override:
        places = [here / name, here.parent / name, here.parent / Path(name).name, *places]
    for place in places:
        if name and (place / "config.json").is_file():
            return place, "folder", ""
    if not name or Path(name).is_absolute() or name.startswith((".", "~")):
        return None, "missing", "no such folder"
    error = ""
    for cache in dict.fromkeys((location.cache_dir, None)):
        try:
            return fetch(name, SMALL_FILES, cache), "hub", ""
        except UserError as missing:
            error = str(missing)
    return None, "missing", error


def _weights(
    name: str, folder: Path, source: str
) -> tuple[WeightFiles | None, dict[str, int | None]]:
    try:
        found = weight_files(folder)
    except NoWeights as error:
        wanted = ("model.safetensors", "pytorch_model.bin")
        sizes = {k: v for k, v in missing_sizes(name, wanted).items() if v is not None}
        if source != "hub" or offline() or not sizes:
            raise UserError(f"{error}{download_hint(name, source)}") from None
        first = min(sizes)
        return WeightFiles(first.rpartition(".")[2], None, (), (first,)), {first: sizes[first]}
    if not found.missing:
        return found, {}
    if source == "hub" and not offline():
        return found, missing_sizes(name, found.missing)
    raise UserError(f"{folder / found.missing[0]}: named by the index but missing")


def _missing(name: str, inside: bool, error: str) -> str:
    if not name:
        return (
            "vision tower '' not found: the checkpoint names none (mm_vision_tower in "
            "config.json); give vision_tower=FOLDER"
        )
    what = "configuration" if inside else "weights"
    return (
        f"vision tower {name!r} not found (its {what} are not in the checkpoint): {error}; "
        "put its folder beside the checkpoint, or give vision_tower=FOLDER"
    )
