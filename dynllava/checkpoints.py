"""Moved to :mod:`dynllava.models.checkpoints`; this name works for one more minor version."""

from dynllava._moved import forward

__getattr__ = forward(__name__, "dynllava.models.checkpoints")
