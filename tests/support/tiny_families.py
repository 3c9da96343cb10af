"""Tiny random models of every supported family, and batches of different image sizes for them.

Every model has five text layers with grouped-query attention and a vocabulary of 200; images are
multiples of 16 pixels.  Placeholders per image are counted by the stock model's own features, so
that the numbers of tokens are the family's and not ours.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

IMAGE = 100
VOCABULARY = 200
TEXT = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 5,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 4096,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
ENCODER = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
}
CLIP = {
    "model_type": "clip_vision_model",
    **ENCODER,
    "image_size": 32,
    "patch_size": 8,
    "projection_dim": 16,
}
SIGLIP = {
    "model_type": "siglip_vision_model",
    **ENCODER,
    "image_size": 32,
    "patch_size": 8,
    "vision_use_head": False,
}
PINPOINTS = [[32, 32], [32, 64], [64, 32], [64, 64], [96, 32]]
QWEN_IDS = {
    "image_token_id": IMAGE,
    "video_token_id": 101,
    "vision_start_token_id": 102,
    "vision_end_token_id": 103,
}


def mrope(section: list[int]) -> dict[str, Any]:
    """Rotary parameters with three axes."""
    return {"rope_type": "default", "mrope_section": section, "rope_theta": 10000.0}


@dataclass(frozen=True)
class TinyFamily:
    """How to build one family, and what it takes as images.

    ``prepare(sizes)`` returns the model's keyword arguments for images of ``(height, width)``.
    """

    name: str
    config: Callable[[], Any]
    prepare: Callable[[Sequence[tuple[int, int]]], dict[str, Any]]
    sizes: tuple[tuple[int, int], ...]

    def build(self, seed: int = 0, **text: Any) -> Any:
        """Return a random stock model in eval mode; ``text`` changes the text model's config."""
        import transformers

        torch.manual_seed(seed)
        config = self.config()
        for key, value in text.items():
            setattr(config.text_config, key, value)
        cls = getattr(transformers, config.architectures[0])
        model = cls(config).eval()
        # Initial weights are small: make attention differ from token to token.
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim > 1:
                    noise = torch.randn(parameter.shape, generator=generator)
                    parameter.add_(noise * parameter.shape[-1] ** -0.5 * 0.7)
        model.generation_config.eos_token_id = None
        model.generation_config.pad_token_id = 0
        return model


def _tiles(sizes: Sequence[tuple[int, int]], side: int = 32) -> list[int]:
    return [max(1, (height // side) * (width // side)) for height, width in sizes]


def _pixels(*shape: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(sum(shape) * 31 + len(shape))
    return torch.randn(*shape, generator=generator)


def _fixed(sizes: Sequence[tuple[int, int]]) -> dict[str, Any]:
    return {"pixel_values": torch.cat([_pixels(1, 3, 32, 32) + i for i, _ in enumerate(sizes)])}


def _anyres(sizes: Sequence[tuple[int, int]]) -> dict[str, Any]:
    counts = [tiles + 1 for tiles in _tiles(sizes)]
    pixels = torch.zeros(len(sizes), max(counts), 3, 32, 32)
    for index, count in enumerate(counts):
        pixels[index, :count] = _pixels(count, 3, 32, 32) + index
    return {"pixel_values": pixels, "image_sizes": torch.tensor(sizes)}


def _qwen(sizes: Sequence[tuple[int, int]]) -> dict[str, Any]:
    grids = torch.tensor([[1, height // 8, width // 8] for height, width in sizes])
    patches = int(grids.prod(1).sum())
    return {"pixel_values": _pixels(patches, 3 * 2 * 8 * 8), "image_grid_thw": grids}


def _internvl(sizes: Sequence[tuple[int, int]]) -> dict[str, Any]:
    return {"pixel_values": _pixels(sum(_tiles(sizes)), 3, 32, 32)}


def _mistral3(sizes: Sequence[tuple[int, int]]) -> dict[str, Any]:
    height, width = max(size[0] for size in sizes), max(size[1] for size in sizes)
    return {
        "pixel_values": _pixels(len(sizes), 3, height, width),
        "image_sizes": torch.tensor(sizes),
    }


def _config(name: str, architecture: str, **values: Any) -> Callable[[], Any]:
    def make() -> Any:
        import copy

        import transformers

        return getattr(transformers, name)(**copy.deepcopy(values), architectures=[architecture])

    return make


SIZES = ((32, 64), (64, 64), (64, 32))
FAMILIES = {
    family.name: family
    for family in (
        TinyFamily(
            "llava",
            _config(
                "LlavaConfig",
                "LlavaForConditionalGeneration",
                vision_config=CLIP,
                text_config={"model_type": "llama", **TEXT},
                image_token_index=IMAGE,
                image_seq_length=16,
            ),
            _fixed,
            SIZES,
        ),
        TinyFamily(
            "llava_next",
            _config(
                "LlavaNextConfig",
                "LlavaNextForConditionalGeneration",
                vision_config=CLIP,
                text_config={"model_type": "mistral", "sliding_window": None, **TEXT},
                image_token_index=IMAGE,
                image_seq_length=16,
                image_grid_pinpoints=PINPOINTS,
            ),
            _anyres,
            SIZES,
        ),
        TinyFamily(
            "llava_onevision",
            _config(
                "LlavaOnevisionConfig",
                "LlavaOnevisionForConditionalGeneration",
                vision_config=SIGLIP,
                text_config={"model_type": "qwen2", **TEXT},
                image_token_index=IMAGE,
                video_token_index=101,
                image_grid_pinpoints=PINPOINTS,
                vision_aspect_ratio="anyres_max_4",
            ),
            _anyres,
            SIZES,
        ),
        TinyFamily(
            "qwen2_vl",
            _config(
                "Qwen2VLConfig",
                "Qwen2VLForConditionalGeneration",
                text_config={**TEXT, "rope_parameters": mrope([1, 1, 2])},
                vision_config={
                    "depth": 2,
                    "embed_dim": 32,
                    "hidden_size": 32,
                    "num_heads": 4,
                    "mlp_ratio": 2,
                    "patch_size": 8,
                    "spatial_merge_size": 2,
                    "temporal_patch_size": 2,
                },
                **QWEN_IDS,
            ),
            _qwen,
            SIZES,
        ),
        TinyFamily(
            "qwen2_5_vl",
            _config(
                "Qwen2_5_VLConfig",
                "Qwen2_5_VLForConditionalGeneration",
                text_config={**TEXT, "rope_parameters": mrope([1, 1, 2])},
                vision_config={
                    "depth": 3,
                    "hidden_size": 32,
                    "intermediate_size": 48,
                    "num_heads": 4,
                    "patch_size": 8,
                    "spatial_merge_size": 2,
                    "temporal_patch_size": 2,
                    "window_size": 32,
                    "out_hidden_size": 32,
                    "fullatt_block_indexes": [1],
                },
                **QWEN_IDS,
            ),
            _qwen,
            SIZES,
        ),
        TinyFamily(
            "qwen3_vl",
            _config(
                "Qwen3VLConfig",
                "Qwen3VLForConditionalGeneration",
                text_config={**TEXT, "head_dim": 8, "rope_parameters": mrope([2, 1, 1])},
                vision_config={
                    "depth": 4,
                    "hidden_size": 32,
                    "intermediate_size": 48,
                    "num_heads": 4,
                    "patch_size": 8,
                    "spatial_merge_size": 2,
                    "temporal_patch_size": 2,
                    "out_hidden_size": 32,
                    "num_position_embeddings": 64,
                    "deepstack_visual_indexes": [0, 1, 2],
                },
                **QWEN_IDS,
            ),
            _qwen,
            SIZES,
        ),
        TinyFamily(
            "internvl",
            _config(
                "InternVLConfig",
                "InternVLForConditionalGeneration",
                vision_config={**ENCODER, "image_size": [32, 32], "patch_size": [8, 8]},
                text_config={"model_type": "qwen2", **TEXT},
                image_token_id=IMAGE,
                image_seq_length=4,
            ),
            _internvl,
            SIZES,
        ),
        TinyFamily(
            "smolvlm",
            _config(
                "SmolVLMConfig",
                "SmolVLMForConditionalGeneration",
                vision_config={**ENCODER, "image_size": 32, "patch_size": 8},
                text_config={"model_type": "llama", **TEXT},
                image_token_id=IMAGE,
                scale_factor=2,
            ),
            lambda sizes: {"pixel_values": _pixels(1, sum(_tiles(sizes)), 3, 32, 32)},
            SIZES,
        ),
        TinyFamily(
            "idefics3",
            _config(
                "Idefics3Config",
                "Idefics3ForConditionalGeneration",
                vision_config={**ENCODER, "image_size": 32, "patch_size": 8},
                text_config={"model_type": "llama", **TEXT},
                image_token_id=IMAGE,
                scale_factor=2,
            ),
            lambda sizes: {"pixel_values": _pixels(1, sum(_tiles(sizes)), 3, 32, 32)},
            SIZES,
        ),
        TinyFamily(
            "mistral3",
            _config(
                "Mistral3Config",
                "Mistral3ForConditionalGeneration",
                vision_config={
                    "model_type": "pixtral",
                    **ENCODER,
                    "image_size": 64,
                    "patch_size": 8,
                    "head_dim": 8,
                },
                text_config={
                    "model_type": "mistral",
                    "sliding_window": None,
                    "head_dim": 8,
                    **TEXT,
                },
                image_token_index=IMAGE,
                spatial_merge_size=2,
            ),
            _mistral3,
            SIZES,
        ),
    )
}


def image_tokens(model: Any, family: TinyFamily, size: tuple[int, int]) -> int:
    """Return the placeholders of one image, as the stock model's features count them."""
    with torch.no_grad():
        given = family.prepare([size])
        features = model.get_image_features(**given, return_dict=True).pooler_output
    if isinstance(features, (list, tuple)):
        return sum(item.shape[0] for item in features)
    return features.shape[:-1].numel()


def batch(
    model: Any,
    family: TinyFamily,
    rows: Sequence[Sequence[tuple[int, int]]],
    padding: str = "left",
    seed: int = 0,
    text: int = 6,
) -> dict[str, Any]:
    """Return inputs of a batch; each row has some text, its images with text between, and text.

    ``rows`` lists the image sizes of each row; rows differ in length and are padded.
    """
    generator = torch.Generator().manual_seed(seed)

    def words(count: int) -> list[int]:
        return torch.randint(3, 90, (count,), generator=generator).tolist()

    sequences = []
    for index, sizes in enumerate(rows):
        row = [1, *words(2 + index)]
        for size in sizes:
            row += [IMAGE] * image_tokens(model, family, size) + words(1)
        sequences.append(row + words(text + index))
    width = max(map(len, sequences))
    ids = torch.zeros(len(rows), width, dtype=torch.int64)
    mask = torch.zeros_like(ids)
    for index, row in enumerate(sequences):
        where = slice(width - len(row), width) if padding == "left" else slice(0, len(row))
        ids[index, where] = torch.tensor(row)
        mask[index, where] = 1
    inputs: dict[str, Any] = {"input_ids": ids, "attention_mask": mask}
    sizes = [size for row in rows for size in row]
    if sizes:
        inputs |= family.prepare(sizes)
    if "image_grid_thw" in inputs:
        inputs["mm_token_type_ids"] = (ids == IMAGE).int()
    return inputs


def row_of(inputs: dict[str, Any], family: TinyFamily, index: int, rows: Sequence[Any]) -> dict:
    """Return row ``index`` of a batch alone, without its padding."""
    keep = inputs["attention_mask"][index].bool()
    alone: dict[str, Any] = {
        key: inputs[key][index : index + 1][:, keep]
        for key in ("input_ids", "attention_mask", "mm_token_type_ids")
        if key in inputs
    }
    before = sum(len(row) for row in rows[:index])
    count = len(rows[index])
    if not count:
        return alone
    images = slice(before, before + count)
    sizes = [size for row in rows for size in row]
    if "image_grid_thw" in inputs:
        patches = inputs["image_grid_thw"].prod(1)
        first = int(patches[:before].sum())
        alone["pixel_values"] = inputs["pixel_values"][first : first + int(patches[images].sum())]
        alone["image_grid_thw"] = inputs["image_grid_thw"][images]
        return alone
    tiles = _tiles(sizes)
    if family.name == "internvl":
        pieces = slice(sum(tiles[:before]), sum(tiles[: before + count]))
        alone["pixel_values"] = inputs["pixel_values"][pieces]
    elif family.name in ("smolvlm", "idefics3"):
        pieces = slice(sum(tiles[:before]), sum(tiles[: before + count]))
        alone["pixel_values"] = inputs["pixel_values"][:, pieces]
    else:
        alone["pixel_values"] = inputs["pixel_values"][images]
    if "image_sizes" in inputs:
        alone["image_sizes"] = inputs["image_sizes"][images]
    return alone
