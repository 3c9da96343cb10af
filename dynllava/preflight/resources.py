"""Disk, download, memory and time that a run would take."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path
from typing import Any

from dynllava.errors import UserError
from dynllava.models.layouts import Checkpoint

from .findings import Preflight

GIB = 2**30


def sizes(found: Preflight, checkpoint: Checkpoint) -> None:
    """Say what lies on disk and what loading would download."""
    parts = [checkpoint.weights, checkpoint.tower.weights if checkpoint.tower else None]
    there = sum(part.bytes for part in parts if part is not None)
    downloads = dict(checkpoint.downloads)
    if checkpoint.tower is not None:
        downloads |= {
            f"{checkpoint.tower.name}: {k}": v for k, v in checkpoint.tower.downloads.items()
        }
    found.add("ok", "disk", f"{shown(there)} of weights are there")
    if downloads:
        known = [size for size in downloads.values() if size is not None]
        size = shown(sum(known)) if len(known) == len(downloads) else "of unknown size"
        text = f"{len(downloads)} files, {size}: {', '.join(downloads)}"
        free = free_bytes(checkpoint.folder)
        if sum(known) > free:
            found.add(
                "no",
                "download",
                f"{text}; the disk of {checkpoint.folder} has {shown(free)} left: make room, or "
                "set HF_HOME to a folder on a larger disk",
            )
        else:
            found.add("note", "download", text)


def free_bytes(folder: Path) -> int:
    """Return what is left on the disk that holds ``folder``."""
    return shutil.disk_usage(folder).free


def memory(
    found: Preflight,
    name: str,
    method: Any,
    spec: Any,
    text: int,
    wanted: Any,
    device: str,
    dtype: str,
) -> None:
    """Say what weights, KV cache and activations take at this batch, and whether it is there."""
    from dynllava.costs import kv
    from dynllava.costs.ledger import Run

    rows = 1 if wanted.batch_size == "auto" else int(wanted.batch_size)
    try:
        run = Run(spec, method, spec.prompt(text), wanted.max_new_tokens, rows)
        cache = max(kv.kv_state(run, at, dtype).peak for at in (0, wanted.max_new_tokens - 1))
        working = kv.activation_bytes(run, dtype)
        weights = spec.weight_bytes(dtype)
    except UserError as error:
        found.add("note", "memory", f"{name}: not predicted ({error})")
        return
    total, there = weights + cache + working, available(device)
    line = (
        f"{name}, batch {rows}: {shown(total)} predicted (weights {shown(weights)}, KV cache "
        f"{shown(cache)}, activations {shown(working)}; measured peaks were up to a third higher)"
    )
    if there is None:
        found.add("note", "memory", f"{line}; the device's memory is unknown")
    elif weights > there or (total > there and wanted.batch_size != "auto"):
        found.add(
            "no", "memory", f"{line}, but {device} has {shown(there)}: use a smaller batch or dtype"
        )
    else:
        tight = 1.5 * total > there
        found.add("note" if tight else "ok", "memory", f"{line}; {device} has {shown(there)}")


def available(device: str) -> int | None:
    """Return a device's memory in bytes (a CPU's: physical memory), None if unknown."""
    import torch

    if torch.device(device).type == "cuda":
        return int(torch.cuda.get_device_properties(torch.device(device)).total_memory)
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None


def run_time(found: Preflight, spec: Any, device: str, records: str) -> None:
    """Say how long 1,000 short answers take, from bench records of this device and these sizes."""
    from dynllava.records import read_tree
    from dynllava.records.environment import capture

    name = capture(device).device
    best = None
    if Path(records).is_dir():
        for record in read_tree(records)[0]:
            sizes_match = (record.model.layers, record.model.hidden) == (
                spec.dims.layers,
                spec.dims.hidden,
            )
            rows = re.search(r"-b(\d+)-", record.task.name) if record.task else None
            measured = record.measured
            if not (sizes_match and rows and record.environment.device == name):
                continue
            if record.status == "ok" and {"ttft", "tpot"} <= set(measured):
                seconds = {"s": 1.0, "ms": 1e-3}
                first = measured["ttft"].median * seconds.get(measured["ttft"].unit, 1.0)
                step = measured["tpot"].median * seconds.get(measured["tpot"].unit, 1.0)
                each = (first + 15 * step) / int(rows[1])
                best = each if best is None else min(best, each)
    if best is None:
        found.add("note", "time", f"unknown: no bench record of these sizes on {name}")
        return
    minutes = 1000 * best / 60
    kind = "minutes" if minutes < 60 else "hours" if minutes < 24 * 60 else "days"
    found.add("ok", "time", f"{kind} for 1,000 answers of 16 tokens (bench records of {name})")


def shown(count: int) -> str:
    """Return bytes as GiB, or MiB below one."""
    return f"{count / GIB:.1f} GiB" if count >= GIB else f"{count / 2**20:.1f} MiB"
