"""Wrap a stock model that is already loaded: shared weights, nothing changed, can be undone."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from torch import nn

from dynllava.engine import attention
from dynllava.errors import UserError
from dynllava.methods.base import Method
from dynllava.plan.names import FULL

from .cloning import clone
from .families import check_text_model, family_of
from .sparse import SparseGeneration, forward_of
from .stored_predictors import load_named_predictors
from .text_loop import sparse_text_class


def wrap(model: nn.Module, method: str | Method = FULL, **parameters: Any) -> Any:
    """Wrap a loaded stock model with a method; weights are shared, the stock model stays as it is.

    Parameters
    ----------
    model : PreTrainedModel
        A stock image-text-to-text model of a supported family (``docs/supported_models.md``).
    method : str or Method
        A name with its parameters (``fastv:k=2``), or a method.

    Returns
    -------
    PreTrainedModel
        An instance of the stock class too; its ``unwrap()`` returns ``model``.  It has the trained
        predictors that the checkpoint stores which ``model`` was loaded from, if any.

    Raises
    ------
    UserError
        For a family that is not supported, a quantised model, or a method that does not fit.
    """
    family = family_of(getattr(model, "config", None))
    if isinstance(model, SparseGeneration):
        raise UserError("the model is wrapped already: use set_method to switch its method")
    if getattr(model, "is_quantized", False) or getattr(model, "quantization_method", None):
        raise UserError("quantised models are not supported: accepted are float32 and half types")
    check_text_model(model.config.text_config)
    text = getattr(model.model, family.text)
    attention.check_kernel(text.config._attn_implementation)
    outer: Any = type(model)
    inner: Any = type(text)
    classes = {id(model): sparse_class(outer), id(text): sparse_text_class(inner)}
    wrapped: Any = clone(model, classes)
    wrapped._stock = (model,)
    wrapped._set_up()
    load_named_predictors(wrapped)
    wrapped.set_method(method, **parameters)
    return wrapped


@lru_cache
def sparse_class(stock: Any) -> type:
    """Return the class of wrapped models of a stock class; it has the stock class's name."""
    own = {"__module__": __name__, "forward": forward_of(stock)}
    return type(stock.__name__, (SparseGeneration, stock), own)
