"""Official Dynamic-LLaVA and original LLaVA checkpoints <-> Hugging Face format.

Tensors are renamed, never recomputed.  The official ``config.json`` travels inside the
Hugging Face configuration (``official_config``), so that the way back is exact.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from dynllava.errors import UserError
from dynllava.output.files import read_json_object
from dynllava.output.folders import new_folder

from .config import NO_PREDICTORS, SparsityConfig
from .families import MODEL_TYPE
from .files import WeightFiles, present
from .layouts import ORIGINAL_TYPES, Checkpoint, Layout, download, inspect
from .official_vocabulary import rows_kept, write_tokenizer
from .sanity import build_config, check_finite, check_sizes
from .tensors import Reader, stream
from .token_packer import LEVELS, regions
from .tower import KNOWN_TOWERS

#: Where a converted folder keeps the files of the original format that it does not use itself.
OFFICIAL_FILES = "official_files"
SHARD = "5GB"
IMAGES = "image_processor"
"""Part of ``processor_config.json``."""
#: Parts of a TokenPacker projector, which keep their names.
PACKER = (
    "q_proj_1.", "k_proj_1.", "v_proj_1.", "ln_q_1.", "ln_k_1.", "ln_v_1.", "clip_attn.", "mlp.",
)  # fmt: skip
#: (official prefix, Hugging Face prefix); the first match wins.
RENAMES = (
    ("model.mm_projector.0.", "model.multi_modal_projector.linear_1."),
    ("model.mm_projector.2.", "model.multi_modal_projector.linear_2."),
    *((f"model.mm_projector.{name}", f"model.multi_modal_projector.{name}") for name in PACKER),
    ("model.image_score_predictor.", "image_predictor."),
    ("model.output_text_score_predictor.", "output_predictor."),
    ("model.vision_tower.vision_tower.vision_model.", "model.vision_tower."),
    ("model.embed_tokens.", "model.language_model.embed_tokens."),
    ("model.layers.", "model.language_model.layers."),
    ("model.norm.", "model.language_model.norm."),
    ("lm_head.", "lm_head."),
)
VISION_PREFIX = "model.vision_tower."
VOCABULARY_TENSORS = ("model.language_model.embed_tokens.weight", "lm_head.weight")


def to_hf_name(name: str) -> str:
    """Return the Hugging Face name of an official tensor."""
    for official, hf in RENAMES:
        if name.startswith(official):
            return hf + name[len(official) :]
    raise UserError(f"tensor {name!r}: not part of an official LLaVA checkpoint")


def to_official_name(name: str) -> str:
    """Return the official name of a Hugging Face tensor."""
    for official, hf in RENAMES:
        if name.startswith(hf):
            return official + name[len(hf) :]
    raise UserError(f"tensor {name!r}: has no place in the official format")


def hf_config(
    official: dict[str, Any], vision: dict[str, Any], packer: dict[str, int] | None = None
) -> dict[str, Any]:
    """Return the values of a :class:`~dynllava.models.config.DynamicLlavaConfig`.

    The official image placeholder (-200) lies outside the vocabulary: one row is added for it.
    ``packer`` gives ``width`` and ``heads`` of a TokenPacker projector.
    """
    check_sizes(official, "config.json")
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    vocab = official.get("vocab_size")
    if vocab is None:
        raise UserError("config.json: vocab_size is missing")
    text_keys = (
        "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
        "num_key_value_heads", "max_position_embeddings", "rms_norm_eps", "hidden_act",
        "attention_bias", "attention_dropout", "initializer_range", "bos_token_id",
        "eos_token_id", "pad_token_id", "tie_word_embeddings",
    )  # fmt: skip
    text = {key: official[key] for key in text_keys if key in official}
    rope: dict[str, Any] = {
        "rope_type": "default",
        "rope_theta": official.get("rope_theta", 10000.0),
    }
    scaling = official.get("rope_scaling")
    if scaling:
        if not isinstance(scaling, dict):
            raise UserError(f"config.json: rope_scaling={scaling!r}: accepted is an object")
        rope.update({k: v for k, v in scaling.items() if k != "type"})
        rope["rope_type"] = scaling.get("rope_type", scaling.get("type", "default"))
        if rope["rope_type"] not in ("default", *ROPE_INIT_FUNCTIONS):
            raise UserError(
                f"config.json: rope_scaling of type {rope['rope_type']!r}: accepted are default, "
                f"{', '.join(ROPE_INIT_FUNCTIONS)}"
            )
    text.update(model_type="llama", vocab_size=vocab + 1, rope_parameters=rope)
    vision = {
        key: value
        for key, value in vision.items()
        if key not in ("architectures", "transformers_version", "torch_dtype")
    }
    check_sizes(vision, "config.json of the vision tower")
    for key in ("image_size", "patch_size"):
        if key not in vision:
            raise UserError(f"config.json of the vision tower: {key} is missing")
    patches = (vision["image_size"] // vision["patch_size"]) ** 2
    select = official.get("mm_vision_select_feature", "patch")
    if select not in ("patch", "cls_patch"):
        raise UserError(
            f"config.json: mm_vision_select_feature={select!r}: accepted are patch and cls_patch"
        )
    layer, layers = official.get("mm_vision_select_layer", -2), vision.get("num_hidden_layers", 12)
    if type(layer) is not int or not -layers - 1 <= layer <= layers:
        raise UserError(
            f"config.json: mm_vision_select_layer={layer!r}: the vision tower has {layers} layers"
        )
    sparse = official.get("sparse_config") or {
        "use_vision_predictor": False,
        "use_output_text_predictor": False,
    }
    extra: dict[str, Any] = {}
    feature_layer: int | list[int] = layer
    tokens = patches if select == "patch" else patches + 1
    if packer is not None:
        extra["token_packer"] = {"scale_factor": official["scale_factor"], **packer}
        feature_layer = [*LEVELS, layer]
        tokens = len(regions(patches, official["scale_factor"]))
    return extra | {
        "text_config": text,
        "vision_config": vision,
        "image_token_index": vocab,
        "image_seq_length": tokens,
        "projector_hidden_act": "gelu",
        "vision_feature_select_strategy": "default" if select == "patch" else "full",
        "vision_feature_layer": feature_layer,
        "tie_word_embeddings": official.get("tie_word_embeddings", False),
        "sparse_config": sparse,
        "official_config": official,
    }


def official_state(
    checkpoint: Checkpoint, dtype: torch.dtype | None = None, read: Reader = stream
) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Return an official checkpoint's tensors and configuration in Hugging Face terms.

    Parameters
    ----------
    checkpoint : Checkpoint
        Without problems.
    dtype : torch.dtype, optional
        Tensors are cast to it one by one; default: as stored.
    read : callable
        What reads the files.
    """
    tower = checkpoint.eyes
    values = hf_config(dict(checkpoint.config), dict(tower.config or {}), checkpoint.packer)
    values["official_vision_in_checkpoint"] = tower.inside
    state = {}
    for name, tensor in read(checkpoint.stored, dtype):
        own = to_hf_name(name)
        if tower.inside or not own.startswith(VISION_PREFIX):
            state[own] = tensor
    if not tower.inside:
        assert tower.weights is not None
        state |= tower_state(tower.weights, dtype, read)
    return official_rows(state), values


def official_rows(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return an official state with the image placeholder's row, zeros, behind the vocabulary."""
    rows = {name: state[name] for name in VOCABULARY_TENSORS if name in state}
    return state | {
        name: torch.cat([old, old.new_zeros(1, old.shape[1])]) for name, old in rows.items()
    }


def tower_state(
    weights: WeightFiles, dtype: torch.dtype | None = None, read: Reader = stream
) -> dict[str, torch.Tensor]:
    """Return a vision tower's tensors; the text half of a whole CLIP is left out."""
    state = {}
    for name, tensor in read(weights, dtype):
        if (own := tower_name(name)) is not None:
            state[own] = tensor
    return state


def tower_name(name: str) -> str | None:
    """Return the Hugging Face name of a vision tower's tensor, None if it is not of the tower."""
    for prefix in ("vision_model.", "vision_tower.vision_model."):
        if name.startswith(prefix):
            return VISION_PREFIX + name.removeprefix(prefix)
    return None


def check_state(model: torch.nn.Module, state: dict[str, torch.Tensor], where: Path) -> None:
    """Raise :class:`UserError` naming the first missing, extra or misshaped tensor."""
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    tied = {
        name for name in (getattr(model, "all_tied_weights_keys", None) or {}) if name in expected
    }
    missing = sorted(set(expected) - set(state) - tied)
    extra = sorted(set(state) - set(expected))
    for kind, names in (("missing", missing), ("unexpected", extra)):
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise UserError(f"{where}: {kind} tensor {names[0]!r}{more}")
    for name in sorted(set(expected) & set(state)):
        if expected[name] != tuple(state[name].shape):
            raise UserError(
                f"{where}: tensor {name!r} has shape {tuple(state[name].shape)}, "
                f"accepted is {expected[name]}"
            )


def convert(
    source: str | Path, target: Path, to: str = "hf", vision_tower: str | None = None
) -> Path:
    """Convert a checkpoint folder; the target appears whole or not at all.

    Parameters
    ----------
    source : str or Path
        Official or Hugging Face checkpoint: a folder or a hub name.
    target : Path
        Folder to create; must not exist or be empty.
    to : str
        ``"hf"`` or ``"official"``.
    vision_tower : str, optional
        Folder or hub name of the vision tower, if not the one that the checkpoint names.

    Returns
    -------
    Path
        ``target``.
    """
    checkpoint = download(inspect(source, vision_tower)).require()
    with new_folder(target) as scratch:
        if to == "hf":
            _write_hf(checkpoint, scratch)
        elif to == "official":
            _write_official(checkpoint, scratch)
        else:
            raise UserError(f"--to {to!r}: accepted are hf and official")
    return target


def _write_hf(checkpoint: Checkpoint, target: Path) -> None:
    from transformers import LlavaConfig, LlavaForConditionalGeneration

    from .config import DynamicLlavaConfig
    from .loading import read_hf_state, skeleton
    from .modeling import DynamicLlavaForConditionalGeneration
    from .processors import load_processor

    source = checkpoint.folder
    if checkpoint.is_original:
        state, values = official_state(checkpoint)
    elif checkpoint.layout is Layout.LLAVA_HF:
        # Written anew with what older revisions leave out: processor and template files.
        state = read_hf_state(checkpoint.stored)
        values = {k: v for k, v in checkpoint.config.items() if k != "model_type"}
        values["sparse_config"] = dict(NO_PREDICTORS)
    else:
        raise UserError(
            f"{source}: model_type={checkpoint.model_type!r} ({checkpoint.layout.value}); accepted "
            f"are {', '.join(ORIGINAL_TYPES)} and llava"
        )
    check_finite(state.items(), source)
    config = build_config(DynamicLlavaConfig, values, source / "config.json")
    check_state(skeleton(config, source), state, source)
    kind: Any = DynamicLlavaForConditionalGeneration
    if not checkpoint.predictors and checkpoint.packer is None:
        # A plain LLaVA: stock transformers opens it without this package.
        kind = LlavaForConditionalGeneration
        values.pop("sparse_config")
        config = build_config(LlavaConfig, values, source / "config.json")
    config.architectures = [kind.__name__]
    config.dtype = checkpoint.config.get("torch_dtype", "float32")
    config.save_pretrained(target)
    save_tensors(state, target)
    if checkpoint.is_original:
        _write_generation_config(source, values["image_token_index"], target)
    else:
        copy_files(present(source, ("generation_config.json",)), target)
    processor = load_processor(checkpoint, config)
    if processor is None:
        write_json(target / "preprocessor_config.json", processor_less(values, checkpoint))
    else:
        processor.save_pretrained(target)
    copy_files(checkpoint.licences, target)
    if checkpoint.is_original:
        copy_files(checkpoint.tokenizer_files, target / OFFICIAL_FILES)


def processor_less(values: dict[str, Any], checkpoint: Checkpoint) -> dict[str, Any]:
    """Return the image processor of a checkpoint without a tokenizer."""
    from .processors import image_values

    return image_values(values["vision_config"], dict(checkpoint.config))


def save_tensors(state: dict[str, torch.Tensor], target: Path) -> None:
    """Write tensors as safetensors, sharded with an index where they are many."""
    from huggingface_hub import save_torch_state_dict

    save_torch_state_dict(state, target, max_shard_size=SHARD)


def copy_files(files: Iterable[Path], target: Path) -> None:
    """Copy files into a folder."""
    for path in files:
        target.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target / path.name)


def write_json(path: Path, values: dict[str, Any]) -> None:
    """Write a JSON object as transformers does."""
    path.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


def _write_generation_config(source: Path, image_token: int, target: Path) -> None:
    path = source / "generation_config.json"
    values = read_json_object(path) if path.is_file() else {}
    if path.is_file():
        copy_files([path], target / OFFICIAL_FILES)
    values.pop("_from_model_config", None)
    values["suppress_tokens"] = [image_token]
    write_json(target / "generation_config.json", values)


def _write_official(checkpoint: Checkpoint, target: Path) -> None:
    from .loading import read_hf_state

    source, config = checkpoint.folder, dict(checkpoint.config)
    if config.get("model_type") != MODEL_TYPE and "official_config" not in config:
        raise UserError(
            f"{source}: model_type={config.get('model_type')!r}; accepted is {MODEL_TYPE!r}"
        )
    state = read_hf_state(checkpoint.stored)
    check_finite(state.items(), source)
    official = config.get("official_config")
    inner = False  # whether words lie behind the image token
    if not official:
        vocab = rows_kept(config, checkpoint.tokenizer_files)
        inner = vocab > config["image_token_index"]
        official = synthesised_official_config(config, vocab)
    vocab = official["vocab_size"]
    for name in VOCABULARY_TENSORS:
        if name in state:
            state[name] = state[name][:vocab].clone()
    tensors = {to_official_name(name): tensor for name, tensor in state.items()}
    if config.get("official_vision_in_checkpoint") is False:
        tensors = {k: v for k, v in tensors.items() if not k.startswith("model.vision_tower.")}
    write_json(target / "config.json", official)
    save_tensors(tensors, target)
    tower = re.sub(r"^\.*/", "", str(official.get("mm_vision_tower", "")))
    inside = config.get("official_vision_in_checkpoint") is not False
    vision, known = config["vision_config"], KNOWN_TOWERS.get(tower, {"": None})
    as_known = all(vision.get(key, "") == value for key, value in known.items())
    if tower and not as_known and inside and not Path(tower).is_absolute():
        _write_tower(config, source, target / tower)
    kept = source / OFFICIAL_FILES
    if inner:
        write_tokenizer(checkpoint.tokenizer_files, config["image_token_index"], target)
    else:
        copy_files(sorted(kept.iterdir()) if kept.is_dir() else checkpoint.tokenizer_files, target)
    copy_files(checkpoint.licences, target)


def _write_tower(config: dict[str, Any], source: Path, folder: Path) -> None:
    """Write what the official program reads beside a tower: sizes, and how images are prepared."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "config.json", config["vision_config"])
    for name, key in (("preprocessor_config.json", None), ("processor_config.json", IMAGES)):
        values = read_json_object(source / name) if (source / name).is_file() else {}
        values = values.get(key, {}) if key else values
        if values:
            values["image_processor_type"] = "CLIPImageProcessor"
            write_json(folder / "preprocessor_config.json", values)
            return


def synthesised_official_config(config: dict[str, Any], vocabulary: int) -> dict[str, Any]:
    """Return an official configuration, of so many rows, for a model that never had one."""
    text = dict(config["text_config"])
    rope = text.pop("rope_parameters", None) or {}
    official = {
        key: value
        for key, value in text.items()
        if key not in ("model_type", "dtype", "layer_types", "head_dim")
    }
    sparse = SparsityConfig.from_dict(config.get("sparse_config")).to_dict()
    if sparse["elastic"] == "condition":
        raise UserError(
            "predictors that are told the keep rate (elastic: condition) have no official format"
        )
    # The official program has no key for these; calibrations that were measured stay.
    for name in ("output_threshold", "elastic", "vision_keep_rates", "output_text_keep_rates"):
        sparse.pop(name)
    for name in ("vision_calibration", "output_calibration"):
        if sparse[name] is None:
            sparse.pop(name)
    official.update(
        architectures=["DynamicLlavaLlamaForCausalLM"],
        model_type="dynamic_llava_llama",
        vocab_size=vocabulary,
        rope_theta=rope.get("rope_theta", 10000.0),
        rope_scaling=None,
        mm_projector_type="mlp2x_gelu",
        mm_hidden_size=config["vision_config"]["hidden_size"],
        mm_vision_select_layer=config["vision_feature_layer"],
        mm_vision_select_feature=(
            "patch" if config["vision_feature_select_strategy"] == "default" else "cls_patch"
        ),
        mm_vision_tower="vision_tower",
        image_aspect_ratio="pad",
        torch_dtype=config.get("dtype", "float32"),
        sparse_config={**sparse, "use_text_predictor": sparse["use_output_text_predictor"]},
    )
    return official
