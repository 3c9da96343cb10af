"""Stated power against the power obtained by the tests themselves."""

import itertools

import numpy as np
import pytest
import simulation
from dynllava.analysis.gate import accuracy
from dynllava.analysis.gate.policy import Policy
from scipy import stats

from dynllava.uncertainty import exact_bounds, power, skewness
from dynllava.uncertainty.design import Law, binary_design
from dynllava.uncertainty.power import (
    decision_power,
    detection_power,
    either_power,
    plan_clusters,
    smallest_drop,
)
from dynllava.uncertainty.sign_flips import flip_tails

CELLS = (1, 12, 98)


def flips_p(totals):
    """p of "worse" by sign flips of whole cluster sums [draws, clusters], all draws at once."""
    most = int(np.abs(totals).max())
    values = np.arange(-most, most + 1)
    counts = np.stack([(totals == value).sum(1) for value in values], axis=1)
    return power._flips_p(Law(values, np.ones(len(values)), 1.0, True), counts)


def found_rate(generator, draws, clusters, size, discordance, icc, drop, level, law):
    """How often a true drop on top of the discordance is flagged at ``level``."""
    counts = np.full((draws, clusters), size)
    totals, _ = simulation.binary(generator, counts, discordance + drop, -drop, icc, law)
    return float((all_p(totals, size) <= level).mean())


def all_p(totals, size):
    """p of "worse" of every draw: sign flips, mid-p for independent answers."""
    if size > 1:
        return np.concatenate([flips_p(part) for part in np.array_split(totals, 5)])
    pairs, index = np.unique(
        np.stack([(totals < 0).sum(1), (totals > 0).sum(1)], axis=1), axis=0, return_inverse=True
    )
    tails = [flip_tails(np.repeat([-1.0, 1.0], pair)) for pair in pairs]
    return np.array([below + at / 2 for below, at, _ in tails])[index.ravel()]


@pytest.mark.parametrize(
    ("clusters", "size", "discordance", "icc"),
    [(30, 10, 0.03, 0.1), (100, 5, 0.1, 0.5), (500, 10, 0.3, 0.1)],
)
def test_flips_of_many_draws_are_those_of_each(clusters, size, discordance, icc):
    generator = np.random.default_rng(clusters)
    counts = np.full((150, clusters), size)
    totals, _ = simulation.binary(generator, counts, discordance + 0.05, -0.05, icc, "copy")
    each = np.array([sum(flip_tails(row)[:2]) for row in totals])
    # Few differing clusters are counted, many are normal with a corrected kurtosis.
    np.testing.assert_allclose(flips_p(totals), each, rtol=0.05, atol=1e-7)


@pytest.mark.parametrize("cells", CELLS)
@pytest.mark.parametrize(
    ("clusters", "size", "discordance", "icc"),
    [(500, 1, 0.0, 0.0), (500, 1, 0.03, 0.0), (300, 1, 0.1, 0.0), (100, 10, 0.1, 0.1),
     (100, 10, 0.03, 0.5), (500, 5, 0.03, 0.3), (30, 10, 0.3, 0.5)],
)  # fmt: skip
def test_the_stated_smallest_drop_is_found_as_often_as_stated(
    cells, clusters, size, discordance, icc
):
    level = 0.025 / cells
    drop = smallest_drop(binary_design(clusters, discordance, size, icc), level)
    generator = np.random.default_rng([clusters, size, cells])
    obtained = found_rate(
        generator, 2000, clusters, size, discordance, icc, drop, level, "dirichlet"
    )
    # Within 0.05, and two standard errors of 2,000 draws.
    assert obtained == pytest.approx(0.8, abs=0.05 + 2 * (0.16 / 2000) ** 0.5)


@pytest.mark.slow  # 10,000 draws of 468 designs: minutes
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("cells", CELLS)
@pytest.mark.parametrize("law", ["copy", "dirichlet"])
def test_stated_power_is_within_five_points(cells, law):
    grid = itertools.product((30, 100, 500), (5, 10), (0.03, 0.1, 0.3), (0.0, 0.1, 0.3, 0.5))
    alone = itertools.product((100, 300, 500), (1,), (0.0, 0.03, 0.1, 0.3), (0.0,))
    for clusters, size, discordance, icc in (*grid, *alone):
        level = 0.025 / cells
        drop = smallest_drop(binary_design(clusters, discordance, size, icc), level)
        generator = np.random.default_rng([clusters, size, cells])
        obtained = found_rate(generator, 10_000, clusters, size, discordance, icc, drop, level, law)
        print(cells, law, clusters, size, discordance, icc, f"drop {drop:.4f}: {obtained:.3f}")
        assert obtained == pytest.approx(0.8, abs=0.05)


@pytest.mark.parametrize("cells", CELLS)
@pytest.mark.parametrize(
    ("discordance", "size", "icc"),
    [(0.01, 1, 0.0), (0.1, 1, 0.0), (0.03, 10, 0.5), (0.01, 10, 0.3)],
)
def test_the_planned_clusters_decide_the_margin_as_often_as_planned(cells, discordance, size, icc):
    level, margin = 0.05 / cells, 0.01
    clusters = plan_clusters(binary_design(100, discordance, size, icc), margin, level)
    generator = np.random.default_rng([size, cells])
    draws = max(300, min(1500, 3_000_000 // clusters))
    counts = np.full((draws, clusters), size)
    totals, differing = simulation.binary(generator, counts, discordance, 0.0, icc, "dirichlet")
    p_values = skewness.tails(skewness.moments(totals, counts.astype(float)), -margin)[1]
    few = np.flatnonzero(differing.sum(1) < 20)
    for i in few:
        p_values[i] = exact_bounds.at_most(totals[i], counts[i].astype(float), -margin, 1.0)
    obtained = (p_values <= level).mean()
    assert obtained == pytest.approx(0.8, abs=0.05 + 3 * (0.16 / draws) ** 0.5)


def test_without_differing_answers_the_plan_is_the_binomial_one():
    design = binary_design(100, 0.0)
    # 0.99**299 is the first power of 0.99 below 0.05.
    assert plan_clusters(design, 0.01, 0.05) == 299
    assert plan_clusters(design, 0.01, 0.05 / 98) == 755
    drop = smallest_drop(binary_design(40, 0.0), 0.025 / 4)
    # Mid-p 0.5**k / 2 <= 0.00625 needs seven lost of forty.
    assert stats.binom.sf(6, 40, drop) == pytest.approx(0.8, abs=0.005)


def test_power_rises_with_the_drop_and_the_samples():
    design = binary_design(200, 0.05)
    powers = [detection_power(design, drop, 0.025) for drop in (0.01, 0.03, 0.05, 0.1)]
    assert powers == sorted(powers)
    decided = [decision_power(binary_design(n, 0.05), 0.02, 0.05) for n in (300, 600, 1200, 2400)]
    assert decided == sorted(decided)
    assert detection_power(binary_design(5, 0.05), 0.5, 0.05) == 0


def test_either_of_two_tests():
    assert either_power(0.6, 0.8, 1.0) == 0.8
    assert either_power(0.5, 0.8, 0.0) == pytest.approx(0.9, abs=1e-3)
    assert 0.8 < either_power(0.6, 0.8, 0.7) < 0.92


@pytest.mark.parametrize(("methods", "tasks"), [(1, 1), (4, 3), (14, 7)])
@pytest.mark.parametrize(
    ("clusters", "size", "discordance", "icc"),
    [(300, 1, 0.03, 0.0), (100, 10, 0.1, 0.3), (60, 5, 0.03, 0.3)],
)
def test_the_gate_finds_a_drop_in_one_cell_as_often_as_it_says(
    methods, tasks, clusters, size, discordance, icc
):
    """By its pooled test or its test of the cell, each corrected: 1, 12 and 98 cells."""
    zeros = np.zeros(6)
    cell = accuracy._Cell(
        None, ("model", "method"), accuracy.Samples(zeros, zeros, list(range(6)), True),
        binary_design(clusters, discordance, size, icc),
    )  # fmt: skip
    pooled = binary_design(clusters * tasks, discordance, size, icc)
    shares = accuracy._shares(Policy(), methods, methods * tasks)
    drop = accuracy._findable(cell, pooled, shares, Policy())
    generator = np.random.default_rng([clusters, methods])
    counts = np.full((2000, clusters), size)
    totals = [
        simulation.binary(generator, counts, discordance + lost, -lost, icc, "dirichlet")[0]
        for lost in [drop, *[0.0] * (tasks - 1)]
    ]
    p_values = all_p(np.concatenate(totals, axis=1), size), all_p(totals[0], size)
    flagged = (p_values[0] <= shares[0]) | (p_values[1] <= shares[1])
    assert flagged.mean() == pytest.approx(0.8, abs=0.05)
