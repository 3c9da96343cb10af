"""Count host synchronisations of a piece of code, on any device.

On a GPU each of these waits for all queued work; on a CPU they are free, but dispatched all the
same, so a CPU run shows what a GPU run would pay.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

DISPATCHED = frozenset({"_local_scalar_dense", "nonzero", "equal", "masked_select", "unique"})
"""ATen operators whose result (or its shape) must be known on the host.

``_local_scalar_dense`` is behind ``item``, ``bool``, ``int`` and ``float`` of a tensor.
"""

INDEXING = frozenset({"index", "index_put", "index_put_"})
"""Operators that look for the true places of a boolean index, counted as ``boolean_index``."""

READ_BY_PYTHON = frozenset({"tolist", "numpy", "cpu"})
"""Tensor methods that read memory without such an operator on a CPU."""


def _overload_name(func: Any) -> str:
    return func.overloadpacket.__name__ if hasattr(func, "overloadpacket") else func.__name__


def _is_mask(index: Any) -> bool:
    return isinstance(index, torch.Tensor) and index.dtype in (torch.bool, torch.uint8)


class _Dispatched(TorchDispatchMode):
    def __init__(self, counts: Counter[str]) -> None:
        super().__init__()
        self.counts = counts

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        name = _overload_name(func)
        if name in DISPATCHED:
            self.counts[name] += 1
        elif name in INDEXING and any(_is_mask(index) for index in args[1]):
            self.counts["boolean_index"] += 1
        return func(*args, **(kwargs or {}))


class _Read(TorchFunctionMode):
    def __init__(self, counts: Counter[str]) -> None:
        super().__init__()
        self.counts = counts

    def __torch_function__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        name = getattr(func, "__name__", "")
        if name in READ_BY_PYTHON and getattr(torch.Tensor, name, None) is func:
            self.counts[name] += 1
        return func(*args, **(kwargs or {}))


@contextmanager
def count_syncs() -> Iterator[Counter[str]]:
    """Count synchronising operations by name.

    Yields
    ------
    Counter
        Operator or method name -> calls, complete when the block ends.

    Examples
    --------
    >>> with count_syncs() as syncs:
    ...     _ = torch.ones(2).sum().item()
    >>> dict(syncs)
    {'_local_scalar_dense': 1}
    """
    counts: Counter[str] = Counter()
    with _Read(counts), _Dispatched(counts):
        yield counts
