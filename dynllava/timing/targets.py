"""What the project holds itself to, and where a record says whether it is reached."""

from __future__ import annotations

from dataclasses import dataclass

from dynllava.plan.names import LEARNED
from dynllava.records import Measured

from .intervals import interval

KEEPS_ALL = f"{LEARNED}:vision_keep_rate=1.0,output_threshold=-1000000.0"
"""Judges every output token and keeps it: against ``full`` this is the cost of judging."""

SEVEN_B = ("llava-1.5-7b",)
MID = ("mid-size",)
ANY = (*MID, *SEVEN_B)
SHARE, RATIO = "realised_share_prefill", "time_ratio_prefill"
NOCACHE, STEP = "realised_share_decode_nocache", "time_ratio_decode"
LATE = "time_ratio_decode_late"
TO_FULL = "time_ratio_to_full_decode"
AT_LENGTH = "time_ratio_step"
COMPILED = "time_ratio_to_compiled_step"


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
    """

    text: str
    task: str
    method: str
    quantity: str
    bound: float
    at_least: bool
    models: tuple[str, ...] = ANY

    def covers(self, task: str) -> bool:
        """Return whether a record's task is meant."""
        start, _, end = self.task.partition("*")
        return task.startswith(start) and task.endswith(end)

    def reached(self, value: float) -> bool:
        """Return whether ``value`` keeps the promise."""
        return value >= self.bound if self.at_least else value <= self.bound

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
    ends = target.reached(found.low), target.reached(found.high)
    if any(ends) and not all(ends):
        median_says = "yes" if target.reached(item.median) else "no"
        return f"open: bound within the interval (median: {median_says})"
    if found.processes == 1:
        return f"open: one process (its interval: {'yes' if all(ends) else 'no'})"
    return "yes" if all(ends) else "**not reached**"


def shown(item: Measured) -> str:
    """Return a median with its interval and what that is taken over."""
    found = interval(item)
    if found is None:
        return f"{item.median:.2f} ({item.repeats} rounds)"
    return f"{item.median:.2f} [{found.low:.2f}, {found.high:.2f}] ({found.what})"


def _shares(method: str) -> list[Target]:
    return [
        Target("prefill share, 7B, batch 8", "speed-b8-*-o1", method, SHARE, 0.85, True, SEVEN_B),
        Target("prefill share, 7B, batch 1", "speed-b1-*-o1", method, SHARE, 0.70, True, SEVEN_B),
        Target("prefill share, CPU, batch 8", "speed-b8-*-o1", method, SHARE, 0.70, True, MID),
        Target("prefill share, CPU, batch 1", "speed-b1-*-o1", method, SHARE, 0.70, True, MID),
    ]


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
)
