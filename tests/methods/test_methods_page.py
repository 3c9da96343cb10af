"""docs/methods.md: what its table says of a method is what the method's plan says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dynllava.costs.spec import LLAVA_15_7B
from dynllava.methods import create, registry
from dynllava.methods.budget import solve
from dynllava.plan import PromptShape

PAGE = (Path(__file__).parents[2] / "docs" / "methods.md").read_text(encoding="utf-8")
SHAPE = PromptShape(35, 576, 40)
CLIP_L = {
    "projection_dim": 768,
    "text_config": {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12},
}


def table():
    lines = PAGE.partition("## Where each acts")[2].partition("\n## ")[0].splitlines()
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in lines if "| `" in line
    ]
    return {row[0].strip("`"): row[1:] for row in rows}


ROWS = table()
#: Controls and references of this project have no official program.
OWN = {"full", "no_image", "random", "uniform", "structure", "downsample", "pool"}


def test_every_method_with_a_program_of_its_own_has_a_row():
    assert ROWS.keys() == registry().keys() - OWN
    assert all(f"`{name}`" in PAGE for name in OWN)


@pytest.mark.parametrize("name", ROWS)
def test_a_row_says_what_the_plan_says(name, tmp_path):
    stage, _, cost, served, batch, licence = ROWS[name]
    if name == "cdpruner":
        (tmp_path / "config.json").write_text(json.dumps(CLIP_L))
        method = create(name, keep=192, text_tower=str(tmp_path), question="?")
    elif name == "voco_llama":
        method = create(name)
    else:
        method = create(name, **solve(name, 192, SHAPE, 32))
    plan = method.plan(32)
    assert served == plan.served
    macs = sum(item.macs for item in method.overhead(SHAPE, LLAVA_15_7B.dims))
    assert cost == f"{macs / 1e9:.3g}"
    stages = {cut.stage for cut in plan.cuts}
    assert ("before the projector" in stage) is ("features" in stages)
    assert ("layer 0" in stage) is ("embedded" in stages)
    assert batch
    assert "licence" in licence or "Apache-2.0" in licence or "MIT" in licence or "CC" in licence
