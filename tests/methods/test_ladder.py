"""The search for the highest budget within a limit, and the class a plan is served as."""

from __future__ import annotations

import random

import pytest

from dynllava.errors import UserError
from dynllava.methods import create, registry
from dynllava.methods.budget import held, processed, takes_budget
from dynllava.methods.ladder import ladder
from dynllava.plan import PromptShape

SHAPE, LAYERS = PromptShape(35, 144, 25), 8
SCALED = sorted(name for name in registry() if takes_budget(name))


@pytest.mark.parametrize("name", SCALED)
def test_the_highest_rung_within_a_limit_is_tight(name):
    try:
        rungs = ladder(name, SHAPE, LAYERS)
    except UserError:
        pytest.skip("its default adapts itself to the picture: no shares to scale")
    cost = held if rungs.method(0).plan(LAYERS).evicts else processed
    draw = random.Random(0)
    low, high = (cost(rungs.method(rung), SHAPE, LAYERS) for rung in (0, rungs.count - 1))
    for limit in [draw.uniform(low, high + 1) for _ in range(20)]:
        top = rungs.highest(lambda method, most=limit: cost(method, SHAPE, LAYERS) <= most)
        assert cost(rungs.method(top), SHAPE, LAYERS) <= limit
        if top < rungs.count - 1:
            assert cost(rungs.method(top + 1), SHAPE, LAYERS) > limit
    assert rungs.highest(lambda method: False) is None


def test_the_last_rung_keeps_everything():
    for name in ("fastv", "pyramiddrop", "sparsevlm", "dynamic_llava", "pool"):
        rungs = ladder(name, SHAPE, LAYERS)
        assert processed(rungs.method(rungs.count - 1), SHAPE, LAYERS) == 144


def test_what_cannot_be_scaled_is_refused():
    with pytest.raises(UserError, match="no budget"):
        ladder("full", SHAPE, LAYERS)
    with pytest.raises(UserError, match="without an image"):
        ladder("fastv", PromptShape(35, 0, 25), LAYERS)
    with pytest.raises(UserError, match="is given"):
        ladder("fastv", SHAPE, LAYERS, keep=5)


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("fastervlm", "A"), ("visionzip", "A"), ("divprune", "A"), ("pool", "A"),
        ("downsample", "A"), ("fastv", "C"), ("sparsevlm", "C"), ("pyramiddrop", "C"),
        ("voco_llama", "C"), ("dynamic_llava:output_keep_rate=1.0", "C"), ("dynamic_llava", "D"),
        ("h2o", "D"), ("fastv:decoder=rerank", "D"), ("fastervlm+h2o", "D"), ("structure", "D"),
    ],
)  # fmt: skip
def test_the_class_follows_from_the_plan(text, letter):
    assert create(text).plan(LAYERS * 4).served == letter
