"""Peak memory of a piece of work."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch


def peak_memory(device: torch.device, work: Callable[[], object]) -> int | None:
    """Run ``work`` and return its peak memory in bytes, None where it cannot be measured.

    On CUDA the peak of allocated device memory, weights included.  On a CPU under Linux the
    peak growth of the process's resident memory during the run (weights not included), which
    other allocations of the process blur.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        work()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device)
    status, clear = Path("/proc/self/status"), Path("/proc/self/clear_refs")
    try:
        # 5 resets the high-water mark of resident memory (proc(5)).
        clear.write_text("5")
        before = _field(status, "VmRSS")
    except (OSError, StopIteration):
        work()
        return None
    work()
    return max(0, _field(status, "VmHWM") - before)


def _field(status: Path, name: str) -> int:
    """Return a memory field of ``/proc/self/status`` in bytes."""
    lines = status.read_text(encoding="ascii", errors="replace").splitlines()
    line = next(line for line in lines if line.startswith(f"{name}:"))
    return 1024 * int(line.split()[1])
