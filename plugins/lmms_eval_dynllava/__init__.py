"""lmms-eval plugin of dynllava: the model ``dynamic_llava`` and the task files beside it.

This module stays light, because lmms-eval imports it in every run, whatever the model, and a
failing entry point would stop every plugin after it.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lmms_eval.models.registry_v2 import ModelManifest

MODEL_ID = "dynamic_llava"


def manifests() -> list[ModelManifest]:
    """Return what lmms-eval's entry point ``lmms_eval.models`` wants: the models to register."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return [
        ModelManifest(
            MODEL_ID,
            simple_class_path="lmms_eval_dynllava.models.DynamicLlavaSimple",
            chat_class_path="lmms_eval_dynllava.models.DynamicLlavaChat",
        )
    ]


def tasks_folder() -> Path:
    """Return the folder with this plugin's task files (for lmms-eval's ``--include_path``)."""
    return Path(__file__).parent / "tasks"
