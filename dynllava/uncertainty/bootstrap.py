"""Resampling of whole clusters: what another draw of images would have shown."""

from __future__ import annotations

import numpy as np

DRAWS = 2000


def cluster_draws(clusters: int, draws: int = DRAWS, seed: int = 0) -> np.ndarray:
    """Return how often each cluster is in each bootstrap draw: [draws, clusters] float."""
    generator = np.random.default_rng(seed)
    chances = np.full(clusters, 1 / clusters)
    return generator.multinomial(clusters, chances, size=draws).astype(float)


def front_probability(costs: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Return with which probability each point is on the Pareto front.

    Parameters
    ----------
    costs : array
        [P] a lower one is better; known, not drawn.
    scores : array
        [draws, P] bootstrap scores, a higher one is better.

    Returns
    -------
    array
        [P] share of draws in which no other point has a higher score at no higher cost, or an
        equal score at a lower cost.
    """
    cheaper, no_dearer = costs[None, :] < costs[:, None], costs[None, :] <= costs[:, None]
    on_front = np.zeros(len(costs))
    for drawn in scores:
        higher, equal = drawn[None, :] > drawn[:, None], drawn[None, :] == drawn[:, None]
        on_front += ~((no_dearer & higher) | (cheaper & equal)).any(axis=1)
    return on_front / len(scores)
