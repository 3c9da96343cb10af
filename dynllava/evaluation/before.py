"""What can be refused before a model is loaded: it must not cost minutes to learn of a typo."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path

from dynllava import methods
from dynllava.costs.spec import ModelSpec
from dynllava.errors import UserError
from dynllava.output.files import check_output_folder
from dynllava.tasks.loading import check_folders, check_names

from .sweep import Cell


def check_request(
    tasks: Sequence[str],
    budgets: Sequence[float],
    limit: int | None,
    folders: Sequence[Path],
    out: Path,
) -> None:
    """Raise :class:`UserError` for tasks, budgets, a limit or folders that cannot work."""
    for budget in budgets:
        if not (math.isfinite(budget) and budget > 0):
            raise UserError(f"--budgets {budget:g}: accepted is a finite number above 0")
    if limit is not None and limit < 1:
        raise UserError(f"--limit {limit}: accepted is a number from 1")
    check_folders(folders)
    check_names(tasks, folders)
    check_output_folder(out, "--out")


def check_machine(device: str, dtype: str | None, attention: str) -> None:
    """Raise :class:`UserError` for a device, dtype or attention kernel that is not there."""
    from dynllava.engine import flash
    from dynllava.engine.attention import check_kernel
    from dynllava.models.loading import check_device, default_dtype, parse_dtype

    if device != "auto":
        check_device(device)
    kinds = parse_dtype(dtype or (default_dtype(device) if device != "auto" else "float16"))
    if check_kernel(attention) == flash.NAME and device != "auto":
        flash.check_available(kinds, device)


def check_cells(
    source: str,
    grid: Callable[[ModelSpec], Sequence[Cell]],
    vision_tower: str | None = None,
) -> None:
    """Raise :class:`UserError` if a cell's parameters do not fit the model ``source``.

    Only configurations are read, the vision tower's included where it has one of its own.
    ``grid`` gives the cells for the model's sizes.
    """
    from dynllava.models.layouts import inspect
    from dynllava.preflight.model import spec_of

    spec = spec_of(inspect(source, vision_tower))
    for cell in grid(spec):
        method = methods.create(cell.method, **cell.params)
        try:
            method.plan(spec.dims.layers).check_model(spec.dims.heads, spec.image_tokens)
        except UserError as error:
            raise UserError(f"{cell}: {error}") from None
