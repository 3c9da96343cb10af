"""Methods before layer 0: official recordings, where ours differ from them, costs and budgets."""

from __future__ import annotations

import json
import threading
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from image_views import synthetic, view_of
from safetensors.torch import load_file, save_file
from tiny import batch, pixels, prompts, tiny_model

from dynllava.conformance import CaseResult, vision_side
from dynllava.costs import ledger
from dynllava.costs.counters import flop_counter
from dynllava.costs.realised import Realised
from dynllava.costs.spec import PRESETS, spec_from_config
from dynllava.engine.family import Llava
from dynllava.engine.projections import outputs_of
from dynllava.engine.rows import ImageView, Picture
from dynllava.errors import UserError
from dynllava.methods import create, divprune, hired, prumerge, visionzip, vispruner
from dynllava.methods.budget import processed, solve, takes_budget
from dynllava.models.config import model_dims
from dynllava.plan import PromptShape, Tower, TowerDims

GOLDEN = Path(__file__).parents[1] / "data" / "golden" / "vision_side"
CASES = {f"{case['method']}-{case['name']}": case for case in json.loads(
    (GOLDEN / "cases.json").read_text())["cases"]}  # fmt: skip
PERTURBED = ("prumerge-g8_shallow5", "visionzip-g8_shallow5", "fastervlm-g8_batch2",
             "vispruner-g8_t24_r025", "hired-l15_g8_spatial", "hired-next_g8_1x2_wide",
             "divprune-g8_r05")  # fmt: skip
NAMES = ("fastervlm", "visionzip", "divprune", "vispruner", "prumerge", "hired")


@pytest.mark.parametrize("name", list(CASES))
def test_every_recorded_tensor_agrees_or_is_excluded_with_a_reason_of_the_readme(name):
    case, readme = CASES[name], (GOLDEN / "README.md").read_text()
    result = vision_side.check(case, GOLDEN)
    assert [row for row in result.rows if not row.passed] == []
    assert all(reason in readme for reason in result.excluded.values())
    covered = {row.quantity for row in result.rows} | set(result.excluded)
    assert (
        set(case["tensors"]) - set(vision_side.INPUTS) - {"ties.features", "exhaust.features"}
        == covered
    )


@pytest.mark.parametrize("name", PERTURBED)
def test_perturbing_any_compared_tensor_fails(name, tmp_path):
    case = CASES[name]
    for item in ("cases.json", "weights"):
        (tmp_path / item).symlink_to(GOLDEN / item)
    (tmp_path / case["method"]).mkdir()
    tensors = load_file(GOLDEN / case["file"])
    for quantity, tensor in tensors.items():
        if quantity in vision_side.INPUTS:
            continue
        flat = tensor.view(-1)
        if tensor.dtype == torch.bool:
            flat[-1] = ~flat[-1]
        else:
            flat[-1] += 0.05 * flat.abs().max() if tensor.is_floating_point() else 1
    save_file(tensors, tmp_path / case["file"])
    result = vision_side.check(case, tmp_path)
    assert [row.quantity for row in result.rows if row.passed] == []


def session(name):
    return vision_side.Session(CASES[name], GOLDEN, CaseResult(name))


# ---------------------------------------------------------------- differences of official programs


@pytest.mark.parametrize("name", ["hired-l15_g12_batch2_defect", "divprune-g12_batch2_defect"])
@torch.no_grad()
def test_each_image_of_a_batch_gets_its_own_choice_where_the_official_one_is_the_firsts(name):
    opened = session(name)
    params = CASES[name]["params"]
    method = create(CASES[name]["method"], keep_ratio=params.get("ratio", 0.25))
    recorded = opened.tensors["inputs_embeds"]
    opened.answers(method)
    row = next(row for row in opened.result.rows if row.quantity == "inputs_embeds")
    assert not row.passed
    opened.model.set_method(method)
    ids = torch.full((2, CASES[name]["vision"]["patches"] + 1), opened.model.config.image_token_id)
    ids[:, 0] = 1
    opened.model(input_ids=ids, pixel_values=opened.pixels, use_cache=False)
    first, second = opened.model.last_report.kept_image_indices
    official = opened.tensors["kept" if "kept" in opened.tensors else "selected_sorted"].tolist()
    assert first == official
    assert second != official
    assert len(second) == len(official) == recorded.shape[1] - 35 - CASES[name]["text_tokens"]


def test_divprune_picks_no_token_twice_where_the_official_program_does():
    tensors = load_file(GOLDEN / "divprune" / "function_ties.safetensors")
    recorded = tensors["exhaust.selected"].tolist()
    picked, scores = divprune.diverse(tensors["exhaust.distance"], len(recorded))
    distinct = len(set(recorded))
    assert len(recorded) > distinct
    assert picked[:distinct].tolist() == recorded[:distinct]
    assert len(set(picked.tolist())) == len(recorded)
    assert scores[distinct:].abs().max() < 1e-6


def test_divprune_rounds_halves_to_even_and_computes_in_float32():
    schedule = create("divprune", keep_ratio=0.098).schedule(PromptShape(35, 576, 8), 2)
    assert schedule.prefill_rows[0] == 43 + 56
    assert (
        create("divprune", keep_ratio=0.125).schedule(PromptShape(1, 4, 1), 2).prefill_rows[0] == 2
    )
    rows = torch.randn(40, 8, generator=torch.Generator().manual_seed(0)).bfloat16()
    assert divprune.distances(rows).dtype == torch.float32


def test_vispruner_thins_an_odd_number_of_patches_which_the_official_program_refuses():
    features = torch.randn(137, 8, generator=torch.Generator().manual_seed(0))
    left = vispruner.thinned(features[None], torch.randperm(137)[None], 23)[0]
    assert len(set(left.tolist())) == 23
    assert [drop for _, _, drop in vispruner.rounds(137, 23)] == [8] * 14 + [2]
    assert vispruner.thinned(features[None], torch.arange(137)[None], 0).shape == (1, 0)


def test_visionzip_adds_the_mean_of_members_to_a_target_and_sends_the_class_token_first():
    method = visionzip.VisionZip(dominant=5, contextual=6)
    view = view_of(method)
    rows, found = method.rows(view), method.groups(view)
    assert rows.origin[0] == -2
    assert torch.equal(rows.features[0], view.class_token)
    for place, target in enumerate(found.target):
        members = found.members[found.nearest == place]
        mean = view.features[members].mean(0) if len(members) else 0
        torch.testing.assert_close(rows.features[5 + place], view.features[target] + mean)
    # 44 others, step 44 // 6 = 7: the targets end at the 35th, the tail holds none.
    others = torch.cat([found.target, found.members]).sort().values
    assert torch.searchsorted(others, found.target).tolist() == [0, 7, 14, 21, 28, 35]


def test_visionzip_without_contextual_tokens_where_the_official_program_divides_by_zero():
    method = visionzip.VisionZip(dominant=5, contextual=0)
    assert len(method.rows(view_of(method)).features) == 5


def test_prumerge_without_outliers_keeps_the_sum_alone_and_plus_one_patch_more():
    keys = torch.zeros(49, 16)
    for plus, kept in ((False, []), (True, [0])):
        method = prumerge.PruMerge(plus=plus)
        view = view_of(method, keys=keys)
        assert method.kept(prumerge.attention(view)).tolist() == kept
        assert len(method.rows(view).features) == len(kept) + 1


def test_prumerge_plus_keeps_all_but_the_last_patch_beyond_a_sixth_of_outliers():
    received = torch.cat([torch.full((8,), 0.1), 1e-3 * torch.rand(32)])
    assert (received > prumerge.fence(received)).float().mean() > 1 / 6
    kept = prumerge.PruMerge(plus=True).kept(received).sort().values
    assert kept.tolist() == list(range(39))


def test_prumerge_sums_neighbours_kept_ones_included_and_normalises_nothing():
    method = prumerge.PruMerge(ratio=0.25)
    view = view_of(method)
    received = prumerge.attention(view)
    assert float(received.sum()) < 1
    kept = method.kept(received)
    cluster, rest = prumerge.neighbours(view.tower[prumerge.KEYS][1:], kept)
    rows = method.rows(view)
    for place, patch in enumerate(kept):
        added = received[cluster[place]] @ view.features[cluster[place]]
        torch.testing.assert_close(rows.features[place], view.features[patch] + added)
    torch.testing.assert_close(rows.features[-1], received[rest] @ view.features[rest])
    assert torch.isin(cluster, kept).any()


def test_fixed_prumerge_plus_repeats_no_patch_unless_it_follows_the_official_program():
    received = synthetic(seed=3)[2][visionzip.CLASS_ROW].mean(0)
    ours = prumerge.PruMerge(plus=True, ratio=1 / 8).kept(received).tolist()
    strict = prumerge.PruMerge(plus=True, ratio=1 / 8, strict_official=True).kept(received).tolist()
    assert len(ours) == len(set(ours)) == len(strict) == 12
    assert set(strict) <= set(ours)
    recorded = load_file(GOLDEN / CASES["prumerge-g24_b_fixed"]["file"])["plus_fixed.kept"]
    assert len(recorded.unique()) < len(recorded)


@torch.no_grad()
def test_prumerge_finds_outliers_per_image_whatever_the_batch():
    model = tiny_model(kv_heads=2)
    model.set_method("prumerge", plus=True)
    ids, images = prompts(seed=2), pixels(seed=2)
    model(**batch(ids, images))
    together = model.last_report.image_tokens
    alone = []
    for one, image in zip(ids, images, strict=True):
        model(**batch([one], [image]))
        alone += model.last_report.image_tokens
    assert together == alone


@pytest.mark.parametrize("name", [*NAMES, "pool", "downsample"])
def test_each_image_of_a_row_keeps_what_it_keeps_alone(name):
    model, method = tiny_model(kv_heads=2), create(name)
    model.set_method(method)
    ids, images = prompts(rows=2), pixels(rows=2)
    both = torch.cat([ids[0], ids[1]])
    alone = []
    for one, image in zip(ids, images, strict=True):
        model(**batch([one], [image]))
        alone.append(model.last_report.kept_image_indices[0])
    inputs = batch([both, ids[0]], images[:1])
    inputs["pixel_values"] = torch.stack([images[0], images[1], images[0]])
    model(**inputs)
    second = [index + (16 if index >= 0 else 0) for index in alone[1]]
    row, single = model.last_report.kept_image_indices
    patches = [index for index in row if index >= 0]
    assert single == alone[0]
    if method.plan(5).cuts[0].stage == "pixels":
        assert len(row) == len(alone[0]) + len(second)
    else:
        assert patches == [index for index in [*alone[0], *second] if index >= 0]
    # One generation from the batch, and row by row.
    together = model.generate(**inputs, max_new_tokens=3, do_sample=False)[0, -3:]
    one = batch([both], images[:1]) | {"pixel_values": inputs["pixel_values"][:2]}
    assert torch.equal(model.generate(**one, max_new_tokens=3, do_sample=False)[0, -3:], together)
    uncached = model.generate(**one, max_new_tokens=3, do_sample=False, use_cache=False)
    assert torch.equal(uncached[0, -3:], together)


def test_hireds_grid_adds_patches_and_is_counted_where_it_is_new():
    scores = torch.rand(4, 64, generator=torch.Generator().manual_seed(1))
    method = create("hired", keep_ratio=0.25, spatial=0.1)
    (cut,) = method.plan(2).cuts
    view = ImageView(torch.zeros(64, 8), cut, None, {visionzip.CLASS_ROW: scores})
    chosen = method.choose(view)
    best = replace(method, spatial=0.0).choose(view)
    assert int(best.sum()) == 16
    assert torch.equal(chosen, best | (torch.arange(64) % 10 == 0))
    assert view.count() == int(chosen.sum())


def crops_view(method, size=(30, 22), seed=0):
    """Return a picture of 2 x 2 crops of 8 x 8 patches as HiRED sees it, attention at random."""
    columns = round(8 * 2 * size[1] / size[0]) if size[1] < size[0] else 16
    left = (16 - columns) // 2
    marks = torch.arange(64, 320).view(2, 2, 8, 8).transpose(1, 2).reshape(16, 16)
    grid = marks[:, left : 16 - left]
    packed = torch.cat([torch.arange(64), grid.flatten()])
    picture = Picture(5, packed, (2, 2), tuple(grid.shape), size)
    generator = torch.Generator().manual_seed(seed)
    (cut,), looks = method.plan(2).cuts, (hired.FIRST, hired.CLASS_ROW)
    crops = tuple(
        ImageView(
            torch.zeros(64, 8),
            cut,
            tower={look: torch.rand(4, 64, generator=generator) for look in looks},
        )
        for _ in range(5)
    )
    return ImageView(torch.zeros(len(packed), 8), cut, crops=crops, picture=picture)


def test_hired_gives_a_crop_what_its_area_draws_where_the_official_one_reads_strips():
    method = create("hired", keep_ratio=0.25, alpha=0.5)
    view = crops_view(method, size=(32, 32))
    first = torch.zeros(1, 8, 8)
    # The first layer sees the upper right quarter alone.
    first[:, :4, 4:] = 1.0
    view.crops[0].tower[hired.FIRST] = first.flatten(1)
    assert method.budgets(view) == [40, 0, 40, 0, 0]
    # The upper half of the picture votes (the left one by its place): two strips of two rows each.
    assert replace(method, strict_official=True).budgets(view) == [40, 20, 20, 0, 0]


@pytest.mark.parametrize("ratio", [0.1, 0.2, 0.33, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("alpha", [0.0, 0.25, 0.5, 1.0])
def test_hired_meets_its_budget_over_all_crops_without_padding(ratio, alpha):
    method = create("hired", keep_ratio=ratio, alpha=alpha)
    view = crops_view(method)
    kept = method.rows(view).origin
    assert len(kept) == int(len(view.features) * ratio)
    assert torch.equal(kept, kept.unique())
    budgets = method.budgets(view)
    assert budgets[0] == min(64, int(len(kept) * alpha)) or ratio > 0.5
    official = replace(method, strict_official=True)
    assert sum(official.budgets(view)) <= int(320 * ratio)


def test_a_model_without_a_class_token_is_refused_with_the_reason():
    model = tiny_model(kv_heads=2)
    model.config.vision_feature_select_strategy = "full"
    with pytest.raises(UserError, match="class token"):
        model.set_method("fastervlm")


# ------------------------------------------------------------------------------ costs and budgets


COSTED = {
    "fastervlm": {"keep": 5},
    "visionzip": {"dominant": 4, "contextual": 3},
    "divprune": {"keep_ratio": 0.3},
    "vispruner": {"keep": 6, "important_ratio": 0.4},
    "prumerge": {"ratio": 0.25},
    "hired": {"keep_ratio": 0.3},
}


def counted_and_run(model, method, seed=0):
    model.set_method(method)
    inputs = batch(prompts()[:1], pixels(seed)[:1])
    with torch.no_grad(), flop_counter() as counter:
        model(**inputs, logits_to_keep=1)
    spec = spec_from_config(model.config.to_dict(), "tiny")
    shape = PromptShape(3, 16, inputs["input_ids"].shape[1] - 19)
    return counter.get_total_flops() // 2, spec, shape


@pytest.mark.parametrize("name", NAMES)
def test_a_prompt_from_pixels_costs_exactly_what_the_ledger_says(name):
    method = create(name, **COSTED[name])
    total, spec, shape = counted_and_run(tiny_model(kv_heads=2), method)
    assert total == ledger.total(ledger.entries(ledger.Run(spec, method, shape), "prefill"))


@pytest.mark.parametrize(
    "method",
    [create("prumerge"), create("prumerge", plus=True), create("hired", spatial=0.3)],
    ids=["prumerge", "prumerge+", "hired-spatial"],
)
def test_counts_that_depend_on_the_image_cost_what_the_ledger_of_their_number_says(method):
    model = tiny_model(kv_heads=2)
    wrong, seen = 0, set()
    for seed in range(20):
        total, spec, shape = counted_and_run(model, method, seed)
        rows = model.last_report.image_tokens[0]
        seen.add(rows)
        run = ledger.Run(spec, Realised(method, rows), shape)
        wrong += total != ledger.total(ledger.entries(run, "prefill"))
    assert not wrong
    assert len(seen) > 1


def test_the_towers_sizes_are_known_to_closed_forms():
    assert PRESETS["llava-1.5-7b"].dims.tower == TowerDims(24, 1024, 16, 576)
    model = tiny_model()
    assert model_dims(model.config).tower == TowerDims(2, 32, 4, 16)
    assert spec_from_config(model.config.to_dict(), "tiny").dims.tower == TowerDims(2, 32, 4, 16)
    looked = create("fastervlm").overhead(PromptShape(35, 576, 40), PRESETS["llava-1.5-7b"].dims)
    # Keys and query are the tower's own: one row of 577 scores, 16 heads of 64 channels.
    assert sum(operation.macs for operation in looked) == 1024 * 577


def test_a_look_takes_what_the_tower_makes_and_computes_no_projection_again():
    model = tiny_model()
    family = Llava(model.model, model.config)
    images, calls = batch(prompts(), pixels())["pixel_values"], []
    layer = model.model.vision_tower.encoder.layers[0].self_attn
    handles = [
        part.register_forward_hook(lambda *_, name=name: calls.append(name))
        for name, part in (("q", layer.q_proj), ("k", layer.k_proj))
    ]
    looks = tuple(Tower(what) for what in ("class_row", "keys", "class_query"))
    with torch.no_grad():
        seen = family.features(images, looks).seen
        states = model.model.vision_tower(images, output_hidden_states=True).hidden_states
    for handle in handles:
        handle.remove()
    assert sorted(calls) == ["k", "k", "q", "q"]  # once in each of the two runs
    assert not layer.k_proj._forward_hooks
    normal = model.model.vision_tower.encoder.layers[0].layer_norm1(states[0])
    assert torch.equal(seen[looks[1]], layer.k_proj(normal))
    assert torch.equal(seen[looks[2]], layer.q_proj(normal)[:, 0])


def test_what_another_thread_sends_through_a_tower_is_not_seen():
    part = torch.nn.Linear(4, 4)
    mine, other = torch.ones(1, 4), torch.zeros(1, 4)
    with outputs_of([part]) as made:
        expected = part(mine)
        thread = threading.Thread(target=part, args=(other,))
        thread.start()
        thread.join()
    assert torch.equal(made[part], expected)
    part(other)
    assert torch.equal(made[part], expected)


@pytest.mark.parametrize("goal", [64, 128, 192])
@pytest.mark.parametrize("name", [*NAMES, "prumerge+"])
def test_a_budget_is_met_to_the_token(name, goal):
    shape = PromptShape(35, 576, 40)
    fixed = {"plus": True} if name == "prumerge+" else {}
    name = name.removesuffix("+")
    assert takes_budget(name)
    method = create(name, **solve(name, goal, shape, 32, **fixed))
    assert abs(processed(method, shape, 32) - goal) <= 1


@pytest.mark.parametrize("name", ["divprune", "vispruner"])
@pytest.mark.parametrize("keep", [1, 7, 40, 96])
def test_images_chosen_from_together_are_those_chosen_from_alone(name, keep):
    from dynllava.engine.rows import ImageView, decide_all, decide_rows

    torch.manual_seed(keep)
    method = create(name, keep=keep)
    cut = method.plan(8).cuts[0]
    views = []
    for patches in (96, 96, 100, 96):
        features = torch.randn(patches, 24)
        features[1] = features[0]  # equal ones: the first is taken
        row = torch.rand(4, patches)
        views.append(ImageView(features, cut, torch.randn(24), {look: row for look in cut.looks}))
    together = decide_all(method, views)
    for view, rows in zip(views, together, strict=True):
        alone = decide_rows(method, view)
        assert torch.equal(rows.origin, alone.origin)
        assert torch.equal(rows.features, alone.features)
        assert len(rows.origin) == min(keep, len(view.features))
