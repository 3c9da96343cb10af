"""Every family, every method, any batch: the shared loop in the place of the stock text model.

Rows hold two images, one image and none, of different sizes, so that every batch is ragged.
"""

from __future__ import annotations

import re
import threading

import pytest
import torch
import transformers
from method_cases import CASES
from tiny_families import FAMILIES, IMAGE, batch, row_of

from dynllava import methods, wrap
from dynllava.errors import UserError
from dynllava.models import supported
from dynllava.models.config import SparsityConfig
from dynllava.models.families import family_of, refusal
from dynllava.models.layout import image_map, layouts
from dynllava.plan import Image, Shape, Text

TOLERANCE = 1e-5
ROWS = [[(32, 64), (64, 32)], [(64, 64)], []]
NEW = 4

PAIRS = [
    pytest.param(
        name,
        case,
        id=f"{name}-{case.id}",
        # The quick suite takes every family with some methods and every method with some family.
        marks=[] if (row + 3 * column) % len(FAMILIES) == 0 else [pytest.mark.slow],
    )
    for row, name in enumerate(FAMILIES)
    for column, case in enumerate(CASES)
]
MODELS: dict[str, object] = {}
PAGE = supported.page()


@pytest.fixture(autouse=True)
def quiet():
    level = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    yield
    transformers.logging.set_verbosity(level)


def stock_of(name):
    """Return the family's model, built once."""
    if name not in MODELS:
        MODELS[name] = FAMILIES[name].build()
    return MODELS[name]


def with_predictors(stock):
    """Return the model wrapped, with random predictors for the methods that need them."""
    wrapped = wrap(stock)
    torch.manual_seed(11)
    wrapped.add_predictors(SparsityConfig(d_model=16, nhead=2, dim_feedforward=32, num_layers=1))
    return wrapped


def inputs_of(name, padding="left", rows=ROWS):
    return batch(stock_of(name), FAMILIES[name], rows, padding)


@torch.no_grad()
def generated(model, inputs, **kwargs):
    width = inputs["input_ids"].shape[1]
    settings = {"max_new_tokens": NEW, "do_sample": False, **kwargs}
    # A placeholder among the answers would be taken for an image by the stock models.
    settings["suppress_tokens"] = [IMAGE]
    return model.generate(**inputs, **settings)[:, width:].tolist()


def worst(first, second, inputs):
    """Return the largest difference of two logits [B, L, V] at columns that are no padding."""
    real = inputs["attention_mask"].bool()
    return float((first - second)[real].abs().max())


@pytest.mark.parametrize("name", FAMILIES)
def test_keeping_everything_equals_the_stock_model(name):
    stock, inputs = stock_of(name), inputs_of(name)
    wrapped = wrap(stock, "full")
    with torch.no_grad():
        expected = stock(**inputs).logits
        assert worst(wrapped(**inputs).logits, expected, inputs) <= TOLERANCE
        some = wrapped(**inputs, logits_to_keep=2).logits
    assert float((some - expected[:, -2:]).abs().max()) <= TOLERANCE
    assert generated(wrapped, inputs) == generated(stock, inputs)
    assert generated(wrapped, inputs, num_beams=3) == generated(stock, inputs, num_beams=3)
    torch.manual_seed(3)
    sampled = generated(stock, inputs, do_sample=True)
    torch.manual_seed(3)
    assert generated(wrapped, inputs, do_sample=True) == sampled


@pytest.mark.parametrize("name", FAMILIES)
def test_right_padding_changes_no_valid_column_and_no_answer(name):
    stock, inputs = stock_of(name), inputs_of(name, "right")
    wrapped = wrap(stock, "full")
    with torch.no_grad():
        expected, ours = stock(**inputs).logits, wrapped(**inputs).logits
    assert worst(ours, expected, inputs) <= TOLERANCE
    alone = [row_of(inputs, FAMILIES[name], row, ROWS) for row in range(len(ROWS))]
    assert generated(wrapped, inputs) == [generated(stock, row)[0] for row in alone]


@pytest.mark.parametrize("name", FAMILIES)
def test_output_logits_are_those_of_the_stock_model(name):
    stock, inputs = stock_of(name), inputs_of(name)
    settings = {"max_new_tokens": 3, "return_dict_in_generate": True, "output_logits": True}
    with torch.no_grad():
        expected = stock.generate(**inputs, do_sample=False, **settings).logits
        ours = wrap(stock).generate(**inputs, do_sample=False, **settings).logits
    for one, other in zip(ours, expected, strict=True):
        torch.testing.assert_close(one, other, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize(("name", "case"), PAIRS)
def test_every_method_keeps_its_invariants_in_every_family(name, case):
    family, stock, inputs = FAMILIES[name], stock_of(name), inputs_of(name)
    wrapped = with_predictors(stock)
    method = methods.create(case.name, **case.parameters)
    reason = refusal(family_of(stock.config), method, method.plan(5))
    if reason:
        with pytest.raises(UserError, match=re.escape(reason)):
            wrapped.set_method(method)
        # The page lists default forms; positions are a choice.
        assert reason in PAGE or "positions are not defined" in reason
        return
    wrapped.set_method(case.name, **case.parameters)
    together = generated(wrapped, inputs)
    counts = wrapped.last_report.layer_tokens
    for row in range(len(ROWS)):
        one = row_of(inputs, family, row, ROWS)
        assert generated(wrapped, one) == [together[row]]
        assert [layer[row] for layer in counts] == [
            layer[0] for layer in wrapped.last_report.layer_tokens
        ]
    if "schedule = lengths seen" not in case.exceptions:
        pictures = image_map(stock.config, inputs, inputs["input_ids"] == IMAGE).pictures
        for row, images in enumerate(pictures):
            text = int(inputs["attention_mask"][row].sum()) - sum(images)
            shape = Shape((Text(text), *map(Image.of, images)))
            declared = wrapped.method.schedule(shape, 5).prefill_rows
            assert [layer[row] for layer in counts] == list(declared)
    if "cached = uncached" not in case.exceptions and wrapped.program.plan.uses_cache:
        assert generated(wrapped, inputs, use_cache=False) == together
    if case.keep_everything is not None:
        wrapped.set_method(case.name, **case.keep_everything)
        assert generated(wrapped, inputs) == generated(stock, inputs)


@pytest.mark.parametrize("name", FAMILIES)
def test_scoring_a_continuation_equals_the_stock_model(name):
    family, stock, inputs = FAMILIES[name], stock_of(name), inputs_of(name)
    answer = torch.randint(3, 90, (len(ROWS), 3), generator=torch.Generator().manual_seed(5))
    scores = wrap(stock).score(continuation_ids=answer, **inputs)
    for row in range(len(ROWS)):
        one = row_of(inputs, family, row, ROWS)
        one["input_ids"] = torch.cat([one["input_ids"], answer[row : row + 1]], 1)
        one["attention_mask"] = torch.ones_like(one["input_ids"])
        if "mm_token_type_ids" in one:
            one["mm_token_type_ids"] = (one["input_ids"] == IMAGE).int()
        with torch.no_grad():
            logits = stock(**one).logits[0, -4:-1].log_softmax(-1)
        expected = logits.gather(1, answer[row][:, None])[:, 0]
        torch.testing.assert_close(scores[row], expected, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("name", FAMILIES)
def test_the_stock_model_stays_bit_equal_while_it_is_wrapped(name, tmp_path):
    stock, inputs = stock_of(name), inputs_of(name)
    before = {key: value.clone() for key, value in stock.state_dict().items()}
    config = stock.config.to_dict()
    with torch.no_grad():
        logits = stock(**inputs).logits
    wrapped = wrap(stock, "fastv", k=2, keep_ratio=0.5)
    generated(wrapped, inputs)
    wrapped.train()
    assert not stock.training
    assert not any(module.training for module in stock.modules())
    assert isinstance(wrapped, type(stock))
    assert wrapped.state_dict().keys() == before.keys()
    with torch.no_grad():
        assert torch.equal(stock(**inputs).logits, logits)
    assert stock.config.to_dict() == config
    assert all(torch.equal(value, before[key]) for key, value in stock.state_dict().items())
    assert wrapped.unwrap() is stock
    wrapped.eval().save_pretrained(tmp_path)
    loaded = type(stock).from_pretrained(tmp_path)
    with torch.no_grad():
        assert worst(loaded(**inputs).logits, logits, inputs) <= TOLERANCE


@pytest.mark.parametrize("name", FAMILIES)
def test_training_steps_equal_the_stock_models(name):
    stock, inputs = stock_of(name), inputs_of(name, "right")
    labels = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, -100)
    labels = labels.masked_fill(labels == IMAGE, -100)
    expected = stock(**inputs, labels=labels).loss
    expected.backward()
    grads = {key: p.grad.clone() for key, p in stock.named_parameters() if p.grad is not None}
    for checkpointing in (False, True):
        stock.zero_grad()
        wrapped = wrap(stock).train()
        if checkpointing:
            wrapped.gradient_checkpointing_enable()
        loss = wrapped(**inputs, labels=labels).loss
        loss.backward()
        torch.testing.assert_close(loss, expected, atol=1e-5, rtol=0)
        for key, parameter in wrapped.named_parameters():
            if key in grads:
                torch.testing.assert_close(parameter.grad, grads[key], atol=1e-4, rtol=1e-3)
    stock.zero_grad(set_to_none=True)


def test_no_state_leaks_from_one_batch_to_the_next():
    name = "qwen2_5_vl"
    family = FAMILIES[name]
    stock = family.build()
    wrapped = wrap(stock)
    images = inputs_of(name)
    text = {key: images[key][2:, -8:] for key in ("input_ids", "attention_mask")}
    expected = generated(family.build(), text)
    generated(wrapped, images)
    assert generated(wrapped, text) == expected
    cache = wrapped.new_cache()
    with torch.no_grad():
        wrapped(**text, past_key_values=cache)
        step = torch.tensor([[7]])
        ours = wrapped(step, past_key_values=cache).logits[:, -1]
        whole = torch.cat([text["input_ids"], step], 1)
        fresh = family.build()(whole).logits[:, -1]
    torch.testing.assert_close(ours, fresh, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("name", FAMILIES)
def test_an_early_cut_leaves_what_the_stock_text_model_is_fed_without_the_rest(name):
    """Rows, positions and deep features that are left, given to the stock text model by hand."""
    stock, inputs = stock_of(name), inputs_of(name)
    method = "divprune:positions=original,keep_ratio=0.3"
    wrapped, fed = wrap(stock, method), {}
    text = getattr(stock.model, family_of(stock.config).text)
    handle = text.register_forward_pre_hook(
        lambda module, args, kwargs: fed.update(kwargs), with_kwargs=True
    )
    with torch.no_grad():
        stock(**inputs)
        handle.remove()
        ours = wrapped(**inputs).logits
    marks, kept = inputs["input_ids"] == IMAGE, wrapped.last_report.kept_image_indices
    patches = image_map(stock.config, inputs, marks)
    assert [len(row) for row in kept] == [
        sum(round(0.3 * count) for count in row) for row in patches.pictures
    ]
    first = 0
    for row, chosen in enumerate(kept):
        is_patch = patches.is_patch[row]
        stays = inputs["attention_mask"][row].bool() & ~is_patch
        stays[is_patch.nonzero().flatten()[chosen]] = True
        alone = {"inputs_embeds": fed["inputs_embeds"][row : row + 1, stays]}
        # Without a mask, transformers takes holes in positions for ends of packed sequences.
        alone["attention_mask"] = torch.ones(1, int(stays.sum()), dtype=torch.int64)
        position = fed.get("position_ids")
        if position is None or position.ndim == 2:
            rank = inputs["attention_mask"][row].cumsum(0) - 1
            alone["position_ids"] = rank[None, stays]
        else:
            alone["position_ids"] = position[:, row : row + 1, stays]
        if fed.get("deepstack_visual_embeds") and chosen:
            places = torch.tensor(chosen) + first
            alone["visual_pos_masks"] = marks[row : row + 1, stays]
            alone["deepstack_visual_embeds"] = [
                deep[places] for deep in fed["deepstack_visual_embeds"]
            ]
        first += int(is_patch.sum())
        with torch.no_grad():
            hidden = text(**alone, use_cache=False).last_hidden_state
            expected = stock.lm_head(hidden)[0]
        torch.testing.assert_close(ours[row, stays], expected, atol=TOLERANCE, rtol=0)


def test_positions_go_on_behind_a_last_image_whose_last_patches_left():
    name, step = "qwen3_vl", torch.tensor([[7]])
    inputs = inputs_of(name, rows=[[(64, 64)]])
    end = int((inputs["input_ids"] == IMAGE).nonzero()[-1, 1]) + 1
    inputs |= {
        key: inputs[key][:, :end] for key in ("input_ids", "attention_mask", "mm_token_type_ids")
    }
    wrapped = wrap(stock_of(name), "divprune:keep=1,positions=original")
    cache = wrapped.new_cache()
    with torch.no_grad():
        wrapped(**inputs, past_key_values=cache)
        assert wrapped.last_report.kept_image_indices != [[15]]
        cached = wrapped(step, past_key_values=cache).logits[:, -1]
        inputs["input_ids"] = torch.cat([inputs["input_ids"], step], 1)
        inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
        inputs["mm_token_type_ids"] = (inputs["input_ids"] == IMAGE).int()
        whole = wrapped(**inputs, prompt_length=torch.tensor([end]), use_cache=False).logits[:, -1]
    torch.testing.assert_close(cached, whole, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("name", ["llava", "llava_next"])
def test_class_token_methods_choose_in_every_crop_by_its_own_attention(name):
    stock, inputs = stock_of(name), inputs_of(name)
    wrapped = wrap(stock, "fastervlm:keep_ratio=0.5")
    with torch.no_grad():
        wrapped(**inputs)
    pixels = inputs["pixel_values"]
    tower = FAMILIES[name].build().model.vision_tower
    tower.set_attn_implementation("eager")
    layer = stock.config.vision_feature_layer
    expected, image = [], 0
    for sizes in ROWS:
        row, behind = [], 0
        for height, width in sizes:
            crops = (height // 32) * (width // 32) + 1 if pixels.ndim == 5 else 1
            crop = pixels[image, :crops] if pixels.ndim == 5 else pixels[image][None]
            with torch.no_grad():
                seen = tower(crop, output_attentions=True).attentions[layer]
            best = seen[:, :, 0, 1:].mean(1).argsort(dim=1, descending=True)[:, :8]
            marks = torch.zeros(crops, 4, 4, dtype=torch.bool)
            marks.view(crops, 16).scatter_(1, best, True)
            # The grid of crops is read line by line, behind the whole picture.
            flat = marks[0].flatten()
            if crops > 1:
                grid = marks[1:].view(height // 32, width // 32, 4, 4).transpose(1, 2)
                flat = torch.cat([flat, grid.flatten()])
            row += (flat.nonzero().flatten() + behind).tolist()
            behind += len(flat)
            image += 1
        expected.append(row)
    assert wrapped.last_report.kept_image_indices == expected


@pytest.mark.parametrize(
    ("name", "method"),
    [("llava", "divprune"), ("llava_next", "fastv:k=2,keep_ratio=0.5"), ("internvl", "h2o"),
     ("llava", "dynamic_llava")],
)  # fmt: skip
def test_generating_from_embeddings_and_an_image_mask_equals_generating_from_ids(name, method):
    stock, inputs = stock_of(name), inputs_of(name)
    wrapped, fed = with_predictors(stock), {}
    wrapped.set_method(method)
    handle = stock.model.language_model.register_forward_pre_hook(
        lambda module, args, kwargs: fed.update(kwargs), with_kwargs=True
    )
    with torch.no_grad():
        stock(**inputs)
    handle.remove()
    mask = image_map(stock.config, inputs, inputs["input_ids"] == IMAGE).is_patch
    settings = {"max_new_tokens": NEW, "do_sample": False, "suppress_tokens": [IMAGE]}
    with torch.no_grad():
        ours = wrapped.generate(
            inputs_embeds=fed["inputs_embeds"], image_mask=mask,
            attention_mask=inputs["attention_mask"], **settings,
        )  # fmt: skip
    assert ours.tolist() == generated(wrapped, inputs)


@pytest.mark.parametrize(
    ("name", "first"),
    [("llava", "pool"), ("llava", "hired"), ("llava", "divprune:keep_ratio=0.5"),
     ("llava_next", "hired"), ("llava_next", "divprune:keep_ratio=0.5")],
)  # fmt: skip
@pytest.mark.parametrize("then", ["h2o:heavy=0.25,recent=0.25", "fastv:k=2,keep_ratio=0.5"])
def test_early_methods_go_with_methods_inside_the_model(name, first, then):
    stock, inputs = stock_of(name), inputs_of(name)
    wrapped = wrap(stock, first)
    with torch.no_grad():
        wrapped(**inputs)
    entered = wrapped.last_report.layer_tokens[0]
    wrapped.set_method(f"{first}+{then}")
    together = generated(wrapped, inputs)
    assert wrapped.last_report.layer_tokens[0] == entered
    assert wrapped.last_report.kv_lengths[-1][0] < wrapped.last_report.layer_tokens[0][0]
    for row in range(len(ROWS)):
        assert generated(wrapped, row_of(inputs, FAMILIES[name], row, ROWS)) == [together[row]]


@pytest.mark.parametrize("method", ["fastervlm", "pool", "divprune"])
def test_beams_encode_images_once(method):
    wrapped = wrap(stock_of("llava"), method)
    inputs, seen = inputs_of("llava"), []
    wrapped.model.vision_tower.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(len(args[0] if args else kwargs["pixel_values"])),
        with_kwargs=True,
    )
    together = generated(wrapped, inputs, num_beams=3)
    assert seen == [3]
    for row in range(len(ROWS)):
        one = row_of(inputs, FAMILIES["llava"], row, ROWS)
        assert generated(wrapped, one, num_beams=3) == [together[row]]


@pytest.mark.parametrize("cut", [0, 1, 2])
def test_deep_features_follow_the_tokens_that_are_left(cut):
    """Dropping by a cut equals dropping by hand: the same tokens, never fed (Qwen3-VL)."""
    name = "qwen3_vl"
    stock, inputs = stock_of(name), inputs_of(name)
    wrapped = wrap(stock, "uniform", layer=cut, image_keep_rate=0.5)
    captured = {}
    text_model = wrapped.model.language_model
    original = type(stock.model.language_model).forward
    with torch.no_grad():
        ours = wrapped(**inputs, logits_to_keep=1).logits[:, 0]
        kept = wrapped.last_report.kept_image_indices
        # Masking the keys of dropped tokens from layer `cut` on is the same as dropping them.
        full = wrap(stock, "full")
        handle = full.model.language_model.layers[0].register_forward_pre_hook(
            lambda module, args: captured.setdefault("hidden", args[0])
        )
        full(**inputs)
        handle.remove()
    assert text_model is not stock.model.language_model
    assert original is type(stock.model.language_model).forward
    assert [len(row) for row in kept] == [8, 8, 0]
    for row in range(len(ROWS)):
        one = row_of(inputs, FAMILIES[name], row, ROWS)
        with torch.no_grad():
            alone = wrapped(**one, logits_to_keep=1).logits[0, 0]
        torch.testing.assert_close(ours[row], alone, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("name", ["llava", "qwen3_vl"])
def test_offloaded_and_dispatched_models_are_wrapped_with_their_hooks(name, tmp_path):
    from accelerate import cpu_offload, disk_offload, dispatch_model

    family, inputs = FAMILIES[name], inputs_of(name)
    with torch.no_grad():
        expected = stock_of(name)(**inputs).logits
    cpu = torch.device("cpu")
    whole, disk, mixed = (family.build() for _ in range(3))
    cpu_offload(whole, execution_device=cpu)
    disk_offload(disk, str(tmp_path / "disk"), execution_device=cpu)
    places = {f"model.{part}": "cpu" for part, _ in mixed.model.named_children()}
    places |= {"model.language_model": "disk", "lm_head": "cpu"}
    dispatch_model(mixed, places, main_device="cpu", offload_dir=str(tmp_path / "mixed"))
    for model in (whole, disk, mixed):
        wrapped = wrap(model, "full")
        with torch.no_grad():
            assert worst(wrapped(**inputs).logits, expected, inputs) <= TOLERANCE
        wrapped.set_method("fastv", k=2, keep_ratio=0.5)
        generated(wrapped, inputs)
        assert wrapped.last_report.kv_lengths[-1][0] < wrapped.last_report.kv_lengths[0][0]


def test_adapters_of_peft_run_in_the_wrapped_model():
    peft = pytest.importorskip("peft", reason="adapters need peft")
    name = "qwen2_5_vl"
    inputs = inputs_of(name)
    settings = peft.LoraConfig(target_modules=["q_proj", "v_proj"], r=2, init_lora_weights=False)
    base = peft.get_peft_model(FAMILIES[name].build(), settings).get_base_model()
    with torch.no_grad():
        expected, plain = base(**inputs).logits, stock_of(name)(**inputs).logits
        ours = wrap(base).forward(**inputs).logits
    assert worst(ours, expected, inputs) <= TOLERANCE
    assert worst(plain, expected, inputs) > 0.01


def test_two_threads_do_not_meet():
    name = "llava"
    stock = stock_of(name)
    inputs = [inputs_of(name, rows=[[(32, 32)]]), inputs_of(name, rows=[[], []])]
    expected = [generated(stock, one) for one in inputs]
    models = [wrap(stock), wrap(stock)]
    found = {}

    def run(index):
        found[index] = [generated(models[index], inputs[index]) for _ in range(3)]

    threads = [threading.Thread(target=run, args=(index,)) for index in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {index: [expected[index]] * 3 for index in (0, 1)}


def without(name, key):
    inputs = inputs_of(name)
    del inputs[key]
    return inputs


def moved_placeholder(name):
    """Return a batch whose first row has one placeholder too many and whose second one too few."""
    inputs = inputs_of(name)
    ids = inputs["input_ids"]
    ids[0, -1] = IMAGE
    ids[1, (ids[1] == IMAGE).nonzero()[0]] = 5
    inputs["mm_token_type_ids"] = (ids == IMAGE).int()
    return inputs


@pytest.mark.parametrize("name", ["llava_next", "llava_onevision"])
def test_newline_tokens_are_never_dropped(name):
    wrapped = wrap(stock_of(name), "uniform", layer=1, image_keep_rate=0.25)
    inputs = inputs_of(name)
    with torch.no_grad():
        wrapped(**inputs)
    stream = wrapped.last_report.final_stream
    text = (inputs["input_ids"] != IMAGE) & inputs["attention_mask"].bool()
    for row, sizes in enumerate(ROWS):
        newlines = sum(height // 8 for height, _ in sizes)
        kept_text = int((stream.segment[row] == 1).sum())
        assert kept_text == int(text[row].sum()) + newlines


@pytest.mark.parametrize("method", ["hired", "fastervlm", "divprune", "fastv:k=1"])
def test_newlines_count_as_text_in_declared_lengths(method):
    """A picture of one span, crops and newlines told: 2 x 2 crops of 4 x 4 behind the whole one."""
    wrapped = wrap(stock_of("llava_next"), method)
    inputs = inputs_of("llava_next", rows=[[(64, 64)]])
    with torch.no_grad():
        wrapped(**inputs)
    text = int((inputs["input_ids"] != IMAGE).sum())
    shape = Shape((Text(text), Image(4, 4, crops=5, newlines=8)))
    assert shape.total == inputs["input_ids"].shape[1]
    declared = wrapped.method.schedule(shape, 5).prefill_rows
    assert [layer[0] for layer in wrapped.last_report.layer_tokens] == list(declared)


@pytest.mark.parametrize("name", ["llava_next", "qwen2_5_vl"])
def test_uniform_is_a_grid_in_every_crop_and_picture(name):
    wrapped = wrap(stock_of(name), "uniform", layer=1, image_keep_rate=0.5)
    with torch.no_grad():
        wrapped(**inputs_of(name, rows=[[(64, 64)]]))
    kept = wrapped.last_report.kept_image_indices[0]
    layout = layouts(stock_of(name).config, FAMILIES[name].prepare([(64, 64)]), [])[0]
    places = [place for place in layout.places() if place[2] >= 0]
    assert len(kept) == layout.patches // 2
    for number, grid in enumerate(layout.grids):
        found = [places[index] for index in kept if places[index][0] == number]
        lower = {row >= grid.rows / 2 for _, row, _ in found}
        right = {column >= grid.columns / 2 for _, _, column in found}
        assert (lower, right) == ({True, False}, {True, False})


def unsupported(**values):
    model = torch.nn.Module()
    model.config = transformers.PretrainedConfig(**values)
    return model


@pytest.mark.parametrize(
    ("broken", "line"),
    [
        (lambda: wrap(unsupported()), "is not supported: accepted are"),
        (lambda: wrap(torch.nn.Linear(2, 2)), "is not supported"),
        (lambda: wrap(wrap(stock_of("llava"))), "wrapped already"),
        (
            lambda: wrap(
                FAMILIES["llava_next"].build(sliding_window=8, layer_types=["sliding_attention"])
            ),
            "sliding_attention layers",
        ),
        (lambda: generated(wrap(stock_of("llava")), inputs_of("llava"), cache_implementation="x"),
         "brings its own cache"),
        (lambda: generated(wrap(stock_of("llava")), inputs_of("llava"),
                           prompt_lookup_num_tokens=2), "rolls the cache back"),
        (lambda: generated(wrap(stock_of("llava")), inputs_of("llava"),
                           assistant_model=stock_of("llava")), "rolls the cache back"),
        (lambda: generated(wrap(stock_of("llava")), inputs_of("llava"), prefill_chunk_size=4),
         "whole prompt"),
        (lambda: wrap(stock_of("llava"))(**inputs_of("llava"), output_attentions=True),
         "output_attentions=True"),
        (lambda: wrap(stock_of("llava"))(
            **inputs_of("llava"), past_key_values=transformers.DynamicCache()),
         "accepted is a SparseCache"),
        (lambda: wrap(stock_of("qwen2_vl"), "h2o", position="rolled")(**inputs_of("qwen2_vl")),
         "axes"),
        (lambda: wrap(stock_of("llava"), "dynamic_llava"), "predictor"),
        (lambda: wrap(stock_of("llava"), "fastv:k=2,decoder=reprune").generate(
            inputs_embeds=torch.zeros(1, 3, 32)), "accepted are input_ids"),
        (lambda: wrap(stock_of("qwen2_vl"), "pool"), "the processor sets a picture's size"),
        (lambda: wrap(stock_of("qwen3_vl"), "divprune"), "compact positions are not defined"),
        (lambda: wrap(stock_of("mistral3"), "fastervlm"), "has no class token"),
        (lambda: wrap(stock_of("internvl"), "hired"), "pixel shuffle"),
        (lambda: wrap(stock_of("llava_next"), "visionzip"), "a grid of crops"),
        (lambda: wrap(stock_of("llava"), "fastervlm")(
            **without("llava", "pixel_values")), "pass pixel_values"),
        (lambda: wrap(stock_of("llava"), "fastervlm")(
            **inputs_of("llava") | {"pixel_values": torch.zeros(1, 3, 32, 32)}), "1 were given"),
        (lambda: wrap(stock_of("llava"), "fastervlm")(
            **without("llava", "pixel_values"), mm_encoder_outputs={"image": 1}), "not features"),
        (lambda: wrap(stock_of("llava_next"), "fastervlm")(
            **without("llava_next", "image_sizes")), "image_sizes is missing"),
        (lambda: wrap(stock_of("qwen3_vl"))(**without("qwen3_vl", "mm_token_type_ids")),
         "mm_token_type_ids is missing"),
        (lambda: wrap(stock_of("qwen2_vl"))(**moved_placeholder("qwen2_vl")),
         "image placeholders: its images have"),
        (lambda: wrap(stock_of("internvl"))(**inputs_of("internvl"), pixel_values_videos=1),
         "videos are not supported"),
    ],
)  # fmt: skip
def test_what_cannot_work_is_one_clear_line(broken, line):
    with pytest.raises(UserError) as caught:
        broken()
    assert line in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", FAMILIES)
def test_wrap_answers_or_refuses_at_once_and_the_page_says_which(name):
    """A family is never accepted first and refused by a later call."""
    stock, inputs = stock_of(name), inputs_of(name)
    row = next(line for line in PAGE.splitlines() if line.startswith(f"| `{name}` | `"))
    assert supported.PUBLISHED[name].checkpoints[0][0] in row
    for chosen in methods.names():
        try:
            # <voco> is a row of the vocabulary, which is smaller here.
            method = methods.create(chosen, **({"token_id": 54} if chosen == "voco_llama" else {}))
            wrapped = wrap(stock, method)
        except UserError:
            continue
        with torch.no_grad():
            assert wrapped(**inputs, logits_to_keep=1).logits.shape[1] == 1


def test_methods_are_named_as_everywhere():
    wrapped = wrap(stock_of("internvl"), "fastv:k=2,keep_ratio=0.25")
    assert wrapped.method == methods.create("fastv", k=2, keep_ratio=0.25)


@pytest.mark.parametrize("name", ["qwen2_5_vl", "llava_next"])
def test_load_model_opens_a_folder_of_the_family(name, tmp_path):
    from dynllava.models.loading import load_model

    stock, inputs = stock_of(name), inputs_of(name)
    stock.save_pretrained(tmp_path)
    model, processor = load_model(tmp_path, "fastv:k=2,keep_ratio=0.5")
    assert processor is None, "a folder without a tokenizer"
    model.generation_config.eos_token_id = None
    assert generated(model, inputs) == generated(wrap(stock, "fastv:k=2,keep_ratio=0.5"), inputs)
