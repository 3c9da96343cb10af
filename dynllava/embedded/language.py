"""The language half of the embedded model as a plain loop over its stock decoder layers.

Training and the controls need what ``generate`` does not offer: another mask in the early layers
and the attention of single places. Normal inference goes through transformers alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

from .model import IMAGE_TOKENS
from .packing import HEADS, PREFIX, Links

if TYPE_CHECKING:
    from transformers import LlavaForConditionalGeneration


def run_layers(
    model: LlavaForConditionalGeneration,
    tokens: torch.Tensor,
    positions: torch.Tensor,
    images: torch.Tensor,
    masks: list[torch.Tensor],
    links: dict[int, Links] | None = None,
) -> tuple[torch.Tensor, dict[int, torch.Tensor]]:
    """Compute final hidden states under one attention mask per layer.

    Parameters
    ----------
    model : LlavaForConditionalGeneration
    tokens, positions : torch.Tensor
        int64 ``[B, L]``; the image placeholders stand at places 3-146.
    images : torch.Tensor
        ``[B, 144, d]`` projected image tokens.
    masks : list of torch.Tensor
        One additive mask ``[B, 1, L, L]`` per decoder layer.
    links : dict, optional
        As :attr:`dynllava.embedded.packing.Packed.links`.

    Returns
    -------
    states : torch.Tensor
        ``[B, L, d]`` after the final norm.
    grounding : dict of int to torch.Tensor
        Per linked layer, mean cross entropy between the wanted and the real attention on the
        goal, over links and the first two heads.
    """
    decoder = model.model.language_model
    embedded = decoder.embed_tokens(tokens)
    before, after = embedded[:, : PREFIX - IMAGE_TOKENS], embedded[:, PREFIX:]
    states = torch.cat([before, images.to(embedded.dtype), after], 1)
    rotary = decoder.rotary_emb(states, positions)
    grounding = {}
    for index, (layer, mask) in enumerate(zip(decoder.layers, masks, strict=True)):
        if links and index in links:
            grounding[index] = _grounding(layer, states, rotary, mask, links[index])
        states = layer(
            states, attention_mask=mask, position_ids=positions, position_embeddings=rotary
        )
    return decoder.norm(states), grounding


def _grounding(
    layer: torch.nn.Module,
    states: torch.Tensor,
    rotary: tuple[torch.Tensor, torch.Tensor],
    mask: torch.Tensor,
    links: Links,
) -> torch.Tensor:
    from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

    rows, places = links.rows, links.places
    attention = layer.self_attn
    normal = layer.input_layernorm(states)
    width = HEADS * attention.head_dim
    shape = (*normal.shape[:2], HEADS, attention.head_dim)
    query = F.linear(normal, attention.q_proj.weight[:width]).view(shape).transpose(1, 2)
    key = F.linear(normal, attention.k_proj.weight[:width]).view(shape).transpose(1, 2)
    query, key = apply_rotary_pos_emb(query, key, *rotary)
    # The whole score matrix of two heads costs less than gathering a key matrix per link.
    scores = (query @ key.mT)[rows, :, places] * attention.scaling
    scores = scores + mask[rows, 0, places][:, None]
    hidden = scores.log_softmax(-1).masked_fill(~links.goal, float("-inf"))
    log_mass = hidden.logsumexp(-1)
    log_rest = torch.log1p(-log_mass.exp().clamp(max=1 - 1e-6))
    share = links.share[:, None]
    return -(share * log_mass + (1 - share) * log_rest).mean()
