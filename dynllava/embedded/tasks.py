"""The folder that lmms-eval needs: task files beside the data they read."""

from __future__ import annotations

import importlib.util
import json
import os
from pathlib import Path

from dynllava.output.files import write_bytes

from .data import ensure_split


def task_sources() -> Path:
    """Folder of the shipped task files: the installed plugin, else the source checkout."""
    spec = importlib.util.find_spec("lmms_eval_dynllava")
    if spec is not None and spec.submodule_search_locations:
        folder = Path(next(iter(spec.submodule_search_locations))) / "tasks" / "embedded"
    else:
        folder = Path(__file__).parents[2] / "plugins/lmms_eval_dynllava/tasks/embedded"
    if not (folder / "embedded.yaml").is_file():
        raise FileNotFoundError(f"no embedded lmms-eval tasks in {folder}: reinstall dynllava")
    return folder


def tasks_folder(folder: str | os.PathLike | None = None, split: str = "test") -> Path:
    """Prepare a folder for ``lmms-eval --include_path``; data are generated on first use.

    lmms-eval reads ``data_files`` relative to the YAML, so the task files are copied beside the
    parquet files of the split.

    Parameters
    ----------
    folder : path, optional
        Parent of the generated data; default ``~/.cache/dynllava/embedded``.
    split : {"test", "val", "fresh"}
        Which held-out split the tasks ask.

    Returns
    -------
    pathlib.Path
        Holds the tasks ``embedded_<family>`` and the group ``embedded``.
    """
    target = ensure_split(split, folder)
    for source in sorted(task_sources().iterdir()):
        copy = target / source.name
        if not source.is_file():
            continue
        # The data set is this folder: for the builder "parquet" in its place, datasets would report
        # each load to a server.
        path = f"dataset_path: {json.dumps(str(target.resolve()))}".encode()
        content = source.read_bytes().replace(b"dataset_path: parquet", path)
        if not (copy.is_file() and copy.read_bytes() == content):
            write_bytes(copy, content)
    return target
