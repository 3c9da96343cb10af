"""The Hugging Face side of the model: saving, wrapping, devices, bad input."""

from __future__ import annotations

import pytest
import torch
from embeddings import embeddings
from tiny import IMAGE_TOKEN, batch, pixels, prompts, stock_model, tiny_model

import dynllava
from dynllava.engine import attention
from dynllava.errors import UserError
from dynllava.methods import create, names
from dynllava.models.config import DynamicLlavaConfig
from dynllava.models.loading import load_model
from dynllava.models.modeling import DynamicLlavaForConditionalGeneration


@pytest.fixture(scope="module")
def model():
    return tiny_model()


def logits(model, inputs):
    with torch.no_grad():
        return model(**inputs, logits_to_keep=1).logits


def test_saved_and_loaded_model_is_the_same(model, tmp_path):
    from transformers import AutoConfig, AutoModelForImageTextToText

    model.save_pretrained(tmp_path)
    inputs = batch(prompts(), pixels())
    expected = logits(model, inputs)
    assert AutoConfig.from_pretrained(tmp_path).sparse_config["d_model"] == 32
    for loaded in (
        AutoModelForImageTextToText.from_pretrained(tmp_path).eval(),
        load_model(tmp_path)[0],
    ):
        assert isinstance(loaded, dynllava.DynamicLlavaForConditionalGeneration)
        assert torch.equal(logits(loaded, inputs), expected)


def test_wrapping_shares_parameters_and_leaves_the_stock_model_alone():
    stock = stock_model(kv_heads=2)
    inputs = batch(prompts(), pixels())
    with torch.no_grad():
        before = stock(**inputs).logits
    wrapped = dynllava.wrap(stock, "uniform", image_keep_rate=0.25)
    pairs = dict(stock.named_parameters())
    for name, parameter in wrapped.named_parameters():
        assert parameter is pairs[name]
    changed = logits(wrapped, inputs)
    with torch.no_grad():
        after = stock(**inputs).logits
    assert torch.equal(before, after)
    assert (changed[0, 0] - before[0, -1]).abs().max() > 1e-3
    assert wrapped.unwrap() is stock


def test_a_loaded_model_has_nothing_to_unwrap(model):
    with pytest.raises(UserError, match="loaded, not wrapped"):
        model.unwrap()


def test_method_switch_in_place(model):
    inputs = batch(prompts(), pixels())
    model.set_method("full")
    dense = logits(model, inputs)
    model.set_method("no_image", layer=2)
    assert (logits(model, inputs) - dense).abs().max() > 1e-3
    model.set_method("full")
    assert torch.equal(logits(model, inputs), dense)


def test_gradients_reach_the_weights_with_checkpointing():
    model = tiny_model().train()
    model.set_method("uniform", image_keep_rate=0.5)
    inputs = batch(prompts(), pixels())
    labels = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, -100)
    labels = labels.masked_fill(labels == IMAGE_TOKEN, -100)
    plain = model(**inputs, labels=labels)
    plain.loss.backward()
    gradient = model.model.language_model.layers[0].self_attn.q_proj.weight.grad.clone()
    model.zero_grad()
    model.gradient_checkpointing_enable()
    model(**inputs, labels=labels).loss.backward()
    again = model.model.language_model.layers[0].self_attn.q_proj.weight.grad
    assert gradient.abs().max() > 0
    torch.testing.assert_close(gradient, again)


def test_loss_counts_every_label(model):
    model.set_method("full")
    inputs = batch(prompts(rows=2), pixels(rows=2), "right")
    labels = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, -100)
    labels = labels.masked_fill(labels == IMAGE_TOKEN, -100)
    with torch.no_grad():
        out = model(**inputs, labels=labels)
    expected = torch.nn.functional.cross_entropy(
        out.logits[:, :-1].reshape(-1, 100), labels[:, 1:].reshape(-1), ignore_index=-100
    )
    torch.testing.assert_close(out.loss, expected)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"vision_keep_rate": 0}, "vision_keep_rate=0"),
        ({"vision_keep_rate": -0.1}, "vision_keep_rate=-0.1"),
        ({"vision_keep_rate": 2}, "vision_keep_rate=2"),
        ({"vision_keep_rate": float("nan")}, "vision_keep_rate=nan"),
        ({"output_keep_rate": 0.3}, "trained for 0.5"),
        ({"output_threshold": float("inf")}, "output_threshold=inf"),
        ({"sparse_layer": 5}, "from 0 to 4"),
        ({"sparse_layer": -1}, "from 0 to 4"),
        ({"keep": 3}, "no parameter 'keep'"),
    ],
)
def test_impossible_parameters_get_one_line(model, parameters, message):
    with pytest.raises(UserError, match=message) as caught:
        model.set_method("dynamic_llava", **parameters)
    assert "\n" not in str(caught.value)


def test_legal_edges(model):
    model.set_method("dynamic_llava", vision_keep_rate=1, output_keep_rate=1.0)
    model.set_method("dynamic_llava", output_keep_rate=0.3, output_threshold=0.2)
    logits(model, batch(prompts(), pixels()))


def test_a_threshold_moves_the_realised_rate(model):
    inputs = batch(prompts(), pixels())
    rates = []
    for threshold in (-100.0, 0.0, 100.0):
        model.set_method("dynamic_llava", output_keep_rate=0.5, output_threshold=threshold)
        model.generate(**inputs, max_new_tokens=8, do_sample=False)
        kept = torch.tensor(model.last_report.output_kept)
        rates.append(kept.float().mean().item())
    assert rates[0] == 1.0
    assert rates[2] == 0.0
    assert rates[0] >= rates[1] >= rates[2]


def test_unknown_method_lists_the_known_ones():
    with pytest.raises(UserError, match="full") as caught:
        create("fastvlm")
    assert all(name in str(caught.value) for name in names())


def bad_inputs():
    ids, images = prompts(rows=2), pixels(rows=2)
    one = batch(ids, images)
    two_images = ids[0].clone()
    two_images = torch.cat([two_images, torch.full((16,), IMAGE_TOKEN), torch.tensor([5])])
    return {
        "two images in one prompt, one given": (
            batch([two_images], [images[0]]),
            "places for 2 images but 1 were given",
        ),
        "half an image": (
            batch([torch.cat([ids[0], torch.full((8,), IMAGE_TOKEN)])], [images[0]]),
            "24 image positions: accepted are whole images of 16",
        ),
        "more placeholders than images": (
            {**one, "pixel_values": one["pixel_values"][:1]},
            "places for 2 images but 1 were given",
        ),
        "more images than placeholders": (
            batch(ids[:1], images) | {"input_ids": batch(ids[:1], images[:1])["input_ids"]},
            "places for 1 images but 2 were given",
        ),
        "a placeholder without an image": (
            {k: v for k, v in one.items() if k != "pixel_values"},
            "no image was given",
        ),
        "an empty batch": ({"input_ids": torch.zeros(0, 5, dtype=torch.int64)}, "empty batch"),
        "no tokens": ({"input_ids": torch.zeros(1, 0, dtype=torch.int64)}, "empty batch"),
        "nothing": ({}, "exactly one of input_ids and inputs_embeds"),
    }


@pytest.mark.parametrize("name", list(bad_inputs()))
def test_bad_input_gets_one_line(model, name):
    inputs, message = bad_inputs()[name]
    model.set_method("full")
    with pytest.raises(UserError, match=message) as caught:
        model(**inputs)
    assert "\n" not in str(caught.value)


def test_a_second_image_on_a_cache_is_refused(model):
    model.set_method("full")
    inputs = batch(prompts(rows=2), pixels(rows=2))
    cache = model.new_cache()
    with torch.no_grad():
        model(**inputs, past_key_values=cache)
        with pytest.raises(UserError, match="image on an existing cache"):
            model(**inputs, past_key_values=cache)


def test_a_foreign_cache_is_refused(model):
    from transformers import DynamicCache

    with pytest.raises(UserError, match="accepted is a SparseCache"):
        model(torch.ones(1, 3, dtype=torch.int64), past_key_values=DynamicCache())


def test_no_new_tokens_is_refused(model):
    with pytest.raises(ValueError, match="max_new_tokens"):
        model.generate(**batch(prompts(), pixels()), max_new_tokens=0)


def test_an_unknown_kernel_is_refused(model):
    with pytest.raises(UserError, match="accepted are sdpa, eager, flash_attention_2"):
        attention.check_kernel("flex_attention")


def test_another_kernel_can_be_chosen_for_a_wrapped_model():
    """The layers stay ours: stock attention would ignore what they are told."""
    wrapped = dynllava.wrap(stock_model(), "fastv", k=2, keep_ratio=0.25)
    inputs = batch(prompts(), pixels())
    expected = logits(wrapped, inputs)
    rows = wrapped.last_report.layer_tokens
    wrapped.set_attn_implementation("eager")
    assert wrapped.kernel == "eager"
    torch.testing.assert_close(logits(wrapped, inputs), expected, atol=1e-5, rtol=0)
    assert wrapped.last_report.layer_tokens == rows


def test_sliding_windows_are_refused():
    text = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 50}
    windows = {"layer_types": ["full_attention", "sliding_attention"]}
    config = DynamicLlavaConfig(text_config={"model_type": "qwen2", **text, **windows})
    with pytest.raises(UserError, match="sliding_attention"), torch.device("meta"):
        DynamicLlavaForConditionalGeneration(config)


def test_continuing_a_conversation_through_generate_equals_stepping(model):
    """A second ``generate()`` on the cache must not run the first turn again."""
    model.set_method("dynamic_llava", vision_keep_rate=0.3)
    inputs = batch(prompts(rows=1), pixels(rows=1))
    cache = model.new_cache()
    first = model.generate(**inputs, past_key_values=cache, max_new_tokens=5, do_sample=False)
    turn = torch.tensor([[7, 8, 9]])
    ids = torch.cat([first, turn], 1)
    before = cache.get_seq_length()
    second = model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        past_key_values=cache,
        max_new_tokens=4,
        do_sample=False,
    )
    assert before == first.shape[1] - 1
    again = model.new_cache()
    tokens = []
    with torch.no_grad():
        width = inputs["input_ids"].shape[1]
        model(**inputs, past_key_values=again)
        for column in range(width, first.shape[1] - 1):
            model(first[:, column : column + 1], past_key_values=again)
        step = model(ids[:, first.shape[1] - 1 :], past_key_values=again, logits_to_keep=1).logits
        for _ in range(4):
            tokens.append(step[:, -1].argmax(-1))
            step = model(tokens[-1][:, None], past_key_values=again, logits_to_keep=1).logits
    assert second[0, ids.shape[1] :].tolist() == [int(token) for token in tokens]


def embedded(model, inputs):
    with torch.no_grad():
        embeds, mask = embeddings(model, inputs)
    mask_of_rows = inputs["attention_mask"]
    return {"inputs_embeds": embeds, "image_mask": mask, "attention_mask": mask_of_rows}


def test_generating_from_embeddings_equals_generating_from_tokens(model):
    """Later steps feed tokens, to which the prompt's image mask does not belong."""
    model.set_method("dynamic_llava", vision_keep_rate=0.3)
    inputs = batch(prompts(rows=2), pixels(rows=2))
    options = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False}
    expected = model.generate(**inputs, **options)[:, inputs["input_ids"].shape[1] :]
    kept = model.last_report.kept_image_indices
    found = model.generate(**embedded(model, inputs), **options)
    assert torch.equal(found, expected)
    assert str(model.last_report.kept_image_indices) == str(kept)


def test_generating_from_embeddings_without_a_cache_is_refused(model):
    model.set_method("fastv", k=2, decoder="reprune")
    inputs = batch(prompts(rows=2), pixels(rows=2))
    with pytest.raises(UserError, match="inputs_embeds cannot be generated from"):
        model.generate(**embedded(model, inputs), max_new_tokens=3)


def test_moving_to_another_dtype(model):
    half = tiny_model().half()
    inputs = batch(prompts(), pixels())
    inputs["pixel_values"] = inputs["pixel_values"].half()
    assert logits(half, inputs).dtype == torch.float16


def test_device_map_places_every_module(model, tmp_path):
    model.save_pretrained(tmp_path)
    inputs = batch(prompts(), pixels())
    model.set_method("full")
    mapped, _ = load_model(tmp_path, "full", device_map={"": "cpu"})
    assert torch.equal(logits(mapped, inputs), logits(model, inputs))


def test_plain_llava_has_untrained_predictors_only_if_asked_for(tmp_path):
    stock = stock_model()
    stock.save_pretrained(tmp_path)
    inputs = batch(prompts(), pixels())
    dense, _ = load_model(tmp_path)
    assert dense.method.name == "full"
    with torch.no_grad():
        expected = stock(**inputs).logits[:, -1:]
    torch.testing.assert_close(logits(dense, inputs), expected, atol=1e-5, rtol=0)
    with pytest.warns(UserWarning, match="untrained"):
        sparse, _ = load_model(tmp_path, "dynamic_llava", untrained=True)
    with pytest.raises(UserError, match="no trained predictors"):
        load_model(tmp_path, "dynamic_llava")
    logits(sparse, inputs)
    assert sparse.last_report.image_tokens == [3, 3, 0, 3]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_equals_cpu(model):
    inputs = batch(prompts(), pixels())
    model.set_method("full")
    expected = logits(model, inputs)
    on_gpu = tiny_model().cuda()
    on_gpu.set_method("full")
    moved = {name: tensor.cuda() for name, tensor in inputs.items()}
    torch.testing.assert_close(logits(on_gpu, moved).cpu(), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("method", ["full", "fastv:k=2,keep_ratio=0.25", "dynamic_llava"])
def test_no_logits_are_computed_for_tokens_that_are_gone(model, method):
    """The head multiplies what is left; logits stand in the caller's columns all the same."""
    model.set_method(method)
    inputs = batch(prompts(), pixels())
    rows = []
    hook = model.lm_head.register_forward_pre_hook(lambda _, args: rows.append(args[0].shape[1]))
    columns = inputs["input_ids"].shape[1]
    with torch.no_grad():
        found = model(**inputs).logits
        plain = model(**inputs, return_dict=False)[0]
        # With labels the stock model takes the loss of all columns.
        wanted = model(**inputs, labels=inputs["input_ids"]).logits
        last = model(**inputs, logits_to_keep=2).logits
    hook.remove()
    left = max(model.last_report.layer_tokens[-1])
    assert (left < columns) == (method != "full")
    assert rows == [left, left, columns, 2]
    torch.testing.assert_close(found, wanted, atol=1e-6, rtol=0)
    assert torch.equal(found, plain)
    torch.testing.assert_close(last, wanted[:, -2:], atol=1e-6, rtol=0)
    gone = (wanted == 0).all(-1)
    assert bool((found[gone] == 0).all())
    assert int((~gone).sum()) == sum(model.last_report.layer_tokens[-1])
