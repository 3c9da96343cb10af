"""Three-way audit: closed form, fvcore and FlopCounterMode must agree exactly, per component.

Every distinct (queries, keys) shape of a run is counted on the stock modules; the method's own
operations are executed as matrix products of their declared sizes, and the predictors as the real
modules.  The vision tower is counted by FlopCounterMode at full size on meta tensors, and by both
counters on real tensors at small size (fvcore cannot trace the convolution on meta).
"""

from __future__ import annotations

import functools
from collections import Counter
from dataclasses import dataclass

import torch
from torch import nn

from dynllava.plan import ModelDims, Operation

from . import counters, ledger
from .spec import ModelSpec, VisionDims

COUNTER_NAMES = ("fvcore", "torch")
PREDICTORS = ("image_predictor", "output_predictor")


@dataclass(frozen=True)
class Finding:
    """MACs of one component of one mode by three counters (None: cannot count it)."""

    mode: str
    component: str
    closed: int
    fvcore: int | None
    torch: int | None

    @property
    def agrees(self) -> bool:
        """Whether all that counted found the same number."""
        return all(other in (None, self.closed) for other in (self.fvcore, self.torch))


def audit(run: ledger.Run, mode: str, *, direct: int = 16) -> list[Finding]:
    """Count one mode of a run three times.

    ``direct`` is how many shapes are counted one by one before the bilinear law is used
    (:class:`dynllava.costs.counters.LayerMacs`).
    """
    closed = ledger.by_component(ledger.entries(run, mode))
    counted = {name: count_run(run, mode, name, direct=direct) for name in COUNTER_NAMES}
    return [
        Finding(mode, name, macs, counted["fvcore"][name], counted["torch"][name])
        for name, macs in closed.items()
    ]


def count_run(
    run: ledger.Run, mode: str, counter: str, *, direct: int = 16
) -> dict[str, int | None]:
    """Return MACs by component of one mode, all from ``counter`` (None: it cannot count it)."""
    dims, batch = run.spec.dims, run.batch
    totals: Counter[str] = Counter()
    layer = counters.LayerMacs(counter, direct)
    for (queries, keys), times in ledger.shape_calls(run, mode).items():
        for component, macs in layer(dims, queries, keys, batch).items():
            totals[component] += times * macs
    predictors: dict[str, int] = {}
    for operation, times in ledger.operation_calls(run, mode):
        if operation.component in PREDICTORS:
            predictors[operation.component] = times
        else:
            totals[operation.component] += times * count_operation(counter, operation, batch)
    for component, times in predictors.items():
        macs = count_predictor(counter, dims, component, run.shape.image, batch)
        totals[component] += times * macs
    rows = ledger.head_rows(run, mode)
    if rows:
        totals["lm_head"] += rows * counters.count_linear(
            counter, dims.hidden, dims.vocab, 1, batch
        )
    result: dict[str, int | None] = dict(ledger.in_table_order(totals))
    spec = run.tower_spec
    if mode == "prefill" and run.shape.image and spec.family is not None:
        # Their towers do not run on meta tensors; tests count small ones on real tensors.
        result |= {"projector": None, "vision_tower": None}
    elif mode == "prefill" and run.shape.image and spec.vision is not None:
        result["projector"] = count_projector(counter, spec, batch)
        result["vision_tower"] = (
            None if counter == "fvcore" else batch * count_vision_on_meta(spec.vision)
        )
    return result


def count_operation(counter: str, operation: Operation, batch: int) -> int:
    """Return MACs of an operation, executed as ``batch * count`` products of its size."""
    sizes = (operation.m, operation.k, operation.n)
    return _count_products(counter, batch * operation.count, *sizes)


@functools.lru_cache(maxsize=4096)
def _count_products(counter: str, products: int, m: int, k: int, n: int) -> int:
    left = torch.empty(products, m, k, device="meta")
    right = torch.empty(products, k, n, device="meta")
    return counters.COUNTERS[counter](_Product(), (left, right)).total


class _Product(nn.Module):
    def forward(self, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        return left @ right


@functools.lru_cache(maxsize=256)
def count_predictor(counter: str, dims: ModelDims, which: str, tokens: int, batch: int) -> int:
    """Return MACs of the real image predictor on ``tokens``, or output predictor on one."""
    from dynllava.methods.predictors import ImagePredictor, OutputPredictor

    module: nn.Module
    with torch.device("meta"):
        if which == "image_predictor":
            module = ImagePredictor(
                dims.hidden,
                dims.predictor_dim,
                dims.predictor_heads,
                dims.predictor_feedforward,
                dims.predictor_blocks,
            )
            mask = torch.ones(batch, tokens, dtype=torch.bool)
            inputs: tuple[torch.Tensor, ...] = (torch.empty(batch, tokens, dims.hidden), mask)
        else:
            module = OutputPredictor(dims.hidden, dims.predictor_dim)
            inputs = (torch.empty(batch, 1, dims.hidden),)
    return counters.COUNTERS[counter](module.eval(), inputs).total


@functools.lru_cache(maxsize=64)
def count_projector(counter: str, spec: ModelSpec, images: int) -> int:
    """Return MACs of the stock LLaVA projector on meta tensors."""
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig
    from transformers.models.llava.modeling_llava import LlavaMultiModalProjector

    assert spec.vision is not None
    if spec.packer is not None:
        from dynllava.models.token_packer import LEVELS, TokenPacker

        factor, width = spec.packer
        channels = spec.vision.hidden
        with torch.device("meta"):
            packer = TokenPacker(channels, spec.dims.hidden, factor, width, max(1, width // 128))
            states = torch.empty(images, spec.vision.patches, (len(LEVELS) + 1) * channels)
        return counters.COUNTERS[counter](packer.eval(), (states,)).total
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(hidden_size=spec.vision.hidden, num_attention_heads=1),
        text_config=LlamaConfig(hidden_size=spec.dims.hidden, num_attention_heads=1),
        vision_feature_layer=-2 if spec.feature_layers == 1 else [-2] * spec.feature_layers,
    )
    with torch.device("meta"):
        module = LlavaMultiModalProjector(config)
        features = torch.empty(images, spec.image_tokens, spec.vision.hidden * spec.feature_layers)
    return counters.COUNTERS[counter](module, (features,)).total


def vision_module(vision: VisionDims) -> nn.Module:
    """Return the stock CLIP vision model of these sizes (on the current default device)."""
    from transformers import CLIPVisionConfig, CLIPVisionModel

    config = CLIPVisionConfig(
        hidden_size=vision.hidden,
        intermediate_size=vision.intermediate,
        num_hidden_layers=vision.layers,
        num_attention_heads=vision.heads,
        image_size=vision.image_size,
        patch_size=vision.patch_size,
        num_channels=vision.channels,
        attn_implementation="sdpa",
    )
    return CLIPVisionModel(config).eval()


def pixels(vision: VisionDims, images: int = 1) -> torch.Tensor:
    """Return an uninitialised input of :func:`vision_module`."""
    edge = vision.image_size // vision.patch_size
    rows, columns = vision.grid or (edge, edge)
    return torch.zeros(
        images, vision.channels, rows * vision.patch_size, columns * vision.patch_size
    )


@functools.lru_cache(maxsize=8)
def count_vision_on_meta(vision: VisionDims) -> int:
    """Return MACs of one image through the real vision tower, FlopCounterMode on meta."""
    with torch.device("meta"):
        return counters.torch_count(_LastHidden(vision_module(vision)), (pixels(vision),)).total


def count_vision_on_cpu(counter: str, vision: VisionDims) -> int:
    """Return MACs of one image through a small vision tower with real tensors.

    fvcore drops layers whose output is unused; the last hidden state uses them all.
    """
    return counters.COUNTERS[counter](_LastHidden(vision_module(vision)), (pixels(vision),)).total


class _LastHidden(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        return self.model(values, interpolate_pos_encoding=True).last_hidden_state


def uncounted(run: ledger.Run) -> list[tuple[str, str, str]]:
    """Return what no counter's MACs contain: (where, operation, size per sequence).

    Occurrences inside a decoder layer come from fvcore's own list of operations without a rule.
    """
    dims, shape = run.spec.dims, run.shape
    rows = shape.total
    listed = [
        (
            "decoder layer (per layer)",
            f"{name.removeprefix('aten::')} x{times}",
            f"elementwise on {rows} rows",
        )
        for name, times in sorted(
            counters.count_layer("fvcore", dims, rows, rows, 1).uncounted.items()
        )
    ]
    listed.append(
        ("decoder layer (per layer)", "softmax", f"{dims.heads} x {rows} x {rows} (inside sdpa)")
    )
    listed.append(("decoder layer (per layer)", "RMSNorm x2", f"{rows} x {dims.hidden}"))
    listed.append(("decoder", "gather of kept tokens", f"{rows} x {dims.hidden} copies"))
    vision = run.spec.vision
    if vision is not None and shape.image:
        listed.append(
            (
                f"vision tower ({vision.layers} layers)",
                "LayerNorm x2, softmax, quick GELU",
                f"{vision.tokens} x {vision.hidden}; {vision.heads} x {vision.tokens}^2",
            )
        )
    return listed
