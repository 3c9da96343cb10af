"""Costs of every family: tokens from a picture's size, and three counters that agree.

Tokens are compared with transformers' own image processors; matrix products with fvcore and torch's
FlopCounterMode on small real towers, and with a real prefill of the wrapped model.
"""

from __future__ import annotations

import importlib

import pytest
import torch
import transformers
from family_folders import BUILDERS
from PIL import Image

from dynllava import methods
from dynllava.cli import main
from dynllava.costs import counters, ledger
from dynllava.costs.family_presets import SIZES
from dynllava.costs.spec import load_spec, spec_from_folder
from dynllava.errors import UserError
from dynllava.models.encoding import encoder_of
from dynllava.models.loading import load_model
from dynllava.plan import Image as Grid
from dynllava.prompts import Turn, choose_template, render

#: (width, height): square, flat, tall, tiny and large.
PICTURES = ((336, 336), (1024, 768), (768, 1024), (640, 130), (57, 63), (3000, 2000), (501, 1999))
TWO = ((110, 70), (50, 96))


@pytest.fixture(scope="module", autouse=True)
def quiet():
    level = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    yield
    transformers.logging.set_verbosity(level)


def stock(module, name):
    return getattr(importlib.import_module(f"transformers.models.{module}"), name)


def qwen(height, width, tower):
    processor = stock("qwen2_vl.image_processing_pil_qwen2_vl", "Qwen2VLImageProcessorPil")(
        patch_size=tower.patch, merge_size=2, min_pixels=tower.pixels[0], max_pixels=tower.pixels[1]
    )
    return processor.get_number_of_image_patches(height, width, {}) // 4


def internvl(height, width, tower):
    processor = stock("got_ocr2.image_processing_pil_got_ocr2", "GotOcr2ImageProcessorPil")(
        size={"height": 448, "width": 448}, crop_to_patches=True
    )
    return 256 * processor.get_number_of_image_patches(height, width, {})


def smolvlm(height, width, tower):
    processor = stock("smolvlm.image_processing_pil_smolvlm", "SmolVLMImageProcessorPil")(
        size={"longest_edge": 2048}, max_image_size={"longest_edge": 512}
    )
    # Its own count says 0 for a picture that is not cut; such a picture is one crop.
    pixels = processor(Image.new("RGB", (width, height)), return_tensors="np")["pixel_values"]
    return 64 * pixels.shape[1]


def any_resolution(height, width, tower):
    one_vision = tower.family == "llava_onevision"
    name = "LlavaOnevision" if one_vision else "LlavaNext"
    cls = stock(f"{tower.family}.processing_{tower.family}", f"{name}Processor")
    processor = cls.__new__(cls)
    images = type("Images", (), {"image_grid_pinpoints": [list(item) for item in tower.pinpoints]})
    processor.image_processor, processor.patch_size = images, 14
    processor.num_additional_image_tokens = 0
    processor.num_image_tokens, processor.vision_aspect_ratio = 729, "anyres_max_9"
    return processor._get_number_of_features(height, width, tower.side, tower.side)


RULES = {
    "qwen2.5-vl-7b": qwen,
    "qwen3-vl-8b": qwen,
    "internvl3-8b": internvl,
    "smolvlm2-500m": smolvlm,
    "llava-v1.6-mistral-7b": any_resolution,
    "llava-onevision-7b": any_resolution,
}


@pytest.mark.parametrize("size", PICTURES, ids=lambda size: f"{size[0]}x{size[1]}")
@pytest.mark.parametrize("name", RULES)
def test_tokens_of_a_picture_are_those_of_the_familys_processor(name, size):
    width, height = size
    picture = load_spec(name).for_image(height, width).vision
    tokens = sum(span.tokens for span in picture.spans)
    assert tokens == RULES[name](height, width, picture.of)
    newlines = name.startswith("llava")
    assert (picture.image_tokens < tokens) is newlines


@pytest.mark.parametrize("size", PICTURES, ids=lambda size: f"{size[0]}x{size[1]}")
def test_mistral3_rounds_up_within_its_longest_side(size):
    from dynllava.costs.pictures import within

    resized = stock("pixtral.image_processing_pil_pixtral", "get_resize_output_image_size")
    import numpy as np

    width, height = size
    expected = resized(np.zeros((height, width, 3), np.uint8), (1540, 1540), (28, 28))
    assert within((height, width), 1540, 28) == tuple(expected)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    root, found = tmp_path_factory.mktemp("families"), {}

    def of(name):
        if name not in found:
            folder = BUILDERS[name](root / name)
            found[name] = (*load_model(folder, "full"), spec_from_folder(folder))
        return found[name]

    return of


def encoded(processor, size):
    generator = torch.Generator().manual_seed(sum(size))
    noise = torch.randint(0, 256, (size[1], size[0], 3), generator=generator).byte().numpy()
    turns = [Turn("user", "What is it?", [None])]
    text = render(choose_template(None, processor), turns, processor)
    return encoder_of(processor).encode([text], [[Image.fromarray(noise)]], ["here"])


class Tower(torch.nn.Module):
    """Pixels to every feature that the language model gets, in one tensor (fvcore drops others)."""

    def __init__(self, model, given):
        super().__init__()
        self.model, self.given = model, given

    def forward(self, pixels):
        out = self.model.get_image_features(pixels, **self.given, return_dict=True)
        found = [out.pooler_output, getattr(out, "deepstack_features", None)]
        flat = []
        while found:
            item = found.pop(0)
            if isinstance(item, (list, tuple)):
                found += item
            elif item is not None:
                flat.append(item.reshape(-1))
        return torch.cat(flat)


class Crops(torch.nn.Module):
    """Crops of LLaVA-NeXT's kind to features; packing them cannot be traced (and is no product).

    The tower's last layer runs although its output is not used, so it is an output here.
    """

    def __init__(self, model):
        super().__init__()
        self.tower, self.projector = model.vision_tower, model.multi_modal_projector
        self.drop = int(model.config.vision_feature_select_strategy == "default")
        self.layer = model.config.vision_feature_layer

    def forward(self, pixels):
        out = self.tower(pixels, output_hidden_states=True)
        features = self.projector(out.hidden_states[self.layer][:, self.drop :])
        return torch.cat([features.reshape(-1), out.last_hidden_state.reshape(-1)])


@pytest.mark.parametrize("size", TWO, ids=lambda size: f"{size[0]}x{size[1]}")
@pytest.mark.parametrize("name", BUILDERS)
def test_three_counters_agree_on_tower_and_projector(made, name, size):
    wrapped, processor, spec = made(name)
    given = {
        key: value
        for key, value in encoded(processor, size).items()
        if key in ("pixel_values", "image_grid_thw", "image_sizes", "pixel_attention_mask")
    }
    pixels = given.pop("pixel_values")
    picture = spec.for_image(size[1], size[0]).vision
    closed = picture.tower_macs() + picture.projector_macs()
    module = Tower(wrapped.unwrap().model, given).eval()
    assert counters.torch_count(module, (pixels,)).total == closed
    if name in ("llava_next", "llava_onevision"):
        module, pixels = Crops(wrapped.unwrap().model).eval(), pixels.flatten(0, 1)
    assert counters.fvcore_count(module, (pixels,)).total == closed


@pytest.mark.parametrize("method", ["full", "fastv:k=2,keep_ratio=0.25"])
@pytest.mark.parametrize("size", TWO, ids=lambda size: f"{size[0]}x{size[1]}")
@pytest.mark.parametrize("name", BUILDERS)
def test_a_real_prefill_does_the_ledgers_products(made, name, size, method):
    wrapped, processor, spec = made(name)
    spec = spec.for_image(size[1], size[0])
    inputs = encoded(processor, size)
    wrapped.set_method(method)
    with torch.no_grad(), counters.flop_counter() as counter:
        wrapped(**inputs, logits_to_keep=1)
    own = counter.get_total_flops() // 2 - rotary(wrapped, inputs)
    text = inputs["input_ids"].shape[1] - sum(span.tokens for span in spec.vision.spans)
    run = ledger.Run(spec, methods.create(method), spec.prompt(text))
    assert own == ledger.total(ledger.entries(run, "prefill"))
    rows = [layer[0] for layer in wrapped.last_report.layer_tokens]
    assert rows == list(run.schedule.prefill_rows)


def rotary(model, inputs):
    """MACs of the angles of the language model's positions, which no ledger counts."""
    text = getattr(model.model, "text_model", None) or model.model.language_model
    length = inputs["input_ids"].shape[1]
    axes = model.rotary_axes
    positions = torch.zeros((axes, 1, length) if axes > 1 else (1, length), dtype=torch.int64)
    with counters.flop_counter() as counter:
        text.rotary_emb(torch.zeros(1, length, 4), positions)
    return counter.get_total_flops() // 2


@pytest.mark.parametrize("name", SIZES)
def test_every_preset_is_counted(name):
    spec = load_spec(name)
    run = ledger.Run(spec, methods.create("full"), spec.prompt(60))
    found = ledger.by_component(ledger.entries(run, "prefill"))
    assert found["vision_tower"] > 0
    assert found["projector"] > 0
    assert any(isinstance(span, Grid) for span in run.shape.spans)


def test_parameters_of_small_folders_are_those_of_the_model(made):
    for name in ("qwen2_5_vl", "internvl", "smolvlm"):
        model, _, spec = made(name)
        held = sum(item.numel() for item in model.parameters())
        assert sum(spec.parameters().values()) == pytest.approx(held, rel=0.05), name


def test_the_command_takes_a_pictures_size(capsys):
    command = ["profile", "--model", "qwen2.5-vl-7b", "--method", "fastv:keep_ratio=0.25"]
    assert main([*command, "--image", "1024x768", "--batch", "8"]) == 0
    # 1036 x 756 after Qwen's rule, 28 x 28 pixels a token.
    assert f"60 text + {37 * 27} image tokens" in capsys.readouterr().out


@pytest.mark.parametrize("text", ["1024", "0x5", "ax3", "20000x4", "-3x4"])
def test_an_impossible_size_is_one_line(text, capsys):
    assert main(["profile", "--model", "qwen3-vl-8b", f"--image={text}"]) == 2
    assert "accepted is WIDTHxHEIGHT" in capsys.readouterr().err


def test_methods_that_make_pictures_smaller_say_for_whom_they_are_counted():
    spec = load_spec("qwen3-vl-8b")
    run = ledger.Run(spec, methods.create("downsample"), spec.prompt(60))
    with pytest.raises(UserError, match=r"counted for LLaVA-1\.5 only"):
        ledger.entries(run, "prefill")
