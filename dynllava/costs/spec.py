"""The sizes of a model that costs are computed from: presets, config folders, ``embedded``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dynllava.errors import UserError
from dynllava.models.families import FAMILIES
from dynllava.models.sanity import check_sizes
from dynllava.output.files import read_json_object, reason
from dynllava.plan import ModelDims, PromptShape, Shape, Text, TowerDims

from .family_presets import SIZES
from .towers import FamilyTower, Picture, tower_from_config

DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2, "float8": 1}
"""Bytes of one element by dtype name."""

FAMILY_TYPES = frozenset(FAMILIES) - {"llava"}
"""``model_type`` of families whose pictures keep their size or are cut into crops."""

TEXT_BEFORE_IMAGE = 35
"""Text tokens before the image in LLaVA's v1 conversation template (system prompt, role)."""


@dataclass(frozen=True)
class VisionDims:
    """A CLIP vision transformer.  All ``layers`` run, whichever layer's features are used."""

    hidden: int
    layers: int
    heads: int
    intermediate: int
    image_size: int
    patch_size: int
    channels: int = 3
    grid: tuple[int, int] | None = None
    """Patches (rows, columns) of a picture of another size than ``image_size``."""

    @property
    def patches(self) -> int:
        """Patches of one image."""
        rows, columns = self.grid or (self.image_size // self.patch_size,) * 2
        return rows * columns

    @property
    def tokens(self) -> int:
        """Patches and the class token."""
        return self.patches + 1


PICTURE = (336, 336)
"""Height and width in pixels of the picture that costs are counted for unless said otherwise."""

CLIP_VIT_L14_336 = VisionDims(1024, 24, 16, 4096, 336, 14)


@dataclass(frozen=True)
class ModelSpec:
    """A LLaVA-like model without its weights.

    Attributes
    ----------
    name : str
        Preset name, folder, or what the caller calls it.
    dims : ModelDims
        Language model (and predictors); the tower's sizes are filled in from ``vision``.
    vision : VisionDims, Picture or None
        Vision tower (of the other families: and the picture that it sees); None where image
        embeddings are given (then no projector either).
    image_tokens : int
        Image tokens of one image at the language model's input.
    tied : bool
        Whether the lm head shares the embedding's weights.
    feature_layers : int
        Vision layers whose features are concatenated for the projector.
    packer : tuple of int or None
        Edge of a block and width of a TokenPacker projector.
    family : FamilyTower or None
        How a family beside LLaVA-1.5 treats a picture of any size.
    """

    name: str
    dims: ModelDims
    vision: VisionDims | Picture | None
    image_tokens: int
    tied: bool = False
    feature_layers: int = 1
    packer: tuple[int, int] | None = None
    family: FamilyTower | None = None

    def __post_init__(self) -> None:
        seen = self.vision
        if seen is not None and self.dims.tower is None:
            tower = TowerDims(seen.layers, seen.hidden, seen.heads, seen.patches)
            object.__setattr__(self, "dims", replace(self.dims, tower=tower))

    @property
    def square_tower(self) -> VisionDims | None:
        """LLaVA-1.5's tower, None of the other families and without one."""
        return self.vision if isinstance(self.vision, VisionDims) else None

    def for_image(self, height: int, width: int) -> ModelSpec:
        """Return the model with a picture of this size; LLaVA-1.5 resizes all to one."""
        if self.family is None:
            return self
        picture = self.family.picture(height, width)
        dims = replace(self.dims, tower=None)
        return replace(self, dims=dims, vision=picture, image_tokens=picture.image_tokens)

    def prompt(self, text_tokens: int, images: int = 1) -> Shape:
        """Return a prompt of ``text_tokens`` text tokens around ``images`` images (0 or 1)."""
        if text_tokens < 1:
            raise UserError(f"prompt tokens {text_tokens}: accepted is 1 or more")
        before = min(TEXT_BEFORE_IMAGE, text_tokens - 1)
        if isinstance(self.vision, Picture) and images:
            return Shape((Text(before), *self.vision.spans, Text(text_tokens - before)))
        return PromptShape(before, images * self.image_tokens, text_tokens - before)

    def layer_parameters(self) -> dict[str, int]:
        """Return parameters of one decoder layer: attention and MLP matrices, norms."""
        d = self.dims
        attention = 2 * d.hidden * d.head_dim * (d.heads + d.kv_heads)
        return {
            "attention": attention,
            "mlp": 3 * d.hidden * d.intermediate,
            "norms": 2 * d.hidden,
        }

    def parameters(self) -> dict[str, int]:
        """Return parameters by part (no predictors: the published weights have none)."""
        d = self.dims
        parts = {
            "decoder_layers": d.layers * sum(self.layer_parameters().values()),
            "final_norm": d.hidden,
            "embedding": d.vocab * d.hidden,
            "lm_head": 0 if self.tied else d.vocab * d.hidden,
        }
        if isinstance(self.vision, Picture):
            parts |= self.vision.of.parameters()
        elif self.vision is not None:
            v = self.vision
            block = 4 * v.hidden * (v.hidden + 1) + 4 * v.hidden
            block += 2 * v.hidden * v.intermediate + v.intermediate + v.hidden
            patch = v.channels * v.patch_size**2 * v.hidden
            positions = v.tokens * v.hidden + v.hidden
            parts["vision_tower"] = v.layers * block + patch + positions + 4 * v.hidden
            width = v.hidden * self.feature_layers
            parts["projector"] = (width + 1) * d.hidden + (d.hidden + 1) * d.hidden
            if self.packer is not None:
                from dynllava.models.token_packer import parameters

                parts["projector"] = parameters(v.hidden, d.hidden, self.packer[1])
        return parts

    def weight_bytes(self, dtype: str) -> int:
        """Return the bytes of all weights in ``dtype``."""
        return sum(self.parameters().values()) * dtype_bytes(dtype)


LLAVA_15_7B = ModelSpec(
    "llava-1.5-7b", ModelDims(32, 4096, 32, 32, 128, 11008, 32000), CLIP_VIT_L14_336, 576
)
LLAVA_15_13B = ModelSpec(
    "llava-1.5-13b", ModelDims(40, 5120, 40, 40, 128, 13824, 32000), CLIP_VIT_L14_336, 576
)
MID_SIZE = ModelSpec("mid-size", ModelDims(8, 512, 8, 8, 64, 1376, 2000), None, 144)
"""Random-weight model of the CPU benchmarks (image embeddings are fed, no vision tower)."""

LARGE_SIZE = ModelSpec("large-size", ModelDims(8, 1024, 16, 16, 64, 2816, 2000), None, 576)
"""The same, large enough for arithmetic to rule on a CPU core."""

PRESETS = {spec.name: spec for spec in (LLAVA_15_7B, LLAVA_15_13B, MID_SIZE, LARGE_SIZE)}
"""Models that weights can be made for (``dynllava bench``)."""


def dtype_bytes(dtype: str) -> int:
    """Return the bytes of one element of ``dtype``."""
    if dtype not in DTYPE_BYTES:
        raise UserError(f"dtype {dtype!r}: accepted are {', '.join(DTYPE_BYTES)}")
    return DTYPE_BYTES[dtype]


def load_spec(name: str) -> ModelSpec:
    """Return the spec of a preset, ``embedded``, or a local folder with a ``config.json``.

    A preset is also found by its hub name (``Qwen/Qwen2.5-VL-7B-Instruct``); nothing is downloaded.

    Raises
    ------
    UserError
        If it is neither, or the config is not that of a LLaVA or LLaMA model.
    """
    if name in PRESETS:
        return PRESETS[name]
    if name in SIZES:
        dims, tower, tied = SIZES[name]
        return ModelSpec(name, dims, None, 0, tied, family=tower).for_image(*PICTURE)
    if name == "embedded":
        from dynllava.embedded import dynamic_path

        return replace(spec_from_folder(dynamic_path()), name="embedded")
    folder = Path(name)
    if not (folder / "config.json").is_file():
        preset = preset_of_hub_name(name)
        if preset:
            return load_spec(preset)
        raise UserError(
            f"model {name!r}: accepted are {', '.join((*PRESETS, *SIZES))}, "
            "embedded, or a local folder with a config.json"
        )
    return spec_from_folder(folder)


def preset_of_hub_name(name: str) -> str | None:
    """Return the preset that a published checkpoint's name means, None if there is none."""
    base = name.rpartition("/")[2].lower()
    for ending in ("-hf", "-ov", "-instruct", "-video"):
        base = base.removesuffix(ending)
    base = base.replace("llava-v1.5-", "llava-1.5-").replace("-onevision-qwen2-", "-onevision-")
    return base if base in PRESETS or base in SIZES else None


def spec_from_folder(folder: Path) -> ModelSpec:
    """Return the spec of the ``config.json`` in ``folder`` (Hugging Face or original LLaVA)."""
    path = folder / "config.json"
    raw = read_json_object(path)
    if raw.get("model_type") not in FAMILY_TYPES:
        check_sizes(raw, path)
    try:
        return spec_from_config(raw, str(folder), image_values(folder))
    except Exception as error:
        # transformers checks each field in a way (and with an error class) of its own.
        raise UserError(f"{path}: not a LLaVA or LLaMA config ({reason(error)})") from None


def image_values(folder: Path) -> dict[str, Any]:
    """Return what a folder says about preparing pictures; empty if it says nothing."""
    own = folder / "preprocessor_config.json"
    if own.is_file():
        return read_json_object(own)
    nested = folder / "processor_config.json"
    found = read_json_object(nested).get("image_processor") if nested.is_file() else None
    return found if isinstance(found, dict) else {}


def spec_from_config(
    raw: dict[str, Any], name: str, images: Mapping[str, Any] | None = None
) -> ModelSpec:
    """Return the spec of a parsed ``config.json``.

    ``images`` is ``preprocessor_config.json``, for families whose image tokens depend on it.
    """
    if raw.get("model_type") in FAMILY_TYPES:
        return _family_spec(raw, name, images or {})
    from transformers import CLIPVisionConfig, LlamaConfig

    kind = raw.get("model_type", "")
    flat = kind == "llava" and "text_config" not in raw and "mm_vision_tower" in raw
    if flat or kind in ("llava_llama", "dynamic_llava_llama"):
        # Original LLaVA: one flat config; the vision tower is named, not described.  Released
        # files say "llava", as llava-hf's do.
        dims, factor = _llama_dims(LlamaConfig(**raw)), raw.get("scale_factor")
        if raw.get("mm_projector_type") == "tokenpacker" and isinstance(factor, int) and factor > 0:
            packed = 576 // factor**2
            return ModelSpec(name, dims, CLIP_VIT_L14_336, packed, packer=(factor, 1024))
        return ModelSpec(name, dims, CLIP_VIT_L14_336, 576)
    if "text_config" in raw:
        text = LlamaConfig(**raw["text_config"])
        clip = CLIPVisionConfig(**raw.get("vision_config", {}))
        vision = VisionDims(
            clip.hidden_size,
            clip.num_hidden_layers,
            clip.num_attention_heads,
            clip.intermediate_size,
            clip.image_size,
            clip.patch_size,
            clip.num_channels,
        )
        chosen = raw.get("vision_feature_layer", -2)
        select_all = raw.get("vision_feature_select_strategy", "default") == "full"
        tokens = vision.tokens if select_all else vision.patches
        layers = len(chosen) if isinstance(chosen, list) else 1
        dims = _with_predictor(_llama_dims(text), raw)
        sizes, packer = raw.get("token_packer"), None
        if sizes:
            packer = sizes["scale_factor"], sizes["width"]
            tokens = vision.patches // sizes["scale_factor"] ** 2
        tied = bool(text.tie_word_embeddings)
        return ModelSpec(name, dims, vision, tokens, tied, layers, packer)
    if kind == "llama":
        text = LlamaConfig(**raw)
        return ModelSpec(name, _llama_dims(text), None, 0, bool(text.tie_word_embeddings))
    raise ValueError(f"model_type {kind!r}")


def _family_spec(raw: dict[str, Any], name: str, images: Mapping[str, Any]) -> ModelSpec:
    from transformers import CONFIG_MAPPING

    # Published files leave out what equals a class's default, and some have no text_config.
    config = CONFIG_MAPPING[raw["model_type"]](**raw)
    whole, text = config.to_dict(), config.text_config
    tower = tower_from_config(
        raw["model_type"], whole["vision_config"], whole, text.hidden_size, images
    )
    # Where the two disagree, transformers ties by the outer configuration.
    tied = bool(config.tie_word_embeddings)
    spec = ModelSpec(name, _llama_dims(text), None, 0, tied, family=tower)
    return spec.for_image(*PICTURE)


def _llama_dims(config: Any) -> ModelDims:
    head_dim = getattr(config, "head_dim", None) or (
        config.hidden_size // config.num_attention_heads
    )
    return ModelDims(
        layers=config.num_hidden_layers,
        hidden=config.hidden_size,
        heads=config.num_attention_heads,
        kv_heads=config.num_key_value_heads or config.num_attention_heads,
        head_dim=head_dim,
        intermediate=config.intermediate_size,
        vocab=config.vocab_size,
    )


def _with_predictor(dims: ModelDims, raw: dict[str, Any]) -> ModelDims:
    """Return ``dims`` with the predictors' sizes that a Dynamic-LLaVA config names."""
    sparsity = raw.get("sparse_config") or {}
    sizes = {
        field: sparsity[key]
        for field, key in (
            ("predictor_dim", "d_model"),
            ("predictor_heads", "nhead"),
            ("predictor_feedforward", "dim_feedforward"),
            ("predictor_blocks", "num_layers"),
        )
        if key in sparsity
    }
    return replace(dims, **sizes)
