"""Checkpoints of the public kinds that are laid out otherwise than the samples.

Every function takes an empty folder, writes a checkpoint below it (and its vision tower where the
format keeps that elsewhere), and returns the checkpoint's folder.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path

import public_layouts as layouts
import torch
from public_layouts import HF_TEMPLATE, INSIDE, Sizes, clip_tower, dump, edit_json
from safetensors.torch import load_file, save_file

SIZES = Sizes()
OTHER = Sizes(
    hidden=80, mlp=112, layers=6, heads=5, vision=48, vision_mlp=64, vision_layers=5,
    vision_heads=6, image=64, patch=16, seed=3,
    predictor={"d_model": 48, "nhead": 6, "dim_feedforward": 80, "num_layers": 3},
)  # fmt: skip
State = dict[str, torch.Tensor]


def state_of(folder: Path) -> State:
    """Every tensor of a folder, as stored."""
    state: State = {}
    for path in sorted([*folder.glob("*-of-*.bin"), *folder.glob("*.safetensors")]):
        state |= torch.load(path, weights_only=True) if path.suffix == ".bin" else load_file(path)
    return state


def store(folder: Path, state: State, *names: str, legacy: bool = False) -> Path:
    """Replace a folder's weights; several names are shards with an index."""
    for path in [*folder.glob("*-of-*"), *folder.glob("*.index.json")]:
        path.unlink()
    places, suffix = {}, names[0].rpartition(".")[2]
    for number, name in enumerate(names):
        keys = list(state)[number :: len(names)]
        part = {key: state[key].clone().contiguous() for key in keys}
        places |= dict.fromkeys(keys, name)
        if suffix == "bin":
            torch.save(part, folder / name, _use_new_zipfile_serialization=not legacy)
        else:
            save_file(part, folder / name, metadata={"format": "pt"})
    if len(names) > 1:
        stem = "pytorch_model" if suffix == "bin" else "model"
        index = {"metadata": {}, "weight_map": places}
        dump(folder / f"{stem}.{suffix}.index.json", index)
    return folder


def edit_config(folder: Path, section: str, **changes: object) -> Path:
    """Change fields of a section of ``config.json``; ``None`` removes one."""
    values = json.loads((folder / "config.json").read_text())
    found = {**values[section], **changes}
    values[section] = {key: value for key, value in found.items() if value is not None}
    dump(folder / "config.json", values)
    return folder


def config(folder: Path, **changes: object) -> Path:
    edit_json(folder / "config.json", **changes)
    return folder


def without(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).unlink()
    return folder


def hf(root: Path, sizes: Sizes = SIZES, revision: str = "newer") -> Path:
    return layouts.llava_hf(root / "model", sizes, revision)


def original(root: Path, sizes: Sizes = SIZES) -> Path:
    clip_tower(root / layouts.TOWER, sizes)
    return layouts.original(root / "model", sizes)


def official(root: Path, sizes: Sizes = SIZES) -> Path:
    clip_tower(root / layouts.TOWER, sizes)
    return layouts.official(root / "model", sizes)


def renamed(state: State, *pairs: tuple[str, str]) -> State:
    """Replace prefixes; the first that fits."""
    out = {}
    for name, value in state.items():
        for old, new in pairs:
            if name.startswith(old):
                name = new + name.removeprefix(old)
                break
        out[name] = value
    return out


# ---------------------------------------------------------------------------- llava-hf


def hf_saved_by_transformers(root: Path) -> Path:
    """Read and written by today's transformers: one processor file, other field names."""
    from transformers import AutoProcessor, LlavaForConditionalGeneration

    source = hf(root)
    LlavaForConditionalGeneration.from_pretrained(source).save_pretrained(
        root / "again", max_shard_size="100KB"
    )
    AutoProcessor.from_pretrained(source).save_pretrained(root / "again")
    return root / "again"


def hf_names_of_4_52(root: Path) -> Path:
    folder = hf(root)
    pairs = (("language_model.lm_head.", "lm_head."),
             ("language_model.model.", "model.language_model."),
             ("", "model."))  # fmt: skip
    return store(folder, renamed(state_of(folder), *pairs), "model.safetensors")


def hf_names_of_a_model_never_loaded(root: Path) -> Path:
    folder = hf(root)
    pairs = (("vision_tower.vision_model.", "vision_tower."),)
    return store(folder, renamed(state_of(folder), *pairs), "model.safetensors")


def hf_old_tables(root: Path) -> Path:
    """Tables that old versions stored with the weights."""
    folder = hf(root)
    state = state_of(folder)
    state["vision_tower.vision_model.embeddings.position_ids"] = torch.arange(17)[None]
    state["language_model.model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(8)
    return store(folder, state, "model.safetensors")


def hf_tokenizer_model_alone(root: Path) -> Path:
    return without(hf(root), "tokenizer.json")


def hf_template_in_tokenizer_config(root: Path) -> Path:
    folder = hf(root, revision="older")
    edit_json(folder / "tokenizer_config.json", chat_template=HF_TEMPLATE)
    return folder


def hf_preprocessor_of_2022(root: Path) -> Path:
    folder = hf(root)
    gone = dict.fromkeys(("image_processor_type", "do_rescale", "do_convert_rgb", "rescale_factor"))
    kind = {"feature_extractor_type": "CLIPFeatureExtractor"}
    edit_json(folder / "preprocessor_config.json", size=56, crop_size=56, **kind, **gone)
    return folder


def hf_fast_preprocessor(root: Path) -> Path:
    folder = hf(root)
    edit_json(folder / "preprocessor_config.json", image_processor_type="CLIPImageProcessorFast")
    return folder


def hf_few_keys_and_values(root: Path) -> Path:
    """Fewer KV heads than heads."""
    folder = hf(root)
    state = {
        name: value[:32] if "language" in name and ("k_proj" in name or "v_proj" in name) else value
        for name, value in state_of(folder).items()
    }
    store(folder, state, "model.safetensors")
    return edit_config(folder, "text_config", num_key_value_heads=2)


def hf_every_token_of_the_tower(root: Path) -> Path:
    folder = config(hf(root), vision_feature_select_strategy="full")
    edit_json(folder / "processor_config.json", vision_feature_select_strategy="full")
    return folder


def hf_two_layers_of_the_tower(root: Path) -> Path:
    folder = hf(root)
    state, name = state_of(folder), "multi_modal_projector.linear_1.weight"
    state[name] = state[name].repeat(1, 2) * 0.7
    return config(store(folder, state, "model.safetensors"), vision_feature_layer=[-2, 1])


def hf_other_name_of_the_image_token(root: Path) -> Path:
    folder = hf(root)
    first = json.loads((folder / "config.json").read_text())["image_token_index"]
    return config(folder, image_token_index=None, image_token_id=first)


def hf_tied(root: Path) -> Path:
    folder = hf(root)
    state = state_of(folder)
    state["language_model.model.embed_tokens.weight"] = state.pop("language_model.lm_head.weight")
    store(folder, state, "model.safetensors")
    config(folder, tie_word_embeddings=True)
    return edit_config(folder, "text_config", tie_word_embeddings=True)


def hf_projector_without_biases(root: Path) -> Path:
    folder = hf(root)
    found = state_of(folder).items()
    state = {k: v for k, v in found if not ("multi_modal" in k and k.endswith("bias"))}
    store(folder, state, "model.safetensors")
    return config(folder, multimodal_projector_bias=False)


def hf_bfloat16(root: Path) -> Path:
    folder = hf(root)
    state = {name: value.bfloat16() for name, value in state_of(folder).items()}
    return config(store(folder, state, "model.safetensors"), torch_dtype="bfloat16")


def hf_with_other_weights_beside(root: Path) -> Path:
    """safetensors go first; what else lies there is not looked at."""
    folder = hf(root)
    other = {name: value + 1 for name, value in state_of(folder).items()}
    torch.save(other, folder / "pytorch_model.bin")
    torch.save({"x": torch.ones(1)}, folder / "mm_projector.bin")
    return folder


# ---------------------------------------------------------------------------- original


def original_tower_of_vision_alone(root: Path) -> Path:
    folder, tower = original(root), root / layouts.TOWER
    state = torch.load(tower / "pytorch_model.bin")
    (tower / "pytorch_model.bin").unlink()
    state = {name: value for name, value in state.items() if name.startswith("vision_model")}
    save_file(state, tower / "model.safetensors", metadata={"format": "pt"})
    vision = json.loads((tower / "config.json").read_text())["vision_config"]
    dump(tower / "config.json", {**vision, "architectures": ["CLIPVisionModel"]})
    return folder


def original_tower_saved_by_transformers(root: Path) -> Path:
    from transformers import CLIPVisionModel

    folder, tower = original(root), root / layouts.TOWER
    model = CLIPVisionModel.from_pretrained(tower)
    shutil.rmtree(tower)
    model.save_pretrained(tower)
    return folder


def original_tower_inside(root: Path, *names: str) -> Path:
    """A fine-tune that trained the tower: other weights than the public ones."""
    folder = original(root)
    tower = torch.load(root / layouts.TOWER / "pytorch_model.bin")
    inside = {
        INSIDE + name: (1.1 * value).half()
        for name, value in tower.items()
        if name.startswith("vision_model") and value.is_floating_point()
    }
    return store(folder, state_of(folder) | inside, *(names or ("pytorch_model.bin",)))


def original_tower_elsewhere(root: Path, name: Callable[[Path], str]) -> Path:
    folder = original(root)
    shutil.move(root / layouts.TOWER, root / "tower")
    return config(folder, mm_vision_tower=name(root))


def original_few_keys_and_values(root: Path) -> Path:
    folder = original(root)
    state = {
        name: value[:32] if "k_proj" in name or "v_proj" in name else value
        for name, value in state_of(folder).items()
    }
    return config(store(folder, state, "pytorch_model.bin"), num_key_value_heads=2)


def original_with_a_pad_token(root: Path) -> Path:
    """A fine-tune that added a token and a row for it."""
    folder = original(root)
    state = state_of(folder)
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        state[name] = torch.cat([state[name], state[name][:1]])
    rows = len(state["lm_head.weight"])
    dump(folder / "added_tokens.json", {"<pad>": rows - 1})
    return config(store(folder, state, "pytorch_model.bin"), vocab_size=rows)


# ---------------------------------------------------------------------------- official


def official_one_predictor(root: Path) -> Path:
    folder = official(root)
    found = state_of(folder).items()
    state = {name: value for name, value in found if "output_text_score" not in name}
    store(folder, state, "model.safetensors")
    switches = {"use_output_text_predictor": False, "use_text_predictor": False}
    return edit_config(folder, "sparse_config", **switches)


def official_tower_outside(root: Path) -> Path:
    folder = official(root)
    found = state_of(folder).items()
    state = {name: value for name, value in found if INSIDE not in name}
    return store(folder, state, "model.safetensors")


def again(build: Callable[[Path], Path], *names: str, legacy: bool = False):
    """Return a builder that stores another one's weights in files of these names."""

    def write(root: Path) -> Path:
        folder = build(root)
        return store(folder, state_of(folder), *names, legacy=legacy)

    return write


def shards(stem: str, suffix: str, count: int) -> Iterable[str]:
    return (f"{stem}-{n:05d}-of-{count:05d}.{suffix}" for n in range(1, count + 1))


OPTIONAL = ("generation_config.json", "special_tokens_map.json", "added_tokens.json")
HF = {
    "single file": again(hf, "model.safetensors"),
    "bin shards": again(hf, *shards("pytorch_model", "bin", 2)),
    "single bin": again(hf, "pytorch_model.bin"),
    "shards of other names": again(hf, "a.safetensors", "weights_b.safetensors"),
    "saved by transformers": hf_saved_by_transformers,
    "names of 4.52": hf_names_of_4_52,
    "names of a model never loaded": hf_names_of_a_model_never_loaded,
    "old tables": hf_old_tables,
    "no optional file": lambda root: without(hf(root), *OPTIONAL, "tokenizer.model"),
    "older, no optional file": lambda root: without(hf(root, revision="older"), *OPTIONAL),
    "tokenizer.model alone": hf_tokenizer_model_alone,
    "template in tokenizer_config": hf_template_in_tokenizer_config,
    "no preprocessor file": lambda root: without(hf(root), "preprocessor_config.json"),
    "preprocessor of 2022": hf_preprocessor_of_2022,
    "fast preprocessor": hf_fast_preprocessor,
    "few keys and values": hf_few_keys_and_values,
    "every token of the tower": hf_every_token_of_the_tower,
    "two layers of the tower": hf_two_layers_of_the_tower,
    "last layer of the tower": lambda root: config(hf(root), vision_feature_layer=-1),
    "other name of the image token": hf_other_name_of_the_image_token,
    "other sizes": lambda root: hf(root, OTHER),
    "bfloat16": hf_bfloat16,
    "tied": hf_tied,
    "projector without biases": hf_projector_without_biases,
    "other weights beside": hf_with_other_weights_beside,
}
ORIGINAL = {
    "single bin": again(original, "pytorch_model.bin"),
    "bin of torch before 1.6": again(original, "pytorch_model.bin", legacy=True),
    "three shards": again(original, *shards("pytorch_model", "bin", 3)),
    "safetensors": again(original, *shards("model", "safetensors", 3)),
    "later model_type": lambda root: config(original(root), model_type="llava_llama"),
    "tower of vision alone": original_tower_of_vision_alone,
    "tower saved by transformers": original_tower_saved_by_transformers,
    "tower inside a bin": original_tower_inside,
    "tower inside safetensors": lambda root: original_tower_inside(root, "model.safetensors"),
    "tower beside": lambda root: original_tower_elsewhere(root, lambda at: "../tower"),
    "tower by its path": lambda root: original_tower_elsewhere(root, lambda at: str(at / "tower")),
    "no optional file": lambda root: without(original(root), *OPTIONAL[:2]),
    "no tokenizer_config": lambda root: without(original(root), "tokenizer_config.json"),
    "few keys and values": original_few_keys_and_values,
    "other sizes": lambda root: original(root, OTHER),
    "other positions": lambda root: config(
        original(root), rope_theta=50000.0, rope_scaling={"type": "linear", "factor": 2.0}
    ),
    "select layer from the front": lambda root: config(original(root), mm_vision_select_layer=1),
    "every token": lambda root: config(original(root), mm_vision_select_feature="cls_patch"),
    "a pad token": original_with_a_pad_token,
}
OFFICIAL = {
    "single bin": again(official, "pytorch_model.bin"),
    "single file": again(official, "model.safetensors"),
    "other model_type": lambda root: config(official(root), model_type="dynamic_llava_llama"),
    "tower outside": official_tower_outside,
    "one predictor": official_one_predictor,
    "other sizes": lambda root: official(root, OTHER),
    "other schedule": lambda root: edit_config(
        official(root, Sizes(layers=6)), "sparse_config", sparse_layer=3, vision_keep_rate=0.45
    ),
}
