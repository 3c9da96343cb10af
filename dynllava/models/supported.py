"""Makes ``docs/supported_models.md`` from the families' table."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from dynllava import methods

from .families import FAMILIES, REFUSED, refusal


@dataclass(frozen=True)
class Published:
    """What is published of a family.

    Attributes
    ----------
    checkpoints : tuple of (str, str)
        Hub names, and their licence as far as it was found (the model card decides).
    image : str
        How a picture becomes tokens.
    tower : str
        What methods that look into the vision tower find there.
    """

    checkpoints: tuple[tuple[str, str], ...]
    image: str
    tower: str


CARD = "see the model card"
PUBLISHED = {
    "llava": Published(
        (
            ("llava-hf/llava-1.5-7b-hf", "Llama 2 licence"),
            ("llava-hf/llava-1.5-13b-hf", "Llama 2 licence"),
            ("liuhaotian/llava-v1.5-7b", "Llama 2 licence"),
        ),
        "one square grid (24 x 24 patches)",
        "CLIP: class token and patches",
    ),
    "llava_next": Published(
        (
            ("llava-hf/llava-v1.6-vicuna-7b-hf", CARD),
            ("llava-hf/llava-v1.6-mistral-7b-hf", "Apache-2.0"),
        ),
        "the whole picture as one crop, then a grid of crops without its padding, a newline token "
        "behind each row of that grid",
        "CLIP: class token and patches, a crop at a time",
    ),
    "llava_onevision": Published(
        (
            ("llava-hf/llava-onevision-qwen2-0.5b-ov-hf", "Apache-2.0"),
            ("llava-hf/llava-onevision-qwen2-7b-ov-hf", "Apache-2.0"),
        ),
        "as LLaVA-NeXT, grids of more than nine crops scaled down",
        "SigLIP: no class token",
    ),
    "qwen2_vl": Published(
        (("Qwen/Qwen2-VL-2B-Instruct", "Apache-2.0"), ("Qwen/Qwen2-VL-7B-Instruct", "Apache-2.0")),
        "one grid of the picture's own size, 2 x 2 patches a token; positions of three axes",
        "no class token",
    ),
    "qwen2_5_vl": Published(
        (
            ("Qwen/Qwen2.5-VL-3B-Instruct", "Qwen Research License"),
            ("Qwen/Qwen2.5-VL-7B-Instruct", "Apache-2.0"),
            ("Qwen/Qwen2.5-VL-72B-Instruct", "Qwen License"),
        ),
        "one grid of the picture's own size, 2 x 2 patches a token; positions of three axes",
        "no class token; most layers attend within windows",
    ),
    "qwen3_vl": Published(
        (("Qwen/Qwen3-VL-4B-Instruct", "Apache-2.0"), ("Qwen/Qwen3-VL-8B-Instruct", "Apache-2.0")),
        "as Qwen2.5-VL; features of three tower layers are added behind text layers 0, 1 and 2 and "
        "follow the tokens that are left",
        "no class token",
    ),
    "internvl": Published(
        (("OpenGVLab/InternVL3-2B-hf", CARD), ("OpenGVLab/InternVL3-8B-hf", CARD)),
        "tiles of 16 x 16 tokens (pixel shuffle), in one run",
        "class token and patches before pixel shuffle",
    ),
    "smolvlm": Published(
        (
            ("HuggingFaceTB/SmolVLM2-500M-Video-Instruct", "Apache-2.0"),
            ("HuggingFaceTB/SmolVLM2-2.2B-Instruct", "Apache-2.0"),
        ),
        "tiles of 8 x 8 tokens (pixel shuffle), text tokens between them",
        "SigLIP: no class token",
    ),
    "idefics3": Published(
        (("HuggingFaceM4/Idefics3-8B-Llama3", "Apache-2.0"),),
        "as SmolVLM, tiles of 13 x 13 tokens",
        "SigLIP: no class token",
    ),
    "mistral3": Published(
        (("mistralai/Mistral-Small-3.1-24B-Instruct-2503", "Apache-2.0"),),
        "one grid of the picture's own size; break tokens between its rows are text",
        "Pixtral: no class token",
    ),
}


def published_licence(name: str) -> str | None:
    """Return the licence of a published checkpoint as far as it was found, None if not."""
    for family in PUBLISHED.values():
        for checkpoint, licence in family.checkpoints:
            if checkpoint == name and licence != CARD:
                return licence
    return None


INTRODUCTION = """# Supported models

`dynllava.wrap(stock, method)` and `load_model(name)` work for the families below. The decoder loop
takes the place of the stock text model; everything else is the stock model's own code, and the
stock object stays as it is. This page is made by `python -m dynllava.models.supported`.

```python
from transformers import AutoModelForImageTextToText
import dynllava

stock = AutoModelForImageTextToText.from_pretrained("Qwen/Qwen2.5-VL-7B-Instruct", dtype="bfloat16")
model = dynllava.wrap(stock, "fastv:k=2,keep_ratio=0.25")
```

lmms-eval and `dynllava compare` take the same names and folders: prompts, pictures and image tokens
are the checkpoint's own processor's, any number of pictures a prompt ([lmms-eval](lmms_eval.md)):

```sh
lmms-eval --model dynamic_llava --tasks pope \\
  --model_args pretrained=Qwen/Qwen2.5-VL-7B-Instruct,method=fastv
```

**What is certified, and how.** Every family: `full` equals stock transformers (tokens equal, logits
within 1e-5 in float32) on tiny random weights, at batch 1, in ragged left- and right-padded batches
of pictures of different sizes, with beams, sampling, scoring and training; every method keeps its
invariants there (batched = single, cached = uncached, declared lengths = lengths seen, keep rate 1
= dense). Dynamic-LLaVA's predictors can be trained for every family ([training](training.md)).
Recorded tensors of the official programs exist for LLaVA-1.5, and of HiRED for LLaVA-NeXT
([conformance](conformance.md)). No checkpoint of another family has been run with its trained
weights here.
"""

RULES = """
## What methods mean there

- A share is a share of all image tokens of a row, several images together.
- Methods rank image tokens wherever they lie; text between images, crops or rows is never dropped.
- A row may hold any number of images. Inside the language model a share is a share of all its image
  tokens; before layer 0 methods work one image at a time, so that each image keeps its own share
  (`keep=64`: 64 of each image; of each tile in SmolVLM and Idefics3, where text stands between
  tiles). Where a picture is cut into crops (LLaVA-NeXT), each crop is judged
  by its own class token and gets a part of the picture's number that is as large as its part of
  the picture's tokens; padding that never reaches the language model is not chosen from.
- Newline tokens are no patches: they are neither ranked nor merged, and stay.
- Methods behind the projector (`divprune`) see image tokens as the language model gets them: merged
  by the tower (Qwen), shuffled (InternVL, SmolVLM, Idefics3) or packed (LLaVA-NeXT, OneVision).
- Behind a picture text goes on at the picture's largest position plus one, on every axis. Where a
  prompt *ends* with a picture, transformers' `generate` (5.23) goes on from the last image token
  instead, axis by axis (Qwen): answers then differ from the stock model's.
- Positions of three axes are gathered with their tokens, and the deep features of Qwen3-VL follow
  theirs. Forms that number positions anew are refused there; `positions=original` is accepted.

## Methods that a family refuses

Every other method works. A refusal is one line, when the method is set.

| family | method | why |
|---|---|---|
"""

TYPES = """
## Model types that are refused

| model type | why |
|---|---|
"""

#: Depth of a model, for plans.
LAYERS = 32

MODES = """
Text models with sliding-window, chunked or linear-attention layers are refused, as are quantised
models, assisted and prompt-lookup decoding, `prefill_chunk_size`, `cache_implementation`, a stock
cache, `torch.compile(model)` (use `set_compile`), and an image fed on a cache in a later turn.
"""


def page() -> str:
    """Return the page's Markdown."""
    lines = [INTRODUCTION, "| family | checkpoints (licence) | a picture becomes | vision tower |"]
    lines.append("|---|---|---|---|")
    for kind in FAMILIES:
        item = PUBLISHED[kind]
        names = "<br>".join(f"`{name}` ({licence})" for name, licence in item.checkpoints)
        lines.append(f"| `{kind}` | {names} | {item.image} | {item.tower} |")
    refused = "\n".join(f"| `{kind}` | {reason} |" for kind, reason in REFUSED.items())
    parts = ["\n".join(lines), RULES + "\n".join(_refusals()), TYPES + refused, MODES]
    return "\n".join(parts)


def _refusals() -> list[str]:
    """Return a line for each reason why a family refuses methods in their default form."""
    lines = []
    for kind, family in FAMILIES.items():
        found: dict[str, list[str]] = {}
        for name in methods.names():
            method = methods.create(name)
            reason = refusal(family, method, method.plan(LAYERS))
            if reason:
                found.setdefault(reason, []).append(f"`{name}`")
        lines += [f"| `{kind}` | {', '.join(names)} | {why} |" for why, names in found.items()]
    return lines


def main() -> int:
    """Write the page and print where."""
    path = Path(__file__).parents[2] / "docs" / "supported_models.md"
    path.write_text(page(), encoding="utf-8")
    print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
