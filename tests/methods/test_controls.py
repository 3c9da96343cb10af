"""Controls drop what they name and nothing else, and see the whole picture."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny import IMAGE_TOKEN, batch, pixels, prompts, stock_model, tiny_model

from dynllava.errors import UserError
from dynllava.methods import create
from dynllava.methods.budget import solve
from dynllava.methods.uniform import grid_places
from dynllava.plan import PromptShape


@given(st.integers(1, 40), st.integers(1, 40), st.data())
def test_the_grid_holds_exactly_its_tokens_and_every_quadrant(rows, columns, data):
    kept = data.draw(st.integers(1, rows * columns))
    places = grid_places(kept, rows, columns)
    assert len(set(places)) == kept
    assert places == sorted(places)
    assert 0 <= places[0] <= places[-1] < rows * columns
    if kept >= 4 and min(rows, columns) >= 2:
        seen = {
            (2 * row + 1 > rows, 2 * column + 1 > columns)
            for row, column in (divmod(place, columns) for place in places)
            if 2 * row + 1 != rows and 2 * column + 1 != columns
        }
        assert len(seen) == 4


@given(st.integers(2, 30))
def test_a_square_number_of_tokens_is_a_square_grid_with_equal_distances(side):
    for wanted in range(1, side + 1):
        if side % wanted == 0:
            step = side // wanted
            line = [step * point + step // 2 for point in range(wanted)]
            places = grid_places(wanted**2, side, side)
            assert places == [side * row + column for row in line for column in line]


def test_pinned_places_of_the_grid():
    # 12 x 12 (embedded model), 24 x 24 (LLaVA-1.5), 2 x 6, 6 x 2.
    assert grid_places(4, 12, 12) == [39, 45, 111, 117]
    assert grid_places(5, 12, 12) == [38, 42, 46, 111, 117]
    assert grid_places(9, 12, 12) == [26, 30, 34, 74, 78, 82, 122, 126, 130]
    assert grid_places(16, 24, 24)[:8] == [75, 81, 87, 93, 219, 225, 231, 237]
    assert grid_places(4, 2, 6) == [1, 4, 7, 10]
    assert grid_places(4, 6, 2) == [2, 3, 8, 9]
    assert create("uniform", image_keep_rate=0.0625).places(576) == grid_places(36, 24, 24)
    assert create("uniform", image_keep_rate=0.5, columns=6).places(12) == grid_places(6, 2, 6)
    with pytest.raises(UserError, match="12 image tokens do not fill"):
        create("uniform", image_keep_rate=0.5, columns=5).places(12)


@pytest.mark.parametrize("kept", range(4, 17))
def test_uniform_sees_all_quadrants_in_the_model(kept):
    model = tiny_model()
    model.set_method("uniform", layer=1, image_keep_rate=kept / 16)
    with torch.no_grad():
        model(**batch(prompts(), pixels()))
    for row, found in enumerate(model.last_report.kept_image_indices):
        assert found == (grid_places(kept, 4, 4) if row != 2 else [])
        assert row == 2 or {(place // 8, place % 4 // 2) for place in found} == {
            (0, 0),
            (0, 1),
            (1, 0),
            (1, 1),
        }


@pytest.mark.parametrize("name", ["random", "uniform", "fastv", "no_image"])
def test_a_budget_of_image_tokens_drops_no_output_token(name):
    shape = PromptShape(9, 144, 12)
    parameters = {} if name == "no_image" else solve(name, 72, shape, 6, **_layer(name))
    method = create(name, **parameters)
    assert method.plan(6).first_output_layer is None
    assert not any(method.schedule(shape, 6).drops_output)
    assert method.schedule(shape, 6).nocache_rows(10) == [
        rows + 10 for rows in method.schedule(shape, 6).prefill_rows
    ]


def _layer(name):
    return {"k": 2} if name == "fastv" else {}


def test_random_drops_what_is_named():
    shape = PromptShape(9, 100, 12)

    def drops(**parameters):
        schedule = create("random", **parameters).schedule(shape, 6)
        return schedule.prefill_rows[-1] < shape.total, any(schedule.drops_output)

    assert drops() == (True, False)
    assert drops(image_keep_rate=0.3) == (True, False)
    assert drops(output_keep_rate=0.5) == (False, True)
    assert drops(image_keep_rate=0.3, output_keep_rate=0.5) == (True, True)


def test_seeds_change_which_tokens_stay_and_not_how_many():
    model = tiny_model()
    found = []
    for seed in range(5):
        model.set_method("random", image_keep_rate=0.5, seed=seed)
        with torch.no_grad():
            model(**batch(prompts(), pixels()))
        kept = model.last_report.kept_image_indices
        assert [len(row) for row in kept] == [8, 8, 0, 8]
        assert kept[0] != kept[1]
        found.append(tuple(kept[0]))
    assert len(set(found)) == 5


def test_no_image_at_layer_0_is_the_text_at_its_old_positions():
    stock = stock_model()
    model = tiny_model()
    model.load_state_dict(stock.state_dict(), strict=False)
    model.set_method("no_image")
    ids = prompts()[0]
    text = ids[ids != IMAGE_TOKEN]
    with torch.no_grad():
        blind = model(**batch([ids], [pixels()[0]]), logits_to_keep=1).logits
        other = model(**batch([ids], [pixels()[1]]), logits_to_keep=1).logits
        expected = stock(
            input_ids=text[None], position_ids=(ids != IMAGE_TOKEN).nonzero().flatten()[None]
        ).logits[:, -1:]
    assert torch.equal(blind, other)
    torch.testing.assert_close(blind, expected, atol=2e-5, rtol=0)
    assert model.last_report.layer_tokens[0] == [len(text)]


def _features(model, images):
    found = model.model.get_image_features(pixel_values=images, return_dict=True)
    return torch.stack(list(found.pooler_output))


@pytest.mark.parametrize("name", ["pool", "downsample"])
def test_a_smaller_picture_is_a_prompt_with_fewer_placeholders(name):
    model = tiny_model()
    ids, image = prompts()[0], pixels()[0]
    where = (ids == IMAGE_TOKEN).nonzero().flatten()
    method = create(name, rows=2, columns=3)
    fed = torch.tensor([[5, 9, 7]])

    def run(chosen, **inputs):
        model.set_method(chosen)
        cache = model.new_cache()
        with torch.no_grad():
            logits = [model(**inputs, past_key_values=cache, logits_to_keep=1).logits]
            for column in range(3):
                token = fed[:, column : column + 1]
                logits.append(model(token, past_key_values=cache, logits_to_keep=1).logits)
        return torch.cat(logits, 1)

    found = run(method, **batch([ids], [image]))
    assert model.last_report.layer_tokens == [[len(ids) - 10]] * 5
    with torch.no_grad():
        tokens = method.encode_images(model, image[None])
        assert tokens.shape[:2] == (1, 6)
        embeds = model.get_input_embeddings()(ids[None])
    small = torch.cat([embeds[:, : where[0]], tokens, embeds[:, where[-1] + 1 :]], 1)
    mask = torch.zeros(small.shape[:2], dtype=torch.bool)
    mask[:, where[0] : where[0] + 6] = True
    expected = run(create("full"), inputs_embeds=small, image_mask=mask)
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=0)


def test_pool_averages_projected_tokens_and_downsample_interpolates_positions():
    model = tiny_model()
    images = torch.stack([pixels()[0], pixels()[1]])
    with torch.no_grad():
        whole = _features(model, images)
        pooled = create("pool", rows=2, columns=2).encode_images(model, images)
        grid = whole.reshape(2, 2, 2, 2, 2, -1)
        torch.testing.assert_close(pooled, grid.mean((2, 4)).reshape(2, 4, -1))
        for name in ("pool", "downsample"):
            same = create(name, rows=4, columns=4).encode_images(model, images)
            torch.testing.assert_close(same, whole)
        # One colour is the same picture at any size: only positions can tell.
        plain = torch.ones_like(images)
        few = create("downsample", rows=2, columns=2).encode_images(model, plain)
        model.model.vision_tower.embeddings.position_embedding.weight.zero_()
        flat = create("downsample", rows=2, columns=2).encode_images(model, plain)
    assert (few[:, 0] - few[:, -1]).abs().max() > 1e-3
    torch.testing.assert_close(flat[:, 0], flat[:, -1])


def test_the_towers_cost_falls_with_the_picture_it_sees_and_budgets_set_the_grid():
    from dynllava.costs import audit, ledger
    from dynllava.costs.spec import LLAVA_15_7B

    shape = LLAVA_15_7B.prompt(60)
    found = {}
    for name in ("full", "pool", "downsample"):
        parameters = {} if name == "full" else solve(name, 144, shape, 32)
        run = ledger.Run(LLAVA_15_7B, create(name, **parameters), shape)
        costs = ledger.by_component(ledger.entries(run, "prefill"))
        found[name] = (costs["vision_tower"], costs["projector"], max(run.schedule.prefill_rows))
        assert all(item.agrees for item in audit.audit(run, "prefill")), name
    assert found["pool"][:2] == found["full"][:2]
    assert found["pool"][2] == found["downsample"][2] == 60 + 144
    assert 0.15 < found["downsample"][0] / found["full"][0] < 0.26
    assert found["downsample"][1] * 4 == found["full"][1]
    assert solve("pool", 192, shape, 32) == {"rows": 12, "columns": 16}
    with pytest.raises(UserError, match="out of reach"):
        solve("downsample", 45, PromptShape(5, 49, 5), 6)
