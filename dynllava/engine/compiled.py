"""Decode steps, and a prompt's selections, compiled with ``torch.compile``.

A compiled step attends over the cache's whole capacity under a mask, so its shapes change only when
the cache grows by a chunk: after the second growth the compiler treats that size as a variable.
Extensions and everything the host decides stay as they are, so the outputs are those of the
ordinary step up to rounding.  Of a prompt only what chooses tokens is compiled, where that is asked
for: the layers' products are the library's own either way.
"""

from __future__ import annotations

from collections.abc import Callable
from types import FunctionType
from typing import Any

import torch

from dynllava.errors import UserError

from .buffers import Buffers
from .decoder import Pass
from .program import Decision, Program
from .view import View


class CompiledSteps:
    """Compiled steps of one model, one a method, so that switching methods recompiles nothing.

    Parameters
    ----------
    backend : str
        Backend of ``torch.compile``; ``"inductor"`` generates kernels (on a CPU it needs a C++
        compiler).
    capacity : int or None
        Tokens of a row that K/V buffers with fixed addresses have room for; None = no such buffers.
    selection : bool
        Whether a prompt's selections are compiled too.
    """

    def __init__(
        self, backend: str = "inductor", capacity: int | None = None, selection: bool = False
    ) -> None:
        self.backend, self.selection = backend, selection
        self.buffers = None if capacity is None else Buffers(capacity)
        self._steps: dict[str, Callable[..., Any]] = {}

    def of(self, program: Program) -> Callable[..., Any] | None:
        """Return the step of a method; None where its shapes change from step to step."""
        if program.hides:
            return None
        return self._compiled(_name(program), Pass._walk)

    def decide(self, program: Program, decisions: tuple[Decision, ...], view: View) -> Any:
        """Return what a prompt's decisions at a layer select, as :meth:`Program.decide` does."""
        if not self.selection:
            return program.decide(decisions, view)
        key = f"{_name(program)} {[decision.index for decision in decisions]}"
        return self._compiled(key, type(program).decide)(program, decisions, view)

    def _compiled(self, key: str, function: Callable[..., Any]) -> Callable[..., Any]:
        if key not in self._steps:
            # The compiler counts recompilations per code object: give each method one of its own.
            code, name = function.__code__.replace(), function.__name__
            own = FunctionType(code, function.__globals__, name)
            self._steps[key] = compiled(own, self.backend)
        return self._steps[key]


def _name(program: Program) -> str:
    return f"{program.method.name} {program.method.parameters()}"


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
