"""Which run another sweep in the same folder is making right now."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

FILE_NAME = "sweep.lock"


class Claims:
    """Claims on runs, by fingerprint: one byte of a lock file each.

    A claim ends with :meth:`release` or with the process, however it ends, so that nothing has to
    be cleaned up.  Two sweeps in one process do not see each other's claims.

    Parameters
    ----------
    folder : Path
        The record store's folder.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / FILE_NAME
        self._descriptor: int | None = None

    def claim(self, fingerprint: str, wait: bool = False) -> bool:
        """Claim a run; False if another process has it (``wait``: until it has it no more)."""
        if self._descriptor is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666)
        operation = fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB)
        try:
            fcntl.lockf(self._descriptor, operation, 1, _place(fingerprint))
        except BlockingIOError:
            return False
        return True

    def release(self, fingerprint: str) -> None:
        """Give a claim up."""
        if self._descriptor is not None:
            fcntl.lockf(self._descriptor, fcntl.LOCK_UN, 1, _place(fingerprint))

    def close(self) -> None:
        """Give all claims up."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def _place(fingerprint: str) -> int:
    """Return the byte that stands for a fingerprint; two share one by a chance of 2**-62."""
    return int(fingerprint[:16], 16) >> 2
