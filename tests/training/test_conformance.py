"""The recorded training cases pass, and would not if anything compared were different."""

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from dynllava.conformance import read_index
from dynllava.conformance.training import HANDLERS, check_tau

GOLDEN = Path(__file__).parents[1] / "data" / "golden" / "dynamic_llava"
CASES = ("train_step", "train_step_lm_only", "softmax_with_policy")


def case(name, folder=GOLDEN):
    index = read_index(folder)
    return {**next(item for item in index["cases"] if item["name"] == name), "index": index}


@pytest.mark.parametrize("name", CASES)
def test_a_recorded_case_passes(name):
    result = HANDLERS[case(name)["kind"]](case(name), GOLDEN)
    assert not [row for row in result.rows if not row.passed]
    compared = {row.quantity for row in result.rows}
    outputs = set(case(name)["outputs"])
    assert outputs <= compared | result.excluded.keys()


def test_the_temperatures_pass_and_a_wrong_one_fails():
    schedule = read_index(GOLDEN)["gumbel_tau_schedule"]
    assert all(row.passed for row in check_tau(schedule).rows)
    wrong = [{**schedule[2], "tau": schedule[2]["tau"] + 1e-6}]
    assert not check_tau(wrong).rows[0].passed


@pytest.mark.parametrize("name", ["train_step_lm_only", "softmax_with_policy"])
def test_each_compared_tensor_matters(name, tmp_path):
    (tmp_path / "checkpoint").symlink_to(GOLDEN / "checkpoint")
    (tmp_path / "tiny_clip_vision_tower").symlink_to(GOLDEN / "tiny_clip_vision_tower")
    entry = case(name)
    tensors = load_file(GOLDEN / entry["file"])
    for key in entry["outputs"]:
        first = tensors[key].view(-1)[:1]
        decision = "mask_" in key or key in ("policy", "image_mask")
        scale = max(1.0, float(tensors[key].abs().max()))
        # The first entry of every tensor lies on a position that is compared.
        first += (1 - 2 * first) if decision else type(first.item())(scale)
    save_file(tensors, tmp_path / entry["file"])
    (tmp_path / "cases.json").write_text(json.dumps(entry["index"]))
    rows = HANDLERS[entry["kind"]](entry, tmp_path).rows
    failed = {row.quantity for row in rows if not row.passed}
    assert failed >= entry["outputs"].keys()
