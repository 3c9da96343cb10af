"""Counting with fvcore and torch's FlopCounterMode on meta tensors: no weights, no data.

Only real modules are counted (the stock ``LlamaDecoderLayer``, the real predictors, the real
projector and CLIP), one distinct shape at a time, and every count is remembered.  Both counters
return MACs here: fvcore's "flop" is a MAC, FlopCounterMode counts two FLOPs a MAC.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import math
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from dynllava.errors import UserError
from dynllava.plan import ModelDims

MATMUL_CLASS = frozenset({"linear", "matmul", "bmm", "addmm", "mm", "einsum", "conv", "sdpa"})
"""fvcore's operator names that are matrix products; the rest it counts (norms) is listed apart."""


@dataclass(frozen=True)
class Count:
    """What a counter saw.

    Attributes
    ----------
    macs : dict
        Module path -> MACs of matmul-class operations (own and sub-modules').
    other : dict
        Operator -> the counter's own number for operations that are no matrix products.
    uncounted : dict
        Operator -> occurrences that the counter has no rule for.
    """

    macs: dict[str, int]
    other: dict[str, int]
    uncounted: dict[str, int]

    @property
    def total(self) -> int:
        """MACs of the whole module."""
        return self.macs[""]


def sdpa_macs(inputs: list[Any], outputs: list[Any]) -> Counter[str]:
    """Rule of fvcore for ``aten::scaled_dot_product_attention``: b h n_q n_k (d_k + d_v) MACs."""
    query, key, value = (inputs[i].type().sizes() for i in range(3))
    *batch, queries, key_dim = query
    macs = queries * key[-2] * (key_dim + value[-1])
    for size in batch:
        macs *= size
    return Counter({"sdpa": macs})


def convolution_macs(inputs: list[Any], outputs: list[Any]) -> Counter[str]:
    """Rule of fvcore for ``aten::_convolution_mode`` (padding by name, as SigLIP's patches)."""
    macs = math.prod(outputs[0].type().sizes()) * math.prod(inputs[1].type().sizes()[1:])
    return Counter({"conv": macs})


def fvcore_count(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> Count:
    """Count ``module(*inputs)`` with fvcore.

    Raises
    ------
    UserError
        If fvcore is not installed.
    """
    try:
        from fvcore.nn import FlopCountAnalysis
    except ImportError:
        raise UserError("fvcore is not installed: pip install 'dynllava[profile]'", 1) from None
    analysis = FlopCountAnalysis(module, inputs)
    analysis.set_op_handle("aten::scaled_dot_product_attention", sdpa_macs)
    analysis.set_op_handle("aten::_convolution_mode", convolution_macs)
    analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    analysis.tracer_warnings("none")
    with _quiet("fvcore"):
        by_module = analysis.by_module_and_operator()
        uncounted = {str(name): int(n) for name, n in analysis.unsupported_ops().items()}
    macs = {
        name: int(sum(n for op, n in ops.items() if op in MATMUL_CLASS))
        for name, ops in by_module.items()
    }
    other = {op: int(n) for op, n in by_module[""].items() if op not in MATMUL_CLASS}
    return Count(macs, other, uncounted)


def flop_counter() -> Any:
    """Return a FlopCounterMode that also knows the fused attention of a CPU."""
    from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

    def fused(query: Any, key: Any, value: Any, *args: Any, out_shape: Any, **kwargs: Any) -> int:
        return sdpa_flop_count(query, key, value)

    rules = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: fused}
    return FlopCounterMode(display=False, custom_mapping=rules)


def torch_count(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> Count:
    """Count ``module(*inputs)`` with ``torch.utils.flop_counter.FlopCounterMode``, in MACs."""
    with flop_counter() as mode, torch.no_grad():
        module(*inputs)
    root = type(module).__name__
    macs = {}
    for name, ops in mode.get_flop_counts().items():
        flop = sum(ops.values())
        if flop % 2:
            raise ArithmeticError(f"{name}: {flop} FLOPs are no whole number of MACs")
        path = "" if name in ("Global", root) else name.removeprefix(f"{root}.")
        macs[path] = flop // 2
    macs.setdefault("", 0)
    return Count(macs, {}, {})


COUNTERS: dict[str, Callable[[nn.Module, tuple[torch.Tensor, ...]], Count]] = {
    "fvcore": fvcore_count,
    "torch": torch_count,
}


class CachedLayer(nn.Module):
    """The stock decoder layer with plain tensors as arguments, which tracing needs."""

    def __init__(self, dims: ModelDims) -> None:
        super().__init__()
        from transformers import LlamaConfig
        from transformers.models.llama.modeling_llama import LlamaDecoderLayer

        config = LlamaConfig(
            hidden_size=dims.hidden,
            intermediate_size=dims.intermediate,
            num_hidden_layers=1,
            num_attention_heads=dims.heads,
            num_key_value_heads=dims.kv_heads,
            head_dim=dims.head_dim,
            vocab_size=dims.vocab,
            attn_implementation="sdpa",
        )
        self.layer = LlamaDecoderLayer(config, layer_idx=0)

    def forward(
        self,
        hidden: torch.Tensor,
        cos: torch.Tensor,
        sin: torch.Tensor,
        mask: torch.Tensor,
        past_key: torch.Tensor,
        past_value: torch.Tensor,
    ) -> torch.Tensor:
        """Run q new tokens [B, q, D] against past K/V [B, Hkv, k - q, d] and themselves."""
        return self.layer(
            hidden,
            attention_mask=mask,
            position_embeddings=(cos, sin),
            past_key_values=_Past(past_key, past_value),
        )


class _Past:
    """The one method of a cache that the stock layer calls."""

    def __init__(self, key: torch.Tensor, value: torch.Tensor) -> None:
        self.key, self.value = key, value

    def update(
        self, key: torch.Tensor, value: torch.Tensor, layer_idx: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.cat([self.key, key], 2), torch.cat([self.value, value], 2)


@functools.lru_cache(maxsize=16)
def _meta_layer(dims: ModelDims) -> CachedLayer:
    with torch.device("meta"):
        return CachedLayer(dims).eval()


def layer_inputs(
    dims: ModelDims, queries: int, keys: int, batch: int, device: str = "meta"
) -> tuple[torch.Tensor, ...]:
    """Return the arguments of :class:`CachedLayer` for q queries on k keys."""
    past = (batch, dims.kv_heads, keys - queries, dims.head_dim)
    return (
        torch.empty(batch, queries, dims.hidden, device=device),
        torch.empty(batch, queries, dims.head_dim, device=device),
        torch.empty(batch, queries, dims.head_dim, device=device),
        # An explicit mask: without one FlopCounterMode fails on meta tensors.
        torch.zeros(batch, 1, queries, keys, device=device),
        torch.empty(past, device=device),
        torch.empty(past, device=device),
    )


@functools.lru_cache(maxsize=8192)
def count_layer(counter: str, dims: ModelDims, queries: int, keys: int, batch: int) -> Count:
    """Count one stock decoder layer; remembered per shape."""
    return COUNTERS[counter](_meta_layer(dims), layer_inputs(dims, queries, keys, batch))


def layer_components(count: Count) -> dict[str, int]:
    """Return a counted layer's MACs by component."""
    projections = sum(count.macs[f"layer.self_attn.{name}_proj"] for name in "qkvo")
    return {
        "attention_projections": projections,
        "attention_scores": count.macs["layer.self_attn"] - projections,
        "mlp": count.macs["layer.mlp"],
    }


class LayerMacs:
    """A decoder layer's MACs from a counter, for any number of shapes.

    Up to ``direct`` distinct shapes are counted one by one.  Beyond that (long decoding) the
    counter's numbers must follow ``q * a + q * k * b``, with a and b from two counted shapes;
    each further ``stride``-th shape is counted all the same and must agree.

    Parameters
    ----------
    counter : str
        ``"fvcore"`` or ``"torch"``.
    direct, stride : int
        See above.
    """

    def __init__(self, counter: str, direct: int = 16, stride: int = 512) -> None:
        self.counter, self.direct, self.stride = counter, direct, stride
        self._known: dict[tuple[ModelDims, int, int, int], dict[str, int]] = {}

    def __call__(self, dims: ModelDims, queries: int, keys: int, batch: int) -> dict[str, int]:
        """Return MACs by component (see :data:`dynllava.costs.ledger.LayerCounter`)."""
        shape = (dims, queries, keys, batch)
        if shape not in self._known:
            number = len(self._known)
            if number < self.direct or number % self.stride == 0:
                self._known[shape] = self._counted(*shape)
                if number >= self.direct and self._known[shape] != self._law(*shape):
                    raise ArithmeticError(f"{self.counter}: no bilinear law at {shape}")
            else:
                self._known[shape] = self._law(*shape)
        return self._known[shape]

    def _counted(self, dims: ModelDims, queries: int, keys: int, batch: int) -> dict[str, int]:
        return layer_components(count_layer(self.counter, dims, queries, keys, batch))

    def _law(self, dims: ModelDims, queries: int, keys: int, batch: int) -> dict[str, int]:
        one, two = self._counted(dims, 1, 1, batch), self._counted(dims, 1, 2, batch)
        return {
            name: queries * (2 * one[name] - two[name] + keys * (two[name] - one[name]))
            for name in one
        }


@functools.lru_cache(maxsize=256)
def count_linear(counter: str, inputs: int, outputs: int, rows: int, batch: int) -> int:
    """Return MACs of ``nn.Linear`` on [batch, rows, inputs]: the lm head."""
    module = nn.Linear(inputs, outputs, bias=False, device="meta")
    return COUNTERS[counter](module, (torch.empty(batch, rows, inputs, device="meta"),)).total


@contextlib.contextmanager
def _quiet(name: str) -> Iterator[None]:
    """Silence a logger for a while (fvcore reports every skipped operation)."""
    logger = logging.getLogger(name)
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)
