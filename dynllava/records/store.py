"""Append-only store of run records: safe for concurrent writers and for a kill at any moment."""

from __future__ import annotations

import dataclasses
import fcntl
import json
import os
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dynllava.errors import UserError
from dynllava.output.files import check_output_folder, current_umask

from .schema import RunRecord, UnknownSchemaError

FILE_NAME = "records.jsonl"
TEMPORARY = ".tmp"
LEFTOVER_AGE = 60.0
"""Seconds after which a temporary file without a living writer is removed."""


@dataclass(frozen=True)
class Problem:
    """A line that is no record: where (1-based line number) and why."""

    path: str
    line: int
    message: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.message}"


class RecordStore:
    """One JSON line a record in ``<folder>/records.jsonl``, samples in ``<folder>/samples/``.

    Parameters
    ----------
    path : str or Path
        A folder (need not exist), or a file whose name ends in ``.jsonl``.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        path = Path(path)
        self.path = path if path.suffix == ".jsonl" or path.is_file() else path / FILE_NAME
        self.folder = self.path.parent

    def append(
        self, record: RunRecord, samples: Iterable[dict[str, Any]] | None = None
    ) -> RunRecord:
        """Store ``record`` durably and return it as stored.

        Parameters
        ----------
        record : RunRecord
            Validated before anything is written.
        samples : iterable of dict, optional
            Per-sample results.  They are complete on disk before the record names them.

        Raises
        ------
        UserError
            If the record does not fit the schema or the store cannot be written.
        """
        if samples is not None:
            name = f"samples/{record.record_id}.jsonl"
            record = dataclasses.replace(record, samples_file=name)
        line = (record.to_json() + "\n").encode()
        self.check_writable()
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            if samples is not None:
                _write_samples(self.folder / name, samples)
            self._append_line(line)
        except OSError as error:
            raise UserError(f"cannot write {self.path}: {error.strerror or error}", 1) from error
        return record

    def check_writable(self) -> None:
        """Raise :class:`UserError`, before long work, if records cannot be appended."""
        self._check_target()
        check_output_folder(self.folder, "store")

    def _check_target(self) -> None:
        """Refuse a file that is no store: appending would spoil somebody's notes."""
        if not self.path.is_file():
            return
        if self.path.suffix != ".jsonl":
            raise UserError(f"{self.path}: is a file, a folder or a .jsonl file is expected")
        with self.path.open("rb") as file:
            first = file.readline()
        try:
            foreign = "schema_version" not in json.loads(first)
        except (ValueError, TypeError, RecursionError):
            # The torn line of a killed writer, or text; a store's own lines begin an object.
            foreign = bool(first.strip()) and not first.startswith(b"{")
        if foreign:
            raise UserError(f"{self.path}: holds no run records, so none is appended to it")

    def _append_line(self, line: bytes) -> None:
        new = not self.path.exists()
        descriptor = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            with _locked(descriptor, fcntl.LOCK_EX):
                size = os.fstat(descriptor).st_size
                if size and os.pread(descriptor, 1, size - 1) != b"\n":
                    # A killed writer left a torn line: end it, so that ours stands alone.
                    line = b"\n" + line
                written = os.write(descriptor, line)
                if written != len(line):
                    raise OSError(f"only {written} of {len(line)} bytes could be written")
                os.fsync(descriptor)
        finally:
            os.close(descriptor)
        if new:
            _sync_folder(self.folder)

    def read(self) -> tuple[list[RunRecord], list[Problem]]:
        """Return all records in file order, and the lines that hold none.

        Torn and foreign lines and invalid records are skipped and reported.  A missing file
        is an empty store.

        Raises
        ------
        UserError
            If a record's schema version is unknown: a newer package wrote here, and leaving its
            records out would silently change every table.
        """
        try:
            data = self._bytes()
        except FileNotFoundError:
            return [], []
        except OSError as error:
            raise UserError(f"cannot read {self.path}: {error.strerror or error}", 1) from error
        records: list[RunRecord] = []
        problems: list[Problem] = []
        seen: set[str] = set()
        for number, raw in enumerate(data.split(b"\n"), start=1):
            if not raw.strip():
                continue
            try:
                record = RunRecord.from_json(raw.decode())
                if record.record_id in seen:
                    raise UserError(f"record_id {record.record_id} occurs twice")
            except UnknownSchemaError as error:
                raise UnknownSchemaError(f"{self.path}:{number}: {error}", 1) from None
            except (UserError, UnicodeDecodeError) as error:
                problems.append(Problem(str(self.path), number, f"{error}; line skipped"))
                continue
            seen.add(record.record_id)
            records.append(record)
        return records, problems

    def _bytes(self) -> bytes:
        with self.path.open("rb") as file, _locked(file.fileno(), fcntl.LOCK_SH):
            return file.read()

    def samples(self, record: RunRecord) -> list[dict[str, Any]]:
        """Return the per-sample results of ``record`` (empty if it has none).

        Raises
        ------
        UserError
            If the file is missing or damaged, or lies outside the store's folder.
        """
        if record.samples_file is None:
            return []
        path = (self.folder / record.samples_file).resolve()
        if not path.is_relative_to(self.folder.resolve()):
            raise UserError(f"{record.samples_file}: lies outside the store {self.folder}", 1)
        try:
            with path.open(encoding="utf-8") as file:
                return [json.loads(line) for line in file]
        except (OSError, ValueError, RecursionError) as error:
            raise UserError(f"cannot read the samples {path}: {error}", 1) from error


@contextmanager
def _locked(descriptor: int, operation: int) -> Iterator[None]:
    fcntl.flock(descriptor, operation)
    try:
        yield
    finally:
        fcntl.flock(descriptor, fcntl.LOCK_UN)


def _write_samples(path: Path, samples: Iterable[dict[str, Any]]) -> None:
    """Write one JSON line a sample: temporary file, fsync, rename, so never half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_leftovers(path.parent)
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, suffix=TEMPORARY)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            # Held until the file is closed, also by a kill: a leftover is a file without a lock.
            fcntl.flock(file.fileno(), fcntl.LOCK_EX)
            for sample in samples:
                file.write(json.dumps(sample, ensure_ascii=False, default=str) + "\n")
            file.flush()
            # Temporary files are private; whoever reads the store reads its samples.
            os.fchmod(file.fileno(), 0o666 & ~current_umask())
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
    _sync_folder(path.parent)


def _remove_leftovers(folder: Path) -> None:
    """Remove the temporary files of writers that were killed: old ones that nobody has locked."""
    for path in folder.glob(f"tmp*{TEMPORARY}"):
        try:
            if time.time() - path.stat().st_mtime < LEFTOVER_AGE:
                continue
            with path.open("rb") as file:
                fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.unlink()
        except OSError:
            # Another process writes it, or has removed it.
            continue


def _sync_folder(folder: Path) -> None:
    """Make a new name in ``folder`` survive a power failure."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
