"""What projections inside a vision tower give while it runs, so that a look computes none again."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn


@contextmanager
def outputs_of(modules: Sequence[nn.Module]) -> Iterator[dict[nn.Module, torch.Tensor]]:
    """Keep the output of each module's latest call in this thread, for the length of a block.

    Calls of other threads through the same modules are not seen.
    """
    found: dict[nn.Module, torch.Tensor] = {}
    thread = threading.get_ident()

    def keep(module: nn.Module, _: Any, output: torch.Tensor) -> None:
        if threading.get_ident() == thread:
            found[module] = output

    handles = [module.register_forward_hook(keep) for module in dict.fromkeys(modules)]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()
