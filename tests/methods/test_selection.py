"""FastV and SparseVLM: rules, batching corners, clustering, bad parameters."""

from __future__ import annotations

import pytest
import torch
from tiny import IMAGE_TOKEN, batch, pixels, prompts, tiny_model

from dynllava.engine.clustering import cluster_means, density_peaks
from dynllava.errors import UserError
from dynllava.methods import create
from dynllava.models.config import model_dims
from dynllava.plan import PromptShape

VERSIONS = [
    {"version": "1.5", "budgets": "9/5"},
    {"version": "1.5", "budgets": "0.5/0.2"},
    {"version": "2.0", "budgets": "9/5"},
    {"version": "rank", "scale": 2.0},
]


@pytest.fixture(scope="module")
def model():
    return tiny_model(kv_heads=2)


@pytest.mark.parametrize("decoder", ["static", "rerank", "reprune"])
def test_fastv_decoders_agree_on_the_prompt_and_batch_like_batch_one(model, decoder):
    model.set_method("fastv", k=2, keep=5, decoder=decoder)
    ids, images = prompts(), pixels()
    fed = torch.randint(3, 98, (4, 3), generator=torch.Generator().manual_seed(1))

    def run(rows):
        inputs = batch([ids[row] for row in rows], [images[row] for row in rows])
        return model.score(**inputs, continuation_ids=fed[rows], return_logits=True)

    together = run(list(range(4)))
    for row in range(4):
        torch.testing.assert_close(together[row : row + 1], run([row]), atol=2e-5, rtol=0)
    model.set_method("fastv", k=2, keep=5)
    with torch.no_grad():
        first = model(**batch(ids, images), logits_to_keep=1).logits
    torch.testing.assert_close(together[:, :1], first, atol=2e-5, rtol=0)


def test_fastv_never_looks_at_output_tokens_unless_it_reprunes(model):
    ids, image = prompts()[0], pixels()[0]
    kept = {}
    for decoder in ("static", "reprune"):
        model.set_method("fastv", k=2, keep=3, decoder=decoder)
        sets = set()
        for seed in range(6):
            more = torch.randint(3, 98, (4,), generator=torch.Generator().manual_seed(seed))
            inputs = batch([torch.cat([ids, more])], [image])
            with torch.no_grad():
                model(**inputs, prompt_length=torch.tensor([len(ids)]), use_cache=False)
            sets.add(tuple(model.last_report.kept_image_indices[0]))
        kept[decoder] = len(sets)
    assert kept["static"] == 1
    assert kept["reprune"] > 1


def test_fastv_reprune_refuses_a_cache_and_generates_without(model):
    model.set_method("fastv", k=2, decoder="reprune")
    inputs = batch(prompts()[:1], pixels()[:1])
    with pytest.raises(UserError, match="use_cache=False"):
        model(**inputs, past_key_values=model.new_cache())
    out = model.generate(**inputs, max_new_tokens=3, do_sample=False)
    assert out.shape[1] == inputs["input_ids"].shape[1] + 3


@pytest.mark.parametrize("parameters", VERSIONS, ids=str)
def test_sparsevlm_batch_equals_batch_one(model, parameters):
    model.set_method("sparsevlm", pruning_layers="0/2", **parameters)
    ids, images = prompts(seed=11, rows=6), pixels(seed=11, rows=6)
    with torch.no_grad():
        together = model(**batch(ids, images), logits_to_keep=1).logits
    counts = model.last_report.layer_tokens
    for row in range(6):
        with torch.no_grad():
            alone = model(**batch([ids[row]], [images[row]]), logits_to_keep=1).logits
        torch.testing.assert_close(together[row : row + 1], alone, atol=2e-5, rtol=0)
        own = [layer[0] for layer in model.last_report.layer_tokens]
        assert [layer[row] for layer in counts] == own


def test_sparsevlm_raters_never_see_output_tokens(model):
    model.set_method("sparsevlm", pruning_layers="0/2", budgets="6/3")
    ids, image = prompts()[0], pixels()[0]
    seen = set()
    for seed in range(4):
        more = torch.randint(3, 98, (5,), generator=torch.Generator().manual_seed(seed))
        with torch.no_grad():
            model(
                **batch([torch.cat([ids, more])], [image]),
                prompt_length=torch.tensor([len(ids)]),
                use_cache=False,
            )
        seen.add(tuple(model.last_report.kept_image_indices[0]))
    assert len(seen) == 1


@pytest.mark.parametrize("text_after", [0, 1])
def test_sparsevlm_with_next_to_no_text_after_the_image(model, text_after):
    model.set_method("sparsevlm", pruning_layers="0/2", budgets="6/3")
    ids = torch.tensor([5, 6] + [IMAGE_TOKEN] * 16 + [7] * text_after)
    with torch.no_grad():
        logits = model(**batch([ids], pixels()[:1]), logits_to_keep=1).logits
    assert torch.isfinite(logits).all()
    assert model.last_report.image_tokens == [3 + 1]


@pytest.mark.parametrize("parameters", VERSIONS[:3], ids=str)
def test_sparsevlm_published_layers_at_other_depths(parameters):
    assert create("sparsevlm").layers(32) == (2, 6, 15)
    assert create("sparsevlm", version="rank").layers(32) == (2, 6, 15, 19)
    for layers in (6, 12, 24, 40, 80):
        create("sparsevlm").validate(layers)
        assert len(set(create("sparsevlm").layers(layers))) == 3
    assert create("sparsevlm", **parameters).parameters()["version"] == parameters["version"]


def reference_clusters(points, count):
    """Density peaks, one row, written out."""
    distance = torch.cdist(points, points, compute_mode="donot_use_mm_for_euclid_dist")
    distance = distance / points.shape[1] ** 0.5
    density = [float((-(row.sort().values[:count] ** 2).mean()).exp()) for row in distance]
    size = len(points)
    peak = []
    for i in range(size):
        denser = [
            float(distance[i, j])
            for j in range(size)
            if density[j] > density[i] or (density[j] == density[i] and j < i)
        ]
        peak.append(density[i] * (min(denser) if denser else float(distance.max())))
    centres = sorted(range(size), key=lambda i: (-peak[i], i))[:count]
    assigned = [
        centres.index(i)
        if i in centres
        else min(range(count), key=lambda c: distance[i, centres[c]])
        for i in range(size)
    ]
    means = [points[[a == c for a in assigned]].mean(0) for c in range(count)]
    return centres, assigned, torch.stack(means)


def test_clustering_of_a_ragged_batch_equals_a_plain_loop():
    generator = torch.Generator().manual_seed(0)
    points = torch.randn(5, 23, 8, generator=generator)
    length = torch.tensor([23, 1, 12, 7, 2])
    count = torch.tensor([3, 1, 2, 4, 2])
    centres, assigned = density_peaks(points, length, count)
    means = cluster_means(points, length, assigned, 4)
    for row in range(5):
        n, c = int(length[row]), int(count[row])
        want = reference_clusters(points[row, :n], c)
        assert centres[row, :c].tolist() == want[0]
        assert assigned[row, :n].tolist() == want[1]
        torch.testing.assert_close(means[row, :c], want[2], atol=1e-5, rtol=1e-5)


def test_clustering_ties_go_to_the_lower_index_and_half_precision_is_not_used():
    centres, assigned = density_peaks(torch.zeros(1, 4, 3), torch.tensor([4]), torch.tensor([2]))
    assert centres.tolist() == [[0, 1]]
    assert assigned.tolist() == [[0, 1, 0, 0]]
    points = torch.randn(1, 30, 64, generator=torch.Generator().manual_seed(1)) * 0.05
    half = density_peaks(points.bfloat16(), torch.tensor([30]), torch.tensor([4]))
    full = density_peaks(points.bfloat16().float(), torch.tensor([30]), torch.tensor([4]))
    assert torch.equal(half[0], full[0])


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("fastv", {"k": 0}),
        ("fastv", {"k": 5}),
        ("fastv", {"k": 2.0}),
        ("fastv", {"keep_ratio": 0}),
        ("fastv", {"keep_ratio": float("nan")}),
        ("fastv", {"keep_ratio": 2}),
        ("fastv", {"keep": 0}),
        ("fastv", {"decoder": "none"}),
        ("sparsevlm", {"version": "3"}),
        ("sparsevlm", {"retain": 100}),
        ("sparsevlm", {"budgets": "5/9/3"}),
        ("sparsevlm", {"budgets": "9/5"}),
        ("sparsevlm", {"budgets": "9/x/3"}),
        ("sparsevlm", {"budgets": "9/nan/3"}),
        ("sparsevlm", {"budgets": "9/0/3"}),
        ("sparsevlm", {"pruning_layers": "0/2/4"}),
        ("sparsevlm", {"pruning_layers": "2/2/3"}),
        ("sparsevlm", {"version": "rank", "scale": float("inf")}),
    ],
    ids=str,
)
def test_bad_parameters_get_one_line(name, parameters):
    with pytest.raises(UserError) as error:
        create(name, **parameters).validate(5)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("fastv", {}),
        ("sparsevlm", {}),
        ("sparsevlm", {"version": "2.0"}),
        ("sparsevlm", {"version": "rank"}),
    ],
    ids=str,
)
def test_choosing_costs_under_one_percent_of_a_7b_prefill(model, name, parameters):
    from dataclasses import replace

    dims = replace(
        model_dims(model.config),
        layers=32, hidden=4096, heads=32, kv_heads=32, head_dim=128, intermediate=11008,
    )  # fmt: skip
    shape = PromptShape(35, 576, 40)
    own = sum(op.macs for op in create(name, **parameters).overhead(shape, dims))
    n = shape.total
    layer = 4 * n * 4096**2 + 2 * n * n * 4096 + 3 * n * 4096 * 11008
    assert 0 < own < 0.01 * 32 * layer
