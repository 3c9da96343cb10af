"""What the held-out questions ask, and that wrong answers are wrong for the right reason."""

from __future__ import annotations

import hashlib

import pytest

from dynllava.embedded import FAMILIES, ask, data, generate_scene
from dynllava.embedded import scenes as module
from dynllava.embedded.scenes import COLOURS, SHAPES, seeded_random

#: Of every question: text, answer, options, what it is about, and which patch shows what.
DIGESTS = {
    "val": "a3a893e79d0adb368425eaaa542a02a945edee54f1537c7821ecc25798f5e37b",
    "test": "ed01fdb2cc0b232939890cb15e6c826a40d58c7796389f144de9c1caef8d457e",
    "fresh": "88d894fad69df0ffe5aced1922cffb5c16427289c3006f1682126437145365f1",
}


@pytest.mark.parametrize("split", list(DIGESTS))
def test_the_questions_of_a_split_are_the_recorded_ones(split):
    digest = hashlib.sha256()
    for family in FAMILIES:
        for scene, item in data.split_questions(split, family, data.SPLITS[split]):
            digest.update(f"{item.text}|{item.answer}|{item.options}|{item.subjects}|".encode())
            digest.update(f"{item.mentions}|{item.pointers}|{item.answer_links}\n".encode())
            digest.update(scene.patches.tobytes())
    assert digest.hexdigest() == DIGESTS[split]


@pytest.fixture(scope="module")
def many():
    return [generate_scene(f"options/{seed}") for seed in range(300)]


def test_distractors_in_the_picture_come_before_those_that_are_not(many):
    """Knowing what is somewhere in the picture must not settle a choice."""
    asked = 0
    for number, scene in enumerate(many):
        item = ask(scene, "multiple_choice", seeded_random("distractors", number))
        if item is None:
            continue
        kind = "colour" if set(item.options) <= set(COLOURS) else "shape"
        right = item.options["ABCD".index(item.answer)]
        assert len(set(item.options)) == 4
        assert set(item.options) <= set(COLOURS if kind == "colour" else SHAPES)
        seen = {getattr(thing, kind) for thing in scene.objects} - {right}
        wrong = set(item.options) - {right}
        assert len(wrong & seen) == min(3, len(seen))
        asked += 1
    assert asked > 200


def test_what_is_not_there_shares_its_colour_or_its_shape_with_something_that_is(many):
    answers = []
    for number, scene in enumerate(many):
        item = ask(scene, "existence", seeded_random("existence", number))
        colour, shape = item.text.split()[3:5]
        there = {(thing.colour, thing.shape) for thing in scene.objects}
        assert ((colour, shape) in there) == (item.answer == "yes")
        if item.answer == "no":
            assert colour in {c for c, _ in there} or shape in {s for _, s in there}
        answers.append(item.answer)
    assert 0.35 < answers.count("yes") / len(answers) < 0.65


def test_objects_of_a_relation_lie_clearly_apart(many):
    for number, scene in enumerate(many):
        item = ask(scene, "relation", seeded_random("relation", number))
        if item is None:
            continue
        one, two = (scene.objects[index].centre for index in item.subjects)
        axis = 0 if item.answer in ("left", "right") else 1
        assert abs(one[axis] - two[axis]) >= 16
        smaller = item.answer in ("left", "above")
        assert (one[axis] < two[axis]) == smaller


def test_everything_that_is_drawn_shows_in_at_least_one_patch():
    """At least 10 of a patch's 64 pixels, wherever in its cell a thing may lie."""
    masks = [module._shape_mask(shape, radius) for shape in SHAPES for radius in
             module._RADIUS.values()]  # fmt: skip
    for mask in [*masks, *map(module._digit_mask, range(10))]:
        height, width = mask.shape
        for top in range(1, module.CELL - height):
            for left in range(1, module.CELL - width):
                box = (left, top, left + width, top + height)
                assert module._patch_coverage(mask, box).max() >= 10
