"""Loading a checkpoint (see :mod:`dynllava.models.loading`)."""

from __future__ import annotations

from dynllava.models.loading import load_model

__all__ = ["load_model"]
