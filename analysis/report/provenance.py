"""Where every own number comes from: one row a record."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .data import ReportData

HEADERS = (
    "record", "kind", "model", "method", "task", "samples", "data set", "checkpoint", "commit",
    "device", "dtype", "made",
)  # fmt: skip


def provenance_rows(data: ReportData) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Return headers and one row of texts per record, newest first."""
    rows: list[tuple[str, ...]] = []
    records = sorted((item.record for item in data.stored), key=lambda r: r.created, reverse=True)
    for record in records:
        task, environment = record.task, record.environment
        commit = (environment.commit or "unknown")[:10] + (" (dirty)" if environment.dirty else "")
        rows.append(
            (
                record.record_id[:12],
                record.kind if record.status == "ok" else f"{record.kind}, failed: {record.error}",
                record.model.name,
                record.method.shown,
                task.name if task else "",
                str(task.samples) if task and task.samples is not None else "",
                _short(task.dataset_hash if task else None),
                _short(record.model.checkpoint_hash),
                commit,
                environment.device or "",
                environment.dtype or "",
                record.created,
            )
        )
    return HEADERS, rows


def _short(digest: str | None) -> str:
    return "" if digest is None else digest.removeprefix("sha256:")[:12]
