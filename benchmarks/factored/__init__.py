"""Layers of queries and keys beside NumPy and torch, for ``python -m benchmarks.factored``."""
