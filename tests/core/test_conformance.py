"""The certificate passes on the golden data, and fails when any compared tensor is touched."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from dynllava.cli import main
from dynllava.conformance import check_folder, read_index
from dynllava.errors import UserError

GOLDEN = Path(__file__).parents[1] / "data" / "golden" / "dynamic_llava"


@pytest.fixture(scope="module")
def certificate():
    return check_folder(GOLDEN)


def test_every_compared_quantity_passes(certificate):
    assert [row for row in certificate.rows if not row.passed] == []
    assert len(certificate.rows) > 100


def test_every_case_is_covered(certificate):
    assert certificate.not_covered == []


def test_every_recorded_output_is_compared_or_excluded_with_a_reason(certificate):
    by_case = {result.case: result for result in certificate.results}
    for case in read_index(GOLDEN)["cases"]:
        result = by_case[case["name"]]
        mentioned = {row.quantity for row in result.rows} | set(result.excluded)
        assert set(case["outputs"]) - mentioned == set(), case["name"]


INFERENCE = [
    case["name"]
    for case in json.loads((GOLDEN / "cases.json").read_text())["cases"]
    if case["kind"] not in ("train", "masked_softmax")
]


@pytest.mark.parametrize("name", INFERENCE)
def test_perturbing_any_compared_tensor_fails(name, tmp_path, certificate):
    folder = tmp_path / "golden"
    folder.mkdir()
    for item in GOLDEN.iterdir():
        if item.name != f"{name}.safetensors":
            (folder / item.name).symlink_to(item)
    original = load_file(GOLDEN / f"{name}.safetensors")
    compared = [row.quantity for row in certificate.rows if row.case == name]
    perturbed = {}
    for quantity in compared:
        tensor = original[quantity].clone()
        # The last entry: of the last step, layer and row, which a careless slice would miss.
        flat = tensor.view(-1)
        if tensor.is_floating_point():
            flat[-1] += 0.05
        else:
            flat[-1] = 1 - flat[-1] if tensor.dtype == torch.uint8 else flat[-1] + 1
        perturbed[quantity] = tensor
    save_file({**original, **perturbed}, folder / f"{name}.safetensors")
    rows = check_folder(folder, name).rows
    assert {row.quantity for row in rows if not row.passed} == set(compared)


@pytest.mark.parametrize("name", ["vision_features", "prefill_b1_r0.2"])
def test_a_recorded_tensor_that_is_gone_fails_its_case(name, tmp_path, certificate):
    original = load_file(GOLDEN / f"{name}.safetensors")
    (case,) = (case for case in read_index(GOLDEN)["cases"] if case["name"] == name)
    compared = {row.quantity for row in certificate.rows if row.case == name}
    # Outputs of a run, not what it was fed: also those that not every case of its kind has.
    for gone in sorted(compared & set(case["outputs"])):
        folder = tmp_path / gone.replace("/", "_")
        folder.mkdir()
        for item in GOLDEN.iterdir():
            if item.name != f"{name}.safetensors":
                (folder / item.name).symlink_to(item)
        left = {key: tensor for key, tensor in original.items() if key != gone}
        save_file(left, folder / f"{name}.safetensors")
        try:
            failed = any(not row.passed for row in check_folder(folder, name).rows)
        except UserError as error:
            failed = gone in str(error)
        assert failed, gone


def test_command_exit_codes_and_json(tmp_path, capsys):
    out = tmp_path / "certificate.json"
    arguments = ["conformance", str(GOLDEN), "--case", "vision_features", "--json", str(out)]
    assert main(arguments) == 0
    values = json.loads(out.read_text())
    assert values["passed"] == 2
    assert values["failed"] == 0
    assert values["not_covered"] == []
    assert {row["quantity"] for row in values["rows"]} == {"tower_features", "image_features"}
    assert "passed" in capsys.readouterr().out


def test_a_failure_exits_with_1(tmp_path, capsys):
    folder = tmp_path / "golden"
    shutil.copytree(GOLDEN, folder)
    tensors = load_file(folder / "vision_features.safetensors")
    tensors["image_features"] += 1e-2
    save_file(tensors, folder / "vision_features.safetensors")
    assert main(["conformance", str(folder), "--case", "vision_features"]) == 1
    assert "FAILED" in capsys.readouterr().out


def test_an_unknown_kind_is_listed_and_fails_only_when_all_are_required(tmp_path, capsys):
    folder = tmp_path / "golden"
    shutil.copytree(GOLDEN, folder)
    index = json.loads((folder / "cases.json").read_text())
    index["cases"] = [
        case | ({"kind": "new"} if case["name"] == "prefill_b1_r0.2" else {})
        for case in index["cases"]
        if case["name"] in ("prefill_b1_r0.2", "vision_features")
    ]
    (folder / "cases.json").write_text(json.dumps(index))
    assert main(["conformance", str(folder)]) == 0
    assert "prefill_b1_r0.2" in capsys.readouterr().out
    assert main(["conformance", str(folder), "--require-all"]) == 1


def test_nothing_compared_is_no_certificate(tmp_path):
    (tmp_path / "cases.json").write_text(json.dumps({"cases": [{"name": "a", "kind": "new"}]}))
    assert main(["conformance", str(tmp_path)]) == 1


@pytest.mark.parametrize("text", [None, "{", "[]", '{"cases": 3}'])
def test_a_broken_index_is_a_usage_error(tmp_path, text, capsys):
    if text is not None:
        (tmp_path / "cases.json").write_text(text)
    assert main(["conformance", str(tmp_path)]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_an_unknown_case_is_named(capsys):
    with pytest.raises(UserError, match="accepted are vision_features"):
        check_folder(GOLDEN, "nothing")
