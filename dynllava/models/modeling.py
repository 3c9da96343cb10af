"""Dynamic-LLaVA as a Hugging Face model: LLaVA-1.5 under a method, with trained predictors."""

from __future__ import annotations

from typing import Any

from transformers import AutoConfig, AutoModelForImageTextToText, LlavaForConditionalGeneration

from .config import DynamicLlavaConfig, SparsityConfig
from .families import check_text_model
from .sparse import SparseGeneration, forward_of
from .stored_predictors import trained_method
from .text_loop import sparse_text_class
from .token_packer import TokenPacker


class DynamicLlavaForConditionalGeneration(SparseGeneration, LlavaForConditionalGeneration):
    """LLaVA whose decoder runs under a compression method.

    The method is ``dynamic_llava`` with the checkpoint's parameters unless :meth:`set_method` says
    otherwise.  What it can do, and what ``forward`` takes, is :class:`SparseGeneration`'s.
    Positions are computed from ``attention_mask``; a ``position_ids`` argument is ignored.
    """

    config_class = DynamicLlavaConfig
    _supports_flash_attn = True
    _supports_sdpa = True

    def __init__(self, config: DynamicLlavaConfig) -> None:
        super().__init__(config)
        if config.token_packer:
            self.model.multi_modal_projector = TokenPacker(
                config.vision_config.hidden_size,
                config.text_config.hidden_size,
                **config.token_packer,
            )
        text = self.model.language_model
        check_text_model(text.config)
        stock: Any = type(text)
        text.__class__ = sparse_text_class(stock)
        self._set_up()
        self._build_predictors(config.sparsity())
        self.set_method(trained_method(config.sparsity()))
        self.post_init()

    forward = forward_of(LlavaForConditionalGeneration)

    @property
    def sparsity(self) -> SparsityConfig:
        """What the checkpoint's predictors were made for."""
        return self.config.sparsity()


AutoConfig.register(DynamicLlavaConfig.model_type, DynamicLlavaConfig, exist_ok=True)
AutoModelForImageTextToText.register(
    DynamicLlavaConfig, DynamicLlavaForConditionalGeneration, exist_ok=True
)
