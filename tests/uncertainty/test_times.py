"""The timing test: exact p values by hand, its level and power in simulation."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from dynllava.errors import UserError
from dynllava.uncertainty import times
from dynllava.uncertainty.families import holm

DRAWS, FAMILY, ROUNDS = 10_000, 50, 10
ALPHA = 0.05


def process_medians(generator, draws, processes, between, within=0.03, rounds=ROUNDS):
    """Medians of ``rounds`` noisy rounds in each of ``processes`` that differ by ``between``."""
    place = generator.normal(0, between, (draws, processes, 1)) if between else 0.0
    noise = generator.normal(0, within, (draws, processes, rounds))
    return np.median((1 + place) * (1 + noise), axis=-1)


def holm_first_step(base, candidate, family):
    """Whether each timing passes Holm's first step, ``ALPHA / family``.

    The exact test runs only where the t test comes within a factor of fifty of that: further
    away it has never agreed with a rejection, and enumerating all costs minutes.
    """
    from scipy import stats

    p = stats.ttest_ind(np.log(candidate), np.log(base), axis=-1, alternative="greater").pvalue
    near = p <= 50 * ALPHA / family
    passed = np.zeros(len(base), bool)
    passed[near] = times.slower_p(base[near], candidate[near]) <= ALPHA / family
    return passed


@pytest.mark.parametrize("between", [0.0, 0.05])
def test_equal_versions_are_flagged_in_at_most_six_percent_of_families(between):
    """Of 50 timings any flagged: Holm rejects one iff the smallest p passes its first step."""
    generator = np.random.default_rng(17)
    flagged = 0
    for _ in range(20):
        draws = DRAWS // 20 * FAMILY
        base, candidate = (process_medians(generator, draws, 8, between) for _ in range(2))
        passed = holm_first_step(base, candidate, FAMILY)
        flagged += passed.reshape(-1, FAMILY).any(axis=1).sum()
    assert 0.03 <= flagged / DRAWS <= 0.06


def test_a_machine_that_slows_down_meanwhile_does_not_flag_interleaved_versions():
    """10 % of drift over the whole measurement, the same processes for all 50 timings."""
    generator = np.random.default_rng(5)
    drift = 1 + np.linspace(0, 0.10, 16)
    draws = 2000 * FAMILY
    base = process_medians(generator, draws, 8, 0.02) * drift[0::2]
    candidate = process_medians(generator, draws, 8, 0.02) * drift[1::2]
    passed = holm_first_step(base, candidate, FAMILY).reshape(-1, FAMILY).any(axis=1)
    assert passed.mean() <= 0.06


def test_one_slow_timing_of_fifty_is_found():
    """15 % slower at 3 % within and 5 % between processes: found in at least 80 %."""
    generator = np.random.default_rng(3)
    base = process_medians(generator, DRAWS, 8, 0.05)
    candidate = 1.15 * process_medians(generator, DRAWS, 8, 0.05)
    found = holm_first_step(base, candidate, FAMILY).mean()
    assert found >= 0.80
    # Ten processes find it among 400 timings as well.
    base = process_medians(generator, 2000, 10, 0.05)
    candidate = 1.15 * process_medians(generator, 2000, 10, 0.05)
    assert (times.slower_p(base[:200], candidate[:200]) <= ALPHA / 400).mean() >= 0.75


def test_p_is_that_of_all_assignments():
    generator = np.random.default_rng(1)
    base, candidate = generator.uniform(1, 2, 4), generator.uniform(1.2, 2.2, 3)
    pooled = np.log(np.concatenate([base, candidate]))
    sums = [sum(pooled[list(some)]) for some in itertools.combinations(range(7), 3)]
    wanted = np.mean(np.array(sums) >= np.log(candidate).sum() - 1e-12)
    assert times.slower_p(base, candidate) == pytest.approx(wanted)


def test_extremes_ties_and_directions():
    slow, fast = [2.0 + i / 10 for i in range(8)], [1.0 + i / 100 for i in range(8)]
    assert times.slower_p(fast, slow) == pytest.approx(1 / 12870)
    assert times.slower_p(slow, fast) == 1
    # The same values as rates: now the lower ones are the slower ones.
    assert times.slower_p(slow, fast, higher_is_better=True) == pytest.approx(1 / 12870)
    assert times.slower_p([1.0] * 8, [1.0] * 8) == 1
    with pytest.raises(UserError, match="positive"):
        times.slower_p([1.0, -1.0], [1.0, 1.0])


@pytest.mark.parametrize("higher_is_better", [False, True])
def test_a_tolerated_rise_is_the_margin_of_the_test(higher_is_better):
    """At a true rise equal to the margin the test keeps its level: it is no threshold on top."""
    generator = np.random.default_rng(8)
    base, candidate = (process_medians(generator, 2000, 8, 0.05) for _ in range(2))
    candidate = candidate / 1.1 if higher_is_better else candidate * 1.1
    p = times.slower_p(base, candidate, higher_is_better=higher_is_better, margin=0.1)
    assert 0.03 <= (p <= 0.05).mean() <= 0.07


def test_many_processes_are_sampled_and_keep_the_level():
    generator = np.random.default_rng(2)
    base, candidate = (process_medians(generator, 200, 12, 0.05) for _ in range(2))
    p = np.concatenate(
        [
            times.slower_p(b, c)
            for b, c in zip(np.split(base, 20), np.split(candidate, 20), strict=True)
        ]
    )
    assert (p <= 0.05).mean() <= 0.1
    assert p.min() >= 1 / (times.SAMPLED + 1)


@pytest.mark.parametrize(
    ("family", "needed"), [(1, 8), (50, 8), (100, 8), (101, 10), (9237, 10), (9238, 11)]
)
def test_a_large_family_needs_more_processes(family, needed):
    assert times.needed_processes(family) == needed
    assert family * times.smallest_p(needed, needed) <= ALPHA
    # What is asked for is enough for the most extreme outcome to be flagged by Holm.
    assert holm([times.smallest_p(needed, needed)] + [1.0] * (family - 1))[0]


def test_a_family_beyond_every_number_is_refused():
    with pytest.raises(UserError, match="40000 timings are too many"):
        times.needed_processes(40_000)


def test_stated_detectable_rise_is_found_about_as_often_as_stated():
    generator = np.random.default_rng(4)
    base, candidate = (process_medians(generator, 3000, 8, 0.05) for _ in range(2))
    rises = [times.detectable_rise(b, c, alpha=0.001) for b, c in zip(base, candidate, strict=True)]
    rise = float(np.median(rises))
    found = holm_first_step(base, candidate * (1 + rise), FAMILY).mean()
    assert 0.7 <= found <= 0.9


def test_taking_turns_is_seen_from_the_names():
    names = [f"2026112112{minute:02d}00-{minute}" for minute in range(16)]
    assert times.interleaved(names[0::2], names[1::2])
    abba = [names[i] for i in range(16) if i % 4 in (0, 3)]
    assert times.interleaved(abba, sorted(set(names) - set(abba)))
    assert not times.interleaved(names[:8], names[8:])
