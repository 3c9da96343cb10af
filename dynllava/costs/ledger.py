"""One ledger: the multiply-accumulates of a run, by mode, component and layer.

A run generates ``outputs`` tokens: the first comes from the prefill, the other ``outputs - 1``
are each fed once.  Its modes:

``prefill``
    One call on the prompt; logits of the last position only, as ``generate`` computes them.
``decode``
    ``outputs - 1`` steps with a cache, one query each.
``decode_nocache``
    ``outputs - 1`` calls on the prompt and all output tokens so far; tokens are selected anew in
    every call.  The vision tower runs once (its embeddings are kept).

Every number is per batch, includes the method's own overhead, and is in MAC (one MAC is two
FLOPs); realised instead of declared token counts enter as a changed :class:`Schedule`.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from dynllava.errors import UserError
from dynllava.methods.base import Method
from dynllava.methods.smaller import sizing
from dynllava.plan import ModelDims, Operation, Schedule, Shape

from . import flops
from .spec import ModelSpec

OUTPUT_PREDICTOR = "output_predictor"

MODES = ("prefill", "decode", "decode_nocache")

LayerCounter = Callable[[ModelDims, int, int, int], dict[str, int]]
"""(dims, queries, keys, batch) -> MACs by component of one decoder layer."""


Count = TypeVar("Count", int, float)


@dataclass(frozen=True)
class Run:
    """What is executed.

    Attributes
    ----------
    spec : ModelSpec
        The model.
    method : Method
        The compression method.
    shape : Shape
        Tokens of one prompt.
    outputs : int
        Generated tokens, the first (from prefill) included.
    batch : int
        Equal sequences.
    schedule : Schedule
        Tokens per layer: the method's declared schedule, or a realised one.
    """

    spec: ModelSpec
    method: Method
    shape: Shape
    outputs: int = 1
    batch: int = 1
    schedule: Schedule = field(default=None)  # type: ignore[assignment]

    def __post_init__(self) -> None:
        for name in ("outputs", "batch"):
            if getattr(self, name) < 1:
                raise UserError(f"{name}={getattr(self, name)}: accepted is 1 or more")
        if self.schedule is None:
            layers = self.spec.dims.layers
            self.method.validate(layers)
            object.__setattr__(self, "schedule", self.method.schedule(self.shape, layers))

    def realised(self, *, output_keep: float | None = None, **changes: Any) -> Run:
        """Return the run with realised token counts in place of declared ones.

        ``output_keep`` is the realised share of kept output tokens; other ``changes`` are
        fields of :class:`Schedule`, e.g. ``prefill_rows``.
        """
        if output_keep is not None:
            changes["output_keep"] = output_keep
        return replace(self, schedule=replace(self.schedule, **changes))

    @property
    def tower_spec(self) -> ModelSpec:
        """The model with the picture that the tower sees and the rows that are projected."""
        spec = self.spec
        if spec.vision is None:
            return spec
        smaller = sizing(self.method)
        if spec.family is not None and smaller is not None:
            raise UserError(
                f"{self.method.name}: makes pictures smaller, which is counted for LLaVA-1.5 only"
            )
        if smaller is None:
            stages = self.method.plan(spec.dims.layers).stages(self.shape)
            cut = [stage.after for stage in stages if stage.cut.stage == "features"]
            return replace(spec, image_tokens=cut[0]) if cut else spec
        tower = spec.square_tower
        assert tower is not None  # other families were refused above
        edge = tower.image_size // tower.patch_size
        grid = smaller.tower_grid(edge, edge)
        vision = replace(tower, grid=grid)
        return replace(spec, vision=vision, image_tokens=grid[0] * grid[1])

    def dense(self) -> Run:
        """Return the same run without compression."""
        return Run(self.spec, Method(), self.shape, self.outputs, self.batch)


def modes(run: Run) -> tuple[str, ...]:
    """Return the modes that a run has.

    One generated token comes from prefill alone; a method that evicts cache entries is not
    defined without a cache.
    """
    if run.outputs == 1:
        return MODES[:1]
    return MODES if not evicts(run.schedule) else MODES[:2]


def evicts(schedule: Schedule) -> bool:
    """Return whether the method bounds its cache."""
    return any(limit is not None for limit in schedule.kv_limit)


@dataclass(frozen=True)
class Entry:
    """MACs of one component in one layer (None: outside the decoder layers), whole batch."""

    component: str
    layer: int | None
    macs: int


@dataclass(frozen=True)
class GroupCalls:
    """Layers that do exactly the same, and how often each of them runs q queries on k keys."""

    layers: tuple[int, ...]
    shapes: Mapping[tuple[int, int], int]


def layer_calls(run: Run, mode: str) -> tuple[GroupCalls, ...]:
    """Return what every layer executes in a mode, equal layers grouped."""
    return _layer_calls(run.schedule, run.outputs, mode)


@functools.lru_cache(maxsize=256)
def _layer_calls(schedule: Schedule, outputs: int, mode: str) -> tuple[GroupCalls, ...]:
    groups: dict[tuple, list[int]] = {}
    columns = (schedule.prefill_rows, schedule.prefill_kv, schedule.drops_output, schedule.kv_limit)
    for layer, signature in enumerate(zip(*columns, strict=True)):
        groups.setdefault(signature, []).append(layer)
    # One layer stands for its group: long decodings have thousands of steps.
    first = [layers[0] for layers in groups.values()]
    few = Schedule(
        tuple(schedule.prefill_rows[layer] for layer in first),
        tuple(schedule.prefill_kv[layer] for layer in first),
        tuple(schedule.drops_output[layer] for layer in first),
        tuple(schedule.kv_limit[layer] for layer in first),
        schedule.output_keep,
    )
    shapes: list[Counter[tuple[int, int]]] = [Counter() for _ in groups]
    if mode == "prefill":
        for counter, rows in zip(shapes, few.prefill_rows, strict=True):
            counter[rows, rows] += 1
    elif mode == "decode":
        for fed in range(outputs - 1):
            for counter, keys in zip(shapes, few.attended_lengths(fed), strict=True):
                counter[1, keys] += 1
    elif mode == "decode_nocache":
        for fed in range(1, outputs):
            for counter, rows in zip(shapes, few.nocache_rows(fed), strict=True):
                counter[rows, rows] += 1
    else:
        raise UserError(f"mode {mode!r}: accepted are {', '.join(MODES)}")
    return tuple(
        GroupCalls(tuple(layers), counter)
        for layers, counter in zip(groups.values(), shapes, strict=True)
    )


def shape_calls(run: Run, mode: str) -> Counter[tuple[int, int]]:
    """Return how often any layer runs q queries on k keys, as a counter of (q, k)."""
    total: Counter[tuple[int, int]] = Counter()
    for group in layer_calls(run, mode):
        for shape, times in group.shapes.items():
            total[shape] += times * len(group.layers)
    return total


def operation_calls(run: Run, mode: str) -> list[tuple[Operation, int]]:
    """Return the method's own operations and how often each is executed."""
    steps = run.outputs - 1
    repeats = {
        "prefill": {"prefill": 1, "decode": 0},
        "decode": {"prefill": 0, "decode": steps},
        "decode_nocache": {"prefill": steps, "decode": 0},
    }[mode]
    found = []
    for item in run.method.overhead(run.shape, run.spec.dims):
        times = repeats[item.phase]
        if mode == "decode_nocache" and item.component == OUTPUT_PREDICTOR:
            # Each call judges all its output tokens again.
            times = steps * (steps + 1) // 2
        if item.grows and mode != "prefill":
            found += [(_grown(run, item, mode, fed), 1) for fed in range(1, times + 1)]
        elif times:
            found.append((item, times))
    return found


def _grown(run: Run, item: Operation, mode: str, fed: int) -> Operation:
    """Return the operation as the ``fed``-th output token's call executes it."""
    schedule, layer = run.schedule, item.layer
    assert layer is not None  # what grows with the cache is a layer's
    if mode == "decode":
        added = schedule.attended_lengths(fed - 1)[layer] - schedule.prefill_kv[layer]
    else:
        added = schedule.nocache_rows(fed)[layer] - schedule.prefill_rows[layer]
    return replace(item, n=item.n + item.grows * added)


def head_rows(run: Run, mode: str) -> int:
    """Return the positions per sequence at which logits are computed (one a call)."""
    return 1 if mode == "prefill" else run.outputs - 1


def entries(
    run: Run,
    mode: str,
    *,
    vision: bool = True,
    layer_counter: LayerCounter = flops.decoder_layer,
) -> list[Entry]:
    """Return the ledger of one mode.

    Parameters
    ----------
    run : Run
        What is executed.
    mode : str
        One of :data:`MODES`.
    vision : bool
        Whether vision tower and projector are included (in ``prefill`` only).
    layer_counter : callable
        Where a decoder layer's MACs come from: the closed form or a counter.
    """
    dims, batch = run.spec.dims, run.batch
    totals: Counter[tuple[str, int | None]] = Counter()
    for group in layer_calls(run, mode):
        one: Counter[str] = Counter()
        for (queries, keys), times in group.shapes.items():
            for component, macs in layer_counter(dims, queries, keys, batch).items():
                one[component] += times * macs
        for layer in group.layers:
            for component, macs in one.items():
                totals[component, layer] += macs
    for operation, times in operation_calls(run, mode):
        totals[operation.component, operation.layer] += times * batch * operation.macs
    totals["lm_head", None] += flops.lm_head(dims, head_rows(run, mode), batch)
    seen = run.tower_spec
    if vision and mode == "prefill" and run.shape.image and seen.vision is not None:
        totals["vision_tower", None] += flops.vision_tower(seen.vision, batch)
        totals["projector", None] += flops.projector(seen, batch)
    ordered = sorted(totals.items(), key=lambda item: (item[0][1] is None, item[0][1] or 0))
    return [Entry(component, layer, macs) for (component, layer), macs in ordered]


def by_component(items: Iterable[Entry]) -> dict[str, int]:
    """Return MACs by component, in table order; components that did not run are 0."""
    totals: Counter[str] = Counter()
    for item in items:
        totals[item.component] += item.macs
    return in_table_order(totals)


def in_table_order(totals: Mapping[str, Count]) -> dict[str, Count]:
    """Return ``totals`` with all standard components first, then those a method added."""
    extra: list[str] = [name for name in totals if name not in flops.COMPONENTS]
    return {name: totals.get(name, 0) for name in (*flops.COMPONENTS, *extra)}


def by_layer(items: Iterable[Entry], layers: int) -> list[int]:
    """Return [layers] MACs of each decoder layer, the method's overhead there included."""
    totals = [0] * layers
    for item in items:
        if item.layer is not None:
            totals[item.layer] += item.macs
    return totals


def total(items: Iterable[Entry]) -> int:
    """Return the MACs of all entries."""
    return sum(item.macs for item in items)


def image_tokens_per_layer(run: Run) -> list[int]:
    """Return [layers] image tokens (merged ones included) processed in prefill."""
    text = run.shape.total - run.shape.image
    return [rows - text for rows in run.schedule.prefill_rows]
