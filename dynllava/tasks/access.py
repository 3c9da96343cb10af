"""What keeps a task from being evaluated, found before anything runs."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from .registry import BENCHMARKS, Benchmark

JUDGE_KEY = "OPENAI_API_KEY"
"""lmms-eval reads the judge's key here, for MM-Vet even to load the task."""

_LOGIN_ERRORS = ("LocalTokenNotFoundError", "GatedRepoError")
_LOGIN_TEXT = re.compile(
    r"\b401 (client error|unauthorized)|\bgated (repo|dataset|model)|token is required"
    r"|must be authenticated",
    re.IGNORECASE,
)
"""What the hub and its libraries say; a path may hold any single one of these words."""


@dataclass(frozen=True)
class FailedTask:
    """A task that cannot be evaluated here, and why in one line."""

    name: str
    error: str
    benchmark: Benchmark | None = None


@dataclass(frozen=True)
class Requirements:
    """What upstream's task file asks for.

    Attributes
    ----------
    dataset : str
        Data set at the hub, or a loader such as ``parquet``.
    login : bool
        Whether loading it wants a login at the hub (``token: True``).
    """

    dataset: str
    login: bool


def requirements(benchmark: Benchmark) -> Requirements:
    """Return what a benchmark's upstream task asks for, without loading it."""
    from .overlays import upstream_tasks

    return read_requirements(upstream_tasks() / benchmark.yaml)


def read_requirements(path: Path) -> Requirements:
    """Return what a task file, with the files that it includes, asks for."""
    config: dict[str, Any] = {}
    include: str | None = path.name
    while include:
        path = path.parent / include
        values = yaml.load(path.read_text(encoding="utf-8"), _TaskFile) or {}
        include = values.pop("include", None)
        config = {**values, **config}
    kwargs = config.get("dataset_kwargs") or {}
    return Requirements(str(config.get("dataset_path") or ""), bool(kwargs.get("token")))


class _TaskFile(yaml.SafeLoader):
    """Reads task files without resolving their functions."""


_TaskFile.add_multi_constructor("!", lambda loader, suffix, node: None)


def missing_judge(benchmark: Benchmark | None) -> str | None:
    """Return what to do if a benchmark needs a judge and there is no key for one."""
    if benchmark is None or not benchmark.judge or os.environ.get(JUDGE_KEY):
        return None
    return (
        f"{benchmark.title} is scored by a language model: set {JUDGE_KEY}, "
        "or leave it out (--no-judge)"
    )


def without_judges(names: list[str]) -> tuple[list[str], list[str]]:
    """Return the tasks that need no judge, and those that do."""
    judged = [name for name in names if name in BENCHMARKS and BENCHMARKS[name].judge]
    return [name for name in names if name not in judged], judged


def loading_problem(error: BaseException) -> str:
    """Return in one line why a task's data cannot be loaded, and what to do where that is known."""
    cause = _cause(error)
    text = " ".join(str(cause).split())
    known = type(cause).__name__ in _LOGIN_ERRORS
    if known or _LOGIN_TEXT.search(text):
        return f"its data need a login at the Hugging Face hub: run hf auth login ({_short(cause)})"
    return f"its data cannot be loaded ({_short(cause)})"


def input_problem(dataset: Any) -> str | None:
    """Return why a data set's questions cannot be asked: they are about video or sound.

    Parameters
    ----------
    dataset : datasets.Dataset
        The documents that would be evaluated.
    """
    from datasets import Audio, Video

    for feature in (getattr(dataset, "features", None) or {}).values():
        inner = feature[0] if isinstance(feature, list) else getattr(feature, "feature", feature)
        if isinstance(inner, Audio | Video):
            return f"its questions are about {type(inner).__name__.lower()}: accepted are images"
    return None


def _cause(error: BaseException) -> BaseException:
    """Return the error behind lmms-eval's retries."""
    attempt = getattr(error, "last_attempt", None)
    return (attempt.exception() if attempt is not None else None) or error


def _short(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:400]
