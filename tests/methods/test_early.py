"""Cuts before layer 0: batches, the stock model, decoding, declared counts, the tower's looks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from tiny import batch, pixels, prompts, stock_model, tiny_model

from dynllava import wrap
from dynllava.engine.rows import CLASS_TOKEN, GROUP, Rows
from dynllava.methods.base import Method
from dynllava.plan import Count, Cut, Nothing, Plan, PromptShape, Tower

LOOK = Tower("class_row")


@dataclass(frozen=True)
class ByClass(Method):
    name: ClassVar[str] = "by_class"
    keep: int = 5
    stage: str = "features"
    positions: str = "compact"

    def plan(self, layers):
        look = LOOK if self.stage == "features" else Nothing()
        keep = Count(self.keep)
        return Plan((Cut(0, keep, by=look, stage=self.stage, positions=self.positions),))

    def score(self, view):
        if self.stage == "features":
            return view.tower[LOOK].mean(0)
        return view.features.float().norm(dim=-1)


@dataclass(frozen=True)
class Merged(Method):
    """The class token, three patches and the mean of the rest."""

    name: ClassVar[str] = "merged"

    def plan(self, layers):
        return Plan((Cut(0, Count(5), by=LOOK, stage="features", positions="compact"),))

    def rows(self, view):
        mean = view.features[3:].mean(0)
        features = torch.cat([view.class_token[None], view.features[:3], mean[None]])
        return Rows(features, torch.tensor([CLASS_TOKEN, 0, 1, 2, GROUP]))


METHODS = [
    ByClass(),
    ByClass(stage="embedded"),
    ByClass(stage="embedded", positions="original"),
    ByClass(positions="original"),
    Merged(),
]


@pytest.mark.parametrize("method", METHODS, ids=str)
def test_a_batch_equals_its_rows_cached_as_uncached_and_as_declared(method):
    model = tiny_model(kv_heads=2)
    model.set_method(method)
    ids, images = prompts(), pixels()
    settings = {"max_new_tokens": 5, "do_sample": False}
    together = model.generate(**batch(ids, images), **settings)
    tokens, lengths = model.last_report.layer_tokens, model.last_report.kv_lengths
    for row, (one, image) in enumerate(zip(ids, images, strict=True)):
        inputs = batch([one], [image])
        alone = model.generate(**inputs, **settings)
        assert together[row, -5:].tolist() == alone[0, -5:].tolist()
        assert model.generate(**inputs, use_cache=False, **settings).tolist() == alone.tolist()
        count = int((one == 99).sum())
        schedule = method.schedule(PromptShape(2, count, len(one) - count - 2), 5)
        assert [layer[row] for layer in tokens] == list(schedule.prefill_rows)
        assert [layer[row] for layer in lengths] == schedule.kv_lengths(4)


@pytest.mark.parametrize("method", METHODS[:4], ids=str)
def test_keeping_every_row_is_the_stock_model(method):
    stock = stock_model(kv_heads=2)
    wrapped = wrap(stock, ByClass(16, method.stage, method.positions))
    inputs = batch(prompts(), pixels())
    with torch.no_grad():
        expected, ours = stock(**inputs).logits, wrapped(**inputs).logits
    real = inputs["attention_mask"].bool()
    torch.testing.assert_close(ours[real], expected[real], atol=2e-5, rtol=0)


def test_the_class_row_is_the_towers_own():
    model = tiny_model(kv_heads=2)
    model.set_method(ByClass())
    model.model.vision_tower.set_attn_implementation("eager")
    with torch.no_grad():
        model(**batch(prompts()[:1], pixels()[:1]))
        out = model.model.vision_tower(pixels()[0][None], output_attentions=True)
    layers = len(out.attentions)
    producing = model.config.vision_feature_layer + layers
    scores = out.attentions[producing][0, :, 0, 1:].mean(0)
    expected = sorted(scores.topk(5).indices.tolist())
    assert model.last_report.kept_image_indices == [expected]
