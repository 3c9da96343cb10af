"""A task whose questions show one picture, two or none, for ``--include_path`` and ``--data``."""

from __future__ import annotations

import io
import json
from pathlib import Path

import datasets
import picture_task

NAME = "several_pictures"
#: Pictures of each question, by their number in :func:`picture_task.pictures`.
SHOWN = ((0,), (1, 2), (2,), (), (2, 0))
QUESTIONS = (
    "How many shapes are in the picture?",
    "What is it?",
    "Describe the image.",
    "yes or no?",
    "Is there a snowboard in the image?",
)
TASK = """\
task: several_pictures
dataset_path: {folder}
dataset_kwargs:
  data_files:
    test: several.parquet
test_split: test
output_type: generate_until
doc_to_visual: !function use_several.doc_to_visual
doc_to_text: question
doc_to_messages: !function use_several.doc_to_messages
doc_to_target: answer
process_results: !function use_several.exact_match
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
    return list(doc["images"])


def doc_to_messages(doc, lmms_eval_specific_kwargs=None):
    content = [{"type": "image", "url": image} for image in doc["images"]]
    content.append({"type": "text", "text": doc["question"]})
    return [{"role": "user", "content": content}]


def exact_match(doc, results):
    return {"exact_match": float(results[0] == doc["answer"])}
"""


def write(folder: Path, tokens: int) -> Path:
    """Write the task, its data and what reads them."""
    folder.mkdir(parents=True)
    encoded = []
    for picture in picture_task.pictures():
        out = io.BytesIO()
        picture.save(out, "PNG")
        encoded.append({"bytes": out.getvalue(), "path": None})
    rows = [
        {"images": [encoded[index] for index in shown], "question": question, "answer": "two"}
        for shown, question in zip(SHOWN, QUESTIONS, strict=True)
    ]
    features = datasets.Features(
        images=datasets.Sequence(datasets.Image()),
        question=datasets.Value("string"),
        answer=datasets.Value("string"),
    )
    data = datasets.Dataset.from_list(rows, features=features)
    data.to_parquet(str(folder / "several.parquet"))
    text = TASK.format(folder=json.dumps(str(folder.resolve())), tokens=tokens)
    (folder / "several_pictures.yaml").write_text(text)
    (folder / "use_several.py").write_text(USE)
    return folder
