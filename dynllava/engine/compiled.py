"""Decode steps compiled with ``torch.compile``.

A compiled step attends over the cache's whole capacity under a mask, so its shapes change only when
the cache grows by a chunk: after the second growth the compiler treats that size as a variable.
Prompts, extensions and everything the host decides stay as they are, so the outputs are
those of the ordinary step up to rounding.
"""

from __future__ import annotations

from collections.abc import Callable
from types import FunctionType
from typing import Any

import torch

from dynllava.errors import UserError

from .buffers import Buffers
from .decoder import Pass
from .program import Program


class CompiledSteps:
    """Compiled steps of one model, one a method, so that switching methods recompiles nothing.

    Parameters
    ----------
    backend : str
        Backend of ``torch.compile``; ``"inductor"`` generates kernels (on a CPU it needs a C++
        compiler).
    capacity : int or None
        Tokens of a row that K/V buffers with fixed addresses have room for; None = no such buffers.
    """

    def __init__(self, backend: str = "inductor", capacity: int | None = None) -> None:
        self.backend = backend
        self.buffers = None if capacity is None else Buffers(capacity)
        self._steps: dict[str, Callable[..., Any]] = {}

    def of(self, program: Program) -> Callable[..., Any] | None:
        """Return the step of a method; None where its shapes change from step to step."""
        if program.hides:
            return None
        key = f"{program.method.name} {program.method.parameters()}"
        if key not in self._steps:
            self._steps[key] = self._compiled()
        return self._steps[key]

    def _compiled(self) -> Callable[..., Any]:
        # The compiler counts recompilations per code object: give each method one of its own.
        walk = Pass._walk
        own = FunctionType(walk.__code__.replace(), walk.__globals__, walk.__name__)
        return compiled(own, self.backend)


def compiled(function: Callable[..., Any], backend: str) -> Callable[..., Any]:
    """Return ``function`` compiled; a backend that fails is one line (:class:`UserError`)."""
    step = torch.compile(function, backend=backend)

    def run(*args: Any, **options: Any) -> Any:
        try:
            return step(*args, **options)
        except RuntimeError as error:
            if type(error).__name__ not in COMPILER_ERRORS:
                raise
            cause = getattr(error, "inner_exception", error)
            reason = f"{type(cause).__name__}: {cause}".splitlines()[0]
            raise UserError(f"compile=True: no compiled step ({reason})") from error

    return run


COMPILER_ERRORS = ("BackendCompilerFailed", "InductorError")
"""What ``torch.compile`` raises if a backend fails, e.g. without a C++ compiler."""


def refuse_compiling(kernel: str) -> None:
    """Refuse to compile around a kernel that the compiler cannot see into."""
    if kernel == "flash_attention_2":
        raise UserError("compile=True with flash_attention_2: accepted are sdpa and eager")
