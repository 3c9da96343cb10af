"""The vocabulary of an exported official checkpoint: without the image token.

The official program's image token is no row of the embedding (-200).  Where the token came last, as
in LLaVA-1.5, its row is left out; where words lie behind it, all rows stay and the tokenizer's
``<image>`` becomes a token that no text holds.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from dynllava.output.files import read_json_object

from .tokenizers import IMAGE_TOKEN

IMAGE_KEY = "image_token"


def rows_kept(config: Mapping[str, Any], files: Iterable[Path]) -> int:
    """Return how many rows of the embedding an official checkpoint holds.

    Parameters
    ----------
    config : mapping
        The Hugging Face configuration.
    files : iterable of Path
        The tokenizer's.
    """
    rows: int = config["text_config"]["vocab_size"]
    image: int = config["image_token_index"]
    for path in files:
        if path.name == "tokenizer.json":
            words = read_json_object(path).get("model", {}).get("vocab", {})
            if isinstance(words, dict) and max(words.values(), default=0) > image:
                return rows
    return min(rows, image)


def write_tokenizer(files: Iterable[Path], image: int, target: Path) -> None:
    """Write the tokenizer's files with ``<image>`` renamed to a token that no text holds."""
    for path in files:
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".json":
            text = json.dumps(_renamed(json.loads(text), f"<|unused_{image}|>"), indent=2) + "\n"
        (target / path.name).write_text(text, encoding="utf-8")


def _renamed(value: Any, name: str) -> Any:
    if isinstance(value, dict):
        return {
            name if key == IMAGE_TOKEN else key: _renamed(item, name)
            for key, item in value.items()
            if key != IMAGE_KEY
        }
    if isinstance(value, list):
        return [_renamed(item, name) for item in value]
    return name if value == IMAGE_TOKEN else value
