"""Moved to :mod:`dynllava.engine.attention`; this name works for one more minor version."""

from dynllava._moved import forward

__getattr__ = forward(__name__, "dynllava.engine.attention")
