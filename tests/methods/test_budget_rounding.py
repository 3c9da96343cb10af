"""Budgets are met to the nearest token, from both sides."""

from __future__ import annotations

import pytest

from dynllava.methods import create
from dynllava.methods.budget import held, processed, solve
from dynllava.plan import PromptShape

#: method -> (fixed parameters, layers that are not cut)
CUTS = {
    "fastv": ({"k": 2}, 2),
    "dynamic_llava": ({"sparse_layer": 3}, 3),
    "random": ({"layer": 1}, 1),
    "uniform": ({"layer": 0}, 0),
}


def differences(name, fixed, whole, reached, image=144, layers=6):
    """Reached - asked for, over budgets that are no whole tokens apart, in layers that are cut."""
    shape, found = PromptShape(9, image, 20), []
    lowest = (whole * image + 2 * (layers - whole)) / layers
    goal = max(lowest, {"h2o": 10, "sparsevlm": 30}.get(name, 0))
    while goal < image - 1:
        method = create(name, **solve(name, goal, shape, layers, **fixed))
        found.append((reached(method, shape, layers) - goal) * layers / (layers - whole))
        goal += 0.61 if image < 100 else 1.71
    return found


@pytest.mark.parametrize("image", [57, 144])
@pytest.mark.parametrize("name", list(CUTS))
def test_a_budget_is_reached_within_half_a_token_in_each_layer_that_is_cut(name, image):
    fixed, whole = CUTS[name]
    found = differences(name, fixed, whole, processed, image)
    assert len(found) > 20
    assert max(map(abs, found)) <= 0.5 + 1e-6
    assert max(found) > 0.3
    assert min(found) < -0.3
    assert abs(sum(found) / len(found)) < 0.1


@pytest.mark.parametrize("full", [0, 2])
def test_a_cache_budget_is_reached_within_half_an_entry_in_each_layer_that_evicts(full):
    found = differences("h2o", {"first_full_layers": full}, full, held)
    assert max(map(abs, found)) <= 0.5 + 1e-6
    assert max(found) > 0.3
    assert min(found) < -0.3
    assert abs(sum(found) / len(found)) < 0.1


@pytest.mark.parametrize("goal", [48.0, 72.5, 96.4])
def test_sparsevlms_last_stage_takes_up_what_is_left_of_a_budget(goal):
    shape = PromptShape(9, 144, 20)
    method = create("sparsevlm", **solve("sparsevlm", goal, shape, 6))
    assert abs(processed(method, shape, 6) - goal) <= 4
