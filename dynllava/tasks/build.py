"""Build the paper's generation benchmarks from the public annotation files.

``python -m dynllava.tasks.build lvis_vqa_single --annotations lvis_instruct4v_220k.json
--images DIR --train-annotations llava_v1_5_mix665k.json --out DIR`` writes a folder that lmms-eval
takes as ``--include_path`` and ``dynllava compare`` as ``--data``: a parquet file, the task YAMLs,
and a JSON file that says where the data came from.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dynllava.errors import UserError

from .overlays import generation_tasks
from .registry import GENERATION

DEFAULT_SAMPLES = 1000
_COCO = re.compile(r"(?:COCO_(?:train|val|test)\d{4}_)?(\d{12})")


@dataclass(frozen=True)
class Conversation:
    """One annotated conversation about one image."""

    key: str
    image: str
    questions: tuple[str, ...]
    answers: tuple[str, ...]

    @property
    def answer_words(self) -> int:
        """Words of all answers."""
        return sum(len(answer.split()) for answer in self.answers)


def image_key(path: str) -> str:
    """Return what identifies an image across data sets.

    COCO pictures appear as ``000000000009`` and ``COCO_train2014_000000000009``; for all others
    the file name counts.  An image that another collection renamed cannot be told.
    """
    stem = Path(path).stem
    found = _COCO.fullmatch(stem)
    return f"coco:{int(found[1])}" if found else stem.lower()


def qualifies(benchmark: str, item: Conversation) -> bool:
    """Return whether the conversation fits the paper's description of ``benchmark``."""
    if benchmark == "lvis_vqa_single":
        return len(item.answers) == 1 and item.answer_words > 100
    if benchmark == "lvis_vqa_multi":
        return len(item.answers) > 7 and item.answer_words > 300
    return len(item.answers) == 1 and item.answer_words >= 300


def parse(entries: Iterable[Any]) -> tuple[list[Conversation], int]:
    """Return the conversations of an annotation file, and how many entries are none.

    An entry needs ``image`` and ``conversations``, in which human and model take turns.
    """
    conversations, skipped = [], 0
    for number, entry in enumerate(entries):
        turns = entry.get("conversations") if isinstance(entry, dict) else None
        image = entry.get("image") if isinstance(entry, dict) else None
        speakers = [turn.get("from") for turn in turns or ()]
        wanted = ["human", "gpt"] * (len(speakers) // 2)
        if not isinstance(image, str) or not speakers or speakers != wanted:
            skipped += 1
            continue
        texts = [str(turn["value"]).replace("<image>", "").strip() for turn in turns or ()]
        key = str(entry.get("id", number))
        conversations.append(Conversation(key, image, tuple(texts[::2]), tuple(texts[1::2])))
    return conversations, skipped


def select(
    benchmark: str,
    conversations: Iterable[Conversation],
    training_images: set[str],
    samples: int,
    seed: int = 0,
) -> list[Conversation]:
    """Return ``samples`` qualifying conversations, one per image, none of a training image.

    The order is that of a hash of (seed, image, id): the same for any order of the file.
    """
    eligible = [
        item
        for item in conversations
        if qualifies(benchmark, item) and image_key(item.image) not in training_images
    ]
    ranked = sorted(eligible, key=lambda item: _rank(item, seed))
    chosen = list({image_key(item.image): item for item in reversed(ranked)}.values())[::-1]
    if len(chosen) < samples:
        raise UserError(
            f"{benchmark}: {len(chosen)} images qualify, {samples} samples were asked for", 1
        )
    return chosen[:samples]


def _rank(item: Conversation, seed: int) -> str:
    text = json.dumps([seed, item.image, item.key, *item.questions])
    return hashlib.sha256(text.encode()).hexdigest()


def build(
    benchmark: str,
    annotations: Path,
    images: Path,
    train_annotations: Sequence[Path],
    out: Path,
    samples: int = DEFAULT_SAMPLES,
    seed: int = 0,
) -> Path:
    """Write the benchmark's data, task YAMLs and provenance to ``out``; return the data file."""
    if benchmark not in GENERATION:
        raise UserError(f"unknown benchmark {benchmark!r}: accepted are {', '.join(GENERATION)}")
    if samples < 1:
        raise UserError(f"samples={samples}: accepted is a number from 1")
    conversations, skipped = parse(_load(annotations))
    training = {image_key(name) for path in train_annotations for name in _images(_load(path))}
    chosen = select(benchmark, conversations, training, samples, seed)
    rows = [_row(item, images) for item in chosen]
    out.mkdir(parents=True, exist_ok=True)
    data = out / f"{benchmark}.parquet"
    _write_parquet(rows, data)
    for source in _task_files(benchmark):
        (out / source.name).write_text(source.read_text(encoding="utf-8"), encoding="utf-8")
    rounds = Counter(len(item.answers) for item in chosen)
    provenance = {
        "benchmark": benchmark,
        "samples": len(chosen),
        "seed": seed,
        "rounds": dict(sorted(rounds.items())),
        "mean_answer_words": sum(item.answer_words for item in chosen) / len(chosen),
        "conversations_read": len(conversations),
        "entries_skipped": skipped,
        "training_images_excluded": len(training),
        "annotations": _source(annotations),
        "train_annotations": [_source(path) for path in train_annotations],
        "ids": [item.key for item in chosen],
    }
    path = out / f"{benchmark}.json"
    path.write_text(json.dumps(provenance, indent=1) + "\n", encoding="utf-8")
    return data


def _row(item: Conversation, images: Path) -> dict[str, Any]:
    path = images / item.image
    if not path.resolve().is_relative_to(images.resolve()):
        raise UserError(f"image {item.image!r} of sample {item.key} lies outside {images}", 1)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read image {path}: {error.strerror}", 1) from None
    return {
        "id": item.key,
        "image": {"bytes": data, "path": Path(item.image).name},
        "question": list(item.questions),
        "answer": list(item.answers),
    }


def _write_parquet(rows: list[dict[str, Any]], path: Path) -> None:
    try:
        import datasets
    except ImportError:
        raise UserError('building needs datasets: pip install "dynllava[eval]"') from None
    features = datasets.Features(
        {
            "id": datasets.Value("string"),
            "image": datasets.Image(),
            "question": datasets.List(datasets.Value("string")),
            "answer": datasets.List(datasets.Value("string")),
        }
    )
    datasets.Dataset.from_list(rows, features=features).to_parquet(str(path))


def _load(path: Path) -> list[Any]:
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    except ValueError as error:
        raise UserError(f"{path}: not JSON ({error})") from None
    if not isinstance(entries, list):
        raise UserError(f"{path}: a JSON list of annotations is expected")
    return entries


def _images(entries: Iterable[Any]) -> list[str]:
    names = [entry.get("image") for entry in entries if isinstance(entry, dict)]
    return [name for name in names if isinstance(name, str)]


def _source(path: Path) -> dict[str, str]:
    with path.open("rb") as file:
        return {"name": path.name, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def _task_files(benchmark: str) -> list[Path]:
    return sorted(generation_tasks().glob(f"{benchmark}_*.yaml"))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the builder from the command line."""
    parser = argparse.ArgumentParser(prog="python -m dynllava.tasks.build")
    parser.add_argument("benchmark", choices=GENERATION)
    parser.add_argument("--annotations", type=Path, required=True, help="public annotation file")
    parser.add_argument("--images", type=Path, required=True, help="folder the image paths are in")
    parser.add_argument(
        "--train-annotations",
        type=Path,
        nargs="+",
        required=True,
        help="annotation files whose images the model was trained on; none of them is used",
    )
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--samples", type=int, default=DEFAULT_SAMPLES)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    try:
        data = build(**vars(args))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    print(f"wrote {data} and its tasks")
    return 0


if __name__ == "__main__":
    sys.exit(main())
