"""Accuracy of the embedded model and the controls that say whether it looks at the image.

Three conditions, in plain transformers and torch:

- ``full``: the stock model;
- ``dropped``: no text token sees an image token in decoder layers >= 2, positions kept;
- ``blind``: no text token ever sees an image token.

Run ``python -m dynllava.embedded.evaluate --help``.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F

from .alignment import image_tokens, pixel_batch
from .data import SPLITS, split_questions, split_size
from .language import run_layers
from .packing import attention_masks, pack
from .questions import FAMILIES, Question
from .scenes import Scene

if TYPE_CHECKING:
    from transformers import LlavaForConditionalGeneration

CONDITIONS = ("full", "dropped", "blind")
DROP_LAYER = 2


@torch.inference_mode()
def score_batch(
    model: LlavaForConditionalGeneration,
    scenes: Sequence[Scene],
    questions: Sequence[Question],
    condition: str,
) -> list[tuple[bool, float, int, int, int]]:
    """Teacher-forced scores of one question per scene.

    Returns
    -------
    list of tuple
        Per question: whether greedy decoding gives exactly the answer (every token of it and
        the end is the most likely one), summed negative log likelihood in nats, number of
        tokens, right words among those read from the picture, number of such words.
    """
    packed = pack(scenes, [[question] for question in questions])
    open_mask, early_mask = attention_masks(packed, torch.ones(len(scenes), dtype=torch.bool))
    closed_from = {"full": 99, "dropped": DROP_LAYER, "blind": 0}[condition]
    layers = model.config.text_config.num_hidden_layers
    masks = [early_mask if index >= closed_from else open_mask for index in range(layers)]
    images = image_tokens(model, pixel_batch(scenes))
    states, _ = run_layers(model, packed.tokens, packed.positions, images, masks)
    results = []
    for row, question in enumerate(questions):
        places = (packed.labels[row] >= 0).nonzero()[:, 0]
        labels = packed.labels[row, places]
        logits = model.lm_head(states[row, places]).float()
        right = logits.argmax(-1) == labels
        loss = float(F.cross_entropy(logits, labels, reduction="sum"))
        seen = [int(right[word]) for word, _ in question.answer_links]
        results.append((bool(right.all()), loss, len(labels), sum(seen), len(seen)))
    return results


def evaluate(
    model: LlavaForConditionalGeneration,
    split: str = "test",
    limit: int | None = None,
    families: Sequence[str] = FAMILIES,
    conditions: Sequence[str] = CONDITIONS,
    batch_size: int = 25,
) -> dict[str, dict[str, Any]]:
    """Measure every family under every condition.

    Returns
    -------
    dict
        Per family ``n``; for short answers ``majority`` (share of the most frequent answer) and
        the exact-match accuracy per condition; for captions a dict per condition with
        ``perplexity`` per token and ``words``, the share of right words among those read from
        the picture (given the words before).
    """
    model = model.float().eval()
    table: dict[str, dict[str, Any]] = {}
    for family in families:
        pairs = list(split_questions(split, family, limit or split_size(split, family)))
        entry: dict[str, Any] = {"n": len(pairs)}
        if family != "caption":
            answers = Counter(question.answer for _, question in pairs)
            entry["majority"] = answers.most_common(1)[0][1] / len(pairs)
        for condition in conditions:
            rows = []
            for start in range(0, len(pairs), batch_size):
                scenes, questions = zip(*pairs[start : start + batch_size], strict=True)
                rows += score_batch(model, scenes, questions, condition)
            exact, loss, tokens, seen, words = (sum(column) for column in zip(*rows, strict=True))
            if family == "caption":
                entry[condition] = {"perplexity": math.exp(loss / tokens), "words": seen / words}
            else:
                entry[condition] = exact / len(rows)
        table[family] = entry
    return table


def format_table(table: dict[str, dict[str, Any]]) -> str:
    """Format the table as Markdown."""
    lines = [
        "| family | n | full | no image after layer 2 | blind | majority answer |",
        "|---|---|---|---|---|---|",
    ]
    for family, entry in table.items():
        if family == "caption":
            continue
        numbers = [f"{100 * entry[key]:.1f}" for key in (*CONDITIONS, "majority") if key in entry]
        lines.append(f"| {family} | {entry['n']} | " + " | ".join(numbers) + " |")
    if "caption" in table:
        entry = table["caption"]
        for key, label, form in (
            ("perplexity", "caption: perplexity", "{:.3f}"),
            ("words", "caption: words read from the image, %", "{:.1f}"),
        ):
            scale = 100 if key == "words" else 1
            measured = [entry[name][key] for name in CONDITIONS if name in entry]
            numbers = [form.format(scale * value) for value in measured]
            lines.append(f"| {label} | {entry['n']} | " + " | ".join(numbers) + " | - |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line of the controls."""
    from . import model_path

    parser = argparse.ArgumentParser(prog="python -m dynllava.embedded.evaluate")
    parser.add_argument("--model", type=Path, default=None, help="default: the shipped model")
    parser.add_argument("--split", choices=list(SPLITS), default="test")
    parser.add_argument("--limit", type=int, default=None, help="questions a family")
    parser.add_argument("--output", type=Path, help="add the table to this JSON file")
    parser.add_argument("--label", help="key in the JSON file; default: the split")
    options = parser.parse_args(arguments)
    if options.limit is not None and options.limit < 1:
        parser.error(f"--limit must be at least 1, got {options.limit}")
    folder = options.model or model_path()
    if not (folder / "config.json").is_file():
        print(f"error: no model in {folder} (config.json is missing)", file=sys.stderr)
        return 2
    from transformers import LlavaForConditionalGeneration

    torch.set_num_threads(1)
    table = evaluate(
        LlavaForConditionalGeneration.from_pretrained(folder), options.split, options.limit
    )
    print(format_table(table))
    if options.output:
        known = json.loads(options.output.read_text()) if options.output.is_file() else {}
        known[options.label or options.split] = table
        options.output.write_text(json.dumps(known, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
