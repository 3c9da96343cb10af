"""Checks of the tasks of a run: judge, login, data; nothing is downloaded."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from dynllava.errors import UserError
from dynllava.tasks.access import missing_judge, requirements
from dynllava.tasks.loading import check_names, expand
from dynllava.tasks.registry import BENCHMARKS

from .findings import Preflight


def check_tasks(found: Preflight, names: Iterable[str], prompts: str = "llava") -> None:
    """Add, for each task, whether it can be evaluated here.

    Parameters
    ----------
    found : Preflight
        Extended.
    names : iterable of str
        Suites and tasks, as ``dynllava compare --tasks``.
    prompts : str
        ``"llava"`` or ``"lmms-eval"``.
    """
    names = list(names)
    try:
        check_names(names, [])
    except UserError as error:
        found.add("no", "task", error)
        return
    for name in expand(names):
        benchmark = BENCHMARKS.get(name)
        if benchmark is None:
            found.add("ok", "task", f"{name}: data shipped with the package")
            continue
        problem = missing_judge(benchmark)
        if problem is not None:
            found.add("no", "task", f"{name}: {problem}")
            continue
        try:
            needs = requirements(benchmark)
        except UserError as error:
            found.add("no", "task", f"{name}: {error}")
            continue
        level, text = _data(needs.dataset, needs.login)
        caution = benchmark.caution(prompts).removeprefix(f"{benchmark.title}: ")
        found.add(level, "task", "; ".join(part for part in (f"{name}: {text}", caution) if part))


def _data(dataset: str, login: bool) -> tuple[str, str]:
    """Return (level, what is known of the data) of a hub data set."""
    from huggingface_hub import constants, get_token

    from dynllava.models.hub import offline

    where = Path(constants.HF_HUB_CACHE) / f"datasets--{dataset.replace('/', '--')}"
    if login and get_token() is None:
        if where.is_dir() and offline():
            return "note", f"{dataset} is in the hub's cache; online it wants a login at the hub"
        return "no", f"{dataset} wants a login at the Hugging Face hub: run hf auth login"
    if where.is_dir():
        return "ok", f"{dataset} is in the hub's cache"
    if offline():
        return "no", f"{dataset} is not in the hub's cache, and the hub is not asked (offline)"
    return "note", f"{dataset} will be downloaded"
