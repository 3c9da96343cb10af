"""Roofline estimates: time = max(FLOPs / compute, bytes / bandwidth), per component and call.

An *estimate*, never a measurement.  It contains matrix products only (no norms, softmax, sampling,
kernel launches or host time), takes every component as one perfectly overlapped kernel at a fixed
share of the device's peaks, and reads every weight once a call.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

from dynllava.plan import ModelDims, Operation

from . import flops, ledger
from .devices import Device
from .spec import ModelSpec, VisionDims, dtype_bytes
from .towers import Picture

COMPUTE_EFFICIENCY = 0.6
"""Default share of peak FLOP/s that large matrix products are assumed to reach."""

BANDWIDTH_EFFICIENCY = 0.8
"""Default share of peak bandwidth that streaming weights is assumed to reach."""


@dataclass(frozen=True)
class Work:
    """What one component of one call costs: FLOPs and bytes moved, whole batch."""

    flop: int
    bytes: int


@dataclass(frozen=True)
class Efficiency:
    """Assumed shares of the device's peaks."""

    compute: float = COMPUTE_EFFICIENCY
    bandwidth: float = BANDWIDTH_EFFICIENCY


@dataclass
class Estimate:
    """Estimated time of one mode.

    Attributes
    ----------
    mode : str
        One of :data:`dynllava.costs.ledger.MODES`.
    calls : int
        Forward calls.
    seconds : dict
        Component -> seconds, all calls.
    compute_bound : dict
        Component -> seconds of those that are compute-bound.
    """

    mode: str
    calls: int
    seconds: dict[str, float]
    compute_bound: dict[str, float]

    @property
    def total(self) -> float:
        """Seconds of the whole mode."""
        return sum(self.seconds.values())

    @property
    def per_call(self) -> float:
        """Mean seconds a call (a generated token, when decoding); 0 without calls."""
        return self.total / self.calls if self.calls else 0.0

    def bound(self, component: str) -> str:
        """Return ``"compute"`` or ``"bandwidth"``: where most of the component's time goes."""
        return (
            "compute"
            if self.compute_bound.get(component, 0.0) > self.seconds[component] / 2
            else "bandwidth"
        )


def layer_work(dims: ModelDims, queries: int, keys: int, batch: int, size: int) -> dict[str, Work]:
    """Return the work of one decoder layer; ``size`` is the bytes of one element."""
    macs = flops.decoder_layer(dims, queries, keys, batch)
    width, kv_width = dims.heads * dims.head_dim, dims.kv_heads * dims.head_dim
    rows = batch * queries
    moved = {
        "attention_projections": 2 * dims.hidden * (width + kv_width)
        + rows * (2 * dims.hidden + 2 * width + 2 * kv_width),
        "attention_scores": rows * 2 * width + batch * keys * 2 * kv_width,
        "mlp": 3 * dims.hidden * dims.intermediate
        + rows * (2 * dims.hidden + 3 * dims.intermediate),
    }
    return {
        name: Work(flops.FLOPS_PER_MAC * macs[name], size * count) for name, count in moved.items()
    }


def operation_work(operation: Operation, batch: int, size: int) -> Work:
    """Return the work of a method's own operation; its second factor is taken as weights."""
    m, k, n = operation.m, operation.k, operation.n
    moved = operation.count * (k * n + batch * (m * k + m * n))
    return Work(flops.FLOPS_PER_MAC * batch * operation.macs, size * moved)


def head_work(dims: ModelDims, rows: int, size: int) -> Work:
    """Return the work of the lm head on ``rows`` positions in all."""
    moved = dims.hidden * dims.vocab + rows * (dims.hidden + dims.vocab)
    return Work(flops.FLOPS_PER_MAC * flops.lm_head(dims, rows), size * moved)


def vision_work(spec: ModelSpec, batch: int, size: int) -> dict[str, Work]:
    """Return the work of vision tower and projector for one image per sequence."""
    vision = spec.vision
    if vision is None:
        return {}
    parts = spec.parameters()
    moved = parts["vision_tower"] + batch * (
        vision.activations() if isinstance(vision, Picture) else _vision_activations(vision)
    )
    rows = batch * spec.image_tokens
    width = vision.hidden * spec.feature_layers
    if isinstance(vision, Picture):
        rows, width = batch * vision.projected, vision.hidden * vision.of.merge**2
    projected = parts["projector"] + rows * (width + 3 * spec.dims.hidden)
    return {
        "vision_tower": Work(flops.FLOPS_PER_MAC * flops.vision_tower(vision, batch), size * moved),
        "projector": Work(flops.FLOPS_PER_MAC * flops.projector(spec, batch), size * projected),
    }


def _vision_activations(vision: VisionDims) -> int:
    """Return elements that one image's layers read and write."""
    return vision.layers * vision.tokens * (8 * vision.hidden + 2 * vision.intermediate)


def work_calls(run: ledger.Run, mode: str, dtype: str) -> dict[str, list[tuple[Work, int]]]:
    """Return component -> (work, how often it is executed) pairs of a mode."""
    dims, batch, size = run.spec.dims, run.batch, dtype_bytes(dtype)
    work: dict[str, list[tuple[Work, int]]] = defaultdict(list)
    for (queries, keys), times in ledger.shape_calls(run, mode).items():
        for component, item in layer_work(dims, queries, keys, batch, size).items():
            work[component].append((item, times))
    for operation, times in ledger.operation_calls(run, mode):
        item = operation_work(operation, batch, size)
        work[operation.component].append((item, times))
    calls = ledger.head_rows(run, mode)
    if calls:
        work["lm_head"].append((head_work(dims, batch, size), calls))
    if mode == "prefill" and run.shape.image:
        for component, item in vision_work(run.tower_spec, batch, size).items():
            work[component].append((item, 1))
    return work


def estimate(
    run: ledger.Run,
    mode: str,
    device: Device,
    dtype: str,
    efficiency: Efficiency | None = None,
) -> Estimate:
    """Estimate the time of one mode of a run on ``device``."""
    efficiency = efficiency or Efficiency()
    rate = device.flops(dtype) * efficiency.compute
    bandwidth = device.bandwidth_bytes_per_s * efficiency.bandwidth
    seconds: dict[str, float] = {}
    compute: dict[str, float] = {}
    for component, items in work_calls(run, mode, dtype).items():
        for item, times in items:
            by_compute, by_bytes = item.flop / rate, item.bytes / bandwidth
            seconds[component] = seconds.get(component, 0.0) + times * max(by_compute, by_bytes)
            if by_compute >= by_bytes:
                compute[component] = compute.get(component, 0.0) + times * by_compute
    return Estimate(mode, ledger.head_rows(run, mode), seconds, compute)


def bytes_moved(run: ledger.Run, mode: str, dtype: str) -> int:
    """Return weights + KV bytes that a mode moves: what bounds decoding with a cache.

    Every weight of the language model is read once a call, every attended key and value once a
    call; activations are left out.  The second factor of the method's own products counts too.
    """
    dims, batch, size = run.spec.dims, run.batch, dtype_bytes(dtype)
    calls = ledger.head_rows(run, mode)
    layer = run.spec.layer_parameters()
    weights = dims.layers * (layer["attention"] + layer["mlp"]) + dims.hidden * dims.vocab
    own = sum(
        times * operation.count * operation.k * operation.n
        for operation, times in ledger.operation_calls(run, mode)
    )
    kv = sum(
        times * keys * 2 * dims.kv_heads * dims.head_dim
        for (_, keys), times in ledger.shape_calls(run, mode).items()
    )
    return size * (calls * weights + own + batch * kv)
