"""Profiles as run records."""

from __future__ import annotations

from collections.abc import Sequence

from dynllava.plan.names import FULL
from dynllava.records import Counted, Environment, MethodInfo, ModelInfo, RunRecord

from . import ledger
from .quantities import Quantity

_SUFFIX = {"total": "", "dense total": "_dense", "saved share": "_saved_share"}
_MOMENTS = {"after prefill": "_prefill", "at the end": ""}
_KV = {"stored": "kv_bytes", "allocated": "kv_bytes_allocated", "peak of the call": "kv_bytes_peak"}


def model_info(run: ledger.Run, checkpoint_hash: str | None = None) -> ModelInfo:
    """Return the record's model."""
    dims = run.spec.dims
    return ModelInfo(
        run.spec.name, checkpoint_hash, dims.layers, dims.hidden, run.spec.image_tokens or None
    )


def method_info(run: ledger.Run) -> MethodInfo:
    """Return the record's method."""
    return MethodInfo(run.method.name or FULL, parameters=run.method.parameters())


def counted(run: ledger.Run, items: Sequence[Quantity]) -> dict[str, Counted]:
    """Return the record's counted quantities; times and per-layer numbers are left out."""
    found: dict[str, Counted] = {}
    for item in items:
        key = None
        if item.section == "compute" and item.name in _SUFFIX:
            stem = (
                f"{item.mode}_flops"
                if item.convention == "counted"
                else (f"{item.mode}_{item.convention}")
            )
            key = stem + _SUFFIX[item.name]
        elif item.section == "compute":
            key = f"{item.mode}_{item.name}".replace(" ", "_").replace(",", "")
        elif item.section == "kv" and item.name in _KV:
            key = _KV[item.name] + _MOMENTS[item.mode]
        if key is not None:
            note = f"{item.convention}, batch {run.batch}"
            found[key] = Counted(item.value, item.unit, note, f"{item.mode}{_lengths(run)}")
    mean = sum(ledger.image_tokens_per_layer(run)) / run.spec.dims.layers
    found["mean_image_tokens"] = Counted(mean, "token", "counted", "prefill, per layer")
    return found


def profile_record(
    run: ledger.Run, items: Sequence[Quantity], environment: Environment
) -> RunRecord:
    """Return the record of a profile."""
    return RunRecord(
        kind="profile",
        model=model_info(run),
        method=method_info(run),
        counted=counted(run, items),
        environment=environment,
    )


def _lengths(run: ledger.Run) -> str:
    text = run.shape.total - run.shape.image
    return f" ({text} text + {run.shape.image} image + {run.outputs} output tokens)"
