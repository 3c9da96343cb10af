"""All numbers of one profile as a flat list: what tables, CSV, JSON and records are made of."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from . import bands, conventions, flops, kv, ledger, roofline
from .devices import Device


@dataclass(frozen=True)
class Quantity:
    """One number that says what it is.

    Attributes
    ----------
    section : str
        ``"compute"``, ``"layers"``, ``"kv"``, ``"capacity"`` or ``"time"``.
    mode : str
        One of :data:`dynllava.costs.ledger.MODES`, or when the number holds.
    name : str
        Component or quantity.
    value : float
        The number.
    unit : str
        ``MAC``, ``FLOP``, ``byte``, ``s``, ``token``, ``sequence``, ``1`` ...
    convention : str
        How it was counted or estimated.
    """

    section: str
    mode: str
    name: str
    value: float
    unit: str
    convention: str


@dataclass(frozen=True)
class Options:
    """How a run is profiled (see ``dynllava profile --help``)."""

    convention: str = "counted"
    unit: str = "FLOP"
    dtype: str = "float16"
    device: Device | None = None
    efficiency: roofline.Efficiency = field(default_factory=roofline.Efficiency)
    layer_counter: ledger.LayerCounter = flops.decoder_layer


def profile(run: ledger.Run, options: Options) -> list[Quantity]:
    """Return every number of a run: cost of each mode, KV memory, what fits, estimated times."""
    items = list(compute_quantities(run, options))
    items += kv_quantities(run, options.dtype)
    if options.device is not None:
        items += capacity_quantities(run, options.dtype, options.device)
        items += time_quantities(run, options)
    return items


def compute_quantities(run: ledger.Run, options: Options) -> Iterator[Quantity]:
    """Yield the cost of each mode under the chosen convention."""
    if options.convention != "counted":
        yield from _paper_quantities(run, options.convention)
        return
    factor = flops.FLOPS_PER_MAC if options.unit == "FLOP" else 1
    unit = "FLOP" if options.unit == "FLOP" else "MAC"
    dense = run.dense()
    for mode in ledger.modes(run):
        entries = ledger.entries(run, mode, layer_counter=options.layer_counter)
        for component, macs in ledger.by_component(entries).items():
            yield Quantity("compute", mode, component, factor * macs, unit, "counted")
        total = ledger.total(entries)
        baseline = ledger.total(ledger.entries(dense, mode, layer_counter=options.layer_counter))
        yield Quantity("compute", mode, "total", factor * total, unit, "counted")
        yield Quantity("compute", mode, "dense total", factor * baseline, unit, "counted")
        yield Quantity("compute", mode, "saved share", 1 - total / baseline, "1", "counted")
        for layer, macs in enumerate(ledger.by_layer(entries, run.spec.dims.layers)):
            yield Quantity("layers", mode, f"layer {layer}", factor * macs, unit, "counted")


def _paper_quantities(run: ledger.Run, name: str) -> Iterator[Quantity]:
    convention = conventions.convention(name)
    dims = run.spec.dims
    modes = {"prefill": (ledger.image_tokens_per_layer(run), run.shape.image)}
    if convention.decoding:
        kept = run.schedule.kept_outputs(run.outputs)
        tokens = [kept if drops else run.outputs for drops in run.schedule.drops_output]
        modes["decode"] = (tokens, run.outputs)
    for mode, (tokens, dense_tokens) in modes.items():
        segments = conventions.run_length_segments(tokens)
        cost = conventions.segments_cost(name, segments, dims.hidden, dims.intermediate)
        dense_segments = [(dims.layers, dense_tokens)]
        dense = conventions.segments_cost(name, dense_segments, dims.hidden, dims.intermediate)
        for label, value in (("total", cost), ("dense total", dense)):
            yield Quantity("compute", mode, label, run.batch * value, convention.unit, name)
        if dense:
            yield Quantity("compute", mode, "saved share", 1 - cost / dense, "1", name)


def kv_quantities(run: ledger.Run, dtype: str) -> Iterator[Quantity]:
    """Yield KV bytes after prefill and at the end, of the run and of the dense model."""
    moments = {"after prefill": 0, "at the end": run.outputs - 1}
    for moment, fed in moments.items():
        state, dense = kv.kv_state(run, fed, dtype), kv.kv_state(run.dense(), fed, dtype)
        for name, value in (
            ("stored", state.total_stored),
            ("allocated", state.total_allocated),
            ("peak of the call", state.peak),
            ("dense stored", dense.total_stored),
        ):
            yield Quantity("kv", moment, name, value, "byte", dtype)


def capacity_quantities(run: ledger.Run, dtype: str, device: Device) -> Iterator[Quantity]:
    """Yield what fits on the device next to the weights (estimates)."""
    label = f"estimate, {device.name}, {dtype}"
    fitted = bands.memory_overhead()
    for name, item in (("method", run), ("dense", run.dense())):
        counted = kv.memory_bytes(item, dtype)
        missing = fitted.of(kv.kv_state(item, item.outputs - 1, dtype).total_stored)
        yield Quantity("capacity", name, "memory", counted, "byte", label)
        yield Quantity("capacity", name, "with overhead", counted + missing, "byte", label)
        batch = kv.max_batch(item, device, dtype, overhead=fitted.of)
        yield Quantity("capacity", name, "largest batch", batch, "sequence", label)
        outputs = kv.max_outputs(item, device, dtype, overhead=fitted.of)
        yield Quantity("capacity", name, "most output tokens", outputs, "token", label)


def time_quantities(run: ledger.Run, options: Options) -> Iterator[Quantity]:
    """Yield roofline estimates of each mode, per component and in total."""
    assert options.device is not None
    share = options.efficiency
    label = (
        f"roofline estimate, {options.device.name}, {options.dtype}, "
        f"{share.compute:.0%} of compute, {share.bandwidth:.0%} of bandwidth"
    )
    dense = run.dense()
    for mode in ledger.modes(run):
        arguments = (mode, options.device, options.dtype, share)
        estimate, baseline = (roofline.estimate(item, *arguments) for item in (run, dense))
        for component in ledger.in_table_order(estimate.seconds):
            if component not in estimate.seconds:
                continue
            bound = f"{label}, {estimate.bound(component)}-bound"
            yield Quantity("time", mode, component, estimate.seconds[component], "s", bound)
        yield Quantity("time", mode, "total", estimate.total, "s", label)
        yield Quantity("time", mode, "dense total", baseline.total, "s", label)
        if mode != "prefill":
            yield Quantity("time", mode, "per token", estimate.per_call, "s", label)
            yield Quantity("time", mode, "dense per token", baseline.per_call, "s", label)
