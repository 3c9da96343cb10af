"""Pictures that several prompts ask about: through the tower once, with the same answers."""

from __future__ import annotations

import pytest
import torch
from lmms_eval_dynllava.engine import Engine
from lmms_eval_dynllava.pictures import PictureCache
from lmms_eval_dynllava.prompts import GenerationArguments, Prompt, Source

from dynllava.embedded import load_split
from dynllava.models.loading import load_model

QUESTIONS = ("what colour is the circle ?", "how many ?", "is there a star ?")
#: Bytes of a picture's features: tokens, width, float32.
PICTURE = 144 * 128 * 4
#: Whether the cache serves: not a method that looks into the tower or resizes pictures.
METHODS = {"dynamic_llava": True, "sparsevlm": True, "h2o": True, "divprune": True,
           "visionzip": False, "downsample": False}  # fmt: skip


@pytest.fixture(scope="module")
def loaded():
    return load_model("embedded")


@pytest.fixture(scope="module")
def prompts():
    pictures = [item["image"] for item in load_split("test", "attribute", limit=3)]
    return [
        Prompt(Source("task", "test", number), f"USER: <image>\n{question} ASSISTANT:", [picture])
        for number, (question, picture) in enumerate(
            (question, picture) for question in QUESTIONS for picture in pictures
        )
    ]


class Rows:
    """Counts the pictures that a tower is given."""

    def __init__(self, model):
        self.count = 0
        self.handle = model.model.vision_tower.register_forward_pre_hook(self, with_kwargs=True)

    def __call__(self, module, args, kwargs):
        self.count += len(args[0] if args else kwargs["pixel_values"])


def answers(loaded, prompts, limit, rows=2):
    """Return answers, scores, pictures that the tower saw, and the cache."""
    model, processor = loaded
    engine = Engine(model, processor, torch.device("cpu"), picture_cache=limit)
    seen, found = Rows(model), []
    try:
        for start in range(0, len(prompts), rows):
            part = prompts[start : start + rows]
            arguments = GenerationArguments({"max_new_tokens": 4}, [])
            found += engine.generate(part, engine.encode(part), arguments)
        generated = seen.count
        part = prompts[:rows]
        tokens = [engine.continuation_ids(prompt.text, " red") for prompt in part]
        scores = engine.score(part, engine.encode(part), tokens)
    finally:
        seen.handle.remove()
    return found, scores, (generated, seen.count), engine.pictures


@pytest.mark.parametrize(("method", "served"), METHODS.items())
def test_same_answers_from_one_look_at_each_picture(method, served, loaded, prompts):
    loaded[0].set_method(method)
    plain = answers(loaded, prompts, 0)
    cached = answers(loaded, prompts, 2**20)
    # Texts, tokens and costs; log-probabilities to the bit.
    assert cached[0] == plain[0]
    assert cached[1] == plain[1]
    assert plain[2] == (9, 11)
    assert cached[2] == ((3, 3) if served else (9, 11))
    assert cached[3].held == (3 * PICTURE if served else 0)


def test_features_never_exceed_the_memory_given(loaded, prompts):
    """What was used longest ago leaves; a picture that does not fit is not kept."""
    model = loaded[0]
    model.set_method("full")
    pixels = torch.randn(4, 3, 96, 96, generator=torch.Generator().manual_seed(0))
    cache, rows = PictureCache(2.5 * PICTURE), Rows(model)
    try:
        with torch.inference_mode():
            for order, runs in (((0, 1), 2), ((0, 2), 3), ((0,), 3), ((1,), 4), ((0, 1), 4)):
                cache.encoded(model, pixels[list(order)])
                assert rows.count == runs, order
                assert cache.held <= cache.limit
            small = PictureCache(PICTURE - 1)
            twice = small.encoded(model, pixels[[3, 3]])["image"].pooler_output
    finally:
        rows.handle.remove()
    assert rows.count == 5, "one picture twice in a batch"
    assert twice[0].equal(twice[1])
    assert small.held == 0
