"""What the project holds itself to, and where a record says whether it is reached."""

from __future__ import annotations

from dataclasses import dataclass

from dynllava.methods.presets import LARGE_SHAPE, LOOKING, MEASURED
from dynllava.plan.names import LEARNED
from dynllava.records import Measured

from .intervals import Interval, interval

FULL_RUNS = 8
"""Processes, and rounds in each, that decide a target with a slack."""

KEEPS_ALL = f"{LEARNED}:vision_keep_rate=1.0,output_threshold=-1000000.0"
"""Judges every output token and keeps it: against ``full`` this is the cost of judging."""

SEVEN_B = ("llava-1.5-7b",)
MID = ("mid-size",)
LARGE = ("large-size",)
ANY = (*MID, *SEVEN_B)
SHARE, RATIO = "realised_share_prefill", "time_ratio_prefill"
NOCACHE, STEP = "realised_share_decode_nocache", "time_ratio_decode"
LATE = "time_ratio_decode_late"
TO_FULL = "time_ratio_to_full_decode"
AT_LENGTH = "time_ratio_step"
COMPILED = "time_ratio_to_compiled_step"
STEP_TO_FULL = "time_ratio_to_full_step"
LOOK = "time_ratio_look"
LOADING_TIME, LOADING_MEMORY = "loading_cpu_time_ratio", "loading_memory_ratio"
LOADING = "loading"
"""Label of the records of loading."""


@dataclass(frozen=True)
class Target:
    """A bound on a measured quantity of bench records.

    Attributes
    ----------
    text : str
        What is promised.
    task : str
        Start and end of the record's task name, separated by ``*``.
    method : str
        The record's label, or its method's registry name where it has none.
    quantity : str
        Key in ``measured`` (without the clock's suffix).
    bound : float
        Accepted value.
    at_least : bool
        Whether the value must reach the bound or stay under it.
    models : tuple of str
        Start of the model's name.
    slack : float or None
        The median must reach the bound, and the worse end of its interval may miss it by this
        share of it; :data:`FULL_RUNS` processes of as many rounds decide.  None: the whole interval
        must be on one side.
    """

    text: str
    task: str
    method: str
    quantity: str
    bound: float
    at_least: bool
    models: tuple[str, ...] = ANY
    slack: float | None = None

    def covers(self, task: str) -> bool:
        """Return whether a record's task is meant."""
        start, _, end = self.task.partition("*")
        return task.startswith(start) and task.endswith(end)

    def reached(self, value: float, slack: float = 0.0) -> bool:
        """Return whether ``value`` keeps the promise, or misses it by a share of ``slack``."""
        if self.at_least:
            return value >= self.bound * (1 - slack)
        return value <= self.bound * (1 + slack)

    @property
    def promise(self) -> str:
        """Return the bound with its direction."""
        return f"{'≥' if self.at_least else '≤'} {self.bound:.2f}"


def verdict(target: Target, item: Measured) -> str:
    """Return whether a target is reached, by the 95 % interval of the median.

    ``yes`` and ``**not reached**`` only where the whole interval says so, taken over processes: one
    process does not show what differs between them.  Else open, with why.
    """
    found = interval(item)
    if found is None:
        return f"open: {item.repeats} rounds, 6 are needed"
    if target.slack is not None:
        return _with_slack(target, item, found, target.slack)
    ends = target.reached(found.low), target.reached(found.high)
    if any(ends) and not all(ends):
        median_says = "yes" if target.reached(item.median) else "no"
        return f"open: bound within the interval (median: {median_says})"
    if found.processes == 1:
        return f"open: one process (its interval: {'yes' if all(ends) else 'no'})"
    return "yes" if all(ends) else "**not reached**"


def _with_slack(target: Target, item: Measured, found: Interval, slack: float) -> str:
    fewest = min((len(values) for values in item.rounds.values()), default=0)
    if found.processes < FULL_RUNS or fewest < FULL_RUNS:
        needed = f"{FULL_RUNS} of {FULL_RUNS} are needed"
        return f"open: {found.processes} processes of {fewest} rounds or more, {needed}"
    worse = found.low if target.at_least else found.high
    if target.reached(item.median) and target.reached(worse, slack):
        return "yes"
    if not target.reached(found.low) and not target.reached(found.high):
        return "**not reached**"
    median_says = "yes" if target.reached(item.median) else "no"
    return f"open: the interval misses the bound by more than {slack:.0%} (median: {median_says})"


def shown(item: Measured) -> str:
    """Return a median with its interval and what that is taken over."""
    found = interval(item)
    if found is None:
        return f"{item.median:.2f} ({item.repeats} rounds)"
    return f"{item.median:.2f} [{found.low:.2f}, {found.high:.2f}] ({found.what})"


def _large_shares(method: str) -> list[Target]:
    start = "prefill share, large shape on a CPU, batch"
    return [
        Target(f"{start} 8", "speed-b8-*-o1", method, SHARE, 0.85, True, LARGE, 0.03),
        Target(f"{start} 1", "speed-b1-*-o1", method, SHARE, 0.80, True, LARGE, 0.03),
    ]


def _shares(method: str) -> list[Target]:
    return [
        Target("prefill share, 7B, batch 8", "speed-b8-*-o1", method, SHARE, 0.85, True, SEVEN_B),
        Target("prefill share, 7B, batch 1", "speed-b1-*-o1", method, SHARE, 0.70, True, SEVEN_B),
        Target("prefill share, CPU, batch 8", "speed-b8-*-o1", method, SHARE, 0.70, True, MID),
        Target("prefill share, CPU, batch 1", "speed-b1-*-o1", method, SHARE, 0.70, True, MID),
    ]


def _against_static(method: str) -> list[Target]:
    start = "decode step at most 1.00x StaticCache, batch 1, at 64 tokens"
    return [
        Target(start, "step-b1-*-o64", method, AT_LENGTH, 1.0, False, MID, 0.03),
        Target(
            f"{start}, both compiled", "step-b1-*-o64", f"{method}, compiled", COMPILED, 1.0,
            False, MID, 0.03,
        ),
    ]  # fmt: skip


DYNAMIC = LEARNED
TARGETS = (
    *_shares(DYNAMIC),
    *_shares("fastv"),
    Target("prefill not slower than dense", "speed-b*-o1", "sparsevlm", RATIO, 1.0, False),
    Target("prefill at most 1.10x dense", "speed-b*-o1", "h2o", RATIO, 1.10, False),
    Target("decode step at most 1.03x dense", "speed-b", DYNAMIC, STEP, 1.03, False),
    *(
        Target(
            f"decode step at most 0.85x dense, CPU, batch 8, beyond {start:,} tokens",
            f"speed-b8-*-o{length}",
            DYNAMIC,
            LATE,
            0.85,
            False,
            MID,
        )
        for start, length in ((512, 1024), (1000, 2000))
    ),
    Target(
        "1.3x the dense tokens/s (a step at most 0.77x), batch 8, 2,000 tokens",
        "speed-b8-*-o2000",
        DYNAMIC,
        STEP,
        1 / 1.3,
        False,
    ),
    Target(
        "judging and bookkeeping at most 3 % of a step: a step that keeps everything against "
        "our dense one",
        "speed-b",
        KEEPS_ALL,
        TO_FULL,
        1.03,
        False,
    ),
    Target("share without a cache", "speed-b", DYNAMIC, NOCACHE, 0.80, True),
    Target(
        "decode step at a length at most 1.03x dense", "step-b", DYNAMIC, AT_LENGTH, 1.03, False
    ),
    Target(
        "the same with compiled steps on both sides",
        "step-b",
        f"{DYNAMIC}, compiled",
        COMPILED,
        1.03,
        False,
    ),
    Target(
        "decode step at 2,000 tokens at most 0.77x dense, batch 8",
        "step-b8-*-o2000",
        DYNAMIC,
        AT_LENGTH,
        1 / 1.3,
        False,
    ),
    Target(
        "share of calls without a cache, at a length", "nocache-b", DYNAMIC, NOCACHE, 0.80, True
    ),
    *(target for method in LARGE_SHAPE for target in _large_shares(method)),
    Target(
        "prefill at most 1.06x dense, large shape",
        "speed-b*-o1",
        "h2o",
        RATIO,
        1.06,
        False,
        LARGE,
        0.03,
    ),
    *(
        Target(
            f"decode step at most {bound:.2f}x dense, large shape, batch 8, at {length:,} tokens",
            f"step-b8-*-o{length}",
            DYNAMIC,
            AT_LENGTH,
            bound,
            False,
            LARGE,
            0.03,
        )
        for length, bound in ((64, 1.02), (1024, 0.80))
    ),
    Target(
        "judging and bookkeeping at most 2 % of a step, large shape",
        "step-b8",
        KEEPS_ALL,
        STEP_TO_FULL,
        1.02,
        False,
        LARGE,
        0.03,
    ),
    *(target for method in MEASURED for target in _against_static(method)),
    *(
        Target(
            "tower with look and choice at most 1.02x the tower",
            "look-b1",
            method,
            LOOK,
            1.02,
            False,
            ("CLIP-L/14-336 tower",),
            0.03,
        )
        for method in LOOKING
    ),
    *(
        Target(
            f"loading 1 GB at most 1.05x stock, {what}: {kind}, {label}",
            f"loading-{kind}-{dtype}",
            LOADING,
            quantity,
            1.05,
            False,
            ("1 GB",),
        )
        for kind in ("safetensors", "bin")
        for label, dtype in (("same dtype", "bfloat16"), ("other dtype", "float32"))
        for what, quantity in (("CPU time", LOADING_TIME), ("memory", LOADING_MEMORY))
    ),
)
