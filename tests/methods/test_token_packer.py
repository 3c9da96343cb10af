"""TokenPacker: blocks, the coarse query, costs, checkpoints known by their tensors."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from dynllava.conformance.token_packer import golden_model
from dynllava.costs import audit, flops
from dynllava.costs.counters import flop_counter
from dynllava.costs.spec import LLAVA_15_7B, ModelSpec
from dynllava.errors import UserError
from dynllava.models.checkpoints import convert, to_official_name
from dynllava.models.layouts import inspect
from dynllava.models.loading import load_model
from dynllava.models.token_packer import LEVELS, TokenPacker, macs, parameters, regions

GOLDEN = Path(__file__).parents[1] / "data" / "golden" / "projectors_and_stages"
CASES = {case["name"]: case for case in json.loads((GOLDEN / "cases.json").read_text())["cases"]}


def packer(factor, channels=6, hidden=10, width=8, heads=2):
    torch.manual_seed(0)
    return TokenPacker(channels, hidden, factor, width, heads).eval()


@pytest.mark.parametrize("factor", [2, 3, 4])
def test_a_patch_changes_its_own_blocks_token_and_no_other(factor):
    projector, edge = packer(factor), 12
    features = torch.randn(1, edge * edge, 6 * (len(LEVELS) + 1))
    with torch.no_grad():
        base = projector(features)
        for row, column in ((0, 0), (1, 1), (7, 10), (11, 11)):
            moved = features.clone()
            moved[:, row * edge + column] += 1.0
            changed = (projector(moved) - base).abs().amax(-1)[0] > 1e-6
            token = row // factor * (edge // factor) + column // factor
            assert changed.nonzero().flatten().tolist() == [token]


@pytest.mark.parametrize(("factor", "inner"), [(2, [0, 1, 2, 3]), (3, [4]), (4, [5, 6, 9, 10])])
def test_the_coarse_query_is_the_mean_of_the_blocks_inner_patches(factor, inner):
    selected = torch.randn(2, 144, 6)
    blocks = selected[:, regions(144, factor)]
    expected = blocks[:, :, inner].mean(2)
    torch.testing.assert_close(packer(factor).coarse(selected), expected, atol=1e-6, rtol=0)
    # The resize is computed in float32 whatever the features are.
    half = packer(factor).coarse(selected.bfloat16())
    torch.testing.assert_close(
        half, packer(factor).coarse(selected.bfloat16().float()).bfloat16(), atol=0, rtol=0
    )


@pytest.mark.parametrize(("patches", "factor"), [(144, 5), (143, 2), (24, 2)])
def test_a_grid_that_blocks_do_not_divide_is_refused(patches, factor):
    with pytest.raises(UserError, match="square grid"):
        regions(patches, factor)


@pytest.mark.parametrize("factor", [2, 3, 4])
def test_costs_and_parameters_are_those_of_the_module(factor):
    projector = packer(factor)
    with torch.inference_mode(), flop_counter() as counter:
        projector(torch.randn(1, 144, 30))
    assert counter.get_total_flops() // 2 == macs(6, 10, 144, factor, 8)
    assert sum(p.numel() for p in projector.parameters()) == parameters(6, 10, 8)


def test_costs_at_the_published_size():
    spec = ModelSpec("tokenpacker", LLAVA_15_7B.dims, LLAVA_15_7B.vision, 144, False, 5, (2, 1024))
    assert spec.parameters()["projector"] == 36_722_688
    assert round(flops.projector(spec) / 1e9, 2) == 10.72
    assert audit.count_projector("torch", spec, 2) == flops.projector(spec, 2)
    assert round(flops.projector(LLAVA_15_7B) / 1e9, 2) == 12.08


@pytest.fixture
def official(tmp_path):
    """A checkpoint in the original format, of wide enough heads to need no hint."""
    case = CASES["llava_s2"]
    folder = tmp_path / "tokenpacker-7b"
    folder.mkdir()
    state = {}
    for name in case["weights"]:
        state |= load_file(GOLDEN / name)
    save_file(state, folder / "model.safetensors")
    config = json.loads((GOLDEN / case["config"]).read_text()) | {
        "model_type": "llava",
        "mm_projector_type": "mlp2x_gelu",
        "mm_vision_tower": "tiny_clip",
        "mm_vision_select_layer": -2,
        "scale_factor": 2,
    }
    (folder / "config.json").write_text(json.dumps(config))
    (tmp_path / "tiny_clip").symlink_to(GOLDEN / case["vision_tower"])
    return folder


def changed(folder, **values):
    path = folder / "config.json"
    config = json.loads(path.read_text()) | values
    path.write_text(json.dumps({k: v for k, v in config.items() if v is not None}))


def test_a_checkpoint_is_known_by_its_tensors_and_survives_conversion(official, tmp_path):
    found = inspect(official)
    assert found.problems == ()
    assert found.packer == {"width": 32, "heads": 1}
    model, _ = load_model(official)
    assert model.config.image_seq_length == 144
    assert model.config.vision_feature_layer == [*LEVELS, -2]
    pixels = torch.randn(1, 3, 48, 48, generator=torch.Generator().manual_seed(0))
    ids = torch.full((1, 150), model.config.image_token_id)
    ids[:, :3], ids[:, 147:] = 5, 7
    with torch.no_grad():
        expected = model(ids, pixel_values=pixels).logits
        convert(official, tmp_path / "hf")
        again, _ = load_model(tmp_path / "hf")
        torch.testing.assert_close(again(ids, pixel_values=pixels).logits, expected)
    convert(tmp_path / "hf", tmp_path / "back", to="official")
    back, first = (load_file(f / "model.safetensors") for f in (tmp_path / "back", official))
    assert {k for k in first if not torch.equal(first[k], back[k])} == set()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"scale_factor": None}, "needs the edge of its blocks"),
        ({"scale_factor": "2"}, "needs the edge of its blocks"),
        ({"scale_factor": 5}, "does not divide the tower's 24 patches"),
        ({"image_aspect_ratio": "slice"}, "TokenPacker-HD"),
        ({"mm_vision_select_feature": "cls_patch"}, "needs 'patch'"),
    ],
)
def test_what_cannot_work_is_said_before_anything_is_loaded(official, values, message):
    changed(official, **values)
    assert any(message in problem for problem in inspect(official).problems)
    with pytest.raises(UserError):
        load_model(official)


def test_without_the_tensors_the_name_is_not_enough(official):
    changed(official, mm_projector_type="tokenpacker")
    state = load_file(official / "model.safetensors")
    save_file(
        {k: v for k, v in state.items() if "clip_attn" not in k}, official / "model.safetensors"
    )
    assert any(
        "mm_projector_type='tokenpacker'" in problem for problem in inspect(official).problems
    )


def test_methods_behind_the_projector_work_and_those_before_it_are_refused():
    model = golden_model(CASES["llava_s3"], GOLDEN)
    ids = torch.full((1, 70), model.config.image_token_id)
    ids[:, :2], ids[:, 66:] = 5, 7
    pixels = torch.randn(1, 3, 48, 48)
    with torch.no_grad():
        for name, parameters_, last in (
            ("fastv", {"k": 2, "keep_ratio": 0.5}, 32),
            ("pyramiddrop", {"layers": "1/2", "ratios": "0.5/0.25"}, 16),
        ):
            model.set_method(name, **parameters_)
            model(ids, pixel_values=pixels)
            assert model.last_report.layer_tokens[-1][0] == last + 6
        for name in ("downsample", "pool"):
            with pytest.raises(UserError, match="stand for blocks of patches"):
                model.set_method(name, rows=6, columns=6)
        model.set_method("fastervlm", keep_ratio=0.5)
        with pytest.raises(UserError, match="no method may drop patches before it"):
            model(ids, pixel_values=pixels)


def test_official_names_are_found_again():
    name = "model.multi_modal_projector.clip_attn.out_proj.bias"
    assert to_official_name(name) == "model.mm_projector.clip_attn.out_proj.bias"
