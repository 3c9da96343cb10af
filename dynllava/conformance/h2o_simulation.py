"""H2O's two simulations, as plain references: full caches, dropping by masks only.

``utils_hh`` (:class:`DecodeSimulation`) hides entries from later queries; ``utils_lm_eval``
(:class:`GlobalSimulation`) masks the prompt with look-ahead.  Neither saves anything, so they are
no methods; they stand here to show that the recorded tensors of both are understood.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import nn

MISSING = -1.0


class Simulation(Protocol):
    """Turns the masked logits of a layer into attention weights."""

    def weights(self, layer: int, logits: torch.Tensor) -> torch.Tensor:
        """Return weights [H, q, n] for ``logits`` [H, q, n], -inf where not causal."""


class PlainDecoder:
    """The stock decoder of one sequence, written out, with attention left to a simulation."""

    def __init__(self, language_model: nn.Module, simulation: Simulation) -> None:
        self.model = language_model
        self.simulation = simulation
        self.keys: dict[int, torch.Tensor] = {}
        self.values: dict[int, torch.Tensor] = {}
        self.seen = 0

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return normalised hidden states [q, D] of the next tokens' embeddings [q, D]."""
        position = torch.arange(self.seen, self.seen + hidden.shape[0])[None]
        rotary = self.model.rotary_emb(hidden[None], position)
        self.seen += hidden.shape[0]
        for index, layer in enumerate(self.model.layers):
            hidden = hidden + self._attention(index, layer, layer.input_layernorm(hidden), rotary)
            hidden = hidden + layer.mlp(layer.post_attention_layernorm(hidden))
        return self.model.norm(hidden)

    def _attention(
        self,
        index: int,
        layer: nn.Module,
        hidden: torch.Tensor,
        rotary: tuple[torch.Tensor, torch.Tensor],
    ) -> torch.Tensor:
        module = layer.self_attn
        query, key, value = (
            projection(hidden).unflatten(1, (-1, module.head_dim)).transpose(0, 1)
            for projection in (module.q_proj, module.k_proj, module.v_proj)
        )
        query, key = rotate(query, *rotary), rotate(key, *rotary)
        groups = query.shape[0] // key.shape[0]
        key, value = key.repeat_interleave(groups, 0), value.repeat_interleave(groups, 0)
        if index in self.keys:
            key = torch.cat([self.keys[index], key], 1)
            value = torch.cat([self.values[index], value], 1)
        self.keys[index], self.values[index] = key, value
        logits = query @ key.transpose(1, 2) * module.head_dim**-0.5
        rows = torch.arange(self.seen - hidden.shape[0], self.seen)
        later = torch.arange(self.seen) > rows[:, None]
        weights = self.simulation.weights(index, logits.masked_fill(later, float("-inf")))
        return module.o_proj((weights @ value).transpose(0, 1).flatten(1))


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Return ``x`` [H, q, d] with the rotary embedding applied."""
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-second, first], -1) * sin


class DecodeSimulation:
    """``utils_hh``: after each forward, decide what the next query may see.

    Parameters
    ----------
    layers, heads : int
    heavy, recent : int
        Budgets, fixed at the prompt.
    first_full_layers : int
        Layers without compression.

    Attributes
    ----------
    scores : dict of Tensor [H, n]
        Accumulated attention per layer, 0 where forgotten.
    visible : dict of Tensor [H, n + 1] bool
        What the next query sees per layer, itself included.
    column_sums : dict of Tensor [H, n]
        Of the latest forward alone.
    """

    def __init__(self, heavy: int, recent: int, first_full_layers: int) -> None:
        self.heavy, self.recent, self.full = heavy, recent, first_full_layers
        self.scores: dict[int, torch.Tensor] = {}
        self.visible: dict[int, torch.Tensor] = {}
        self.column_sums: dict[int, torch.Tensor] = {}

    def weights(self, layer: int, logits: torch.Tensor) -> torch.Tensor:
        """See :class:`Simulation`."""
        if layer < self.full:
            return logits.softmax(-1)
        if layer in self.visible:
            logits = logits.masked_fill(~self.visible[layer][:, None], float("-inf"))
        weights = logits.softmax(-1)
        self.column_sums[layer] = score = weights.sum(1)
        if layer in self.scores:
            carried = self.scores[layer]
            score = score + nn.functional.pad(carried, (0, score.shape[1] - carried.shape[1]))
        self._look_ahead(layer, score)
        return weights

    def _look_ahead(self, layer: int, score: torch.Tensor) -> None:
        heads, count = score.shape
        columns = torch.arange(count + 1).expand(heads, -1)
        self.scores[layer] = score
        self.visible[layer] = torch.ones(heads, count + 1, dtype=torch.bool)
        if count <= self.heavy + self.recent:
            return
        # Index count - recent is neither recent for the next query nor a candidate.
        best = score[:, : count - self.recent].topk(self.heavy, -1).indices
        heavy = torch.zeros(heads, count + 1, dtype=torch.bool).scatter(1, best, True)
        self.visible[layer] = heavy | (columns >= count + 1 - self.recent)
        keeps = heavy[:, :count] | (columns[:, :count] >= count - self.recent)
        # Upstream slices [-recent:], which is everything for a budget of 0.
        self.scores[layer] = score if self.recent == 0 else score * keeps


class GlobalSimulation:
    """``utils_lm_eval``: heavy columns of the whole prompt, with look-ahead, and a recent band.

    Attributes
    ----------
    heavy_mask : dict of Tensor [H, n] bool
    column_sums : dict of Tensor [H, n]
        Of the full causal attention.
    attended : dict of Tensor [H, n, n] bool
        Entries with a weight above 0.
    """

    def __init__(self, heavy: int, recent: int, first_full_layers: int) -> None:
        self.heavy, self.recent, self.full = heavy, recent, first_full_layers
        self.heavy_mask: dict[int, torch.Tensor] = {}
        self.column_sums: dict[int, torch.Tensor] = {}
        self.attended: dict[int, torch.Tensor] = {}

    def weights(self, layer: int, logits: torch.Tensor) -> torch.Tensor:
        """See :class:`Simulation`."""
        weights = logits.softmax(-1)
        if layer >= self.full:
            self.column_sums[layer] = sums = weights.sum(1)
            best = sums.topk(self.heavy, -1).indices
            heavy = torch.zeros_like(sums, dtype=torch.bool).scatter(1, best, True)
            rows = torch.arange(sums.shape[1])
            near = (rows[:, None] - rows[None, :]).abs() <= self.recent
            weights = logits.masked_fill(~(heavy[:, None] | near), float("-inf")).softmax(-1)
            self.heavy_mask[layer] = heavy
        self.attended[layer] = weights > 0
        return weights
