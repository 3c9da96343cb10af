"""A tiny stock LLaVA with the embedded tokenizer, and instruction data that fit it."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

WORDS = ["red", "green", "blue", "circle", "square", "star", "ring", "cross", "above", "below"]
TINY = {
    "model": "",
    "predictor": {"d_model": 16, "nhead": 2, "dim_feedforward": 32, "num_layers": 1},
    "sparse_layer": 1,
    "sparsity": {"vision_keep_rate": 0.5, "min_answer_length": 4},
    "data": {"path": "", "template": "plain"},
    "optim": {"learning_rate": 1e-3, "predictor_learning_rate": 1e-2},
    "run": {
        "max_steps": 4,
        "global_batch": 4,
        "device_batch": 2,
        "bf16": False,
        "gradient_checkpointing": False,
        "device": "cpu",
        "workers": 0,
        "save_steps": 2,
    },
}


@pytest.fixture(scope="session")
def tiny_processor():
    from dynllava.embedded.model import build_processor

    processor = build_processor()
    processor.image_processor.size = {"shortest_edge": 16}
    processor.image_processor.crop_size = {"height": 16, "width": 16}
    return processor


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory, tiny_processor):
    """Folder of a stock LLaVA: 3 layers of width 16, 4 image tokens."""
    from transformers import LlavaForConditionalGeneration

    from dynllava.embedded.model import build_config

    config = build_config()
    text, vision = config.text_config, config.vision_config
    text.hidden_size, text.intermediate_size, text.num_hidden_layers = 16, 32, 3
    text.num_attention_heads = text.num_key_value_heads = 2
    text.head_dim = 8
    vision.hidden_size, vision.intermediate_size, vision.num_hidden_layers = 16, 32, 1
    vision.num_attention_heads, vision.image_size, vision.patch_size = 2, 16, 8
    config.image_seq_length = 4
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("tiny")
    LlavaForConditionalGeneration(config).save_pretrained(folder)
    tiny_processor.save_pretrained(folder)
    return folder


def make_records(folder, count, seed=0):
    """Write ``count`` records (every fourth text only) and their images; return the JSON file."""
    rng = np.random.default_rng(seed)
    records = []
    for index in range(count):
        answer = " ".join(rng.choice(WORDS, rng.integers(1, 9)))
        record = {"id": str(index), "conversations": []}
        question = "what is there ?"
        if index % 4 != 3:
            name = f"{index}.png"
            pixels = rng.integers(0, 256, (14, 18, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name)
            record["image"], question = name, f"<image>\n{question}"
        for text in (question, answer, "and above ?", "a red star"):
            human = len(record["conversations"]) % 2 == 0
            turn = {"from": "human" if human else "gpt", "value": text}
            record["conversations"].append(turn)
        records.append(record)
    file = folder / "records.json"
    file.write_text(json.dumps(records))
    return file


@pytest.fixture
def data_file(tmp_path):
    return make_records(tmp_path, 12)


@pytest.fixture
def tiny_config(tmp_path, tiny_folder, data_file):
    """Return a function: overrides (``key=value``) to a configuration file of the tiny model."""
    import yaml

    from dynllava.training.config import read_config

    values = json.loads(json.dumps(TINY))
    values["model"] = str(tiny_folder)
    values["data"] |= {"path": str(data_file), "image_folder": str(data_file.parent)}
    values["run"]["output_dir"] = str(tmp_path / "out")
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(values))

    def make(*overrides):
        return read_config(file, overrides)

    make.file = file
    return make
