"""Rows of pictures by what the pictures are: bounded, the least recently used leave first."""

from __future__ import annotations

import hashlib
from collections import OrderedDict

import torch


class RowCache:
    """Rows [K, D] by method and picture.

    Parameters
    ----------
    limit : int
        Most bytes of rows; 0 stores nothing.
    """

    def __init__(self, limit: int) -> None:
        self.limit, self.bytes = limit, 0
        self._rows: OrderedDict[tuple[str, str], torch.Tensor] = OrderedDict()

    def __len__(self) -> int:
        return len(self._rows)

    def get(self, method: str, picture: str) -> torch.Tensor | None:
        """Return the rows of a picture, None if they are not here."""
        found = self._rows.get((method, picture))
        if found is not None:
            self._rows.move_to_end((method, picture))
        return found

    def put(self, method: str, picture: str, rows: torch.Tensor) -> None:
        """Store rows; what is larger than the whole cache is not stored."""
        key = (method, picture)
        if rows.nbytes > self.limit or key in self._rows:
            return
        # A view of a batch would keep the whole batch.
        self._rows[key] = rows.clone()
        self.bytes += rows.nbytes
        while self.bytes > self.limit:
            _, old = self._rows.popitem(last=False)
            self.bytes -= old.nbytes


def name_of(picture: bytes) -> str:
    """Return the name of an encoded picture: SHA-256 of its bytes."""
    return hashlib.sha256(picture).hexdigest()
