"""Scenes, questions and splits: deterministic, balanced, disjoint."""

import hashlib
import io
import json
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from dynllava.embedded import (
    FAMILIES,
    ask,
    data,
    ensure_split,
    generate_scene,
    load_split,
    training_records,
)
from dynllava.embedded.scenes import COLOURS, MAX_OBJECTS, SHAPES, seeded_random
from dynllava.embedded.tokenizer import LETTERS, split_words, vocabulary
from dynllava.errors import UserError

PIXEL_HASH = "c5748ba51fce1f723c77c6a467a32016b525ddecd27cdc34e3561018db94d45b"


def test_pixels_are_the_same_on_every_machine():
    digest = hashlib.sha256()
    for seed in range(40):
        digest.update(generate_scene(seed).image.tobytes())
    assert digest.hexdigest() == PIXEL_HASH


def test_seed_decides_the_scene():
    assert generate_scene(3).to_dict() == generate_scene("3").to_dict()
    assert generate_scene(3).to_dict() != generate_scene(4).to_dict()


@pytest.mark.parametrize("seed", range(20))
def test_scene_is_as_described(seed):
    scene = generate_scene(seed)
    assert scene.image.size == (96, 96)
    assert scene.image.mode == "RGB"
    assert 1 <= len(scene.objects) <= MAX_OBJECTS
    assert len({(item.colour, item.shape) for item in scene.objects}) == len(scene.objects)
    pixels = np.asarray(scene.image).astype(int)
    for index, item in enumerate(scene.objects):
        assert (scene.patches == index).any()
        left, top, right, bottom = item.box
        assert item.column * 24 <= left < right <= (item.column + 1) * 24
        assert item.row * 24 <= top < bottom <= (item.row + 1) * 24
        region = pixels[top:bottom, left:right].reshape(-1, 3)
        near = np.abs(region - np.array(COLOURS[item.colour])).max(1) < 30
        assert near.mean() > 0.15, item


def test_forced_digit_and_object_count():
    assert generate_scene(0, digit=True).digit is not None
    assert generate_scene(0, digit=False).digit is None
    assert len(generate_scene(0, min_objects=6).objects) == 6
    with pytest.raises(ValueError, match="min_objects"):
        generate_scene(0, min_objects=7)


def answer_by_rule(scene, question):
    """An independent reading of the short questions from the scene's description."""
    words = split_words(question.text)
    by_name = {(item.colour, item.shape): item for item in scene.objects}
    if question.family == "existence":
        return "yes" if (words[3], words[4]) in by_name else "no"
    if question.family == "counting":
        match = words[2]
        hits = [
            item
            for item in scene.objects
            if match in (item.colour, "objects") or match.startswith(item.shape)
        ]
        return ("zero", "one", "two", "three", "four", "five", "six")[len(hits)]
    if question.family == "relation":
        one, two = by_name[words[2], words[3]], by_name[words[-3], words[-2]]
        (x, y), (a, b) = one.centre, two.centre
        if "left" in words:
            return "left" if x < a else "right"
        return "above" if y < b else "below"
    if question.family == "digit":
        return str(scene.digit.value)
    if question.text.startswith("what colour"):
        (answer,) = [item.colour for item in scene.objects if item.shape == words[4]]
    else:
        (answer,) = [item.shape for item in scene.objects if item.colour == words[4]]
    if question.family == "multiple_choice":
        return LETTERS[question.options.index(answer)]
    return answer


@pytest.mark.parametrize("family", [name for name in FAMILIES if name != "caption"])
def test_answers_follow_from_the_scene(family):
    known = set(vocabulary())
    for seed in range(60):
        scene = generate_scene(seed)
        question = ask(scene, family, seeded_random("rule", seed))
        if question is None:
            continue
        assert question.answer == answer_by_rule(scene, question)
        assert set(split_words(question.text + " " + question.answer)) <= known


def test_captions_are_long_and_end_with_a_recap():
    for seed in range(30):
        scene = generate_scene(seed, min_objects=3)
        question = ask(scene, "caption", seeded_random(seed))
        words = split_words(question.answer)
        assert 60 <= len(words) <= 150
        assert set(words) <= set(vocabulary())
        recap = question.answer.split("in short: ")[1]
        for item in scene.objects:
            assert f"{item.colour} {item.shape}" in recap
        for word, index in question.answer_links:
            if index < len(scene.objects):
                item = scene.objects[index]
                assert words[word] in json.dumps(item.__dict__) or words[word] in (
                    ("top", "upper", "lower", "bottom")[item.row],
                    ("first", "second", "third", "fourth")[item.column],
                )


def test_unknown_family_and_split():
    with pytest.raises(ValueError, match="unknown family 'colours'"):
        ask(generate_scene(0), "colours", seeded_random(0))
    with pytest.raises(ValueError, match="unknown split 'training'"):
        ensure_split("training")


def test_yes_and_no_are_balanced():
    answers = [q.answer for _, q in data.split_questions("test", "existence", 100)]
    assert answers.count("yes") == 50


@pytest.mark.parametrize("family", FAMILIES)
def test_no_answer_dominates(family):
    answers = [q.answer for _, q in data.split_questions("val", family, 100)]
    assert max(map(answers.count, answers)) <= 50


def test_split_is_written_once_and_reads_back(tmp_path, monkeypatch):
    pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    monkeypatch.setitem(data.SPLITS, "val", 5)
    folder = ensure_split("val", tmp_path)
    assert ensure_split("val", tmp_path) == folder
    assert [path for path in tmp_path.iterdir() if path != folder] == []
    manifest = json.loads((folder / "manifest.json").read_text())
    for family in FAMILIES:
        rows = load_split("val", family, tmp_path)
        assert len(rows) == manifest[family]["rows"] == 5
        assert data.content_hash(rows) == manifest[family]["sha256"]
        assert rows[0]["family"] == family
        assert json.loads(rows[0]["scene"])["objects"][0]["box"]


def test_unwritable_folder_is_one_clear_line(tmp_path):
    blocker = tmp_path / "file"
    blocker.write_text("")
    with pytest.raises(UserError, match="cannot write the embedded data"):
        ensure_split("val", blocker)


def test_datasets_decodes_the_images(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets", reason="datasets is not installed")
    monkeypatch.setitem(data.SPLITS, "val", 3)
    path = ensure_split("val", tmp_path) / "digit.parquet"
    loaded = datasets.load_dataset(
        "parquet", data_files={"val": str(path)}, cache_dir=str(tmp_path / "cache")
    )["val"]
    assert isinstance(loaded[0]["image"], Image.Image)
    assert loaded[0]["image"].size == (96, 96)


def test_splits_are_disjoint():
    pixels = {}
    for split in ("val", "test", "fresh"):
        for family in FAMILIES:
            for scene, _ in data.split_questions(split, family, 15):
                key = hashlib.sha256(scene.image.tobytes()).digest()
                assert pixels.setdefault(key, split) == split
    for image, _ in training_records(0, 100):
        assert hashlib.sha256(image.tobytes()).digest() not in pixels


def test_training_records_have_llava_form():
    records = list(training_records(5, 40))
    assert [image.tobytes() for image, _ in training_records(5, 40)] == [
        image.tobytes() for image, _ in records
    ]
    captions = 0
    for _, (human, gpt) in records:
        assert human["from"] == "human"
        assert human["value"].startswith("<image>\n")
        assert gpt["from"] == "gpt"
        captions += len(split_words(gpt["value"])) >= 60
    assert 8 <= captions <= 32


def test_import_is_light():
    code = (
        "import sys, dynllava.embedded; "
        "print([m for m in ('torch', 'transformers', 'datasets', 'lmms_eval') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_png_bytes_hold_the_pixels():
    scene = generate_scene(1)
    row = data._row(scene, ask(scene, "existence", seeded_random(1)), "x")
    image = Image.open(io.BytesIO(row["image"]["bytes"]))
    assert image.tobytes() == scene.image.tobytes()


def test_all_shapes_and_colours_occur():
    items = [item for seed in range(60) for item in generate_scene(seed).objects]
    assert {item.shape for item in items} == set(SHAPES)
    assert {item.colour for item in items} == set(COLOURS)
