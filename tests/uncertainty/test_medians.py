"""The interval of a median covers it; few rounds have none."""

import numpy as np
import pytest

from dynllava.uncertainty import MIN_ROUNDS, holm, holm_adjusted, median_interval


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
