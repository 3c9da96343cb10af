"""What a checkpoint is, said before anything of it is loaded: layout, files, sizes, problems.

Works without torch and without weights, in milliseconds; loading uses the same answers.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Any

from dynllava.errors import UserError

from .families import FAMILIES, MODEL_TYPE, REFUSED
from .files import (
    PROCESSOR_FILES,
    TEMPLATE_FILES,
    TOKENIZER_FILES,
    NoWeights,
    WeightFiles,
    licence_files,
    present,
    read_config,
    weight_files,
)
from .hub import EMBEDDED, Location, download_hint, fetch, locate, missing_sizes, offline
from .packer import packer_of, packer_problems
from .rules import stored_problems, token_problems, vision_problems
from .tower import Tower, find_tower

#: ``model_type`` of LLaVA-1.5's original format: released files, later code, Dynamic-LLaVA.
ORIGINAL_TYPES = ("llava_llama", "dynamic_llava_llama")

PREDICTORS = {
    "image": ("image_predictor.", "model.image_score_predictor."),
    "output": ("output_predictor.", "model.output_text_score_predictor."),
}
IMAGE_TOKEN = "<image>"


class Layout(StrEnum):
    """How a checkpoint is laid out."""

    DYNLLAVA = "dynllava"
    LLAVA_HF = "llava-hf"
    ORIGINAL = "original LLaVA"
    OFFICIAL = "official Dynamic-LLaVA"
    STOCK = "stock transformers"
    OTHER = "other"


LOADABLE = (Layout.DYNLLAVA, Layout.LLAVA_HF, Layout.ORIGINAL, Layout.OFFICIAL, Layout.STOCK)
#: Families whose checkpoints have a loader of their own (LLaVA-1.5's several formats).
OWN_LOADER = ("llava",)
#: What stands for an image in the prompts of a family, where it is not ``<image>``.
IMAGE_TOKENS = {
    "qwen2_vl": "<|image_pad|>",
    "qwen2_5_vl": "<|image_pad|>",
    "qwen3_vl": "<|image_pad|>",
    "internvl": "<IMG_CONTEXT>",
    "mistral3": "[IMG]",
}


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint as its files describe it.

    Attributes
    ----------
    name : str
        As the caller wrote it.
    source : str
        ``"embedded"``, ``"folder"`` or ``"hub"``.
    folder : Path
    layout : Layout
    model_type : str
    config : mapping
        ``config.json`` as stored.
    weights : WeightFiles or None
        None if there are none (then a problem says so).
    downloads : mapping of str to int or None
        Weight files that loading would download, with their bytes where known.
    tower : Tower or None
        The vision tower of a checkpoint in the original format.
    vision_tower : str or None
        The caller's choice of it.
    tokenizer_files, processor_files, template_files, licences : tuple of Path
    image_token : str
    image_token_id : int or None
        None: the format has no such token, and loading adds a row for it.
    vocabulary : int or None
        Rows of the embedding.
    select_layer : int or list of int or None
        Layer of the vision tower that is used.
    tower_layers : int or None
    predictors : tuple of str
        ``"image"`` and ``"output"``, those whose weights are there.
    packer : dict or None
        ``width`` and ``heads`` of a TokenPacker projector, told by its tensors.
    problems : tuple of str
        What keeps the checkpoint from running, one line each that says what to do.
    notes : tuple of str
        What is worth knowing and keeps nothing from running.
    """

    name: str
    source: str
    folder: Path
    layout: Layout
    model_type: str
    config: Mapping[str, Any]
    weights: WeightFiles | None
    downloads: Mapping[str, int | None]
    tower: Tower | None
    vision_tower: str | None
    tokenizer_files: tuple[Path, ...]
    processor_files: tuple[Path, ...]
    template_files: tuple[Path, ...]
    licences: tuple[Path, ...]
    image_token: str
    image_token_id: int | None
    vocabulary: int | None
    select_layer: int | list[int] | None
    tower_layers: int | None
    predictors: tuple[str, ...]
    packer: dict[str, int] | None = None
    problems: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def is_original(self) -> bool:
        """Whether tensors and configuration are in LLaVA's original format."""
        return self.layout in (Layout.ORIGINAL, Layout.OFFICIAL)

    @property
    def stored(self) -> WeightFiles:
        """The weights of a checkpoint without problems."""
        assert self.weights is not None
        return self.weights

    @property
    def eyes(self) -> Tower:
        """The vision tower of a checkpoint in the original format, without problems."""
        assert self.tower is not None
        return self.tower

    def require(self) -> Checkpoint:
        """Return self, or raise :class:`UserError` with the first problem."""
        if self.problems:
            raise UserError(self.problems[0])
        return self


def inspect(pretrained: str | Path, vision_tower: str | Path | None = None) -> Checkpoint:
    """Return what a checkpoint is; of a hub model only the small files are fetched.

    Parameters
    ----------
    pretrained : str or Path
        See :func:`dynllava.models.hub.locate`.
    vision_tower : str or Path, optional
        Folder or hub name to take the vision tower from, instead of the one that a checkpoint in
        the original format names.

    Raises
    ------
    UserError
        If there is no folder with a readable ``config.json``.  Everything else is among
        :attr:`Checkpoint.problems`.
    """
    location = locate(pretrained)
    config = read_config(location.folder)
    return _inspect(location, config, vision_tower)


def download(checkpoint: Checkpoint) -> Checkpoint:
    """Return the checkpoint with all its weight files on disk (and its vision tower's)."""
    missing = False
    if checkpoint.downloads:
        fetch(checkpoint.name, tuple(checkpoint.downloads))
        missing = True
    tower = checkpoint.tower
    if tower is not None and tower.downloads:
        fetch(tower.name, tuple(tower.downloads))
        missing = True
    return inspect(checkpoint.name, checkpoint.vision_tower) if missing else checkpoint


def check_methods(checkpoint: Checkpoint, methods: Iterable[str]) -> None:
    """Refuse methods, as they are written, that need predictors the checkpoint has not.

    Parameters
    ----------
    checkpoint : Checkpoint
    methods : iterable of str
        Names, with parameters and compositions: ``fastv:k=2+h2o:heavy=0.25``.

    Raises
    ------
    UserError
        In one line, before anything is loaded.
    """
    named = any(re.search(r"(^|\+)\s*dynamic_llava\b", method) for method in methods)
    if named and not checkpoint.predictors:
        raise UserError(
            f"{checkpoint.name}: has no trained predictors ({checkpoint.layout.value} format), so "
            "no dynamic_llava; accepted are other methods, or train predictors first (dynllava "
            "train)"
        )


def layout_of(config: Mapping[str, Any]) -> Layout:
    """Return the layout that a ``config.json`` tells.

    Released files of the original format say ``"model_type": "llava"``, as llava-hf's do: what
    tells them apart is ``text_config`` against the ``mm_*`` fields.
    """
    kind = config.get("model_type")
    if kind == MODEL_TYPE:
        return Layout.DYNLLAVA
    original = "text_config" not in config and any(
        config.get(key) is not None for key in ("mm_vision_tower", "mm_projector_type")
    )
    if kind in ORIGINAL_TYPES or (kind == "llava" and original):
        trained = kind == "dynamic_llava_llama" or config.get("sparse_config")
        return Layout.OFFICIAL if trained else Layout.ORIGINAL
    if isinstance(kind, str) and kind in FAMILIES and kind not in OWN_LOADER:
        return Layout.STOCK
    return Layout.LLAVA_HF if kind == "llava" and not original else Layout.OTHER


def _inspect(
    location: Location, config: dict[str, Any], vision_tower: str | Path | None
) -> Checkpoint:
    folder, layout = location.folder, layout_of(config)
    original = layout in (Layout.ORIGINAL, Layout.OFFICIAL)
    problems = _format_problems(folder, layout, config)
    weights: WeightFiles | None = None
    downloads: dict[str, int | None] = {}
    try:
        weights, downloads = _weights(location)
    except UserError as error:
        problems.append(str(error))
    names = weights.names if weights else None
    tower = None
    if original:
        tower = find_tower(config, location, names, vision_tower)
        problems += [tower.problem] if tower.problem else []
    elif vision_tower is not None:
        problems.append(
            f"vision_tower={vision_tower}: {folder} is in {layout.value} format, which has its "
            "tower inside; accepted for checkpoints in the original format only"
        )
    vision = (tower.config if tower else config.get("vision_config")) or {}
    vision = vision if isinstance(vision, dict) else {}
    checkpoint = Checkpoint(
        name=location.name,
        source=location.source,
        folder=folder,
        layout=layout,
        model_type=str(config.get("model_type")),
        config=config,
        weights=weights,
        downloads=downloads,
        tower=tower,
        vision_tower=None if vision_tower is None else str(vision_tower),
        tokenizer_files=present(folder, TOKENIZER_FILES),
        processor_files=present(folder, PROCESSOR_FILES),
        template_files=present(folder, TEMPLATE_FILES),
        licences=licence_files(folder),
        image_token=IMAGE_TOKENS.get(str(config.get("model_type")), IMAGE_TOKEN),
        image_token_id=None if original else _image_token_id(config),
        vocabulary=_vocabulary(config, weights),
        select_layer=config.get("mm_vision_select_layer" if original else "vision_feature_layer"),
        tower_layers=vision.get("num_hidden_layers"),
        predictors=_predictors(config, names),
        packer=packer_of(config, weights) if original else None,
    )
    if original:
        problems += packer_problems(checkpoint)
    if layout in LOADABLE:
        problems += vision_problems(checkpoint) or stored_problems(checkpoint)
        found, notes = token_problems(checkpoint)
        return replace(checkpoint, problems=tuple(problems + found), notes=tuple(notes))
    return replace(checkpoint, problems=tuple(problems))


def _format_problems(folder: Path, layout: Layout, config: Mapping[str, Any]) -> list[str]:
    """Return what cannot be loaded whatever the files are."""
    if layout is Layout.OTHER:
        kind = config.get("model_type")
        why = f" ({REFUSED[kind]})" if isinstance(kind, str) and kind in REFUSED else ""
        accepted = [MODEL_TYPE, *ORIGINAL_TYPES, *FAMILIES]
        return [f"{folder}: model_type={kind!r}{why}; accepted are {', '.join(accepted)}"]
    if layout is Layout.STOCK and config.get("quantization_config"):
        return [
            f"{folder}: quantised (quantization_config in config.json); accepted are float32 and "
            "half-precision weights"
        ]
    if layout not in (Layout.ORIGINAL, Layout.OFFICIAL):
        return []
    found = []
    if str(config.get("mm_patch_merge_type", "flat")).startswith("spatial"):
        found.append(
            f"{folder}: mm_patch_merge_type={config['mm_patch_merge_type']!r} is LLaVA-1.6; "
            "accepted is LLaVA-1.5 ('flat')"
        )
    if config.get("mm_use_im_start_end"):
        found.append(f"{folder}: mm_use_im_start_end=true; accepted is false, as in LLaVA-1.5")
    return found


def _weights(location: Location) -> tuple[WeightFiles, dict[str, int | None]]:
    """Return the weight files, and what of them loading would still download."""
    online = location.source == "hub" and not offline()
    try:
        found = weight_files(location.folder)
    except NoWeights as error:
        sizes = missing_sizes(location.name, ("model.safetensors", "pytorch_model.bin"))
        known = {name: size for name, size in sizes.items() if size is not None}
        if not online or not known:
            raise UserError(f"{error}{download_hint(location.name, location.source)}") from None
        name = min(known)
        return WeightFiles(name.rpartition(".")[2], None, (), (name,)), {name: known[name]}
    if not found.missing:
        return found, {}
    if online:
        return found, missing_sizes(location.name, found.missing)
    more = f" and {len(found.missing) - 1} more" if len(found.missing) > 1 else ""
    raise UserError(
        f"{location.folder / found.missing[0]}: named by the index but missing{more}; download "
        "it again, or finish the download that was interrupted"
    )


def _image_token_id(config: Mapping[str, Any]) -> int | None:
    value = config.get("image_token_index", config.get("image_token_id"))
    if value is None and config.get("model_type") in ("llava", MODEL_TYPE):
        return 32000
    return value if isinstance(value, int) else None


def _vocabulary(config: Mapping[str, Any], weights: WeightFiles | None) -> int | None:
    """Return the rows of the embedding: as stored, else as the configuration says."""
    for name, shape in (weights.shapes if weights else {}).items():
        if name.endswith("embed_tokens.weight"):
            return shape[0]
    text = config.get("text_config")
    rows = (text if isinstance(text, dict) else config).get("vocab_size", config.get("vocab_size"))
    return rows if isinstance(rows, int) else None


def _predictors(config: Mapping[str, Any], names: frozenset[str] | None) -> tuple[str, ...]:
    if names is not None:
        return tuple(
            kind
            for kind, prefixes in PREDICTORS.items()
            if any(name.startswith(prefixes) for name in names)
        )
    sparse = config.get("sparse_config")
    sparse = sparse if isinstance(sparse, dict) else {}
    wanted = {
        "image": sparse.get("use_vision_predictor", bool(sparse)),
        "output": sparse.get("use_output_text_predictor", bool(sparse)),
    }
    return tuple(kind for kind, there in wanted.items() if there)


__all__ = ["EMBEDDED", "Checkpoint", "Layout", "inspect", "layout_of"]
