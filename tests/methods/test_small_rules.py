"""Rules of a line or two, at their edges."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from dynllava import methods
from dynllava.costs import devices, kv, ledger
from dynllava.costs.spec import load_spec
from dynllava.engine.ranking import keep_highest, kept_counts
from dynllava.methods.budget import solve
from dynllava.plan import Alternate, Count, Cut, Plan, Segment, Share
from dynllava.plan.stores import LEAST_ROOM, room, round_up


def test_the_best_stay_and_of_equals_the_earlier_ones():
    scores = torch.tensor([[0.1, 0.9, 0.9, 0.3, 5.0], [0.5, 0.5, 0.5, 0.5, 0.5]])
    candidates = torch.tensor([[True, True, True, True, False], [True] * 4 + [False]])
    found = keep_highest(scores, candidates, torch.tensor([1, 3]))
    assert found.tolist() == [[False, True, False, False, True], [True, True, True, False, True]]
    everything = keep_highest(scores, candidates, torch.tensor([4, 4]))
    assert bool(everything.all())
    nothing = keep_highest(scores, candidates, torch.tensor([0, 0]))
    assert torch.equal(nothing, ~candidates)


@pytest.mark.parametrize(
    "keep",
    [
        Share(0.1), Share(0.3), Share(0.7), Share(0.5, rounding="half_even"),
        Share(0.25, of="present"), Share(0.9, spare=1), Count(7), Count(7, spare=2), Alternate(),
    ],
    ids=str,
)  # fmt: skip
def test_what_is_declared_is_what_the_engine_keeps(keep):
    """A share of 0.1 of 30 is 3, although 30 x 0.1 is a little less in floating point."""
    original = torch.arange(0, 200)
    present = (original * 2) // 3
    cut = Cut(1, keep)
    found = kept_counts(cut, SimpleNamespace(), original, present).tolist()
    pairs = zip(original.tolist(), present.tolist(), strict=True)
    assert found == [keep.count(None, whole, there) for whole, there in pairs]


def test_every_other_token_is_the_larger_half():
    assert [Alternate().count(None, n, n) for n in range(6)] == [0, 1, 1, 2, 2, 3]


@pytest.mark.parametrize(("value", "rounded"), [(0, 0), (1, 8), (8, 8), (9, 16), (16, 16)])
def test_room_is_a_multiple_of_the_chunk(value, rounded):
    assert round_up(value, 8) == rounded
    assert room(value, 8, grown=True) == rounded


@pytest.mark.parametrize(
    ("needed", "first", "later"),
    [(1, 5, 5), (34, 38, 38), (35, 39, 40), (51, 55, 58), (61, 66, 69), (1401, 1540, 1601)],
)
def test_room_grows_with_the_length(needed, first, later):
    assert LEAST_ROOM == 4
    assert room(needed, None, grown=False) == first
    assert room(needed, None, grown=True) == later


@pytest.mark.parametrize(
    ("text", "modes"),
    [
        ("full", ()),
        ("fastv", ("prefill", "decode with cache", "decode without cache")),
        ("fastv:decoder=rerank", ()),
        ("h2o", ("decode with cache",)),
        ("structure", ("decode with cache", "decode without cache")),
    ],
)
def test_where_a_method_saves(text, modes):
    from dynllava.methods.parameters import parse

    chosen = parse(text)
    assert methods.create(chosen.name, **chosen.parameters).plan(8).saves == modes


def test_a_plan_that_runs_without_a_cache_saves_nothing_with_one():
    plan = Plan((Cut(2, Share(0.5), of=Segment.IMAGE),), decode="recompute")
    assert plan.saves == ("prefill", "decode without cache")


def test_memory_covers_the_fuller_of_begin_and_end():
    spec = load_spec("llava-1.5-7b")
    for name in ("full", "h2o"):
        run = ledger.Run(spec, methods.create(name), spec.prompt(60), 300, 1)
        least = spec.weight_bytes("float16") + kv.activation_bytes(run, "float16")
        states = [kv.kv_state(run, fed, "float16").peak for fed in (0, run.outputs - 1)]
        assert kv.memory_bytes(run, "float16") == least + max(states)


def test_one_token_is_the_least_that_may_fit():
    spec, a100 = load_spec("llava-1.5-7b"), devices.load_device("a100-80g")
    run = ledger.Run(spec, methods.create("full"), spec.prompt(60), 1, 1)
    assert kv.max_outputs(run, a100, "float16", limit=1) == 1
    tight = replace(a100, memory_gib=kv.memory_bytes(run, "float16") / devices.GIB / 0.9 + 0.7)
    found = kv.max_outputs(run, tight, "float16")
    assert found >= 1
    assert kv.fits(replace(run, outputs=found), tight, "float16")
    assert not kv.fits(replace(run, outputs=found + 1), tight, "float16")


def test_a_share_of_one_is_a_budget_that_can_shrink():
    """FastV's keep_ratio of 1.0 is halved by the solver's trial like any other share."""
    spec = load_spec("llava-1.5-7b")
    found = solve("fastv", 192, spec.prompt(60), num_layers=32, k=2)
    assert 0 < found["keep_ratio"] < 1
