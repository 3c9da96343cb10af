"""Start the same command in several processes with ``accelerate launch``."""

from __future__ import annotations

import shlex
import subprocess
import sys
from collections.abc import Sequence

from dynllava.errors import UserError

LAUNCHERS = ("none", "accelerate")


def command(
    arguments: Sequence[str], processes: int | None, extra: str = "", cpu: bool = False
) -> list[str]:
    """Return the command line that runs ``dynllava <arguments>`` in several processes.

    Parameters
    ----------
    arguments : sequence of str
        Of ``dynllava``.
    processes : int, optional
        Over all machines; None leaves it to accelerate's configuration.
    extra : str
        Further options of ``accelerate launch``, e.g. for several machines.
    cpu : bool
        Run without accelerators.
    """
    options = [] if processes is None else ["--num_processes", str(processes)]
    if processes and processes > 1:
        options.append("--multi_gpu" if not cpu else "--cpu")
    elif cpu:
        options.append("--cpu")
    launcher = [sys.executable, "-m", "accelerate.commands.launch", *options]
    # The last value of an option counts: the processes themselves launch nothing.
    return [*launcher, *shlex.split(extra), "-m", "dynllava.cli", *arguments, "--launcher", "none"]


def run(arguments: Sequence[str], processes: int | None, extra: str = "") -> int:
    """Run ``dynllava <arguments>`` in several processes and return the exit code."""
    import torch

    if processes is not None and processes < 1:
        raise UserError(f"--num-processes {processes}: accepted is a number from 1")
    try:
        shlex.split(extra)
    except ValueError as error:
        raise UserError(f"--launcher-args {extra!r}: {error}") from None
    cpu = not torch.cuda.is_available()
    return subprocess.run(command(arguments, processes, extra, cpu), check=False).returncode
