"""Closed-form multiply-accumulates (MAC) of a LLaVA-like model, per component.

Only matmul-class operations are counted (linear, matmul, convolution, attention).  One MAC is
two FLOPs.  Causal attention is counted as the full square, as fvcore and torch's FlopCounterMode
do.  With multi-head attention one decoder layer on q queries and k keys costs

    FLOPs(q, k) = 2 * MACs = 8 q D^2 + 4 q k D + 6 q D m
"""

from __future__ import annotations

from dynllava.plan import ModelDims
from dynllava.plan.operations import layer_macs

from .spec import ModelSpec, VisionDims
from .towers import Picture

FLOPS_PER_MAC = 2

COMPONENTS = (
    "vision_tower",
    "projector",
    "attention_projections",
    "attention_scores",
    "mlp",
    "image_predictor",
    "output_predictor",
    "lm_head",
)
"""Components of a total, in the order of the tables; methods add theirs (scores, clustering)."""

LAYER_COMPONENTS = ("attention_projections", "attention_scores", "mlp")


def decoder_layer(dims: ModelDims, queries: int, keys: int, batch: int = 1) -> dict[str, int]:
    """Return MACs of one decoder layer (:func:`dynllava.plan.operations.layer_macs`)."""
    return layer_macs(dims, queries, keys, batch)


def lm_head(dims: ModelDims, rows: int, batch: int = 1) -> int:
    """Return MACs of the vocabulary projection on ``rows`` positions per sequence."""
    return batch * rows * dims.hidden * dims.vocab


def vision_tower(vision: VisionDims | Picture, images: int = 1) -> int:
    """Return MACs of a vision transformer: patch convolution and *all* its layers."""
    if isinstance(vision, Picture):
        return images * vision.tower_macs()
    n = vision.tokens
    patch = vision.patches * vision.channels * vision.patch_size**2 * vision.hidden
    layer = n * (4 * vision.hidden**2 + 2 * vision.hidden * vision.intermediate)
    layer += 2 * n * n * vision.hidden
    return images * (patch + vision.layers * layer)


def projector(spec: ModelSpec, images: int = 1) -> int:
    """Return MACs of a two-layer MLP projector, of a TokenPacker, or of a family's own."""
    if spec.vision is None:
        return 0
    if isinstance(spec.vision, Picture):
        cut = spec.image_tokens != spec.vision.image_tokens
        return images * spec.vision.projector_macs(spec.image_tokens if cut else None)
    if spec.packer is not None:
        from dynllava.models.token_packer import macs

        factor, width = spec.packer
        v = spec.vision
        return images * macs(v.hidden, spec.dims.hidden, v.patches, factor, width)
    width = spec.vision.hidden * spec.feature_layers
    return images * spec.image_tokens * (width + spec.dims.hidden) * spec.dims.hidden
