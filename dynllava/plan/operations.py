"""Sizes of a model, and the matrix products that a method adds to it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class TowerDims:
    """Sizes of a vision tower: layers, width, heads, patches of one image."""

    layers: int
    hidden: int
    heads: int
    patches: int


@dataclass(frozen=True)
class ModelDims:
    """Sizes that closed-form costs need (language model, and the predictors' own).

    ``tower`` is None where the vision tower is not known: looks into it are then not counted.
    """

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocab: int
    predictor_dim: int = 512
    predictor_heads: int = 8
    predictor_feedforward: int = 2048
    predictor_blocks: int = 2
    tower: TowerDims | None = None


@dataclass(frozen=True)
class Operation:
    """One matmul-class operation outside the stock layers, ``count`` times m x k x n.

    ``layer`` is the decoder layer that it is booked on, None before layer 0.  ``phase`` is
    ``"prefill"`` (once a prompt) or ``"decode"`` (once an output token).
    MACs = ``count * m * k * n``; each output token that the layer holds adds ``grows`` to ``n``
    (1 where every key is looked at).
    """

    name: str
    component: str
    layer: int | None
    phase: str
    m: int
    k: int
    n: int
    count: int = 1
    grows: int = 0

    @property
    def macs(self) -> int:
        """Multiply-accumulate operations."""
        return self.count * self.m * self.k * self.n


def layer_macs(dims: ModelDims, queries: int, keys: int, batch: int = 1) -> dict[str, int]:
    """Return MACs of one LLaMA decoder layer by component (grouped-query aware).

    Parameters
    ----------
    dims : ModelDims
        Language model.
    queries, keys : int
        Query rows, and the keys that each attends to (itself included), per sequence.
    batch : int
        Sequences.
    """
    width = dims.heads * dims.head_dim
    kv_width = dims.kv_heads * dims.head_dim
    return {
        "attention_projections": batch * queries * 2 * dims.hidden * (width + kv_width),
        "attention_scores": batch * 2 * queries * keys * width,
        "mlp": batch * queries * 3 * dims.hidden * dims.intermediate,
    }
