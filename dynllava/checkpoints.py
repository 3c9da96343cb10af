"""Official Dynamic-LLaVA and original LLaVA checkpoints <-> Hugging Face format.

Tensors are renamed, never recomputed.  The official ``config.json`` travels inside the
Hugging Face configuration (``official_config``), so that the way back is exact.
"""

from __future__ import annotations

import json
import os
import pickle
import re
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from dynllava.config import SparsityConfig
from dynllava.errors import UserError
from dynllava.files import check_output_folder, read_json_object, reason
from dynllava.sanity import build_config, check_finite, check_sizes, check_tensors

OFFICIAL_TYPES = ("llava_llama", "dynamic_llava_llama")
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
)
#: (official prefix, Hugging Face prefix); the first match wins.
RENAMES = (
    ("model.mm_projector.0.", "model.multi_modal_projector.linear_1."),
    ("model.mm_projector.2.", "model.multi_modal_projector.linear_2."),
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
#: Vision towers that official checkpoints name without shipping their configuration.
KNOWN_TOWERS = {
    "openai/clip-vit-large-patch14-336": {
        "model_type": "clip_vision_model",
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "image_size": 336,
        "patch_size": 14,
        "projection_dim": 768,
    }
}
CLIP_MEAN = [0.48145466, 0.4578275, 0.40821073]
CLIP_STD = [0.26862954, 0.26130258, 0.27577711]


def read_config(folder: Path) -> dict[str, Any]:
    """Return ``config.json`` of a checkpoint folder."""
    path = folder / "config.json"
    if not path.is_file():
        raise UserError(f"{folder}: no config.json, so not a checkpoint folder")
    return read_json_object(path)


def read_tensors(folder: Path) -> dict[str, torch.Tensor]:
    """Return all tensors of a folder: single or sharded, safetensors or ``.bin``.

    ``.bin`` files are read with ``weights_only=True``: code in them is never executed.
    """
    files = _weight_files(folder)
    tensors: dict[str, torch.Tensor] = {}
    for path in files:
        try:
            if path.suffix == ".safetensors":
                part = load_file(path)
            else:
                part = torch.load(path, map_location="cpu", weights_only=True)
        except FileNotFoundError:
            raise UserError(f"{path}: named by the index but missing") from None
        except SafetensorError as error:
            raise UserError(f"{path}: truncated or not a safetensors file ({error})") from None
        except pickle.UnpicklingError:
            raise UserError(
                f"{path}: refused, it holds pickled objects other than tensors"
            ) from None
        except Exception as error:
            # A torn archive fails in many ways: zip, pickle and storage errors.
            raise UserError(f"{path}: cannot be read ({reason(error)})") from None
        tensors.update(check_tensors(part, path))
    return tensors


def _weight_files(folder: Path) -> list[Path]:
    for stem, suffix in (("model", "safetensors"), ("pytorch_model", "bin")):
        index = folder / f"{stem}.{suffix}.index.json"
        if index.is_file():
            return _shards(folder, index)
        single = folder / f"{stem}.{suffix}"
        if single.is_file():
            return [single]
    raise UserError(
        f"{folder}: no weights; accepted are model.safetensors or pytorch_model.bin, single or "
        "sharded with an index"
    )


def _shards(folder: Path, index: Path) -> list[Path]:
    """Return the files that an index names; they must lie in the folder itself."""
    names = read_json_object(index).get("weight_map")
    if not isinstance(names, dict) or not names:
        raise UserError(f"{index}: no object 'weight_map' that names the files")
    for tensor, name in names.items():
        if not isinstance(name, str) or Path(name).name != name:
            raise UserError(f"{index}: {tensor!r} lies in {name!r}, a file name is expected")
    return [folder / name for name in sorted(set(names.values()))]


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


def find_vision_tower(config: dict[str, Any], folder: Path) -> tuple[dict[str, Any], Path | None]:
    """Return the vision tower's configuration, and its folder where there is one."""
    name = str(config.get("mm_vision_tower") or config.get("vision_tower") or "")
    for candidate in (folder / name, folder.parent / name, Path(name)):
        if name and (candidate / "config.json").is_file():
            values = read_config(candidate)
            return values.get("vision_config", values), candidate
    if name in KNOWN_TOWERS:
        return dict(KNOWN_TOWERS[name]), None
    raise UserError(
        f"{folder}: vision tower {name!r} not found; put its folder beside or inside the checkpoint"
    )


def hf_config(official: dict[str, Any], vision: dict[str, Any]) -> dict[str, Any]:
    """Return the values of a :class:`~dynllava.config.DynamicLlavaConfig`.

    The official image placeholder (-200) lies outside the vocabulary: one row is added for it.
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
    return {
        "text_config": text,
        "vision_config": vision,
        "image_token_index": vocab,
        "image_seq_length": patches if select == "patch" else patches + 1,
        "projector_hidden_act": "gelu",
        "vision_feature_select_strategy": "default" if select == "patch" else "full",
        "vision_feature_layer": layer,
        "tie_word_embeddings": official.get("tie_word_embeddings", False),
        "sparse_config": sparse,
        "official_config": official,
    }


def official_state(
    folder: Path, official: dict[str, Any]
) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Return an official checkpoint's tensors and configuration in Hugging Face terms."""
    vision, tower = find_vision_tower(official, folder)
    _check_projector(official, folder)
    state = {to_hf_name(name): tensor for name, tensor in read_tensors(folder).items()}
    if not any(name.startswith(VISION_PREFIX) for name in state):
        if tower is None:
            raise UserError(
                f"{folder}: holds no vision tower weights and names no local folder with them"
            )
        for name, tensor in read_tensors(tower).items():
            if name.startswith("vision_model.") and not name.endswith("position_ids"):
                state[VISION_PREFIX + name.removeprefix("vision_model.")] = tensor
    values = hf_config(official, vision)
    values["official_vision_in_checkpoint"] = any(name.startswith(VISION_PREFIX) for name in state)
    for name in VOCABULARY_TENSORS:
        if name in state:
            rows = state[name]
            state[name] = torch.cat([rows, rows.new_zeros(1, rows.shape[1])])
    return state, values


def _check_projector(official: dict[str, Any], folder: Path) -> None:
    kind = official.get("mm_projector_type", "linear")
    if kind != "mlp2x_gelu":
        raise UserError(f"{folder}: mm_projector_type={kind!r}; accepted is 'mlp2x_gelu'")


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


def convert(source: Path, target: Path, to: str = "hf") -> Path:
    """Convert a checkpoint folder; the target appears whole or not at all.

    Parameters
    ----------
    source : Path
        Official or Hugging Face folder.
    target : Path
        Folder to create; must not exist or be empty.
    to : str
        ``"hf"`` or ``"official"``.

    Returns
    -------
    Path
        ``target``.
    """
    if not source.is_dir():
        raise UserError(f"{source}: no such folder")
    check_output_folder(target, "target")
    if target.exists() and any(target.iterdir()):
        raise UserError(f"{target}: exists and is not empty")
    made = _make_folders(target.parent)
    scratch = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}."))
    try:
        config = read_config(source)
        if to == "hf":
            _write_hf(source, config, scratch)
        elif to == "official":
            _write_official(source, config, scratch)
        else:
            raise UserError(f"--to {to!r}: accepted are hf and official")
        if target.exists():
            target.rmdir()
        scratch.chmod(0o755)
        os.replace(scratch, target)
    except BaseException as error:
        shutil.rmtree(scratch, ignore_errors=True)
        for folder in made:
            folder.rmdir()
        if isinstance(error, (OSError, SafetensorError)):
            raise UserError(f"cannot write {target}: {reason(error)}", 1) from error
        raise
    return target


def _make_folders(folder: Path) -> list[Path]:
    """Make ``folder`` with its parents; return what was made, the deepest first."""
    missing = [item for item in (folder, *folder.parents) if not item.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    return missing


def _write_hf(source: Path, config: dict[str, Any], target: Path) -> None:
    from dynllava.config import DynamicLlavaConfig
    from dynllava.loading import skeleton
    from dynllava.modeling import DynamicLlavaForConditionalGeneration

    if config.get("model_type") not in OFFICIAL_TYPES:
        raise UserError(
            f"{source}: model_type={config.get('model_type')!r}; accepted are "
            f"{' and '.join(OFFICIAL_TYPES)}"
        )
    state, values = official_state(source, config)
    check_finite(state.items(), source)
    model_config = build_config(DynamicLlavaConfig, values, source / "config.json")
    check_state(skeleton(model_config, source), state, source)
    model_config.architectures = [DynamicLlavaForConditionalGeneration.__name__]
    model_config.dtype = config.get("torch_dtype", "float32")
    model_config.save_pretrained(target)
    save_file(state, target / "model.safetensors", metadata={"format": "pt"})
    _write_generation_config(source, model_config.image_token_index, target)
    preprocessor = json.dumps(preprocessor_values(values, config), indent=2)
    (target / "preprocessor_config.json").write_text(preprocessor + "\n")
    for name in TOKENIZER_FILES:
        if (source / name).is_file():
            shutil.copy(source / name, target / name)


def _write_generation_config(source: Path, image_token: int, target: Path) -> None:
    path = source / "generation_config.json"
    values = read_json_object(path) if path.is_file() else {}
    if path.is_file():
        shutil.copy(path, target / "official_generation_config.json")
    values.pop("_from_model_config", None)
    values["suppress_tokens"] = [image_token]
    (target / "generation_config.json").write_text(json.dumps(values, indent=2) + "\n")


def preprocessor_values(values: dict[str, Any], official: dict[str, Any]) -> dict[str, Any]:
    """Return the image processor configuration of an official checkpoint."""
    size = values["vision_config"]["image_size"]
    return {
        "image_processor_type": "LlavaImageProcessor",
        "do_pad": official.get("image_aspect_ratio") == "pad",
        "do_resize": True,
        "size": {"shortest_edge": size},
        "resample": 3,
        "do_center_crop": True,
        "crop_size": {"height": size, "width": size},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": CLIP_MEAN,
        "image_std": CLIP_STD,
        "do_convert_rgb": True,
        "patch_size": values["vision_config"]["patch_size"],
    }


def _write_official(source: Path, config: dict[str, Any], target: Path) -> None:
    from dynllava.loading import read_hf_state

    if config.get("model_type") != "dynamic_llava":
        raise UserError(
            f"{source}: model_type={config.get('model_type')!r}; accepted is 'dynamic_llava'"
        )
    state = read_hf_state(source)
    check_finite(state.items(), source)
    official = config.get("official_config") or synthesised_official_config(config)
    vocab = official["vocab_size"]
    for name in VOCABULARY_TENSORS:
        if name in state:
            state[name] = state[name][:vocab].clone()
    tensors = {to_official_name(name): tensor for name, tensor in state.items()}
    if config.get("official_vision_in_checkpoint") is False:
        tensors = {k: v for k, v in tensors.items() if not k.startswith("model.vision_tower.")}
    (target / "config.json").write_text(json.dumps(official, indent=2) + "\n")
    save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})
    kept = source / "official_generation_config.json"
    if kept.is_file():
        shutil.copy(kept, target / "generation_config.json")
    tower = re.sub(r"^\.*/", "", str(official.get("mm_vision_tower", "")))
    if tower and tower not in KNOWN_TOWERS:
        _write_tower_config(config, target / tower)
    for name in TOKENIZER_FILES:
        if (source / name).is_file():
            shutil.copy(source / name, target / name)


def _write_tower_config(config: dict[str, Any], folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config["vision_config"], indent=2) + "\n")


def synthesised_official_config(config: dict[str, Any]) -> dict[str, Any]:
    """Return an official configuration for a model that never had one."""
    text = dict(config["text_config"])
    rope = text.pop("rope_parameters", None) or {}
    official = {
        key: value
        for key, value in text.items()
        if key not in ("model_type", "dtype", "layer_types", "head_dim")
    }
    sparse = SparsityConfig.from_dict(config.get("sparse_config")).to_dict()
    sparse.pop("output_threshold")
    official.update(
        architectures=["DynamicLlavaLlamaForCausalLM"],
        model_type="dynamic_llava_llama",
        vocab_size=min(text["vocab_size"], config["image_token_index"]),
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
