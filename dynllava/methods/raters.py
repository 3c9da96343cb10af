"""Text tokens that rate image tokens, chosen before layer 0 (SparseVLM, arXiv 2410.04417)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from dynllava.plan import Shape

if TYPE_CHECKING:
    import torch

    from dynllava.engine.view import View


def expected_raters(shape: Shape) -> int:
    """Return the raters assumed where the prompt is not known: half of the text, rounded up."""
    return max(1, math.ceil(shape.text_after / 2))


def rater_rows(view: View) -> torch.Tensor:
    """Return [B, R] int64: stream rows of the raters at the current layer."""
    rows = view.last_image_row()[:, None] + 1 + raters(view)[0]
    return rows.clamp(min=0)


def raters(view: View) -> tuple[torch.Tensor, torch.Tensor]:
    """Return each row's raters: text tokens behind the image, chosen from the raw embeddings.

    A text token's relevance is the mean over image tokens of the softmax over text tokens of
    the dot products (no scaling); raters are above the mean relevance.  A row with a single text
    token has that one, a row with none after the image is rated by its last image token.  Output
    tokens never rate.

    Returns
    -------
    tuple of Tensor
        Ordinals [B, R] int64 behind the last image token (-1: that token itself, or no rater), and
        which of them rate, [B, R] bool.
    """
    return view.memo("raters", lambda: _choose_raters(view))


def _choose_raters(view: View) -> tuple[torch.Tensor, torch.Tensor]:
    import torch

    from dynllava.engine.ranking import left_aligned
    from dynllava.plan import Segment

    stream = view.embeds
    assert stream is not None  # the look's rows are a function
    masks = stream.is_segment(Segment.IMAGE), stream.text_behind_images()
    (vision, has_image), (text, has_text) = stream.picked(*masks)
    match = vision.float() @ text.float().transpose(1, 2)
    match = match.masked_fill(~has_text[:, None], -1e30).softmax(-1)
    relevance = (match * has_image[..., None]).sum(1) / has_image.sum(1).clamp(min=1)[:, None]
    relevance = relevance * has_text
    mean = relevance.sum(1) / has_text.sum(1).clamp(min=1)
    chosen = (relevance > mean[:, None]) & has_text
    chosen |= ~chosen.any(1, keepdim=True) & has_text
    voters = chosen.sum(1)
    most = max(int(voters.max()), 1)
    mask = torch.arange(most, device=voters.device) < voters[:, None]
    ordinal = left_aligned(chosen, most).masked_fill(~mask, -1)
    # Without text after the image, ordinal -1 is the last image token.
    mask[:, 0] |= (voters == 0) & has_image.any(1)
    view.record.update({"sparsevlm.rater_scores": relevance, "sparsevlm.raters": chosen})
    return ordinal, mask


def rotary_bias(view: View, dtype: torch.dtype) -> torch.Tensor:
    """Return [B, R, L]: attention logits of all-ones vectors under the rotary embedding.

    (rope(1) . rope(1)) / sqrt(d) is the inner product of the cosine and sine tables.
    """
    from dynllava.engine.stream import take_rows

    stream, rows = view.stream, rater_rows(view)
    cos, sin = (part.to(dtype) for part in view.rotary(stream.hidden.to(dtype), stream.position))
    bias = take_rows(cos, rows) @ cos.transpose(1, 2) + take_rows(sin, rows) @ sin.transpose(1, 2)
    return bias / cos.shape[-1] ** 0.5
