"""What the project holds itself to, and where a record says whether it is reached."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Target:
    """A bound on a measured quantity of bench records.

    Attributes
    ----------
    text : str
        What is promised.
    task : str
        Start of the record's task name and a part that it must contain, separated by ``*``.
    method : str
        Registry name.
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
    models: tuple[str, ...] = ("mid-size", "llava-1.5-7b")

    def covers(self, task: str) -> bool:
        """Return whether a record's task is meant."""
        start, _, part = self.task.partition("*")
        return task.startswith(start) and part in task

    def reached(self, value: float) -> bool:
        """Return whether ``value`` keeps the promise."""
        return value >= self.bound if self.at_least else value <= self.bound


SEVEN_B = ("llava-1.5-7b",)
MID = ("mid-size",)
SHARE, RATIO = "realised_share_prefill", "time_ratio_prefill"

TARGETS = (
    Target("prefill share, 7B, batch 8", "speed-b8", "dynamic_llava", SHARE, 0.85, True, SEVEN_B),
    Target("prefill share, 7B, batch 1", "speed-b1-", "dynamic_llava", SHARE, 0.70, True, SEVEN_B),
    Target("prefill share, CPU, batch 8", "speed-b8", "dynamic_llava", SHARE, 0.70, True, MID),
    Target("prefill share, CPU, batch 1", "speed-b1-", "dynamic_llava", SHARE, 0.70, True, MID),
    Target("prefill share, batch 8", "speed-b8", "fastv", SHARE, 0.70, True),
    Target("prefill share, batch 1", "speed-b1-", "fastv", SHARE, 0.70, True),
    Target("prefill not slower than dense", "speed-b", "sparsevlm", RATIO, 1.0, False),
    Target("prefill at most 1.10x dense", "speed-b", "h2o", RATIO, 1.10, False),
    Target(
        "decode step at most 1.03x dense",
        "speed-b",
        "dynamic_llava",
        "time_ratio_decode",
        1.03,
        False,
    ),
    Target(
        "decode step at most 0.85x dense, batch 8, 512 tokens",
        "speed-b8*o512",
        "dynamic_llava",
        "time_ratio_decode",
        0.85,
        False,
        MID,
    ),
    Target(
        "decode at least 1.3x the dense tokens/s, batch 8, 2,000 tokens",
        "speed-b8*o2000",
        "dynamic_llava",
        "time_ratio_decode",
        1 / 1.3,
        False,
        SEVEN_B,
    ),
    Target(
        "share without a cache",
        "speed-b",
        "dynamic_llava",
        "realised_share_decode_nocache",
        0.80,
        True,
    ),
)
