"""A task of a few pictures that are not square, for ``--include_path`` and ``--data``."""

from __future__ import annotations

import io
import json
from pathlib import Path

import datasets
import torch
from PIL import Image

NAME = "pictures"
QUESTIONS = ("How many shapes are in the picture?", "What is it?", "Describe the image.")
SIDES = ((110, 70), (50, 90), (64, 64))
TASK = """\
task: pictures
dataset_path: {folder}
dataset_kwargs:
  data_files:
    test: pictures.parquet
test_split: test
output_type: generate_until
doc_to_visual: !function use.doc_to_visual
doc_to_text: question
doc_to_messages: !function use.doc_to_messages
doc_to_target: answer
process_results: !function use.exact_match
generation_kwargs:
  max_new_tokens: {tokens}
  do_sample: false
metric_list:
  - metric: exact_match
    aggregation: mean
    higher_is_better: true
metadata:
  - version: 1.0
"""
USE = """\
def doc_to_visual(doc):
    return [doc["image"]]


def doc_to_messages(doc, lmms_eval_specific_kwargs=None):
    content = [{"type": "image", "url": doc["image"]}, {"type": "text", "text": doc["question"]}]
    return [{"role": "user", "content": content}]


def exact_match(doc, results):
    return {"exact_match": float(results[0] == doc["answer"])}
"""


def pictures() -> list[Image.Image]:
    """Noise: every pixel of it matters."""
    generator = torch.Generator().manual_seed(11)
    found = []
    for width, height in SIDES:
        noise = torch.randint(0, 256, (height, width, 3), generator=generator)
        found.append(Image.fromarray(noise.byte().numpy()))
    return found


def write(folder: Path, tokens: int) -> Path:
    """Write the task, its data and what reads them."""
    folder.mkdir(parents=True)
    rows = []
    for question, picture in zip(QUESTIONS, pictures(), strict=True):
        out = io.BytesIO()
        picture.save(out, "PNG")
        image = {"bytes": out.getvalue(), "path": None}
        rows.append({"image": image, "question": question, "answer": "a red circle"})
    features = datasets.Features(
        image=datasets.Image(), question=datasets.Value("string"), answer=datasets.Value("string")
    )
    data = datasets.Dataset.from_list(rows, features=features)
    data.to_parquet(str(folder / "pictures.parquet"))
    text = TASK.format(folder=json.dumps(str(folder.resolve())), tokens=tokens)
    (folder / "pictures.yaml").write_text(text)
    (folder / "use.py").write_text(USE)
    return folder
