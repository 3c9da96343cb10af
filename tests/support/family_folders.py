"""Tiny but complete folders of every family beside LLaVA-1.5, laid out as they are published.

Configuration keys, file lists, special tokens and chat templates are those of the published
checkpoints; sizes are small, weights random, and the tokenizer is trained here.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import transformers
from public_tokenizers import TEXT as CORPUS
from public_tokenizers import dump, sentencepiece_model, write_llava_hf
from tiny_families import FAMILIES, TinyFamily
from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers, processors, trainers
from tokenizers.models import BPE

CLIP_MEAN = [0.48145466, 0.4578275, 0.40821073]
CLIP_STD = [0.26862954, 0.26130258, 0.27577711]
HALF = [0.5, 0.5, 0.5]
ROWS = [f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7)]

CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' }}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}"
    "{{ 'IMAGE\\n' }}{% endfor %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}"
    "{{ content['text'] }}{% endfor %}"
    "{{ '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
QWEN = (
    "{% for message in messages %}"
    "SYSTEM<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}<|im_end|>\n"
    "{% else %}{% for content in message['content'] %}"
    "{% if content['type'] == 'image' or 'image' in content %}"
    "<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif 'text' in content %}{{ content['text'] }}{% endif %}{% endfor %}<|im_end|>\n"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
QWEN_SYSTEM = (
    "{% if loop.first and message['role'] != 'system' %}<|im_start|>system\n"
    "You are a helpful assistant.<|im_end|>\n{% endif %}"
)
IDEFICS = (
    "START{% for message in messages %}{{ message['role'] | capitalize }}"
    "{% if message['content'][0]['type'] == 'image' %}{{ ':' }}{% else %}{{ ': ' }}{% endif %}"
    "{% for line in message['content'] %}"
    "{% if line['type'] == 'text' %}{{ line['text'] }}"
    "{% elif line['type'] == 'image' %}{{ '<image>' }}{% endif %}{% endfor %}"
    "<end_of_utterance>\n{% endfor %}{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)
MISTRAL = (
    "{% for message in messages %}{% if message['role'] == 'user' %}{{ '[INST] ' }}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}"
    "{{ '<image>\\n' }}{% endfor %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}"
    "{{ content['text'] }}{% endfor %}{{ ' [/INST]' }}"
    "{% else %}{{ ' ' }}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}"
    "{{ content['text'] }}{% endfor %}{{ '</s>' }}{% endif %}{% endfor %}"
)
MISTRAL3 = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}{{ '[INST]' }}"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}{{ '[IMG]' }}"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}{{ '[/INST]' }}"
    "{% else %}{% for part in message['content'] %}{{ part['text'] }}{% endfor %}"
    "{{ eos_token }}{% endif %}{% endfor %}"
)
QWEN_TOKENS = [
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>",
    "<|box_start|>", "<|box_end|>", "<|quad_start|>", "<|quad_end|>", "<|vision_start|>",
    "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>",
]  # fmt: skip
INTERNVL_EXTRA = {
    "start_image_token": "<img>",
    "end_image_token": "</img>",
    "context_image_token": "<IMG_CONTEXT>",
    "video_token": "<video>",
}


def byte_level(folder: Path, special: list[str], first: bool, names: dict, **config) -> dict:
    """Write a byte-level BPE tokenizer; return {token: id} of ``special``.

    ``first``: special tokens have the lowest ids (Mistral), else the highest.
    """
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=340 + (len(special) if first else 0),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        special_tokens=special if first else [],
        show_progress=False,
    )
    tokenizer.train_from_iterator([*CORPUS.splitlines()] * 4, trainer)
    tokenizer.add_special_tokens([AddedToken(name, normalized=False) for name in special])
    ids = {name: tokenizer.token_to_id(name) for name in special}
    if config.pop("adds_bos", False):
        bos = names["bos_token"]
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", pair=f"{bos} $A {bos}:1 $B:1", special_tokens=[(bos, ids[bos])]
        )
    tokenizer.save(str(folder / "tokenizer.json"))
    flags = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False}
    values = {
        "added_tokens_decoder": {
            str(number): {"content": name, **flags, "special": True} for name, number in ids.items()
        },
        "clean_up_tokenization_spaces": False,
        "model_max_length": 4096,
        **names,
        **config,
    }
    dump(folder / "tokenizer_config.json", values)
    return ids


def _qwen_tokenizer(folder: Path) -> dict[str, int]:
    names = {"bos_token": None, "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
    return byte_level(
        folder, QWEN_TOKENS, False, names, tokenizer_class="Qwen2Tokenizer", add_bos_token=False,
        add_prefix_space=False, errors="replace", split_special_tokens=False, unk_token=None,
    )  # fmt: skip


def _rows(tokens: int) -> int:
    return (tokens + 63) // 64 * 64


def _model(name: str, ids: dict, folder: Path, seed: int, **changes) -> None:
    """Save a random model whose image token and vocabulary are those of the tokenizer.

    ``ids`` holds ``image``, ``eos``, ``pad`` and perhaps ``video``, ``start``, ``end``; words are
    the tokens from ``words`` to before ``first``, ``size`` is the tokenizer's.
    """
    family = FAMILIES[name]

    def config():
        made = family.config()
        made.text_config.vocab_size = _rows(ids["size"])
        made.text_config.eos_token_id = ids["eos"]
        made.text_config.pad_token_id = ids["pad"]
        made.text_config.bos_token_id = ids.get("bos")
        for key in ("image_token_id", "image_token_index"):
            if key in made.to_dict():
                setattr(made, key, ids["image"])
        for key, value in {
            "video_token_id": ids.get("video"),
            "video_token_index": ids.get("video"),
            "vision_start_token_id": ids.get("start"),
            "vision_end_token_id": ids.get("end"),
        }.items():
            if value is not None and key in made.to_dict():
                setattr(made, key, value)
        for key, value in changes.items():
            setattr(made, key, value)
        return made

    model = dataclasses.replace(family, config=config).build(seed)
    with torch.no_grad():
        # Answers shall be words: rows without a token, and special ones, never win.
        head = model.get_output_embeddings().weight
        head[ids["first"] :] = 0
        head[: ids.get("words", 0)] = 0
    generation = model.generation_config
    generation.eos_token_id, generation.pad_token_id = ids["eos"], ids["pad"]
    model.save_pretrained(folder)
    values = json.loads((folder / "config.json").read_text())
    if name in ("qwen2_vl", "qwen2_5_vl"):
        # As published: the text model's fields at the top.
        text = values.pop("text_config")
        rope = text.pop("rope_parameters")
        text["rope_theta"] = rope["rope_theta"]
        text["rope_scaling"] = {"type": "mrope", "mrope_section": rope["mrope_section"]}
        for key in ("model_type", "layer_types"):
            text.pop(key, None)
        values = {**text, **values}
        if name == "qwen2_5_vl":
            values["vision_config"]["in_chans"] = values["vision_config"].pop("in_channels", 3)
    dump(folder / "config.json", values)


def _tiles(kind: str, processor: str, **values) -> dict:
    return {
        "do_convert_rgb": True,
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "image_processor_type": kind,
        "processor_class": processor,
        "rescale_factor": 1 / 255,
        **values,
    }


def llava_next(folder: Path, seed: int = 2) -> Path:
    """llava-hf/llava-v1.6-mistral-7b-hf."""
    folder.mkdir(parents=True)
    model = sentencepiece_model()
    write_llava_hf(folder, model)
    added = json.loads((folder / "added_tokens.json").read_text())
    ids = {"image": added["<image>"], "pad": added["<pad>"], "bos": 1, "eos": 2}
    _model(
        "llava_next", {**ids, "size": added["<pad>"] + 1, "first": added["<image>"]}, folder, seed
    )
    pinpoints = FAMILIES["llava_next"].config().image_grid_pinpoints
    image = _tiles(
        "LlavaNextImageProcessor", "LlavaNextProcessor", crop_size={"height": 32, "width": 32},
        do_center_crop=True, do_pad=True, image_grid_pinpoints=pinpoints, image_mean=CLIP_MEAN,
        image_std=CLIP_STD, resample=3, size={"shortest_edge": 32},
    )  # fmt: skip
    dump(folder / "preprocessor_config.json", image)
    dump(
        folder / "processor_config.json",
        {
            "image_token": "<image>",
            "num_additional_image_tokens": 1,
            "patch_size": 8,
            "processor_class": "LlavaNextProcessor",
            "vision_feature_select_strategy": "default",
        },
    )
    dump(folder / "chat_template.json", {"chat_template": MISTRAL})
    return folder


def llava_onevision(folder: Path, seed: int = 0) -> Path:
    """llava-hf/llava-onevision-qwen2-7b-ov-hf."""
    folder.mkdir(parents=True)
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<image>", "<video>"]
    names = {"bos_token": None, "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
    own = byte_level(
        folder, special, False, names, tokenizer_class="Qwen2Tokenizer", add_bos_token=False,
        image_token="<image>", video_token="<video>", padding_side="left",
    )  # fmt: skip
    ids = {"image": own["<image>"], "video": own["<video>"], "pad": own["<|endoftext|>"]}
    ids |= {"eos": own["<|im_end|>"], "size": max(own.values()) + 1, "first": min(own.values())}
    _model("llava_onevision", ids, folder, seed)
    pinpoints = FAMILIES["llava_onevision"].config().image_grid_pinpoints
    image = _tiles(
        "LlavaOnevisionImageProcessor", "LlavaOnevisionProcessor", do_pad=True,
        image_grid_pinpoints=pinpoints, image_mean=HALF, image_std=HALF, resample=3,
        size={"height": 32, "width": 32},
    )  # fmt: skip
    dump(folder / "preprocessor_config.json", image)
    dump(
        folder / "processor_config.json",
        {
            "image_token": "<image>",
            "num_image_tokens": 16,
            "processor_class": "LlavaOnevisionProcessor",
            "video_token": "<video>",
            "vision_aspect_ratio": "anyres_max_4",
            "vision_feature_select_strategy": "full",
        },
    )
    dump(folder / "chat_template.json", {"chat_template": CHATML.replace("IMAGE", "<image>")})
    return folder


def _qwen(name: str, folder: Path, seed: int) -> Path:
    folder.mkdir(parents=True)
    own = _qwen_tokenizer(folder)
    ids = {
        "image": own["<|image_pad|>"],
        "video": own["<|video_pad|>"],
        "start": own["<|vision_start|>"],
        "end": own["<|vision_end|>"],
        "eos": own["<|im_end|>"],
        "pad": own["<|endoftext|>"],
        "bos": own["<|endoftext|>"],
        "size": max(own.values()) + 1,
        "first": min(own.values()),
    }
    _model(name, ids, folder, seed)
    three = name == "qwen3_vl"
    mean, std = (HALF, HALF) if three else (CLIP_MEAN, CLIP_STD)
    sides = (
        {"size": {"shortest_edge": 1024, "longest_edge": 16384}}
        if three
        else {"min_pixels": 1024, "max_pixels": 16384}
    )
    kind = "Qwen2VLImageProcessorFast" if three else "Qwen2VLImageProcessor"
    classes = {
        "qwen2_vl": "Qwen2VLProcessor",
        "qwen2_5_vl": "Qwen2_5_VLProcessor",
        "qwen3_vl": "Qwen3VLProcessor",
    }
    image = {
        "image_mean": mean,
        "image_processor_type": kind,
        "image_std": std,
        "merge_size": 2,
        "patch_size": 8,
        "processor_class": classes[name],
        "temporal_patch_size": 2,
        **sides,
    }
    dump(folder / "preprocessor_config.json", image)
    if three:
        video = {**image, "video_processor_type": "Qwen3VLVideoProcessor"}
        dump(folder / "video_preprocessor_config.json", video)
    template = QWEN.replace("SYSTEM", "" if three else QWEN_SYSTEM)
    dump(folder / "chat_template.json", {"chat_template": template})
    return folder


def qwen2_vl(folder: Path, seed: int = 0) -> Path:
    """Qwen/Qwen2-VL-7B-Instruct."""
    return _qwen("qwen2_vl", folder, seed)


def qwen2_5_vl(folder: Path, seed: int = 0) -> Path:
    """Qwen/Qwen2.5-VL-7B-Instruct."""
    return _qwen("qwen2_5_vl", folder, seed)


def qwen3_vl(folder: Path, seed: int = 0) -> Path:
    """Qwen/Qwen3-VL-8B-Instruct."""
    return _qwen("qwen3_vl", folder, seed)


def internvl(folder: Path, seed: int = 0, written: str = "<IMG_CONTEXT>") -> Path:
    """OpenGVLab/InternVL3-8B-hf; templates write ``<IMG_CONTEXT>`` or, others, ``<image>``."""
    folder.mkdir(parents=True)
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *INTERNVL_EXTRA.values()]
    names = {"bos_token": None, "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
    own = byte_level(
        folder, special, False, names, tokenizer_class="Qwen2Tokenizer", add_bos_token=False,
        extra_special_tokens=INTERNVL_EXTRA, **INTERNVL_EXTRA,
    )  # fmt: skip
    ids = {"image": own["<IMG_CONTEXT>"], "eos": own["<|im_end|>"], "pad": own["<|endoftext|>"]}
    _model(
        "internvl", {**ids, "size": max(own.values()) + 1, "first": min(own.values())}, folder, seed
    )
    image = _tiles(
        "GotOcr2ImageProcessorFast", "InternVLProcessor", crop_to_patches=False, max_patches=4,
        min_patches=1, image_mean=[0.485, 0.456, 0.406], image_std=[0.229, 0.224, 0.225],
        resample=3, size={"height": 32, "width": 32},
    )  # fmt: skip
    dump(folder / "preprocessor_config.json", image)
    dump(
        folder / "processor_config.json",
        {"image_seq_length": 4, "processor_class": "InternVLProcessor"},
    )
    (folder / "chat_template.jinja").write_text(CHATML.replace("IMAGE", written))
    return folder


def _idefics(name: str, folder: Path, seed: int) -> Path:
    folder.mkdir(parents=True)
    smol = name == "smolvlm"
    bos = "<|im_start|>" if smol else "<|begin_of_text|>"
    pad = "<|im_end|>" if smol else "<|end_of_text|>"
    marks = ["<fake_token_around_image>", "<image>", "<end_of_utterance>"]
    special = [bos, pad, "<global-img>", *ROWS, *marks]
    names = {"bos_token": bos, "eos_token": "<end_of_utterance>", "pad_token": pad}
    more = {
        "fake_image_token": "<fake_token_around_image>",
        "image_token": "<image>",
        "global_image_token": "<global-img>",
        "end_of_utterance_token": "<end_of_utterance>",
    }
    more = {"extra_special_tokens": more, **more} if smol else {}
    own = byte_level(
        folder, special, False, names, tokenizer_class="PreTrainedTokenizerFast",
        adds_bos=not smol, truncation_side="left", **more,
    )  # fmt: skip
    ids = {"image": own["<image>"], "eos": own["<end_of_utterance>"], "pad": own[pad]}
    ids |= {"bos": own[bos], "size": max(own.values()) + 1, "first": min(own.values())}
    _model(name, ids, folder, seed, pad_token_id=own[pad])
    kind = "SmolVLM" if smol else "Idefics3"
    image = _tiles(
        f"{kind}ImageProcessor", f"{kind}Processor", do_image_splitting=True, do_pad=True,
        image_mean=HALF, image_std=HALF, max_image_size={"longest_edge": 32}, resample=1,
        size={"longest_edge": 64},
    )  # fmt: skip
    dump(folder / "preprocessor_config.json", image)
    values = {"image_seq_len": 4, "processor_class": f"{kind}Processor"}
    dump(folder / "processor_config.json", values)
    start = bos if smol else "<|begin_of_text|>"
    dump(folder / "chat_template.json", {"chat_template": IDEFICS.replace("START", start)})
    return folder


def smolvlm(folder: Path, seed: int = 0) -> Path:
    """HuggingFaceTB/SmolVLM2-500M-Video-Instruct."""
    return _idefics("smolvlm", folder, seed)


def idefics3(folder: Path, seed: int = 0) -> Path:
    """HuggingFaceM4/Idefics3-8B-Llama3."""
    return _idefics("idefics3", folder, seed)


def mistral3(folder: Path, seed: int = 1) -> Path:
    """mistralai/Mistral-Small-3.1-24B-Instruct-2503."""
    folder.mkdir(parents=True)
    special = [
        "<unk>", "<s>", "</s>", "[INST]", "[/INST]", "[AVAILABLE_TOOLS]", "[IMG]", "<pad>",
        "[IMG_BREAK]", "[IMG_END]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]",
    ]  # fmt: skip
    names = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    own = byte_level(
        folder, special, True, names, tokenizer_class="LlamaTokenizerFast", adds_bos=True,
        processor_class="PixtralProcessor",
    )  # fmt: skip
    rows = 340 + len(special)
    ids = {"image": own["[IMG]"], "eos": own["</s>"], "pad": own["<pad>"], "bos": own["<s>"]}
    _model("mistral3", {**ids, "size": rows, "first": rows, "words": len(special)}, folder, seed)
    image = _tiles(
        "PixtralImageProcessorFast", "PixtralProcessor", image_mean=CLIP_MEAN, image_std=CLIP_STD,
        patch_size=8, resample=3, size={"longest_edge": 64},
    )  # fmt: skip
    dump(folder / "preprocessor_config.json", image)
    dump(
        folder / "processor_config.json",
        {
            "image_break_token": "[IMG_BREAK]",
            "image_end_token": "[IMG_END]",
            "image_token": "[IMG]",
            "patch_size": 8,
            "processor_class": "PixtralProcessor",
            "spatial_merge_size": 2,
        },
    )
    dump(folder / "chat_template.json", {"chat_template": MISTRAL3})
    return folder


BUILDERS = {
    builder.__name__: builder
    for builder in (
        llava_next, llava_onevision, qwen2_vl, qwen2_5_vl, qwen3_vl, internvl, smolvlm, idefics3,
        mistral3,
    )
}  # fmt: skip

__all__ = ["BUILDERS", "TinyFamily"]


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence transformers' warnings and bars, which these folders cause by the dozen."""
    level = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    yield
    transformers.logging.set_verbosity(level)


def made_once(root: Path) -> Callable[[str], Path]:
    """Return a function that gives a family's folder under ``root``, built when first asked for."""
    return functools.cache(lambda name: BUILDERS[name](root / name))
