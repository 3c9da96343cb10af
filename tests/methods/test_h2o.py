"""H2O's evicting store against a plain stepwise reference, and by random operation sequences."""

from __future__ import annotations

import pytest
import torch
from embeddings import embeddings
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import batch, pixels, prompts, tiny_model

from dynllava.conformance.h2o_simulation import PlainDecoder
from dynllava.engine.attention import ExtendCall, Probe, PromptCall, StepCall, observe
from dynllava.engine.eviction import Budget, EvictingStore, kept_entries
from dynllava.errors import UserError
from dynllava.methods import create


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
            budget = model.program.plan.store.budget(len(one))
            decoder = PlainDecoder(model.model.language_model, Reference(*budget, kv_heads=2))
            single = batch([one], [image])
            embeds, _ = embeddings(model, single)
            turns = [embeds[0], *(model.get_input_embeddings()(part[row]) for part in parts)]
            for got, turn in zip(ours, turns, strict=True):
                want = model.lm_head(decoder.forward(turn))[-1]
                torch.testing.assert_close(got[row], want, atol=5e-5, rtol=0)
            for layer, store in enumerate(cache.stores):
                for head in range(2):
                    kept = store.ordinal[row, head]
                    alive = decoder.simulation.alive[layer][head].nonzero().flatten()
                    assert sorted(kept[kept >= 0].tolist()) == alive.tolist()


class FullRecomputation:
    """What one row and head keeps, from everything it was ever fed: nothing is carried but that.

    Weights, scores and evictions are worked out anew from the first token on at every call.
    """

    def __init__(self, heavy, recent):
        self.heavy, self.recent = heavy, recent
        self.calls = []  # (queries [q, d], keys [q, d], values [q, d]) of each forward

    def copy(self):
        twin = FullRecomputation(self.heavy, self.recent)
        twin.calls = list(self.calls)
        return twin

    def feed(self, queries, keys, values):
        """Return the attention's output [q, d] of this forward, and the places that are left."""
        self.calls.append((queries, keys, values))
        alive, score, seen, held, carried = [], {}, 0, [], []
        for queries, keys, values in self.calls:
            fresh = range(seen, seen + len(keys))
            held, carried = [*held, *keys], [*carried, *values]
            output = []
            for offset, query in enumerate(queries):
                visible = [*alive, *fresh[: offset + 1]]
                logits = torch.stack([query @ held[place] for place in visible]) * 0.5
                weights = logits.softmax(0)
                output.append(weights @ torch.stack([carried[place] for place in visible]))
                for place, weight in zip(visible, weights.tolist(), strict=True):
                    score[place] = score.get(place, 0.0) + weight
            seen += len(keys)
            alive = [*alive, *fresh]
            if len(alive) > self.heavy + self.recent:
                early = [place for place in alive if place < seen - self.recent]
                best = sorted(early, key=lambda place: (-score[place], place))[: self.heavy]
                alive = sorted({*best, *(p for p in alive if p >= seen - self.recent)})
        return torch.stack(output), alive


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=3),
    heavy=st.integers(0, 9),
    recent=st.integers(0, 9),
    operations=st.lists(st.sampled_from(["step", "step", "turn", "reorder"]), max_size=14),
    chunk=st.sampled_from([1, 3, 4, 128]),
    ties=st.booleans(),
    seed=st.integers(0, 99),
)
def test_the_store_keeps_what_a_full_recomputation_keeps(
    lengths, heavy, recent, operations, chunk, ties, seed
):
    """Outputs and entries, from empty room to far beyond the budget, growing several slots at once.

    With ``ties`` all keys are equal, so that tokens of one call differ by what they were fed only.
    """
    if heavy + recent == 0:
        recent = 1
    generator = torch.Generator().manual_seed(seed)
    rows, heads, dim = len(lengths), 2, 4

    def random(count):
        return torch.randn(rows, heads, count, dim, generator=generator)

    def keys_of(count):
        # The first key draws all weight; the others get exactly 0, so their scores are equal.
        keys = random(count)
        if ties:
            keys = torch.full_like(keys, -400.0)
        return keys

    def queries_of(count):
        return torch.ones(rows, heads, count, dim) if ties else random(count)

    store = EvictingStore(Budget((heavy,) * rows, (recent,) * rows), lengths, chunk=chunk)
    width, length = max(lengths), torch.tensor(lengths)
    query, key, value = queries_of(width), keys_of(width), random(width)
    if ties:
        key[:, :, 0] = 1.0
    call = PromptCall("sdpa", torch.arange(width).expand(rows, -1), None, length)
    call.observed = observe(query, key, Probe(column_sums=True), 0.5, length)
    store.fill_prompt(key, value, call)
    books = [[FullRecomputation(heavy, recent) for _ in range(heads)] for _ in range(rows)]
    alive = [
        [book.feed(*(x[row, head, :own] for x in (query, key, value)))[1]
         for head, book in enumerate(books[row])]
        for row, own in enumerate(lengths)
    ]  # fmt: skip

    def check():
        for row in range(rows):
            for head in range(heads):
                entries = store.ordinal[row, head]
                assert sorted(entries[entries >= 0].tolist()) == alive[row][head]
            assert int(store.lengths.length[row]) == len(alive[row][0])
        assert store.lengths.bound >= int(store.lengths.length.max())
        # The slot of the next token is allocated when that token comes.
        assert store.capacity <= max(heavy + recent + 1, int(store.lengths.length.max()) + chunk)

    check()
    for operation in operations:
        if operation == "reorder":
            order = torch.randint(0, rows, (rows,), generator=generator)
            store.index(order)
            books = [[book.copy() for book in books[row]] for row in order.tolist()]
            alive = [list(alive[row]) for row in order.tolist()]
            continue
        count = 1 if operation == "step" else 3
        seen = store.seen.clone()
        place = store.seen[:, None] + torch.arange(count)
        call = StepCall("sdpa", place, None, store)
        if operation != "step":
            call = ExtendCall("sdpa", place, None, torch.full((rows,), count), store)
        store.prepare(count)
        query, key, value = queries_of(count), keys_of(count), random(count)
        act = store.step if operation == "step" else store.extend
        out = act(query, key, value, 0.5, call)
        assert store.seen.tolist() == (seen + count).tolist()
        for row in range(rows):
            for head in range(heads):
                parts = (x[row, head] for x in (query, key, value))
                wanted, alive[row][head] = books[row][head].feed(*parts)
                torch.testing.assert_close(out[row, head], wanted, atol=2e-5, rtol=1e-5)
        check()


@pytest.mark.parametrize("chunk", [2, 5, 16, 128])
@pytest.mark.parametrize(("heavy", "recent"), [(12, 8), (0, 20), (20, 1), (30, 30)])
def test_a_cache_that_fills_slowly_equals_the_plain_reference(heavy, recent, chunk):
    """Short prompts far below the budget: room grows by several slots, which hold nothing yet."""
    model = tiny_model(kv_heads=2)
    model.kv_chunk = chunk
    model.set_method("h2o", heavy=heavy, recent=recent)
    ids = torch.randint(3, 98, (3, 6), generator=torch.Generator().manual_seed(1))
    fed = torch.randint(3, 98, (3, 30), generator=torch.Generator().manual_seed(2))
    cache = model.new_cache()
    with torch.no_grad():
        ours = [model(ids, past_key_values=cache, logits_to_keep=1).logits[:, -1]]
        for step in range(30):
            token = fed[:, step : step + 1]
            ours.append(model(token, past_key_values=cache, logits_to_keep=1).logits[:, -1])
            entries = min(6 + step + 1, heavy + recent)
            assert model.last_report.kv_lengths == [[entries] * 3] * 5
        for row in range(3):
            plain = PlainDecoder(model.model.language_model, Reference(heavy, recent, kv_heads=2))
            turns = [ids[row], *(fed[row, step : step + 1] for step in range(30))]
            for got, turn in zip(ours, turns, strict=True):
                want = model.lm_head(plain.forward(model.get_input_embeddings()(turn)))[-1]
                torch.testing.assert_close(got[row], want, atol=5e-5, rtol=0)


def test_equal_scores_keep_the_earlier_entry():
    score = torch.tensor([[[1.0, 2.0, 1.0, 1.0, 0.0, 0.0]]])
    ordinal = torch.tensor([[[0, 1, 2, 3, 4, -1]]])
    keep = kept_entries(score, ordinal, *(torch.tensor([n]) for n in (5, 2, 1)))
    assert keep[0, 0].tolist() == [True, True, False, False, True, False]
    # Slots are reused, so an entry's place in the store is not its age.
    slots = torch.tensor([4, 3, 5, 2, 0, 1])
    moved = [tensor[..., slots] for tensor in (score, ordinal)]
    again = kept_entries(*moved, *(torch.tensor([n]) for n in (5, 2, 1)))
    assert again[0, 0].tolist() == keep[0, 0, slots].tolist()


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
