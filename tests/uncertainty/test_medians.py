"""The interval of a median covers it; few rounds have none."""

import numpy as np
import pytest

from dynllava.uncertainty import MIN_ROUNDS, holm, holm_adjusted, median_interval
from dynllava.uncertainty.medians import summary_margin


@pytest.mark.parametrize("rounds", [6, 7, 12, 25, 60])
@pytest.mark.parametrize("law", ["normal", "exponential", "lognormal"])
def test_the_median_is_covered(rounds, law):
    generator = np.random.default_rng([rounds, len(law)])
    true = {"normal": 0.0, "exponential": np.log(2), "lognormal": 1.0}[law]
    draws = getattr(generator, law)(size=(10_000, rounds))
    draws.sort(axis=1)
    found = median_interval(range(rounds))
    inside = (draws[:, int(found.low)] <= true) & (true <= draws[:, int(found.high)])
    # Exact for every continuous law: within four standard errors of the stated coverage.
    assert abs(inside.mean() - found.coverage) < 4 * np.sqrt(0.05 * 0.95 / 10_000)
    assert 0.95 <= found.coverage < 0.99


@pytest.mark.parametrize("rounds", range(MIN_ROUNDS))
def test_few_rounds_have_no_interval(rounds):
    assert median_interval([1.0] * rounds) is None


def test_a_level_beyond_the_range_of_the_values_is_refused():
    assert median_interval(range(6), level=0.99) is None
    assert median_interval(range(8), level=0.99).low == 0


def test_values_are_ordered_first():
    found = median_interval([5.0, 1.0, 4.0, 2.0, 3.0, 6.0])
    assert (found.median, found.low, found.high, found.margin) == (3.5, 1.0, 6.0, 2.5)


def test_holm_by_hand():
    assert holm_adjusted([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.01, 0.04, 0.03]) == [True, False, False]
    assert holm([0.01, 0.02, 0.03]) == [True, True, True]
    assert holm([]) == []


@pytest.mark.parametrize("rounds", [6, 7, 9, 12, 16, 60])
@pytest.mark.parametrize("law", ["normal", "uniform", "exponential", "lognormal", "laplace"])
def test_a_median_known_by_its_spread_alone_is_covered(rounds, law):
    generator = np.random.default_rng([rounds, len(law)])
    draws = getattr(generator, law)(size=(10_000, rounds))
    true = {"uniform": 0.5, "exponential": np.log(2), "lognormal": 1.0}.get(law, 0.0)
    low, median, high = np.quantile(draws, [0.25, 0.5, 0.75], axis=1)
    inside = np.abs(median - true) <= summary_margin(high - low, rounds)
    assert inside.mean() >= 0.945
    # The notch of a box plot, which stood here before, does not cover.
    assert (np.abs(median - true) <= 1.57 * (high - low) / np.sqrt(rounds)).mean() < 0.945


def test_a_spread_of_few_rounds_has_no_margin():
    assert summary_margin(1.0, MIN_ROUNDS - 1) is None


def test_an_adjusted_p_value_at_the_level_is_rejected():
    assert holm([0.025, 0.05]) == [True, True]
    assert holm([0.05]) == [True]
    assert holm([0.0501]) == [False]
