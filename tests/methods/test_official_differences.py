"""Where official programs fail or read a literal and ours does not: the rest of the list.

docs/methods.md names each difference; most stand in test_vision_side.py, test_pyramiddrop.py,
test_voco_llama.py and test_token_packer.py, equal batches in the invariant matrix (core).
"""

from __future__ import annotations

import pytest
import torch
from image_views import synthetic, view_of
from tiny import batch, pixels, prompts, tiny_model

from dynllava.methods import create, divprune, hired, prumerge, visionzip

NAMES = ("fastervlm", "visionzip", "divprune", "vispruner", "prumerge", "hired")


def kept(model, ids, images):
    with torch.no_grad():
        model(**batch(ids, images), logits_to_keep=1)
    return model.last_report.kept_image_indices


@pytest.mark.parametrize("name", NAMES)
def test_forward_takes_images_of_towers_of_any_depth_and_grid(name):
    """FasterVLM and VisPruner have no forward with images; 24 layers and 24 x 24 are literals."""
    model = tiny_model(kv_heads=2)
    assert model.config.vision_config.num_hidden_layers == 2
    model.set_method(name)
    kept(model, prompts()[:2], pixels()[:2])
    assert all(0 < tokens < 16 for tokens in model.last_report.image_tokens)


def test_divprune_finds_the_image_wherever_it_stands_and_text_takes_no_part():
    """There 35 tokens are assumed before it: text competes with patches for shorter prompts."""
    model = tiny_model(kv_heads=2)
    model.set_method("divprune", keep_ratio=0.3)
    image = pixels()[:1]
    found = []
    for before, after in ((1, 3), (6, 2), (40, 9)):
        text = torch.arange(3, 3 + before + after)
        ids = torch.cat([text[:before], torch.full((16,), 99), text[before:]])
        found.append(kept(model, [ids], image)[0])
        assert model.last_report.layer_tokens[0] == [before + after + len(found[-1])]
    assert found[0] == found[1] == found[2]


def test_divprunes_first_pick_of_two_that_are_each_others_nearest_is_the_earlier():
    points = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.9, 0.1], [0.95, 0.0, 0.05]])
    apart = torch.cat([points, torch.tensor([[0.0, -0.6, -0.8], [0.0, -0.6, -0.9]])])
    picked, scores = divprune.diverse(divprune.distances(apart), 1)
    nearest = divprune.distances(apart).fill_diagonal_(9).min(0).values
    tied = (nearest == nearest.max()).nonzero().flatten().tolist()
    assert len(tied) == 2
    assert picked.tolist() == tied[:1]
    assert scores[0] == nearest.max()


def test_hired_truncates_its_share_and_alpha_is_about_crops_alone():
    model = tiny_model(kv_heads=2)
    found = []
    for alpha in (0.1, 0.9):
        model.set_method("hired", keep_ratio=0.3, alpha=alpha)
        found.append(kept(model, prompts()[:1], pixels()[:1]))
    assert found[0] == found[1]
    assert len(found[0][0]) == int(16 * 0.3) == 4


def test_hired_sums_over_the_towers_own_heads_where_16_is_a_literal():
    method = hired.HiRED(keep=5)
    view = view_of(method, patches=16)
    heads = torch.randn(3, 16, generator=torch.Generator().manual_seed(1)).softmax(1)
    view.tower[hired.CLASS_ROW] = heads
    assert set(method.choose(view).nonzero().flatten().tolist()) == set(
        heads.sum(0).topk(5).indices.tolist()
    )


def test_visionzip_makes_groups_of_what_is_left_where_that_is_too_little():
    method = visionzip.VisionZip(dominant=12, contextual=4)
    view = view_of(method, patches=16)
    found = method.groups(view)
    assert (len(found.target), len(found.members)) == (4, 1)
    assert len(method.rows(view).features) == 16


@pytest.mark.parametrize("patches", [9, 16, 32])
def test_prumerge_takes_fewer_neighbours_where_there_are_not_32(patches):
    _, _, looks = synthetic(patches)
    cluster, rest = prumerge.neighbours(looks[prumerge.KEYS][1:], torch.tensor([3, 1]))
    assert cluster.shape == (2, patches - 1)
    assert len(rest) == patches - 2


def test_prumerges_tokens_are_in_order_of_attention_then_of_the_grid_then_the_sum():
    method = prumerge.PruMerge(plus=True)
    for seed in range(40):
        view = view_of(method, seed=seed)
        received = prumerge.attention(view)
        top = int((received > prumerge.fence(received)).sum())
        if top > 1:
            break
    assert top > 1
    rows = method.rows(view)
    order = rows.origin[:top]
    assert received[order].tolist() == sorted(received[order].tolist(), reverse=True)
    assert (rows.origin[top:-1].diff() > 0).all()
    assert rows.origin[-1] < 0


@pytest.mark.parametrize("learned", [1, 5])
def test_voco_llama_needs_no_mask_and_takes_any_number_of_learned_tokens(learned):
    """There two are asserted, and a call without an attention mask fails."""
    model = tiny_model(kv_heads=2)
    model.set_method("voco_llama", token_id=54)
    text = torch.arange(3, 9)
    ids = torch.cat([text[:1], torch.full((16,), 99), torch.full((learned,), 54), text[1:]])[None]
    inputs = {"input_ids": ids, "pixel_values": pixels()[0][None]}
    with torch.no_grad():
        without = model(**inputs)
        masked = model(**inputs, attention_mask=torch.ones_like(ids)).logits
    torch.testing.assert_close(without.logits, masked, atol=1e-6, rtol=0)
    assert model.last_report.kv_lengths[0] == [learned + 5]
    assert create("voco_llama", token_id=54).plan(5).learned_token == 54
