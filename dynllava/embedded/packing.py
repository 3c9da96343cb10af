"""Several questions about one image in one row: the training batches of the language stage.

A row is ``<s> USER: <image> * 144`` followed by one segment per question. A segment sees the
image and itself, never another segment, and its positions continue after the image, so each
question looks exactly as it does alone at inference.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from .model import IMAGE_TOKENS
from .questions import Question, ask
from .scenes import MAX_OBJECTS, PATCH_SIZE, PATCHES_PER_SIDE, Scene
from .tokenizer import BOS, EOS, IMAGE, PAD, split_words, vocabulary

if TYPE_CHECKING:
    import torch

PREFIX = 3 + IMAGE_TOKENS  # <s> USER : and the image
LETTER_LAYER, MENTION_LAYER, SUBJECT_LAYER, POINTER_LAYER = 1, 2, 3, 4
HEADS = 2  # supervised heads of a layer
CAPTION_WEIGHT = 0.2
CAPTION_SHARE = 0.25
# Attention on n counted objects should sum to n / (n + 2): a share that tells n.
COUNTING_REST = 2
# How often each family is asked; multi-step families need most practice.
PRACTICE = {
    "attribute": 3,
    "existence": 2,
    "counting": 4,
    "relation": 5,
    "multiple_choice": 3,
    "digit": 1,
    "position": 1,
}


@dataclass
class Packed:
    """One batch.

    Attributes
    ----------
    tokens, positions, labels, segments : torch.Tensor
        int64 ``[B, L]``; label -100 where nothing is predicted; segment 0 is the image prefix,
        -1 padding.
    weights : torch.Tensor
        float32 ``[B, L]``, loss weight of predicting the *next* token.
    families : list of list of (str, int)
        Per row, each short question's family and the place its first answer token is
        predicted from.
    links : dict of int to Links
        Per decoder layer, where training wants places to look.
    """

    tokens: torch.Tensor
    positions: torch.Tensor
    labels: torch.Tensor
    segments: torch.Tensor
    weights: torch.Tensor
    families: list[list[tuple[str, int]]]
    links: dict[int, Links]


@dataclass
class Links:
    """Wanted attention in one decoder layer.

    Attributes
    ----------
    rows, places : torch.Tensor
        int64 ``[N]``: batch row and query place.
    goal : torch.Tensor
        bool ``[N, 2, L]``: the places that each of the first two heads should attend to.
    share : torch.Tensor
        float32 ``[N]``: attention that the goal should get in sum.
    """

    rows: torch.Tensor
    places: torch.Tensor
    goal: torch.Tensor
    share: torch.Tensor


@dataclass(frozen=True)
class _Link:
    layer: int
    row: int
    place: int
    goals: tuple[np.ndarray, ...]  # one for all heads, or one per head
    share: float = 1.0


def draw_questions(scene: Scene, rng: random.Random, budget: int = 180) -> list[Question]:
    """Practice questions of a scene that fill a row: at most ``budget`` tokens of text."""
    names, weights = list(PRACTICE), list(PRACTICE.values())
    families = rng.choices(names, weights, k=24)
    if rng.random() < CAPTION_SHARE:
        families.insert(0, "caption")
    chosen: list[Question] = []
    for family in families:
        question = ask(scene, family, rng)
        if question is None or any(question.text == other.text for other in chosen):
            continue
        # ASSISTANT, its colon and the end of the answer come on top of the words.
        budget -= len(split_words(question.text)) + len(split_words(question.answer)) + 3
        if budget < 0:
            break
        chosen.append(question)
    return chosen


def pack(scenes: Sequence[Scene], questions: Sequence[Sequence[Question]]) -> Packed:
    """Lay out one row per scene."""
    import torch

    ids = {word: index for index, word in enumerate(vocabulary())}
    prefix = [ids[BOS], ids["USER"], ids[":"]] + [ids[IMAGE]] * IMAGE_TOKENS
    rows, all_links, families = [], [], []
    for index, (scene, asked) in enumerate(zip(scenes, questions, strict=True)):
        row = _Row(prefix)
        for segment, question in enumerate(asked, start=1):
            all_links += row.add(segment, question, scene, index, ids)
        rows.append(row)
        families.append(row.families)
    length = max(len(row.tokens) for row in rows)
    pads = (ids[PAD], 0, -100, -1, 0.0)
    columns = {}
    names = ("tokens", "positions", "labels", "segments", "weights")
    for name, pad in zip(names, pads, strict=True):
        values = [getattr(row, name) + [pad] * (length - len(row.tokens)) for row in rows]
        columns[name] = torch.tensor(values)
    links = {}
    for layer in sorted({link.layer for link in all_links}):
        here = [link for link in all_links if link.layer == layer]
        goal = torch.zeros(len(here), HEADS, length, dtype=torch.bool)
        for number, link in enumerate(here):
            for head in range(HEADS):
                goal[number, head, link.goals[head % len(link.goals)]] = True
        links[layer] = Links(
            torch.tensor([link.row for link in here]),
            torch.tensor([link.place for link in here]),
            goal,
            torch.tensor([link.share for link in here]),
        )
    return Packed(**columns, families=families, links=links)


def attention_masks(packed: Packed, blind: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Additive masks of the open layers and of the first two layers.

    Parameters
    ----------
    packed : Packed
    blind : torch.Tensor
        bool ``[B]``: rows whose text may not look at the image in the first two layers.

    Returns
    -------
    open_mask, early_mask : torch.Tensor
        float32 ``[B, 1, L, L]`` with 0 and -inf.
    """
    import torch

    segments = packed.segments
    length = segments.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool).tril()
    keys, queries = segments[:, None, :], segments[:, :, None]
    seen = causal & ((keys == 0) | (keys == queries)) & (keys >= 0)
    seen |= torch.eye(length, dtype=torch.bool)  # pads look at themselves: no empty softmax
    places = torch.arange(length)
    picture = (places >= PREFIX - IMAGE_TOKENS) & (places < PREFIX)
    hidden = blind[:, None, None] & (queries > 0) & picture
    masks = []
    for allowed in (seen, seen & ~hidden):
        mask = torch.zeros(allowed.shape).masked_fill_(~allowed, float("-inf"))
        masks.append(mask[:, None])
    return masks[0], masks[1]


class _Row:
    """Token columns of one row while it grows."""

    def __init__(self, prefix: list[int]) -> None:
        self.tokens = list(prefix)
        self.positions = list(range(len(prefix)))
        self.labels = [-100] * len(prefix)
        self.segments = [0] * len(prefix)
        self.weights = [0.0] * len(prefix)
        self.families: list[tuple[str, int]] = []

    def add(
        self, segment: int, question: Question, scene: Scene, row: int, ids: dict[str, int]
    ) -> list[_Link]:
        """Append a question; returns where it should look."""
        start = len(self.tokens)
        asked = [ids[word] for word in split_words(question.text)] + [ids["ASSISTANT"], ids[":"]]
        answer = [ids[word] for word in split_words(question.answer)] + [ids[EOS]]
        last = start + len(asked) - 1
        body = asked + answer
        self.tokens += body
        self.positions += range(PREFIX, PREFIX + len(body))
        self.segments += [segment] * len(body)
        # The label of a place is the token after it.
        self.labels += [-100] * (len(asked) - 1) + answer + [-100]
        weight = CAPTION_WEIGHT if question.family == "caption" else 1.0
        self.weights += [0.0] * (len(asked) - 1) + [weight] * len(answer) + [0.0]
        if question.family not in ("caption", "position"):
            self.families.append((question.family, last))

        first = PREFIX - IMAGE_TOKENS
        shown = [first + np.flatnonzero(scene.patches == k) for k in range(MAX_OBJECTS + 1)]
        links = [
            _Link(MENTION_LAYER, row, start + word, (shown[k],)) for word, k in question.mentions
        ]
        links += [
            _Link(SUBJECT_LAYER, row, last + word, (shown[k],)) for word, k in question.answer_links
        ]
        if question.pointers:
            words = tuple(np.array([start + word]) for word in question.pointers)
            links.append(_Link(POINTER_LAYER, row, last, words))
        for number in range(len(question.options)):
            word = last - 2 - 3 * (len(question.options) - 1 - number)
            links.append(_Link(LETTER_LAYER, row, word, (np.array([word - 2]),)))
        if question.family == "counting" and question.subjects:
            centres = [scene.objects[k].centre for k in question.subjects]
            anchors = np.array(
                [first + y // PATCH_SIZE * PATCHES_PER_SIDE + x // PATCH_SIZE for x, y in centres]
            )
            share = len(anchors) / (len(anchors) + COUNTING_REST)
            links.append(_Link(SUBJECT_LAYER, row, last, (anchors,), share))
        elif len(question.subjects) == 1:
            links.append(_Link(SUBJECT_LAYER, row, last, (shown[question.subjects[0]],)))
        return links
