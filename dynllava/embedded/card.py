"""Write the model card from the measured numbers: ``python -m dynllava.embedded.card``."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

_HEAD = """---
license: apache-2.0
library_name: transformers
pipeline_tag: image-text-to-text
---

# Embedded LLaVA of dynllava

A tiny `LlavaForConditionalGeneration` (CLIP vision tower of 3 layers, LLaMA decoder of 6 layers,
both 128 wide; 1.47 M parameters, float16) trained from scratch on synthetic scenes. It exists so
that every method, metric and report of this project can run within minutes on a CPU with an
accuracy that training really earned.

**The model and its data were made for this demonstration. What it shows is no evidence about
LLaVA-1.5 or any other real model**, nor about how methods rank on real images.

## Input

96 x 96 pixels, patches of 8 pixels, 144 image tokens. Images of another size are resized to a
shortest edge of 96 and cropped. One image a prompt; prompt format (also the chat template):

    USER: <image>
    what colour is the circle? ASSISTANT:

The vocabulary is closed, about 100 words; everything else becomes `<unk>`, so a long system
prompt only adds noise.

## Measured

Exact match in %, greedy decoding, float32 arithmetic on the shipped weights, torch CPU.
`no image after layer 2`: no text token sees an image token in decoder layers >= 2, positions
kept. `blind`: no text token ever sees an image token. `majority answer`: always giving the most
frequent answer of the family in this split. Captions: perplexity of the reference per token, and
the share of right words among those that are read from the image, given the words before.
"""

_TAIL = """
## What was done, and whom it favours

- Stage 1 trains the vision tower so that each image token resembles the words for what its patch
  shows (colour, shape, size, digit, row, column, one marked centre patch an object). Image tokens
  are therefore unusually local and easy to tell apart: this favours **every method that drops
  image tokens**, since background tokens carry next to nothing.
- Stage 2 trains the decoder with a *grounding loss* on two heads of layers 1-4: the naming word
  of the question (layer 2) and the last prompt token (layer 3) are pulled towards the patches of
  the object asked for; counting, comparing and choosing get similar hints. Attention that points
  at the right patches favours **methods that rank image tokens by text-to-image attention in
  those layers** (SparseVLM-like) over random and structural baselines.
- Text-to-image attention in layers 0 and 1 is blocked in 70 % of the rows at first and opened
  towards the end, so that the image does not leak into the text before the sparse layer. It
  disfavours **methods that rank by attention in layers 0 or 1** (FastV with K = 2): how good
  their ranking is depends on how long those layers were open.
- Captions list the objects in reading order and end with a recap that repeats them. Dropping
  output tokens hurts there by design, and a method that keeps the naming words wins by design.
- Objects cover about 18 of 144 patches, so a budget of 20 % (28 tokens) can hold everything that
  matters.

Inference uses none of these devices: it is stock LLaVA.

## Files

`training_log.jsonl` is the log of the run that made these weights (every tenth step);
`evaluation.json` holds the tables above. Retrain with `python -m dynllava.embedded.train`, measure
with `python -m dynllava.embedded.evaluate`, see docs/embedded.md.
"""


def render(evaluation: dict[str, dict], notes: str) -> str:
    """Compose the card.

    Parameters
    ----------
    evaluation : dict
        Tables of :func:`dynllava.embedded.evaluate.evaluate` by heading.
    notes : str
        How these weights were trained, in Markdown.
    """
    from .evaluate import format_table

    parts = [_HEAD]
    for heading, table in evaluation.items():
        parts.append(f"\n### {heading}\n\n{format_table(table)}\n")
    return "".join(parts) + "\n## How these weights were made\n\n" + notes.strip() + "\n" + _TAIL


def main(arguments: Sequence[str] | None = None) -> int:
    """Rewrite README.md of a model folder."""
    from . import model_path

    parser = argparse.ArgumentParser(prog="python -m dynllava.embedded.card")
    parser.add_argument("--model", type=Path, default=None, help="default: the shipped model")
    parser.add_argument("--notes", type=Path, help="Markdown on the run; default: training.md")
    options = parser.parse_args(arguments)
    folder = options.model or model_path()
    evaluation, notes = folder / "evaluation.json", options.notes or folder / "training.md"
    for path in (evaluation, notes):
        if not path.is_file():
            parser.error(f"{path} does not exist")
    card = render(json.loads(evaluation.read_text()), notes.read_text())
    (folder / "README.md").write_text(card)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
