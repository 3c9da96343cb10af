"""The dense row is the stock dense model; every row says on which weights it runs."""

from __future__ import annotations

import pytest
import torch

from dynllava import cli
from dynllava.embedded import dynamic_path, model_path
from dynllava.errors import UserError
from dynllava.evaluation.weights import Part, parts
from dynllava.records import RecordStore, hash_files

TASKS = ("embedded_attribute", "embedded_caption_ppl")
LIMIT = 6


def test_only_methods_that_need_trained_predictors_run_on_tuned_weights():
    methods = ["full", "dynamic_llava:output_keep_rate=1.0", "fastv", "dynamic_llava+h2o"]
    found = parts("embedded", methods, on_tuned=["fastv", "random"])
    assert found == [
        Part("embedded-dense", "dense", ("full", "fastv")),
        Part("embedded", "tuned", (methods[1], methods[3], "fastv", "random")),
    ]
    assert parts("tuned", ["full", "dynamic_llava"], "plain")[0] == Part(
        "plain", "dense", ("full",)
    )
    assert parts("x", ["full", "dynamic_llava"]) == [Part("x", "", ("full", "dynamic_llava"))]
    with pytest.raises(UserError, match="give --dense"):
        parts("x", ["full"], on_tuned=["fastv"])


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    pytest.importorskip("lmms_eval")
    store = tmp_path_factory.mktemp("compare")
    methods = ["dynamic_llava", "full", "random", "no_image"]
    arguments = ["compare", "--methods", *methods, "--budgets", "96", "--seeds", "2"]
    arguments += ["--on-tuned", "random", "--tasks", *TASKS, "--limit", str(LIMIT)]
    assert cli.main([*arguments, "--out", str(store), "--device", "cpu", "--quiet"]) == 0
    records, problems = RecordStore(store).read()
    assert not problems
    return RecordStore(store), records


def test_every_record_says_on_which_weights_it_ran(compared):
    hashes = {"dense": hash_files(model_path()), "tuned": hash_files(dynamic_path())}
    assert hashes["dense"] != hashes["tuned"]
    ran = set()
    for record in compared[1]:
        assert record.model.name == "embedded"
        assert record.model.checkpoint_hash == hashes[record.model.weights]
        ran.add((record.method.name, record.model.weights))
    assert ran == {
        ("full", "dense"),
        ("random", "dense"),
        ("no_image", "dense"),
        ("dynamic_llava", "tuned"),
        ("random", "tuned"),
    }
    seeds = {
        (r.model.weights, r.method.parameters["seed"])
        for r in compared[1]
        if r.method.name == "random"
    }
    assert seeds == {("dense", 0), ("dense", 1), ("tuned", 0), ("tuned", 1)}


def test_the_dense_row_is_stock_transformers_on_the_dense_weights(compared):
    from transformers import AutoProcessor, LlavaForConditionalGeneration

    from dynllava.embedded import load_split

    store, records = compared
    record = next(r for r in records if r.method.name == "full" and r.task.name == TASKS[0])
    model = LlavaForConditionalGeneration.from_pretrained(model_path()).eval()
    processor = AutoProcessor.from_pretrained(model_path())
    answers = [row["answer"] for row in store.samples(record)]
    assert len(answers) == LIMIT
    for row, found in zip(load_split("test", "attribute", limit=LIMIT), answers, strict=True):
        text = f"USER: <image>\n{row['question']} ASSISTANT:"
        inputs = processor(images=row["image"], text=text, return_tensors="pt")
        with torch.no_grad():
            tokens = model.generate(**inputs, max_new_tokens=8, do_sample=False)
        own = tokens[0, inputs["input_ids"].shape[1] :]
        assert processor.tokenizer.decode(own, skip_special_tokens=True).strip() == found[0].strip()


def test_caches_compare_after_the_same_outputs(compared):
    # Bytes of one entry: K and V, float32.
    from dynllava.costs.spec import load_spec
    from dynllava.methods import create

    spec = load_spec("embedded")
    dims = spec.dims
    unit = 2 * dims.kv_heads * dims.head_dim * 4
    found = {}
    for record in compared[1]:
        if record.task.name != TASKS[1]:
            assert "forced_kv_bytes" not in record.counted
            continue
        counted = record.counted["forced_kv_bytes"]
        assert counted.mode == "forced"
        found.setdefault(record.method.name, set()).add(
            (counted.value, record.counted["output_tokens"].value)
        )
        if record.method.name == "dynamic_llava":
            continue
        method = create(record.method.name, **record.method.parameters)
        outputs = record.counted["output_tokens"].value - 1
        entries = counted.value / unit
        text = (entries - sum(method.schedule(spec.prompt(2), 6).prefill_rows)) / 6 - outputs
        # What is left is the prompt's text beyond two tokens: the same for every method.
        found.setdefault("text", set()).add(round(text, 3))
    assert len(found.pop("text")) == 1
    outputs = {outputs for pairs in found.values() for _, outputs in pairs}
    assert len(outputs) == 1
    assert max(found["dynamic_llava"])[0] < max(found["random"])[0] < max(found["full"])[0]


def test_the_table_names_weights_and_shows_the_spread_of_seeds(compared):
    from dynllava.analysis.points.measured import measured_points

    from dynllava.evaluation.summary import summary
    from dynllava.records.reading import read_stores

    lines = summary(compared[1]).splitlines()
    rows = {tuple(line.split("  ")[0:1]): line for line in lines}
    assert "weights" in lines[0]
    assert "KV KiB, same outputs" in lines[0]
    assert sum(line.startswith("random 96") for line in lines) == 2
    assert rows[("random 96",)].count("; 2 seeds]") == 2
    assert "  tuned  " in rows[("random 96, tuned weights",)]
    points = measured_points(read_stores(compared[0].folder)[0])
    assert {(point.label, point.curve, point.weights) for point in points} == {
        ("full", "full", "dense"),
        ("no_image", "no_image", "dense"),
        ("random 96", "random", "dense"),
        ("dynamic_llava 96", "dynamic_llava", "tuned"),
        ("random 96, tuned weights", "random, tuned weights", "tuned"),
    }
    drawn = next(point for point in points if point.curve == "random")
    assert all(len(score.draws) == 2 for score in drawn.scores.values())
    for name, score in drawn.scores.items():
        assert score.value == pytest.approx(sum(score.draws) / 2)
        if name == "embedded_attribute":
            mean = sum(drawn.samples[name].values()) / LIMIT
            assert 100 * mean == pytest.approx(score.value)
