"""Moved: the names below work for one more minor version."""
