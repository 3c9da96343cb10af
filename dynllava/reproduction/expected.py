"""What a row printed, and what the number of its questions allows to say about a run."""

from __future__ import annotations

from dataclasses import dataclass

from dynllava.published.rows import Row
from dynllava.published.tables import Printed
from dynllava.tasks.registry import BENCHMARKS
from dynllava.uncertainty.one_sample import half_width

UNITS = {
    "vqav2": 214_354,
    "gqa": 12_578,
    "vizwiz": 4_319,
    "sciqa": 2_017,
    "textvqa": 5_000,
    "pope": 9_000,
    "mme": 2_114,
    "mmbench": 1_164,
    "seed": 14_233,
    "mm_vet": 218,
    "mmvp": 150,
    "realworldqa": 765,
    "cvbench_2d": 1_438,
}
"""Questions (MMBench: without their rotations; MMVP: pairs) of the split that is run here, as
usually stated for it (not counted here: the data were not at hand); a record says how many a run
really had."""
GENERATED = 1_000
"""Samples of a generation benchmark, the paper's and ours; not the same ones."""
_AGREEMENT = 1.645 / 1.96
"""Of a two-sided 95 % half width: what a margin must exceed for two one-sided tests of 5 %."""


@dataclass(frozen=True)
class Scale:
    """How a score is printed.

    Attributes
    ----------
    factor : float
        Own score times this is on the printed scale.
    full : float or None
        Full score on the printed scale; None for perplexity.
    """

    factor: float
    full: float | None

    def margin(self, printed: Printed, percent: float) -> float:
        """Return the margin on the printed scale: ``percent`` of full, and print's rounding."""
        full = printed.value if self.full is None else self.full
        return full * percent / 100 + 0.5 * 10**-printed.decimals


def scale_of(task: str) -> Scale:
    """Return how scores of a benchmark, or of a generation task, are printed."""
    if task in BENCHMARKS:
        known = BENCHMARKS[task]
        return Scale(known.to_paper_scale(1.0), known.to_paper_scale(known.scale))
    return Scale(1.0, None if task.endswith("_ppl") else 1.0)


def allowed(row: Row, task: str, percent: float) -> str:
    """Return in one line what the number of questions of a benchmark allows to say."""
    printed, scale = row.values[task], scale_of(task)
    margin = scale.margin(printed, percent)
    if task not in BENCHMARKS:
        return (
            f"{GENERATED:,} samples that are not the paper's: its own error, as large as a run's, "
            "counts too; the width is known after a run"
        )
    count, known = UNITS[task], BENCHMARKS[task]
    if known.estimator in ("f1", "mme"):
        return f"{count:,} questions; no mean of answers, so the width is known after a run"
    assert scale.full is not None  # a benchmark has a full score
    half = half_width(printed.value / scale.full, count) * scale.full
    can = "can" if half * _AGREEMENT < margin else "cannot"
    return (
        f"{count:,} independent {'pairs' if known.estimator == 'pairs' else 'questions'} leave "
        f"+-{half:.2f} (95 %; shared images widen it), which {can} show agreement within "
        f"{margin:.2f}"
    )
