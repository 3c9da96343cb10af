"""Rows about checkpoint folders: every file of one, each broken in every way of its kind."""

from __future__ import annotations

import math

from tests.bad_inputs.harness import (
    NESTED,
    Case,
    as_bin,
    config,
    cut,
    embedded,
    folder,
    official,
    several,
    tensors,
    text,
    without,
)

CONVERT = "convert {tmp}/checkpoint {tmp}/out"
LOAD = "show {tmp}/p.png what --pretrained {tmp}/checkpoint"
NORM = "model.norm.weight"


def picture(tmp):
    """Write a small picture."""
    from PIL import Image

    Image.new("RGB", (8, 8), "red").save(tmp / "p.png")


def shown(*edits):
    """Return files of a row that shows a picture with an edited copy of the embedded model."""
    return several(picture, embedded(*edits))


def put(name, value):
    """Return a change that sets one element of a tensor."""

    def change(state):
        state[name].view(-1)[0] = value

    return change


def cast(name, kind):
    """Return a change that gives a tensor another dtype."""

    def change(state):
        import torch

        state[name] = state[name].to(getattr(torch, kind))

    return change


def replace(name, shape):
    """Return a change that gives a tensor another shape, or removes it (None)."""

    def change(state):
        import torch

        if shape is None:
            del state[name]
        else:
            state[name] = torch.zeros(shape)

    return change


def widen(tmp):
    """Store the embedded model in float32, with a weight that float16 cannot hold."""

    def change(state):
        for name in list(state):
            state[name] = state[name].float()
        state[EMBEDDED_NORM][0] = 1e6

    tensors(change)(tmp)


EMBEDDED_NORM = "model.language_model.model.norm.weight"
CONFIG = "checkpoint/config.json"
LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 13476\n"

# What a config.json may hold: (what is wrong, how the file is changed, part of the line).
CONFIGS = [
    ("config.json is missing", without(CONFIG), "no config.json, so not a checkpoint folder"),
    ("config.json is empty", text(CONFIG, ""), "config.json: not valid JSON"),
    ("config.json is torn", cut(CONFIG), "config.json: not valid JSON"),
    ("config.json is not UTF-8", text(CONFIG, b'{"a": "\xff\xfe"}'), "not UTF-8 text"),
    ("config.json is UTF-16", text(CONFIG, '{"a": 1}'.encode("utf-16")), "not UTF-8 text"),
    ("config.json is a list", text(CONFIG, "[1]"), "a JSON object is expected"),
    ("config.json is a number", text(CONFIG, "3"), "a JSON object is expected"),
    ("config.json is null", text(CONFIG, "null"), "a JSON object is expected"),
    ("config.json is nested beyond reason", text(CONFIG, NESTED), "nested too deeply"),
    (
        "config.json is a folder",
        several(without(CONFIG), folder(CONFIG)),
        "no config.json, so not a checkpoint folder",
    ),
    ("config.json is a web page", text(CONFIG, "<html>404</html>"), "not valid JSON"),
    ("config.json is a pointer of git-lfs", text(CONFIG, LFS), "not valid JSON"),
    ("model_type is missing", config(drop="model_type"), "model_type=None; accepted are"),
    ("model_type is another model's", config(model_type="qwen2_vl"), "model_type='qwen2_vl'"),
    ("model_type is a number", config(model_type=7), "model_type=7; accepted are"),
    ("model_type is a list", config(model_type=["llava"]), "model_type=['llava']; accepted are"),
]

# Sizes in a config; the official format has them flat.
SIZES = [
    ("layers are absurdly many", "num_hidden_layers", 1_000_000, "from 1 to 1000"),
    ("layers are none", "num_hidden_layers", 0, "num_hidden_layers=0: accepted is an integer"),
    ("layers are negative", "num_hidden_layers", -2, "num_hidden_layers=-2: accepted"),
    ("layers are a text", "num_hidden_layers", "four", "num_hidden_layers='four': accepted"),
    ("layers are a fraction", "num_hidden_layers", 2.5, "num_hidden_layers=2.5: accepted"),
    ("layers are a truth value", "num_hidden_layers", True, "num_hidden_layers=True: accepted"),
    ("layers are a list", "num_hidden_layers", [4], "num_hidden_layers=[4]: accepted"),
    ("hidden size fits no head", "hidden_size", 63, "hidden_size=63 is no multiple of"),
    ("hidden size is absurd", "hidden_size", 10**12, "hidden_size=1000000000000: accepted"),
    ("heads are none", "num_attention_heads", 0, "num_attention_heads=0: accepted"),
    ("heads are a text", "num_attention_heads", "8", "num_attention_heads='8': accepted"),
    ("vocabulary is negative", "vocab_size", -5, "vocab_size=-5: accepted"),
    ("vocabulary is absurd", "vocab_size", 10**15, "vocab_size=1000000000000000: accepted"),
    ("vocabulary is a text", "vocab_size", "200", "vocab_size='200': accepted"),
    ("feed-forward size is a text", "intermediate_size", "x", "intermediate_size='x': accepted"),
    ("feed-forward size is nothing", "intermediate_size", 0, "intermediate_size=0: accepted"),
    ("positions are negative", "max_position_embeddings", -1, "max_position_embeddings=-1"),
    ("epsilon is a text", "rms_norm_eps", "small", "not a model configuration"),
    ("activation is unknown", "hidden_act", "no_such", "makes no model"),
    ("activation is a number", "hidden_act", 3, "not a model configuration"),
]

OFFICIAL_CONFIGS = [
    ("vocab_size is missing", config(drop="vocab_size"), "vocab_size is missing"),
    ("projector is linear", config(mm_projector_type="linear"), "accepted is 'mlp2x_gelu'"),
    ("projector is missing", config(drop="mm_projector_type"), "mm_projector_type='linear'"),
    ("projector is a number", config(mm_projector_type=2), "mm_projector_type=2; accepted"),
    ("tower is unknown", config(mm_vision_tower="who/knows"), "'who/knows' not found"),
    ("tower is missing", config(drop="mm_vision_tower"), "vision tower '' not found"),
    ("rope scaling is a text", config(rope_scaling="linear"), "rope_scaling"),
    ("rope scaling is unknown", config(rope_scaling={"type": "odd"}), "rope_scaling"),
    ("sparse_config is a list", config(sparse_config=[1]), "sparse_config is no object"),
    ("keep rate is 2", config(sparse_config__vision_keep_rate=2.0), "vision_keep_rate=2.0"),
    ("keep rate is a text", config(sparse_config__vision_keep_rate="a"), "vision_keep_rate='a'"),
    ("predictor width is 0", config(sparse_config__d_model=0), "d_model=0: accepted"),
    ("predictor width fits no head", config(sparse_config__d_model=18), "d_model=18"),
    ("predictor heads are none", config(sparse_config__nhead=0), "nhead=0: accepted"),
    ("predictor blocks are absurd", config(sparse_config__num_layers=10**6), "num_layers=1000000"),
    ("sparse layer is a text", config(sparse_config__sparse_layer="a"), "sparse_layer='a'"),
    ("sparse layer is too deep", config(sparse_config__sparse_layer=99), "sparse_layer=99"),
    ("feature layer is too deep", config(mm_vision_select_layer=-99), "select_layer=-99"),
    ("feature layer is a text", config(mm_vision_select_layer="last"), "select_layer='last'"),
    ("feature choice is unknown", config(mm_vision_select_feature="x"), "select_feature"),
]

TOWER = "tiny_clip_vision_tower/config.json"
TOWERS = [
    ("the tower's config is torn", cut(TOWER), "config.json: not valid JSON"),
    ("the tower's config is a list", text(TOWER, "[]"), "a JSON object is expected"),
    ("the tower has no image size", config(TOWER, drop="image_size"), "image_size is missing"),
    ("the tower has no patch size", config(TOWER, drop="patch_size"), "patch_size is missing"),
    ("the tower's patches are 0", config(TOWER, patch_size=0), "patch_size=0: accepted"),
    ("the image is smaller than a patch", config(TOWER, image_size=7), "smaller than patch_size"),
    ("a patch is larger than the image", config(TOWER, patch_size=512), "inside has patch_size=14"),
    (
        "the tower's layers are absurd",
        config(TOWER, num_hidden_layers=10**6),
        "num_hidden_layers=3",
    ),
    ("the tower's act is unknown", config(TOWER, hidden_act="no_such"), "makes no model"),
]

SAFE = "checkpoint/model.safetensors"
INDEX = SAFE + ".index.json"
INDEX_BIN = "checkpoint/pytorch_model.bin.index.json"
WEIGHTS = [
    ("weights are missing", without(SAFE), "no weights; accepted are", 2),
    ("weights are empty", text(SAFE, ""), "truncated or not a safetensors file", 2),
    ("weights are torn", cut(SAFE), "truncated or not a safetensors file", 2),
    ("weights are a pointer of git-lfs", text(SAFE, LFS), "not a safetensors file", 2),
    ("weights are zeros", text(SAFE, bytes(4096)), "not a safetensors file", 2),
    ("weights are a pickle", text(SAFE, b"\x80\x04K\x01."), "not a safetensors file", 2),
    ("weights are a folder", several(without(SAFE), folder(SAFE)), "no weights; accepted", 2),
    ("a tensor is missing", tensors(replace(NORM, None)), "missing tensor", 2),
    ("a tensor is of another shape", tensors(replace(NORM, (7,))), "has shape (7,)", 2),
    ("a tensor is a scalar", tensors(replace(NORM, ())), "has shape ()", 2),
    ("a tensor too much", tensors(replace("model.layers.77.x", (1,))), "unexpected tensor", 2),
    ("a tensor of another model", tensors(replace("h.0.attn", (1,))), "not part of an official", 2),
    ("a weight is of integers", tensors(cast(NORM, "int64")), "'model.norm.weight' is of int64", 2),
    ("a weight is of truth values", tensors(cast(NORM, "bool")), "is of bool", 2),
    ("a weight is of bytes", tensors(cast(NORM, "uint8")), "quantised checkpoints", 2),
    ("a weight is NaN", tensors(put(NORM, math.nan)), "no finite numbers", 1),
    ("a weight is infinite", tensors(put("lm_head.weight", math.inf)), "no finite numbers", 1),
    ("a weight is minus infinite", tensors(put(NORM, -math.inf)), "no finite numbers", 1),
    ("a .bin is a list", as_bin(lambda s: [1, 2]), "holds a list, tensors by name", 2),
    ("a .bin is one tensor", as_bin(lambda s: s[NORM]), "holds a Tensor", 2),
    ("a .bin holds texts", as_bin(lambda s: {**s, "note": "x"}), "'note' is a str", 2),
    ("a .bin holds numbers", as_bin(lambda s: {**s, "step": 3}), "'step' is a int", 2),
    ("a .bin is nested", as_bin(lambda s: {"state_dict": s}), "'state_dict' is a dict", 2),
    ("a .bin has numbers as names", as_bin(lambda s: {7: s[NORM]}), "7 is a Tensor", 2),
    ("a .bin holds code", as_bin(lambda s: {"f": print}), "pickled objects", 2),
    ("a .bin is torn", several(as_bin(dict), cut("checkpoint/pytorch_model.bin")), "be read", 2),
    (
        "a .bin is text",
        several(without(SAFE), text("checkpoint/pytorch_model.bin", "hello")),
        "pytorch_model.bin",
        2,
    ),
    (
        "a .bin is empty",
        several(without(SAFE), text("checkpoint/pytorch_model.bin", "")),
        "pytorch_model.bin: cannot be read",
        2,
    ),
    ("the index is torn", text(INDEX, '{"weight_map'), "index.json: not valid JSON", 2),
    ("the index is a list", text(INDEX, "[]"), "a JSON object is expected", 2),
    ("the index is not UTF-8", text(INDEX, b"\xff\xff"), "not UTF-8 text", 2),
    ("the index has no map", text(INDEX, "{}"), "no object 'weight_map'", 2),
    ("the index's map is empty", text(INDEX, '{"weight_map": {}}'), "no object 'weight_map'", 2),
    ("the index's map is a list", text(INDEX, '{"weight_map": ["a"]}'), "no object 'weight_", 2),
    ("the index names no file", text(INDEX, '{"weight_map": {"a": 3}}'), "lies in 3", 2),
    (
        "the index names a file elsewhere",
        text(INDEX, '{"weight_map": {"a": "../../etc/passwd"}}'),
        "a file name is expected",
        2,
    ),
    (
        "the index names an absolute path",
        text(INDEX, '{"weight_map": {"a": "/etc/passwd"}}'),
        "a file name is expected",
        2,
    ),
    (
        "a shard is missing",
        text(INDEX, '{"weight_map": {"a": "x.safetensors"}}'),
        "x.safetensors: named by the index but missing",
        2,
    ),
    (
        "a .bin shard is missing",
        several(without(SAFE), text(INDEX_BIN, '{"weight_map": {"a": "x.bin"}}')),
        "x.bin: named by the index but missing",
        2,
    ),
    ("the index is nested beyond reason", text(INDEX, NESTED), "nested too deeply", 2),
]
GENERATION = "checkpoint/generation_config.json"

cases = [Case(CONVERT, wrong, line, 2, official(edit)) for wrong, edit, line in CONFIGS]
cases += [
    Case(CONVERT, f"official: {wrong}", line, 2, official(config(**{key: value})))
    for wrong, key, value, line in SIZES
]
cases += [Case(CONVERT, wrong, line, 2, official(edit)) for wrong, edit, line in OFFICIAL_CONFIGS]
cases += [Case(CONVERT, wrong, line, 2, official(edit)) for wrong, edit, line in TOWERS]
cases += [Case(CONVERT, wrong, line, code, official(edit)) for wrong, edit, line, code in WEIGHTS]
cases += [
    Case(CONVERT, "generation config is torn", "not valid JSON", 2, official(cut(GENERATION, 0.3))),
    Case(CONVERT, "generation config is a list", "object is expected", 2,
         official(text(GENERATION, "[]"))),
    Case(CONVERT, "the target holds files", "exists and is not empty", 2,
         official(text("out/mine.txt", "keep"))),
    Case(CONVERT, "the target is a file", "is a file, a folder is expected", 2,
         official(text("out", "keep"))),
    Case(CONVERT + "/a/b", "the target's parent is a file", "is a file, a folder is", 2,
         official(text("out", "keep"))),
    Case("convert {tmp}/checkpoint /proc/out", "the target cannot be written", "cannot be", 1,
         official()),
    Case(CONVERT, "the disk is full", "cannot write", 1, official(), full=20_000),
    Case(CONVERT + "/deep/er", "the disk is full, new parents", "cannot write", 1, official(),
         full=20_000),
    Case("convert {tmp}/none {tmp}/out", "the source does not exist", "no such folder"),
    Case("convert {tmp}/p.png {tmp}/out", "the source is a file", "no such folder", 2, picture),
    Case("convert {tmp}/checkpoint", "no target is given", "arguments are required: target"),
    Case(CONVERT + " --to onnx", "the format is unknown", "invalid choice: 'onnx'"),
    Case(CONVERT + " --to official", "it is official already", "accepted is 'dynamic_llava'", 2,
         official()),
    Case(CONVERT, "it is Hugging Face already", "accepted are llava_llama", 2, embedded()),
    Case(CONVERT + " --to official", "Hugging Face: a weight is NaN", "no finite numbers", 1,
         embedded(tensors(put("image_predictor.output_mlp.4.weight", math.nan)))),
]  # fmt: skip

HF_TEXT = [
    (f"Hugging Face: {wrong}", config(**{f"text_config__{key}": value}), line)
    for wrong, key, value, line in SIZES
]
HF_CONFIGS = [
    ("text_config is a list", config(text_config=[1]), "text_config is no object"),
    ("text_config is a text", config(text_config="llama"), "text_config is no object"),
    ("vision_config is a number", config(vision_config=3), "vision_config is no object"),
    ("vision layers are absurd", config(vision_config__num_hidden_layers=10**6), "from 1 to 1000"),
    ("patch size is 0", config(vision_config__patch_size=0), "patch_size=0: accepted"),
    ("vision act is unknown", config(vision_config__hidden_act="no_such"), "makes no model"),
    ("text model is unknown", config(text_config__model_type="no_such"), "no_such"),
    ("placeholder is a text", config(image_token_index="img"), "not a model configuration"),
    ("sizes do not fit the weights", config(text_config__intermediate_size=64), "has shape"),
    ("more layers than weights", config(text_config__num_hidden_layers=7), "missing tensor"),
    ("fewer layers than weights", config(text_config__num_hidden_layers=5), "unexpected tensor"),
]
FILES = [
    ("tokenizer.json is torn", cut("checkpoint/tokenizer.json"), "tokenizer or processor cannot"),
    ("tokenizer.json is empty", text("checkpoint/tokenizer.json", ""), "tokenizer or processor"),
    ("tokenizer.json is a list", text("checkpoint/tokenizer.json", "[]"), "tokenizer or processor"),
    (
        "tokenizer.json is not UTF-8",
        text("checkpoint/tokenizer.json", b"\xff\xfe\xff"),
        "tokenizer or processor",
    ),
    (
        "tokenizer.json is a pointer of git-lfs",
        text("checkpoint/tokenizer.json", LFS),
        "tokenizer or processor",
    ),
    (
        "tokenizer_config.json is torn",
        cut("checkpoint/tokenizer_config.json"),
        "tokenizer or processor",
    ),
    (
        "tokenizer_config.json is a list",
        text("checkpoint/tokenizer_config.json", "[]"),
        "tokenizer or processor",
    ),
    (
        "processor_config.json is torn",
        cut("checkpoint/processor_config.json"),
        "processor_config.json: not valid JSON",
    ),
    (
        "processor_config.json is a list",
        text("checkpoint/processor_config.json", "[1]"),
        "processor_config.json: a JSON object is expected",
    ),
    ("generation_config.json is torn", cut(GENERATION), "generation_config.json: cannot be read"),
    (
        "generation_config.json is a list",
        text(GENERATION, "[]"),
        "generation_config.json: cannot be read",
    ),
    (
        "generation_config.json is not UTF-8",
        text(GENERATION, b"\xff\xfe"),
        "generation_config.json: cannot be read",
    ),
]
cases += [
    Case(LOAD, wrong, line, 2, shown(edit)) for wrong, edit, line in (*HF_TEXT, *HF_CONFIGS, *FILES)
]
cases += [
    Case(LOAD, "loaded: config.json is not UTF-8", "not UTF-8", 2, shown(text(CONFIG, b"\xff"))),
    Case(LOAD, "the tokenizer is missing", "has no tokenizer", 1,
         shown(without("checkpoint/tokenizer.json"))),
    Case(LOAD, "loaded: weights are torn", "truncated or not", 2, shown(cut(SAFE))),
    Case(LOAD, "loaded: a weight is NaN", "no finite numbers", 1,
         shown(tensors(put(EMBEDDED_NORM, math.nan)))),
    Case(LOAD + " --dtype float16", "a weight overflows float16", "numbers in float16", 1,
         shown(widen)),
    Case(LOAD, "loaded: the index names a file elsewhere", "a file name is expected", 2,
         shown(text(INDEX, '{"weight_map": {"a": "../x"}}'))),
]  # fmt: skip
