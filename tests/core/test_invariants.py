"""The invariant matrix: every method runs through the same tests."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from method_cases import CASES, MethodCase
from tiny import batch, pixels, prompts, stock_model, tiny_model

from dynllava import wrap
from dynllava.engine.program import Program
from dynllava.engine.rows import decide_rows
from dynllava.plan import PromptShape
from dynllava.timing.syncs import count_syncs

TOLERANCE = 2e-5
NEW_TOKENS = 9


@pytest.fixture(scope="module")
def model():
    return tiny_model(kv_heads=2)


def cases(invariant: str):
    """Parametrize over all methods; a named exception is skipped with its reason."""
    return [
        pytest.param(
            case,
            id=case.id,
            marks=[pytest.mark.skip(reason=case.exceptions[invariant])]
            if invariant in case.exceptions
            else [],
        )
        for case in CASES
    ]


def use(model, case: MethodCase) -> None:
    model.set_method(case.name, **case.parameters)


def greedy(model, inputs, **kwargs):
    """Return (new tokens [B, T], raw logits [T, B, V])."""
    out = model.generate(
        **inputs,
        max_new_tokens=NEW_TOKENS,
        do_sample=False,
        return_dict_in_generate=True,
        output_logits=True,
        # A random model may name the image's placeholder, which no second call would take.
        suppress_tokens=[99],
        **kwargs,
    )
    width = inputs["input_ids"].shape[1]
    return out.sequences[:, width:], torch.stack(out.logits)


@pytest.mark.parametrize("case", cases("batched = one by one"))
@pytest.mark.parametrize("side", ["left", "right"])
def test_batched_equals_one_by_one_whatever_the_padding(model, case, side):
    use(model, case)
    ids, images = prompts(), pixels()
    inputs = batch(ids, images, side)
    with torch.no_grad():
        together = model(**inputs, logits_to_keep=1).logits[:, 0]
    counts = model.last_report.layer_tokens
    for row, (one, image) in enumerate(zip(ids, images, strict=True)):
        with torch.no_grad():
            alone = model(**batch([one], [image]), logits_to_keep=1).logits[0, 0]
        torch.testing.assert_close(together[row], alone, atol=TOLERANCE, rtol=0)
        assert [layer[row] for layer in counts] == [
            layer[0] for layer in model.last_report.layer_tokens
        ]


@pytest.mark.parametrize("case", cases("batched generation = one by one"))
def test_batched_generation_equals_one_by_one(model, case):
    use(model, case)
    ids, images = prompts(seed=3), pixels(seed=3)
    together, together_logits = greedy(model, batch(ids, images))
    lengths = model.last_report.kv_lengths
    decisions = model.last_report.output_kept
    for row, (one, image) in enumerate(zip(ids, images, strict=True)):
        alone, alone_logits = greedy(model, batch([one], [image]))
        assert together[row].tolist() == alone[0].tolist()
        torch.testing.assert_close(
            together_logits[:, row], alone_logits[:, 0], atol=TOLERANCE, rtol=0
        )
        own = [layer[0] for layer in model.last_report.kv_lengths]
        assert [layer[row] for layer in lengths] == own
        if decisions:
            assert decisions[row] == model.last_report.output_kept[0]


@pytest.mark.parametrize("case", cases("cached = uncached"))
def test_cached_decoding_equals_uncached(model, case):
    use(model, case)
    inputs = batch(prompts(seed=1), pixels(seed=1))
    cached, cached_logits = greedy(model, inputs)
    uncached, uncached_logits = greedy(model, inputs, use_cache=False)
    assert cached.tolist() == uncached.tolist()
    torch.testing.assert_close(cached_logits, uncached_logits, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize(
    "case", [case for case in CASES if case.keep_everything is not None], ids=lambda case: case.id
)
@pytest.mark.parametrize("kind", ["llama", "mistral", "qwen2"])
def test_keep_everything_equals_the_stock_model(case, kind):
    stock = stock_model(kind, kv_heads=2)
    wrapped = wrap(stock, "full")
    wrapped.set_method(case.name, **case.keep_everything)
    inputs = batch(prompts(), pixels())
    with torch.no_grad():
        expected = stock(**inputs).logits
        ours = wrapped(**inputs).logits
    real = inputs["attention_mask"].bool()
    torch.testing.assert_close(ours[real], expected[real], atol=TOLERANCE, rtol=0)
    stock.generation_config.eos_token_id = None
    wrapped.generation_config.eos_token_id = None
    want = stock.generate(**inputs, max_new_tokens=NEW_TOKENS, do_sample=False, pad_token_id=0)
    got = wrapped.generate(**inputs, max_new_tokens=NEW_TOKENS, do_sample=False, pad_token_id=0)
    assert got.tolist() == want.tolist()


@pytest.mark.parametrize("case", cases("eager = sdpa"))
def test_eager_equals_sdpa(model, case):
    use(model, case)
    inputs = batch(prompts(seed=2), pixels(seed=2))
    tokens, logits = greedy(model, inputs)
    model.set_attn_implementation("eager")
    try:
        eager_tokens, eager_logits = greedy(model, inputs)
    finally:
        model.set_attn_implementation("sdpa")
    assert tokens.tolist() == eager_tokens.tolist()
    torch.testing.assert_close(logits, eager_logits, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("case", cases("schedule = lengths seen"))
def test_declared_schedule_equals_the_lengths_seen(model, case):
    use(model, case)
    ids, images = prompts(seed=4), pixels(seed=4)
    greedy(model, batch(ids, images))
    report = model.last_report
    fed = NEW_TOKENS - 1
    for row, one in enumerate(ids):
        where = (one == 99).nonzero().flatten()
        before = int(where[0]) if len(where) else len(one)
        shape = PromptShape(before, len(where), len(one) - before - len(where))
        schedule = model.method.schedule(shape, len(model.model.language_model.layers))
        assert [layer[row] for layer in report.layer_tokens] == list(schedule.prefill_rows)
        kept = sum(report.output_kept[row]) if any(schedule.drops_output) else None
        assert [layer[row] for layer in report.kv_lengths] == schedule.kv_lengths(fed, kept)


@pytest.mark.parametrize("case", cases("schedule without a cache"))
def test_declared_schedule_without_a_cache(model, case):
    use(model, case)
    one, image = prompts(seed=4)[0], pixels(seed=4)[0]
    inputs = batch([one], [image])
    tokens, _ = greedy(model, inputs)
    ids = torch.cat([inputs["input_ids"], tokens[:, :5]], 1)
    with torch.no_grad():
        model(
            ids,
            pixel_values=inputs["pixel_values"],
            use_cache=False,
            prompt_length=torch.tensor([len(one)]),
        )
    seen = [layer[0] for layer in model.last_report.layer_tokens]
    where = (one == 99).nonzero().flatten()
    shape = PromptShape(int(where[0]), len(where), len(one) - int(where[-1]) - 1)
    schedule = model.method.schedule(shape, len(seen))
    columns = model.last_report.final_stream.column[0]
    kept_before_last = int(((columns >= len(one)) & (columns < len(one) + 4)).sum())
    assert seen == schedule.nocache_rows(5, kept_before_last)


@pytest.mark.parametrize("case", cases("scoring = stepwise decoding"))
def test_scored_continuation_equals_stepwise_decoding(model, case):
    use(model, case)
    inputs = batch(prompts(seed=5), pixels(seed=5))
    tokens, logits = greedy(model, inputs)
    scored = model.score(
        inputs["input_ids"],
        tokens,
        pixel_values=inputs["pixel_values"],
        attention_mask=inputs["attention_mask"],
        return_logits=True,
    )
    torch.testing.assert_close(scored.transpose(0, 1), logits, atol=TOLERANCE, rtol=0)


class ReplayedRows:
    """Chooses the same patches of the same images again; merged rows are formed anew."""

    def __init__(self, program, method):
        self.program, self.method, self.chosen = program, method, []

    def has(self, verb):
        return verb == "rows"

    def rows(self, view):
        if self.method.has("rows") and not self.method.has("choose"):
            return self.method.rows(view)
        if self.program.replaying:
            return view.take(self.chosen.pop(0))
        found = decide_rows(self.method, view)
        self.chosen.append(found.origin)
        return found


class Replay(Program):
    """Records what a program decides, and gives it back in a second run."""

    def __init__(self, method, layers):
        super().__init__(method, layers)
        self.recorded, self.replaying = {}, False
        for stage in ("features", "embedded"):
            decision = getattr(self, stage)
            if decision is not None:
                setattr(self, stage, replace(decision, method=ReplayedRows(self, decision.method)))

    def decide(self, decisions, view):
        key = decisions[0].cut.layer
        if not self.replaying:
            self.recorded[key] = super().decide(decisions, view)
        return self.recorded[key]


@pytest.mark.parametrize("case", cases("bfloat16 close to float32"))
def test_bfloat16_with_forced_decisions_is_close_to_float32(case):
    model = tiny_model(kv_heads=2)
    use(model, case)
    model.program = replay = Replay(model.method, len(model.model.language_model.layers))
    inputs = batch(prompts(seed=6), pixels(seed=6))
    with torch.no_grad():
        exact = model(**inputs, logits_to_keep=1).logits
        replay.replaying = True
        model.to(torch.bfloat16)
        inputs["pixel_values"] = inputs["pixel_values"].bfloat16()
        half = model(**inputs, logits_to_keep=1).logits.float()
    # bfloat16 keeps 8 bits: five layers of it move the logits by a few percent of their spread.
    assert (half - exact).abs().max() < 0.25 * exact.std()
    assert (half - exact).abs().mean() < 0.05 * exact.std()


@pytest.mark.parametrize("case", cases("no host synchronisation"))
def test_a_decode_step_does_not_synchronise(model, case):
    use(model, case)
    inputs = batch(prompts(seed=7), pixels(seed=7))
    cache = model.new_cache()
    with torch.no_grad():
        first = model(**inputs, past_key_values=cache, logits_to_keep=1).logits
        token = first.argmax(-1)
        model(token, past_key_values=cache, logits_to_keep=1)
        with count_syncs() as syncs:
            for _ in range(4):
                model(token, past_key_values=cache, logits_to_keep=1)
    assert sum(syncs.values()) == 0, syncs


@pytest.mark.parametrize("case", cases("beam search"))
def test_beams_keep_the_cache_of_their_own_history(model, case):
    """Every beam's cache must be that of its own history: re-run the winners from scratch."""
    use(model, case)
    ids, images = prompts(seed=8, rows=2), pixels(seed=8, rows=2)
    inputs = batch(ids, images)
    out = model.generate(
        **inputs,
        max_new_tokens=6,
        num_beams=3,
        do_sample=False,
        return_dict_in_generate=True,
        output_scores=True,
    )
    width = inputs["input_ids"].shape[1]
    tokens = out.sequences[:, width:]
    scores = model.score(
        inputs["input_ids"],
        tokens,
        pixel_values=inputs["pixel_values"],
        attention_mask=inputs["attention_mask"],
    )
    torch.testing.assert_close(
        out.sequences_scores, scores.sum(1) / tokens.shape[1], atol=1e-4, rtol=0
    )


@pytest.mark.parametrize("case", cases("growth"))
def test_growing_the_cache_changes_nothing(model, case):
    use(model, case)
    inputs = batch(prompts(seed=9), pixels(seed=9))
    tokens, logits = greedy(model, inputs)
    model.kv_chunk = 4
    try:
        cache = model.new_cache()
        small_tokens, small_logits = greedy(model, inputs, past_key_values=cache)
        allocated, stored = model.last_report.kv_bytes_allocated, model.last_report.kv_bytes
        stores = cache.stores
        spare = [store.capacity - int(store.lengths.length.max()) for store in stores]
    finally:
        model.kv_chunk = 128
    assert tokens.tolist() == small_tokens.tolist()
    torch.testing.assert_close(logits, small_logits, atol=TOLERANCE, rtol=0)
    assert stored <= allocated
    assert max(spare) <= 4, "allocated: within one growth chunk of the longest row"


@pytest.mark.parametrize("case", cases("second turn"))
def test_second_turn_on_the_cache_equals_its_batch_of_one(model, case):
    use(model, case)
    ids, images = prompts(seed=10, rows=2), pixels(seed=10, rows=2)
    turn = torch.randint(3, 98, (2, 5), generator=torch.Generator().manual_seed(5))

    def talk(rows):
        cache = model.new_cache()
        inputs = batch([ids[row] for row in rows], [images[row] for row in rows])
        with torch.no_grad():
            logits = [model(**inputs, past_key_values=cache, logits_to_keep=1).logits]
            for _ in range(3):
                token = logits[-1][:, -1:].argmax(-1)
                logits.append(model(token, past_key_values=cache, logits_to_keep=1).logits)
            logits.append(model(turn[rows], past_key_values=cache).logits)
            token = logits[-1][:, -1:].argmax(-1)
            logits.append(model(token, past_key_values=cache, logits_to_keep=1).logits)
        return torch.cat(logits, 1)

    together = talk([0, 1])
    for row in (0, 1):
        torch.testing.assert_close(together[row : row + 1], talk([row]), atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("case", cases("sampling and streaming"))
def test_sampling_and_streaming_run(model, case):
    use(model, case)
    from transformers import TextStreamer

    class Collector(TextStreamer):
        def __init__(self):
            self.seen = []

        def put(self, value):
            self.seen.append(value)

        def end(self):
            pass

    one = batch(prompts()[:1], pixels()[:1])
    collector = Collector()
    torch.manual_seed(0)
    out = model.generate(**one, max_new_tokens=5, do_sample=True, streamer=collector)
    assert len(collector.seen) == 6
    assert out.shape[1] == one["input_ids"].shape[1] + 5
    many = model.generate(**one, max_new_tokens=4, do_sample=True, num_return_sequences=3)
    assert many.shape[0] == 3
