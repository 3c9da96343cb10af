"""The benchmarks: their names and data, how lmms-eval loads them, what each needs."""
