"""Held-out splits as parquet files, and the endless training split.

A split is generated on first use. Its folder name carries a hash of the generating source, so a
changed generator never reads stale files.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

from PIL import Image

from dynllava.errors import UserError

from .questions import FAMILIES, Question, ask
from .scenes import Scene, generate_scene, seeded_random

SPLITS = {"val": 100, "test": 250, "fresh": 250, "holdout": 2000}
"""Samples a family."""
CAPTIONS = {"holdout": 1000}
"""Samples of the caption family, where they are fewer."""
_SOURCES = ("scenes.py", "questions.py", "data.py", "tokenizer.py")


def default_folder() -> Path:
    """Where generated data go unless a folder is named."""
    return Path.home() / ".cache" / "dynllava" / "embedded"


@lru_cache(maxsize=1)
def generator_version() -> str:
    """Short hash of the source files that decide the content of a split."""
    digest = hashlib.sha256()
    for name in _SOURCES:
        # Line endings depend on how the package was checked out, the content does not.
        digest.update(Path(__file__).with_name(name).read_bytes().replace(b"\r\n", b"\n"))
    return digest.hexdigest()[:12]


def split_questions(split: str, family: str, count: int) -> Iterator[tuple[Scene, Question]]:
    """Yield the first ``count`` questions of a family in a split; yes and no are balanced."""
    answers: Counter[str] = Counter()
    index = 0
    while answers.total() < count:
        scene = generate_scene(f"{split}/{family}/{index}")
        question = ask(scene, family, seeded_random(split, family, index))
        index += 1
        if question is None:
            continue
        if family == "existence" and answers[question.answer] >= (count + 1) // 2:
            continue
        answers[question.answer] += 1
        yield scene, question


def split_size(split: str, family: str) -> int:
    """Return how many samples of a family a split has."""
    most = SPLITS[split]
    return CAPTIONS.get(split, most) if family == "caption" else most


def ensure_split(name: str = "test", folder: str | os.PathLike | None = None) -> Path:
    """Folder of a split with one ``<family>.parquet`` each; generated on first use.

    Parameters
    ----------
    name : {"test", "val", "fresh", "holdout"}
        ``fresh`` is a second test split with seeds of its own, ``holdout`` a large one (12,000
        short questions, 1,000 captions) for verdicts within a point.
    folder : path, optional
        Parent folder; default ``~/.cache/dynllava/embedded``.

    Returns
    -------
    pathlib.Path
        Holds the parquet files (columns image, question, answer, family, question_id, options,
        scene) and ``manifest.json`` with rows and content hash of each.
    """
    if name not in SPLITS:
        raise ValueError(f"unknown split {name!r}; known: {', '.join(SPLITS)}")
    parent = Path(folder) if folder is not None else default_folder()
    target = parent / f"{name}-{generator_version()}"
    if (target / "manifest.json").is_file():
        return target
    try:
        parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=f".{name}-", dir=parent))
    except OSError as error:
        raise UserError(
            f"cannot write the embedded data to {parent} ({error.strerror}): name another folder",
            exit_code=1,
        ) from error
    try:
        manifest = {}
        for family in FAMILIES:
            rows = [
                _row(scene, question, f"{name}-{family}-{index}")
                for index, (scene, question) in enumerate(
                    split_questions(name, family, split_size(name, family))
                )
            ]
            _write_parquet(rows, scratch / f"{family}.parquet")
            manifest[family] = {"rows": len(rows), "sha256": content_hash(rows)}
        (scratch / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n")
        # mkdtemp makes private folders; a shared cache should stay readable.
        scratch.chmod(0o755)
        try:
            scratch.rename(target)
        except OSError:
            # Another process finished first: its files have the same content.
            if not (target / "manifest.json").is_file():
                raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return target


def load_split(
    name: str, family: str, folder: str | os.PathLike | None = None, limit: int | None = None
) -> list[dict[str, Any]]:
    """Rows of a split with decoded images.

    Returns
    -------
    list of dict
        Keys as the parquet columns; ``image`` is a :class:`PIL.Image.Image`.
    """
    import pyarrow.parquet as parquet

    table = parquet.read_table(ensure_split(name, folder) / f"{family}.parquet")
    rows = table.slice(0, limit).to_pylist()
    for row in rows:
        row["image"] = Image.open(io.BytesIO(row["image"]["bytes"])).convert("RGB")
    return rows


def content_hash(rows: list[dict[str, Any]]) -> str:
    """SHA-256 over pixels and texts; independent of how PNG or parquet were compressed."""
    digest = hashlib.sha256()
    for row in rows:
        image = row["image"]
        if isinstance(image, dict):
            image = Image.open(io.BytesIO(image["bytes"]))
        digest.update(image.convert("RGB").tobytes())
        for key in ("question", "answer", "family", "question_id", "scene"):
            digest.update(row[key].encode() + b"\0")
        digest.update("|".join(row["options"]).encode() + b"\0")
    return digest.hexdigest()


def training_records(
    seed: int, n: int, caption_share: float = 0.5
) -> Iterator[tuple[Image.Image, list[dict[str, str]]]]:
    r"""Yield conversations of the training split in the format of LLaVA's own data.

    Parameters
    ----------
    seed : int
        Another seed gives other scenes; none of them occurs in a held-out split.
    n : int
        Number of records.
    caption_share : float, default 0.5
        Share of records that ask for a caption (answers of 69 words or more); the others ask
        one short question.

    Yields
    ------
    image : PIL.Image.Image
    conversation : list of dict
        ``[{"from": "human", "value": "<image>\n..."}, {"from": "gpt", "value": ...}]``.
    """
    short = [family for family in FAMILIES if family != "caption"]
    rng = seeded_random("train", seed)
    index = made = 0
    while made < n:
        family = "caption" if rng.random() < caption_share else rng.choice(short)
        question = None
        while question is None:
            scene = generate_scene(f"train/{seed}/{index}")
            question = ask(scene, family, rng)
            index += 1
        made += 1
        yield (
            scene.image,
            [
                {"from": "human", "value": f"<image>\n{question.text}"},
                {"from": "gpt", "value": question.answer},
            ],
        )


def _row(scene: Scene, question: Question, question_id: str) -> dict[str, Any]:
    buffer = io.BytesIO()
    scene.image.save(buffer, format="PNG", compress_level=1)
    return {
        "image": {"bytes": buffer.getvalue(), "path": None},
        "question": question.text,
        "answer": question.answer,
        "family": question.family,
        "question_id": question_id,
        "options": list(question.options),
        "scene": json.dumps(scene.to_dict(), separators=(",", ":")),
    }


def _write_parquet(rows: list[dict[str, Any]], path: Path) -> None:
    """Write rows so that ``datasets`` decodes the image column by itself."""
    try:
        import pyarrow as pa
        import pyarrow.parquet as parquet
    except ImportError as error:
        raise ImportError("writing a split needs pyarrow: pip install pyarrow") from error

    text = pa.string()
    schema = pa.schema(
        {
            "image": pa.struct({"bytes": pa.binary(), "path": text}),
            **{key: text for key in ("question", "answer", "family", "question_id")},
            "options": pa.list_(text),
            "scene": text,
        }
    )
    features: dict[str, Any] = {
        name: {"dtype": "string", "_type": "Value"} for name in schema.names
    }
    features["image"] = {"_type": "Image"}
    features["options"] = {"feature": {"dtype": "string", "_type": "Value"}, "_type": "List"}
    schema = schema.with_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    parquet.write_table(pa.Table.from_pylist(rows, schema=schema), path)
