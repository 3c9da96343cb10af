"""H2O's evicting store against a plain stepwise reference, and by random operation sequences."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import batch, pixels, prompts, tiny_model

from dynllava.attention import LayerCall, observe
from dynllava.conformance.h2o_simulation import PlainDecoder
from dynllava.errors import UserError
from dynllava.eviction import Budget, EvictingStore, kept_entries
from dynllava.inputs import embed
from dynllava.methods import create
from dynllava.methods.base import Probe


class Reference:
    """Real dropping written with masks over a full cache: one sequence, grouped heads."""

    def __init__(self, heavy, recent, kv_heads):
        self.heavy, self.recent, self.kv_heads = heavy, recent, kv_heads
        self.score, self.alive = {}, {}

    def weights(self, layer, logits):
        heads, _, total = logits.shape
        groups = heads // self.kv_heads
        alive = self.alive.get(layer, torch.ones(self.kv_heads, 0, dtype=torch.bool))
        alive = torch.nn.functional.pad(alive, (0, total - alive.shape[1]), value=True)
        hidden = ~alive.repeat_interleave(groups, 0)[:, None]
        weights = logits.masked_fill(hidden, float("-inf")).softmax(-1)
        score = weights.sum(1).unflatten(0, (self.kv_heads, groups)).sum(1)
        if layer in self.score:
            score[:, : self.score[layer].shape[1]] += self.score[layer]
        for head in range(self.kv_heads):
            entries = alive[head].nonzero().flatten().tolist()
            if len(entries) > self.heavy + self.recent:
                early = entries[: len(entries) - self.recent]
                early.sort(key=lambda entry: (-float(score[head, entry]), entry))
                for entry in early[self.heavy :]:
                    alive[head, entry] = False
        self.score[layer], self.alive[layer] = score, alive
        return weights


@pytest.mark.parametrize(("heavy", "recent"), [(0.25, 0.25), (0.4, 0.1), (6, 3), (0.9, 0.9)])
def test_steps_and_a_second_turn_equal_the_plain_reference(heavy, recent):
    """Ragged batch, grouped-query heads, a turn of several tokens on the cache."""
    model = tiny_model(kv_heads=2)
    model.set_method("h2o", heavy=heavy, recent=recent)
    ids, images = prompts(seed=3), pixels(seed=3)
    fed = torch.randint(3, 98, (len(ids), 9), generator=torch.Generator().manual_seed(0))
    parts = [fed[:, :1], fed[:, 1:2], fed[:, 2:6], fed[:, 6:7], fed[:, 7:8], fed[:, 8:]]
    cache = model.new_cache()
    with torch.no_grad():
        inputs = batch(ids, images)
        ours = [model(**inputs, past_key_values=cache, logits_to_keep=1).logits[:, -1]]
        ours += [
            model(part, past_key_values=cache, logits_to_keep=1).logits[:, -1] for part in parts
        ]
        for row, (one, image) in enumerate(zip(ids, images, strict=True)):
            budget = model.method.budget(len(one))
            decoder = PlainDecoder(model.model.language_model, Reference(*budget, kv_heads=2))
            single = batch([one], [image])
            embeds, _ = embed(model, single["input_ids"], None, single.get("pixel_values"), None)
            turns = [embeds[0], *(model.get_input_embeddings()(part[row]) for part in parts)]
            for got, turn in zip(ours, turns, strict=True):
                want = model.lm_head(decoder.forward(turn))[-1]
                torch.testing.assert_close(got[row], want, atol=5e-5, rtol=0)
            for layer, store in enumerate(cache.stores):
                for head in range(2):
                    kept = store.ordinal[row, head]
                    alive = decoder.simulation.alive[layer][head].nonzero().flatten()
                    assert sorted(kept[kept >= 0].tolist()) == alive.tolist()


@settings(max_examples=40, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=3),
    heavy=st.integers(0, 4),
    recent=st.integers(1, 4),
    operations=st.lists(st.sampled_from(["step", "turn", "reorder"]), max_size=8),
    chunk=st.sampled_from([1, 4, 128]),
    seed=st.integers(0, 99),
)
def test_the_store_keeps_what_a_full_recomputation_keeps(
    lengths, heavy, recent, operations, chunk, seed
):
    generator = torch.Generator().manual_seed(seed)
    rows, heads, dim = len(lengths), 2, 4

    def random(count):
        return torch.randn(rows, heads, count, dim, generator=generator)

    budget = Budget((heavy,) * rows, (recent,) * rows)
    store = EvictingStore(budget, lengths, chunk=chunk)
    width = max(lengths)
    length = torch.tensor(lengths)
    query, key = random(width), random(width)
    call = LayerCall("sdpa", "prompt", length=length)
    call.position = torch.arange(width).expand(rows, -1)
    call.observed = observe(query, key, Probe(column_sums=True), 0.5, length)
    store.fill_prompt(key, random(width), call)
    for operation in operations:
        if operation == "reorder":
            store.index(torch.randint(0, rows, (rows,), generator=generator))
            continue
        count = 1 if operation == "step" else 3
        before, seen = store.lengths.length.clone(), store.seen.clone()
        call = LayerCall("sdpa", operation, length=torch.full((rows,), count))
        call.position = store.seen[:, None] + torch.arange(count)
        store.prepare(count)
        act = store.step if operation == "step" else store.extend
        out = act(random(count), random(count), random(count), 0.5, call)
        assert torch.isfinite(out).all()
        assert store.seen.tolist() == (seen + count).tolist()
        held = torch.minimum(before + count, torch.full_like(before, heavy + recent))
        assert store.lengths.length.tolist() == held.tolist()
    present = store.ordinal >= 0
    assert (present.sum(2) == store.lengths.length[:, None]).all()
    # The newest `recent` entries are always there, none twice, and none that was never seen.
    for row in range(rows):
        for head in range(heads):
            entries = store.ordinal[row, head][present[row, head]].tolist()
            assert len(set(entries)) == len(entries)
            newest = range(max(0, int(store.seen[row]) - recent), int(store.seen[row]))
            assert set(newest) <= set(entries)
    # The slot of the next token is allocated when that token comes.
    assert store.capacity >= int(store.lengths.length.max())
    assert store.capacity <= max(heavy + recent + 1, int(store.lengths.length.max()) + 1)


def test_equal_scores_keep_the_earlier_entry():
    score = torch.tensor([[[1.0, 2.0, 1.0, 1.0, 0.0, 0.0]]])
    ordinal = torch.tensor([[[0, 1, 2, 3, 4, -1]]])
    keep = kept_entries(score, ordinal, *(torch.tensor([n]) for n in (5, 2, 1)))
    assert keep[0, 0].tolist() == [True, True, False, False, True, False]


def test_it_refuses_to_run_without_a_cache():
    model = tiny_model()
    model.set_method("h2o")
    with pytest.raises(UserError, match="use_cache=True"):
        model(**batch(prompts()[:1], pixels()[:1]), use_cache=False)


@pytest.mark.parametrize(
    "parameters",
    [
        {"heavy": -0.1},
        {"heavy": 1.5},
        {"recent": float("nan")},
        {"heavy": 0, "recent": 0},
        {"position": "sideways"},
        {"phase": "prefill"},
        {"first_full_layers": 5},
        {"heavy": "half"},
    ],
)
def test_bad_parameters_get_one_line(parameters):
    with pytest.raises(UserError) as error:
        create("h2o", **parameters).validate(5)
    assert "\n" not in str(error.value)
