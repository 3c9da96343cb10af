"""Task YAMLs generated at run time: upstream tasks with other data or the LLaVA-1.5 prompt.

An overlay includes the installed lmms-eval task, so that its scoring code runs unchanged; that
needs the installed path, which is why overlays are written when they are used.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import yaml

from dynllava.errors import UserError

from .registry import Benchmark


class _Function(str):
    """A YAML value that lmms-eval resolves to a Python function."""


class _Dumper(yaml.SafeDumper):
    """A dumper of our own, so that the representer below changes no other user of yaml."""


_Dumper.add_representer(
    _Function, lambda dumper, value: dumper.represent_scalar("!function", str(value))
)


def upstream_tasks() -> Path:
    """Return the task folder of the installed lmms-eval, without importing it."""
    spec = importlib.util.find_spec("lmms_eval")
    if spec is None or not spec.submodule_search_locations:
        raise UserError('lmms-eval is not installed: pip install "dynllava[eval]"')
    return Path(spec.submodule_search_locations[0]) / "tasks"


def write_yaml(path: Path, config: dict[str, Any]) -> Path:
    """Write a task YAML; strings that start with ``!function`` become function references."""

    def convert(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: convert(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [convert(item) for item in value]
        if isinstance(value, str) and value.startswith("!function "):
            return _Function(value.removeprefix("!function "))
        return value

    path.parent.mkdir(parents=True, exist_ok=True)
    text = yaml.dump(convert(config), Dumper=_Dumper, sort_keys=False, default_flow_style=False)
    path.write_text(text, encoding="utf-8")
    return path


def generation_tasks() -> Path:
    """Return the folder of the generation tasks, without importing the plugin (and lmms-eval)."""
    spec = importlib.util.find_spec("lmms_eval_dynllava")
    if spec is None or not spec.submodule_search_locations:
        raise UserError("the package lmms_eval_dynllava is not installed")
    return Path(spec.submodule_search_locations[0]) / "tasks" / "generation"


def write_caption_overlay(folder: Path, kind: str, data: Path) -> Path:
    """Write the task ``embedded_caption_<kind>`` (``ppl`` or ``meteor``) and return its path."""
    config = {
        "include": str(generation_tasks() / f"sharegpt4v_vqa_{kind}.yaml"),
        "task": f"embedded_caption_{kind}",
        **local_data("test", data),
    }
    if kind == "meteor":
        config["generation_kwargs"] = {"max_new_tokens": 160, "temperature": 0, "do_sample": False}
    return write_yaml(folder / f"{config['task']}.yaml", config)


def local_data(split: str, data: Path) -> dict[str, Any]:
    """Return the YAML keys that make a task read ``data`` (parquet) as ``split``.

    The data set is the folder, not the builder ``parquet``: for a builder, datasets reports each
    load to a server.
    """
    return {
        "dataset_path": str(data.resolve().parent),
        "dataset_name": None,
        "dataset_kwargs": {"data_files": {split: str(data.resolve())}},
    }


def write_overlay(
    folder: Path,
    benchmark: Benchmark,
    *,
    data: Path | None = None,
    protocol: bool = False,
    name: str | None = None,
) -> Path:
    """Write the overlay of one benchmark and return its path.

    Parameters
    ----------
    folder : Path
        Where the YAML goes; give it to lmms-eval as ``--include_path``.
    benchmark : Benchmark
        Whose task is included.
    data : Path, optional
        A parquet file with the upstream columns that replaces the download.
    protocol : bool
        Restore the LLaVA-1.5 prompt where lmms-eval departs from it.
    name : str, optional
        Task name.  Upstream names cannot be shadowed where lmms-eval indexes its own tasks.
    """
    source = upstream_tasks() / benchmark.yaml
    if not source.is_file():
        raise UserError(f"the installed lmms-eval has no task {benchmark.task} ({benchmark.yaml})")
    config: dict[str, Any] = {"include": str(source), "task": name or benchmark.task}
    if protocol:
        config |= benchmark.protocol
    if data is not None:
        config |= local_data(benchmark.split, data)
        if benchmark.name == "gqa":
            # Upstream fetches the images from a second data set here; ours are in the file.
            config["process_docs"] = None
    return write_yaml(folder / f"{config['task']}.yaml", config)
