"""Question families and captions about a scene.

Every family mirrors a kind of question of the public benchmarks. Besides text and answer a
:class:`Question` says which objects it is about; training uses that, scoring does not.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from .scenes import COLOURS, COLUMNS, ROWS, SHAPES, Scene, SceneObject
from .tokenizer import LETTERS, NUMBERS, plural, split_words

FAMILIES = (
    "attribute",
    "existence",
    "counting",
    "relation",
    "multiple_choice",
    "digit",
    "caption",
)
CAPTION_PROMPT = "describe the image."
CAPTION_MIN_OBJECTS = 3
RELATION_MARGIN = 16


@dataclass(frozen=True)
class Question:
    """A question about a scene.

    Attributes
    ----------
    family : str
    text, answer : str
    options : tuple of str
        Texts of the choices A, B, ... of a multiple-choice question.
    subjects : tuple of int
        Objects the answer is read from (``len(scene.objects)`` is the digit).
    mentions : tuple of (int, int)
        ``(word, object)``: the question word that names an object.
    pointers : tuple of int
        Question words that settle the answer once the picture has been looked at.
    answer_links : tuple of (int, int)
        ``(word, object)``: the answer word that is read from an object.
    """

    family: str
    text: str
    answer: str
    options: tuple[str, ...] = ()
    subjects: tuple[int, ...] = ()
    mentions: tuple[tuple[int, int], ...] = ()
    pointers: tuple[int, ...] = ()
    answer_links: tuple[tuple[int, int], ...] = ()


def ask(scene: Scene, family: str, rng: random.Random) -> Question | None:
    """Ask a question of a family about a scene; None where the scene allows none."""
    if family not in _ASKERS:
        raise ValueError(f"unknown family {family!r}; known: {', '.join(_ASKERS)}")
    return _ASKERS[family](scene, rng)


def _asked_attribute(scene: Scene, rng: random.Random) -> tuple[str, str, str, int, str] | None:
    """Kind, question, answer, object and naming word of a question with a unique subject."""
    found = []
    for index, item in enumerate(scene.objects):
        if sum(other.shape == item.shape for other in scene.objects) == 1:
            text = f"what colour is the {item.shape}?"
            found.append(("colour", text, item.colour, index, item.shape))
        if sum(other.colour == item.colour for other in scene.objects) == 1:
            text = f"what shape is the {item.colour} object?"
            found.append(("shape", text, item.shape, index, "object"))
    kind = rng.choice(("colour", "shape"))
    found = [entry for entry in found if entry[0] == kind] or found
    return rng.choice(found) if found else None


def _attribute(scene: Scene, rng: random.Random) -> Question | None:
    asked = _asked_attribute(scene, rng)
    if asked is None:
        return None
    _, text, answer, index, word = asked
    mention = (split_words(text).index(word), index)
    return Question("attribute", text, answer, subjects=(index,), mentions=(mention,))


def _existence(scene: Scene, rng: random.Random) -> Question:
    index = rng.randrange(len(scene.objects))
    item = scene.objects[index]
    if rng.random() < 0.5:
        text = f"is there a {item.colour} {item.shape} in the image?"
        mention = (split_words(text).index(item.shape), index)
        return Question("existence", text, "yes", subjects=(index,), mentions=(mention,))
    present = {(other.colour, other.shape) for other in scene.objects}
    # A wrong colour or a wrong shape of something that is there: guessing from parts fails.
    if rng.random() < 0.5:
        absent = [(c, item.shape) for c in COLOURS if (c, item.shape) not in present]
    else:
        absent = [(item.colour, s) for s in SHAPES if (item.colour, s) not in present]
    if not absent:
        absent = [(c, s) for c in COLOURS for s in SHAPES if (c, s) not in present]
    colour, shape = rng.choice(absent)
    return Question("existence", f"is there a {colour} {shape} in the image?", "no")


def _counting(scene: Scene, rng: random.Random) -> Question:
    candidates: dict[int, list[tuple[str, tuple[int, ...]]]] = {}

    def add(name: str, chosen: list[int]) -> None:
        candidates.setdefault(len(chosen), []).append((name, tuple(chosen)))

    add("objects", list(range(len(scene.objects))))
    for shape in SHAPES:
        add(plural(shape), [i for i, o in enumerate(scene.objects) if o.shape == shape])
    for colour in COLOURS:
        add(f"{colour} objects", [i for i, o in enumerate(scene.objects) if o.colour == colour])
    number = rng.choice(sorted(candidates))
    name, chosen = rng.choice(candidates[number])
    return Question("counting", f"how many {name} are there?", NUMBERS[number], subjects=chosen)


def _relation(scene: Scene, rng: random.Random) -> Question | None:
    pairs = []
    for first, one in enumerate(scene.objects):
        for second, two in enumerate(scene.objects):
            across, down = (a - b for a, b in zip(one.centre, two.centre, strict=True))
            if abs(across) >= RELATION_MARGIN:
                pairs.append((first, second, "left or right of", "left" if across < 0 else "right"))
            if abs(down) >= RELATION_MARGIN:
                pairs.append((first, second, "above or below", "above" if down < 0 else "below"))
    if not pairs:
        return None
    first, second, words, answer = rng.choice(pairs)
    one, two = scene.objects[first], scene.objects[second]
    text = f"is the {one.colour} {one.shape} {words} the {two.colour} {two.shape}?"
    tokens = split_words(text)
    mentions = ((3, first), (len(tokens) - 2, second))
    return Question(
        "relation",
        text,
        answer,
        subjects=(first, second),
        mentions=mentions,
        pointers=tuple(word for word, _ in mentions),
    )


def _multiple_choice(scene: Scene, rng: random.Random) -> Question | None:
    asked = _asked_attribute(scene, rng)
    if asked is None:
        return None
    kind, text, answer, index, word = asked
    names = tuple(COLOURS) if kind == "colour" else SHAPES
    wrong = [name for name in names if name != answer]
    # Distractors that other objects of the picture have come first, so that knowing what is
    # somewhere in the picture is not enough.
    seen = {getattr(item, kind) for item in scene.objects}
    wrong = sorted(rng.sample(wrong, len(wrong)), key=lambda name: name not in seen)[:3]
    options = rng.sample([answer, *wrong], 4)
    lines = [f"{letter}. {name}" for letter, name in zip(LETTERS, options, strict=True)]
    mention = (split_words(text).index(word), index)
    right = options.index(answer)
    pointer = len(split_words(text)) + 3 * right + 2
    return Question(
        "multiple_choice",
        "\n".join([text, *lines]),
        LETTERS[right],
        options=tuple(options),
        subjects=(index,),
        mentions=(mention,),
        pointers=(pointer,),
    )


def _digit(scene: Scene, rng: random.Random) -> Question | None:
    if scene.digit is None:
        return None
    answer = str(scene.digit.value)
    return Question("digit", "which digit is shown?", answer, subjects=(len(scene.objects),))


def _position(scene: Scene, rng: random.Random) -> Question:
    index = rng.randrange(len(scene.objects))
    item = scene.objects[index]
    text = f"where is the {item.colour} {item.shape}?"
    answer = f"{ROWS[item.row]} row, {COLUMNS[item.column]} column"
    return Question(
        "position",
        text,
        answer,
        subjects=(index,),
        mentions=((4, index),),
        answer_links=((0, index), (3, index)),
    )


def _caption(scene: Scene, rng: random.Random) -> Question | None:
    if len(scene.objects) < CAPTION_MIN_OBJECTS:
        return None
    answer, links = describe(scene)
    return Question("caption", CAPTION_PROMPT, answer, answer_links=links)


def describe(scene: Scene) -> tuple[str, tuple[tuple[int, int], ...]]:
    """Write the caption of a scene: every object in reading order, then a recap.

    Returns
    -------
    text : str
        69 to 139 words and punctuation marks for scenes of three objects or more.
    links : tuple of (int, int)
        ``(word, object)`` of the words that are read from one object of the picture.
    """
    objects, digit = scene.objects, scene.digit
    noun = "object" if len(objects) == 1 else "objects"
    ending = "no digit" if digit is None else f"the digit {digit.value}"
    words = split_words(f"the image shows {NUMBERS[len(objects)]} {noun} and {ending}.")
    links = []
    if digit is not None:
        links.append((len(words) - 2, len(objects)))
    for index, item in enumerate(objects):
        start = len(words)
        words += split_words(
            f"in the {ROWS[item.row]} row, {COLUMNS[item.column]} column, there is a "
            f"{item.size} {item.colour} {item.shape}."
        )
        links += [(start + offset, index) for offset in (2, 5, 11, 12, 13)]
    if digit is not None:
        start = len(words)
        place = f"{ROWS[digit.row]} row, {COLUMNS[digit.column]} column"
        words += split_words(f"the digit {digit.value} is in the {place}.")
        links += [(start + offset, len(objects)) for offset in (2, 6, 9)]
    names = [_name(item) for item in objects]
    recap = names[0] if len(names) == 1 else ", ".join(names[:-1]) + " and " + names[-1]
    words += split_words(f"in short: {recap}.")
    return join_words(words), tuple(links)


def join_words(words: list[str]) -> str:
    """Words as running text: no space before punctuation."""
    text = " ".join(words)
    for mark in ",.:?":
        text = text.replace(f" {mark}", mark)
    return text


def _name(item: SceneObject) -> str:
    return f"a {item.colour} {item.shape}"


_ASKERS: dict[str, Callable[[Scene, random.Random], Question | None]] = {
    "attribute": _attribute,
    "existence": _existence,
    "counting": _counting,
    "relation": _relation,
    "multiple_choice": _multiple_choice,
    "digit": _digit,
    "caption": _caption,
    # An exercise for training only.
    "position": _position,
}
