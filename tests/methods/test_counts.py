"""Declared counts = counts seen, at every rate and count; ties; a batch = its rows alone."""

from __future__ import annotations

import math

import pytest
import torch
from tiny import tiny_model

from dynllava.methods import create
from dynllava.methods.predictors import ImagePredictor
from dynllava.plan import PromptShape

RATES = (0.01, 0.1, 0.2, 0.3, 1 / 3, 0.45, 0.55, 0.7, 0.9, 0.99)
#: (text before, image, text after) of each row; image counts differ and rarely divide.
ROWS = ((2, 16, 5), (5, 7, 3), (3, 13, 9), (4, 0, 6), (2, 1, 4), (1, 23, 2))
LAYERS = 5
#: method -> (parameter of the kept share, the other parameters, first short layer)
SHARES = {
    "fastv": ("keep_ratio", {"k": 2}, 2),
    "random": ("image_keep_rate", {"output_keep_rate": 1.0, "layer": 1}, 1),
    "uniform": ("image_keep_rate", {"layer": 3}, 3),
    "dynamic_llava": ("vision_keep_rate", {"output_keep_rate": 1.0}, 2),
}


@pytest.fixture(scope="module")
def model():
    return tiny_model(kv_heads=2)


def rows_as_embeddings(rows=ROWS, seed=0, side="right"):
    """Model inputs of ragged rows with any number of image tokens each, and each row alone."""
    generator = torch.Generator().manual_seed(seed)
    alone = []
    for before, image, after in rows:
        length = before + image + after
        mask = torch.zeros(1, length, dtype=torch.bool)
        mask[0, before : before + image] = True
        embeds = torch.randn(1, length, 64, generator=generator)
        alone.append({"inputs_embeds": embeds, "image_mask": mask})
    width = max(item["image_mask"].shape[1] for item in alone)

    def padded(tensor):
        more = width - tensor.shape[1]
        pair = (0, more) if side == "right" else (more, 0)
        return torch.nn.functional.pad(tensor, (0, 0, *pair) if tensor.dim() == 3 else pair)

    together = {name: torch.cat([padded(item[name]) for item in alone]) for name in alone[0]}
    ones = [torch.ones(item["image_mask"].shape) for item in alone]
    together["attention_mask"] = torch.cat([padded(item) for item in ones])
    return together, alone


def kept(rate, count):
    """The published rule: int(n x rate), where n x rate is meant as written in decimals."""
    return math.floor(round(rate * count, 9))


@pytest.mark.parametrize("rate", RATES, ids=lambda rate: f"{rate:.2f}")
@pytest.mark.parametrize("name", list(SHARES))
def test_every_rate_keeps_its_share_of_every_count_rounded_down(model, name, rate):
    parameter, others, layer = SHARES[name]
    model.set_method(name, **{parameter: rate}, **others)
    together, _ = rows_as_embeddings()
    with torch.no_grad():
        model(**together, logits_to_keep=1)
    report = model.last_report
    assert report.image_tokens == [kept(rate, image) for _, image, _ in ROWS]
    for row, (before, image, after) in enumerate(ROWS):
        rest = before + after
        expected = [rest + image] * layer + [rest + kept(rate, image)] * (LAYERS - layer)
        assert [counts[row] for counts in report.layer_tokens] == expected
        declared = model.method.schedule(PromptShape(before, image, after), LAYERS)
        assert list(declared.prefill_rows) == list(declared.prefill_kv) == expected


@pytest.mark.parametrize("name", list(SHARES))
@pytest.mark.parametrize("image", range(1, 49))
def test_shares_that_give_whole_numbers_keep_all_of_them(name, image):
    """0.29 x 100 is 28.999... in floating point; the share of 29 of 100 tokens keeps 29."""
    parameter, others, _ = SHARES[name]
    for count in range(1, image + 1):
        share = count / image
        if name == "dynamic_llava" and int(image * share) != count:
            continue  # follows the official code, which truncates what floating point gives
        schedule = create(name, **{parameter: share}, **others).schedule(
            PromptShape(3, image, 4), LAYERS
        )
        assert schedule.prefill_rows[-1] == 7 + count


@pytest.mark.parametrize("keep", [1, 5, 16])
def test_a_number_of_tokens_is_kept_as_such_and_never_more_than_there_are(model, keep):
    model.set_method("fastv", k=2, keep=keep)
    together, _ = rows_as_embeddings()
    with torch.no_grad():
        model(**together, logits_to_keep=1)
    assert model.last_report.image_tokens == [min(keep, image) for _, image, _ in ROWS]


EVERY = {
    "fastv": {"k": 2, "keep_ratio": 0.3},
    "fastv-rerank": {"k": 2, "keep_ratio": 0.3, "decoder": "rerank"},
    "random": {"output_keep_rate": 1.0, "image_keep_rate": 0.3},
    "uniform": {"image_keep_rate": 0.3},
    "dynamic_llava": {"vision_keep_rate": 0.3},
    "dynamic_llava-output": {"vision_keep_rate": 1.0},
    "sparsevlm": {"pruning_layers": "0/2", "budgets": "0.5/0.2"},
    "sparsevlm-2.0": {"pruning_layers": "0/2", "budgets": "0.5/0.2", "version": "2.0"},
    "h2o": {"heavy": 0.2, "recent": 0.2},
    "no_image": {},
}


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("case", list(EVERY))
def test_a_batch_of_unequal_image_counts_equals_its_rows_alone(model, case, side):
    """Prompts and decoding steps, rows without an image among them."""
    model.set_method(case.partition("-")[0], **EVERY[case])
    together, alone = rows_as_embeddings(seed=1, side=side)
    fed = torch.randint(3, 98, (len(ROWS), 4), generator=torch.Generator().manual_seed(2))
    ids = torch.arange(len(ROWS)) + 11

    def run(inputs, rows):
        cache = model.new_cache()
        with torch.no_grad():
            first = model(
                **inputs, sample_ids=ids[rows], past_key_values=cache, logits_to_keep=1
            ).logits
            steps = [
                model(fed[rows, step : step + 1], past_key_values=cache, logits_to_keep=1).logits
                for step in range(4)
            ]
        report = model.last_report
        return torch.cat([first, *steps], 1), report.kept_image_indices, report.kv_lengths

    logits, indices, lengths = run(together, list(range(len(ROWS))))
    assert torch.isfinite(logits).all()
    for row, inputs in enumerate(alone):
        own, own_indices, own_lengths = run(inputs, [row])
        torch.testing.assert_close(logits[row], own[0], atol=3e-5, rtol=0)
        assert indices[row] == own_indices[0]
        assert [layer[row] for layer in lengths] == [layer[0] for layer in own_lengths]


def level(module):
    """Make a module's last linear layer answer 0 to everything."""
    last = [part for part in module.modules() if isinstance(part, torch.nn.Linear)][-1]
    torch.nn.init.zeros_(last.weight)
    torch.nn.init.zeros_(last.bias)
    return last


@pytest.mark.parametrize("use_cache", [True, False])
def test_of_equal_logits_an_output_token_drops_and_an_image_token_stays_if_earlier(use_cache):
    model = tiny_model(kv_heads=2)
    level(model.output_predictor)
    level(model.image_predictor)
    model.set_method("dynamic_llava", vision_keep_rate=0.3)
    _, alone = rows_as_embeddings(seed=3)
    inputs, shape = alone[0], ROWS[0]
    length, fed = sum(shape), 4
    extra = torch.randint(3, 98, (1, fed), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        if use_cache:
            cache = model.new_cache()
            model(**inputs, past_key_values=cache, logits_to_keep=1)
            for step in range(fed):
                model(extra[:, step : step + 1], past_key_values=cache, logits_to_keep=1)
            assert model.last_report.output_kept == [[False] * fed]
            reduced = length - 16 + 4
            assert [n for (n,) in model.last_report.kv_lengths] == (
                [length + fed] * 2 + [reduced] * 3
            )
        else:
            embeds = torch.cat([inputs["inputs_embeds"], model.get_input_embeddings()(extra)], 1)
            mask = torch.nn.functional.pad(inputs["image_mask"], (0, fed))
            model(
                inputs_embeds=embeds,
                image_mask=mask,
                prompt_length=torch.tensor([length]),
                use_cache=False,
            )
            # The newest token takes part in its own step.
            assert model.last_report.layer_tokens[-1] == [length - 16 + 4 + 1]
    assert model.last_report.kept_image_indices == [[0, 1, 2, 3]]


@pytest.mark.parametrize(("margin", "keeps"), [(0.5, False), (0.4999, True), (0.5001, False)])
def test_an_output_token_stays_only_above_its_threshold(margin, keeps):
    model = tiny_model(kv_heads=2)
    last = level(model.output_predictor)
    with torch.no_grad():
        last.bias.copy_(torch.tensor([0.25, -0.25]))
    model.set_method("dynamic_llava", vision_keep_rate=1.0, output_threshold=margin)
    _, alone = rows_as_embeddings(seed=3)
    cache = model.new_cache()
    with torch.no_grad():
        model(**alone[0], past_key_values=cache, logits_to_keep=1)
        model(torch.tensor([[5]]), past_key_values=cache, logits_to_keep=1)
    assert model.last_report.output_kept == [[keeps]]


@pytest.mark.parametrize(
    ("name", "parameters", "count"),
    [
        ("fastv", {"k": 2, "keep": 5}, 5),
        ("sparsevlm", {"pruning_layers": "1", "budgets": "5", "version": "2.0"}, 5),
    ],
)
def test_of_equal_attention_the_earlier_image_tokens_stay(name, parameters, count):
    model = tiny_model(kv_heads=2)
    for layer in model.model.language_model.layers:
        torch.nn.init.zeros_(layer.self_attn.q_proj.weight)
    model.set_method(name, **parameters)
    together, _ = rows_as_embeddings(seed=4)
    with torch.no_grad():
        model(**together, logits_to_keep=1)
    if name == "sparsevlm":
        return  # its rotary bias differs from place to place: only that it runs
    expected = [list(range(min(count, image))) for _, image, _ in ROWS]
    assert model.last_report.kept_image_indices == expected


@pytest.mark.parametrize("rate", [0.2, 0.5, 0.8])
def test_random_outputs_are_kept_at_their_rate_and_not_at_what_is_left_of_it(model, rate):
    model.set_method("random", output_keep_rate=rate, image_keep_rate=1.0, layer=0)
    outputs = 120
    ids = torch.randint(3, 98, (4, 6), generator=torch.Generator().manual_seed(0))
    cache = model.new_cache()
    with torch.no_grad():
        model(ids, past_key_values=cache, logits_to_keep=1)
        for step in range(outputs):
            model(ids[:, step % 6][:, None], past_key_values=cache, logits_to_keep=1)
    share = torch.tensor(model.last_report.output_kept).float().mean().item()
    assert abs(share - rate) < 0.08  # 480 draws: 3.5 standard errors
    declared = model.method.schedule(PromptShape(6, 0, 0), LAYERS)
    assert declared.kept_outputs(outputs) == round(rate * outputs)
    assert all(declared.drops_output)


@pytest.mark.parametrize("raters_outnumber_the_image", [False, True])
def test_the_numerical_rank_counts_values_above_eps_times_the_blocks_longer_side(
    model, monkeypatch, raters_outnumber_the_image
):
    """A planted spectrum: values just above and just below that threshold, for each row."""
    rows = ((2, 12, 5), (3, 7, 4)) if not raters_outnumber_the_image else ((2, 5, 40), (3, 4, 80))
    parameters = {"version": "rank", "pruning_layers": "1", "scale": 1.0, "bias": 0.0}
    model.set_method("sparsevlm", **parameters)
    together, _ = rows_as_embeddings(rows, seed=5)
    with torch.no_grad():
        model(**together, logits_to_keep=1)
    raters = model.last_report.record["sparsevlm.raters"].sum(1).tolist()
    sides = [max(count, image) for count, (_, image, _) in zip(raters, rows, strict=True)]
    outnumber = [count > image for count, (_, image, _) in zip(raters, rows, strict=True)]
    assert outnumber == [raters_outnumber_the_image] * 2
    largest, eps = 3.0, torch.finfo(torch.float32).eps
    expected = [min(3, rows[0][1] - 1), min(2, rows[1][1] - 1)]
    planted = torch.zeros(2, 6)
    for row, side in enumerate(sides):
        threshold = largest * eps * side
        # `expected` values count: the largest and some just above the threshold.
        values = [largest] + [threshold * 1.02] * (expected[row] - 1) + [threshold * 0.98] * 2
        planted[row, : len(values)] = torch.tensor(values)
    monkeypatch.setattr(torch.linalg, "svdvals", lambda block: planted.to(block))
    for scale, bias in ((1.0, 0.0), (1.0, 0.9), (0.5, 0.0), (0.5, 0.5)):
        model.set_method("sparsevlm", **{**parameters, "scale": scale, "bias": bias})
        with torch.no_grad():
            model(**together, logits_to_keep=1)
        first = model.last_report.kept_image_indices
        assert [len(row) for row in first] == [int(scale * rank + bias) for rank in expected]


@pytest.mark.parametrize("counts", [(6, 6, 6), (6, 1, 4), (3, 6, 1)])
def test_the_image_predictor_judges_a_padded_row_as_if_it_were_alone(counts):
    torch.manual_seed(0)
    predictor = ImagePredictor(32, d_model=16, nhead=2, dim_feedforward=24, num_layers=2)
    for parameter in predictor.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    hidden = torch.randn(3, 6, 32)
    mask = torch.arange(6) < torch.tensor(counts)[:, None]
    with torch.no_grad():
        together = predictor(hidden, mask)
        for row, count in enumerate(counts):
            alone = predictor(hidden[row : row + 1, :count])
            torch.testing.assert_close(together[row, :count], alone[0], atol=1e-5, rtol=1e-5)
            # Each token is judged in the light of the others, and by its own features.
            other = hidden[row : row + 1, :count].clone()
            other[0, 0] = torch.randn(32)
            if count > 1:
                assert (predictor(other)[0, 1:] - alone[0, 1:]).abs().max() > 1e-3


def test_rows_of_a_batch_have_the_predictor_logits_of_their_batch_of_one(model):
    model.set_method("dynamic_llava", vision_keep_rate=0.3)
    together, alone = rows_as_embeddings(seed=6)
    with torch.no_grad():
        model(**together, logits_to_keep=1)
        logits = model.last_report.record["image_predictor_logits"]
        assert torch.isfinite(logits).all(), "also of a row without an image"
        for row, (inputs, (_, image, _)) in enumerate(zip(alone, ROWS, strict=True)):
            if image == 0:
                continue
            model(**inputs, logits_to_keep=1)
            own = model.last_report.record["image_predictor_logits"]
            torch.testing.assert_close(logits[row, :image], own[0], atol=2e-5, rtol=0)
