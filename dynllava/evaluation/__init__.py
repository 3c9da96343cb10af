"""Benchmarks: the registry, the generation tasks, overlays for lmms-eval, and sweeps.

Nothing here imports lmms-eval until a task is loaded.
"""
