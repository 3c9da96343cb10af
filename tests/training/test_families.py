"""Training any family: its own processor, crops, several pictures, positions of three axes."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import family_folders
import numpy as np
import pytest
import torch
from family_folders import BUILDERS
from PIL import Image
from safetensors.torch import load_file
from several_pictures_task import NAME as TASK
from several_pictures_task import write as write_task
from tiny_families import FAMILIES, IMAGE, batch
from transformers import AutoModelForImageTextToText

from dynllava import wrap
from dynllava.engine.decoder import PolicyHook
from dynllava.engine.stream import Segment
from dynllava.errors import UserError
from dynllava.models.config import SparsityConfig
from dynllava.models.family_processors import load_family_processor
from dynllava.models.layout import image_map
from dynllava.models.loading import load_model
from dynllava.training.batches import Collator
from dynllava.training.calibrating import calibrate_folder, store
from dynllava.training.config import DataConfig, TrainingConfig, build
from dynllava.training.data import InstructionDataset
from dynllava.training.gumbel import SampleNoise
from dynllava.training.parameters import part_of
from dynllava.training.plan import plan
from dynllava.training.policy import SparsityTargets, TrainingPolicy
from dynllava.training.run import train
from dynllava.training.step import method_step, policy_step
from dynllava.training.trainer import DynamicTrainer

TRAINED = ("qwen2_5_vl", "llava_next")
PREDICTORS = {"d_model": 16, "nhead": 2, "dim_feedforward": 32, "num_layers": 1}
#: Pictures of a record: one, two of different sizes, none, one.
SHOWN = (((40, 70),), ((64, 64), (90, 33)), (), ((33, 48),))
WORDS = ("red", "green", "blue", "circle", "square", "star", "ring", "cross")
TOLERANCE = 1e-5


@pytest.fixture(scope="module", autouse=True)
def quiet():
    with family_folders.quiet():
        yield


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return family_folders.made_once(tmp_path_factory.mktemp("families"))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Write eight records and their pictures; return the JSON file."""
    folder = tmp_path_factory.mktemp("data")
    rng, records = np.random.default_rng(0), []
    for index in range(8):
        names = []
        for number, (height, width) in enumerate(SHOWN[index % 4]):
            pixels = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
            names.append(f"{index}_{number}.png")
            Image.fromarray(pixels).save(folder / names[-1])
        turns = ["<image>\n" * len(names) + "what is there ?", " ".join(rng.choice(WORDS, 6))]
        turns += ["and above ?", "a red star"]
        roles = ("human", "gpt", "human", "gpt")
        record = {
            "id": str(index),
            "conversations": [
                {"from": role, "value": text} for role, text in zip(roles, turns, strict=True)
            ],
        }
        if names:
            record["image"] = names if len(names) > 1 else names[0]
        records.append(record)
    file = folder / "records.json"
    file.write_text(json.dumps(records))
    return file


def configured(model, data, out, **changes):
    values = {
        "model": str(model),
        "sparse_layer": 1,
        "predictor": dict(PREDICTORS),
        "sparsity": {"vision_keep_rate": 0.5, "min_answer_length": 4},
        "data": {"path": str(data), "image_folder": str(data.parent)},
        "optim": {"learning_rate": 3e-3, "predictor_learning_rate": 1e-2},
        "run": {
            "max_steps": 4, "global_batch": 4, "device_batch": 4, "bf16": False, "device": "cpu",
            "gradient_checkpointing": False, "workers": 0, "save_steps": 2, "output_dir": str(out),
        },
    }  # fmt: skip
    for key, value in changes.items():
        section = next((part for part in ("run", "data", "optim") if key in RENAMED[part]), None)
        (values if section is None else values[section])[key] = value
    config = build(TrainingConfig, values)
    config.validate()
    return config


RENAMED = {
    "run": ("max_steps", "save_steps", "device_batch", "gradient_checkpointing"),
    "data": ("template", "image_aspect", "max_length"),
    "optim": ("train_projector",),
}


@pytest.fixture(scope="module")
def trained(folders, data, tmp_path_factory):
    """Folder of a Qwen2.5-VL trained for four steps, its log, and the folder it began with."""
    out = tmp_path_factory.mktemp("trained") / "run"
    final = train(configured(folders("qwen2_5_vl"), data, out))
    lines = (out / "log.jsonl").read_text().splitlines()
    return final, [json.loads(line) for line in lines], folders("qwen2_5_vl")


def records_of(data):
    return json.loads(Path(data).read_text())


def test_a_trained_family_is_calibrated_like_llava(trained, data, tmp_path):
    final = tmp_path / "final"
    shutil.copytree(trained[0], final)
    given = DataConfig(str(data), str(data.parent))
    found = calibrate_folder(final, given, min_answer_length=1, progress=False)
    store(final, found)
    assert set(found) == {"image", "output"}
    model, _ = load_model(str(final))
    for rate in (0.2, 0.9):
        model.set_method("dynamic_llava", vision_keep_rate=0.5, output_keep_rate=rate)


# ------------------------------------------------------------------- data


@pytest.mark.parametrize("name", BUILDERS)
def test_a_batch_is_what_the_familys_own_processor_makes(name, folders, data):
    """Tokens and pictures of padded rows; labels are the answers with what ends them."""
    processor = load_family_processor(folders(name), name)
    rows = InstructionDataset(records_of(data), processor, data.parent)
    # Without pictures some processors name other arguments: the row of text is looked at alone.
    shown = [rows[index] for index in (0, 1, 3)]
    ours = Collator(processor.tokenizer.pad_token_id)(shown)
    texts, pictures = [], []
    for index in (0, 1, 3):
        record = rows.records[index]
        names = record["image"] if isinstance(record["image"], list) else [record["image"]]
        pictures.append([Image.open(data.parent / item).convert("RGB") for item in names])
        turns = [turn["value"] for turn in record["conversations"]]
        texts.append(rows.examples.written(list(zip(turns[::2], turns[1::2], strict=True)))[0])
    bos = processor.tokenizer.bos_token
    plain = {"add_special_tokens": False} if bos and texts[0].startswith(bos) else {}
    theirs = processor(
        text=texts, images=pictures, padding=True, padding_side="right", return_tensors="pt",
        **plain,
    )  # fmt: skip
    for key, value in theirs.items():
        assert torch.equal(ours[key], value), key
    for item, record in ((rows[index], rows.records[index]) for index in range(4)):
        answers = [turn["value"] for turn in record["conversations"] if turn["from"] == "gpt"]
        labels = item["labels"][item["labels"] != -100]
        assert torch.equal(item["input_ids"][item["labels"] != -100], labels)
        written = processor.tokenizer.decode(labels)
        ends = [processor.tokenizer.eos_token, "<end_of_utterance>"]
        end = next(mark for mark in ends if written.endswith(mark))
        assert [part.strip() for part in written.split(end)] == [*answers, ""]


def test_an_end_token_is_written_where_the_template_has_none(folders, data):
    """LLaVA-1.6-Vicuna's template puts a space behind an answer; its training put </s> there."""
    processor = load_family_processor(folders("llava_next"), "llava_next")
    processor.chat_template = (
        "{% for m in messages %}{{ m['role'].upper() + ': ' }}"
        "{% for c in m['content'] %}{% if c['type'] == 'image' %}{{ '<image>\n' }}"
        "{% else %}{{ c['text'] + ' ' }}{% endif %}{% endfor %}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
    )
    rows = InstructionDataset(records_of(data)[:1], processor, data.parent)
    text, spans = rows.examples.written([("<image>\nwhat ?", "a star"), ("above ?", "a ring")])
    assert text == (
        "USER: <image>\nwhat ? ASSISTANT: a star</s>USER: above ? ASSISTANT: a ring</s>"
    )
    assert [text[start:stop] for start, stop in spans] == [" a star</s>", " a ring</s>"]


@pytest.mark.parametrize(
    ("template", "line"),
    [
        (
            "{% for m in messages[-1:] if m['role'] == 'assistant' %}{% endfor %}"
            "{% for m in messages %}{{ '[' + loop.length|string + m['role'] + ']' }}"
            "{% for c in m['content'] %}{{ c['text'] if c['type'] == 'text' else '<image>' }}"
            "{% endfor %}{% endfor %}{% if add_generation_prompt %}{{ '>' }}{% endif %}",
            "does not write an answer behind its prompt",
        ),
        (
            "{% for m in messages %}{% if loop.last or m['role'] == 'user' %}{{ '|' }}"
            "{% for c in m['content'] %}{{ c['text'] if c['type'] == 'text' else '<image>' }}"
            "{% endfor %}{% endif %}{% endfor %}"
            "{% if add_generation_prompt %}{{ '|' }}{% endif %}",
            "writes earlier turns anew",
        ),
    ],
)
def test_templates_that_cannot_be_trained_with_are_one_line(template, line, folders, data):
    processor = load_family_processor(folders("llava_next"), "llava_next")
    processor.chat_template = template
    with pytest.raises(UserError, match=line):
        InstructionDataset(records_of(data), processor, data.parent)


def test_a_record_whose_pictures_do_not_fit_is_left_out_and_listed(folders, data):
    processor = load_family_processor(folders("qwen2_5_vl"), "qwen2_5_vl")
    records = records_of(data)
    whole = InstructionDataset(records, processor, data.parent)[1]["input_ids"]
    last = int((whole == processor.image_token_id).nonzero().max())
    cut = InstructionDataset(records, processor, data.parent, max_length=last + 1)[1]
    assert (cut["sample_id"], cut["truncated"], cut["skipped"]) == (1, True, [])
    item = InstructionDataset(records, processor, data.parent, max_length=last)[1]
    assert item["sample_id"] == 2
    (line,) = item["skipped"]
    assert f"record 1 (id 1): 1_1.png: its pictures end at token {last + 1}, behind" in line


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"template": "vicuna_v1"}, "data.template=vicuna_v1: is LLaVA-1.5's"),
        ({"image_aspect": "pad"}, "image_aspect=pad: is a rule of LLaVA-1.5"),
    ],
)
def test_rules_of_llava_are_refused(changes, line, folders, data, tmp_path):
    with pytest.raises(UserError, match=line):
        plan(configured(folders("qwen2_5_vl"), data, tmp_path, **changes))


def test_llava_takes_one_picture_a_record(tiny_processor, data):
    with pytest.raises(UserError, match=r"record 1 \(id 1\): 2 images; accepted is 1"):
        InstructionDataset(records_of(data), tiny_processor, data.parent, image_tokens=4)


# ------------------------------------------------------------------- the step


def with_predictors(name):
    model = wrap(FAMILIES[name].build())
    torch.manual_seed(3)
    model.add_predictors(SparsityConfig(**PREDICTORS))
    return model


@pytest.mark.parametrize("name", FAMILIES)
@torch.no_grad()
def test_masking_by_a_hard_policy_is_dropping(name):
    """Two pictures, one and none; the tokens that stay see no difference, in any family."""
    model = with_predictors(name)
    given = batch(model.unwrap(), FAMILIES[name], [[(32, 64), (64, 32)], [(64, 64)], []], "right")
    model.set_method("dynamic_llava", sparse_layer=2, vision_keep_rate=0.4, output_keep_rate=1.0)
    dropped = model(**given, use_cache=False).logits
    kept = model.last_report.kept_image_indices
    assert [len(row) > 0 for row in kept] == [True, True, False]

    def hard(view):
        stream = view.stream
        image = stream.is_segment(Segment.IMAGE)
        stays = torch.zeros_like(image)
        for row, chosen in enumerate(kept):
            stays[row] = torch.isin(stream.image_index[row], torch.tensor(chosen))
        return (stays | ~image).float()

    masked = model(**given, use_cache=False, policy_hook=PolicyHook(2, hard)).logits
    text = given["attention_mask"].bool() & (given["input_ids"] != IMAGE)
    assert (masked - dropped)[text].abs().max() < TOLERANCE
    everything = PolicyHook(2, lambda view: torch.ones(view.stream.segment.shape))
    whole = model(**given, use_cache=False, policy_hook=everything).logits
    assert (whole - dropped)[text].abs().max() > 100 * TOLERANCE, "the mask must matter"


@pytest.mark.parametrize("name", BUILDERS)
def test_an_unmasked_pass_is_the_stock_models_and_a_masked_one_trains(name, folders, data):
    """Positions of padded rows are the stock model's; predictors and language get gradients."""
    model, processor = load_model(folders(name))
    rows = InstructionDataset(records_of(data), processor, data.parent)
    given = Collator(processor.tokenizer.pad_token_id)([rows[0], rows[1], rows[3]])
    model.add_predictors(SparsityConfig(**PREDICTORS))
    model.train()
    targets = SparsityTargets(vision_keep_rate=0.5, min_answer_length=4)
    noise = SampleNoise(0, 0, [0, 1, 3])
    dense = TrainingPolicy(targets, 1.0, given["labels"], noise, torch.ones(3, dtype=torch.bool))
    ours = policy_step(model, given, dense, 1)
    inputs = {
        key: value
        for key, value in given.items()
        if key not in ("sample_ids", "truncated", "skipped")
    }
    stock = model.unwrap()(**inputs)
    assert abs(float(ours.loss.detach()) - float(stock.loss.detach())) < TOLERANCE
    masked = TrainingPolicy(targets, 1.0, given["labels"], noise)
    policy_step(model, given, masked, 1).loss.backward()
    counted = [int(row.sum()) for row in masked.image.decided]
    images = image_map(model.config, inputs, inputs["input_ids"] == processor.image_token_id)
    assert counted == [sum(row) for row in images.pictures], "every patch of every picture"
    touched = {part_of(key) for key, value in model.named_parameters() if value.grad is not None}
    assert {"predictors", "language"} <= touched
    for key, value in model.named_parameters():
        if part_of(key) == "predictors":
            assert value.grad is not None, key


@pytest.mark.parametrize("name", FAMILIES)
def test_every_parameter_has_its_part(name):
    model = with_predictors(name)
    parts = {}
    for key, _ in model.named_parameters():
        parts.setdefault(part_of(key), []).append(key)
    assert set(parts) == {"predictors", "language", "projector", "tower"}
    text = {"smolvlm": "text_model", "idefics3": "text_model"}.get(name, "language_model")
    assert all(f"model.{text}." in key or key == "lm_head.weight" for key in parts["language"])


def test_another_method_trains_too(folders, data):
    model, processor = load_model(folders("qwen2_5_vl"), "fastv", {"k": 2, "keep_ratio": 0.5})
    rows = InstructionDataset(records_of(data), processor, data.parent)
    given = Collator(processor.tokenizer.pad_token_id)([rows[0], rows[1]])
    method_step(model.train(), given).loss.backward()
    assert model.last_report.image_tokens[1] == 0.5 * int(given["mm_token_type_ids"][1].sum())


# ------------------------------------------------------------------- runs


def test_a_run_learns_and_leaves_out_what_is_frozen(trained):
    final, log, start = trained
    losses = [line["loss_language"] for line in log if "loss" in line]
    assert losses[-1] < losses[0]
    assert all(0 < line["keep_rate_image"] < 1 for line in log if "loss" in line)
    before, after = load_file(start / "model.safetensors"), load_file(final / "model.safetensors")
    new = set(after) - set(before)
    assert set(before) <= set(after)
    assert all(key.startswith(("image_predictor.", "output_predictor.")) for key in new)
    changed = {part_of(key) for key in before if not before[key].equal(after[key])}
    assert changed == {"language"}


def test_a_trained_folder_loads_by_every_route(trained, tmp_path):
    final, _, _ = trained
    model, processor = load_model(final)
    assert model.method.name == "dynamic_llava"
    assert model.method.parameters()["vision_keep_rate"] == 0.5
    assert model.method.parameters()["sparse_layer"] == 1
    stored = load_file(final / "model.safetensors")
    state = model.state_dict()
    assert len(state) == len(stored)
    for key in stored:
        if key.startswith("image_predictor."):
            assert state[key].equal(stored[key])
    stock = AutoModelForImageTextToText.from_pretrained(final)
    assert set(state) - set(stock.state_dict()) == {key for key in state if "predictor." in key}
    wrapped = wrap(stock, "dynamic_llava:vision_keep_rate=0.5,sparse_layer=1")
    assert wrapped.image_predictor is not None
    text = processor.apply_chat_template(
        [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "what ?"}]}],
        add_generation_prompt=True,
    )
    inputs = processor(text=[text], images=[Image.new("RGB", (64, 48))], return_tensors="pt")
    answers = [
        item.generate(**inputs, max_new_tokens=6, do_sample=False)[0].tolist()
        for item in (model, wrapped)
    ]
    assert answers[0] == answers[1]
    assert model.last_report.image_tokens[0] == wrapped.last_report.image_tokens[0]
    model.save_pretrained(tmp_path / "again")
    again = load_file(tmp_path / "again" / "model.safetensors")
    assert again.keys() == stored.keys()
    assert all(again[key].equal(stored[key]) for key in stored)


def test_predictors_of_ones_own_are_stored_with_the_model_and_checked(folders, tmp_path):
    with pytest.raises(UserError, match="no trained predictors"):
        load_model(folders("llava_next"), "dynamic_llava")
    with pytest.warns(UserWarning, match="untrained"):
        model, _ = load_model(folders("llava_next"), "dynamic_llava", untrained=True)
    assert model.predictors()["image"] is not None
    model = wrap(AutoModelForImageTextToText.from_pretrained(folders("llava_next")))
    model.add_predictors(SparsityConfig(**PREDICTORS, use_output_text_predictor=False))
    model.save_pretrained(tmp_path / "own")
    again = wrap(AutoModelForImageTextToText.from_pretrained(tmp_path / "own"), "dynamic_llava:"
                 "output_keep_rate=1.0")  # fmt: skip
    assert again.output_predictor is None
    for key, value in model.image_predictor.state_dict().items():
        assert value.equal(again.image_predictor.state_dict()[key])
    config = json.loads((tmp_path / "own" / "config.json").read_text())
    config["sparse_config"]["d_model"] = 8
    (tmp_path / "own" / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"image_predictor\..* is not as sparse_config"):
        wrap(AutoModelForImageTextToText.from_pretrained(tmp_path / "own"))


def test_lmms_eval_evaluates_a_trained_folder(trained, tmp_path):
    from lmms_eval.evaluator import simple_evaluate
    from lmms_eval.tasks import TaskManager

    final, _, _ = trained
    tasks = write_task(tmp_path / "several", 4)
    results = simple_evaluate(
        model="dynamic_llava",
        model_args=f"pretrained={final}",
        tasks=[TASK],
        task_manager=TaskManager(include_path=str(tasks), include_defaults=False),
        batch_size=2,
        device="cpu",
        bootstrap_iters=0,
        process_docs_parallel=1,
    )
    counts = [item["token_counts"][0] for item in results["samples"][TASK]]
    shown = [item for item in counts if item.get("image_tokens")]
    assert shown
    for item in shown:
        assert item["image_tokens_kept"] == int(item["image_tokens"] * 0.5)


@pytest.mark.parametrize(
    "name",
    # Seconds each: one in the quick suite.
    [TRAINED[1], pytest.param(TRAINED[0], marks=pytest.mark.slow)],
)
def test_an_interrupted_run_ends_with_the_bits_of_a_whole_one(
    name, folders, data, tmp_path, monkeypatch
):
    steps = {"max_steps": 3, "save_steps": 1}
    whole = train(configured(folders(name), data, tmp_path / "whole", **steps))
    honest = DynamicTrainer.compute_loss

    def stopped(self, *args, **kwargs):
        if self.state.global_step == 2:
            raise OSError("stopped")
        return honest(self, *args, **kwargs)

    config = configured(folders(name), data, tmp_path / "cut", **steps)
    monkeypatch.setattr(DynamicTrainer, "compute_loss", stopped)
    with pytest.raises(UserError, match="checkpoint-2"):
        train(config)
    monkeypatch.undo()
    final = train(config, resume=True)
    expected, found = (load_file(item / "model.safetensors") for item in (whole, final))
    assert expected.keys() == found.keys()
    assert not [key for key in expected if not expected[key].equal(found[key])]


def test_a_trained_folder_can_be_trained_on(trained, data, tmp_path):
    final, _, _ = trained
    config = configured(final, data, tmp_path / "more", max_steps=1)
    fewer = dataclasses.replace(config.sparsity, vision_keep_rate=0.25)
    again = train(dataclasses.replace(config, sparsity=fewer))
    assert load_model(again)[0].method.parameters()["vision_keep_rate"] == 0.25
    before, after = (load_file(item / "model.safetensors") for item in (final, again))
    assert before.keys() == after.keys()
    config = configured(final, data, tmp_path / "other")
    other = dataclasses.replace(config, predictor={"d_model": 32})
    with pytest.raises(UserError, match=r"d_model=32: .* has predictors of d_model=16"):
        plan(other)


def test_a_plan_reads_no_weights(folders, data, tmp_path, monkeypatch):
    import transformers

    def refuse(*args, **kwargs):
        raise AssertionError("weights were read")

    monkeypatch.setattr(transformers.PreTrainedModel, "from_pretrained", refuse)
    text = "\n".join(plan(configured(folders("qwen2_5_vl"), data, tmp_path / "no")))
    assert "8 (6 with image, 2 text only)" in text
    assert "steps          4 of 4 samples" in text
    assert "predictors" in text
    assert not (tmp_path / "no").exists()


@pytest.mark.slow
@pytest.mark.parametrize("name", BUILDERS)
def test_every_family_learns_with_checkpointed_gradients(name, folders, data, tmp_path):
    """Twenty steps of each of nine families: minutes."""
    config = configured(
        folders(name), data, tmp_path / "run", max_steps=20, save_steps=20,
        gradient_checkpointing=True,
    )  # fmt: skip
    final = train(config)
    lines = (tmp_path / "run" / "log.jsonl").read_text().splitlines()
    losses = [json.loads(line)["loss_language"] for line in lines if "loss_language" in line]
    assert losses[-1] < 0.8 * losses[0]
    assert load_model(final)[0].method.name == "dynamic_llava"
