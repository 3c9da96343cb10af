"""Paired runs drawn with known truth: cluster sums of differences, all draws at once."""

from __future__ import annotations

import numpy as np

from dynllava.uncertainty import MIN_DIFFERING, exact_bounds, skewness
from dynllava.uncertainty.sign_flips import flip_tails

ALPHA = 0.05
FEW_DRAWS = 200
"""Exact bounds take milliseconds each: their rates come from so many of the draws."""


def sizes(generator, draws, clusters, kind):
    """[draws, clusters] samples a cluster: ``"10"`` all equal, ``"geometric"`` with mean 5."""
    if kind == "10":
        return np.full((draws, clusters), 10)
    return generator.geometric(0.2, size=(draws, clusters))


def binary(generator, counts, discordance, truth, icc, law):
    """Sums of differences -1, 0, 1 by cluster, and whether any of a cluster's is not 0.

    ``truth`` is the mean difference, ``icc`` the correlation of two differences in a cluster.
    Law "copy": each answer is its cluster's common one with probability sqrt(icc), else its own.
    Law "dirichlet": answers are independent given the cluster's own rates.
    """
    lose, win = (discordance - truth) / 2, (discordance + truth) / 2
    if icc == 0:
        lost = generator.binomial(counts, lose)
        won = generator.binomial(counts - lost, win / (1 - lose))
    elif law == "copy":
        u = generator.random(counts.shape)
        common = np.where(u < lose, -1, np.where(u < lose + win, 1, 0))
        copied = generator.binomial(counts, icc**0.5)
        lost = generator.binomial(counts - copied, lose)
        won = generator.binomial(counts - copied - lost, win / (1 - lose))
        lost, won = lost + copied * (common < 0), won + copied * (common > 0)
    else:
        a = 1 / icc - 1
        rate = generator.beta(a * lose, a * (1 - lose), size=counts.shape)
        other = generator.beta(a * win, a * (1 - discordance), size=counts.shape)
        lost = generator.binomial(counts, rate)
        won = generator.binomial(counts - lost, other)
    return (won - lost).astype(float), (won + lost) > 0


def continuous(generator, counts, discordance, truth, icc):
    """Sums of normal differences whose variance is that of halves at ``discordance``."""
    scale = 0.5 * discordance**0.5
    common = np.sqrt(icc) * counts * generator.standard_normal(counts.shape)
    own = np.sqrt((1 - icc) * counts) * generator.standard_normal(counts.shape)
    return counts * truth + scale * (common + own), np.ones(counts.shape, bool)


def rates(totals, counts, differing, truth, margin_bounded=True):
    """How often the interval covers ``truth`` and either test at its margin errs.

    Returns (coverage, p_not_inferior <= alpha, p_worse <= alpha), with the rule of
    ``compare_paired``: the skewness-corrected t from MIN_DIFFERING clusters on, else the exact
    bound (``margin_bounded=False``: nothing is decided).
    """
    many = (differing.sum(1) >= MIN_DIFFERING) & totals.any(1)
    found = skewness.moments(totals, counts.astype(float))
    below, above = skewness.tails(found, truth)
    low, high = skewness.interval(found, ALPHA)
    covered = ((low <= truth) & (truth <= high) & many).sum()
    inferior, worse = ((above <= ALPHA) & many).sum(), ((below <= ALPHA) & many).sum()
    few = np.flatnonzero(~many)
    if not len(few) or not margin_bounded:
        covered = covered + len(few)
        return covered / len(many), inferior / len(many), worse / len(many)
    tails = [
        (
            exact_bounds.at_most(totals[i], counts[i].astype(float), truth, 1.0),
            exact_bounds.at_most(-totals[i], counts[i].astype(float), -truth, 1.0),
        )
        for i in few[:FEW_DRAWS]
    ]
    share = len(few) / len(tails)
    covered = covered + share * sum(min(pair) > ALPHA / 2 for pair in tails)
    inferior = inferior + share * sum(pair[0] <= ALPHA for pair in tails)
    worse = worse + share * sum(pair[1] <= ALPHA for pair in tails)
    return covered / len(many), inferior / len(many), worse / len(many)


def flip_rate(totals, limit=ALPHA):
    """Share of draws in which the sign flips call the candidate worse at margin 0."""
    p_values = [sum(flip_tails(row)[:2]) for row in totals]
    return float((np.array(p_values) <= limit).mean())
