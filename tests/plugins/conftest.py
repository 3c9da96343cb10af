"""A scripted stand-in for the model: answers are known, so order, batching and counts are provable.

It has the interface that the adapter uses (generate, score, last_report) and a tokenizer of one
token a character; an image is four tokens.
"""

from __future__ import annotations

import types

import numpy as np
import pytest
import torch
from PIL import Image

PAD, BOS, EOS, IMAGE, FIRST = 0, 1, 2, 3, 10
IMAGE_TOKENS = 4


class CharTokenizer:
    eos_token, eos_token_id, pad_token_id = "</s>", EOS, PAD
    chat_template, bos_token_id = None, BOS

    def __call__(self, text, add_special_tokens=True):
        ids = [FIRST + ord(letter) for letter in text]
        return {"input_ids": [BOS, *ids] if add_special_tokens else ids}

    def batch_decode(self, rows, skip_special_tokens=True):
        return ["".join(chr(token - FIRST) for token in row if token >= FIRST) for row in rows]


class FirstPixel:
    """An image processor: four patches, each of the first pixel."""

    image_mean = (0.0, 0.0, 0.0)

    def __call__(self, image, return_tensors):
        colour = np.asarray(image.getpixel((0, 0)), dtype=np.float32)
        return {"pixel_values": np.tile(colour[:, None, None], (1, 1, 2, 2))}


class CharProcessor:
    chat_template = None
    image_token_id, patch_size, num_additional_image_tokens = IMAGE, 1, 0
    vision_feature_select_strategy = "full"

    def __init__(self):
        self.tokenizer = CharTokenizer()
        self.image_processor = FirstPixel()


class ScriptedModel:
    """Answers ``script(prompt text, pixel)``; keeps two image tokens and every other output."""

    device, dtype = torch.device("cpu"), torch.float32
    generation_config = types.SimpleNamespace(eos_token_id=EOS)

    def __init__(self, script, memory=10**9):
        self.script = script
        self.memory = memory
        self.calls = []
        self.last_report = None

    def prompts(self, input_ids, attention_mask, pixel_values):
        pixels = iter([] if pixel_values is None else pixel_values[..., 0, 0].tolist())
        for ids, mask in zip(input_ids.tolist(), attention_mask.tolist(), strict=True):
            own = [token for token, valid in zip(ids, mask, strict=True) if valid]
            text = "".join(chr(token - FIRST) for token in own if token >= FIRST)
            yield text, (next(pixels) if IMAGE in own else None)

    def generate(
        self,
        input_ids,
        attention_mask,
        sample_ids,
        pixel_values=None,
        max_new_tokens=None,
        **options,
    ):
        if len(input_ids) > self.memory:
            raise torch.OutOfMemoryError("scripted")
        prompts = list(self.prompts(input_ids, attention_mask, pixel_values))
        self.calls.append(
            (prompts, sample_ids.tolist(), {"max_new_tokens": max_new_tokens, **options})
        )
        rows = []
        for text, pixel in prompts:
            answer = [FIRST + ord(letter) for letter in self.script(text, pixel)]
            rows.append([*answer, EOS][:max_new_tokens])
        width = max(map(len, rows))
        padded = torch.tensor([row + [PAD] * (width - len(row)) for row in rows])
        self.report(attention_mask.sum(1).tolist(), prompts, width - 1)
        return torch.cat([input_ids, padded], 1)

    def report(self, lengths, prompts, fed):
        kept = [[index % 2 == 0 for index in range(fed)] for _ in lengths]
        images = [2 if pixel is not None else 0 for _, pixel in prompts]
        sparse = [n - 2 * (i > 0) for n, i in zip(lengths, images, strict=True)]
        entries = [[n + fed for n in lengths], [n + sum(kept[0]) for n in sparse]]
        per_row = [8 * (a + b) for a, b in zip(*entries, strict=True)]
        self.last_report = types.SimpleNamespace(
            image_tokens=images,
            output_kept=kept,
            layer_tokens=[lengths, sparse],
            kv_lengths=entries,
            kv_bytes_per_row=per_row,
        )

    def score(
        self,
        input_ids,
        attention_mask,
        sample_ids,
        continuation_ids,
        continuation_mask,
        return_logits,
        pixel_values=None,
        questions=None,
    ):
        """Give the scripted answer's tokens probability ~0.9, every other token the rest."""
        assert return_logits
        prompts = self.prompts(input_ids, attention_mask, pixel_values)
        logits = torch.zeros(*continuation_ids.shape, FIRST + 128)
        for row, (text, pixel) in enumerate(prompts):
            answer = [FIRST + ord(letter) for letter in self.script(text, pixel)]
            for column, token in enumerate(answer[: continuation_ids.shape[1]]):
                logits[row, column, token] = 7.0
        return logits


@pytest.fixture
def scripted():
    return ScriptedModel


@pytest.fixture
def processor():
    return CharProcessor()


@pytest.fixture
def picture():
    """Return an image of one colour."""
    return lambda red: Image.new("RGB", (4, 4), (red, 0, 0))
