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
    assert method.output_layer() is None
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
