"""Tiny but complete folders of public LLaVA checkpoints, laid out as they are published.

File lists, configuration keys and tensor names are those of the published files; sizes are small
and weights random.  Vocabulary size, depth and widths are parameters.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path

import torch
from public_tokenizers import (
    dump,
    pieces_of,
    sentencepiece_model,
    write_llava_hf,
    write_original,
)
from safetensors.torch import save_file

TOWER = "openai/clip-vit-large-patch14-336"
#: Names of a vision tower that lies in the checkpoint.
INSIDE = "model.vision_tower.vision_tower."
MEAN = [0.48145466, 0.4578275, 0.40821073]
STD = [0.26862954, 0.26130258, 0.27577711]
HF_TEMPLATE = (
    "{% for message in messages %}{% if message['role'] != 'system' %}"
    "{{ message['role'].upper() + ': '}}{% endif %}{# Render all images first #}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}"
    "{{ '<image>\\n' }}{% endfor %}{# Render all text next #}"
    "{% if message['role'] != 'assistant' %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}"
    "{{ content['text'] + ' '}}{% endfor %}{% else %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}"
    "{% generation %}{{ content['text'] + ' '}}{% endgeneration %}{% endfor %}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)


@dataclass(frozen=True)
class Sizes:
    """Sizes of a replica."""

    hidden: int = 64
    mlp: int = 96
    layers: int = 4
    heads: int = 4
    vision: int = 32
    vision_mlp: int = 48
    vision_layers: int = 3
    vision_heads: int = 4
    image: int = 56
    patch: int = 14
    positions: int = 512
    seed: int = 0
    predictor: dict = field(
        default_factory=lambda: {"d_model": 32, "nhead": 4, "dim_feedforward": 64, "num_layers": 2}
    )


def _generator(sizes: Sizes, salt: int) -> torch.Generator:
    return torch.Generator().manual_seed(1000 * sizes.seed + salt)


def _fill(shapes: dict[str, tuple[int, ...]], sizes: Sizes, salt: int, dtype: torch.dtype):
    generator = _generator(sizes, salt)
    state = {}
    for name, shape in shapes.items():
        if len(shape) > 1:
            # Large enough that every token matters, greedy answers differ between prompts, and
            # the output predictor decides both ways.
            gain = 4.0 if "output_text_score" in name else 1.2
            value = torch.randn(shape, generator=generator) * shape[-1] ** -0.5 * gain
        elif "norm" in name and name.endswith("weight"):
            value = 1 + 0.1 * torch.randn(shape, generator=generator)
        else:
            value = 0.1 * torch.randn(shape, generator=generator)
        state[name] = value.to(dtype)
    return state


def llama_shapes(sizes: Sizes, vocabulary: int) -> dict[str, tuple[int, ...]]:
    """``model.*`` and ``lm_head`` of a Llama."""
    d, m = sizes.hidden, sizes.mlp
    shapes = {
        "model.embed_tokens.weight": (vocabulary, d),
        "model.norm.weight": (d,),
        "lm_head.weight": (vocabulary, d),
    }
    for layer in range(sizes.layers):
        at = f"model.layers.{layer}."
        shapes |= {at + f"self_attn.{name}_proj.weight": (d, d) for name in "qkvo"}
        shapes |= {at + "mlp.gate_proj.weight": (m, d), at + "mlp.up_proj.weight": (m, d)}
        shapes |= {at + "mlp.down_proj.weight": (d, m)}
        shapes |= {at + f"{name}_layernorm.weight": (d,) for name in ("input", "post_attention")}
    return shapes


def clip_shapes(sizes: Sizes) -> dict[str, tuple[int, ...]]:
    """``vision_model.*`` of a CLIP."""
    d, m, p = sizes.vision, sizes.vision_mlp, sizes.patch
    tokens = (sizes.image // p) ** 2 + 1
    shapes = {
        "vision_model.embeddings.class_embedding": (d,),
        "vision_model.embeddings.patch_embedding.weight": (d, 3, p, p),
        "vision_model.embeddings.position_embedding.weight": (tokens, d),
    }
    for name in ("pre_layrnorm", "post_layernorm"):
        shapes |= {f"vision_model.{name}.{part}": (d,) for part in ("weight", "bias")}
    for layer in range(sizes.vision_layers):
        at = f"vision_model.encoder.layers.{layer}."
        for name, out, into in (
            *((f"self_attn.{item}_proj", d, d) for item in ("q", "k", "v", "out")),
            ("mlp.fc1", m, d),
            ("mlp.fc2", d, m),
        ):
            shapes |= {at + name + ".weight": (out, into), at + name + ".bias": (out,)}
        for name in ("layer_norm1", "layer_norm2"):
            shapes |= {at + f"{name}.{part}": (d,) for part in ("weight", "bias")}
    return shapes


def projector_shapes(sizes: Sizes, first: str, second: str) -> dict[str, tuple[int, ...]]:
    d = sizes.hidden
    return {
        f"{first}.weight": (d, sizes.vision),
        f"{first}.bias": (d,),
        f"{second}.weight": (d, d),
        f"{second}.bias": (d,),
    }


def predictor_shapes(sizes: Sizes) -> dict[str, tuple[int, ...]]:
    """The two predictors of Dynamic-LLaVA under their official names."""
    d, p, f = sizes.hidden, sizes.predictor["d_model"], sizes.predictor["dim_feedforward"]
    at = "model.image_score_predictor."
    shapes = {at + f"down_mlp.0.{part}": (d,) for part in ("weight", "bias")}
    shapes |= {at + "down_mlp.1.weight": (p, d), at + "down_mlp.1.bias": (p,)}
    for block in range(sizes.predictor["num_layers"]):
        inner = f"{at}transformer.{block}."
        for name in ("norm1", "norm2"):
            shapes |= {inner + f"{name}.{part}": (p,) for part in ("weight", "bias")}
        for name, out, into in (
            ("attn.qkv", 3 * p, p),
            ("attn.proj", p, p),
            ("mlp.fc1", f, p),
            ("mlp.fc2", p, f),
        ):
            shapes |= {inner + f"{name}.weight": (out, into), inner + f"{name}.bias": (out,)}
        del shapes[inner + "attn.qkv.bias"]
    for index, (out, into) in {0: (p // 2, p), 2: (p // 4, p // 2), 4: (2, p // 4)}.items():
        shapes |= {at + f"output_mlp.{index}.weight": (out, into)}
        shapes |= {at + f"output_mlp.{index}.bias": (out,)}
    at = "model.output_text_score_predictor.output_mlp."
    shapes |= {at + f"0.{part}": (d,) for part in ("weight", "bias")}
    widths = {1: (p, d), 3: (p // 2, p), 5: (p // 4, p // 2), 7: (2, p // 4)}
    for index, (out, into) in widths.items():
        shapes |= {at + f"{index}.weight": (out, into), at + f"{index}.bias": (out,)}
    return shapes


def vision_values(sizes: Sizes) -> dict:
    return {
        "hidden_size": sizes.vision,
        "image_size": sizes.image,
        "intermediate_size": sizes.vision_mlp,
        "model_type": "clip_vision_model",
        "num_attention_heads": sizes.vision_heads,
        "num_hidden_layers": sizes.vision_layers,
        "patch_size": sizes.patch,
        "projection_dim": 24,
    }


def _shard(
    state: dict[str, torch.Tensor], folder: Path, stem: str, suffix: str, shards: int
) -> None:
    """Write ``stem-0000i-of-0000n.suffix`` and the index."""
    names, places, total = list(state), {}, 0
    for number in range(shards):
        file = f"{stem}-{number + 1:05d}-of-{shards:05d}.{suffix}"
        part = {name: state[name].clone() for name in names[number::shards]}
        places |= dict.fromkeys(part, file)
        total += sum(value.numel() * value.element_size() for value in part.values())
        if suffix == "bin":
            torch.save(part, folder / file)
        else:
            save_file(part, folder / file, metadata={"format": "pt"})
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(places.items()))}
    dump(folder / f"{stem}.{suffix}.index.json", index)


def clip_tower(folder: Path, sizes: Sizes) -> Path:
    """openai's repository: a whole CLIP as ``.bin``, old buffers, old preprocessor file."""
    folder.mkdir(parents=True)
    text = {"text_model.embeddings.token_embedding.weight": (30, 16)}
    text |= {"text_model.final_layer_norm.weight": (16,), "visual_projection.weight": (24, 32)}
    text |= {"text_projection.weight": (24, 16)}
    state = _fill(clip_shapes(sizes) | text, sizes, 3, torch.float32)
    tokens = (sizes.image // sizes.patch) ** 2 + 1
    state["vision_model.embeddings.position_ids"] = torch.arange(tokens)[None]
    state["text_model.embeddings.position_ids"] = torch.arange(77)[None]
    state["logit_scale"] = torch.tensor(2.6592)
    torch.save(state, folder / "pytorch_model.bin")
    config = {
        "architectures": ["CLIPModel"],
        "initializer_factor": 1.0,
        "logit_scale_init_value": 2.6592,
        "model_type": "clip",
        "projection_dim": 24,
        "text_config": {"hidden_size": 16, "model_type": "clip_text_model"},
        "vision_config": {**vision_values(sizes), "hidden_act": "quick_gelu"},
    }
    dump(folder / "config.json", config)
    processor = {
        "crop_size": sizes.image,
        "do_center_crop": True,
        "do_normalize": True,
        "do_resize": True,
        "feature_extractor_type": "CLIPFeatureExtractor",
        "image_mean": MEAN,
        "image_std": STD,
        "resample": 3,
        "size": sizes.image,
    }
    dump(folder / "preprocessor_config.json", processor)
    return folder


def original_config(sizes: Sizes, vocabulary: int, **changes: object) -> dict:
    values = {
        "_name_or_path": "llava-v1.5-7b",
        "architectures": ["LlavaLlamaForCausalLM"],
        "bos_token_id": 1,
        "eos_token_id": 2,
        "freeze_mm_mlp_adapter": False,
        "freeze_mm_vision_resampler": False,
        "hidden_act": "silu",
        "hidden_size": sizes.hidden,
        "image_aspect_ratio": "pad",
        "initializer_range": 0.02,
        "intermediate_size": sizes.mlp,
        "max_length": sizes.positions,
        "max_position_embeddings": sizes.positions,
        "mm_hidden_size": sizes.vision,
        "mm_projector_type": "mlp2x_gelu",
        "mm_resampler_type": None,
        "mm_use_im_patch_token": False,
        "mm_use_im_start_end": False,
        "mm_vision_select_feature": "patch",
        "mm_vision_select_layer": -2,
        "mm_vision_tower": TOWER,
        "model_type": "llava",
        "num_attention_heads": sizes.heads,
        "num_hidden_layers": sizes.layers,
        "num_key_value_heads": sizes.heads,
        "pad_token_id": 0,
        "pretraining_tp": 1,
        "rms_norm_eps": 1e-05,
        "rope_scaling": None,
        "tie_word_embeddings": False,
        "torch_dtype": "float16",
        "transformers_version": "4.31.0",
        "tune_mm_mlp_adapter": False,
        "tune_mm_vision_resampler": False,
        "unfreeze_mm_vision_tower": False,
        "use_cache": True,
        "use_mm_proj": True,
        "vocab_size": vocabulary,
    }
    return {**values, **changes}


def original(folder: Path, sizes: Sizes) -> Path:
    """liuhaotian/llava-v1.5: ``.bin`` shards, float32 ``inv_freq``, ``tokenizer.model`` only."""
    folder.mkdir(parents=True)
    model = sentencepiece_model()
    vocabulary = len(pieces_of(model))
    write_original(folder, model)
    shapes = llama_shapes(sizes, vocabulary)
    shapes |= projector_shapes(sizes, "model.mm_projector.0", "model.mm_projector.2")
    state = _fill(shapes, sizes, 1, torch.float16)
    half = sizes.hidden // sizes.heads // 2
    for layer in range(sizes.layers):
        name = f"model.layers.{layer}.self_attn.rotary_emb.inv_freq"
        state[name] = 10000.0 ** (-torch.arange(half, dtype=torch.float32) / half)
    _shard(state, folder, "pytorch_model", "bin", 2)
    dump(folder / "config.json", original_config(sizes, vocabulary))
    _generation(folder, sizes)
    (folder / "README.md").write_text("---\ninference: false\n---\n")
    return folder


def official(folder: Path, sizes: Sizes) -> Path:
    """Dynamic-LLaVA after training: bfloat16 safetensors, tower and predictors inside."""
    folder.mkdir(parents=True)
    model = sentencepiece_model()
    vocabulary = len(pieces_of(model))
    write_original(folder, model)
    shapes = llama_shapes(sizes, vocabulary)
    shapes |= projector_shapes(sizes, "model.mm_projector.0", "model.mm_projector.2")
    shapes |= predictor_shapes(sizes)
    shapes |= {INSIDE + name: shape for name, shape in clip_shapes(sizes).items()}
    _shard(_fill(shapes, sizes, 2, torch.bfloat16), folder, "model", "safetensors", 2)
    sparse = {
        "use_vision_predictor": True,
        "vision_keep_rate": 0.2,
        "use_text_predictor": True,
        "use_output_text_predictor": True,
        "output_text_keep_rate": 0.5,
        "output_text_len_for_training": 50,
        "use_instruct_predictor": False,
        "instruct_keep_rate": 0.7,
        "instruct_len_for_training": 25,
        "sparse_layer": 2,
        "mask_loss_weight": 100.0,
        **sizes.predictor,
    }
    config = original_config(
        sizes,
        vocabulary,
        architectures=["DynamicLlavaLlamaForCausalLM"],
        model_type="llava_llama",
        sparse_config=sparse,
        torch_dtype="bfloat16",
        transformers_version="4.37.2",
    )
    dump(folder / "config.json", config)
    _generation(folder, sizes)
    (folder / "trainer_state.json").write_text("{}\n")
    (folder / "training_args.bin").write_bytes(b"\x80\x02}q\x00.")
    return folder


def llava_hf(folder: Path, sizes: Sizes, revision: str = "newer") -> Path:
    """llava-hf/llava-1.5: ``"older"`` has neither processor_config.json nor a template file."""
    folder.mkdir(parents=True)
    model = sentencepiece_model()
    first = len(pieces_of(model))
    rows = (first + 2 + 63) // 64 * 64
    write_llava_hf(folder, model)
    shapes = {f"language_model.{k}": v for k, v in llama_shapes(sizes, rows).items()}
    at = "multi_modal_projector.linear_"
    shapes |= projector_shapes(sizes, at + "1", at + "2")
    shapes |= {f"vision_tower.{k}": v for k, v in clip_shapes(sizes).items()}
    _shard(_fill(shapes, sizes, 4, torch.float16), folder, "model", "safetensors", 3)
    text = {
        "_name_or_path": "lmsys/vicuna-7b-v1.5",
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": sizes.hidden,
        "intermediate_size": sizes.mlp,
        "max_position_embeddings": sizes.positions,
        "model_type": "llama",
        "num_attention_heads": sizes.heads,
        "num_hidden_layers": sizes.layers,
        "num_key_value_heads": sizes.heads,
        "rms_norm_eps": 1e-05,
        "torch_dtype": "float16",
        "vocab_size": rows,
    }
    config = {
        "architectures": ["LlavaForConditionalGeneration"],
        "ignore_index": -100,
        "image_token_index": first,
        "model_type": "llava",
        "pad_token_id": first + 1,
        "projector_hidden_act": "gelu",
        "text_config": text,
        "tie_word_embeddings": False,
        "torch_dtype": "float16",
        "transformers_version": "4.36.0.dev0",
        "vision_config": {**vision_values(sizes), "vocab_size": 32000},
        "vision_feature_layer": -2,
        "vision_feature_select_strategy": "default",
        "vocab_size": rows,
    }
    dump(folder / "config.json", config)
    generation = {"_from_model_config": True, "bos_token_id": 1, "eos_token_id": 2}
    dump(folder / "generation_config.json", {**generation, "pad_token_id": first + 1})
    dump(folder / "preprocessor_config.json", _hf_preprocessor(sizes))
    if revision != "older":
        processor = {
            "image_token": "<image>",
            "num_additional_image_tokens": 1,
            "patch_size": sizes.patch,
            "processor_class": "LlavaProcessor",
            "vision_feature_select_strategy": "default",
        }
        dump(folder / "processor_config.json", processor)
        dump(folder / "chat_template.json", {"chat_template": HF_TEMPLATE})
        if revision == "newer":
            (folder / "chat_template.jinja").write_text(HF_TEMPLATE.replace("\\n", "\n"))
    return folder


def _hf_preprocessor(sizes: Sizes) -> dict:
    return {
        "crop_size": {"height": sizes.image, "width": sizes.image},
        "do_center_crop": True,
        "do_convert_rgb": True,
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": MEAN,
        "image_processor_type": "CLIPImageProcessor",
        "image_std": STD,
        "processor_class": "LlavaProcessor",
        "resample": 3,
        "rescale_factor": 0.00392156862745098,
        "size": {"shortest_edge": sizes.image},
    }


def _generation(folder: Path, sizes: Sizes) -> None:
    values = {"bos_token_id": 1, "eos_token_id": 2, "max_length": sizes.positions}
    dump(
        folder / "generation_config.json",
        {**values, "pad_token_id": 0, "transformers_version": "4.31.0"},
    )


def into_cache(cache: Path, name: str, folder: Path, commit: str = "0123abcd" * 5) -> Path:
    """Lay a folder out as the hub's cache does (refs, blobs, links) and return the snapshot."""
    repository = cache / f"models--{name.replace('/', '--')}"
    snapshot = repository / "snapshots" / commit
    (repository / "blobs").mkdir(parents=True)
    (repository / "refs").mkdir()
    snapshot.mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit)
    for number, path in enumerate(sorted(folder.iterdir())):
        blob = f"{number:040x}"
        shutil.copy(path, repository / "blobs" / blob)
        (snapshot / path.name).symlink_to(Path("..") / ".." / "blobs" / blob)
    return snapshot


def edit_json(path: Path, **changes: object) -> None:
    """Change fields of a JSON file; ``None`` removes one."""
    values = json.loads(path.read_text())
    values |= changes
    dump(path, {key: value for key, value in values.items() if value is not None})
