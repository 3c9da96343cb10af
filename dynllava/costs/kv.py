"""KV-cache memory: bytes stored, bytes allocated, and the peak of a step; what fits on a device.

Stored bytes follow the method's schedule.  Allocated bytes follow the cache's growth rule
(:func:`dynllava.plan.stores.room`): room for one token beyond the longest row whenever one is fed,
and some more; a method that bounds its cache never allocates more than the bound and one, and
allocates its scores beside them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from dynllava.plan import ModelDims, PerHead
from dynllava.plan.stores import DEFAULT_CHUNK, room

from .devices import Device
from .ledger import Run
from .spec import dtype_bytes

USABLE_SHARE = 0.92
"""Share of a device's memory left for tensors (context, allocator fragmentation): an assumption."""


Overhead = Callable[[float], float]

EVICTION_BYTES = 4 + 8
"""Bytes beside each K/V entry and head of an evicting layer: score and ordinal."""

ROLLED_BYTES = 8
"""Bytes more where positions are rolled: the one that the key was given."""


def entry_bytes(dims: ModelDims, dtype: str) -> int:
    """Return the bytes of one cached token in one layer, K and V together."""
    return 2 * dims.kv_heads * dims.head_dim * dtype_bytes(dtype)


@dataclass(frozen=True)
class KvState:
    """The cache after some output tokens were fed; bytes are for the whole batch.

    Attributes
    ----------
    fed : int
        Output tokens fed so far (0 = right after prefill).
    lengths : list of int
        [layers] entries stored per sequence.
    stored, allocated : list of int
        [layers] bytes stored and allocated.
    peak : int
        Most bytes allocated at any moment of the call that led here, all layers.
    """

    fed: int
    lengths: list[int]
    stored: list[int]
    allocated: list[int]
    peak: int

    @property
    def total_stored(self) -> int:
        """Bytes stored, all layers."""
        return sum(self.stored)

    @property
    def total_allocated(self) -> int:
        """Bytes allocated, all layers."""
        return sum(self.allocated)


def kv_state(
    run: Run, fed: int, dtype: str, *, chunk: int | None = DEFAULT_CHUNK, kept: int | None = None
) -> KvState:
    """Return the cache after ``fed`` output tokens.

    Parameters
    ----------
    run : Run
        Model, method, prompt, batch.
    fed : int
        Output tokens fed (a run of T generated tokens ends with T - 1).
    dtype : str
        Of K and V.
    chunk : int or None
        Growth in tokens (:func:`dynllava.plan.stores.room`).
    kept : int, optional
        Realised number of kept output tokens; default: the schedule's expectation.
    """
    schedule = run.schedule
    unit = run.batch * entry_bytes(run.spec.dims, dtype)
    lengths = schedule.kv_lengths(fed, kept)
    capacities = _capacities(run, fed, chunk, kept)
    stored = [unit * length for length in lengths]
    beside = run.batch * run.spec.dims.kv_heads * beside_bytes(run)
    allocated = [
        capacity * (unit if limit is None else unit + beside)
        for capacity, limit in zip(capacities, schedule.kv_limit, strict=True)
    ]
    if fed == 0:
        transient = _prefill_transient(schedule.prefill_rows, schedule.prefill_kv, allocated)
        peak = max(held + unit * rows for held, rows in transient)
    else:
        before = _capacities(run, fed - 1, chunk, None if kept is None else max(kept - 1, 0))
        # A layer that grows holds its old and its new buffer of K or V for a moment.
        growing = [old // 2 for old, new in zip(before, capacities, strict=True) if new > old]
        peak = sum(allocated) + unit * max(growing, default=0)
    return KvState(fed, lengths, stored, allocated, peak)


def beside_bytes(run: Run) -> int:
    """Return the bytes beside each K/V entry and head of an evicting layer."""
    store = run.method.plan(run.spec.dims.layers).store
    rolled = isinstance(store, PerHead) and store.rolled
    return EVICTION_BYTES + rolled * ROLLED_BYTES


def _capacities(run: Run, fed: int, chunk: int | None, kept: int | None) -> list[int]:
    schedule = run.schedule
    start = schedule.kv_lengths(0)
    if fed == 0:
        before = [entries - 1 for entries in start]
    else:
        before = schedule.kv_lengths(fed - 1, None if kept is None else min(kept, fed - 1))
    return [
        _capacity(first, entries, limit, chunk)
        for first, entries, limit in zip(start, before, schedule.kv_limit, strict=True)
    ]


def _capacity(first: int, before: int, limit: int | None, chunk: int | None) -> int:
    """Return the entries allocated: ``first`` after prefill, ``before`` ahead of the last step."""

    def within(needed: int, *, grown: bool) -> int:
        found = room(needed, chunk, grown=grown)
        return found if limit is None else max(needed, min(found, limit + 1))

    capacity = within(first + 1, grown=False)
    while capacity <= before:
        # Tokens come one by one, so a row grows when it needs one entry more than it has.
        capacity = within(capacity + 1, grown=True)
    return capacity


def _prefill_transient(
    rows: tuple[int, ...], kept: tuple[int, ...], allocated: list[int]
) -> list[tuple[int, int]]:
    """Return per layer: bytes allocated up to it, and rows held uncompressed beside them."""
    held, found = 0, []
    for entered, stored, size in zip(rows, kept, allocated, strict=True):
        held += size
        found.append((held, entered if stored < entered else 0))
    return found


def activation_bytes(run: Run, dtype: str) -> int:
    """Return an estimate of the largest working set of prefill, for one batch.

    The MLP holds gate, up and their product next to residual and normalised hidden states; the
    logits of the last position are in float32.
    """
    dims = run.spec.dims
    rows = max(run.schedule.prefill_rows)
    per_row = (3 * dims.intermediate + 3 * dims.hidden) * dtype_bytes(dtype)
    return run.batch * (rows * per_row + dims.vocab * 4)


def memory_bytes(run: Run, dtype: str, *, chunk: int | None = DEFAULT_CHUNK) -> int:
    """Return weights + KV cache at the end of the run + working set, an estimate in bytes."""
    end = kv_state(run, run.outputs - 1, dtype, chunk=chunk)
    start = kv_state(run, 0, dtype, chunk=chunk)
    working = activation_bytes(run, dtype)
    return run.spec.weight_bytes(dtype) + max(end.peak, start.peak) + working


def fits(run: Run, device: Device, dtype: str, overhead: Overhead | None = None) -> bool:
    """Return whether the run is estimated to fit on ``device``.

    Parameters
    ----------
    run : Run
    device : Device
    dtype : str
    overhead : callable, optional
        Bytes beside :func:`memory_bytes`, from the KV bytes at the end; such as
        :meth:`dynllava.costs.bands.MemoryOverhead.of`.  With it all of the memory counts as
        usable, without it :data:`USABLE_SHARE`.
    """
    needed = float(memory_bytes(run, dtype))
    if overhead is None:
        return needed <= USABLE_SHARE * device.memory_bytes
    return needed + overhead(kv_state(run, run.outputs - 1, dtype).total_stored) <= (
        device.memory_bytes
    )


def _largest(low: int, high: int, holds: Callable[[int], bool]) -> int:
    """Return the largest value in [low, high] for which ``holds`` is true, else low - 1."""
    if not holds(low):
        return low - 1
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if holds(middle) else (low, middle - 1)
    return low


def max_batch(
    run: Run, device: Device, dtype: str, limit: int = 4096, overhead: Overhead | None = None
) -> int:
    """Return the largest batch that is estimated to fit (0: not even one sequence)."""
    return _largest(
        1, limit, lambda batch: fits(replace(run, batch=batch), device, dtype, overhead)
    )


def max_outputs(
    run: Run, device: Device, dtype: str, limit: int = 1 << 20, overhead: Overhead | None = None
) -> int:
    """Return the most generated tokens that are estimated to fit (0: none).

    ``limit`` means that nothing but the model's context window bounds the length.
    """
    return _largest(
        1, limit, lambda outputs: fits(replace(run, outputs=outputs), device, dtype, overhead)
    )
