"""A run against a printed number: the level of both verdicts, simulated at their borders."""

from __future__ import annotations

import numpy as np
import pytest

from dynllava.uncertainty.one_sample import (
    AGREES,
    DIFFERS,
    NO_VERDICT,
    Agreement,
    from_error,
    from_scores,
    half_width,
)

PRINTED, MARGIN, LEVEL = 0.62, 0.03, 0.05


def shares(rng, truth, images, per_image, draws):
    """Scores of ``draws`` runs: answers follow the image's own rate (icc about 0.25)."""
    rates = rng.beta(3 * truth, 3 * (1 - truth), (draws, images, 1))
    return (rng.random((draws, images, per_image)) < rates).astype(float).reshape(draws, -1)


def verdicts(rows, clusters=None):
    found = [from_scores(row, PRINTED, MARGIN, clusters).verdict(LEVEL) for row in rows]
    return {name: found.count(name) / len(found) for name in (AGREES, DIFFERS, NO_VERDICT)}


@pytest.mark.parametrize(
    ("design", "side"),
    # Seconds each: one of either design in the quick suite.
    [
        ("independent", -1),
        ("clusters", 1),
        pytest.param("independent", 1, marks=pytest.mark.slow),
        pytest.param("clusters", -1, marks=pytest.mark.slow),
    ],
)
def test_either_verdict_errs_in_five_percent_at_its_border(design, side):
    """At exactly a margin from print both statements are wrong: each at most at its level."""
    rng = np.random.default_rng(side + 5)
    truth, draws = PRINTED + side * MARGIN, 400
    if design == "independent":
        rows, clusters = (rng.random((draws, 500)) < truth).astype(float), None
    else:
        rows = shares(rng, truth, 300, 8, draws)
        clusters = [number // 8 for number in range(rows.shape[1])]
    found = verdicts(rows, clusters)
    # Four standard errors of the draws above the level.
    slack = 4 * (LEVEL * (1 - LEVEL) / draws) ** 0.5
    assert found[AGREES] <= LEVEL + slack
    assert found[DIFFERS] <= LEVEL + slack
    if design == "clusters":
        naive = verdicts(rows)
        assert max(naive[AGREES], naive[DIFFERS]) > LEVEL + slack, "clusters must matter"


def test_the_verdicts_are_found_where_they_are_true():
    rng = np.random.default_rng(2)
    near = verdicts((rng.random((200, 6000)) < PRINTED).astype(float))
    far = verdicts((rng.random((200, 6000)) < PRINTED + 3 * MARGIN).astype(float))
    few = verdicts((rng.random((200, 40)) < PRINTED).astype(float))
    assert near[AGREES] > 0.9
    assert far[DIFFERS] > 0.95
    assert few[NO_VERDICT] > 0.9


def test_the_interval_covers_the_true_score():
    rng = np.random.default_rng(3)
    inside = 0
    for row in (rng.random((600, 400)) < 0.9).astype(float):
        low, high = from_scores(row, PRINTED, MARGIN).interval
        inside += low <= 0.9 <= high
    assert 0.92 <= inside / 600 <= 0.98


@pytest.mark.parametrize("own_error", [False, True])
def test_by_standard_error_the_level_holds_for_a_second_draw_of_samples(own_error):
    """Perplexities of 200 documents; with other documents print has an error of its own."""
    rng = np.random.default_rng(4)
    draws, documents, margin = 1500, 200, 0.2
    ours = rng.lognormal(1.0, 0.3, (draws, documents))
    truth, printed = np.exp(1.0 + 0.3**2 / 2), np.full(draws, 0.0)
    printed += truth - margin
    if own_error:
        printed = rng.lognormal(1.0, 0.3, (draws, documents)).mean(1) - margin
    wrong = {True: [], False: []}
    for row, number in zip(ours, printed, strict=True):
        error = row.std(ddof=1) / documents**0.5
        for assumed in (True, False):
            made = from_error(row.mean(), error, documents, number, margin, own_error=assumed)
            wrong[assumed].append(made.verdict(LEVEL))
    slack = 4 * (LEVEL * (1 - LEVEL) / draws) ** 0.5
    for name in (AGREES, DIFFERS):
        assert wrong[own_error].count(name) / draws <= LEVEL + slack
    if own_error:
        assert wrong[False].count(AGREES) / draws > LEVEL + slack, "print's own error matters"


def test_mirrored_scores_give_the_mirrored_answer():
    rng = np.random.default_rng(6)
    (row,), clusters = shares(rng, 0.6, 80, 6, 1), [number // 6 for number in range(480)]
    one = from_scores(row, PRINTED, MARGIN, clusters)
    other = from_scores(1 - row, 1 - PRINTED, MARGIN, clusters)
    assert (other.p_differs, other.p_agrees) == pytest.approx((one.p_differs, one.p_agrees))
    assert other.interval == pytest.approx((1 - one.interval[1], 1 - one.interval[0]))
    alone = from_scores(row, PRINTED, MARGIN)
    widths = [found.interval[1] - found.interval[0] for found in (alone, one)]
    assert widths[1] > 1.2 * widths[0], "clusters widen it"


def test_too_little_is_undecided_and_a_margin_is_needed():
    assert from_scores([1.0] * 5, 0.2, 0.1).verdict() == NO_VERDICT
    assert from_error(0.9, 0.0, 50, 0.2, 0.1).verdict() == NO_VERDICT
    assert from_error(0.9, 0.01, 3, 0.2, 0.1).interval is None
    with pytest.raises(ValueError, match="margin above 0"):
        from_scores([1.0] * 50, 0.2, 0.0)
    both = Agreement(1, 1, 1, None, 0.01, 0.01, 9)
    assert both.verdict() == DIFFERS


def test_half_a_width_is_that_of_a_share():
    assert half_width(0.62, 12_578) == pytest.approx(1.96 * (0.62 * 0.38 / 12_578) ** 0.5, rel=0.02)
    assert half_width(0.3, 150) == pytest.approx(1.98 * (0.3 * 0.7 / 150) ** 0.5, rel=0.05)
