"""Speed measurements with a fixed protocol: ``python -m benchmarks.decode`` and its siblings.

All of them run interleaved in one process against the dense model, print a table and append
records to ``results/bench``; ``python -m benchmarks.summary`` writes docs/performance.md from them.
Run them from the root of a checkout, on a machine that does nothing else.
"""
