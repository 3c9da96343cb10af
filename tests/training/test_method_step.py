"""Training under a method that selects: what is chosen is known before the answer."""

from __future__ import annotations

import pytest
import tiny
import torch

from dynllava.training.step import method_step


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("fastv", {"k": 2, "keep": 4}),
        ("sparsevlm", {"pruning_layers": "0/2", "budgets": "8/4"}),
        ("random", {"image_keep_rate": 0.3}),
    ],
)
def test_kept_tokens_and_logits_before_the_answer_do_not_depend_on_it(name, parameters):
    model = tiny.tiny_model(kv_heads=2).train()
    model.set_method(name, **parameters)
    ids, images = tiny.prompts(seed=1), tiny.pixels(seed=1)
    answers = [3, 6, 1, 4]
    seen = []
    for seed in range(4):
        generator = torch.Generator().manual_seed(seed)
        rows = [torch.cat([one, torch.randint(3, 98, (count,), generator=generator)])
                for one, count in zip(ids, answers, strict=True)]  # fmt: skip
        inputs = tiny.batch(rows, images, "right")
        labels = torch.full_like(inputs["input_ids"], -100)
        for row, (one, count) in enumerate(zip(ids, answers, strict=True)):
            labels[row, len(one) : len(one) + count] = rows[row][-count:]
        result = method_step(model, {**inputs, "labels": labels, "sample_ids": torch.arange(4) + 5})
        assert torch.isfinite(result.loss)
        # The last prompt token predicts the answer's first one: it is before the answer too.
        before = [result.logits[row, : len(one)].detach() for row, one in enumerate(ids)]
        seen.append((model.last_report.kept_image_indices, before))
    for indices, before in seen[1:]:
        assert indices == seen[0][0]
        for one, other in zip(before, seen[0][1], strict=True):
            torch.testing.assert_close(one, other, atol=2e-5, rtol=0)
