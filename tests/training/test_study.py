"""The comparison of learned with static choices, and the measurement of a training step."""

import pytest
import torch
from PIL import Image

from dynllava.models.loading import load_model
from dynllava.prompts import PLAIN_QUESTION
from dynllava.records import RecordStore
from dynllava.studies import predictors as study
from dynllava.timing import training_step as measure
from dynllava.training.config import read_config
from dynllava.training.run import train


@pytest.fixture
def rows():
    texts = [("what colour is the star ?", "red"), ("how many objects ?", "two red rings")] * 3
    return [
        {
            "image": Image.new("RGB", (16, 16), (20 * number, 90, 0)),
            "question": question,
            "answer": answer,
            "family": "any",
            "question_id": str(number),
            "options": [],
            "scene": "{}",
        }
        for number, (question, answer) in enumerate(texts)
    ]


def test_scores_are_those_of_greedy_decoding(tiny_folder, rows):
    model, processor = load_model(tiny_folder)
    scores = study.score(model, processor, rows, batch=4)
    for number, row in enumerate(rows):
        text = PLAIN_QUESTION.format(row["question"])
        inputs = processor(images=row["image"], text=text, return_tensors="pt")
        count = scores.tokens[number]
        out = model.generate(**inputs, max_new_tokens=count, do_sample=False)
        answer = processor.tokenizer.decode(out[0, inputs["input_ids"].shape[1] :])
        expected = " ".join([*row["answer"].split(), "</s>"])
        assert (answer == expected) == bool(scores.exact[number])
    assert scores.kept_images == [1.0] * 6
    assert scores.kept_outputs == [1.0] * 6


def test_the_realised_shares_are_reported(tiny_folder, rows):
    model, processor = load_model(tiny_folder, method="structure", method_args={"layer": 1})
    scores = study.score(model, processor, rows[1:2])
    # Three words are fed, the second one is dropped.
    assert scores.kept_outputs == [pytest.approx(2 / 3)]


def test_the_study_prints_and_records(
    tiny_config, tiny_folder, rows, tmp_path, monkeypatch, capsys
):
    pytest.importorskip("scipy")
    final = train(tiny_config("run.max_steps=1"))
    monkeypatch.setattr(study, "family_rows", lambda split, family, limit: rows)
    out = tmp_path / "records"
    options = ["--dense", str(tiny_folder), "--trained", str(final), "--out", str(out)]
    assert study.main(options) == 0
    printed = capsys.readouterr().out
    assert "no image tokens" in printed
    assert "structure" in printed
    records, problems = RecordStore(out).read()
    assert not problems
    assert {record.method.label for record in records} >= {"learned", "random", "uniform", "full"}
    assert all(record.kind == "training" for record in records)


def test_both_steps_are_measured_in_turns(monkeypatch):
    monkeypatch.setattr(measure, "VOCABULARY", 64)
    shape = measure.Shape(32, 3, 2, 64, length=660, batch=1, sparse_layer=1)
    found = measure.compare_steps(shape, "cpu", "float32", repeats=1, checkpoint=True)
    assert found.time_ratio("policy", "plain") > 0
    assert found.time_ratio("predictors", "policy") > 0
    # Without gradients of the language model's weights less is held.
    assert found.peak_ratio("predictors", "policy") < 1
    model = measure.random_model(shape, torch.device("cpu"), torch.float32)
    trained = [item for item in model.parameters() if item.requires_grad]
    assert measure.optimizer_bytes(model, predictors=False) == 8 * sum(p.numel() for p in trained)
    functions = measure.step_functions(model, measure.random_batch(
        shape, torch.device("cpu"), torch.float32), 1)  # fmt: skip
    functions["predictors"]()
    assert [item for item in model.parameters() if item.requires_grad] == trained
    attention = measure.attention_functions(shape, torch.device("cpu"), torch.float32)
    assert set(measure.compare(attention, torch.device("cpu"), 1).seconds) == {
        "square",
        "blockwise",
    }


def test_the_embedded_configuration_names_the_embedded_data():
    assert read_config("embedded").data.path.startswith("embedded:")
