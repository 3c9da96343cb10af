"""Moved to :mod:`dynllava.models.config`; this name works for one more minor version."""

from dynllava._moved import forward

__getattr__ = forward(__name__, "dynllava.models.config")
