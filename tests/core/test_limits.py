"""Limits: never exceeded, tight, one line where nothing fits; what is promised is stored."""

from __future__ import annotations

import random
import threading

import pytest
import torch

from dynllava.costs import flops, ledger
from dynllava.costs.kv import kv_state
from dynllava.costs.spec import LLAVA_15_7B, load_spec
from dynllava.embedded import load_split
from dynllava.errors import UserError
from dynllava.methods import create
from dynllava.methods.ladder import ladder_of
from dynllava.methods.smaller import sizing
from dynllava.models.limits import Limits, choose, kv_bytes, prefill_flops, shapes_of
from dynllava.models.loading import load_model
from dynllava.plan import Image, ModelDims, PromptShape, Shape, Text

DIMS = ModelDims(8, 64, 4, 2, 16, 160, 500)
METHODS = (
    "fastv:k=2", "dynamic_llava", "pyramiddrop", "sparsevlm", "visionzip", "divprune", "uniform",
    "pool", "h2o", "fastv:k=3+h2o:heavy=0.2,recent=0.2", "fastervlm+h2o",
    "dynamic_llava:sparse_layer=3,output_keep_rate=1.0",
)  # fmt: skip


def random_batch(draw):
    """Rows of text and images of random lengths, and how many tokens may follow."""
    rows = []
    for _ in range(draw.randint(1, 6)):
        spans = [Text(draw.randint(1, 60))]
        for _ in range(draw.choice([0, 1, 1, 1, 2])):
            spans += [Image(draw.randint(2, 9), draw.randint(2, 9)), Text(draw.randint(1, 30))]
        rows.append(Shape(tuple(spans)))
    return rows, draw.randint(1, 80)


@pytest.mark.parametrize("seed", range(200))
def test_a_limit_is_never_exceeded_and_tight(seed):
    draw = random.Random(seed)
    method = create(METHODS[seed % len(METHODS)])
    rows, outputs = random_batch(draw)
    if sizing(method):
        rows = [PromptShape(draw.randint(1, 60), 64, draw.randint(1, 30)) for _ in rows]
    dense_kv = kv_bytes(create("full"), rows, outputs, DIMS, 2)
    dense_flops = prefill_flops(create("full"), rows, DIMS)
    limits = Limits(
        kv_bytes=draw.uniform(0.2, 1.1) * dense_kv if draw.random() < 0.8 else None,
        prefill_flops=draw.uniform(0.2, 1.1) * dense_flops if draw.random() < 0.6 else None,
    )

    def exceeds(item):
        stored, done = kv_bytes(item, rows, outputs, DIMS, 2), prefill_flops(item, rows, DIMS)
        return (limits.kv_bytes is not None and stored > limits.kv_bytes) or (
            limits.prefill_flops is not None and done > limits.prefill_flops
        )

    longest = max(rows, key=lambda shape: (shape.image, shape.total))
    rungs = ladder_of(method, longest, 8) if longest.image else None
    # The top rung chooses nothing, which may cost less than choosing.
    ends = [method] if rungs is None else [rungs.method(0), rungs.method(rungs.count - 1)]
    if all(exceeds(item) for item in ends):
        with pytest.raises(UserError, match=r"\A[^\n]*limits: [^\n]*\Z"):
            choose(method, limits, rows, outputs, DIMS, 2)
        return
    found, chosen = choose(method, limits, rows, outputs, DIMS, 2)
    assert not exceeds(found)
    assert chosen.kv_bytes == kv_bytes(found, rows, outputs, DIMS, 2)
    if longest.image and not chosen.highest:
        place = next(i for i in range(rungs.count) if rungs.method(i) == found)
        following = [rungs.method(i) for i in range(place + 1, rungs.count)]
        assert exceeds(next(item for item in following if item != found))


@pytest.mark.parametrize("text", ["fastv", "dynamic_llava", "sparsevlm", "visionzip", "h2o"])
def test_what_is_limited_is_what_the_ledger_counts(text):
    method, shape = create(text), LLAVA_15_7B.prompt(60)
    dims = LLAVA_15_7B.dims
    run = ledger.Run(LLAVA_15_7B, method, shape, 16, 3)
    entries = [item for item in ledger.entries(run, "prefill")
               if item.component not in ("vision_tower", "projector")]  # fmt: skip
    counted = flops.FLOPS_PER_MAC * ledger.total(entries)
    assert prefill_flops(method, [shape] * 3, dims) == counted
    stored = kv_state(run, 15, "float16", kept=15).total_stored
    assert kv_bytes(method, [shape] * 3, 16, dims, 2) == stored


def test_padding_and_several_images_are_seen():
    valid = torch.tensor([[0, 1, 1, 1, 1, 1, 1]]).bool()
    image = torch.tensor([[0, 0, 1, 1, 0, 1, 0]]).bool()
    (shape,) = shapes_of(valid, image)
    assert [span.tokens for span in shape.spans] == [1, 2, 1, 1, 1]
    assert (shape.image, shape.total) == (3, 6)


def test_a_prompt_without_an_image_is_counted_or_refused():
    rows = [PromptShape(40, 0, 0)]
    _, chosen = choose(create("fastv"), Limits(kv_bytes=1e9), rows, 5, DIMS, 2)
    assert chosen.highest
    with pytest.raises(UserError, match="without an image"):
        choose(create("fastv"), Limits(kv_bytes=10), rows, 5, DIMS, 2)


def test_counts_that_depend_on_the_picture_promise_nothing():
    with pytest.raises(UserError, match="adapts"):
        choose(create("prumerge"), Limits(kv_bytes=1e9), [PromptShape(5, 64, 5)], 5, DIMS, 2)


@pytest.mark.parametrize(
    ("given", "line"),
    [({"kv": 5}, "accepted are"), ({"kv_bytes": -1}, "number from 0"),
     ({"kv_bytes": "1GB"}, "number from 0"), ({"cache": "no"}, "accepted are")],
)  # fmt: skip
def test_what_is_no_limit_is_refused(given, line):
    with pytest.raises(UserError, match=line):
        Limits.of(given)


@pytest.fixture(scope="module")
def loaded():
    return load_model("embedded", limits={"kv_bytes": 10**9})


def batch_of(processor, count):
    rows = load_split("test", "attribute", limit=count)
    words = ["what colour is the circle ?", "what colour is the circle in the picture left ?"]
    texts = [f"USER: <image>\n{words[i % 2]} ASSISTANT:" for i in range(count)]
    images = [row["image"] for row in rows]
    return processor(images=images, text=texts, return_tensors="pt", padding=True)


@pytest.mark.parametrize("text", ["dynamic_llava", "fastv:k=2", "h2o", "uniform"])
@pytest.mark.parametrize("count", [1, 3])
def test_a_real_batch_stays_within_its_limit(loaded, text, count):
    model, processor = loaded
    model.set_method(text)
    inputs = batch_of(processor, count)
    dense = kv_bytes(
        create("full"), [PromptShape(20, 144, 10)] * count, 12, load_spec("embedded").dims, 4
    )
    for share in (0.5, 0.75):
        model.set_limits(kv_bytes=share * dense)
        model.generate(**inputs, max_new_tokens=12, min_new_tokens=12, do_sample=False)
        report = model.last_report
        assert report.kv_bytes <= report.chosen.kv_bytes <= share * dense
        assert report.chosen.kv_bytes > 0.8 * share * dense
        assert model.method == create(text)
    model.set_limits()
    model.generate(**inputs, max_new_tokens=2)
    assert model.last_report.chosen is None


def test_nothing_fits_is_one_line_and_without_a_cache_it_does(loaded):
    model, processor = loaded
    model.set_method("fastv:k=2")
    inputs = batch_of(processor, 2)
    model.set_limits(kv_bytes=1000)
    with pytest.raises(UserError, match="the lowest rate of fastv needs kv_bytes"):
        model.generate(**inputs, max_new_tokens=3)
    assert model.method == create("fastv:k=2")
    model.set_limits(kv_bytes=1000, cache="auto")
    model.generate(**inputs, max_new_tokens=3, do_sample=False)
    assert (model.last_report.chosen.uses_cache, model.last_report.kv_bytes) == (False, 0)
    model.set_limits()


def test_scoring_and_threads_stay_within_limits(loaded):
    model, processor = loaded
    model.set_method("fastv:k=2")
    inputs = dict(batch_of(processor, 1))
    model.set_limits(kv_bytes=600_000)
    ids = inputs.pop("input_ids")
    model.score(ids, ids[:, -4:], **inputs)
    assert model.last_report.kv_bytes <= model.last_report.chosen.kv_bytes <= 600_000
    seen = []

    def answer(limit):
        model.generate(input_ids=ids, **inputs, max_new_tokens=limit, min_new_tokens=limit)
        seen.append((model.last_report.kv_bytes, model.last_report.chosen))

    threads = [threading.Thread(target=answer, args=(count,)) for count in (2, 20, 4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({chosen.method for _, chosen in seen}) == 3
    assert all(stored <= chosen.kv_bytes <= 600_000 for stored, chosen in seen)
    model.set_limits()
