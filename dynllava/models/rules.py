"""Checks of a described checkpoint: tower, vocabulary and tokenizer must fit together."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .layouts import Checkpoint

IMAGE_NAMES = ("<image>", "<|image_pad|>", "<IMG_CONTEXT>", "[IMG]")
_INSTRUCT = "model.instruct_score_predictor."
_VISION_KEYS = ("image_size", "patch_size", "num_hidden_layers", "hidden_size")


def vision_problems(checkpoint: Checkpoint) -> list[str]:
    """Return what is wrong with the tower: sizes, and the layer that is taken from it."""
    config = checkpoint.tower.config if checkpoint.tower else checkpoint.config.get("vision_config")
    if not isinstance(config, dict):
        return []
    problems = [
        f"{checkpoint.folder}: vision tower has {key}={config[key]!r}: accepted is a number from 1"
        for key in _VISION_KEYS
        if key in config and not _positive(config[key])
    ]
    field = "mm_vision_select_layer" if checkpoint.is_original else "vision_feature_layer"
    depth, layers = checkpoint.tower_layers, checkpoint.select_layer
    if not isinstance(depth, int) or layers is None or problems:
        return problems
    for layer in layers if isinstance(layers, list) else [layers]:
        # A tower of N layers has N + 1 hidden states: the embeddings, and one behind every layer.
        if not isinstance(layer, int) or not -depth - 1 <= layer <= depth:
            problems.append(
                f"{checkpoint.folder}: {field}={layer!r}: the vision tower has {depth} layers; "
                f"accepted are {-depth - 1} to {depth}"
            )
    return problems


def stored_problems(checkpoint: Checkpoint) -> list[str]:
    """Return what the tensors' names and shapes say against loading an original format."""
    weights, tower = checkpoint.weights, checkpoint.tower
    if weights is None or not checkpoint.is_original:
        return []
    problems = []
    if any(name.startswith(_INSTRUCT) for name in weights.names or ()):
        problems.append(
            f"{checkpoint.folder}: has a predictor of question tokens ({_INSTRUCT}*); accepted are "
            "checkpoints trained with use_instruct_predictor=false, as the paper's"
        )
    if tower is None or not tower.inside or tower.config is None:
        return problems
    for key, stored in _stored_sizes(weights.shapes).items():
        if tower.config.get(key, stored) != stored:
            problems.append(
                f"{checkpoint.folder}: the vision tower inside has {key}={stored}, "
                f"{tower.name!r} has {tower.config[key]}; put a folder with the tower's own "
                "config.json beside the checkpoint"
            )
            break
    return problems


def _stored_sizes(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, int]:
    """Return the sizes of a vision tower that its stored tensors tell."""
    found: dict[str, int] = {}
    layers = set()
    for name, shape in shapes.items():
        if "vision_tower." not in name:
            continue
        if name.endswith("embeddings.patch_embedding.weight") and len(shape) == 4:
            found |= {"hidden_size": shape[0], "patch_size": shape[2]}
        elif name.endswith("mlp.fc1.weight") and ".layers." in name:
            found["intermediate_size"] = shape[0]
            layers.add(name)
    if layers:
        found["num_hidden_layers"] = len(layers)
    return found


def token_problems(checkpoint: Checkpoint) -> tuple[list[str], list[str]]:
    """Return problems and notes about vocabulary, image token and tokenizer files."""
    folder, token, rows = checkpoint.folder, checkpoint.image_token_id, checkpoint.vocabulary
    problems, notes = [], []
    if token is not None and rows is not None and not 0 <= token < rows:
        problems.append(
            f"{folder}: image token {token} lies outside the vocabulary of {rows} rows; correct "
            "image_token_index in config.json, or resize the embeddings"
        )
    names = {path.name for path in checkpoint.tokenizer_files}
    if not names & {"tokenizer.json", "tokenizer.model"}:
        notes.append(
            f"{folder}: no tokenizer (tokenizer.json or tokenizer.model): the model loads, but "
            "answers no questions"
        )
        return problems, notes
    if "tokenizer.json" in names and not _read(folder / "tokenizer.json"):
        return [*problems, f"{folder}: the tokenizer or processor cannot be read"], notes
    known = _added_tokens(folder)
    own = known.get(checkpoint.image_token)
    official = checkpoint.is_original or "official_config" in checkpoint.config
    if token is not None and own is not None and own != token:
        # Outside the vocabulary is reason enough.
        problems += (
            []
            if problems
            else [
                f"{folder}: the tokenizer's {checkpoint.image_token} is {own}, config.json says "
                f"{token}; one of the two is wrong"
            ]
        )
    elif token is not None and own is None and not official:
        problems.append(
            f"{folder}: the tokenizer has no {checkpoint.image_token} token; take the tokenizer "
            "files of the same checkpoint, or add the token with id "
            f"{token} (added_tokens_decoder in tokenizer_config.json)"
        )
    elif own is None:
        notes.append(f"{checkpoint.image_token} is added to the tokenizer, and a row for it")
    if not official and not _has_image_processor(folder):
        if checkpoint.layout.name != "STOCK":
            notes.append("no preprocessor_config.json: images are prepared as CLIP's own are")
        else:
            problems.append(
                f"{folder}: no preprocessor_config.json, so nothing says how its images are "
                "prepared; take the file of the same checkpoint"
            )
    return problems, notes


def _has_image_processor(folder: Path) -> bool:
    own = (folder / "preprocessor_config.json").is_file()
    return own or "image_processor" in _read(folder / "processor_config.json")


def _added_tokens(folder: Path) -> dict[str, int]:
    """Return the tokens that the files give ids to, beside a ``tokenizer.model``."""
    found: dict[str, int] = {}
    vocabulary = _read(folder / "tokenizer.json")
    model = vocabulary.get("model")
    own = model.get("vocab") if isinstance(model, dict) else None
    if isinstance(own, dict):
        found |= {name: number for name, number in own.items() if name in IMAGE_NAMES}
    for entry in vocabulary.get("added_tokens") or ():
        found[entry.get("content")] = entry.get("id")
    for name, number in _read(folder / "added_tokens.json").items():
        found[name] = number
    decoder = _read(folder / "tokenizer_config.json").get("added_tokens_decoder") or {}
    for number, entry in decoder.items():
        content = entry.get("content") if isinstance(entry, dict) else entry
        if isinstance(content, str) and str(number).isdecimal():
            found[content] = int(number)
    return found


def _read(path: Path) -> dict[str, Any]:
    """Return a JSON object, or nothing: a file that cannot be read is reported by the loader."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return values if isinstance(values, dict) else {}


def _positive(value: Any) -> bool:
    values = value if isinstance(value, list) else [value]
    return all(isinstance(item, int) and not isinstance(item, bool) and item > 0 for item in values)
