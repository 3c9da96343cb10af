"""Is this port faithful?  Compare the library with tensors recorded from official code.

A golden folder holds ``cases.json`` (an index) and safetensors files.  Three index formats are
read: ``kind / inputs / outputs`` (Dynamic-LLaVA), ``method / variants / tensors`` (others) and
``system / kind / tensors`` (projectors and stages).
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from dynllava.errors import UserError
from dynllava.output.files import read_json_object, reason


@dataclass
class Row:
    """One compared quantity.

    Attributes
    ----------
    case, quantity : str
        What was compared; ``quantity`` is a recorded tensor's name.
    max_abs_diff : float
        Largest absolute difference (count of differing entries for integers and booleans).
    tolerance : float
        0 for exact quantities.
    passed : bool
        ``max_abs_diff <= tolerance`` and shapes agree.
    """

    case: str
    quantity: str
    max_abs_diff: float
    tolerance: float
    passed: bool


@dataclass
class CaseResult:
    """Rows of one case, and the recorded tensors left out with the reason."""

    case: str
    rows: list[Row] = field(default_factory=list)
    excluded: dict[str, str] = field(default_factory=dict)

    def exact(self, quantity: str, ours: Any, recorded: torch.Tensor) -> None:
        """Compare indices, lengths or decisions: every entry must agree."""
        ours = torch.as_tensor(ours).cpu()
        if tuple(ours.shape) != tuple(recorded.shape):
            different = float("inf")
        else:
            different = float((ours.to(torch.int64) != recorded.to(torch.int64)).sum())
        self.rows.append(Row(self.case, quantity, different, 0.0, different == 0))

    def close(
        self, quantity: str, ours: torch.Tensor, recorded: torch.Tensor, tolerance: float
    ) -> None:
        """Compare floats by the largest absolute difference."""
        ours, recorded = ours.detach().cpu().double(), recorded.double()
        if tuple(ours.shape) != tuple(recorded.shape):
            difference = float("inf")
        elif ours.numel() == 0:
            difference = 0.0
        else:
            # NaN on either side must fail, and max() would let it through silently.
            gap = (ours - recorded).abs()
            difference = float("inf") if bool(gap.isnan().any()) else float(gap.max())
        self.rows.append(Row(self.case, quantity, difference, tolerance, difference <= tolerance))

    def exclude(self, reason: str, *quantities: str) -> None:
        """List recorded tensors that are evidence of something else."""
        for quantity in quantities:
            self.excluded[quantity] = reason


@dataclass
class Certificate:
    """The outcome for a golden folder."""

    folder: str
    results: list[CaseResult] = field(default_factory=list)
    not_covered: list[str] = field(default_factory=list)

    @property
    def rows(self) -> list[Row]:
        """All compared quantities."""
        return [row for result in self.results for row in result.rows]

    @property
    def failed(self) -> list[Row]:
        """Quantities out of tolerance."""
        return [row for row in self.rows if not row.passed]

    def to_dict(self) -> dict[str, Any]:
        """Return ``passed``, ``failed``, ``not_covered``, ``excluded`` and ``rows``."""
        return {
            "folder": self.folder,
            "passed": sum(row.passed for row in self.rows),
            "failed": len(self.failed),
            "not_covered": self.not_covered,
            "excluded": {r.case: r.excluded for r in self.results if r.excluded},
            "rows": [asdict(row) for row in self.rows],
        }


Handler = Callable[[dict[str, Any], Path], CaseResult]


def check_folder(
    folder: Path, only: str | None = None, progress: Callable[[CaseResult], None] | None = None
) -> Certificate:
    """Run every covered case of a golden folder.

    Parameters
    ----------
    folder : Path
        Folder with ``cases.json``.
    only : str, optional
        Name of a single case.
    progress : callable, optional
        Called with each finished case.

    Raises
    ------
    UserError
        If the folder or its index cannot be read, or a case is unknown.
    """
    index = read_index(folder)
    cases = index["cases"]
    if only is not None:
        cases = [case for case in cases if case.get("name") == only]
        if not cases:
            names = ", ".join(case.get("name", "?") for case in index["cases"])
            raise UserError(f"--case {only!r}: accepted are {names}")
    certificate = Certificate(str(folder))
    for case in cases:
        handler = handler_for(case)
        if handler is None:
            certificate.not_covered.append(case["name"])
            continue
        try:
            lists = CaseResult(case["name"])
            check_tensor_list(case, folder, lists)
            # What is missing may be what the comparison reads.
            result = lists if lists.rows else handler({**case, "index": index}, folder)
        except (OSError, KeyError, SafetensorError) as error:
            raise UserError(
                f"{folder}, case {case['name']}: {type(error).__name__}: {reason(error)}"
            ) from None
        certificate.results.append(result)
        if progress is not None:
            progress(result)
    if only is None and "gumbel_tau_schedule" in index:
        tau = _tau_result(index)
        if tau is not None:
            certificate.results.append(tau)
    return certificate


def read_index(folder: Path) -> dict[str, Any]:
    """Return ``cases.json`` of a golden folder."""
    path = folder / "cases.json"
    if not path.is_file():
        raise UserError(f"{folder}: no cases.json, so not a golden folder")
    index = read_json_object(path)
    cases = index.get("cases")
    if not isinstance(cases, list):
        raise UserError(f"{path}: an object with a list 'cases' is expected")
    if not cases:
        raise UserError(f"{path}: the list 'cases' is empty, so nothing would be compared")
    for number, case in enumerate(cases):
        if not isinstance(case, dict) or not isinstance(case.get("name"), str):
            raise UserError(f"{path}: case {number} is no object with a 'name'")
    return index


def declared_tensors(case: dict[str, Any]) -> dict[str, Any]:
    """Return name -> {shape, dtype} of the tensors that the index says a case has recorded."""
    found: dict[str, Any] = {}
    for key in ("inputs", "outputs", "tensors"):
        listed = case.get(key)
        if isinstance(listed, dict):
            found |= listed
    return found


def check_tensor_list(case: dict[str, Any], folder: Path, result: CaseResult) -> None:
    """Add a failed row for every tensor that the index and the case's file do not agree on.

    A tensor that is only compared where it is there would otherwise be missed by nobody.
    """
    declared, name = declared_tensors(case), case.get("file")
    if not declared or not isinstance(name, str):
        return
    with safe_open(folder / name, framework="pt") as file:
        stored = {key: list(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118
    for quantity in sorted(declared.keys() | stored.keys()):
        wanted = declared.get(quantity)
        shape = wanted.get("shape") if isinstance(wanted, dict) else None
        if quantity in stored and wanted is not None and shape in (None, stored[quantity]):
            continue
        if quantity not in stored:
            what = "listed but not in the file"
        elif wanted is None:
            what = "in the file but not listed"
        else:
            what = f"listed as {shape}, stored as {stored[quantity]}"
        result.rows.append(Row(case["name"], f"{quantity} ({what})", float("inf"), 0.0, False))


def handler_for(case: dict[str, Any]) -> Handler | None:
    """Return the function that checks a case, or None if it is not covered."""
    if "method" in case:
        from . import baselines, vision_side

        sets = (vision_side, baselines)
        return next((each.check for each in sets if each.covers(case)), None)
    if "system" in case:
        stages = _optional("dynllava.conformance.stages")
        return None if stages is None else stages.HANDLERS.get(case["system"])
    from . import dynamic

    kind = case.get("kind", "")
    training = _optional("dynllava.conformance.training")
    if training is not None and kind in training.HANDLERS:
        return training.HANDLERS[kind]
    return dynamic.HANDLERS.get(kind)


def _tau_result(index: dict[str, Any]) -> CaseResult | None:
    training = _optional("dynllava.conformance.training")
    return None if training is None else training.check_tau(index["gumbel_tau_schedule"])


def _optional(name: str) -> Any:
    return importlib.import_module(name) if importlib.util.find_spec(name) else None
