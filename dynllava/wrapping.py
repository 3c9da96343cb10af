"""Wrap a stock LLaVA that is already loaded: shared weights, nothing changed, can be undone."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import torch
from torch import nn
from transformers import LlavaForConditionalGeneration

from dynllava.config import DynamicLlavaConfig
from dynllava.methods.base import Method
from dynllava.modeling import DynamicLlavaForConditionalGeneration, check_kernel


def wrap(
    model: LlavaForConditionalGeneration, method: str | Method = "full", **parameters: Any
) -> DynamicLlavaForConditionalGeneration:
    """Wrap a loaded stock LLaVA with a method; weights are shared, the stock model stays as it is.

    Parameters
    ----------
    model : LlavaForConditionalGeneration
        The stock model.
    method : str or Method
        A registered name with its parameters, or a method.

    Returns
    -------
    DynamicLlavaForConditionalGeneration
        Its :meth:`~DynamicLlavaForConditionalGeneration.unwrap` returns ``model``.
    """
    values = copy.deepcopy(model.config).to_dict()
    values.pop("model_type", None)
    sparse_config = {"use_vision_predictor": False, "use_output_text_predictor": False}
    config = DynamicLlavaConfig(**{**values, "sparse_config": sparse_config})
    kernel = check_kernel(model.config.text_config._attn_implementation)
    config.text_config._attn_implementation = kernel
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wrapped = DynamicLlavaForConditionalGeneration(config)
    inner, stock = wrapped.model, model.model
    inner.vision_tower = stock.vision_tower
    inner.multi_modal_projector = stock.multi_modal_projector
    share_decoder(inner.language_model, stock.language_model)
    wrapped.lm_head = model.lm_head
    wrapped.generation_config = copy.deepcopy(model.generation_config)
    wrapped._stock = (model,)
    wrapped.train(model.training)
    wrapped.set_method(method, **parameters)
    return wrapped


def share_decoder(target: nn.Module, stock: nn.Module) -> None:
    """Make ``target`` use the stock decoder's modules, with attention modules of its own.

    Only the attention modules read the configuration that names the attention function, so they
    alone are new; their projections are the stock model's objects.
    """
    for name, module in stock.named_children():
        if name != "layers":
            setattr(target, name, module)
    for own, shared in zip(target.layers, stock.layers, strict=True):
        for name, module in shared.named_children():
            if name != "self_attn":
                setattr(own, name, module)
        for name, module in shared.self_attn.named_children():
            setattr(own.self_attn, name, module)
