"""The tasks with a real model: all fixtures through lmms-eval, and what perplexity is made of."""

from __future__ import annotations

import json
import math

import pytest

pytest.importorskip("lmms_eval")

import torch
from benchmark_fixtures import FIXTURES, picture
from benchmark_scripted import evaluate

from dynllava.evaluation.runner import ModelRunner
from dynllava.tasks import build
from dynllava.tasks.overlays import write_caption_overlay
from dynllava.tasks.registry import BENCHMARKS, GENERATION, SUITES

WORDS = ("red", "circle", "in", "the", "top", "row", "there", "is", "a", "small", "blue", "star")


@pytest.fixture(scope="module")
def checkpoint():
    """The dense embedded model."""
    from dynllava.embedded import model_path

    return model_path()


@pytest.fixture(scope="module")
def generation_folder(tmp_path_factory):
    """The three generation benchmarks, built from synthetic annotations."""
    root = tmp_path_factory.mktemp("generation")
    entries = []
    for number, rounds in enumerate((1, 1, 8, 8)):
        turns = []
        for turn in range(rounds):
            count = 300 if rounds == 1 else 38
            answer = " ".join(WORDS[(turn + place) % len(WORDS)] for place in range(count))
            turns += [{"from": "human", "value": "describe the image."}]
            turns += [{"from": "gpt", "value": answer}]
        name = f"coco/{number:012d}.png"
        (root / "images" / "coco").mkdir(parents=True, exist_ok=True)
        picture("generation", number).save(root / "images" / name)
        entries.append({"id": str(number), "image": name, "conversations": turns})
    (root / "all.json").write_text(json.dumps(entries))
    (root / "train.json").write_text("[]")
    for benchmark in GENERATION:
        build.build(
            benchmark,
            annotations=root / "all.json",
            images=root / "images",
            train_annotations=[root / "train.json"],
            out=root / "tasks",
            samples=1,
        )
    return root / "tasks"


@pytest.fixture(scope="module")
def captions(tmp_path_factory):
    """The embedded model's captions as a perplexity task."""
    from dynllava.embedded import ensure_split, load_split

    root = tmp_path_factory.mktemp("captions")
    data = ensure_split("val", root / "data") / "caption.parquet"
    write_caption_overlay(root / "tasks", "ppl", data)
    return root / "tasks", load_split("val", "caption", root / "data", limit=6)


@pytest.fixture(scope="module")
def run(upstream_folder, generation_folder, tmp_path_factory):
    """All 16 benchmarks with Dynamic-LLaVA's own command line model, four prompts a batch."""
    # The video questions of SEED show several frames, which LLaVA-1.5 does not take.
    understanding = [f"{name}_{'protocol' if name == 'seed' else 'local'}" for name in FIXTURES]
    return evaluate(
        "dynamic_llava",
        [upstream_folder / "tasks", generation_folder],
        [*understanding, *SUITES["generation"]],
        tmp_path_factory.mktemp("output"),
        model_args="pretrained=embedded,max_new_tokens=8",
        gen_kwargs="max_new_tokens=8",
        batch_size=4,
    )


@pytest.mark.parametrize("name", list(FIXTURES))
def test_understanding_tasks_run_with_a_model(run, name):
    task = f"{name}_{'protocol' if name == 'seed' else 'local'}"
    item = BENCHMARKS[name]
    value = run["results"][task][f"{item.logged or item.metric},none"]
    assert 0 <= value <= item.scale
    answered = run["samples"][task]
    assert len(answered) == len(FIXTURES[name].rows) - (name == "seed")
    # The model really ran: it kept a fifth of its 144 image tokens and counted its answer.
    for sample in answered:
        assert sample["token_counts"][0]["image_tokens_kept"] == 28
        assert 1 <= sample["token_counts"][0]["output_tokens"] <= 8


@pytest.mark.parametrize("name", GENERATION)
def test_generation_tasks_run_with_a_model(run, name):
    perplexity = run["results"][f"{name}_ppl"]["ppl,none"]
    assert 1 < perplexity < math.inf
    meteor = run["results"][f"{name}_meteor"]["meteor_exact_stem,none"]
    assert 0 <= meteor <= 1
    rounds = 8 if name == "lvis_vqa_multi" else 1
    assert len(run["samples"][f"{name}_ppl"][0]["resps"]) == rounds


def _direct_perplexity(checkpoint, rows):
    """Perplexities by stock transformers alone: one pass over prompt and answer, no cache."""
    from transformers import LlavaForConditionalGeneration, LlavaProcessor

    model = LlavaForConditionalGeneration.from_pretrained(checkpoint, dtype=torch.float32).eval()
    processor = LlavaProcessor.from_pretrained(checkpoint)
    found = []
    for row in rows:
        prompt = f"USER: <image>\n{row['question']} ASSISTANT:"
        inputs = processor(
            images=row["image"], text=f"{prompt} {row['answer']}", return_tensors="pt"
        )
        count = len(processor.tokenizer(row["answer"], add_special_tokens=False)["input_ids"])
        with torch.inference_mode():
            logits = model(**inputs).logits[0, -count - 1 : -1].double()
        targets = inputs["input_ids"][0, -count:]
        found.append(torch.nn.functional.cross_entropy(logits, targets).exp().item())
    return found


def _samples(runner, folder, output):
    result = evaluate(runner.adapter(4), [folder], ["embedded_caption_ppl"], output, limit=6)
    return [sample["ppl"] for sample in result["samples"]["embedded_caption_ppl"]]


def test_dense_perplexity_equals_a_direct_computation(checkpoint, captions, tmp_path):
    folder, rows = captions
    runner = ModelRunner(str(checkpoint), device="cpu")
    runner.set_method("full", {})
    dense = _samples(runner, folder, tmp_path)
    direct = _direct_perplexity(checkpoint, rows)
    assert dense == pytest.approx(direct, rel=1e-4)
    assert max(direct) - min(direct) > 0.01
    # Dropping output tokens must show, or decode-time sparsification was not active.
    runner.set_method("structure", {"layer": 0})
    sparse = _samples(runner, folder, tmp_path)
    assert max(abs(a - b) for a, b in zip(sparse, dense, strict=True)) > 1e-3


BLIND = {
    "dynamic_llava": {},
    "fastv": {"k": 2},
    "sparsevlm": {},
    "uniform": {"image_keep_rate": 0.3},
    "random": {"image_keep_rate": 0.3, "layer": 2},
}


@pytest.mark.parametrize("method", list(BLIND))
def test_choosing_image_tokens_never_sees_the_answer(captions, method):
    runner = ModelRunner("embedded", device="cpu")
    runner.set_method(method, BLIND[method])
    row = captions[1][0]

    def kept(question, answer):
        inputs = runner.processor(
            images=row["image"], text=f"USER: <image>\n{question} ASSISTANT:", return_tensors="pt"
        )
        tokens = runner.processor.tokenizer(answer, add_special_tokens=False, return_tensors="pt")[
            "input_ids"
        ]
        runner.model.score(**inputs, continuation_ids=tokens)
        return runner.model.last_report.kept_image_indices

    first = kept("what colour is the star ?", "red circle red circle red circle")
    assert first == kept("what colour is the star ?", "seven")
    assert 0 < len(first[0]) < 144
    if method == "fastv":
        # The same words do change the choice when they are part of the question.
        assert first != kept("what colour is the star ? red circle red circle", "seven")
