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
