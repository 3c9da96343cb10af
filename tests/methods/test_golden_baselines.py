"""FastV, SparseVLM and H2O against the official recordings; touching a compared tensor fails."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from dynllava.conformance import baselines, handler_for

GOLDEN = Path(__file__).parents[1] / "data" / "golden" / "baselines"
CASES = json.loads((GOLDEN / "cases.json").read_text())["cases"]
#: Run twice, once perturbed; the others are left to `dynllava conformance` in CI.
PERTURBED = ("k3_keep9", "loc1_3_4_img36", "first2_full")


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case['method']}-{case['name']}")
def test_every_recorded_tensor_agrees_or_is_excluded_with_a_reason(case):
    result = baselines.check(case, GOLDEN)
    assert [row for row in result.rows if not row.passed] == []
    covered = {row.quantity for row in result.rows} | set(result.excluded)
    assert set(case["tensors"]) - set(baselines.INPUTS) == covered


@pytest.mark.parametrize(
    "case", [case for case in CASES if case["name"] in PERTURBED], ids=lambda case: case["name"]
)
@pytest.mark.parametrize("place", [0, -1])
def test_perturbing_any_compared_tensor_fails(case, place, tmp_path):
    folder = tmp_path / "golden"
    folder.mkdir()
    (folder / case["method"]).mkdir()
    for name in ("weights", "config"):
        (folder / case[name]).symlink_to(GOLDEN / case[name])
    tensors = load_file(GOLDEN / case["file"])
    for name, tensor in tensors.items():
        if name in baselines.INPUTS:
            continue
        flat = tensor.view(-1)
        if tensor.dtype == torch.bool:
            flat[place] = ~flat[place]
        else:
            flat[place] += 0.05 if tensor.is_floating_point() else 1
    save_file(tensors, folder / case["file"])
    result = baselines.check(case, folder)
    assert [row.quantity for row in result.rows if row.passed] == []


def test_an_unknown_variant_or_method_is_not_covered():
    assert handler_for({"method": "fastv", "variants": ["baseline", "new"]}) is None
    assert handler_for({"method": "new", "variants": ["baseline"]}) is None
    assert handler_for(CASES[0]) is not None


def test_a_tensor_that_is_not_read_fails_the_case():
    case = dict(CASES[0], variants=[], tensors={"mask_cache.new": {}})
    assert [row.passed for row in baselines.check(case, GOLDEN).rows] == [False]


def test_h2o_with_a_restricted_prefill_equals_the_official_global_simulation():
    for case in (case for case in CASES if case["method"] == "h2o"):
        params = case["params"]
        session = baselines.Session(
            case,
            GOLDEN,
            "sim_global",
            "h2o",
            heavy=params["heavy_ratio"],
            recent=params["recent_ratio"],
            phase="prefill+decode",
            first_full_layers=params["first_full_layers"],
        )
        if params["heavy_budget"] + params["recent_budget"] >= case["seq_len"]:
            continue  # within the budget nothing is restricted here; upstream masks even then
        with torch.no_grad():
            logits = session.prefill()
        torch.testing.assert_close(
            logits, session.recorded("prefill_logits"), atol=baselines.H2O, rtol=0
        )
