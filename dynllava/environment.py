"""Moved to :mod:`dynllava.records.environment`; this name works for one more minor version."""

from dynllava._moved import forward

__getattr__ = forward(__name__, "dynllava.records.environment")
