"""Projectors and stages against the official recordings; touching a compared tensor fails."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from dynllava.conformance import handler_for

GOLDEN = Path(__file__).parents[1] / "data" / "golden" / "projectors_and_stages"
CASES = [
    case
    for case in json.loads((GOLDEN / "cases.json").read_text())["cases"]
    if handler_for(case) is not None
]
#: Run twice more, perturbed.
PERTURBED = ("odd_count_1_3_6", "two_images_two_groups", "alone_s3_grid12_b2", "prefill_decode_s2")


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case['system']}-{case['name']}")
def test_every_recorded_tensor_agrees_or_is_excluded_with_a_reason(case):
    result = handler_for(case)(case, GOLDEN)
    assert [row for row in result.rows if not row.passed] == []
    covered = {row.quantity for row in result.rows} | set(result.excluded)
    # Weights made from integers are compared with their first values beside.
    assert set(case["tensors"]) == {name for name in covered if not name.endswith(" (recipe)")}
    text = " ".join((GOLDEN / "README.md").read_text().split())
    assert all(reason in text for reason in result.excluded.values())


@pytest.mark.parametrize(
    "case", [case for case in CASES if case["name"] in PERTURBED], ids=lambda case: case["name"]
)
@pytest.mark.parametrize("place", [0, -1])
def test_perturbing_any_compared_tensor_fails(case, place, tmp_path):
    for source in GOLDEN.rglob("*"):
        target = tmp_path / source.relative_to(GOLDEN)
        if source.is_dir():
            target.mkdir()
        elif source != GOLDEN / case["file"]:
            target.symlink_to(source)
    tensors = load_file(GOLDEN / case["file"])
    read = handler_for(case)(case, GOLDEN).excluded
    for name, tensor in tensors.items():
        if name in read or not tensor.numel():
            continue
        flat = tensor.view(-1)
        if tensor.dtype == torch.uint8:
            flat[place] = 1 - flat[place]
        else:
            flat[place] += 0.05 if tensor.is_floating_point() else 1
    save_file(tensors, tmp_path / case["file"])
    result = handler_for(case)(case, tmp_path)
    passed = {row.quantity for row in result.rows if row.passed}
    assert {name for name in passed if tensors[name].numel()} == set()


def test_a_tensor_that_is_not_read_fails_the_case(tmp_path):
    case = dict(CASES[0], file="with_more.safetensors")
    for source in GOLDEN.iterdir():
        (tmp_path / source.name).symlink_to(source)
    save_file(
        {**load_file(GOLDEN / CASES[0]["file"]), "new": torch.zeros(1)}, tmp_path / case["file"]
    )
    failed = [row.quantity for row in handler_for(case)(case, tmp_path).rows if not row.passed]
    assert failed == ["new (not read)"]


def test_an_unknown_system_is_not_covered():
    assert handler_for({"system": "new", "kind": "new", "name": "new"}) is None
