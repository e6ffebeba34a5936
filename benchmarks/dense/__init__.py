"""Stored patterns beside NumPy and torch, for ``python -m benchmarks``."""
