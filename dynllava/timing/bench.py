"""Interleaved speed measurements of dense and sparsified models, and their realised shares.

Protocol: all subjects in one process on shared weights; warm-up runs; then ``repeats`` rounds, in
each of which every subject runs once, in a shuffled order; medians with inter-quartile ranges;
ratios to the dense stock model are taken within a round.  Several processes (each with the seed of
its own order) hold what differs from process to process.
"""

from __future__ import annotations

import functools
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch

from dynllava import methods
from dynllava.costs import ledger, roofline
from dynllava.costs.spec import ModelSpec
from dynllava.errors import UserError
from dynllava.plan import Shape
from dynllava.plan.names import FULL

from . import speed, stats
from .bench_model import Bench
from .peak import peak_memory
from .speed import STATIC_COMPILED, STOCK, Inputs, Subject, Times

LATE = "decode_late"
"""The second half of the decoding steps: a ratio to dense, without a cost of its own."""

WARMUP_OUTPUTS = 256
"""Most tokens that a warm-up round generates."""

TIMED = {
    "prefill": "prefill",
    "decode": "tpot",
    "decode_nocache": "nocache_call",
}
"""Mode of the ledger -> the time that its cost is compared with."""

STEP = "step"
"""A decode step at a length (:attr:`Plan.window`): its cost is that of the window's steps."""

NAMES = {**TIMED, STEP: "step", LATE: "tpot_late"}
"""Everything that is compared -> its time."""

STEPPED = {"decode": "tpot", LATE: "tpot", STEP: "step"}
"""Mode that decodes on a cache -> the time by which the dense cache is chosen."""


@dataclass(frozen=True)
class Plan:
    """What to measure.

    Attributes
    ----------
    shape : Shape
        Prompt.
    batch, outputs : int
        Sequences, generated tokens.
    repeats, warmup : int
        Rounds that count, rounds before them.
    nocache_fed : tuple of int
        Output tokens in the probed calls without a cache (empty: not measured).
    seed : int
        Of the order within the rounds.
    what : str
        Start of the record's task name.
    window : int
        Decode steps right behind ``outputs`` generated tokens that are timed as ``step``.
    """

    shape: Shape
    batch: int
    outputs: int
    repeats: int
    warmup: int = 1
    nocache_fed: tuple[int, ...] = ()
    seed: int = 0
    what: str = "speed"
    window: int = 0

    def order(self, round_number: int, subjects: int) -> list[int]:
        """Return the order in which the subjects run in a round."""
        order = list(range(subjects))
        random.Random(f"{self.seed} {round_number}").shuffle(order)
        return order


@dataclass
class Result:
    """Repeats of one subject under a plan, and its place against the dense stock model.

    ``ratios``, ``cost_ratios`` and ``shares`` have one entry per mode of :data:`TIMED` that ran;
    a share is None where it is undefined.  ``ratios_to_full`` compare with our own dense path,
    ``ratios_to_compiled`` compiled steps with the dense model's compiled ones, where these are
    among the subjects.  ``paired`` has the ratios of every round by the same names.
    """

    subject: Subject
    plan: Plan
    times: list[Times] = field(default_factory=list)
    peak_bytes: int | None = None
    ratios: dict[str, stats.Spread] = field(default_factory=dict)
    ratios_to_full: dict[str, stats.Spread] = field(default_factory=dict)
    ratios_to_compiled: dict[str, stats.Spread] = field(default_factory=dict)
    paired: dict[str, list[float]] = field(default_factory=dict)
    cost_ratios: dict[str, float] = field(default_factory=dict)
    shares: dict[str, float | None] = field(default_factory=dict)

    def series(self, name: str) -> list[float]:
        """Return one time of every repeat."""
        return [times.seconds[name] for times in self.times]

    @property
    def names(self) -> list[str]:
        """Names of the times that were taken."""
        return list(self.times[0].seconds)

    @property
    def output_keep(self) -> float | None:
        """Realised share of kept output tokens."""
        return self.times[-1].output_keep

    def is_slower(self, mode: str) -> bool:
        """Return whether the median time exceeds the dense one (``mode`` may end in ``_cpu``)."""
        return mode in self.ratios and self.ratios[mode].median > stats.SLOWER


def make_subjects(
    build: Callable[[], Bench],
    chosen: Sequence[str],
    spec: ModelSpec,
    compiled: bool = False,
    stock: Sequence[str] = (STOCK,),
) -> list[Subject]:
    """Return the subjects: the stock model with the given caches first, then each named method.

    A method may carry parameters: ``"fastv:k=2,keep_ratio=0.25"``.  With ``compiled`` each, and the
    dense model, runs once more with compiled decode steps.  The model is built after the names
    have been checked, because that may take long.
    """
    parsed = []
    for item in chosen:
        method = methods.create(item)
        method.plan(spec.dims.layers).check_model(spec.dims.heads, spec.image_tokens)
        parsed.append((item, method))
    bench = build()
    return [
        *[Subject(bench, name, None) for name in stock],
        *[Subject(bench, item, method) for item, method in parsed],
        *([Subject(bench, STATIC_COMPILED, None, True)] if compiled else []),
        *[Subject(bench, f"{item}, compiled", method, True) for item, method in parsed if compiled],
    ]


def measure(
    subjects: Sequence[Subject], plan: Plan, progress: Callable[[str], None] | None = None
) -> list[Result]:
    """Run the protocol and return one result a subject."""
    if plan.repeats < 1 or plan.warmup < 0:
        raise UserError(f"repeats={plan.repeats}: accepted is 1 or more")
    bench = subjects[0].bench
    ready, inputs = prepare(subjects, plan)
    rounds = []
    for number in range(plan.warmup + plan.repeats):
        counts = number >= plan.warmup
        found = run_round(ready, inputs, plan, number, counts)
        if counts:
            rounds.append(found)
        if progress is not None:
            progress(f"round {number + 1}/{plan.warmup + plan.repeats}")
    results = summarise(ready, plan, rounds)
    if bench.device.type == "cuda":
        # The resident memory of a CPU process says little: its allocator keeps what it once had.
        for result in results:
            work = functools.partial(result.subject.time, inputs, plan.outputs)
            result.peak_bytes = peak_memory(bench.device, work)
    return results


def prepare(subjects: Sequence[Subject], plan: Plan) -> tuple[list[Subject], Inputs]:
    """Return the subjects with calibrated thresholds, and the prompts that all of them get."""
    inputs = speed.make_inputs(subjects[0].bench, plan.shape, plan.batch, plan.outputs)
    return [speed.calibrate_keep_rate(item, inputs, plan.outputs) for item in subjects], inputs


def run_round(
    subjects: Sequence[Subject], inputs: Inputs, plan: Plan, number: int, counts: bool = True
) -> list[Times]:
    """Run every subject once, in the order of this round; return their times by subject."""
    outputs = plan.outputs if counts else min(plan.outputs, WARMUP_OUTPUTS)
    found: dict[int, Times] = {}
    for index in plan.order(number, len(subjects)):
        found[index] = subjects[index].time(inputs, outputs, plan.nocache_fed)
    return [found[index] for index in range(len(subjects))]


def summarise(
    subjects: Sequence[Subject], plan: Plan, rounds: Sequence[Sequence[Times]]
) -> list[Result]:
    """Return one result a subject: the times of every round, ratios taken within the rounds."""
    results = [
        Result(subject, plan, [found[index] for found in rounds])
        for index, subject in enumerate(subjects)
    ]
    own = next((result for result in results if result.subject.name == FULL), None)
    stock = [result for result in results if result.subject.method is None]
    eager = [result for result in stock if not result.subject.compiled]
    compiled = [result for result in stock if result.subject.compiled]
    for result in results:
        for mode in NAMES:
            _compare(result, mode, best_of(eager, mode), own)
            if compiled and result.subject.compiled and mode in STEPPED:
                _compare_compiled(result, mode, best_of(compiled, mode))
    return results


def best_of(stock: Sequence[Result], mode: str) -> Result:
    """Return the dense baseline of a mode: while decoding the stock cache with the faster steps.

    Faster by the clock of the device: wall-clock time on an accelerator, which the host's CPU time
    says nothing about; process CPU time on a CPU, which other work disturbs less.
    """
    on_cpu = stock[0].subject.bench.device.type == "cpu"
    clock = STEPPED.get(mode, "") + (speed.CPU_SUFFIX if on_cpu else "")
    if mode not in STEPPED or clock not in stock[0].names:
        return stock[0]
    return min(stock, key=lambda result: stats.spread(result.series(clock)).median)


def _compare(result: Result, mode: str, baseline: Result, own: Result | None) -> None:
    name = NAMES[mode]
    if name not in result.names:
        return
    if mode != LATE:
        result.cost_ratios[mode] = cost(result, mode) / cost(baseline, mode)
    for suffix in ("", speed.CPU_SUFFIX):
        found = _paired(result, baseline, name + suffix, f"time_ratio_{mode}{suffix}")
        result.ratios[mode + suffix] = found
        if mode != LATE:
            result.shares[mode + suffix] = stats.realised_share(
                found.median, result.cost_ratios[mode]
            )
        if own is not None:
            key = f"time_ratio_to_full_{mode}{suffix}"
            result.ratios_to_full[mode + suffix] = _paired(result, own, name + suffix, key)


def _compare_compiled(result: Result, mode: str, baseline: Result) -> None:
    name = NAMES[mode]
    if name not in result.names:
        return
    for suffix in ("", speed.CPU_SUFFIX):
        key = f"time_ratio_to_compiled_{mode}{suffix}"
        result.ratios_to_compiled[mode + suffix] = _paired(result, baseline, name + suffix, key)


def _paired(result: Result, baseline: Result, name: str, key: str) -> stats.Spread:
    """Return the ratios of one time within the rounds, kept as ``result.paired[key]``."""
    result.paired[key] = stats.paired_ratios(result.series(name), baseline.series(name))
    return stats.spread(result.paired[key])


def cost(result: Result, mode: str) -> int:
    """Return what a mode should cost: bytes moved for cached decoding, else MACs.

    The vision tower is left out, as it is in the times that this is compared with.
    """
    plan, subject = result.plan, result.subject
    run = subject.run_of(plan.shape, plan.outputs, plan.batch, result.output_keep)
    if mode == "decode":
        dtype = str(subject.bench.dtype).removeprefix("torch.")
        return roofline.bytes_moved(run, mode, dtype)
    if mode == "prefill":
        return ledger.total(ledger.entries(run, mode, vision=False))
    if mode == STEP:
        return _window_bytes(result, plan.outputs + plan.window) - _window_bytes(
            result, plan.outputs
        )
    return sum(_nocache_call(run, fed) for fed in plan.nocache_fed)


def _window_bytes(result: Result, fed: int) -> int:
    """Return the bytes that decoding moves until ``fed`` output tokens were fed."""
    plan, subject = result.plan, result.subject
    dtype = str(subject.bench.dtype).removeprefix("torch.")
    run = subject.run_of(plan.shape, fed + 1, plan.batch, result.output_keep)
    return roofline.bytes_moved(run, "decode", dtype)


def _nocache_call(run: ledger.Run, fed: int) -> int:
    """Return MACs of the one call without a cache after ``fed`` output tokens."""
    upto, before = (
        ledger.total(
            ledger.entries(
                ledger.Run(run.spec, run.method, run.shape, outputs, run.batch, run.schedule),
                "decode_nocache",
            )
        )
        for outputs in (fed + 1, fed)
    )
    return upto - before


def nocache_probes(outputs: int, count: int = 3) -> tuple[int, ...]:
    """Return ``count`` evenly spaced numbers of fed output tokens, the last call included."""
    last = outputs - 1
    if last < 1:
        return ()
    return tuple(sorted({max(1, round(last * (i + 1) / count)) for i in range(count)}))


def set_threads(threads: int | None) -> None:
    """Use ``threads`` CPU threads for torch's kernels (None: leave as it is)."""
    if threads is not None:
        if threads < 1:
            raise UserError(f"threads={threads}: accepted is 1 or more")
        torch.set_num_threads(threads)
