"""What a sweep needs of a model: switch the method, hand lmms-eval an adapter, say what it is."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any, Protocol

from dynllava import methods
from dynllava.costs.spec import ModelSpec, image_values, spec_from_config
from dynllava.errors import UserError
from dynllava.methods.base import Method
from dynllava.records import Environment, ModelInfo


class Runner(Protocol):
    """The model side of a sweep."""

    info: ModelInfo
    settings: dict[str, str]

    @property
    def spec(self) -> ModelSpec | None:
        """Sizes of the model, None where they are not known."""

    def set_method(self, name: str, params: dict[str, Any]) -> Method:
        """Switch to a method and return it."""

    def adapter(self, batch_size: int | str) -> Any:
        """Return an lmms-eval model."""

    def environment(self) -> Environment:
        """Return where numbers are made."""


class ModelRunner:
    """A loaded Dynamic-LLaVA model behind the lmms-eval plugin's adapter.

    Parameters
    ----------
    pretrained : str
        As :func:`dynllava.models.loading.load_model` accepts it.
    dtype : str, optional
        Default: float16 on a GPU, float32 elsewhere
        (:func:`dynllava.models.loading.default_dtype`).
    device, attn_implementation : str
        Passed on to it; ``device="auto"`` is CUDA where there is one, and this process's own
        device when several processes run.
    conv_template, image_aspect, vision_tower, image_backend : str, optional
        See the plugin.
    name : str, optional
        What records call the model; default ``pretrained``.
    weights : str
        Which weights these are in a comparison of several (see
        :mod:`dynllava.evaluation.weights`).
    """

    def __init__(
        self,
        pretrained: str,
        dtype: str | None = None,
        device: str = "auto",
        attn_implementation: str = "sdpa",
        conv_template: str | None = None,
        *,
        name: str | None = None,
        weights: str = "",
        image_aspect: str | None = None,
        vision_tower: str | None = None,
        image_backend: str = "pil",
    ) -> None:
        from dynllava.models.encoding import is_llava, resolve_aspect
        from dynllava.models.loading import default_dtype, load_model, resolve
        from dynllava.records import hash_files

        self.device = _device(device)
        dtype = dtype or default_dtype(self.device)
        self.attention = attn_implementation
        self.conv_template = conv_template
        self.model, self.processor = load_model(
            pretrained,
            dtype=dtype,
            device=self.device,
            attn_implementation=attn_implementation,
            vision_tower=vision_tower,
            image_backend=image_backend,
        )
        if self.processor is None:
            raise UserError(f"{pretrained}: has no tokenizer, so it cannot be evaluated")
        self.image_aspect = resolve_aspect(is_llava(self.processor), image_aspect)
        self.trained = self.model.image_predictor is not None
        folder = Path(resolve(pretrained))
        values = self.model.config.to_dict()
        self.spec = spec_from_config(values, pretrained, image_values(folder))
        dims = self.spec.dims
        self.info = ModelInfo(
            name or pretrained,
            hash_files(folder),
            dims.layers,
            dims.hidden,
            self.spec.image_tokens,
            weights or None,
            pretrained if weights else None,
        )
        self.settings = {
            "dtype": dtype,
            "attention": attn_implementation,
            "image_aspect": self.image_aspect,
        }
        if vision_tower is not None:
            self.settings["vision_tower"] = str(vision_tower)
        if conv_template is not None:
            self.settings["conv_template"] = conv_template

    def set_method(self, name: str, params: dict[str, Any]) -> Method:
        """Switch the loaded model to a method in place.

        Raises
        ------
        UserError
            If the parameters do not fit, or the method needs predictors that were never trained.
        """
        if methods.learned(name) and not self.trained:
            raise UserError(f"{self.info.name} has no trained predictors, so no {name}")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            self.model.set_method(name, **params)
        return self.model.method

    def adapter(self, batch_size: int | str) -> Any:
        """Return a fresh lmms-eval model around the loaded one."""
        from .adapter import SweepAdapter

        return SweepAdapter.from_model(
            self.model,
            self.processor,
            conv_template=self.conv_template,
            image_aspect=self.image_aspect,
            batch_size=batch_size,
        )

    def environment(self) -> Environment:
        """Return versions, device, dtype, attention kernel, protocol and commit."""
        from dynllava.prompts import choose_template
        from dynllava.records.environment import capture

        return capture(
            self.device,
            self.model.dtype,
            self.attention,
            self.processor,
            self.image_aspect,
            choose_template(self.conv_template, self.processor).name,
        )


def _device(wanted: str) -> str:
    import torch
    from accelerate import PartialState

    if wanted != "auto":
        return wanted
    if PartialState().num_processes > 1:
        return str(PartialState().device)
    return "cuda" if torch.cuda.is_available() else "cpu"
