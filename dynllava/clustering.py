"""Moved to :mod:`dynllava.engine.clustering`; this name works for one more minor version."""

from dynllava._moved import forward

__getattr__ = forward(__name__, "dynllava.engine.clustering")
