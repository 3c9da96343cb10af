"""Instruction data: LLaVA's JSON, JSON lines, parquet and Hugging Face datasets."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset

from dynllava.errors import UserError
from dynllava.output.files import reason

from .examples import examples_of
from .images import missing_files, open_image
from .templates import PLACEHOLDER, turns_of


def load_records(path: str, split: str = "train") -> Sequence[dict[str, Any]]:
    """Return the records of a file, a saved dataset or a dataset on the hub.

    Parameters
    ----------
    path : str
        ``.json`` (a list, as ``llava_v1_5_mix665k.json``), ``.jsonl``, ``.parquet``, a folder
        written by ``Dataset.save_to_disk``, or a dataset name on the hub.
    split : str
        Of a hub dataset or saved dataset dictionary.
    """
    file = Path(path)
    if file.suffix in (".json", ".jsonl"):
        return _read_json(file)
    if file.suffix == ".parquet" and not file.is_file():
        raise UserError(f"data file {path} does not exist")
    try:
        import datasets
    except ImportError as error:
        raise UserError(f"reading {path} needs the package datasets (extra 'train')") from error
    try:
        if file.suffix == ".parquet":
            loaded = datasets.load_dataset("parquet", data_files=str(file), split="train")
        elif file.is_dir():
            loaded = datasets.load_from_disk(str(file))
            loaded = loaded[split] if isinstance(loaded, datasets.DatasetDict) else loaded
        else:
            loaded = datasets.load_dataset(path, split=split)
    except Exception as error:
        # pyarrow and datasets have error classes of their own for files that are none of theirs.
        raise UserError(f"data {path!r} is no file, folder or dataset: {reason(error)}") from error
    if isinstance(loaded.features.get("image"), datasets.Image):
        # Decoded by us, in the workers, so that an unreadable image is skipped and not fatal.
        loaded = loaded.cast_column("image", datasets.Image(decode=False))
    return loaded


def _read_json(file: Path) -> list[dict[str, Any]]:
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"data file {file} cannot be read: {error}") from error
    try:
        if file.suffix == ".jsonl":
            records = [json.loads(line) for line in text.splitlines() if line.strip()]
        else:
            records = json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(f"data file {file}: {error}") from error
    except RecursionError:
        raise UserError(f"data file {file}: nested too deeply") from None
    if not isinstance(records, list):
        raise UserError(f"data file {file} holds no list of records")
    return records


@dataclass
class Statistics:
    """What a dataset holds, counted without opening an image."""

    records: int = 0
    with_image: int = 0
    turns: int = 0
    answer_words: int = 0

    def lines(self) -> list[str]:
        """Return the counts as printable lines."""
        text_only = self.records - self.with_image
        return [
            f"records        {self.records} ({self.with_image} with image, {text_only} text only)",
            f"turns          {self.turns}",
            f"answer words   {self.answer_words} ({self.answer_words / self.turns:.1f} a turn)",
        ]


class InstructionDataset(Dataset):
    """Records as model inputs; images are opened when an item is asked for.

    Parameters
    ----------
    records : sequence of dict
        ``conversations``, and ``image`` (one, or a list) unless text only; see
        :func:`load_records`.
    processor : ProcessorMixin
        The checkpoint's.
    image_folder : str or Path, optional
        Image paths are relative to it and must stay inside.
    template, image_aspect, max_length, image_tokens
        See :func:`~dynllava.training.examples.examples_of`.
    skip_missing : bool
        Leave out records whose image file does not exist instead of refusing the data.

    Raises
    ------
    UserError
        Before any training: no records, a malformed one, or missing image files.
    """

    def __init__(
        self,
        records: Sequence[dict[str, Any]],
        processor: Any,
        image_folder: str | Path | None = None,
        *,
        template: str | None = None,
        image_aspect: str | None = None,
        max_length: int = 2048,
        image_tokens: int | None = None,
        skip_missing: bool = False,
    ) -> None:
        if len(records) == 0:
            raise UserError("the data holds no records")
        self.records = records
        self.folder = None if image_folder is None else Path(image_folder)
        self.examples = examples_of(processor, template, image_aspect, max_length, image_tokens)
        self.statistics = Statistics()
        self.lengths: list[int] = []
        self.has_image: list[bool] = []
        names = self._scan()
        missing = missing_files(names, self.folder or Path())
        self.missing = missing
        self.indices = list(range(len(records)))
        if missing:
            self._drop_missing(names, skip_missing)

    def _scan(self) -> list[tuple[str, str]]:
        """Check every record, count, and return the image files that are needed."""
        names, most = [], self.examples.most_images
        for index in range(len(self.records)):
            where, record = self._where(index), self.records[index]
            if not isinstance(record, dict) or "conversations" not in record:
                raise UserError(f"{where}: no conversations")
            turns = turns_of(record["conversations"], where)
            images = images_of(record)
            placeholders = sum(text.count(PLACEHOLDER) for turn in turns for text in turn)
            wanted = len(images)
            if placeholders != wanted:
                raise UserError(f"{where}: {placeholders} image placeholders, {wanted} images")
            if most is not None and wanted > most:
                raise UserError(f"{where}: {wanted} images; accepted is {most} with this model")
            for image in images:
                name = image.get("path") if isinstance(image, dict) else image
                if isinstance(name, str) and not (isinstance(image, dict) and image.get("bytes")):
                    names.append((where, name))
            words = [sum(len(text.split()) for text in side) for side in zip(*turns, strict=True)]
            self.statistics.records += 1
            self.statistics.with_image += bool(wanted)
            self.statistics.turns += len(turns)
            self.statistics.answer_words += words[1]
            self.lengths.append(sum(words) + wanted * self.examples.image_tokens)
            self.has_image.append(bool(wanted))
        return names

    def _drop_missing(self, names: list[tuple[str, str]], skip: bool) -> None:
        count, first = len(self.missing), ", ".join(self.missing[:5])
        if not skip:
            raise UserError(
                f"{count} of {len(names)} image files are not in {self.folder}: {first}"
                f"{' ...' if count > 5 else ''} (data.skip_missing=true leaves them out)"
            )
        gone = set(self.missing)
        self.indices = [
            i for i in self.indices if gone.isdisjoint(map(_image_name, images_of(self.records[i])))
        ]
        if not self.indices:
            raise UserError(f"all {count} image files are missing from {self.folder}")
        self.lengths = [self.lengths[i] for i in self.indices]
        self.has_image = [self.has_image[i] for i in self.indices]

    def _where(self, index: int) -> str:
        record = self.records[index]
        name = record.get("id") if isinstance(record, dict) else None
        return f"record {index}" if name is None else f"record {index} (id {name})"

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, item: int) -> dict[str, Any]:
        """Return one record's tensors; one whose images are unreadable is replaced by the next.

        Keys: ``input_ids``, ``labels`` (int64 [L]), ``pictures`` (what the model takes as such, by
        name), ``kinds`` ([L], by name), ``sample_id``, ``truncated``, ``skipped`` (what could not
        be shown on the way).
        """
        skipped: list[str] = []
        for offset in range(len(self)):
            index = self.indices[(item + offset) % len(self)]
            record, where = self.records[index], self._where(index)
            images, shown = images_of(record), ""
            try:
                pictures = []
                for image in images:
                    shown = _image_name(image)
                    pictures.append(open_image(image, self.folder, where))
                example = self.examples(turns_of(record["conversations"], where), pictures)
            except UserError as error:
                if not images:
                    raise
                skipped.append(f"{where}: {shown}: {error}")
                continue
            return {
                "input_ids": torch.tensor(example.ids),
                "labels": torch.tensor(example.labels),
                "pictures": example.pictures,
                "kinds": example.kinds,
                "sample_id": index,
                "truncated": example.truncated,
                "skipped": skipped,
            }
        raise UserError(
            f"no readable image in {len(self)} records (the last: {skipped[-1]})", exit_code=1
        )


def images_of(record: dict[str, Any]) -> list[Any]:
    """Return the images of a record: none, one, or a list of them."""
    image = record.get("image")
    if image is None:
        return []
    return list(image) if isinstance(image, list | tuple) else [image]


def _image_name(image: Any) -> str:
    name = image.get("path") if isinstance(image, dict) else image
    return name if isinstance(name, str) else "embedded image"
