"""A tiny, really trained LLaVA with synthetic scenes, held-out splits and lmms-eval tasks.

Importing this package is light: torch and transformers load only with what needs them.
"""

from __future__ import annotations

from pathlib import Path

from .data import SPLITS, ensure_split, load_split, training_records
from .questions import FAMILIES, Question, ask
from .scenes import Scene, SceneDigit, SceneObject, generate_scene
from .tasks import tasks_folder

__all__ = [
    "FAMILIES",
    "SPLITS",
    "Question",
    "Scene",
    "SceneDigit",
    "SceneObject",
    "ask",
    "dynamic_path",
    "ensure_split",
    "generate_scene",
    "load_split",
    "model_path",
    "tasks_folder",
    "training_records",
]


def model_path() -> Path:
    """Folder of the shipped dense checkpoint, in Hugging Face format."""
    return Path(__file__).with_name("model")


def dynamic_path() -> Path:
    """Folder of the shipped checkpoint with trained predictors (its language model tuned along)."""
    return Path(__file__).with_name("dynamic")
