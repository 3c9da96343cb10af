"""The model that is timed, twice on the same weights: stock transformers and ours."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from dynllava.costs.spec import ModelSpec
from dynllava.engine.compiled import CompiledSteps, compiled
from dynllava.errors import UserError
from dynllava.plan.names import FULL


@dataclass
class Bench:
    """A model to time, twice: as stock transformers and wrapped.

    Attributes
    ----------
    spec : ModelSpec
        Its sizes.
    stock, wrapped : Module
        Stock LLaVA, and ours on the same weights.
    random_weights : bool
        Whether nothing was trained (speed does not depend on it; scores would).
    device, dtype
        Where and in what it runs.
    compiled_steps : CompiledSteps
        Compiled decode steps, kept from run to run.
    compiled_stock : callable or None
        The stock model's forward, compiled once it is asked for (:meth:`stock_step`).
    """

    spec: ModelSpec
    stock: Any
    wrapped: Any
    random_weights: bool
    device: torch.device
    dtype: torch.dtype
    compiled_steps: CompiledSteps = field(default_factory=CompiledSteps)
    compiled_stock: Callable[..., Any] | None = None

    def stock_step(self) -> Callable[..., Any]:
        """Return the stock model's forward, compiled with the backend of our own steps."""
        if self.compiled_stock is None:
            self.compiled_stock = compiled(self.stock.forward, self.compiled_steps.backend)
        return self.compiled_stock


def build_bench(
    name: str, spec: ModelSpec, device: str, dtype: str, attention: str, seed: int = 0
) -> Bench:
    """Load ``embedded`` or a folder, or build a preset with random weights.

    Raises
    ------
    UserError
        If the device is not there.
    """
    from dynllava.costs.spec import PRESETS
    from dynllava.models.loading import load_model, parse_dtype

    target, kind = _device(device), parse_dtype(dtype)
    if name in PRESETS:
        return random_bench(spec, device, dtype, attention, seed)
    wrapped, _ = load_model(name, FULL, None, kind, target, attention)
    return _with_predictors(Bench(spec, _stock_of(wrapped), wrapped, False, target, kind), seed)


def random_bench(
    spec: ModelSpec, device: str, dtype: str, attention: str = "sdpa", seed: int = 0
) -> Bench:
    """Build a model of the given sizes, its random weights made on the device.

    Raises
    ------
    UserError
        If the device is not there.
    """
    from dynllava.models.loading import parse_dtype
    from dynllava.wrapping import wrap

    target, kind = _device(device), parse_dtype(dtype)
    stock = _random_stock(spec, target, kind, attention, seed)
    return _with_predictors(Bench(spec, stock, wrap(stock), True, target, kind), seed)


def _with_predictors(bench: Bench, seed: int) -> Bench:
    from dynllava.models.config import SparsityConfig

    dims, wrapped = bench.spec.dims, bench.wrapped
    if wrapped.output_predictor is None or wrapped.image_predictor is None:
        torch.manual_seed(seed)
        wrapped.add_predictors(
            SparsityConfig(
                d_model=dims.predictor_dim,
                nhead=dims.predictor_heads,
                dim_feedforward=dims.predictor_feedforward,
                num_layers=dims.predictor_blocks,
            )
        )
    bench.stock.eval()
    wrapped.eval()
    return bench


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"device {name!r}: accepted are cpu, cuda, cuda:0 ...") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UserError("device 'cuda': no CUDA device here, accepted is cpu")
    return device


def _random_stock(
    spec: ModelSpec, device: torch.device, dtype: torch.dtype, attention: str, seed: int
) -> Any:
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig
    from transformers import LlavaForConditionalGeneration as Llava

    d, v = spec.dims, spec.square_tower
    text = LlamaConfig(
        vocab_size=d.vocab,
        hidden_size=d.hidden,
        intermediate_size=d.intermediate,
        num_hidden_layers=d.layers,
        num_attention_heads=d.heads,
        num_key_value_heads=d.kv_heads,
        head_dim=d.head_dim,
        max_position_embeddings=16384,
    )
    vision = CLIPVisionConfig(
        hidden_size=v.hidden if v else 32,
        intermediate_size=v.intermediate if v else 32,
        num_hidden_layers=v.layers if v else 1,
        num_attention_heads=v.heads if v else 1,
        image_size=v.image_size if v else 14,
        patch_size=v.patch_size if v else 14,
    )
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_index=d.vocab - 1)
    config._attn_implementation = attention
    torch.manual_seed(seed)
    with torch.device(device):
        before = torch.get_default_dtype()
        torch.set_default_dtype(dtype)
        try:
            return Llava(config)
        finally:
            torch.set_default_dtype(before)


def _stock_of(wrapped: Any) -> Any:
    """Return a stock LLaVA on the weights of a loaded model of ours."""
    from transformers import LlavaConfig
    from transformers import LlavaForConditionalGeneration as Llava

    from dynllava.models.sharing import share_decoder

    values = wrapped.config.to_dict()
    for name in ("model_type", "sparse_config"):
        values.pop(name, None)
    config = LlavaConfig(**values)
    config._attn_implementation = wrapped.kernel
    with torch.device("meta"):
        stock = Llava(config)
    stock.model.vision_tower = wrapped.model.vision_tower
    stock.model.multi_modal_projector = wrapped.model.multi_modal_projector
    share_decoder(stock.model.language_model, wrapped.model.language_model)
    stock.lm_head = wrapped.lm_head
    return stock
