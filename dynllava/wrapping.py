"""Wrapping a stock model (see :mod:`dynllava.models.wrapping`)."""

from __future__ import annotations

from dynllava.models.wrapping import wrap

__all__ = ["wrap"]
