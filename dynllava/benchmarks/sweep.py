"""Moved to :mod:`dynllava.evaluation.sweep`; this name works for one more minor version."""

from dynllava._moved import forward

__getattr__ = forward(__name__, "dynllava.evaluation.sweep")
