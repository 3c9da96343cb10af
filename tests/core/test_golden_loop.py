"""The plain sparse loop of the tests repeats the recorded official runs, decision by decision.

Answers of the plugin are compared with ``stock_answers.SparseLoop``, which is written from the
paper; here the loop itself is held against what the official code did (tests/data/golden).
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import stock_answers
import torch
from safetensors.torch import load_file

GOLDEN = Path(__file__).parents[1] / "data" / "golden" / "dynamic_llava"
CASES = {case["name"]: case for case in json.loads((GOLDEN / "cases.json").read_text())["cases"]}
#: As the golden README: logits move by rounding, decisions and lengths do not.
CLOSE = {"atol": 1e-4, "rtol": 0.0}


@pytest.fixture(scope="module")
def loop():
    return stock_answers.SparseLoop(GOLDEN / "checkpoint", GOLDEN / "tiny_clip_vision_tower")


def run(loop, name, tokens, fed=None):
    """Run a case on the loop and return its recorded tensors."""
    recorded = load_file(GOLDEN / f"{name}.safetensors")
    rate = CASES[name]["config_overrides"]["vision_keep_rate"]
    ids = recorded["input_ids"][0].tolist()
    fed = recorded[fed][0].tolist() if fed else None
    loop.run(ids, recorded.get("pixel_values"), tokens, rate, fed)
    return recorded


def test_the_recorded_greedy_run_token_by_token_and_decision_by_decision(loop):
    recorded = run(loop, "generate_greedy", 20)
    assert loop.found == recorded["tokens"][0].tolist()
    assert len(loop.found) == 20
    assert loop.kept_outputs == recorded["keep_decisions"].bool().tolist()
    assert len(loop.kept_outputs) == 19
    assert 0 < sum(loop.kept_outputs) < 19, "both decisions must occur"
    torch.testing.assert_close(torch.stack(loop.logits), recorded["scores"][:, 0], **CLOSE)
    scores = torch.stack(loop.output_scores)
    torch.testing.assert_close(scores, recorded["output_predictor_logits"], **CLOSE)


FED = {"decode_kv_b1_r0.2": 24, "decode_kv_b1_r0.5": 24, "decode_kv_b1_text_only": 12}


@pytest.mark.parametrize("name", list(FED))
def test_recorded_tokens_fed_one_by_one(loop, name):
    steps = FED[name]
    recorded = run(loop, name, steps + 1, "next_tokens")
    assert loop.kept_outputs == recorded["keep_decisions"][:, 0].bool().tolist()
    lengths = [recorded["prefill_kv_lengths"].tolist(), *recorded["kv_lengths"].tolist()]
    assert loop.lengths == lengths
    torch.testing.assert_close(loop.logits[0], recorded["prefill_last_logits"][0], **CLOSE)
    torch.testing.assert_close(torch.stack(loop.logits[1:]), recorded["logits"][:, 0], **CLOSE)
    if name != "decode_kv_b1_text_only":
        assert loop.kept_images == recorded["kept_image_indices"][0].tolist()
        scores = recorded["image_predictor_logits"][0]
        torch.testing.assert_close(loop.image_scores, scores, **CLOSE)


@pytest.mark.parametrize("name", ["prefill_b1_r0.2", "prefill_b1_r0.5", "prefill_b1_image_first"])
def test_recorded_prompts_keep_the_same_image_tokens(loop, name):
    recorded = run(loop, name, 1)
    assert loop.kept_images == recorded["kept_image_indices"][0].tolist()
    assert loop.lengths == [recorded["kv_lengths"].tolist()]
