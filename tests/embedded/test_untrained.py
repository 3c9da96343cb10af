"""What the shipped checkpoints never learned, and the list that says so."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from dynllava.embedded import generate_scene
from dynllava.embedded.alignment import pixel_batch
from dynllava.embedded.untrained import CLASS_TOKEN, untrained
from dynllava.methods import create, names
from dynllava.models.hub import EMBEDDED
from dynllava.models.loading import load_model, resolve
from dynllava.records import hash_files

SCENES = [generate_scene(f"test/attribute/{index}") for index in range(100)]


def found(model, processor, method):
    """Share of all object patches that are among the 48 of 144 that a method keeps."""
    model.set_method(method)
    words = processor.tokenizer("USER: <image>\nwhat is there ? ASSISTANT:").input_ids
    image = model.config.image_token_id
    ids = [token for word in words for token in ([word] * 144 if word == image else [word])]
    inputs = torch.tensor([ids]).expand(len(SCENES), -1)
    with torch.no_grad():
        model(
            input_ids=inputs,
            attention_mask=torch.ones_like(inputs),
            pixel_values=pixel_batch(SCENES),
            logits_to_keep=1,
        )
    kept = torch.tensor(model.last_report.kept_image_indices)
    assert kept.shape == (len(SCENES), 48)
    shown = torch.tensor(np.stack([scene.patches.reshape(-1) >= 0 for scene in SCENES]))
    return float(shown.gather(1, kept).sum() / shown.sum())


def test_the_class_token_finds_no_more_than_chance_and_the_trained_predictor_nearly_all():
    model, processor = load_model("embedded", dtype="float32", device="cpu")
    chance = 48 / 144
    assert abs(found(model, processor, create("fastervlm", keep=48)) - chance) < 0.06
    assert abs(found(model, processor, create("uniform", image_keep_rate=chance)) - chance) < 0.06
    trained = create("dynamic_llava", vision_keep_rate=chance, output_keep_rate=0.5)
    assert found(model, processor, trained) > 0.9


@pytest.mark.parametrize("name", EMBEDDED)
def test_the_list_is_about_the_checkpoints_that_are_shipped(name):
    """After a retraining somebody measures this anew, and says so in the list."""
    assert untrained(hash_files(Path(resolve(name)))) == {CLASS_TOKEN}
    assert untrained("sha256:another") == untrained(None) == frozenset()


def test_the_methods_that_ask_the_class_token_are_known_by_their_looks():
    asking = {name for name in names() if create(name).plan(6).looks_at_class_token}
    assert {"fastervlm", "visionzip", "vispruner", "prumerge", "hired"} <= asking
    assert not asking & {"divprune", "pyramiddrop", "fastv", "dynamic_llava", "full"}
