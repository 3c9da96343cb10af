"""Moved to :mod:`dynllava.engine.compiled`; this name works for one more minor version."""

from dynllava._moved import forward

__getattr__ = forward(__name__, "dynllava.engine.compiled")
