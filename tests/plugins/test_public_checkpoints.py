"""Public layouts through lmms-eval: direct, as a snapshot of the hub's cache, and converted."""

from __future__ import annotations

import public_layouts as layouts
import pytest
import torch

from dynllava.embedded import load_split, tasks_folder
from dynllava.errors import UserError
from dynllava.images import ImagePreparation, open_image
from dynllava.models.checkpoints import convert
from dynllava.models.loading import load_model
from dynllava.prompts import Turn, batch, choose_template, prompt_ids, render
from dynllava.prompts.tokens import image_positions

TASK, LIMIT, TOKENS = "embedded_attribute", 2, 8
SIZES = layouts.Sizes(seed=3, layers=5, hidden=96, heads=6)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    root = tmp_path_factory.mktemp("published")
    cache = root / "hub"
    layouts.into_cache(cache, layouts.TOWER, layouts.clip_tower(root / "tower", SIZES))
    names = {
        "original": ("liuhaotian/llava-v1.5-7b", layouts.original),
        "official": ("someone/dynamic-llava-7b", layouts.official),
        "llava-hf": ("llava-hf/llava-1.5-7b-hf", layouts.llava_hf),
    }
    return {
        key: layouts.into_cache(cache, name, build(root / key, SIZES))
        for key, (name, build) in names.items()
    }


def evaluated(folder, **arguments):
    from lmms_eval.evaluator import simple_evaluate
    from lmms_eval.tasks import TaskManager

    values = {"pretrained": folder, "max_new_tokens": TOKENS, **arguments}
    results = simple_evaluate(
        model="dynamic_llava",
        model_args=",".join(f"{key}={value}" for key, value in values.items()),
        tasks=[TASK],
        task_manager=TaskManager(include_path=str(tasks_folder()), include_defaults=False),
        batch_size=2,
        device="cpu",
        limit=LIMIT,
        bootstrap_iters=0,
        process_docs_parallel=1,
    )
    samples = sorted(results["samples"][TASK], key=lambda sample: sample["doc_id"])
    return [
        (sample["filtered_resps"][0], sample["token_counts"][0]["image_tokens_kept"])
        for sample in samples
    ]


def by_hand(folder, method, **parameters):
    """The same questions one by one through the library: template, ids, pixels, greedy."""
    model, processor = load_model(folder, method, parameters)
    prepare, template = (
        ImagePreparation(processor.image_processor),
        choose_template(None, processor),
    )
    found = []
    for document in load_split("test", "attribute")[:LIMIT]:
        pixels = torch.from_numpy(prepare(open_image(document["image"])))
        text = render(template, [Turn("user", document["question"], [1])], processor)
        count = image_positions(processor, pixels)
        ids = prompt_ids(processor.tokenizer, text, processor.image_token_id, count)
        inputs = {**batch([ids], 0), "pixel_values": pixels[None]}
        with torch.no_grad():
            out = model.generate(**inputs, max_new_tokens=TOKENS, do_sample=False)
        answer = processor.tokenizer.decode(out[0, len(ids) :], skip_special_tokens=True)
        found.append((answer.strip(), model.last_report.image_tokens[0]))
    return found


@pytest.mark.parametrize(
    ("name", "method"),
    [
        ("original", "full"),
        ("llava-hf", "full"),
        ("llava-hf", "fastv"),
        ("official", "dynamic_llava"),
    ],
)
def test_lmms_eval_answers_as_the_library_before_and_after_convert(made, tmp_path, name, method):
    expected = by_hand(made[name], method)
    assert len({answer for answer, _ in expected} | {""}) > 1
    assert evaluated(made[name], method=method) == expected
    if name != "llava-hf":
        assert evaluated(convert(made[name], tmp_path / "out"), method=method) == expected
    everything = (SIZES.image // SIZES.patch) ** 2
    kept = {count for _, count in expected}
    assert kept == {everything} if method == "full" else max(kept) < everything


def test_a_model_argument_decides_template_and_image_protocol(made):
    plain = evaluated(made["llava-hf"], method="full")
    assert evaluated(made["llava-hf"], method="full", conv_template="vicuna_v1") != plain
    with pytest.raises(UserError, match="image_aspect=square: accepted are pad, crop, checkpoint"):
        evaluated(made["llava-hf"], image_aspect="square")


def test_predictors_are_missed_before_anything_is_loaded(made, monkeypatch):
    from dynllava.models import tensors

    monkeypatch.setattr(tensors, "_load", lambda path: pytest.fail("weights were read"))
    with pytest.raises(UserError, match="no trained predictors"):
        evaluated(made["original"], method="dynamic_llava")
