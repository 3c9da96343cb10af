"""Records, templates, images, batches and the order of samples."""

import io
import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from dynllava.errors import UserError
from dynllava.images import pad_to_square
from dynllava.training.batches import Collator, GroupedSampler
from dynllava.training.data import InstructionDataset, load_records
from dynllava.training.templates import VICUNA_SYSTEM, render, turns_of

TURNS = [("<image>\nwhat is there ?", "a red star"), ("and above ?", "a blue ring")]


def dataset(records, processor, folder=None, **options):
    options = {"template": "plain", "image_tokens": 4, "max_length": 64} | options
    return InstructionDataset(records, processor, folder, **options)


def record(answer="a red star", image=None, name="r"):
    question = "what is there ?" if image is None else "what is there ?\n<image>"
    turns = [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
    result = {"id": name, "conversations": turns}
    return result if image is None else {**result, "image": image}


def test_vicuna_template_is_the_official_text():
    text, spans = render(TURNS, "vicuna_v1", "</s>")
    assert text == (
        f"{VICUNA_SYSTEM} USER: <image>\nwhat is there ? ASSISTANT: a red star</s>"
        "USER: and above ? ASSISTANT: a blue ring</s>"
    )
    assert [text[start:stop] for start, stop in spans] == [" a red star</s>", " a blue ring</s>"]


def test_the_image_moves_to_the_front_of_its_question():
    text, _ = render([("what is there ?\n<image>", "x")], "plain", "</s>", "<image><image>")
    assert text == "USER: <image><image>\nwhat is there ? ASSISTANT: x</s>"


def test_labels_are_the_answers_and_nothing_else(data_file, tiny_processor):
    data = dataset(load_records(str(data_file)), tiny_processor, data_file.parent)
    tokenizer = tiny_processor.tokenizer
    for item, source in zip((data[i] for i in range(len(data))), data.records, strict=True):
        answers = [turn["value"] for turn in source["conversations"] if turn["from"] == "gpt"]
        expected = " ".join(f"{answer} </s>" for answer in answers)
        labels = item["labels"]
        assert tokenizer.decode(labels[labels != -100]) == expected
        same = labels != -100
        assert torch.equal(labels[same], item["input_ids"][same])
        image = tokenizer.convert_tokens_to_ids("<image>")
        assert (item["input_ids"] == image).sum() == (4 if "image" in source else 0)
        assert (not item["pictures"]) == ("image" not in source)


def test_long_answers_are_cut_and_counted(tiny_processor):
    data = dataset([record("red " * 100)], tiny_processor)
    item = data[0]
    assert len(item["input_ids"]) == 64
    assert item["truncated"]


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ([], "no records"),
        ([{"id": "a"}], r"record 0 \(id a\): no conversations"),
        ([record(), {"conversations": []}], "record 1: no question"),
        ([{"conversations": "text"}], "no list of conversations"),
        ([{"conversations": [{"from": "robot", "value": "x"}]}], "turn 0 needs from"),
        ([{"conversations": [{"from": "human", "value": "x"}] * 2}], "alternate"),
        ([{**record(), "image": "a.png"}], "0 image placeholders, 1 images"),
        ([{"conversations": record(image="x")["conversations"]}], "1 image placeholders, 0"),
    ],
)
def test_bad_records_are_named(bad, message, tiny_processor):
    with pytest.raises(UserError, match=message):
        dataset(bad, tiny_processor)


@pytest.mark.parametrize("path", ["../secret.png", "/etc/passwd", "a/../../b.png"])
def test_an_image_outside_the_folder_is_refused(path, tmp_path, tiny_processor):
    with pytest.raises(UserError, match="outside the image folder"):
        dataset([record(image=path)], tiny_processor, tmp_path)


def test_missing_files_are_reported_before_training(data_file, tiny_processor):
    (data_file.parent / "0.png").unlink()
    records = load_records(str(data_file))
    with pytest.raises(UserError, match=r"1 of 9 image files are not in .*0\.png"):
        dataset(records, tiny_processor, data_file.parent)
    data = dataset(records, tiny_processor, data_file.parent, skip_missing=True)
    assert len(data) == len(data.lengths) == len(data.has_image) == 11


@pytest.mark.parametrize("content", [b"", b"no image", b"\x89PNG\r\n\x1a\n torn"])
def test_unreadable_images_are_skipped_counted_and_listed(content, data_file, tiny_processor):
    (data_file.parent / "0.png").write_bytes(content)
    data = dataset(load_records(str(data_file)), tiny_processor, data_file.parent)
    batch = Collator(0)([data[0], data[1]])
    assert batch["sample_ids"].tolist() == [1, 1]
    assert len(batch["skipped"]) == 1
    assert "record 0 (id 0): 0.png" in batch["skipped"][0]


@pytest.mark.parametrize("mode", ["RGBA", "P", "L", "LA", "1", "CMYK"])
def test_every_image_mode_becomes_rgb(mode, tmp_path, tiny_processor):
    name = "x.tiff"
    Image.new(mode, (9, 7)).save(tmp_path / name)
    data = dataset([record(image=name)], tiny_processor, tmp_path)
    assert data[0]["pictures"]["pixel_values"].shape == (1, 3, 16, 16)


def test_padding_keeps_the_whole_image():
    image = Image.new("RGB", (6, 2), (255, 0, 0))
    square = np.asarray(pad_to_square(image, (1, 2, 3)))
    assert square.shape == (6, 6, 3)
    assert (square[2:4] == (255, 0, 0)).all()
    assert (square[:2] == (1, 2, 3)).all()


def test_the_other_formats_give_the_same_items(data_file, tmp_path, tiny_processor):
    datasets = pytest.importorskip("datasets")
    records = load_records(str(data_file))
    lines = tmp_path / "records.jsonl"
    lines.write_text("\n".join(json.dumps(item) for item in records))
    assert load_records(str(lines)) == records

    def image_bytes(item):
        if "image" not in item:
            return None
        return {"bytes": (data_file.parent / item["image"]).read_bytes(), "path": None}

    rows = [{**item, "image": image_bytes(item)} for item in records]
    table = datasets.Dataset.from_list(rows).cast_column("image", datasets.Image())
    table.to_parquet(tmp_path / "records.parquet")
    table.save_to_disk(tmp_path / "saved")
    expected = dataset(records, tiny_processor, data_file.parent)
    for path in ("records.parquet", "saved"):
        other = dataset(load_records(str(tmp_path / path)), tiny_processor)
        for index in range(len(expected)):
            left, right = expected[index], other[index]
            assert torch.equal(left["input_ids"], right["input_ids"])
            assert left["pictures"].keys() == right["pictures"].keys()
            for name in left["pictures"]:
                assert torch.equal(left["pictures"][name], right["pictures"][name])


@pytest.mark.parametrize(
    ("name", "content"), [("a.json", "{"), ("b.json", "{}"), ("c.jsonl", "[1"), ("d.json", None)]
)
def test_unreadable_files_are_named(name, content, tmp_path):
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=name):
        load_records(str(tmp_path / name))


def test_an_unknown_template_is_refused(tiny_processor):
    with pytest.raises(UserError, match="accepted are vicuna_v1, plain"):
        dataset([record()], tiny_processor, template="llama")


def test_leading_answers_and_trailing_questions_are_left_out():
    turns = [("gpt", "hello"), ("human", "q"), ("gpt", "a"), ("human", "q2")]
    values = [{"from": role, "value": text} for role, text in turns]
    assert turns_of(values, "here") == [("q", "a")]


def test_batches_are_padded_on_the_right():
    items = [
        {
            "input_ids": torch.arange(size),
            "labels": torch.arange(size),
            "pictures": {},
            "kinds": {},
            "sample_id": size,
            "truncated": False,
            "skipped": [],
        }
        for size in (2, 4)
    ]
    batch = Collator(9)(items)
    assert batch["input_ids"].tolist() == [[0, 1, 9, 9], [0, 1, 2, 3]]
    assert batch["labels"].tolist() == [[0, 1, -100, -100], [0, 1, 2, 3]]
    assert batch["attention_mask"].sum(1).tolist() == [2, 4]
    assert "pixel_values" not in batch


@given(st.integers(1, 200), st.integers(1, 16), st.integers(0, 3), st.booleans())
@settings(max_examples=40, deadline=None)
def test_an_epoch_is_a_repeatable_permutation(count, group, epoch, by_length):
    rng = np.random.default_rng(count)
    lengths, kinds = rng.integers(1, 99, count), rng.random(count) < 0.7
    orders = []
    for _ in range(2):
        sampler = GroupedSampler(lengths, kinds, group, seed=3, by_length=by_length)
        sampler.choose_epoch(epoch)
        orders.append(list(sampler))
    assert orders[0] == orders[1]
    assert sorted(orders[0]) == list(range(count))


def test_groups_hold_one_kind_and_similar_lengths():
    lengths = np.arange(256)
    kinds = np.arange(256) % 4 != 0
    order = np.array(list(GroupedSampler(lengths, kinds, 16, seed=0))).reshape(16, 16)
    assert all(len(set(kinds[group])) == 1 for group in order)
    assert max(np.ptp(lengths[group]) for group in order) < 100


def test_embedded_bytes_and_images_are_read(tiny_processor):
    picture = Image.new("RGB", (10, 10), (9, 9, 9))
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG")
    by_bytes = record(image={"bytes": buffer.getvalue(), "path": None})
    data = dataset([by_bytes, record(image=picture)], tiny_processor)
    first, second = (data[index]["pictures"]["pixel_values"] for index in (0, 1))
    assert torch.equal(first, second)
