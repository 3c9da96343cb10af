"""Trained predictors beside a stock checkpoint's tensors: named in ``config.json``, then read."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dynllava.errors import UserError
from dynllava.methods import create
from dynllava.methods.base import Method
from dynllava.plan.names import LEARNED

from .config import SparsityConfig
from .files import WeightFiles, weight_files
from .hub import locate
from .tensors import stream

KEY = "sparse_config"
"""Entry of ``config.json``, as in official Dynamic-LLaVA checkpoints."""
PREFIXES = {"image": "image_predictor.", "output": "output_predictor."}


def stored_sparsity(config: Any) -> SparsityConfig | None:
    """Return what a configuration says of its checkpoint's predictors, None if it has none.

    Parameters
    ----------
    config : PretrainedConfig or mapping
    """
    values = config.get(KEY) if isinstance(config, Mapping) else getattr(config, KEY, None)
    if not isinstance(values, dict):
        return None
    sparsity = SparsityConfig.from_dict(values)
    used = sparsity.use_vision_predictor or sparsity.use_output_text_predictor
    return sparsity if used else None


def trained_method(sparsity: SparsityConfig) -> Method:
    """Return the method with the parameters that a checkpoint's predictors were trained for."""
    output = sparsity.output_text_keep_rate if sparsity.use_output_text_predictor else 1.0
    return create(
        LEARNED,
        sparse_layer=sparsity.sparse_layer,
        vision_keep_rate=sparsity.vision_keep_rate if sparsity.use_vision_predictor else 1.0,
        output_keep_rate=output,
        output_threshold=sparsity.output_threshold,
    )


def load_predictors(model: Any, weights: WeightFiles, folder: Path | str) -> bool:
    """Give a wrapped model the predictors that its checkpoint stores.

    Parameters
    ----------
    model : SparseGeneration
        Its configuration says which there are.
    weights : WeightFiles
        Of the checkpoint.
    folder : Path or str
        Named in errors.

    Returns
    -------
    bool
        False if the checkpoint has none.

    Raises
    ------
    UserError
        If tensors are missing, left over or of another shape than the configuration says.
    """
    sparsity = stored_sparsity(model.config)
    if sparsity is None:
        return False
    model.add_predictors(sparsity)
    for name, prefix in PREFIXES.items():
        state = {key.removeprefix(prefix): part for key, part in stream(weights, None, prefix)}
        predictor = model.predictors()[name]
        wanted = {} if predictor is None else predictor.state_dict()
        wrong = sorted(set(state) ^ set(wanted))
        wrong += [key for key in state if key in wanted and state[key].shape != wanted[key].shape]
        if wrong:
            raise UserError(
                f"{folder}: {prefix}{wrong[0]} is not as {KEY} in config.json says "
                f"({len(wrong)} tensors missing, left over or of another shape)"
            )
        if predictor is not None:
            predictor.load_state_dict(state)
    return True


def load_named_predictors(model: Any) -> bool:
    """Give a wrapped model the predictors of the checkpoint that its stock model was loaded from.

    Raises
    ------
    UserError
        If the configuration names predictors and their files are not there any more.
    """
    if stored_sparsity(model.config) is None:
        return False
    name = getattr(model.config, "_name_or_path", "") or ""
    if not name:
        return False
    folder = locate(name).folder
    return load_predictors(model, weight_files(folder), folder)
